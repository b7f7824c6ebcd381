"""`compare` through the command line: what it writes, and what it refuses."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_rag import cli
from lightning_rag.comparison import compare as made

TESTS = Path(__file__).resolve().parents[1]
CONFIGS, SMALL = TESTS.parent / "configs", TESTS / "small.yaml"
OTHER = (0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0)
NASTY = "<script>alert(1)</script>&k=$x_1$|"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run `compare` into tmp_path/report; return the exit code, stdout and stderr."""
    monkeypatch.delenv(cli.TRACEBACK, raising=False)

    def run(*words: object) -> tuple[int, str, str]:
        given = [str(word) for word in words]
        if "--output" not in given:
            given += ["--output", str(tmp_path / "report")]
        try:
            code = cli.main(["compare", *given, "--resamples", "200"])
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def three_seeds(write_run: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of two systems with three seeds each."""
    for seed in range(3):
        write_run("Rag4re", seed=seed)
        write_run("NoRetrieval", NASTY, seed=seed, right=OTHER, chosen=())
    return tmp_path / "runs"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


def test_a_report_in_every_form(compare, three_seeds, tmp_path):
    code, out, _ = compare(three_seeds)
    assert code == 0
    report = tmp_path / "report"
    assert "Comparison on books" in out
    assert str(report / "report.html") in out
    told = json.loads((report / "comparison.json").read_text())
    assert dict(told["facts"])["seeds"] == "0, 1, 2"
    tables = [table for section in told["sections"] for table in section["tables"]]
    assert tables
    for table in tables:
        text = (report / "tables" / f"{table['name']}.csv").read_text()
        rows = list(csv.reader(io.StringIO(text)))
        assert rows[0] == table["columns"]
        assert [len(row) for row in rows[1:]] == [len(row) for row in table["rows"]]
        assert (report / "tables" / f"{table['name']}.tex").is_file()
    page = (report / "report.html").read_text()
    markdown = (report / "report.md").read_text()
    for section in told["sections"]:
        assert f'<section id="{section["name"]}"' in page
        for plot in section["plots"]:
            assert (report / "plots" / f"{plot['name']}.svg").is_file()
            assert f"plots/{plot['name']}.svg" in markdown


def test_data_are_escaped(compare, three_seeds, tmp_path):
    assert compare(three_seeds)[0] == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;k=$x_1$|" in page
    assert "<b>met</b>" not in page
    for file in (tmp_path / "report" / "plots").glob("*.svg"):
        assert "<script" not in file.read_text()


def test_equal_runs_give_an_equal_report_and_replace_the_former(compare, three_seeds, tmp_path):
    assert compare(three_seeds)[0] == 0
    first = contents(tmp_path / "report")
    stale = tmp_path / "report" / "tables" / "stale.csv"
    stale.touch()
    kept = tmp_path / "report" / "notes.txt"
    kept.write_text("mine")
    assert compare(three_seeds)[0] == 0
    assert contents(tmp_path / "report") == {**first, "notes.txt": b"mine"}
    assert not stale.exists()


def test_a_report_that_was_cut_short_can_be_made_again(write_run, tmp_path, monkeypatch):
    """The file by which a folder is known as a report's is never gone, not even for a moment."""
    run, output, replace = write_run(), tmp_path / "report", os.replace
    made.compare([run], output, resamples=9)

    def fail(new, old):
        if Path(old) == output / "comparison.json":
            raise OSError("killed here")
        replace(new, old)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="killed here"):
            made.compare([run], output, resamples=9)
    assert (output / "comparison.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    made.compare([run], output, resamples=9)


def test_one_seed_only_says_what_cannot_be_tested(compare, write_run, tmp_path):
    write_run("Rag4re")
    write_run("NoRetrieval", right=OTHER)
    code, _, _ = compare(tmp_path / "runs")
    assert code == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "There is one seed only (0). So nothing can be said about how much" in text


def test_one_system_alone_is_described(compare, write_run, tmp_path):
    write_run("Rag4re", seed=0)
    write_run("Rag4re", seed=1, right=OTHER)
    assert compare(tmp_path / "runs")[0] == 0


def test_systems_that_answer_alike_are_told(compare, write_run, tmp_path, caplog):
    write_run("Rag4re")
    write_run("Rag4re", "switch")
    assert compare(tmp_path / "runs")[0] == 0
    assert "rag4re and rag4re/switch give the same answers" in caplog.text
    assert "give the same answers" in (tmp_path / "report" / "report.html").read_text()


def test_another_metric(compare, three_seeds, tmp_path):
    assert compare(three_seeds, "--metric", "recall@1")[0] == 0
    told = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert told["facts"]["metric"] == "recall@1"


def spoiled(write_run: Callable[..., Path], name: str, text: str | None) -> Path:
    folder = write_run("NoRetrieval", right=OTHER)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.json", None, "the run is unfinished; go on with it: python -m"),
        ("metrics.json", '{"validation": []}', "the run is unfinished: it was not tested"),
        ("summary.json", "{", "summary.json is damaged"),
        ("predictions.jsonl", None, "no predictions; test it: python -m lightning_rag.cli test"),
        ("predictions.jsonl", '{"id": "q0"', "predictions.jsonl:1: is damaged"),
    ],
)
def test_unfinished_damaged_and_without_predictions(
    compare, write_run, tmp_path, name, text, reason
):
    write_run()
    folder = spoiled(write_run, name, text)
    code, _, err = compare(tmp_path / "runs")
    assert code == 1
    assert err.startswith("error: ")
    assert reason in err
    assert str(folder) in err
    assert "Traceback" not in err
    assert not (tmp_path / "report").exists()


