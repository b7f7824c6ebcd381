"""How a trainer's processes share the models, and in which precision it holds them."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

# Names of a trainer's strategy that mean that each process holds the whole models.
DATA_PARALLEL = ("auto", "ddp", "ddp_find_unused_parameters_true")
# So long one process waits for another: candidates are computed by one, and an estimate's shares
# take different times. One that dies is noticed at once.
PATIENCE = timedelta(hours=6)
HALVES = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def data_parallel(name: str) -> DDPStrategy:
    """Return the strategy of several processes that a name stands for.

    Phases freeze parameters, and one that learns in a later phase has no gradient in an earlier
    one: by default the processes ask each other in every step which parameters were used. Buffers
    are no part of it: each process refreshes its index itself.

    Args:
        name: one of `DATA_PARALLEL`.
    """
    return DDPStrategy(
        find_unused_parameters=name != "ddp", broadcast_buffers=False, timeout=PATIENCE
    )


class HalfWeights(Precision):
    """Weights, and so gradients and the optimiser's state, in half precision.

    In place of Lightning's plugin of that precision, which would convert batches too, and let every
    tensor that a loss makes be in half precision. Here batches are records, with the scores of the
    first stage; log-likelihoods, weights of samples and losses keep 32 bits, as with
    `generator.dtype: bfloat16`. So do buffers: indexes, and what models compute positions from.

    Args:
        precision: a trainer's "bf16-true" or "16-true".
    """

    def __init__(self, precision: Literal["bf16-true", "16-true"]) -> None:
        self.precision = precision

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert the weights in place; those of 4 bits stay."""
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(HALVES[self.precision])
        return module
