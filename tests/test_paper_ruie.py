"""RUIE's published settings: what the files say, their flags, and a run on small files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_rag import cli

PAPER = Path(__file__).resolve().parents[1] / "configs" / "paper"
# What the head of the file offers as one flag, and what it changes.
FLAGS = {
    "--model.ranker reward": "model.init_args.ranker",
    "--model.ranker first_stage": "model.init_args.ranker",
    "--model.tags none": "model.init_args.tags",
    "--model.teacher preference": "model.init_args.teacher",
    "--model.distillation_weight 0": "model.init_args.distillation_weight",
    "--model.contrastive_weight 0": "model.init_args.contrastive_weight",
    "--model.k 3": "model.init_args.k",
    "--model.preferences FILE": "model.init_args.preferences",
    "--model.preferences_to FILE": "model.init_args.preferences_to",
    "--data.first_stage.class_path lightning_rag.data.candidates.Random": (
        "data.first_stage.class_path"
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_rag"])
    return tmp_path


def words(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(PAPER / f"{name}.yaml"))]


def printed(capsys: pytest.CaptureFixture[str], names: tuple[str, ...], *flags: str) -> dict:
    """What `fit --print_config` says of files."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words(*names), *flags, "--print_config"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    return OmegaConf.to_container(OmegaConf.create(shown.out))


def written(name: str) -> dict:
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))


