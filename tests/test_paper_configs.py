"""Every file of configs/paper is a whole command's configuration, or one that goes after another.

The data and models of the papers are not here, so the files are parsed by the command line, their
parts that need neither are made, and one small run goes through the stages that they describe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_rag import cli
from lightning_rag.tasks.labels import TABLES
from lightning_rag.tasks.relation_extraction import RelationExtraction

HERE = Path(__file__).resolve().parent
PAPER = HERE.parent / "configs" / "paper"
MODELS = sorted(path.stem for path in PAPER.glob("rag4re_with_*.yaml"))  # go after another file
DATA = ("tacred", "tacrev", "retacred", "semeval2010")
WHOLE = sorted({path.stem for path in PAPER.glob("*.yaml")} - set(MODELS))


def printed(
    names: tuple[str, ...], flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> Mapping[str, dict]:
    """What `fit --print_config` says of some files of configs/paper."""
    files = [word for name in names for word in ("--config", str(PAPER / f"{name}.yaml"))]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *files, *flags, "--print_config"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    return OmegaConf.to_container(OmegaConf.create(shown.out))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_rag"])
    return tmp_path


@pytest.mark.parametrize("name", WHOLE)
def test_every_file_parses(name, capsys):
    config = printed((name,), (), capsys)
    assert config["experiment"] == name
    assert config["data"]["name"] in name


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_goes_with_every_data_set(data, model, capsys):
    alone = printed((f"rag4re_{data}",), (), capsys)
    config = printed((f"rag4re_{data}", model), (), capsys)
    assert config["generator"]["architecture"] == "decoder-only"
    assert config["generator"]["chat_template"]
    task = config["data"]["task"]["init_args"]
    assert task.pop("refinement") == "decoder_only"
    expected = alone["data"]["task"]["init_args"]
    assert expected.pop("refinement") == "sequence_to_sequence"
    assert task == expected  # a file of a model changes nothing else of the task
    batch = config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    assert batch == alone["data"]["batch_size"] * alone["trainer"]["accumulate_grad_batches"] == 16


@pytest.mark.parametrize("data", DATA)
def test_their_tasks_fit_the_labels(data, capsys):
    given = printed((f"rag4re_{data}",), (), capsys)["data"]["task"]["init_args"]
    for refinement in ("sequence_to_sequence", "decoder_only"):
        task = RelationExtraction(**{**given, "refinement": refinement})
        task.prepare(tuple(TABLES.get(data, TABLES["tacred"])))
        published = "micro19_f1" if data == "semeval2010" else "negative_f1"
        assert published.split("_")[0] in task.metrics(())
        assert task.monitor == "f1"  # the standard scorer chooses


def test_the_stages_of_rag4re(folder, capsys):
    """Fine-tuning on simple prompts, the same weights with examples, and no fine-tuning at all."""
    names = ("base", "data/synthetic_relations", "backbone/tiny", "method/rag4re")
    files = [str(HERE.parent / "configs" / f"{name}.yaml") for name in names]
    words = [word for name in (*files, str(HERE / "small.yaml")) for word in ("--config", name)]
    sizes = [f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")]
    task = [
        *("--data.task.init_args.prompt=instruction", "--data.task.init_args.wording=names"),
        "--data.task.init_args.refinement=sequence_to_sequence",
        *("--model.with_label=false", "--model.decoding=free", "--model.epochs=1"),
    ]
    words += [*sizes, *task]
    assert cli.main(["fit", *words, "--model.k=0", "--variant=simple"]) == 0
    [fitted] = folder.rglob("best.ckpt")
    tuned = ("--model.k=1", "--variant=example", f"--ckpt_path={fitted}")
    assert cli.main(["test", *words, *tuned]) == 0
    assert cli.main(["test", *words, "--model.k=0", "--variant=general"]) == 0
    for variant, shown in (("simple", 0), ("example", 1), ("general", 0)):
        [rows] = [path for path in folder.rglob("predictions*.jsonl") if variant in path.parts]
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        assert [len(line["retrieved"]) for line in lines] == [shown] * 16
