"""compare: 20 runs of 3,000 test queries with 10,000 resamples, against scipy.stats.

The runs are made up: relation classification with 19 labels, 9 relations, macro F1, retrieval
figures, rankings of 50 passages. Timed are the whole of `compare`, from folders to report, and its
statistics alone, beside `scipy.stats.bootstrap` and `permutation_test` on the same data in the
straightforward way: a call for each system and for each pair. Of those, one of each kind is timed
and multiplied. Target: the whole under 30 s on 2 cores.

    python benchmarks/compare.py [--systems N] [--seeds N] [--queries N] [--resamples N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import tempfile
import time
from functools import partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from lightning_rag.comparison.compare import compare
from lightning_rag.comparison.measured import measurable, measure, sums_of
from lightning_rag.comparison.pairs import compared
from lightning_rag.comparison.runs import find, read, systems

RELATIONS = 9
LABELS = [*(f"Relation{n}({o})" for n in range(RELATIONS) for o in ("e1,e2", "e2,e1")), "Other"]
DEPTH = 50  # passages of a ranking
MEANS = ("accuracy", "invalid_rate", "recall@1", "recall@5", "success@5", "mrr", "ndcg@10")
AGGREGATIONS = {
    **{name: {"kind": "mean"} for name in MEANS},
    "f1": {"kind": "f1", "average": "macro", "over": "gold"},
}


def relation(label: str) -> str | None:
    return None if label == "Other" else label.partition("(")[0]


def row(number: int, target: str, said: str, random: np.random.Generator) -> dict[str, object]:
    """A line of predictions.jsonl."""
    counts: dict[str, list[int]] = {}
    if (name := relation(said)) is not None:
        counts[name] = [0, 1, 0]
    if (name := relation(target)) is not None:
        counts.setdefault(name, [0, 0, 0])[2] += 1
        counts[name][0] += int(said == target)
    ranked = random.integers(8000, size=(2, DEPTH)).tolist()
    ids = [[f"p{r}-{i}" for i, r in enumerate(one)] for one in ranked]
    flags = (random.random((2, DEPTH)) < 0.1).astype(int).tolist()
    numbers = np.round(random.random(5), 7).tolist()
    added = dict(zip(MEANS[2:], numbers, strict=True))
    return {
        "id": f"q{number}",
        "target": [target],
        "prediction": said,
        "retrieved": ids[0][:3],
        "scores": [0.9, 0.8, 0.7],
        "text": f"The {'word ' * 20} of query {number} stands in a sentence of usual length.",
        "ranked": ids[0],
        "ranked_relevant": flags[0],
        "first_stage": ids[1],
        "first_stage_relevant": flags[1],
        "relevant": 400,
        "counts": {"accuracy": float(said == target), "invalid_rate": 0.0, **added, "f1": counts},
    }


def figures(rows: list[dict[str, object]]) -> dict[str, float]:
    """The test figures by a naive loop."""
    found = {name: float(np.mean([r["counts"][name] for r in rows])) for name in MEANS}
    scores = []
    for name in (f"Relation{n}" for n in range(RELATIONS)):
        counts = np.sum([r["counts"]["f1"].get(name, [0, 0, 0]) for r in rows], axis=0)
        scores.append(2 * counts[0] / (counts[1] + counts[2]))
    return {**found, "f1": float(np.mean(scores))}


def write_runs(folder: Path, options: argparse.Namespace) -> None:
    """Write systems whose share of right answers goes from 0.6 to 0.8."""
    random = np.random.default_rng(0)
    targets = [LABELS[i] for i in random.integers(len(LABELS), size=options.queries)]
    ease = random.normal(size=options.queries)
    for place in range(options.systems):
        bar = -0.25 - 0.6 * place / max(options.systems - 1, 1)
        for seed in range(options.seeds):
            right = ease + random.normal(0, 0.1) + random.normal(0, 0.7, options.queries) > bar
            others = random.integers(len(LABELS), size=options.queries)
            rows = [
                row(number, target, target if is_right else LABELS[other], random)
                for number, (target, is_right, other) in enumerate(
                    zip(targets, right, others, strict=True)
                )
            ]
            write_run(folder / f"etrag/system-{place}/seed={seed}", f"system-{place}", seed, rows)


def write_run(folder: Path, variant: str, seed: int, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True)
    test = figures(rows)
    cost = {
        "seconds/train": 100.0,
        "seconds/evaluate": 9.0,
        "tokens/generator/train": 1e6,
        "flops": 1e12,
        "memory/process": 1e9,
    }
    circumstances = {
        "commit": "0" * 40,
        "date": "2026-11-21T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        "machine": {"platform": platform.platform(), "python": "3.11", "cpus": 2, "gpus": []},
        "truncated_texts": {"generator": 0},
    }
    split = {"size": len(rows), "ids": "ids"}
    summary = {
        "method": "Etrag",
        "seed": seed,
        "task": "RelationExtraction",
        "metrics": {"version": 1, "monitor": "f1", "aggregations": AGGREGATIONS},
        "configuration": f"{variant}-{seed}",
        "trained": ["generator", "retriever"],
        "data": {
            "name": "made_up",
            "fraction": 1.0,
            "store_size": 8000,
            "store": f"store {seed}",
            "first_stage": {"first_stage": "bm25"},
            "num_candidates": DEPTH,
            **{name: split for name in ("train", "validation", "test")},
        },
        "phases": ["fit"],
        "parameters": {"generator": 1000},
        "cost": {"fit": cost, "test": cost},
        "estimates": {},
        "fit": circumstances,
        "test": circumstances,
    }
    curve = [{"step": 10 * n, "phase": "fit", "f1": test["f1"] * n / 9} for n in range(10)]
    config = {
        "experiment": "benchmark",
        "variant": variant,
        "seed_everything": seed,
        "data": {"name": "made_up"},
        "model": {"class_path": "lightning_rag.methods.etrag.Etrag", "init_args": {"k": 3}},
    }
    retrieved = {passage for one in rows for passage in one["retrieved"]}
    passages = [{"id": name, "text": f"text of {name}"} for name in sorted(retrieved)]
    for name, content in (
        ("config.yaml", json.dumps(config)),
        ("metrics.json", json.dumps({"validation": curve, "test": test})),
        ("summary.json", json.dumps(summary)),
        ("predictions.jsonl", "".join(json.dumps(one) + "\n" for one in rows)),
        ("passages.jsonl", "".join(json.dumps(one) + "\n" for one in passages)),
    ):
        (folder / name).write_text(content, encoding="utf-8")


def clocked(work: object) -> tuple[float, float, object]:
    """Seconds by the clock, seconds that the process computed, and what came out."""
    start, computed = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - start, time.process_time() - computed, found


def with_scipy(sums, seeds: int, resamples: int, batch: int) -> dict[str, float]:
    """Seconds that scipy computes for a system's interval, and a pair's interval and test."""
    values = sums.values.astype(np.float64)
    queries = np.arange(values.shape[1])
    stacked = np.concatenate([values[:seeds], values[seeds : 2 * seeds]], axis=1)  # (G, 2 Q, d)

    def of(runs, index):
        return np.mean([sums.finish(values[run][index].sum(axis=-2)) for run in runs], axis=0)

    def one(index, axis=-1):
        return of(range(seeds), index)

    def difference(index, axis=-1):
        return of(range(seeds), index) - of(range(seeds, 2 * seeds), index)

    def swapped(first, second, axis=-1):
        return np.mean(
            [
                sums.finish(run[first].sum(axis=-2)) - sums.finish(run[second].sum(axis=-2))
                for run in stacked
            ],
            axis=0,
        )

    bootstrap = partial(stats.bootstrap, (queries,), n_resamples=resamples, method="BCa")
    calls = {
        "interval of a system": lambda: bootstrap(one, batch=batch),
        "interval of a pair": lambda: bootstrap(difference, batch=batch),
        "test of a pair": lambda: stats.permutation_test(
            (queries, queries + len(queries)),
            swapped,
            permutation_type="samples",
            n_resamples=resamples,
            batch=batch,
            vectorized=True,
            axis=-1,
        ),
    }
    taken = {}
    for name, call in calls.items():
        _, taken[name], found = clocked(call)
        said = found.pvalue if "test" in name else tuple(found.confidence_interval)
        print(f"  scipy, {name}: {taken[name]:.1f} s, {np.round(said, 4)}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=20, help="resamples at a time of scipy")
    parser.add_argument("--no_scipy", action="store_true")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, scipy {version('scipy')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder / "runs", options)

        def whole(resamples: int) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                compare([folder / "runs"], folder / "report", resamples=resamples)

        whole(100)  # warm-up: fonts, caches of the files
        rounds = [clocked(partial(whole, options.resamples)) for _ in range(options.rounds)]
        told = ", ".join(f"{wall:.1f} ({computed:.1f})" for wall, computed, _ in rounds)
        print(f"compare, seconds by the clock (computed): {told}")

        reading = clocked(lambda: systems([read(one) for one in find([folder / "runs"])]))
        built = reading[2]
        print(f"  of that reading: {reading[1]:.1f}")
    draws = {"resamples": options.resamples, "confidence": 0.95, "seed": 0}
    names = measurable(built)
    _, everything, _ = clocked(lambda: measure(built, names, **draws))
    print(f"  resampling {len(names)} metrics: {everything:.1f}")

    def one_metric():
        found = measure(built, ["f1"], **draws)["f1"]
        return (
            [found.contrast({name: 1.0}) for name in found.names],
            compared(found, options.resamples, 0),
        )

    _, ours, (estimates, pairs) = clocked(one_metric)
    count = len(list(combinations(built, 2)))
    print(f"  all statistics of f1, {len(built)} systems, {count} pairs: {ours:.1f}")
    first = (estimates[0].queries, pairs[0].difference.queries, pairs[0].p)
    print(f"  ours, first system, first pair: {first}")
    if not options.no_scipy:
        taken = with_scipy(sums_of(built, "f1"), options.seeds, options.resamples, options.batch)
        theirs = len(built) * taken["interval of a system"] + count * (
            taken["interval of a pair"] + taken["test of a pair"]
        )
        print(
            f"  scipy for all of them, multiplied: {theirs:.0f} s, {theirs / ours:.0f} times ours"
        )


if __name__ == "__main__":
    main()
