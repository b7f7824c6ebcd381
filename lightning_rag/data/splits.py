"""The splits of a data set, and the pure functions that cut them by seed.

Who goes where is decided by the SHA-256 of (purpose, seed, id) and not by a random generator, so
that it depends on no library version and not on the order of the records in the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_rag.data.readers.jsonl import text_lines
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Passage


@dataclass(frozen=True)
class Splits:
    """What a reader returns: the records of a data set by split."""

    train: tuple[Instance, ...]
    validation: tuple[Instance, ...]
    test: tuple[Instance, ...]
    passages: tuple[Passage, ...] = ()  # empty: the store is made of the training instances
    labels: tuple[str, ...] = ()  # all labels in a fixed order; () where answers are free text
    wording: Mapping[str, str] = field(
        default_factory=dict
    )  # label -> text, where the data have it


def normalise(text: str) -> str:
    """Return the text as sentences are compared: case-folded, runs of white space as one space."""
    return " ".join(text.casefold().split())


def ids_hash(instances: Sequence[Instance]) -> str:
    """Return the first 16 hex digits of the SHA-256 over the sorted ids, one a line."""
    ids = "\n".join(sorted(instance.id for instance in instances))
    return hashlib.sha256(ids.encode("utf-8")).hexdigest()[:16]


def hold_out(
    instances: Sequence[Instance], fraction: float, seed: int
) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
    """Cut about `fraction` of the instances off, whole groups only.

    Instances with two entities are stratified by label, and those of several tasks by task, as far
    as groups allow: a group is held out if and only if that brings the held-out counts nearer to
    their quotas. Groups are visited
    in an order drawn by seed. Both parts keep the order of `instances` and are never empty.

    Args:
        instances: at least two groups; an instance without a group is one of its own.
        fraction: share to hold out, in (0, 1).
        seed: what the choice is drawn from.

    Returns:
        The kept and the held-out instances.

    Raises:
        UserError: if the fraction is outside (0, 1).
        DataError: if there are fewer than two groups.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"fraction to hold out is {fraction}; legal: more than 0 and less than 1")
    groups: dict[tuple[bool, str], list[int]] = defaultdict(list)
    for row, instance in enumerate(instances):
        groups[bool(instance.group), instance.group or instance.id].append(row)
    if len(groups) < 2:
        raise DataError(
            f"cannot hold out a part of {len(instances)} instances in {len(groups)} group(s); "
            "legal: at least 2 (repeated sentences, or records of one document, stay together)"
        )
    strata = [_stratum(instance) for instance in instances]
    missing = _quotas(Counter(strata), fraction)
    order = sorted(groups, key=lambda group: (_draw("hold_out", seed, group[1]), group))
    held: set[int] = set()
    for group in order:
        counts = Counter(strata[row] for row in groups[group])
        gain = sum(abs(missing[s]) - abs(missing[s] - count) for s, count in counts.items())
        if gain > 0 and len(held) + len(groups[group]) < len(instances):
            held.update(groups[group])
            missing.subtract(counts)
    if not held:  # every group is far larger than its quota
        held.update(groups[min(order, key=lambda group: len(groups[group]))])
    kept = tuple(instance for row, instance in enumerate(instances) if row not in held)
    return kept, tuple(instances[row] for row in sorted(held))


def subset(
    instances: Sequence[Instance],
    *,
    fraction: float | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Instance, ...]:
    """Return the instances of a low-resource regime, in the order of `instances`.

    By fraction, max(1, round(fraction * n)) instances are drawn. Instances with two entities are
    stratified by label, and those of several tasks by task: every label has one instance before any
    has a second (frequent labels first, if there are fewer places than labels), then places go by
    Webster's rule. The subsets of one seed are nested: the 1 % is inside the 5 %.

    Args:
        instances: what to choose from.
        fraction: share to keep, in (0, 1]; give this or `ids`.
        ids: the instances to keep.
        seed: what the choice by fraction is drawn from.

    Raises:
        UserError: if the fraction is outside (0, 1].
        DataError: if an id is not among the instances.
        ValueError: if not exactly one of `fraction` and `ids` is given.
    """
    if (fraction is None) == (ids is None):
        raise ValueError("give exactly one of fraction and ids")
    if ids is not None:
        return _by_ids(instances, ids)
    assert fraction is not None
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"fraction is {fraction}; legal: more than 0 and at most 1")
    strata: dict[str, list[int]] = defaultdict(list)
    for row, instance in enumerate(instances):
        strata[_stratum(instance)].append(row)
    priorities: list[tuple[float, str, int]] = []
    for rows in strata.values():
        drawn = sorted((_draw("subset", seed, instances[row].id), row) for row in rows)
        for place, (draw, row) in enumerate(drawn):
            # Webster: the j-th (from 0) of n comes at (j + 1/2) / n; the first ones before all
            first = 1.0 / len(rows) - 2.0
            priorities.append((first if place == 0 else (place + 0.5) / len(rows), draw, row))
    size = max(1, round(fraction * len(instances)))
    return tuple(instances[row] for row in sorted(row for _, _, row in sorted(priorities)[:size]))


def read_ids(path: Path) -> tuple[str, ...]:
    """Read a list of ids, one a line; blank lines do not count.

    Raises:
        DataError: if the file is missing, not UTF-8, without any id, or has one twice.
    """
    seen: dict[str, int] = {}
    for number, line in text_lines(path):
        identity = line.strip()
        if not identity:
            continue
        if identity in seen:
            raise DataError.at(
                path, number, f"id {identity!r} is already in line {seen[identity]}; legal: once"
            )
        seen[identity] = number
    if not seen:
        raise DataError(f"{path}: no ids; legal: one id a line")
    return tuple(seen)


def _by_ids(instances: Sequence[Instance], ids: Sequence[str]) -> tuple[Instance, ...]:
    wanted = set(ids)
    unknown = sorted(wanted - {instance.id for instance in instances})
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(wanted)} listed ids are not in the split, first "
            f"{unknown[0]!r}; legal: ids of its {len(instances)} instances"
        )
    return tuple(instance for instance in instances if instance.id in wanted)


def _stratum(instance: Instance) -> str:
    """Return what an instance is stratified by: its task and label, as far as it has them.

    Answers that are free text are no labels.
    """
    label = instance.answers[0] if instance.head is not None and instance.answers else ""
    return f"{instance.task}\n{label}" if instance.task else label


def _draw(purpose: str, seed: int, identity: str) -> str:
    """Return a uniformly distributed sort key."""
    return hashlib.sha256(f"{purpose}\n{seed}\n{identity}".encode()).hexdigest()


def _quotas(counts: Counter[str], fraction: float) -> Counter[str]:
    """Share round(fraction * total) places, at least 1, among the strata by largest remainder."""
    exact = {stratum: fraction * count for stratum, count in counts.items()}
    quotas = Counter({stratum: int(share) for stratum, share in exact.items()})
    places = max(1, round(fraction * counts.total())) - quotas.total()
    by_remainder = sorted(exact, key=lambda s: (quotas[s] - exact[s], s))
    quotas.update(by_remainder[: max(0, places)])
    return quotas
