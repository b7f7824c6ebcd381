"""The README's commands, tried as they stand there, on data in the formats that it shows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_rag import cli

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PLACES = ("London", "Paris", "Rome", "Oslo")
SMALL = (
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--model.epochs=1",
    "--generator.tiny.hidden_size=16",
    "--generator.tiny.layers=1",
)


def commands(containing: str) -> list[str]:
    """Return the command lines of the README's console blocks that contain a text."""
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if containing in line]


def arguments(line: str) -> list[str]:
    """Return what follows `python -m lightning_rag.cli`."""
    words = shlex.split(line, comments=True)
    assert words[:3] == ["python", "-m", "lightning_rag.cli"]
    return words[3:]


def example(field: str) -> dict[str, object]:
    """Return the README's JSON example that has a field."""
    blocks = re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL)
    examples = [json.loads(line) for block in blocks for line in block.splitlines()]
    (found,) = [one for one in examples if field in one]
    return found


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the project's configurations, as the README's commands expect."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "my_data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    return tmp_path


def relation(number: int) -> dict[str, object]:
    """Return the README's relation record with another place."""
    text = json.dumps(example("head")).replace("London", PLACES[number % 4])
    record: dict[str, object] = json.loads(text)
    length = len(PLACES[number % 4])
    record["id"] = f"a{number}"
    record["text"] = f"{record['text']} {number}"
    record["tail"] = {"start": 25, "end": 25 + length}
    record["label"] = ("born_in", "died_in")[number % 2]
    return record


def test_relations_of_ones_own(here: Path) -> None:
    assert example("head")["text"][25:31] == "London"
    write(here / "my_data" / "train.jsonl", [relation(n) for n in range(20)])
    write(here / "my_data" / "test.jsonl", [relation(n) for n in range(20, 26)])
    (command,) = commands("relation_jsonl.yaml")
    assert cli.main([*arguments(command), *SMALL]) == 0
    (metrics,) = (here / "runs").rglob("metrics.json")
    assert set(json.loads(metrics.read_text())["test"]) >= {"f1", "accuracy", "recall@1"}


@pytest.mark.parametrize("words", ["ours", "flashrag"])
def test_questions_of_ones_own(here: Path, words: str) -> None:
    passages, questions = [], []
    for number in range(24):
        passage, question = example("title"), example("question")
        passage["id"], question["id"] = f"p{number}", f"q{number}"
        passage["text"] = f"Ada the {number} was born in {PLACES[number % 4]}."
        question["question"] = f"Where was Ada the {number} born?"
        question["answers"], question["relevant"] = [PLACES[number % 4]], [f"p{number}"]
        if words == "flashrag":
            title = passage.pop("title")
            passage["contents"] = f'"{title}"\n{passage.pop("text")}'
            question["golden_answers"] = question.pop("answers")
            question["metadata"] = {}
        passages.append(passage)
        questions.append(question)
    write(here / "my_data" / "corpus.jsonl", passages)
    write(here / "my_data" / "train.jsonl", questions[:18])
    write(here / "my_data" / "test.jsonl", questions[18:])
    (command,) = commands("question_jsonl.yaml")
    assert cli.main([*arguments(command), *SMALL]) == 0
    (metrics,) = (here / "runs").rglob("metrics.json")
    assert set(json.loads(metrics.read_text())["test"]) >= {"f1", "exact_match", "recall@1"}


def test_quickstart_then_test_and_predict(here: Path) -> None:
    (command,) = commands("quickstart.yaml")
    small = ("--data.reader.init_args.train=40", "--data.reader.init_args.test=16")
    few = ("--data.reader.init_args.validation=16", *small)
    assert cli.main([*arguments(command), *SMALL, *few]) == 0
    run = here / "runs/quickstart/synthetic_relations/rag4re/default/seed=0"
    for verb in ("cli test", "cli predict"):
        (command,) = commands(verb)
        assert cli.main(arguments(command.replace("RUN", str(run)))) == 0
    assert (run / "predictions.jsonl").exists()
    assert (run / "predictions-test.jsonl").exists()
    (resume,) = commands("--ckpt_path last")
    assert cli.main(arguments(resume.replace("RUN", str(run)))) == 0


@pytest.mark.parametrize("method", ["rag4re", "etrag"])
def test_composed_on_semeval(method: str, here: Path, data_root: Path) -> None:
    """With the callback that the README names, and a tiny backbone in place of the real one."""
    (command,) = commands(f"configs/backbone/minilm.yaml --config configs/method/{method}.yaml")
    words = [word.replace("minilm", "tiny") for word in arguments(command)]
    words += re.findall(r"`(--trainer.callbacks\+=\S+)`", README)
    small = ("--data.validation_size=16", "--data.test_size=16", "--data.fraction=0.01")
    assert cli.main([*words, *SMALL, *small, f"--data.root={data_root}"]) == 0
    (metrics,) = (here / "runs").rglob("metrics.json")
    assert 0 <= json.loads(metrics.read_text())["test"]["f1"] <= 1
    assert (metrics.parent / "retrieval.json").exists()


def test_dro_on_made_up_questions(here: Path) -> None:
    (command,) = commands("method/dro.yaml")
    sizes = [f"--data.reader.init_args.{s}=16" for s in ("train", "validation", "test")]
    short = ("--model.warm_up_epochs=1", "--model.iterations=1", "--data.num_candidates=6")
    assert cli.main([*arguments(command), *SMALL, *sizes, *short]) == 0
    (summary,) = (here / "runs").rglob("summary.json")
    assert "success@1/selector" in json.loads(summary.read_text())["estimates"]["em_1"]


def test_the_tables_of_results_are_those_of_the_comparisons() -> None:
    """Written anew, they are what stands there: figures of results are not copied by hand."""
    script = REPOSITORY / "experiments" / "study.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = README.split("<!-- written by experiments/study.py -->")[1].split("<!-- until")[0]
    assert "| `rag4re` | 67.6 |" in written
    pictures = re.findall(r"\]\(([^)]*\.svg)\)", written)
    assert pictures
    assert all((REPOSITORY / picture).is_file() for picture in pictures)
