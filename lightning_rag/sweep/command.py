"""`sweep FILE`: the command."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace

from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.sweep.checks import Place
from lightning_rag.sweep.cost import duration
from lightning_rag.sweep.file import OWN, Local, SweepFile, load
from lightning_rag.sweep.plan import PlannedRun
from lightning_rag.sweep.run import Outcome, Sweep

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def parser() -> ArgumentParser:
    """Return the parser of the command."""
    options = ArgumentParser(
        prog="python -m lightning_rag.cli sweep",
        description="Train and test all runs of a sweep file that are not finished, and compare "
        "them. Given again, it goes on. docs/sweeps.md explains the file.",
        allow_abbrev=False,
    )
    options.add_argument("file", type=str, help="Such as experiments/methods.yaml.")
    options.add_argument(
        "--dry_run",
        action="store_true",
        help="Say what would be done, and what it costs.",
    )
    options.add_argument(
        "--processes", type=int | None, default=None, help="Runs at a time, on this machine."
    )
    options.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
    options.add_argument(
        "--overwrite", type=bool, default=False, help="Replace runs with another configuration."
    )
    options.add_argument("--data.root", type=str | None, default=None, help="Of the data sets.")
    options.add_argument(
        "--set", type=str, nargs="+", action="extend", default=[], help="key=value: wins over all."
    )
    return options


def main(words: Sequence[str]) -> int:
    """Run the command; return the exit code: 1 if a run or the comparison failed.

    Raises:
        UserError: the sweep file, an argument or a configuration is illegal; runs with another
            configuration are there; the same sweep is being run already.
    """
    config = parser().parse_args(list(words))
    file = _with(load(config.file), config)
    sweep = Sweep(
        file,
        runs=Path(config.runs),
        out=sys.stdout,
        extra=_extra(config),
        overwrite=config.overwrite,
    )
    if config.dry_run:
        sweep.describe()
        return 0
    began = time.monotonic()
    try:
        with _interruptible():
            outcome = sweep.run()
    except KeyboardInterrupt:
        print(
            "interrupted: all runs are stopped; the same command goes on with them, from the last "
            "checkpoint of each",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(_summary(sweep, outcome, time.monotonic() - began), flush=True)
    compared = _compare(sweep, outcome)
    return 0 if compared and not outcome.failed else 1


def _with(file: SweepFile, config: Namespace) -> SweepFile:
    """Return the sweep with what the command line says besides."""
    if config.processes is None:
        return file
    if config.processes < 1:
        raise UserError(f"sweep: --processes is {config.processes}; legal: 1 or more")
    if not isinstance(file.executor, Local):
        raise UserError(
            f"sweep: --processes is for runs on this machine, and {file.path} asks for a cluster; "
            "legal: its executor.cpus says how many run at a time"
        )
    return replace(file, executor=Local(config.processes))


def _extra(config: Namespace) -> dict[str, Json]:
    """Return the settings of the command line."""
    extra: dict[str, Json] = {} if config.data.root is None else {"data.root": config.data.root}
    for word in config.set:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"sweep: --set {word}: expected key=value")
        extra[key] = value
    if extra:
        Place("sweep", "--set", extra).arguments(OWN)
    return extra


def _summary(sweep: Sweep, outcome: Outcome, seconds: float) -> str:
    done = sum(run.name in outcome.finished for run in outcome.runs)
    lines = [
        f"{done} of {len(outcome.runs)} runs are finished, in "
        f"{sweep.runs / sweep.file.name}; took {duration(seconds)}"
    ]
    lines += [f"  not finished: {name}: {reason}" for name, reason in outcome.failed.items()]
    return "\n".join(lines)


def _compare(sweep: Sweep, outcome: Outcome) -> bool:
    """Compare the finished runs, those of each data set and share of it; return whether all went.

    A report that cannot be made costs no run: it is told, and the next one made.
    """
    settings = sweep.file.compare
    groups: dict[tuple[str, float], list[PlannedRun]] = {}
    for run in outcome.compared:
        groups.setdefault((run.data, run.fraction), []).append(run)
    if settings is None or not groups:
        return True
    # Here, because matplotlib and statsmodels take a second that a dry run needs not wait.
    from lightning_rag.comparison.compare import compare

    above, well = sweep.runs / sweep.file.name / "comparison", True
    for (data, fraction), runs in groups.items():
        folder = above / f"{data}-fraction={fraction:g}" if len(groups) > 1 else above
        try:
            compare([run.folder for run in runs], folder, **asdict(settings))
        except UserError as error:
            print(f"error: compare: {error}", file=sys.stderr)
            well = False
    return well


@contextmanager
def _interruptible() -> Iterator[None]:
    """Take a request to end, or the end of the terminal, as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
