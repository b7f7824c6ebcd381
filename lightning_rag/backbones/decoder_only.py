"""Decoder-only generators: Llama and its kind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rag.backbones.backbone import check_length
from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.continuation import Continuation
from lightning_rag.backbones.generator import Generator
from lightning_rag.backbones.inputs import (
    Row,
    input_embeddings,
    length_groups,
    place_soft_prompt,
    tokenize,
)
from lightning_rag.backbones.prefixes import Node, prefix_forest, within_budget
from lightning_rag.backbones.scoring import logits_at
from lightning_rag.backbones.truncation import Fitted
from lightning_rag.errors import UserError
from lightning_rag.types import Prompt, Rendered

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

LEAST_SAVING = 64  # tokens that a common beginning must save
PLACE = "<<prompt>>"  # stands for the prompt while the chat template is rendered


@dataclass
class Inputs:
    """What the model reads in one call, prompts being padded on the left."""

    ids: Tensor  # (R, T) long; a soft prompt's places hold padding tokens
    embeddings: Tensor | None  # (R, T, D) if there is a soft prompt
    mask: Tensor  # (R, L + T) long, with that of the L tokens in the cache


@dataclass
class WaitingNodes:
    """Nodes of common beginnings that are read next, in one call, after those before them."""

    nodes: list[Node]  # R
    rows: list[int]  # R: where the tokens before each node are in the cache
    cache: DynamicCache | None  # of the nodes before them
    mask: Tensor | None  # its mask


class DecoderContinuation(Continuation):
    """Prompts in a decoder's cache, and rows that go on from them.

    Args:
        generator: what reads the prompts.
        inputs: B prompts.
    """

    generator: DecoderOnlyGenerator

    def __init__(self, generator: DecoderOnlyGenerator, inputs: Inputs) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()
        self.mask = inputs.mask
        rows = torch.arange(len(inputs.ids), device=inputs.ids.device)
        with logits_at(generator.model, rows, torch.full_like(rows, inputs.ids.shape[1] - 1)):
            logits = generator.logits(inputs, self.cache)
        super().__init__(generator, logits)

    def _read(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
        return self.generator.logits(Inputs(tokens, None, self.mask), self.cache)

    def _share(self, prompts: Tensor) -> None:
        from lightning_rag.backbones.shared_cache import share

        self.mask = self.mask[prompts]
        self.cache = share(self.cache, prompts)


class DecoderOnlyGenerator(Generator):
    """One decoder reads the prompt and goes on with the answer.

    The prompt is the passages in their order, the query and an answer cue, each on its line; with
    `chat_template` it is the user's turn, and the answer the assistant's, without cue. A query's
    range "lead" comes before the passages, and its range "cue" takes the place of the answer cue.

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
        inputs = self._embed(prompts, soft_prompt)
        ids = {"input_ids": inputs.ids}
        if inputs.embeddings is not None:
            ids = {"inputs_embeds": inputs.embeddings}
        sequences = self.model.generate(  # type: ignore[operator]
            **ids,
            attention_mask=inputs.mask,
            max_new_tokens=self.config.max_target_length,
            num_beams=self.config.num_beams,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=self.end_id,
        )
        # With embeddings as input only the new tokens come back.
        new = sequences[:, inputs.ids.shape[1] if "input_ids" in ids else 0 :]
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
        lengths = [sum(len(t.text) for t in (one.query, *one.passages)) for one in prompts]
        groups = length_groups(lengths, self.device)
        if len(groups) == 1:
            return self._padded_logits(prompts, answers, rows, steps, soft_prompt)
        logits, places = [], []
        for group in groups:
            number = torch.full((len(prompts),), -1, device=self.device)
            chosen = torch.tensor(group, device=self.device)
            number[chosen] = torch.arange(len(group), device=self.device)
            here = (number[rows] >= 0).nonzero()[:, 0]
            if not len(here):
                continue
            output = self._padded_logits(
                [prompts[b] for b in group],
                [answers[b] for b in group],
                number[rows[here]],
                steps[here],
                None if soft_prompt is None else soft_prompt[chosen.to(soft_prompt.device)],
            )
            logits.append(output)
            places.append(here)
        return torch.cat(logits)[torch.cat(places).argsort()]

    def _padded_logits(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]],
        rows: Tensor,
        steps: Tensor,
        soft_prompt: Tensor | None,
    ) -> Tensor:
        """`_answer_logits`, in one call of the model."""
        inputs = self._embed(prompts, soft_prompt)
        length = inputs.ids.shape[1]
        after = self._padded([answer[:-1] for answer in answers])
        if inputs.embeddings is not None:
            embedded = input_embeddings(self.model)(after)
            inputs.embeddings = torch.cat([inputs.embeddings, embedded], dim=1)
        inputs.ids = torch.cat([inputs.ids, after], dim=1)
        # All ones: causal attention never sees the padding, which is on the right.
        inputs.mask = torch.cat([inputs.mask, torch.ones_like(after)], dim=1)
        with logits_at(self.model, rows, steps + length - 1):
            return self.logits(inputs, None)

    def _read(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> DecoderContinuation:
        """Read B prompts, keeping their keys and values."""
        return DecoderContinuation(self, self._embed(prompts, soft_prompt))

    def _scored_logits(
        self, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]], token_budget: int
    ) -> Iterator[tuple[list[int], list[int], Tensor]]:
        """Yield rows and steps of all answers' tokens with the logits (N, V) that predict them.

        A beginning that several prompts have in common, such as their first passages, is read once.
        """
        starts = self._rows(prompts)
        first = [len(ids) - 1 for ids in starts]  # where the first token of the answer is predicted
        forest = prefix_forest(
            [(*ids, *answer[:-1]) for ids, answer in zip(starts, answers, strict=True)],
            LEAST_SAVING,
        )
        waiting = _batched(forest, [0] * len(forest), None, None, token_budget)
        while waiting:
            batch = waiting.pop()
            wanted = [
                (row, column, i, node.start + column - first[i])
                for row, node in enumerate(batch.nodes)
                for i in node.sequences
                for column in range(max(first[i] - node.start, 0), len(node.tokens))
            ]
            places = torch.tensor(wanted, dtype=torch.long, device=self.device).view(-1, 4)
            with logits_at(self.model, places[:, 0], places[:, 1]):
                logits, cache, mask = self._read_nodes(batch)
            if wanted:
                yield [i for *_, i, _ in wanted], [step for *_, step in wanted], logits
            del logits  # by far the largest: not beside the next ones
            children = [(child, r) for r, node in enumerate(batch.nodes) for child in node.children]
            nodes, rows = [child for child, _ in children], [row for _, row in children]
            waiting += _batched(nodes, rows, cache, mask, token_budget)
            del batch, cache  # what nothing follows goes before the next nodes come

    def _read_nodes(self, batch: WaitingNodes) -> tuple[Tensor, DynamicCache | None, Tensor]:
        """Read nodes after those before them: logits, and cache and mask of all that was read."""
        from transformers import DynamicCache

        from lightning_rag.backbones.shared_cache import settle, share

        followed = any(node.children for node in batch.nodes)
        padded = self._pad([Row(list(node.tokens), [0] * len(node.tokens)) for node in batch.nodes])
        if batch.cache is None or batch.mask is None:
            cache, mask = DynamicCache() if followed else None, padded.mask
            return self.logits(Inputs(padded.ids, None, mask), cache), cache, mask
        rows = torch.tensor(batch.rows, device=self.device)
        cache = share(batch.cache, rows, once=not followed)
        mask = torch.cat([batch.mask[rows], padded.mask], dim=1)
        logits = self.logits(Inputs(padded.ids, None, mask), cache)
        if followed:
            settle(cache)
        return logits, cache, mask

    def logits(self, inputs: Inputs, cache: DynamicCache | None) -> Tensor:
        """Run the model over tokens (R, T) that follow those in the cache."""
        given = {"input_ids": inputs.ids}
        if inputs.embeddings is not None:
            given = {"inputs_embeds": inputs.embeddings}
        if self._positions:  # counted without the padding
            positions = (inputs.mask.cumsum(dim=1) - 1).clamp(min=0)
            given["position_ids"] = positions[:, -inputs.ids.shape[1] :]
        output = self.model(
            **given,
            attention_mask=inputs.mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        logits: Tensor = output.logits
        return logits

    def _embed(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> Inputs:
        """Tokenise and pad prompts, and put the soft prompt in."""
        size = 0 if soft_prompt is None else soft_prompt.shape[1]
        position = 1 if self.config.soft_prompt_position == "insert" else 0
        rows = []
        for ids in self._rows(prompts):
            ids = [*ids[:position], *[self.pad_id] * size, *ids[position:]]
            rows.append(Row(ids, [0] * len(ids)))
        batch = self._pad(rows, left=True)
        if soft_prompt is None or not size:
            return Inputs(batch.ids, None, batch.mask)
        first = batch.ids.shape[1] - batch.mask.sum(dim=1) + position  # (B,)
        embeddings = input_embeddings(self.model)(batch.ids)
        embeddings = place_soft_prompt(embeddings, soft_prompt, first)
        return Inputs(batch.ids, embeddings, batch.mask)

    def _rows(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the tokens of prompts, cut to the limit."""
        limit = self.config.max_source_length - len(self._before) - len(self._after)
        fitted = self._fit(prompts, limit, len(self._separator), split=False)
        return [self._row(inputs) for (inputs,) in fitted]

    def _row(self, fitted: Fitted) -> list[int]:
        """Return the tokens of a prompt."""
        query, spans = fitted.query, fitted.query.rendered.spans
        _, lead_end = spans.get("lead", (0, 0))
        lead = sum(start < lead_end for start, _ in query.offsets)
        passages = [token for p in fitted.passages for token in (*p.ids, *self._separator)]
        after = self._after
        if "cue" in spans and not self.config.chat_template:
            after = []
        return [*self._before, *query.ids[:lead], *passages, *query.ids[lead:], *after]

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


def _batched(
    nodes: Sequence[Node],
    rows: Sequence[int],
    cache: DynamicCache | None,
    mask: Tensor | None,
    token_budget: int,
) -> list[WaitingNodes]:
    """Put nodes that come after the same cache into batches of their own.

    Nodes that nothing follows go without the others: their keys and values need not be kept.
    """
    before = 0 if mask is None else mask.shape[1]
    batches = []
    for followed in (True, False):
        numbers = [n for n, node in enumerate(nodes) if bool(node.children) == followed]
        lengths = [before + len(nodes[n].tokens) for n in numbers]
        for chosen in within_budget(lengths, token_budget):
            picked = [numbers[c] for c in chosen]
            batches.append(
                WaitingNodes([nodes[n] for n in picked], [rows[n] for n in picked], cache, mask)
            )
    return batches
