"""Keys and values of prompts, shared by all rows that go on from them.

This module loads transformers: import it where a model runs, not at the top of a module.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class SharedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values: of prompts that rows share, and of each row's own tokens.

    Rows are put together with their prompts layer by layer, for the time that the layer attends to
    them: S rows of one prompt take the memory of one, but for a single layer.

    Args:
        keys: (B, heads, L, width) of the prompts.
        values: (B, heads, L, width).
        prompts: (R,) long, the prompt of each row.
        once: the rows are read in one go: their own keys and values are not kept.
    """

    def __init__(self, keys: Tensor, values: Tensor, prompts: Tensor, *, once: bool) -> None:
        self._shared = (keys, values)
        self._prompts = prompts
        self._once = once
        self._own: list[Tensor | None] = [None, None]
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    @property
    def keys(self) -> Tensor:
        """(R, heads, L + T, width)."""
        return self._joined(0)

    @keys.setter
    def keys(self, given: Tensor | None) -> None:
        self._own[0] = given

    @property
    def values(self) -> Tensor:
        """(R, heads, L + T, width)."""
        return self._joined(1)

    @values.setter
    def values(self, given: Tensor | None) -> None:
        self._own[1] = given

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of T further tokens of each row; return all of them."""
        for i, new in enumerate((key_states, value_states)):
            own = self._own[i]
            self._own[i] = new if own is None else torch.cat([own, new], dim=-2)
        joined = self.keys, self.values
        if self._once:
            self._own = [None, None]
        return joined

    def get_seq_length(self) -> int:
        """Return the number of tokens of each row, those of its prompt included."""
        own = self._own[0]
        return self._shared[0].shape[-2] + (0 if own is None else own.shape[-2])

    def _joined(self, i: int) -> Tensor:
        shared, own = self._shared[i], self._own[i]
        if len(shared) == 1:  # a view
            shared = shared.expand(len(self._prompts), -1, -1, -1)
        else:
            shared = shared[self._prompts]
        return shared if own is None else torch.cat([shared, own], dim=-2)


def share(cache: DynamicCache, prompts: Tensor, *, once: bool = False) -> DynamicCache:
    """Return a cache of rows that go on from what another one holds, without a copy of it.

    Args:
        cache: keys and values of B prompts; it stays as it is.
        prompts: (R,) long, the prompt of each row.
        once: nothing goes on from these rows, so their own keys and values are not kept.
    """
    shared = DynamicCache()
    layers = cast("list[DynamicLayer]", cache.layers)
    shared.layers = [
        SharedLayer(cast("Tensor", layer.keys), cast("Tensor", layer.values), prompts, once=once)
        for layer in layers
    ]
    return shared


def settle(cache: DynamicCache) -> None:
    """Put the keys and values of rows and of their prompts together for good, layer by layer.

    What several other caches go on from is then put together once, not for each of them.

    Args:
        cache: one that `share` returned.
    """
    for number, layer in enumerate(cast("list[DynamicLayer]", cache.layers)):
        whole = DynamicLayer()  # type: ignore[no-untyped-call]
        whole.update(cast("Tensor", layer.keys), cast("Tensor", layer.values))
        cache.layers[number] = whole
