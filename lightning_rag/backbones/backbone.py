"""What encoders and generators have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.inputs import Padded, Row, pad, read_layout
from lightning_rag.backbones.tiny import wrap_tokenizer
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Backbone(nn.Module):
    """A transformer with its tokeniser.

    Args:
        model: the transformer.
        tokenizer: its fast tokeniser.
        config: how texts become inputs.

    Attributes:
        model: the transformer.
        tokenizer: its tokeniser.
        config: how texts become inputs.
        truncated: number of texts that lost tokens so far.
        tokens: number of tokens, padding not counted, that went through the model so far.
        differentiated: number of those whose results have a gradient, be it in the weights or only
            in what the model was given, such as a soft prompt.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EncoderConfig | GeneratorConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.truncated = 0
        self.tokens = 0
        self.differentiated = 0
        self.layout = read_layout(tokenizer)
        pad_id = tokenizer.pad_token_id
        # Some decoder-only models have no padding token; the mask hides whatever stands there.
        self.pad_id: int = tokenizer.eos_token_id if pad_id is None else pad_id

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """Hash of the weights, the configuration and the tokeniser: the key of caches."""
        settings = dataclasses.asdict(self.config)
        if isinstance(self.config, EncoderConfig):
            settings = self.config.identity()
        digest = hashlib.sha256(json.dumps(settings).encode())
        digest.update(self._tokenizer_json().encode())
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def get_extra_state(self) -> Tensor:
        """The tokeniser of a tiny model as bytes: it was trained on data, as the weights were."""
        serialized = self._tokenizer_json() if self.config.source == "tiny" else ""
        return torch.tensor(list(serialized.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the tokeniser of a tiny model from a checkpoint."""
        if state.numel():
            self.tokenizer = wrap_tokenizer(bytes(state.tolist()).decode())

    def _tokenizer_json(self) -> str:
        backend = self.tokenizer.backend_tokenizer
        serialized: str = backend.to_str()
        return serialized

    def _differentiate(self, since: int, *results: Tensor) -> None:
        """Count the tokens since there were `since` of them, if the results have a gradient."""
        if any(result.requires_grad for result in results):
            self.differentiated += self.tokens - since

    def _pad(self, rows: Sequence[Row], *, left: bool = False) -> Padded:
        """Pad rows and count their tokens."""
        self.tokens += sum(len(row.ids) for row in rows)
        return pad(rows, self.pad_id, self.device, left=left)


def check_length(name: str, length: int, model: PreTrainedModel) -> None:
    """Refuse a limit that the model's position embeddings cannot hold.

    Raises:
        UserError: naming the setting, what came and what is legal.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if length < 3 or (positions is not None and length > positions):
        legal = "at least 3" if positions is None else f"3 to {positions}"
        raise UserError(f"{name} must be {legal} for this model, got {length}")
