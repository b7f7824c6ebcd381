"""Scoring all allowed answers of several prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_rag.backbones.trie import Trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ScoringPlan:
    """The branching nodes of several prompts' tries, and the sums that give the scores.

    Nodes are numbered through all prompts; the roots are those that need no token before them.
    """

    row_prompts: list[int]  # R: the prompt of each prefix of at least one token
    row_tokens: list[tuple[int, ...]]  # R
    root_nodes: list[int]  # numbers of the nodes at a root
    root_prompts: list[int]  # their prompts
    inner_nodes: list[int]  # numbers of the other nodes
    inner_rows: list[int]  # their rows
    inner_columns: list[int]  # the last token of their prefix in the row
    children: list[tuple[int, ...]]  # N
    paths: list[tuple[tuple[int, int], ...]]  # all answers of all prompts: (node, child) decisions
    counts: list[int]  # answers per prompt

    def repeated(self, end: int) -> RepeatedPlan:
        """Return the plan as answers that each have a prompt of their own.

        Args:
            end: any token: the last one of an answer is never read.
        """
        with_rows = set(self.row_prompts)
        alone = [prompt for prompt in dict.fromkeys(self.root_prompts) if prompt not in with_rows]
        prompts = [*self.row_prompts, *alone]
        first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
        return RepeatedPlan(
            prompts,
            [(*tokens, end) for tokens in self.row_tokens] + [(end,)] * len(alone),
            [first[prompt] for prompt in self.root_prompts] + self.inner_rows,
            [0] * len(self.root_nodes) + [column + 1 for column in self.inner_columns],
        )

    def scores(self, root_logits: Tensor, inner_logits: Tensor) -> list[Tensor]:
        """Turn logits at the branching nodes into log-probabilities of the answers.

        Args:
            root_logits: (len(root_nodes), V).
            inner_logits: (len(inner_nodes), V).

        Returns:
            per prompt (n_i,); if its paths are all those of a trie, their logsumexp is 0.
        """
        logits = torch.cat([root_logits, inner_logits]).float()  # (N, V), roots first
        device = logits.device
        order = torch.empty(len(self.children), dtype=torch.long)
        order[self.root_nodes + self.inner_nodes] = torch.arange(len(self.children))
        width = max((len(tokens) for tokens in self.children), default=1)
        padded = [tokens + (-1,) * (width - len(tokens)) for tokens in self.children]
        children = torch.tensor(padded, dtype=torch.long, device=device).view(-1, width)  # (N, C)
        # Picking the children before the softmax keeps the (N, V) part to one read.
        chosen = logits[order.to(device)[:, None], children.clamp(min=0)]  # (N, C)
        chosen = chosen.masked_fill(children < 0, float("-inf"))
        decisions = chosen.log_softmax(dim=-1).flatten()
        decisions = torch.cat([decisions, decisions.new_zeros(1)])  # last = nothing to decide
        longest = max((len(path) for path in self.paths), default=0)
        nothing = len(decisions) - 1
        index = [
            [node * width + child for node, child in path] + [nothing] * (longest - len(path))
            for path in self.paths
        ]
        flat = torch.tensor(index, dtype=torch.long, device=device)  # (answers, longest)
        return list(torch.split(decisions[flat].sum(dim=-1), self.counts))


@dataclass
class RepeatedPlan:
    """A plan's rows as answers of R prompts; its nodes, those at a root first, are in them."""

    prompts: list[int]  # R: the prompt of each answer
    answers: list[tuple[int, ...]]  # R: the row's tokens and one that is not read
    rows: list[int]  # N: the answer of each node
    steps: list[int]  # N: the token of it that the node decides


def plan_scoring(tries: Sequence[Trie]) -> ScoringPlan:
    """Put the tries of several prompts together."""
    plan = ScoringPlan([], [], [], [], [], [], [], [], [], [])
    for prompt, trie in enumerate(tries):
        first_node = len(plan.children)
        first_row = len(plan.row_tokens)
        rows = [row for row in trie.rows if row]
        plan.row_tokens.extend(rows)
        plan.row_prompts.extend([prompt] * len(rows))
        for number, (row, length) in enumerate(trie.nodes, start=first_node):
            if length == 0:
                plan.root_nodes.append(number)
                plan.root_prompts.append(prompt)
            else:
                plan.inner_nodes.append(number)
                plan.inner_rows.append(first_row + row)
                plan.inner_columns.append(length - 1)
        plan.children.extend(trie.children)
        plan.paths.extend(
            tuple((first_node + node, child) for node, child in path) for path in trie.paths
        )
        plan.counts.append(len(trie.paths))
    return plan


@contextmanager
def logits_at(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Within this context the model computes its logits at the given positions only: (N, V).

    The output layer is by far the largest of a small model, and its result the largest tensor.
    A hook in front of it works alike for every architecture.

    Args:
        model: a generator of the transformers library.
        rows: (N,) long.
        columns: (N,) long.
    """

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns], *inputs[1:])

    output_layer: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
