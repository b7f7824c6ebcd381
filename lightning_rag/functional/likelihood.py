"""Log-likelihood of token sequences."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def sequence_log_likelihood(
    logits: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    ignore_index: int = -100,
) -> Tensor:
    """Log-likelihood of each label sequence, in nats.

    Args:
        logits: (B, T, V); `logits[:, t]` predicts `labels[:, t]`, the caller shifts.
        labels: (B, T) long; positions that hold `ignore_index` do not count.
        reduction: "sum" over the positions, or their "mean" (over the positions that count).
        ignore_index: the label of a position that does not count.

    Returns:
        (B,) float32 (float64 for float64 logits). A row without any counted position gives 0.

    Raises:
        ValueError: shapes that do not fit, or an unknown reduction.

    Example:
        >>> logits = torch.zeros(1, 2, 4)
        >>> sequence_log_likelihood(logits, torch.tensor([[1, -100]]))
        tensor([-1.3863])
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits must be (B, T, V) and labels (B, T), got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    # Half precision would lose the small differences between likely answers.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nll = torch.nn.functional.cross_entropy(
        wide.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=ignore_index
    )
    total = -nll.view_as(labels).sum(dim=-1)  # (B,)
    if reduction == "sum":
        return total
    return total / (labels != ignore_index).sum(dim=-1).clamp(min=1)