def test_all_spoiled_runs_are_named_at_once(compare, write_run, tmp_path):
    folders = [write_run(seed=seed) for seed in range(3)]
    for folder in folders[:2]:
        (folder / "predictions.jsonl").unlink()
    code, _, err = compare(tmp_path / "runs")
    assert code == 1
    assert "2 runs cannot be compared" in err
    assert str(folders[0]) in err
    assert str(folders[1]) in err
    assert str(folders[2]) not in err


def test_identical_runs(compare, write_run, tmp_path):
    one = write_run(configuration="equal")
    other = write_run(variant="again", configuration="equal")
    code, _, err = compare(one, other)
    assert code == 1
    assert f"{one} and {other} are identical runs" in err


def test_runs_that_do_not_belong_together(compare, write_run):
    one, other = write_run(), write_run("NoRetrieval", store="another")
    code, _, err = compare(one, other)
    assert code == 1
    assert f"{one} and {other} do not belong together: the passage store differs" in err


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["nowhere"], 1, "nowhere does not exist"),
        (["."], 1, "there is no run at or below ."),
        ([], 2, "runs"),
        (["runs", "--metric", "bleu"], 1, "metric: bleu is not among"),
        (["runs", "--metric", "mrr"], 1, "legal: accuracy, f1, recall@1"),
        (["runs", "--confidence", "95"], 1, "confidence: 95.0 came; legal: a number between 0"),
        (["runs", "--examples", "-1"], 1, "examples: -1 came; legal: 0 or more"),
        (["runs", "--seed", "-1"], 1, "seed: -1 came"),
        (["runs", "--seed", "x"], 2, "seed"),
        (["runs", "--output", "file"], 1, "output: file is a file"),
        (["runs", "--output", "full"], 1, "output: full is not empty and holds no report"),
    ],
)
def test_arguments_that_are_not_legal(
    compare, write_run, tmp_path, monkeypatch, words, code, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    if words != ["."]:
        write_run()
    left, _, err = compare(*words)
    assert left == code
    assert reason in err
    assert "Traceback" not in err
    assert not (tmp_path / "report").exists()


def test_no_resample(compare, write_run, tmp_path, capsys):
    write_run()
    words = ["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "x")]
    assert cli.main([*words, "--resamples", "0"]) == 1
    assert "resamples: 0 came; legal: 1 or more" in capsys.readouterr().err


def test_runs_as_a_training_leaves_them(compare, tmp_path, monkeypatch):
    """The runs above are made up; these are not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    names = ("base", "data/synthetic_relations", "backbone/tiny")
    shared = [f"--config={CONFIGS / name}.yaml" for name in names]
    few = [f"--data.reader.init_args.{split}=8" for split in ("train", "validation", "test")]
    for method in ("no_retrieval", "rag4re"):
        files = [*shared, f"--config={CONFIGS / 'method' / method}.yaml", f"--config={SMALL}"]
        assert cli.main(["fit", *files, *few, "--model.init_args.epochs=1"]) == 0
    assert compare("runs")[0] == 0
    told = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert told["facts"]["systems"] == "noretrieval, rag4re"
    assert told["facts"]["data"] == "synthetic_relations, 8 test queries"
    written = {path.parent.parent.parent.name: path for path in Path("runs").rglob("metrics.json")}
    (quality,) = (t for s in told["sections"] for t in s["tables"] if t["name"] == "quality")
    for row in quality["rows"]:
        test = json.loads(written[row[0]].read_text())["test"]
        assert row[1] == pytest.approx(test[told["facts"]["metric"]])


@pytest.mark.parametrize("words", [("runs",), ("runs", "--metric", "bleu")])
def test_the_garbage_collector_works_again(compare, write_run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    write_run()
    compare(*words)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
