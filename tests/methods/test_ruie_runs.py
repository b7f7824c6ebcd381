"""RUIE on the command line: runs, rankers, preferences in files, every switch."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_rag import cli

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"
DATA = ("synthetic_relations", "synthetic_questions", "synthetic_extraction")


@pytest.fixture(autouse=True)
def _no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])


def arguments(
    folder: Path,
    *flags: str,
    command: str = "fit",
    data: str = "synthetic_relations",
    method: str = "ruie",
) -> list[str]:
    files = (
        CONFIGS / "base.yaml",
        CONFIGS / "data" / f"{data}.yaml",
        CONFIGS / "backbone" / "tiny.yaml",
        CONFIGS / "method" / f"{method}.yaml",
        SMALL,
    )
    return [
        command,
        *(part for file in files for part in ("--config", str(file))),
        *(f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")),
        "--data.num_candidates=8",
        f"--runs={folder / 'runs'}",
        f"--data.cache_dir={folder / 'cache'}",
        *(f"--model.{phase}_epochs=2" for phase in ("reward", "distil") if method == "ruie"),
        *flags,
    ]


def found(folder: Path, name: str) -> Any:
    (path,) = folder.rglob(name)
    return json.loads(path.read_text(encoding="utf-8"))


def weights(folder: Path, name: str = "best.ckpt") -> dict[str, Tensor]:
    (path,) = folder.rglob(name)
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor], group: str = "") -> bool:
    names = [name for name in one if name.startswith(group)]
    assert names
    return all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize("data", DATA)
def test_a_run(data: str, tmp_path: Path) -> None:
    """Both phases learn, the generator does not; figures of each are where they belong."""
    assert cli.main([*arguments(tmp_path, "--trainer.fast_dev_run=1", data=data)]) == 0
    assert cli.main([*arguments(tmp_path, data=data)]) == 0
    summary, metrics = found(tmp_path, "summary.json"), found(tmp_path, "metrics.json")
    assert summary["phases"] == ["reward", "distil"]
    for phase in ("reward", "distil"):
        figures = summary["estimates"][phase]
        assert figures.keys() == {"mean", "best", "first_is_best", "off_task", "left_out"}
        assert figures["left_out"] == figures["off_task"] == 0
        assert figures["best"] >= figures["mean"]
    assert summary["estimates"]["reward"]["mean"] < 0
    kinds = [(point["phase"], "agreement" in point) for point in metrics["validation"]]
    assert kinds == [("reward", True)] * 2 + [("distil", False)] * 2
    assert all("mrr" in point for point in metrics["validation"][2:])
    first, last = weights(tmp_path, "reward-best.ckpt"), weights(tmp_path)
    assert same(first, last, "generator")
    assert same(first, last, "reward")
    assert not same(first, last, "retriever")
    costs = summary["cost"]
    assert costs["reward"]["tokens/generator/estimate"] > 0
    assert costs["distil"]["tokens/reward/estimate"] > 0
    assert "tokens/generator/estimate" not in costs["distil"]
    assert "tokens/retriever/evaluate" not in costs["reward"]


def test_the_frozen_generator_comes_from_another_method(tmp_path: Path) -> None:
    """A Rag4re's; it stays as it is to the bit, and one checkpoint is tested with each ranker."""
    teacher, folder = tmp_path / "rag4re", tmp_path / "ruie"
    assert cli.main([*arguments(teacher, "--model.epochs=1", method="rag4re")]) == 0
    (best,) = teacher.rglob("best.ckpt")
    flags = (f"--initial_weights={best}", "--model.distil_steps=3")
    assert cli.main([*arguments(folder, *flags)]) == 0
    assert same(weights(teacher), weights(folder), "generator")
    (own,) = folder.rglob("best.ckpt")
    trained = (own.parents[1] / "predictions.jsonl").read_text(encoding="utf-8")
    retrieved = {}
    for ranker in ("retriever", "first_stage", "reward", "preference"):
        flags = (f"--ckpt_path={own}", f"--model.ranker={ranker}", f"--variant={ranker}")
        assert cli.main([*arguments(folder, *flags, command="test")]) == 0
        (path,) = (p for p in folder.rglob("predictions.jsonl") if ranker in p.parts)
        text = path.read_text(encoding="utf-8")
        retrieved[ranker] = [json.loads(line)["retrieved"] for line in text.splitlines()]
        assert [len(ids) for ids in retrieved[ranker]] == [2] * 16
        if ranker == "retriever":
            assert text == trained
    assert len({str(ids) for ids in retrieved.values()}) == 4


def test_preferences_of_a_file_are_those_that_were_computed(tmp_path: Path) -> None:
    """Equal weights to the bit; nothing is asked of the generator."""
    path = tmp_path / "preferences.jsonl.gz"
    assert cli.main([*arguments(tmp_path / "a", f"--model.preferences_to={path}")]) == 0
    assert path.is_file()
    assert cli.main([*arguments(tmp_path / "b", f"--model.preferences={path}")]) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    one, other = (found(tmp_path / name, "summary.json") for name in ("a", "b"))
    assert one["estimates"] == other["estimates"]
    assert "tokens/generator/estimate" not in other["cost"]["reward"]


