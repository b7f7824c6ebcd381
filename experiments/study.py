"""Writes the README's tables of results from the comparisons in `experiments/results/`.

    python experiments/study.py            # writes them
    python experiments/study.py --check    # fails if the README says anything else

Of a comparison, which `python -m lightning_rag.cli compare` wrote, `comparison.json` alone is read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from lightning_rag.files import write_text

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "experiments" / "results"
README = REPOSITORY / "README.md"
BEGIN = "<!-- written by experiments/study.py -->"
END = "<!-- until here -->"
# Folder in `experiments/results` -> what the README calls it.
COMPARISONS = {
    "semeval2010_methods": "SemEval-2010 Task 8, 720 training sentences: macro-F1",
}


@dataclass(frozen=True)
class Row:
    """A system of a comparison: mean and intervals in percent, TFLOPs of its training."""

    system: str
    mean: float
    queries: tuple[float | None, float | None]
    seeds: tuple[float | None, float | None]
    teraflops: float | None


def rows(folder: str) -> tuple[list[Row], int]:
    """Return the systems of a comparison, the best first, and the number of seeds."""
    content = json.loads((RESULTS / folder / "comparison.json").read_text(encoding="utf-8"))
    tables = {table["name"]: table for part in content["sections"] for table in part["tables"]}
    quality, cost = tables["quality"], tables["cost"]
    column = cost["columns"].index("TFLOPs")
    training = {line[0]: line[column] for line in cost["rows"]}
    found = [
        Row(
            line[0],
            100 * line[1],
            (_percent(line[2]), _percent(line[3])),
            (_percent(line[4]), _percent(line[5])),
            training.get(line[0]),
        )
        for line in quality["rows"]
    ]
    number = sum(name.startswith("seed ") for name in quality["columns"])
    return sorted(found, key=lambda row: -row.mean), number


def table() -> str:
    """Return the README's tables as Markdown."""
    lines = []
    for folder, title in COMPARISONS.items():
        found, seeds = rows(folder)
        number = "one seed" if seeds == 1 else f"{seeds} seeds"
        lines += [
            f"{title} ({number}; [report](experiments/results/{folder}/README.md))",
            "",
            "| system | mean | 95 %, these models | 95 %, other seeds too | TFLOPs to train |",
            "|---|---|---|---|---|",
        ]
        for row in found:
            cost = "" if row.teraflops is None else f"{row.teraflops:.0f}"
            intervals = f"{_interval(row.queries)} | {_interval(row.seeds)}"
            lines.append(f"| `{row.system}` | {row.mean:.1f} | {intervals} | {cost} |")
        picture = f"experiments/results/{folder}/plots/quality.svg"
        lines += ["", f"![Means, seeds and intervals: {title}]({picture})", ""]
    return "\n".join(lines)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _interval(ends: tuple[float | None, float | None]) -> str:
    low, high = ends
    return "–" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def main() -> int:
    """Write or check the tables, and return the exit code."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing")
    chosen = options.parse_args()
    text = README.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{README}: legal: one line {BEGIN!r} and one line {END!r}", file=sys.stderr)
        return 1
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    written = f"{before}{BEGIN}\n{table()}{END}{after}"
    if chosen.check:
        if written != text:
            print(f"{README} is not what the comparisons say: run {__file__}", file=sys.stderr)
        return int(written != text)
    write_text(README, written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
