"""The optimiser's settings: a learning rate for each part of a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, TypedDict

from torch import nn

from lightning_rag.errors import UserError


class ParameterGroup(TypedDict):
    """Parameters that the optimiser treats alike."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


@dataclass
class OptimizerConfig:
    """AdamW with a learning rate for each part of the model.

    Args:
        learning_rates: prefix of parameter names to rate; the longest matching prefix counts, so
            `{generator: 5e-4, generator.model.encoder: 7e-5}` trains a warm-started encoder slower.
            Rates of groups that a method does not have, such as `retriever`, are left unused.
        weight_decay: decay of matrices; biases and normalisation weights are never decayed.
        schedule: course of the rates within a phase, after the warm-up.
        warmup: share of the phase's steps in which the rates rise from 0, in [0, 1).
        warmup_shape: "linear", or "logarithmic": with ln(s + 1) / ln(w) at step s of w, so that
            they rise steeply at first, after a first step at 0. This is the default of DeepSpeed's
            WarmupDecayLR, which RUIE was trained with.
        betas: the moments' decay rates of AdamW.
        epsilon: the denominator's constant of AdamW.
    """

    learning_rates: dict[str, float] = field(default_factory=lambda: {"generator": 5e-4})
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.1
    warmup_shape: Literal["linear", "logarithmic"] = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for prefix, rate in self.learning_rates.items():
            if not 0 < rate < math.inf:
                raise UserError(f"optimizer.learning_rates.{prefix} is {rate}; legal: above 0")
        if not 0 <= self.warmup < 1:
            raise UserError(f"optimizer.warmup is {self.warmup}; legal: 0 to less than 1")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay is {self.weight_decay}; legal: 0 or more")

    def factor(self, step: int, total: int) -> float:
        """Return the factor of the rates at `step` (from 0) of a phase of `total` steps."""
        rising = math.ceil(self.warmup * total)
        if step < rising:
            if self.warmup_shape == "logarithmic":
                return math.log(step + 1) / math.log(max(2, rising))
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total - rising))
        if self.schedule == "linear":
            return 1.0 - progress
        if self.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0

    def learning_rate(self, name: str) -> float:
        """Return the base learning rate of the parameter `name`.

        Raises:
            UserError: no prefix matches it.
        """
        rates = self.learning_rates
        matching = [prefix for prefix in rates if (name + ".").startswith(prefix + ".")]
        if not matching:
            raise UserError(
                f"no learning rate for parameter {name!r}: "
                f"optimizer.learning_rates names {sorted(rates)}; "
                f"legal: prefixes of parameter names, such as {name.split('.')[0]!r}"
            )
        return rates[max(matching, key=len)]

    def parameter_groups(
        self, parameters: Mapping[str, nn.Parameter], groups: Collection[str]
    ) -> list[ParameterGroup]:
        """Group the parameters that learn by learning rate and decay, in a fixed order.

        Args:
            parameters: all parameters of the method by name; frozen ones are left out.
            groups: names of the method's parameter groups.

        Raises:
            UserError: a parameter without a rate, or a rate that matches no parameter.
        """
        grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
        used = set()
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                continue
            used.add(name)
            decay = self.weight_decay if parameter.ndim > 1 else 0.0
            grouped.setdefault((self.learning_rate(name), decay), []).append(parameter)
        for prefix in self.learning_rates:
            group = prefix.split(".")[0]
            meant = group in groups or get_close_matches(group, groups)
            if meant and not any((name + ".").startswith(prefix + ".") for name in parameters):
                raise UserError(
                    f"optimizer.learning_rates.{prefix} matches no parameter; legal: prefixes of "
                    f"parameter names, such as {', '.join(_prefixes(used))}"
                )
        return [
            ParameterGroup(params=grouped[rate, decay], lr=rate, weight_decay=decay)
            for rate, decay in sorted(grouped)
        ]


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the short prefixes of parameter names that a user would choose from."""
    return sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 3)})[:8]
