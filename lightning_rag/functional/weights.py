"""How many weights a tensor holds."""

from __future__ import annotations

import torch
from torch import Tensor


def number_of_weights(weight: Tensor) -> int:
    """Return the number of values in a tensor, which has two to a byte if it is quantised."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else int(torch.Size(state.shape).numel())
