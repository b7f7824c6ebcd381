"""Sweep files of tiny runs, and a stand-in for the interpreter that makes runs without training."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_rag.sweep.plan import Commands, PlannedRun, Setting

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    *(str(CONFIGS / f"{name}.yaml") for name in ("base", "data/synthetic_relations")),
    str(CONFIGS / "backbone" / "tiny.yaml"),
    str(CONFIGS.parent / "tests" / "small.yaml"),
]
FEW = {"data.reader.init_args.train": 32, "data.reader.init_args.validation": 8}
METHODS = {name: str(CONFIGS / "method" / f"{name}.yaml") for name in ("no_retrieval", "rag4re")}

# Instead of `python -m lightning_rag.cli …`: its log says which run it is, a table what it does.
STAND_IN = """#!{python} -IS
import json, os, pathlib, signal, sys, time
words = sys.argv[3:]
folder = pathlib.Path(os.readlink("/proc/self/fd/1").removesuffix(".log"))
table = json.loads(pathlib.Path({table!r}).read_text())
does = table[str(folder)] if str(folder) in table else table["*"]
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([folder.parent.name + "/" + folder.name, words]) + "\\n")
print("begin")
sys.stdout.flush()
if does.get("sleep"):
    pathlib.Path({calls!r} + "." + str(os.getpid())).touch()
    time.sleep(does["sleep"])
for line in range(does.get("lines", 0)):
    print("line", line)
sys.stdout.flush()
if does.get("signal"):
    os.kill(os.getpid(), does["signal"])
if does.get("exit"):
    sys.exit(does["exit"])
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "checkpoints" / "best.ckpt").touch()
summary, metrics = folder / "summary.json", folder / "metrics.json"
content = json.loads(summary.read_text()) if summary.exists() else {{}}
content["configuration"] = does.get("configuration", "")
if words[0] == "fit":
    content["fit"] = {{"date": does.get("date", "2026-01-01T00:00:00+00:00")}}
    content["validation"] = does.get("validation")
    content["cost"] = {{"fit": {{"seconds/train": 3.0, "flops": 2e9}}}}
    content["method"] = does.get("method", "Rag4re")
    content["data"] = {{"name": "synthetic_relations", "fraction": 1.0}}
if words[0] == "test" or "--evaluate=false" not in words:
    content["test"] = {{"date": "2026-01-01T00:00:00+00:00"}}
    metrics.write_text(json.dumps({{"test": {{"accuracy": 0.5}}}}))
    (folder / "predictions.jsonl").write_text("{{}}")
summary.write_text(json.dumps(content))
"""


class StandIn:
    """What the processes of runs do, instead of training.

    Args:
        folder: where its files lie.
    """

    def __init__(self, folder: Path) -> None:
        self.calls_file = folder / "calls.jsonl"
        self._table = folder / "table.json"
        self.script = folder / "python"
        text = STAND_IN.format(
            python=sys.executable, table=str(self._table), calls=str(self.calls_file)
        )
        self.script.write_text(text)
        self.script.chmod(self.script.stat().st_mode | stat.S_IXUSR)
        self.does: dict[str, dict[str, Any]] = {"*": {}}
        self._write()

    def knows(self, runs: Sequence[PlannedRun]) -> None:
        """Give the runs the configuration hashes that are expected of them."""
        for run in runs:
            self.let(run, configuration=run.configuration, method=run.method)

    def let(self, run: PlannedRun, **does: object) -> None:
        """Let a run do something."""
        self.does.setdefault(str(run.folder), {}).update(does)
        self._write()

    def calls(self) -> list[tuple[str, list[str]]]:
        """Return which runs were started, "variant/seed=…", and with which words, in order."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        return [(name, words) for name, words in map(json.loads, lines)]

    def forget(self) -> None:
        """Begin the list of calls anew."""
        self.calls_file.unlink(missing_ok=True)

    def _write(self) -> None:
        temporary = self._table.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.does))
        os.replace(temporary, self._table)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Runs are made in no time."""
    if sys.platform != "linux":
        pytest.skip("the stand-in asks /proc which log it writes to")
    made = StandIn(tmp_path)
    monkeypatch.setattr("lightning_rag.sweep.jobs.sys.executable", str(made.script))
    return made


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a sweep file: a good one, but for the keys that are given (None = without it)."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])

    def make(**keys: object) -> Path:
        content: dict[str, object] = {
            "name": "tried",
            "configs": TINY,
            "arguments": FEW,
            "systems": {
                name: {"configs": [config], "arguments": {"model.epochs": 1}}
                for name, config in METHODS.items()
            },
            **keys,
        }
        path = tmp_path / "sweep.yaml"
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False))
        return path

    return make


@pytest.fixture
def system() -> Callable[..., Mapping[str, object]]:
    """Return a system's part of a sweep file."""

    def make(method: str = "rag4re", **keys: object) -> Mapping[str, object]:
        return {"configs": [METHODS[method]], "arguments": {"model.epochs": 1}, **keys}

    return make


def _unparsed(
    commands: Commands, setting: Setting, seed: int, experiment: str, first: PlannedRun | None
) -> PlannedRun:
    words, train = commands.words(setting, seed, experiment), setting.system.train
    given = dict(word.split("=", 1) for word in words if "=" in word)
    names = ("--experiment", "--variant", "--runs")
    counts = [word for word in words if not word.startswith(names)]
    if first is not None:
        words += (f"--{'initial_weights' if train else 'ckpt_path'}={first.best}",)
        counts.append(first.name)
    method = "NoRetrieval" if METHODS["no_retrieval"] in words else "Rag4re"
    above = Path(given["--runs"], experiment, "synthetic_relations", method.lower())
    return PlannedRun(
        name=f"{setting.name}/seed={seed}",
        system=setting.name,
        base=setting.base,
        seed=seed,
        words=words,
        folder=above / setting.name / f"seed={seed}",
        configuration=str(counts),
        train=train,
        after=(first.name,) if first is not None else (),
        method=method,
        data="synthetic_relations",
        fraction=float(given.get("--data.fraction", 1)),
    )


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are planned without parsing their commands, which takes most of the time of a test."""
    for module in ("plan", "search"):
        monkeypatch.setattr(f"lightning_rag.sweep.{module}.planned_run", _unparsed)