def values(config: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of a configuration with the keys that lead to it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from values(value, (*path, key))
        else:
            yield (*path, key), value


def readers(config: Mapping) -> dict[str, list[str]]:
    """The data sets of each name, held in or out."""
    given = config["data"]["reader"]["init_args"]
    sets = {**given["held_in"], **given["held_out"]}
    return {name: one["init_args"]["datasets"] for name, one in sets.items()}


def test_nothing_is_dropped(capsys) -> None:
    config = dict(values(printed(capsys, ("ruie",))))
    for path, value in values(written("ruie")):
        assert config[path] == value, path


def test_the_published_figures(capsys) -> None:
    """Section 13 of the notes on RUIE."""
    config = printed(capsys, ("ruie",))
    data, model = config["data"], config["model"]["init_args"]
    assert data["batch_size"] * config["trainer"]["accumulate_grad_batches"] == 64
    assert (data["num_candidates"], model["subsample"], model["off_task_penalty"]) == (100, 32, 100)
    assert (model["reward_size"], model["distil_size"]) == (8, 4)
    assert (model["positives"], model["negatives"]) == (3, 16)
    assert (model["reward_steps"], model["distil_steps"]) == (3000, 6000)
    assert config["optimizer"]["learning_rates"] == {"reward": 1e-5, "retriever": 3e-5}
    assert (model["temperature"], model["contrastive_weight"]) == (0.01, 0.2)
    assert (model["distillation_weight"], model["k"]) == (1.0, 8)
    assert config["encoder"]["max_length"] == model["reward_encoder"]["max_length"] == 512
    sets = readers(config)
    every = [dataset for names in sets.values() for dataset in names]
    assert len(set(every)) == len(every)
    kinds = [dataset.split("/")[0] for name in sets for dataset in sets[name]]
    held_out = config["data"]["reader"]["init_args"]["held_out"]
    assert len(held_out) == 5
    assert kinds.count("NER") == 19 + 7
    assert kinds.count("RE") == 8 + 10


def test_what_goes_after_it_changes_nothing_else(capsys) -> None:
    alone = dict(values(printed(capsys, ("ruie",))))
    composed = dict(values(printed(capsys, ("ruie", "ruie_as_released"))))
    given = dict(values(written("ruie_as_released")))
    changed = {path: composed[path] for path in composed if composed[path] != alone.get(path, ...)}
    assert changed == given


def test_the_flags_of_the_head(capsys) -> None:
    head = (PAPER / "ruie.yaml").read_text(encoding="utf-8").split("seed_everything")[0]
    head = " ".join(head.replace("#", " ").split())
    # Two go twice: the last one counts.
    for flags in (FLAGS, dict(reversed(FLAGS.items()))):
        given = {flag.split(" ", 1)[0]: flag.split(" ", 1)[1] for flag in flags}
        config = printed(capsys, ("ruie",), *(f"{name}={value}" for name, value in given.items()))
        for flag, key in flags.items():
            assert flag in head, flag
            found = config
            for part in key.split("."):
                found = found[part]
            assert found == yaml.safe_load(given[flag.split(" ", 1)[0]]), flag


def record(kind: str, number: int, split: str, name: str) -> dict:
    """A record of InstructUIE's form; the texts of no two data sets are equal."""
    person, town = f"Ann{number}", ("Rome", "Oslo", "Bonn")[number % 3]
    text = f"{person} met Bo of {split} {name} in {town}"
    first = {"name": person, "type": "person", "pos": [0, len(person)]}
    place = [len(text) - len(town), len(text)]
    second = {"name": town, "type": "town", "pos": place}
    met = {"trigger": "met", "type": "meeting", "pos": [len(person) + 1, len(person) + 4]}
    where = [{"name": town, "role": "place", "pos": place}]
    return {
        "sentence": text,
        **{
            "NER": {"entities": [first, second]},
            "RE": {"relations": [{"type": "visits", "head": first, "tail": second}]},
            "EET": {"events": [met]},
            "EEA": {"events": [{**met, "arguments": where}]},
        }[kind],
    }


LABELS = {
    "NER": ["person", "town"],
    "RE": ["visits"],
    "EET": {"meeting": ["place"]},
    "EEA": {"meeting": ["place"]},
}


def test_a_run(folder, capsys, caplog) -> None:
    """Both files on small data sets of all names, with models from scratch, in both phases."""
    for names in readers(printed(capsys, ("ruie",))).values():
        for dataset in names:
            kind, name = dataset.split("/")
            at = folder / "IE_INSTRUCTIONS" / kind / name
            at.mkdir(parents=True)
            (at / "labels.json").write_text(json.dumps(LABELS[kind]))
            for split, size in (("train", 6), ("dev", 1), ("test", 1)):
                records = [record(kind, n, split, f"{kind} {name}") for n in range(size)]
                (at / f"{split}.json").write_text(json.dumps(records))
    tiny = {"source": "tiny", "tiny": {"hidden_size": 16, "heads": 2, "layers": 1}}
    small = {
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "data": {"root": str(folder), "reader": {"init_args": {"max_train": 2}}},
        "generator": {
            **tiny,
            "dtype": "float32",
            "max_source_length": 1024,
            "max_target_length": 8,
        },
        "encoder": tiny,
        "model": {
            "init_args": {
                "reward_encoder": tiny,
                "subsample": 16,
                "reward_steps": 2,
                "distil_steps": 2,
            }
        },
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    files = [*words("ruie", "ruie_as_released"), "--config", str(folder / "small.yaml")]
    with caplog.at_level(logging.WARNING):
        assert cli.main(["fit", *files]) == 0
    (path,) = folder.rglob("summary.json")
    estimates = json.loads(path.read_text(encoding="utf-8"))["estimates"]
    assert 0 < estimates["reward"]["off_task"] < 1
    assert 0 < estimates["reward"]["left_out"] < 1  # 16 of 100 hold few of the query's own task
    assert estimates["distil"]["left_out"] == 0
    assert "are left out of this phase" in caplog.text
    (path,) = folder.rglob("metrics.json")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    assert [set(point) for point in metrics["validation"]] == [{"step", "phase", "agreement"}] * 2
    assert {"f1", "official_f1", "held_in_f1", "held_out_f1"} <= metrics["test"].keys()
    (path,) = folder.rglob("predictions.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:  # six demonstrations of each task, held-out ones too
        task = line["id"].split("/")[0]
        assert 5 <= len(line["retrieved"]) <= 6
        assert all(name.startswith(f"{task}/") for name in line["retrieved"])
