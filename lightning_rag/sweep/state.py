"""What is left to do of a planned run, by the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from lightning_rag.files import Json
from lightning_rag.sweep.plan import PlannedRun

Kind = Literal["run", "replace", "resume", "test", "skip", "refuse"]


@dataclass(frozen=True)
class Step:
    """What is done for a planned run.

    Args:
        kind: `run` from the start, `replace` what is there by it, `resume` from the last
            checkpoint, `test` what was trained, `skip` what is finished, `refuse` what may not be
            replaced.
        words: arguments of the command line, the subcommand first; empty where nothing is run.
        reason: why it is refused.
    """

    kind: Kind
    words: tuple[str, ...] = ()
    reason: str = ""


def next_step(
    run: PlannedRun,
    *,
    configuration_of_folder: Callable[[Path], str],
    overwrite: bool = False,
    renewed: Collection[str] = (),
    first: PlannedRun | None = None,
) -> Step:
    """Return what is left to do of a run.

    Args:
        run: the run.
        configuration_of_folder: returns the configuration hash of an unfinished training, by its
            folder; "" = it cannot be read.
        overwrite: whether what has another configuration is replaced.
        renewed: names of the runs that are trained before, in this sweep.
        first: the run that it begins with.
    """
    if not run.train:
        return _test_alone(run, overwrite, renewed, first)
    summary = read(run.folder / "summary.json")
    trained = "fit" in summary
    checkpoints = run.folder / "checkpoints"
    if not trained and not any(checkpoints.glob("*.ckpt")):
        return Step("run", _fit(run))  # goes on within an estimate that was interrupted
    there = (
        str(summary.get("configuration", "")) if trained else configuration_of_folder(run.folder)
    )
    differs = _differs(run, there, renewed, first)
    if differs:
        if overwrite:
            return Step("replace", (*_fit(run), "--overwrite=true"))
        return Step("refuse", reason=f"{run.folder} holds {differs}")
    if trained:
        if not run.evaluate or _tested(run, summary):
            return Step("skip")
        return Step("test", ("test", *run.words, f"--ckpt_path={run.best}"))
    if (checkpoints / "last.ckpt").exists():
        return Step("resume", (*_fit(run), "--ckpt_path=last"))
    return Step("run", (*_fit(run), "--overwrite=true"))  # best.ckpt alone: nothing to go on from


def read(path: Path) -> Mapping[str, Json]:
    """Return a JSON file's content; {} if it is not there or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _fit(run: PlannedRun) -> tuple[str, ...]:
    return ("fit", *run.words, *(() if run.evaluate else ("--evaluate=false",)))


def _test_alone(
    run: PlannedRun, overwrite: bool, renewed: Collection[str], first: PlannedRun | None
) -> Step:
    """Return what is left to do of a run that trains nothing: a test can simply be repeated."""
    summary = read(run.folder / "summary.json")
    if not _tested(run, summary) and "fit" not in summary:
        return Step("run", ("test", *run.words))
    differs = _differs(run, str(summary.get("configuration", "")), renewed, first)
    if not differs:
        return Step("skip")
    if overwrite and "fit" not in summary:
        return Step("replace", ("test", *run.words))
    return Step("refuse", reason=f"{run.folder} holds {differs}")


def _differs(
    run: PlannedRun, there: str, renewed: Collection[str], first: PlannedRun | None
) -> str:
    """Return what a folder holds that is not this run; "" = it is this run."""
    if not there:
        return "a run whose configuration is not known: an older version wrote it, or it is damaged"
    if there != run.configuration:
        return "a run with another configuration"
    if first is not None:
        if first.name in renewed:
            return f"a run that began with what {first.name} was before, which is trained anew"
        began, ended = _date(run, "fit" if run.train else "test"), _date(first, "fit")
        last = run.folder / "checkpoints" / "last.ckpt"
        if began is None and last.exists():  # interrupted: it began before that
            began = datetime.fromtimestamp(last.stat().st_mtime, UTC)
        if began is not None and ended is not None and began < ended:
            return f"a run that began with what {first.name} was before it was trained anew"
    return ""


def _tested(run: PlannedRun, summary: Mapping[str, Json]) -> bool:
    """Whether a run was tested, or has nothing to be tested on."""
    data = cast(Mapping[str, Mapping[str, Json]], summary.get("data", {}))
    if data and data.get("test", {}).get("size") == 0:
        return True
    tested = "test" in summary and "test" in read(run.folder / "metrics.json")
    return tested and (run.folder / "predictions.jsonl").is_file()


def _date(run: PlannedRun, stage: str) -> datetime | None:
    """Return when a stage of a run ended; None = it has not."""
    summary = cast(Mapping[str, Mapping[str, str]], read(run.folder / "summary.json"))
    date = summary.get(stage, {}).get("date")
    return None if date is None else datetime.fromisoformat(date)
