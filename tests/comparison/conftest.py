"""Folders of finished runs, written as a training would have, with answers that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from lightning_rag.comparison.runs import Run

LABELS = ("rel_wrote", "rel_read", "rel_sold")
PASSAGES = {f"p{n}": f"Person{n} wrote Book{n}" for n in range(9)}

WriteRun = Callable[..., Path]


def counts(target: str, prediction: str) -> dict[str, object]:
    """What a query adds to accuracy, to a micro F1 over the labels, and to recall@1."""
    added: dict[str, list[int]] = {target: [0, 0, 1]}
    added.setdefault(prediction, [0, 0, 0])[1] += 1
    added[target][0] += int(prediction == target)
    return {"accuracy": float(prediction == target), "f1": added, "recall@1": 1.0}


def row(number: int, right: int, chosen: Sequence[str]) -> dict[str, object]:
    """A line of predictions.jsonl: the right label, or the one after it."""
    target = LABELS[number % 3]
    prediction = target if right else LABELS[(number + 1) % 3]
    relevant = [int(passage == f"p{number % 9}") for passage in PASSAGES]
    first = sorted(PASSAGES, key=lambda passage: (passage != f"p{number % 9}", passage))
    return {
        "id": f"q{number}",
        "target": [target],
        "prediction": prediction,
        "retrieved": list(chosen),
        "scores": [1.0 - 0.1 * place for place in range(len(chosen))],
        "text": f"Person{number} <b>met</b> Book{number} & Co",
        "ranked": list(PASSAGES),
        "ranked_relevant": relevant,
        "first_stage": first,
        "first_stage_relevant": [int(passage == f"p{number % 9}") for passage in first],
        "relevant": 1,
        "counts": counts(target, prediction),
    }


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run's folder below `tmp_path / "runs"` and return it.

    Its answers are right where `right` has a 1. `summary` replaces top-level keys of the summary.
    """

    def write(
        method: str = "Rag4re",
        variant: str = "default",
        seed: int = 0,
        *,
        right: Sequence[int] = (1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0),
        experiment: str = "tests",
        data: str = "books",
        chosen: Sequence[str] = ("p0", "p1"),
        configuration: str | None = None,
        version: int = 1,
        store: str = "",
        ids: str = "ids of the test split",
        k: int = 2,
        summary: dict[str, object] | None = None,
    ) -> Path:
        parts = (experiment, data, method.lower(), variant, f"seed={seed}")
        folder = (tmp_path / "runs").joinpath(*parts)
        folder.mkdir(parents=True)
        rows = [row(number, one, chosen) for number, one in enumerate(right)]
        accuracy = sum(right) / len(right)
        step: dict[str, object] = {"phase": "fit", "accuracy": accuracy}
        metrics = {
            "validation": [{"step": 10 * n, **step, "accuracy": accuracy * n / 2} for n in (1, 2)],
            "test": {"accuracy": accuracy, "f1": accuracy, "recall@1": 1.0, "mrr": 1.0},
        }
        found: dict[str, object] = {
            "method": method,
            "seed": seed,
            "task": "RelationExtraction",
            "metrics": {
                "version": version,
                "monitor": "f1",
                "aggregations": {
                    "accuracy": {"kind": "mean"},
                    "f1": {"kind": "f1", "average": "micro"},
                    "recall@1": {"kind": "mean"},
                },
            },
            "configuration": configuration or "/".join((experiment, method, variant, str(seed))),
            "trained": ["generator"],
            "data": {
                "name": data,
                "fraction": 1.0,
                "store_size": len(PASSAGES),
                "store": store or f"store of seed {seed}",
                "first_stage": {"first_stage": "bm25"},
                "num_candidates": 9,
                "train": {"size": 24, "ids": "ids of the training split"},
                "validation": {"size": 8, "ids": "ids of the validation split"},
                "test": {"size": len(right), "ids": ids},
            },
            "phases": ["fit"],
            "parameters": {"generator": 1000},
            "cost": {
                "fit": {
                    "seconds/train": 10.0 + seed,
                    "seconds/evaluate": 2.0,
                    "tokens/generator/train": 5000.0,
                    "tokens/generator/evaluate": 900.0,
                    "flops": 3.2e9,
                    "memory/process": 5e8,
                },
                "test": {
                    "seconds/evaluate": 3.0,
                    "tokens/generator/evaluate": 1200.0,
                    "flops": 2.4e8,
                    "memory/process": 5e8,
                },
            },
            "estimates": {},
        }
        for stage in ("fit", "test"):
            found[stage] = {
                "commit": "0123456789abcdef",
                "date": "2026-11-21T10:17:25+00:00",
                "versions": {"lightning_rag": "0.1.0", "torch": "2.13.0"},
                "machine": {"platform": "Linux", "python": "3.11.7", "cpus": 2, "gpus": []},
                "truncated_texts": {"generator": 0},
            }
        config = {
            "experiment": experiment,
            "variant": variant,
            "seed_everything": seed,
            "data": {"name": data, "batch_size": 32},
            "model": {
                "class_path": f"lightning_rag.methods.{method.lower()}.{method}",
                "init_args": {"k": k, "epochs": 2},
            },
        }
        contents = {
            "config.yaml": json.dumps(config, indent=2),  # JSON is YAML
            "metrics.json": json.dumps(metrics),
            "summary.json": json.dumps({**found, **(summary or {})}),
            "predictions.jsonl": "".join(json.dumps(one) + "\n" for one in rows),
            "passages.jsonl": "".join(
                json.dumps({"id": name, "text": text}) + "\n" for name, text in PASSAGES.items()
            ),
        }
        for name, text in contents.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Return a maker of runs that lie in no folder, with as much content as a test gives."""

    def make(
        method: str = "rag4re",
        variant: str = "default",
        seed: int = 0,
        *,
        rows: Sequence[Mapping[str, object]] = (),
        test: Mapping[str, float] | None = None,
        validation: Sequence[Mapping[str, object]] = (),
        summary: Mapping[str, object] | None = None,
        config: Mapping[str, object] | None = None,
        passages: Mapping[str, str] | None = None,
    ) -> Run:
        return Run(
            folder=Path("runs", "tests", "books", method, variant, f"seed={seed}"),
            experiment="tests",
            data="books",
            method=method,
            variant=variant,
            seed=seed,
            config=dict(config or {}),
            test=dict(test or {}),
            validation=[dict(point) for point in validation],
            summary=dict(summary or {}),
            rows=[dict(row) for row in rows],
            passages=dict(passages or {}),
        )

    return make
