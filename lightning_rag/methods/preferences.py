"""What is known of a query's candidates: which were scored, which count, how scores agree."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.preference_files import write_requests
from lightning_rag.data.store import PassageStore
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.retrieval.pool import best_columns, random_columns
from lightning_rag.types import Instance, RagBatch

log = logging.getLogger(__name__)

FIGURE = "figures/"  # in front of the names of an estimate's figures in the bank


@runtime_checkable
class LearnsFromPreferences(Protocol):
    """A method that asks a generator which candidates of its training queries it prefers."""

    def wanted(self, data: RagDataModule) -> Tensor:
        """Return which candidates of the training queries are scored: (Q, N) bool."""


def request_preferences(method: Method, data: RagDataModule, path: Path) -> None:
    """Write what another program needs to compute the preferences that a method learns from.

    No model is made for it.

    Args:
        method: not attached to any data.
        data: not set up yet.
        path: the file (`data.preference_files`), replaced in one piece.

    Raises:
        UserError: a method that learns from no preferences, or from some that no file can hold.
    """
    if not isinstance(method, LearnsFromPreferences):
        raise UserError(
            f"model: {type(method).__name__} learns from no preferences; legal: a method that "
            "does, such as lightning_rag.methods.ruie.Ruie"
        )
    data.setup()
    wanted, queries = method.wanted(data), data.queries("train")
    cue = method.generator_config.answer_cue
    write_requests(path, queries, data.store, data.task, wanted, cue)
    log.info("%s: %d queries, %d candidates to score", path, len(wanted), int(wanted.sum()))


def drawn(batch: RagBatch, count: int, seed: int, *, at_random: bool) -> Tensor:
    """Say which candidates of each query are scored, where not all of them are.

    Args:
        batch: B queries with N candidates.
        count: candidates of a query; it has fewer where it is offered fewer.
        seed: with it and its row alone a query's draw is always the same.
        at_random: any of the candidates, as RUIE released it; else the first stage's best.

    Returns:
        (B, N) bool.
    """
    offered = batch.candidate_scores.masked_fill(batch.candidate_ids < 0, -torch.inf)
    if at_random:
        seeds = [seed * 1_000_003 + row for row in batch.rows.tolist()]
        columns = random_columns(offered, count, seeds)  # (B, count)
    else:
        columns = best_columns(offered, count)
    width = offered.shape[1]
    places = columns.masked_fill(columns < 0, width)  # a column that is cut off again
    chosen = torch.zeros(len(offered), width + 1, dtype=torch.bool, device=offered.device)
    return chosen.scatter(1, places, True)[:, :width]


def off_task(batch: RagBatch, store: PassageStore) -> Tensor:
    """Say which candidates are demonstrations of another task than the query's: (B, N) bool.

    Plain passages belong to no task.
    """
    rows = []
    for instance, ids in zip(batch.instances, batch.candidate_ids.tolist(), strict=True):
        found = [store[row].instance if row >= 0 else None for row in ids]
        rows.append([one is not None and one.task != instance.task for one in found])
    return torch.tensor(rows, device=batch.candidate_ids.device).view(batch.candidate_ids.shape)


def penalised(scores: Tensor, other: Tensor, penalty: float, least: int) -> Tensor:
    """Put candidates of other tasks behind all others; a query with too few of its own has none.

    RUIE as released: 100 off, and a query whose third best score is below -100 is left out.

    Args:
        scores: (B, N), not finite = not scored.
        other: (B, N) bool, candidates of another task.
        penalty: taken off their scores; 0 leaves all as they are.
        least: scored candidates of the query's own task that it must have.

    Returns:
        (B, N); NaN in the rows of queries that have fewer.
    """
    if penalty == 0:
        return scores
    enough = (scores.isfinite() & ~other).sum(dim=1, keepdim=True) >= least  # (B, 1)
    return torch.where(enough, scores - penalty * other, torch.nan)


def agreement(scores: Tensor, preferences: Tensor) -> Tensor:
    """Share of pairs of a query's candidates that both order alike, (Kendall's tau + 1) / 2.

    Pairs with equal preferences do not count; one with equal scores counts half.

    Args:
        scores: (B, N), such as a reward model's.
        preferences: (B, N), not finite = candidates that are left out.

    Returns:
        (B,) in [0, 1]; 0.5 is chance, NaN a query without any pair.
    """
    known = preferences.isfinite() & scores.isfinite()
    pairs = known[:, :, None] & known[:, None]  # (B, N, N)
    filled = preferences.masked_fill(~known, 0)
    wanted = (filled[:, :, None] - filled[:, None]).sign()  # (B, N, N), each pair twice
    filled = scores.masked_fill(~known, 0)
    found = (filled[:, :, None] - filled[:, None]).sign()
    counted = (pairs & (wanted != 0)).float()
    alike = (1 + wanted * found) / 2
    return (counted * alike).sum(dim=(1, 2)) / counted.sum(dim=(1, 2))  # 0 / 0 is NaN


def figures(
    scores: Tensor, other: Tensor, first_stage: Tensor, usable: Tensor
) -> dict[str, Tensor]:
    """Return what tells how an estimate went, for each query.

    Args:
        scores: (B, N) of the generator or the reward model, not finite = not scored.
        other: (B, N) bool, candidates of another task.
        first_stage: (B, N) the first stage's scores.
        usable: (B,) bool, queries that can be learned from.

    Returns:
        tensors (B,) whose names begin with `FIGURE`, NaN for queries that have none, over the
        scored candidates of the query's own task: `mean`; `best`; `first_is_best`, 1 if none is
        better than the first stage's first candidate. Besides, `off_task`, the share of the scored
        candidates that are of another task; `left_out`, 1 if the query cannot be learned from.
    """
    scored = scores.isfinite()
    own = scored & ~other
    counts = own.sum(dim=1)
    best = scores.masked_fill(~own, -torch.inf).amax(dim=1)  # (B,)
    first = first_stage.argmax(dim=1, keepdim=True)  # (B, 1); the earlier of equal ones
    known = own.gather(1, first)[:, 0]
    is_best = (scores.gather(1, first)[:, 0] >= best).float()
    found = {
        "mean": scores.masked_fill(~own, 0).sum(dim=1) / counts,
        "best": best.masked_fill(counts == 0, torch.nan),
        "first_is_best": is_best.masked_fill(~known, torch.nan),
        "off_task": (scored & other).sum(dim=1) / scored.sum(dim=1),
        "left_out": 1 - usable.float(),
    }
    return {FIGURE + name: values for name, values in found.items()}


def summary(
    rows: Mapping[str, Tensor], train: Sequence[Instance], positives: int
) -> dict[str, float]:
    """Average the figures of an estimate, and name the queries that are left out.

    A phase without a single query to learn from would run to its end and leave the model as it is,
    so that is an error.

    Args:
        rows: the bank's tensors (Q, …), those of `figures` among them.
        train: the training queries.
        positives: scored candidates of its own task that a query needs.

    Returns:
        the mean of each figure over the queries that have it, NaN if none does.

    Raises:
        UserError: all queries are left out.
    """
    found = {}
    for name, values in rows.items():
        if name.startswith(FIGURE):
            known = values[values.isfinite()]
            found[name.removeprefix(FIGURE)] = float(known.mean()) if len(known) else math.nan
    left_out = rows[f"{FIGURE}left_out"].nonzero().flatten().tolist()
    if len(left_out) == len(train):
        raise UserError(
            f"all {len(train)} training queries are left out: none has {positives} scored "
            "candidates of its own task (model.positives) and one besides; legal: more "
            "data.num_candidates, model.subsample or scores in the file of preferences, or fewer "
            "model.positives"
        )
    if left_out:
        ids = ", ".join(train[row].id for row in left_out[:5])
        log.warning(
            "%d of %d queries are left out of this phase: they have fewer than %d scored "
            "candidates of their own task (model.positives), or none besides (%s%s)",
            *(len(left_out), len(train), positives, ids, ", …" if len(left_out) > 5 else ""),
        )
    return found
