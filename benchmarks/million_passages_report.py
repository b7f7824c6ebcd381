"""The figures of `million_passages.py` as Markdown: told beside measured, and 21 million.

python benchmarks/million_passages_report.py million.json [smaller.json …]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, float]
Report = dict[str, Row]
WIKIPEDIA = 21_015_324  # passages of psgs_w100.tsv
WIKIPEDIA_BYTES = 13.8e9  # of the unpacked table, about
DIMENSION = 384  # of MiniLM
DRAWN = 128  # of the embeddings of the benchmark
HEADS = ("seconds", "of the processor", "memory", "told", "disk", "told")


def size(value: float | None) -> str:
    """Return bytes as text."""
    if value is None:
        return "–"
    return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.1f} MB"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def steps(report: Report) -> str:
    """Return what each step took, beside what was told."""
    rows = []
    for name, row in report.items():
        if name == "total":
            continue
        queries = f", {int(row['queries'])} queries" if "queries" in row else ""
        passages = f", {int(row['passages'])} passages" if "passages" in row else ""
        kinds = ("memory", "memory_told", "disk", "disk_told")
        sizes = [size(row.get(kind)) for kind in kinds]
        seconds = [f"{row[kind]:.3g}" for kind in ("seconds", "cpu")]
        rows.append([name + queries + passages, *seconds, *sizes])
    return table(("step", *HEADS), rows)


def searches(report: Report) -> str:
    """Return queries a second, and what an approximate index finds of the exact neighbours."""
    rows = []
    for name, row in report.items():
        if "queries" in row:
            found = f"{row['recall']:.3f}" if "recall" in row else "–"
            rates = [f"{row['queries'] / row[kind]:.3g}" for kind in ("seconds", "cpu")]
            rows.append([name, *rates, found])
    head = ("search", "queries a second", "a second of the processor", "recall@20 against exact")
    return table(head, rows)


def wikipedia(report: Report) -> str:
    """Return what 21 million pieces of Wikipedia would take, from the rates of a report."""
    passages = report["total"]["passages"]
    times, longer = WIKIPEDIA / passages, WIKIPEDIA_BYTES / WIKIPEDIA
    longer /= report["total"]["corpus_bytes"] / passages

    def hours(name: str, factor: float = 1.0) -> str:
        return f"{report[name]['cpu'] * times * factor / 3600:.2g}"

    bm25 = report["BM25: build, and search of one query"]
    wider = DIMENSION / DRAWN
    exact = report["exact search, by blocks"]
    scored = report["BM25: open and search"]
    vectors = WIKIPEDIA * DIMENSION * 4
    rows = [
        ["passages: write", hours("passages: write"), size(WIKIPEDIA_BYTES + 40 * WIKIPEDIA)],
        ["a pass for copies of the queries", hours("one pass: copies of the queries"), "–"],
        ["a pass for answers", hours("one pass: passages that hold an answer"), "–"],
        ["BM25: build", hours("BM25: build, and search of one query"), size(bm25["disk"] * times)],
        [
            "BM25: 10,000 queries",
            hours("BM25: open and search", 10_000 / scored["queries"]),
            "–",
        ],
        ["vectors of MiniLM, float32 (float16: half)", "by the encoder", size(vectors)],
        [
            "exact search, 10,000 queries, D = 384",
            hours("exact search, by blocks", wider * 10_000 / exact["queries"]),
            "–",
        ],
    ]
    rows += [
        [
            f"vectors by {name.removeprefix('encoder ')}",
            f"{WIKIPEDIA * row['cpu'] / row['passages'] / 3600:.3g}",
            "–",
        ]
        for name, row in report.items()
        if name.startswith("encoder ")
    ]
    said = (
        f"Each step's processor seconds times {times:.1f}, one thread; a piece of Wikipedia has "
        f"{longer:.2f} times the bytes of a made-up one, but as many words, so times are not "
        "stretched by it.\n\n"
    )
    return said + table(("step", "hours of a processor", "disk"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", type=Path, nargs="+", help="the largest first")
    given = parser.parse_args()
    reports: list[Report] = [json.loads(path.read_text("utf-8")) for path in given.reports]
    print("# Stores on disk: what was told, and what was measured\n")
    for report in reports:
        total = report["total"]
        print(
            f"## {int(total['passages']):,} made-up passages\n\n"
            f"{size(total['corpus_bytes'])} of text; {total['seconds'] / 60:.0f} minutes by the "
            f"clock, {total['cpu'] / 60:.1f} of the processor; load {total['load_before']:.1f} "
            f"before and {total['load_after']:.1f} after.\n"
        )
        print(steps(report))
        print(searches(report))
    print("## 21 million, on paper\n")
    encoders = {
        name: row for report in reports for name, row in report.items() if name[:8] == "encoder "
    }
    print(wikipedia({**encoders, **reports[0]}))


if __name__ == "__main__":
    main()
