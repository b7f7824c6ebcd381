"""`data.store` on the command line: a store on disk gives the predictions of one in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_rag import cli
from lightning_rag.data import room

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
PLACES = ("London", "Paris", "Rome", "Oslo")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    passages = [
        {"id": f"p{n}", "title": f"Name{n}", "text": f"Name{n} was born in {PLACES[n % 4]}."}
        for n in range(40)
    ]
    questions = [
        {"id": f"q{n}", "question": f"Where was Name{n} born?", "answers": [PLACES[n % 4]]}
        for n in range(32)
    ]
    files = {"corpus": passages, "train": questions[:24], "test": questions[24:]}
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        Path(f"{name}.jsonl").write_text(lines, encoding="utf-8")


def command(store: str, *more: str, subcommand: str = "fit") -> list[str]:
    names = ("base", "data/question_jsonl", "backbone/tiny", "method/rag4re")
    files = [*(CONFIGS / f"{name}.yaml" for name in names), HERE / "small.yaml"]
    given = [f"--data.store={store}", f"--data.cache_dir=cache-{store}", f"--variant={store}"]
    return [subcommand, *(f"--config={file}" for file in files), "--data.root=.", *given, *more]


def run_folder(store: str) -> Path:
    return Path(f"runs/default/question_jsonl/rag4re/{store}/seed=0")


def test_fit_and_test() -> None:
    """Trained in memory and on disk, and tested again in memory and on disk, the same weights."""
    for store in ("memory", "disk"):
        assert cli.main(command(store, "--model.epochs=1")) == 0
        assert any(Path(f"cache-{store}").rglob("texts.bin")) == (store == "disk")
    memory, disk = (run_folder(store) for store in ("memory", "disk"))
    names = ("predictions.jsonl", "passages.jsonl", "metrics.json")
    expected = [(memory / name).read_bytes() for name in names]
    assert [(disk / name).read_bytes() for name in names] == expected
    assert len(expected[0].splitlines()) == 8

    best = memory / "checkpoints" / "best.ckpt"
    again = ("--model.epochs=1", f"--ckpt_path={best}", "--variant=again")
    assert cli.main(command("disk", *again, subcommand="test")) == 0
    assert (run_folder("again") / "predictions.jsonl").read_bytes() == expected[0]


def test_what_the_user_can_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def usage(path: object) -> object:
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr(room.shutil, "disk_usage", usage)
    assert cli.main(command("disk")) == 1
    said = capsys.readouterr().err
    assert "error: the passage store needs about" in said
    assert "has 0.0 MB free; legal: another --data.cache_dir" in said
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    with pytest.raises(SystemExit):
        cli.main(command("tape"))
    assert "tape" in capsys.readouterr().err
