"""`compare RUNS… --output FOLDER`: the command."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser


def parser() -> ArgumentParser:
    """Return the parser of the command."""
    options = ArgumentParser(
        prog="python -m lightning_rag.cli compare",
        description="Compare finished runs by their files alone, and write one report: "
        "report.html, report.md, tables, plots, and a run for TensorBoard.",
        allow_abbrev=False,
    )
    options.add_argument("runs", type=str, nargs="+", help="Folders of runs, or above them.")
    options.add_argument(
        "--output", type=str, required=True, help="A new folder, or one with a former report."
    )
    options.add_argument(
        "--metric", type=str | None, default=None, help="Compare by it; null = the task's own."
    )
    options.add_argument("--resamples", type=int, default=10_000, help="Of bootstraps and tests.")
    options.add_argument("--confidence", type=float, default=0.95, help="Of all intervals.")
    options.add_argument("--seed", type=int, default=0, help="Of the resampling.")
    options.add_argument("--examples", type=int, default=20, help="Queries that are shown.")
    return options


def main(words: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: runs that do not belong together, or an argument that is illegal.
        DataError: a run's file that is damaged.
    """
    config = parser().parse_args(list(words))
    # Here, because matplotlib and statsmodels take a second that no other command needs to wait.
    from lightning_rag.comparison.compare import compare

    compare(
        config.runs,
        config.output,
        metric=config.metric,
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
        examples=config.examples,
    )
