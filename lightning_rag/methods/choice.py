"""What queries were given, as `Retrieved`: by the first stage, by rows of the store, nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rag.types import RagBatch, Retrieved


def first_stage_choice(batch: RagBatch, k: int) -> Retrieved:
    """Return the first `k` candidates as the first-stage retriever ranked them."""
    found = batch.candidate_ids[:, :k] >= 0  # (B, K)
    columns = torch.arange(k, device=found.device).expand_as(found)
    return Retrieved(
        candidate_ids=batch.candidate_ids,
        scores=batch.candidate_scores,
        positions=torch.where(found, columns, -1),
    )


def nothing_retrieved(batch: RagBatch) -> Retrieved:
    """Return no choice among the candidates: none has a rank, so retrieval metrics are 0."""
    nothing = torch.full_like(batch.candidate_scores, -torch.inf)  # (B, N)
    chosen = batch.candidate_ids[:, :0]  # (B, 0)
    return Retrieved(batch.candidate_ids, scores=nothing, positions=chosen)


def rows_of(retrieved: Retrieved) -> Tensor:
    """Return the rows of the store that were chosen, best first: (B, K), -1 = none."""
    rows = retrieved.candidate_ids.gather(1, retrieved.positions.clamp(min=0))
    return rows.masked_fill(retrieved.positions < 0, -1)


def given(rows: Tensor) -> Retrieved:
    """Return rows of the store (B, K), best first, -1 = none, as what was chosen; unscored."""
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    unscored = torch.zeros(rows.shape, device=rows.device)
    return Retrieved(rows, unscored, places.masked_fill(rows < 0, -1))
