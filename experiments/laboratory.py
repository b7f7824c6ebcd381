"""Starts the runs of an experiment by the command line, a few at a time, and reads their files.

A finished run is skipped and an interrupted one continued, so an experiment can be given again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One training: a file of `configs/method`, further arguments, a name for them, a seed.

    With `weights_of` it is a test alone, of the weights of another run; with `untrained` a test
    alone, of the generator as its source has it.
    """

    method: str
    variant: str
    seed: int
    arguments: tuple[str, ...] = ()
    weights_of: Run | None = None
    untrained: bool = False


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every experiment asks for."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.environ.get("LIGHTNING_RAG_DATA")
    options.add_argument(
        "--root", type=Path, default=root, required=root is None, help="folder of the data sets"
    )
    options.add_argument("--runs", type=Path, default=REPOSITORY / "runs", help="folder of runs")
    options.add_argument("--processes", type=int, default=2, help="runs at a time")
    return options


class Laboratory:
    """Trains and tests the runs of one experiment on one data set.

    Args:
        options: what `parser` parsed.
        experiment: its name, the folder in `runs`.
        data: name of the data set, in `configs/data` and in the runs' paths.
        configs: configuration files under `configs/`, without those of the methods.
        common: arguments of every run.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        *,
        experiment: str,
        data: str,
        configs: Sequence[str],
        common: Sequence[str],
    ) -> None:
        self.experiment = experiment
        self.data = data
        self.configs = tuple(configs)
        self.common = tuple(common)
        self.root = Path(options.root).resolve()
        self.runs = Path(options.runs).resolve()
        self.processes: int = options.processes

    def train(self, runs: Sequence[Run]) -> None:
        """Train those of `runs` that are not finished, without looking at the test split."""
        waiting = [run for run in runs if run.weights_of is None and not run.untrained]
        self._all("fit", [run for run in waiting if not self._trained(run)])

    def test(self, runs: Sequence[Run]) -> None:
        """Test those of `runs` that were not tested."""
        self._all("test", [run for run in runs if not self.tested(run)])

    def folder(self, run: Run) -> Path:
        """Return a run's folder."""
        method = run.method.replace("_", "")
        return self.runs / self.experiment / self.data / method / run.variant / f"seed={run.seed}"

    def metrics(self, run: Run) -> dict[str, object]:
        """Return a run's metrics file, {} if it has none yet."""
        path = self.folder(run) / "metrics.json"
        if not path.exists():
            return {}
        content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def best_validation(self, run: Run, metric: str) -> float:
        """Return the best value of a metric in a run's validation curve."""
        curve = self.metrics(run)["validation"]
        assert isinstance(curve, list)
        return max(float(point[metric]) for point in curve)

    def tested(self, run: Run) -> bool:
        """Whether a run was tested."""
        return "test" in self.metrics(run)

    def test_values(self, runs: Sequence[Run], metric: str) -> list[float]:
        """Return a metric of the test, in percent, of each run."""
        tests = [self.metrics(run)["test"] for run in runs]
        return [100 * float(test[metric]) for test in tests if isinstance(test, dict)]

    def _trained(self, run: Run) -> bool:
        return (self.folder(run) / "summary.json").exists()

    def _all(self, command: str, runs: Sequence[Run]) -> None:
        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(lambda run: self._one(command, run), runs))

    def _one(self, command: str, run: Run) -> None:
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        files = [f"configs/{name}.yaml" for name in (*self.configs, f"method/{run.method}")]
        arguments = [
            command,
            *(part for file in files for part in ("--config", file)),
            *self.common,
            *run.arguments,
            f"--experiment={self.experiment}",
            f"--variant={run.variant}",
            f"--runs={self.runs}",
            f"--seed_everything={run.seed}",
            f"--data.root={self.root}",
            "--trainer.enable_progress_bar=false",
        ]
        if command == "test":
            weights = self.folder(run.weights_of or run) / "checkpoints" / "best.ckpt"
            arguments += [] if run.untrained else [f"--ckpt_path={weights}"]
        else:
            arguments.append("--evaluate=false")
            if (folder / "checkpoints" / "last.ckpt").exists():
                arguments.append("--ckpt_path=last")
        threads = max(1, (os.cpu_count() or 1) // self.processes)
        print(f"{command} {run.method} {run.variant} seed {run.seed}", flush=True)
        # Beside the run's folder: a training removes what an earlier one left inside.
        with open(f"{folder}.{command}.log", "a", encoding="utf-8") as log:
            subprocess.run(
                [sys.executable, "-m", "lightning_rag.cli", *arguments],
                check=True,
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
            )


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation, or the one value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
