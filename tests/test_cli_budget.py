"""A budget on the command line: cut, tested, and gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_rag import cli

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"


def command(*more: str) -> list[str]:
    names = ("base", "data/synthetic_relations", "backbone/tiny", "method/rag4re")
    files = [*(CONFIGS / f"{name}.yaml" for name in names), HERE / "small.yaml"]
    few = [f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")]
    return ["fit", *(f"--config={file}" for file in files), *few, "--model.epochs=3", *more]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])


def summary() -> dict[str, Any]:
    (path,) = Path("runs").rglob("summary.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_a_run_with_a_budget() -> None:
    """Two batches an epoch: one token buys one step, and then the run is tested."""
    assert cli.main(command("--budget.generator_tokens=1")) == 0
    cut = summary()
    assert cut["stopped_by"] == "generator_tokens"
    assert cut["budget"]["limits"] == {"generator_tokens": 1.0}
    assert cut["budget"]["step"] == 1
    spent = cut["budget"]["spent"]["generator_tokens"]
    assert spent == cut["cost"]["fit"]["tokens/generator/train"] > 1
    assert "test" in cut["cost"]

    assert cli.main(command("--budget.generator_tokens=1e9", "--ckpt_path=last")) == 0
    whole = summary()
    assert whole["stopped_by"] == "phases"
    assert whole["budget"]["step"] == 1 + 3 * 2  # the epoch of the cut does not count
    assert whole["budget"]["spent"]["generator_tokens"] > spent


def test_no_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("--budget.seconds=-3")) == 1
    assert "budget.seconds is -3.0; legal: above 0, or null for no limit" in capsys.readouterr().err
