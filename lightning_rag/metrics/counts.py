"""How a test figure comes out of what its single queries add.

A run writes, for every test query and every figure, what the query adds to the figure, into
`predictions.jsonl`, and how the additions become the figure into `summary.json`. Whoever reads
these files can so compute the figure again: of all queries, of a resample of them, of one class.
This needs numpy alone, no model and no data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_rag.files import Json

# Raised whenever a test figure begins to mean something else, or `counts` in predictions.jsonl is
# written otherwise: runs of different versions are not compared.
METRICS_VERSION = 1

Kind = Literal["mean", "f1"]
Average = Literal["micro", "macro"]
Over = Literal["occurring", "gold"]
# What a query adds: a number; {class: [correct, predicted, gold]}, sparse; or nothing.
Count = float | Mapping[str, Sequence[int]] | None


@dataclass(frozen=True)
class Aggregation:
    """How what the queries add becomes a figure.

    Args:
        kind: "mean", the mean of the numbers of the queries that have one; "f1", the F1 of the sums
            of {class: [correct, predicted, gold]}.
        average: of an F1: "micro", the F1 of the sums over all classes; "macro", the unweighted
            mean of the classes' F1.
        over: which classes a macro mean is over: "occurring", those that some query names, with
            zeros too; "gold", those that are gold somewhere.

    Raises:
        ValueError: an argument outside what is legal.
    """

    kind: Kind
    average: Average = "micro"
    over: Over = "occurring"

    def __post_init__(self) -> None:
        given = {"kind": (self.kind, Kind), "average": (self.average, Average)}
        for name, (value, legal) in {**given, "over": (self.over, Over)}.items():
            if value not in get_args(legal):
                raise ValueError(f"{name}: expected one of {get_args(legal)}, got {value!r}")

    def to_json(self) -> dict[str, Json]:
        """Return the fields that matter, for `summary.json`."""
        if self.kind == "mean":
            return {"kind": self.kind}
        if self.average == "micro":
            return {"kind": self.kind, "average": self.average}
        return {"kind": self.kind, "average": self.average, "over": self.over}

    @classmethod
    def from_json(cls, value: Json) -> Aggregation:
        """Return what `to_json` wrote.

        Raises:
            ValueError: the value is no aggregation.
        """
        known = {"kind", "average", "over"}
        if not isinstance(value, Mapping) or "kind" not in value or not set(value) <= known:
            raise ValueError(f"expected an object with kind, average and over, got {value!r}")
        return cls(**value)  # type: ignore[arg-type]  # checked by the class itself


MEAN = Aggregation("mean")
MICRO_F1 = Aggregation("f1")


def class_counts(
    predicted: str | None, gold: str | None, *, correct: bool
) -> dict[str, tuple[int, int, int]]:
    """Return what a query with one answer adds to an F1, {class: (correct, predicted, gold)}.

    Args:
        predicted: the class that is predicted, None if it is none that counts.
        gold: the class of the gold answer, None if it is none that counts.
        correct: whether the prediction is right; equal classes may not be enough.
    """
    found = {} if predicted is None else {predicted: (0, 1, 0)}
    if gold is not None:
        found[gold] = (int(correct), int(predicted == gold), 1)
    return found


def classes(rows: Sequence[Count]) -> tuple[str, ...]:
    """Return the classes that some query names, in alphabetical order; () for a mean."""
    return tuple(sorted({name for row in rows if isinstance(row, Mapping) for name in row}))


def columns(aggregation: Aggregation, rows: Sequence[Count]) -> NDArray[np.float64]:
    """Return what each query adds as numbers: their sums are all that the figure depends on.

    So the figure of a resample is `figure` of the product of the resample's weights and this.

    Args:
        aggregation: how the figure is made.
        rows: what each of n queries adds; None where it does not count.

    Returns:
        (n, d): for a mean the number, and 1 where there is one (d = 2); for a micro F1 correct,
        predicted and gold of all classes (d = 3); for a macro F1, for each class of `classes(rows)`
        correct, predicted, gold, and 1 where the query puts it into the mean (d = 4 C).

    Raises:
        ValueError: a row is not what the aggregation needs.
    """
    if aggregation.kind == "mean":
        return np.array([_number(row) for row in rows], dtype=np.float64).reshape(-1, 2)
    names = {name: place for place, name in enumerate(classes(rows))}
    found = np.zeros((len(rows), len(names), 4))  # (n, C, 4)
    for place, row in enumerate(rows):
        for name, counts in _of_classes(row).items():
            if len(counts) != 3:
                raise ValueError(
                    f"row {place}: expected [correct, predicted, gold] for class {name!r}, "
                    f"got {counts!r}"
                )
            shown = aggregation.over == "occurring" or counts[2] > 0
            found[place, names[name]] = (*counts, shown)
    if aggregation.average == "micro":
        summed: NDArray[np.float64] = found[:, :, :3].sum(axis=1)  # (n, 3)
        return summed
    return found.reshape(len(rows), 4 * len(names))  # (n, 4 C)


def figure(aggregation: Aggregation, sums: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the figure of sums of `columns`, 0 where nothing was counted.

    Args:
        aggregation: how the figure is made.
        sums: (…, d) sums over queries, weighted or not.

    Returns:
        (…), of the dtype of `sums`.
    """
    if aggregation.kind == "mean":
        return _divide(sums[..., 0], sums[..., 1])
    if aggregation.average == "micro":
        return _f1(sums)
    grouped = sums.reshape(*sums.shape[:-1], sums.shape[-1] // 4, 4)  # (…, C, 4)
    shown = grouped[..., 3] > 0  # (…, C)
    total = np.where(shown, _f1(grouped), 0).sum(axis=-1)
    return _divide(total, shown.sum(axis=-1, dtype=sums.dtype))


def aggregate(aggregation: Aggregation, rows: Sequence[Count]) -> float:
    """Return the figure of some queries, 0 where none counts.

    Args:
        aggregation: how the figure is made.
        rows: what each query adds; None where it does not count.

    Raises:
        ValueError: a row is not what the aggregation needs.
    """
    counted = [row for row in rows if row is not None]
    return float(figure(aggregation, columns(aggregation, counted).sum(axis=0)))


def _number(row: Count) -> tuple[float, float]:
    if row is None:
        return 0.0, 0.0
    if isinstance(row, Mapping):
        raise ValueError(f"expected a number for a mean, or null, got {row!r}")
    return float(row), 1.0


def _of_classes(row: Count) -> Mapping[str, Sequence[int]]:
    if row is None:
        return {}
    if not isinstance(row, Mapping):
        raise ValueError(f"expected {{class: [correct, predicted, gold]}}, or null, got {row!r}")
    return row


def _f1(counts: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the F1 of (…, 3 or more): correct, predicted, gold."""
    return _divide(2 * counts[..., 0], counts[..., 1] + counts[..., 2])


def _divide(part: NDArray[np.floating], whole: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return part / whole, 0 where the whole is 0."""
    shares: NDArray[np.floating] = np.zeros_like(part)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