def test_requests_are_for_the_candidates_that_a_run_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what another program needs to score them, and without a model."""
    requests, scored = tmp_path / "new" / "requests.jsonl.gz", tmp_path / "preferences.jsonl.gz"
    drawn = ("--model.subsample=3", "--seed_everything=5")
    short = ("--model.reward_steps=1", "--model.distil_steps=1", "--evaluate=false")
    assert cli.main([*arguments(tmp_path, *drawn, *short, f"--model.preferences_to={scored}")]) == 0
    for place in ("base.build_generator", "ruie.build_encoder", "ruie.build_cross_encoder"):
        monkeypatch.setattr(f"lightning_rag.methods.{place}", None)
    flags = (*drawn, f"--output={requests}")
    assert cli.main([*arguments(tmp_path, *flags, command="request")]) == 0
    asked, found = (
        [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        for path in (requests, scored)
    )
    assert [(one["query"], one["passages"]) for one in asked] == [
        (one["query"], one["passages"]) for one in found
    ]
    assert [len(one["prompts"]) for one in asked] == [3] * 16
    for one in asked:
        assert one["target"].startswith(" ")
        assert all(prompt.endswith("Answer:") for prompt in one["prompts"])
        assert len(set(one["prompts"])) == 3


@pytest.mark.parametrize(
    ("flags", "method", "message"),
    [
        ((), "rag4re", "Rag4re learns from no preferences; legal: a method that does"),
        (("--model.tagged_preferences=true",), "ruie", "model.tagged_preferences is true; legal"),
        (("--data.num_candidates=0",), "ruie", "num_candidates"),
    ],
)
def test_requests_that_cannot_be_made(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    method: str,
    message: str,
) -> None:
    output = tmp_path / "requests.jsonl"
    words = arguments(tmp_path, *flags, f"--output={output}", command="request", method=method)
    assert cli.main(words) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_requests_need_a_file_to_go_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        ((), "the following arguments are required: --output"),
        (("--output=a", "--model.subsampel=3"), "subsampel"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments(tmp_path, *flags, command="request")])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_rehearsal_writes_no_preferences(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    flags = (f"--model.preferences_to={path}", "--trainer.fast_dev_run=1")
    assert cli.main([*arguments(tmp_path, *flags)]) == 0
    assert not path.exists()


def test_a_damaged_file_of_preferences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "preferences.jsonl"
    path.write_text('{"query": "nobody", "passages": [], "scores": []}\n', encoding="utf-8")
    assert cli.main([*arguments(tmp_path, f"--model.preferences={path}")]) == 1
    assert "nobody" in capsys.readouterr().err
    assert cli.main([*arguments(tmp_path, f"--model.preferences={tmp_path / 'none'}")]) == 1
    assert "none" in capsys.readouterr().err


def test_a_reader_learns_from_the_retriever_that_stays(tmp_path: Path) -> None:
    """Phase `reader` trains the generator alone, on what the retriever gives it in evaluation."""
    flags = ("--model.reader_epochs=2", "--model.distil_steps=3")
    assert cli.main([*arguments(tmp_path, *flags)]) == 0
    before, after = weights(tmp_path, "distil-best.ckpt"), weights(tmp_path)
    assert same(before, after, "retriever")
    assert same(before, after, "reward")
    assert not same(before, after, "generator")
    summary, metrics = found(tmp_path, "summary.json"), found(tmp_path, "metrics.json")
    assert summary["phases"] == ["reward", "distil", "reader"]
    assert [p["phase"] for p in metrics["validation"]][-2:] == ["reader", "reader"]
    assert summary["cost"]["reader"]["tokens/generator/train"] > 0
    assert summary["cost"]["reader"]["tokens/retriever/estimate"] > 0
    assert "tokens/reward/estimate" not in summary["cost"]["reader"]


def test_the_agreement_can_select_the_retriever(tmp_path: Path) -> None:
    """No answers are made, and no index, until the test."""
    assert cli.main([*arguments(tmp_path, "--model.monitor=agreement")]) == 0
    metrics, summary = found(tmp_path, "metrics.json"), found(tmp_path, "summary.json")
    assert all(set(p) == {"step", "phase", "agreement"} for p in metrics["validation"])
    assert "accuracy" in metrics["test"]
    assert "seconds/refresh" not in summary["cost"]["distil"]


SWITCHES = [
    ("tags=typed",),
    ("tags=none",),
    ("subsample=4", "subsample_from=top"),
    ("off_task_penalty=0",),
    ("penalize_reward=false",),
    ("tagged_preferences=true",),
    ("reward_encoder={source: tiny, tiny: {hidden_size: 32, heads: 2, layers: 1}}",),
    ("reward_steps=1", "distil_steps=1"),
    ("reward_size=3", "distil_size=6"),
    ("positives=1", "negatives=4"),
    ("reader_epochs=1",),
    ("reader_epochs=1", "train_retriever=false"),
    ("reader_epochs=1", "k=0"),
    ("teacher=preference",),
    ("contrastive_weight=0",),
    ("distillation_weight=0",),
    ("blocks=[qp]",),
    ("temperature=0.5", "teacher_temperature=2.0"),
    ("mask_false_negatives=same_answer",),
    ("monitor=agreement",),
    ("ranker=first_stage",),
    ("ranker=reward",),
    ("ranker=preference",),
    ("searches=candidates",),
    ("decoding=free",),
    ("k=0",),
]


@pytest.mark.parametrize("switch", SWITCHES, ids=" ".join)
def test_every_switch_is_one_flag(switch: tuple[str, ...], tmp_path: Path) -> None:
    flags = [f"--model.{setting}" for setting in switch]
    assert cli.main([*arguments(tmp_path, *flags, "--trainer.fast_dev_run=2")]) == 0
