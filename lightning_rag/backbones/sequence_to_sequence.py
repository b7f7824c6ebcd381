"""Encoder-decoder generators: T5 and its kind, and decoders put onto an encoder checkpoint."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_rag.backbones.backbone import check_length
from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.continuation import Continuation
from lightning_rag.backbones.generator import Generator
from lightning_rag.backbones.inputs import (
    Layout,
    Row,
    RowKey,
    in_order,
    input_embeddings,
    length_groups,
    place_soft_prompt,
    way_back,
)
from lightning_rag.backbones.prefixes import within_budget
from lightning_rag.backbones.scoring import logits_at
from lightning_rag.backbones.truncation import Fitted
from lightning_rag.errors import UserError
from lightning_rag.types import Prompt

if TYPE_CHECKING:
    from transformers import EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class EncodedPrompts:
    """What the decoder attends to."""

    states: Tensor  # (B, L, D)
    mask: Tensor  # (B, L) long


class DecoderContinuation(Continuation):
    """Encoded prompts, and rows that a decoder writes from them.

    The start token is decoded once per prompt. That fills the cache of the cross-attention's keys
    and values, which all rows of the prompt then share.

    Args:
        generator: what reads the prompts.
        encoded: B encoded prompts.
    """

    generator: SequenceToSequenceGenerator

    def __init__(self, generator: SequenceToSequenceGenerator, encoded: EncodedPrompts) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.encoded = encoded
        rows = torch.arange(len(encoded.mask), device=encoded.mask.device)
        starts = torch.full_like(rows, generator.start_id)[:, None]  # (B, 1)
        with logits_at(generator.model, rows, torch.zeros_like(rows)):
            logits = generator.logits(encoded, starts, self.cache)
        super().__init__(generator, logits)

    def _read(self, tokens: Tensor) -> Tensor:
        return self.generator.logits(self.encoded, tokens, self.cache)

    def _share(self, prompts: Tensor) -> None:
        from transformers import EncoderDecoderCache

        from lightning_rag.backbones.shared_cache import share

        # Only the size of the states matters from here on: their keys and values are kept.
        states = self.encoded.states[:1].expand(len(prompts), -1, -1)
        self.encoded = EncodedPrompts(states, self.encoded.mask[prompts])
        self.cache = EncoderDecoderCache(
            share(self.cache.self_attention_cache, prompts),
            share(self.cache.cross_attention_cache, prompts),
        )


class SequenceToSequenceGenerator(Generator):
    """An encoder reads the prompt, a decoder writes the answer.

    With `passages="concatenate"` the input is the query, then the passages in their order, with
    separators between them. With `passages="fuse"` each passage is encoded together with the query
    and the decoder attends to all states (Fusion-in-Decoder, Izacard & Grave 2021, section 3); a
    soft prompt stands in each of these inputs. The query has token type 0 and the passages have 1,
    where the model knows token types.

    Args:
        model: an encoder-decoder model.
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
        if config.passages not in ("concatenate", "fuse"):
            raise UserError(f"passages must be 'concatenate' or 'fuse', got {config.passages!r}")
        encoder = model.get_encoder()
        check_length("max_source_length", config.max_source_length, encoder)
        # A model without token types has no parameter for them, or only one row of embeddings.
        self._segments = (
            "token_type_ids" in inspect.signature(encoder.forward).parameters
            and getattr(encoder.config, "type_vocab_size", 0) > 1
        )
        self.start_id: int = model.config.decoder_start_token_id
        self.layout = _with_separator(self.layout, self.end_id)
        if self.layout.prefix[:1] != (self.start_id,):
            self.answer_prefix = self.layout.prefix

    def check_soft_prompt(self, size: int) -> None:
        """Refuse a soft prompt of `size` vectors that does not fit beside the longest input."""
        length = self.config.max_source_length + size
        check_length(f"max_source_length with {size} soft-prompt vectors", length, self._encoder())

    def generate(
        self, prompts: Sequence[Prompt], *, soft_prompt: Tensor | None = None
    ) -> list[str]:
        """Write an answer to each of B prompts, greedily or by beam search."""
        from transformers.modeling_outputs import BaseModelOutput

        self._check_batch(prompts, soft_prompt)
        encoded = self._encode(prompts, soft_prompt)
        sequences = self.model.generate(  # type: ignore[operator]
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
            attention_mask=encoded.mask,
            max_new_tokens=self.config.max_target_length,
            num_beams=self.config.num_beams,
            do_sample=False,
        )
        self.tokens += int((sequences != self.pad_id).sum())
        return self._decode(sequences)

    def _answer_logits(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]],
        rows: Tensor,
        steps: Tensor,
        soft_prompt: Tensor | None,
    ) -> Tensor:
        """Return the logits (N, V) that predict token `steps[n]` of the answer of `rows[n]`."""
        return self._written_logits(self._encode(prompts, soft_prompt), answers, rows, steps)

    def _written_logits(
        self,
        encoded: EncodedPrompts,
        answers: Sequence[Sequence[int]],
        rows: Tensor,
        steps: Tensor,
    ) -> Tensor:
        """Return the logits (N, V) that predict token `steps[n]` of the answer of `rows[n]`."""
        inputs = self._padded([(self.start_id, *answer[:-1]) for answer in answers])
        with logits_at(self.model, rows, steps):
            return self.logits(encoded, inputs, None)

    def _read(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> DecoderContinuation:
        """Encode B prompts and decode the start token after each."""
        return DecoderContinuation(self, self._encode(prompts, soft_prompt))

    def logits(
        self, encoded: EncodedPrompts, ids: Tensor, cache: EncoderDecoderCache | None
    ) -> Tensor:
        """Run the decoder over tokens (B, T) that follow those in the cache."""
        from transformers.modeling_outputs import BaseModelOutput

        known = 0 if cache is None else cache.get_seq_length()
        # All ones: causal attention never sees the padding, which is on the right.
        mask = torch.ones(ids.shape[0], known + ids.shape[1], dtype=torch.long, device=ids.device)
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
            attention_mask=encoded.mask,
            decoder_input_ids=ids,
            decoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        logits: Tensor = output.logits
        return logits

    def _scored_logits(
        self, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]], token_budget: int
    ) -> Iterator[tuple[list[int], list[int], Tensor]]:
        """Yield rows and steps of all answers' tokens with the logits (N, V) that predict them.

        Fused, the prompts of a query that have a passage in common have an encoder input in common;
        it is encoded once.
        """
        inputs = self._inputs(prompts, 0)
        self.tokens += sum(map(len, answers))
        lengths = [
            sum(len(row.ids) for row in rows) + len(answer)
            for rows, answer in zip(inputs, answers, strict=True)
        ]
        for together in _read_together(prompts, inputs, lengths, token_budget):
            states = self._states_once([row for b in together for row in inputs[b]], token_budget)
            for batch in within_budget([lengths[b] for b in together], token_budget):
                chosen = [together[c] for c in batch]
                joined = [torch.cat([states[row.key] for row in inputs[b]]) for b in chosen]
                mask = [torch.ones(len(one), dtype=torch.long) for one in joined]
                encoded = EncodedPrompts(
                    pad_sequence(joined, batch_first=True),
                    pad_sequence(mask, batch_first=True).to(self.device),
                )
                rows = [i for i, b in enumerate(chosen) for _ in answers[b]]
                steps = [t for b in chosen for t in range(len(answers[b]))]
                logits = self._written_logits(
                    encoded,
                    [answers[b] for b in chosen],
                    torch.tensor(rows, device=self.device),
                    torch.tensor(steps, device=self.device),
                )
                yield [chosen[i] for i in rows], steps, logits
                del logits  # by far the largest: not beside the next ones

    def _states_once(self, rows: Sequence[Row], token_budget: int) -> dict[RowKey, Tensor]:
        """Encode rows, equal ones once; return the states (length, D) of each."""
        distinct = list({row.key: row for row in rows}.values())
        states: dict[RowKey, Tensor] = {}
        for batch in within_budget([len(row.ids) for row in distinct], token_budget):
            chosen = [distinct[i] for i in batch]
            output, _ = self._encoder_states(chosen, None)
            states.update(
                (row.key, one[: len(row.ids)]) for row, one in zip(chosen, output, strict=True)
            )
        return states

    def _encode(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> EncodedPrompts:
        """Run the encoder over each prompt, once over equal inputs without soft prompt."""
        size = 0 if soft_prompt is None else soft_prompt.shape[1]
        inputs = self._inputs(prompts, size)
        counts = [len(rows) for rows in inputs]
        rows = [row for one in inputs for row in one]
        if soft_prompt is not None and size:
            repeated = soft_prompt.repeat_interleave(torch.tensor(counts, device=self.device), 0)
            states, mask = self._encoder_states(rows, repeated)
        else:
            number = {key: i for i, key in enumerate(dict.fromkeys(row.key for row in rows))}
            distinct = list({row.key: row for row in rows}.values())
            states, mask = self._encoder_states(distinct, None)
            if len(distinct) < len(rows):
                index = torch.tensor([number[row.key] for row in rows], device=self.device)
                states, mask = states[index], mask[index]
        if len(rows) == len(prompts):
            return EncodedPrompts(states, mask)
        return _join(states, mask, counts)

    def _encoder_states(
        self, rows: Sequence[Row], soft_prompt: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the encoder over rows: states (rows, L, D) and mask (rows, L).

        Args:
            rows: the inputs, with places for the soft prompt if there is one.
            soft_prompt: (rows, P, D).
        """
        lengths = [len(row.ids) for row in rows]
        check_length("soft prompt and source", max(lengths), self._encoder())
        groups = length_groups(lengths, self.device)
        states, masks = [], []
        for group in groups:
            soft = None if soft_prompt is None else soft_prompt[group]
            output, mask = self._padded_states([rows[i] for i in group], soft)
            states.append(output)  # (group, L, D)
            masks.append(mask)
        back = way_back(groups, self.device)
        return in_order(states, back), in_order(masks, back)

    def _padded_states(
        self, rows: Sequence[Row], soft_prompt: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the encoder once over rows padded to the longest of them."""
        batch = self._pad(rows)
        embeddings = input_embeddings(self.model)(batch.ids)  # (rows, L, D)
        if soft_prompt is not None:
            first = torch.full((len(rows),), self._soft_prompt_place(), device=self.device)
            embeddings = place_soft_prompt(embeddings, soft_prompt, first)
        segments = {"token_type_ids": batch.segments} if self._segments else {}
        output = self._encoder()(inputs_embeds=embeddings, attention_mask=batch.mask, **segments)
        states: Tensor = output.last_hidden_state
        return states, batch.mask

    def _inputs(self, prompts: Sequence[Prompt], soft_prompt_size: int) -> list[list[Row]]:
        """Return the encoder's inputs of each prompt."""
        special = len(self.layout.prefix) + len(self.layout.suffix)
        limit = self.config.max_source_length - special
        fuse = self.config.passages == "fuse"
        fitted = self._fit(prompts, limit, len(self.layout.middle), split=fuse)
        place = self._soft_prompt_place()
        return [[self._row(one, soft_prompt_size, place) for one in inputs] for inputs in fitted]

    def _soft_prompt_place(self) -> int:
        return 1 if self.config.soft_prompt_position == "insert" else 0

    def _encoder(self) -> PreTrainedModel:
        encoder: PreTrainedModel = self.model.get_encoder()
        return encoder

    def _row(self, fitted: Fitted, soft_prompt_size: int, position: int) -> Row:
        """Lay out one input: special tokens, query, passages, place for the soft prompt."""
        layout = self.layout
        ids = [*layout.prefix, *fitted.query.ids]
        if fitted.passages:
            ids += layout.middle
        query_length = len(ids)
        for number, passage in enumerate(fitted.passages):
            ids += [*(layout.middle if number else ()), *passage.ids]
        ids += layout.suffix
        segments = [0] * query_length + [int(bool(fitted.passages))] * (len(ids) - query_length)
        place = [self.pad_id] * soft_prompt_size
        return Row(
            [*ids[:position], *place, *ids[position:]],
            [*segments[:position], *[0] * soft_prompt_size, *segments[position:]],
        )


def _with_separator(layout: Layout, end_id: int) -> Layout:
    """Return a layout that puts something between a query and a passage."""
    return layout if layout.middle else Layout(layout.prefix, (end_id,), layout.suffix)


def _join(states: Tensor, mask: Tensor, counts: Sequence[int]) -> EncodedPrompts:
    """Join the states of each prompt's inputs along the length, without the padding between.

    Args:
        states: (inputs, L, D).
        mask: (inputs, L) long.
        counts: number of consecutive inputs of each of B prompts.

    Returns:
        states (B, L', D) and mask (B, L').
    """
    lengths = torch.stack([part.sum() for part in torch.split(mask, list(counts))])  # (B,)
    columns = torch.arange(int(lengths.max()), device=mask.device)
    joined_mask = columns[None] < lengths[:, None]  # (B, L')
    joined = states.new_zeros(*joined_mask.shape, states.shape[-1])
    joined[joined_mask] = states[mask.bool()]
    return EncodedPrompts(joined, joined_mask.long())


def _read_together(
    prompts: Sequence[Prompt],
    inputs: Sequence[Sequence[Row]],
    lengths: Sequence[int],
    token_budget: int,
) -> Iterator[list[int]]:
    """Yield the numbers of prompts whose encoder states are kept at the same time.

    Prompts that share an input with another one stay together with all of the same query, whatever
    the budget, and in their order otherwise. The others go by length, within the budget.
    """
    counts = Counter(row.key for rows in inputs for row in rows)
    alone = [b for b, rows in enumerate(inputs) if all(counts[row.key] == 1 for row in rows)]
    for chosen in within_budget([lengths[b] for b in alone], token_budget):
        yield [alone[c] for c in chosen]
    groups: dict[str, list[int]] = {}
    for b in sorted(set(range(len(prompts))) - set(alone)):
        groups.setdefault(prompts[b].query.text, []).append(b)
    together: list[int] = []
    for group in groups.values():
        if together and sum(lengths[b] for b in [*together, *group]) > token_budget:
            yield together
            together = []
        together = together + group
    if together:
        yield together
