"""Decoder-only generators: Llama and its kind."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rag.backbones.backbone import check_length
from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.continuation import Continuation
from lightning_rag.backbones.generator import Generator
from lightning_rag.backbones.inputs import Row, input_embeddings, place_soft_prompt, tokenize
from lightning_rag.backbones.scoring import logits_at
from lightning_rag.backbones.truncation import Fitted
from lightning_rag.errors import UserError
from lightning_rag.types import Prompt, Rendered

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

PLACE = "<<prompt>>"  # stands for the prompt while the chat template is rendered


@dataclass
class EmbeddedPrompts:
    """Prompts ready for the model, padded on the left."""

    ids: Tensor  # (B, L) long; a soft prompt's places hold padding tokens
    embeddings: Tensor | None  # (B, L, D) if there is a soft prompt
    mask: Tensor  # (B, L) long


class DecoderContinuation(Continuation):
    """Prompts in a decoder's cache, and rows that go on from them.

    Args:
        generator: what reads the prompts.
        batch: B prompts.
    """

    generator: DecoderOnlyGenerator

    def __init__(self, generator: DecoderOnlyGenerator, batch: EmbeddedPrompts) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()
        self.mask = batch.mask
        rows = torch.arange(len(batch.mask), device=batch.mask.device)
        with logits_at(generator.model, rows, torch.full_like(rows, batch.mask.shape[1] - 1)):
            logits = generator.logits(batch, batch.ids[:, :0], self.cache)
        super().__init__(generator, logits)

    def _read(self, tokens: Tensor) -> Tensor:
        before = EmbeddedPrompts(tokens[:, :0], None, self.mask)
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
        return self.generator.logits(before, tokens, self.cache)

    def _spread(self, prompts: Tensor) -> None:
        self.mask = self.mask[prompts]
        self.cache.batch_select_indices(prompts)


class DecoderOnlyGenerator(Generator):
    """One decoder reads the prompt and goes on with the answer.

    The prompt is the passages in their order, the query and an answer cue, each on its line; with
    `chat_template` it is the user's turn, and the answer the assistant's, without cue.

    Args:
        model: a causal language model.
        tokenizer: its fast tokeniser.
        config: limits and input modes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: GeneratorConfig,
    ) -> None:
        super().__init__(model, tokenizer, config)
        if config.passages != "concatenate":
            raise UserError(
                "passages must be 'concatenate' for a decoder-only generator, "
                f"got {config.passages!r}"
            )
        check_length("max_source_length", config.max_source_length, model)
        self._positions = "position_ids" in inspect.signature(model.forward).parameters
        self._before, self._after = self._frame()
        self._separator = self._tokens("\n")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the tokeniser of a tiny model from a checkpoint."""
        super().set_extra_state(state)
        self._before, self._after = self._frame()
        self._separator = self._tokens("\n")

    def check_soft_prompt(self, size: int) -> None:
        """Refuse a soft prompt of `size` vectors that does not fit beside the longest input."""
        length = self.config.max_source_length + size
        check_length(f"max_source_length with {size} soft-prompt vectors", length, self.model)

    def generate(
        self, prompts: Sequence[Prompt], *, soft_prompt: Tensor | None = None
    ) -> list[str]:
        """Write an answer to each of B prompts, greedily or by beam search."""
        self._check_batch(prompts, soft_prompt)
        batch = self._embed(prompts, soft_prompt)
        ids = {"input_ids": batch.ids}
        if batch.embeddings is not None:
            ids = {"inputs_embeds": batch.embeddings}
        sequences = self.model.generate(  # type: ignore[operator]
            **ids,
            attention_mask=batch.mask,
            max_new_tokens=self.config.max_target_length,
            num_beams=self.config.num_beams,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_id,
        )
        # With embeddings as input only the new tokens come back.
        new = sequences[:, batch.ids.shape[1] if "input_ids" in ids else 0 :]
        self.tokens += int((new != self.pad_id).sum())
        return self._decode(new)

    def _answer_logits(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]],
        rows: Tensor,
        steps: Tensor,
        soft_prompt: Tensor | None,
    ) -> Tensor:
        """Return the logits (N, V) that predict token `steps[n]` of the answer of `rows[n]`."""
        batch = self._embed(prompts, soft_prompt)
        length = batch.ids.shape[1]
        with logits_at(self.model, rows, steps + length - 1):
            return self.logits(batch, self._padded([answer[:-1] for answer in answers]), None)

    def _read(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> DecoderContinuation:
        """Read B prompts, keeping their keys and values."""
        return DecoderContinuation(self, self._embed(prompts, soft_prompt))

    def logits(self, batch: EmbeddedPrompts, answer: Tensor, cache: DynamicCache | None) -> Tensor:
        """Run the model over prompts and the tokens (B, T) that follow them."""
        mask = torch.cat([batch.mask, torch.ones_like(answer)], dim=1)
        ids = torch.cat([batch.ids, answer], dim=1)
        inputs = {"input_ids": ids}
        if batch.embeddings is not None:
            after = input_embeddings(self.model)(answer)
            inputs = {"inputs_embeds": torch.cat([batch.embeddings, after], dim=1)}
        if self._positions:  # counted without the padding
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
        output = self.model(
            **inputs,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        logits: Tensor = output.logits
        return logits

    def _embed(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> EmbeddedPrompts:
        """Tokenise and pad prompts, and put the soft prompt in."""
        limit = self.config.max_source_length - len(self._before) - len(self._after)
        fitted = self._fit(prompts, limit, len(self._separator), split=False)
        size = 0 if soft_prompt is None else soft_prompt.shape[1]
        position = 1 if self.config.soft_prompt_position == "insert" else 0
        rows = []
        for (inputs,) in fitted:
            ids = self._row(inputs)
            ids = [*ids[:position], *[self.pad_id] * size, *ids[position:]]
            rows.append(Row(ids, [0] * len(ids)))
        batch = self._pad(rows, left=True)
        if soft_prompt is None or not size:
            return EmbeddedPrompts(batch.ids, None, batch.mask)
        first = batch.ids.shape[1] - batch.mask.sum(dim=1) + position  # (B,)
        embeddings = input_embeddings(self.model)(batch.ids)
        embeddings = place_soft_prompt(embeddings, soft_prompt, first)
        return EmbeddedPrompts(batch.ids, embeddings, batch.mask)

    def _row(self, fitted: Fitted) -> list[int]:
        """Return the tokens of a prompt."""
        passages = [token for p in fitted.passages for token in (*p.ids, *self._separator)]
        return [*self._before, *passages, *fitted.query.ids, *self._after]

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the tokens before and after the passages and query."""
        if not self.config.chat_template:
            after = self._tokens("\n" + self.config.answer_cue)
            return list(self.layout.prefix), after
        if not self.tokenizer.chat_template:
            raise UserError(
                f"chat_template: the tokeniser of {self.config.source!r} has no chat template; "
                "set it to false"
            )
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": PLACE}], tokenize=False, add_generation_prompt=True
        )
        start, _, end = str(rendered).partition(PLACE)
        return self._tokens(start), self._tokens(end)

    def _answer_text(self, answer: str) -> str:
        """Return an answer as the model writes it after its prompt."""
        return answer if self.config.chat_template else f" {answer}"

    def _tokens(self, text: str) -> list[int]:
        """Return the tokens of a text without special tokens around it."""
        return tokenize(self.tokenizer, [Rendered(text)])[0].ids if text else []
