"""What all generators can do, whatever their architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.backbones.continuation import Continuation, sample_tokens
from lightning_rag.backbones.inputs import text_key
from lightning_rag.backbones.prompted import PromptedBackbone
from lightning_rag.backbones.scoring import ScoringPlan, plan_scoring
from lightning_rag.functional.likelihood import sequence_log_likelihood
from lightning_rag.types import Prompt

ROWS_PER_CALL = 512  # prefixes of allowed answers that a decoder reads in one call
TOKENS_AT_ONCE = 32  # tokens of answers whose logits are copied at the same time


class Generator(PromptedBackbone, ABC):
    """Reads a query with its passages and writes an answer.

    Args:
        model: a generator of the transformers library.
        tokenizer: its fast tokeniser.
        config: limits and input modes.
    """

    def log_likelihood(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[str],
        *,
        soft_prompt: Tensor | None = None,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> Tensor:
        """Log-likelihood of each target given its prompt, end-of-sequence token included.

        Logits are computed at the answers' tokens only: memory for them does not depend on the
        prompts' length. The training loss is `-log_likelihood(...).mean()`.

        Args:
            prompts: B prompts.
            targets: B answers.
            soft_prompt: (B, P, D) vectors put into the input embeddings.
            reduction: "sum" or "mean" over the tokens of each target.

        Returns:
            (B,) float32, in nats; differentiable in the weights and the soft prompt.

        Raises:
            ValueError: numbers of prompts, targets and soft prompts that differ.
        """
        self._check_batch(prompts, soft_prompt)
        self._check_targets(prompts, targets)
        answers, since = self._answers(targets), self.tokens
        self.tokens += sum(len(answer) for answer in answers)
        rows = torch.tensor([b for b, answer in enumerate(answers) for _ in answer])
        steps = torch.tensor([t for answer in answers for t in range(len(answer))])
        rows, steps = rows.to(self.device), steps.to(self.device)
        logits = self._answer_logits(prompts, answers, rows, steps, soft_prompt)  # (N, V)
        self._differentiate(since, logits)
        each = _log_p(logits, [token for answer in answers for token in answer])
        # Placed, not added up at random: the order of a sum changes its last bits.
        table = each.new_zeros(len(answers), max(map(len, answers)))
        return _reduced(table.index_put((rows, steps), each), answers, reduction)

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Prompt],
        targets: Sequence[str],
        *,
        reduction: Literal["sum", "mean"] = "sum",
        token_budget: int = 8192,
    ) -> Tensor:
        """Log-likelihood of many targets without gradient or dropout: `log_likelihood`, sooner.

        Equal pairs of prompt and target are computed once, and so is what prompts have in common:
        their beginning with one decoder, pairs of query and passage with fused passages. Pairs of
        about the same length go together, as many as the budget allows.

        Args:
            prompts: n prompts; those of a query need not stand together.
            targets: n answers.
            reduction: "sum" or "mean" over the tokens of each target.
            token_budget: padded tokens of one call of the model; the memory grows with it. A longer
                pair goes on its own.

        Returns:
            (n,) float32, in nats; as `log_likelihood` up to rounding.

        Raises:
            ValueError: no prompt, numbers that differ, or a budget below 1.
        """
        self._check_batch(prompts, None)
        self._check_targets(prompts, targets)
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, got {token_budget}")
        keys = [(_key(prompt), target) for prompt, target in zip(prompts, targets, strict=True)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        chosen = [first[key] for key in numbers]
        answers = self._answers([targets[i] for i in chosen])
        table = torch.zeros(len(chosen), max(map(len, answers)), device=self.device)
        training = self.training
        self.eval()
        try:
            scored = self._scored_logits([prompts[i] for i in chosen], answers, token_budget)
            for rows, steps, logits in scored:
                labels = [answers[row][step] for row, step in zip(rows, steps, strict=True)]
                for start in range(0, len(rows), TOKENS_AT_ONCE):
                    some = slice(start, start + TOKENS_AT_ONCE)
                    table[rows[some], steps[some]] = _log_p(logits[some], labels[some])
                del logits  # not beside the next ones
        finally:
            self.train(training)
        return _reduced(table, answers, reduction)[[numbers[key] for key in keys]]

    def choose(
        self,
        prompts: Sequence[Prompt],
        options: Sequence[Sequence[str]],
        *,
        soft_prompt: Tensor | None = None,
    ) -> list[Tensor]:
        """Log-probabilities of each prompt's allowed answers.

        The answers' tokens form a trie. Where the trie branches, the logits of the branches are
        normalised among themselves; an answer's log-probability is the sum along its path.
        The prompt is read once, whatever the number of answers.

        Args:
            prompts: B prompts.
            options: the allowed answers of each prompt.
            soft_prompt: (B, P, D) vectors put into the input embeddings.

        Returns:
            per prompt (n_i,) float32 in the order of its options; their logsumexp is 0.

        Raises:
            ValueError: no option, two equal ones, or numbers that differ.
            UserError: an option longer than the target limit.
        """
        self._check_batch(prompts, soft_prompt)
        if len(options) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts need as many lists of options, got {len(options)}"
            )
        tries = [self._trie(tuple(answers)) for answers in options]
        scores: list[Tensor] = []
        since = self.tokens
        for start, stop in _batches([len(trie.rows) for trie in tries], ROWS_PER_CALL):
            plan = plan_scoring(tries[start:stop])
            self.tokens += sum(map(len, plan.row_tokens))
            soft = None if soft_prompt is None else soft_prompt[start:stop]
            scores += self._shared_scores(prompts[start:stop], plan, soft)
        self._differentiate(since, *scores)
        return scores

    def score_plan(
        self, prompts: Sequence[Prompt], plan: ScoringPlan, *, soft_prompt: Tensor | None = None
    ) -> list[Tensor]:
        """Log-probabilities of paths of decisions, such as lists of identifiers.

        At each node the logits of its children alone are normalised; a path's log-probability is
        the sum along it. A prompt is read once, whatever the number of its rows, and its gradient
        is computed once. Only in training with `gradient_checkpointing`, which has no caches, each
        row reads a prompt of its own.

        Args:
            prompts: B prompts.
            plan: the nodes and paths; tokens of its rows follow the prompt as an answer does.
            soft_prompt: (B, P, D) vectors put into the input embeddings.

        Returns:
            per prompt (n_i,) float32 in the order of its paths; differentiable in the weights and
            the soft prompt.

        Raises:
            ValueError: a plan for another number of prompts.
        """
        self._check_batch(prompts, soft_prompt)
        if len(plan.counts) != len(prompts):
            raise ValueError(
                f"{len(prompts)} prompts need a plan for as many, got one for {len(plan.counts)}"
            )
        since = self.tokens
        self.tokens += sum(map(len, plan.row_tokens))
        repeated = plan.repeated(self.end_id)
        recomputed = self.training and self.config.gradient_checkpointing
        if not (recomputed and torch.is_grad_enabled() and repeated.prompts):
            scores = self._shared_scores(prompts, plan, soft_prompt)
            self._differentiate(since, *scores)
            return scores
        owners = torch.tensor(repeated.prompts)
        logits = self._answer_logits(
            [prompts[b] for b in repeated.prompts],
            repeated.answers,
            torch.tensor(repeated.rows, dtype=torch.long, device=self.device),
            torch.tensor(repeated.steps, dtype=torch.long, device=self.device),
            None if soft_prompt is None else soft_prompt[owners.to(soft_prompt.device)],
        )
        self._differentiate(since, logits)
        roots = len(plan.root_nodes)
        return plan.scores(logits[:roots], logits[roots:])

    def begin(self, prompts: Sequence[Prompt], copies: int = 1) -> Continuation:
        """Read prompts once, to go on from each of them several times.

        What is appended must begin as an answer does, with `answer_prefix` where there is one.

        Args:
            prompts: B prompts.
            copies: S rows for each prompt.

        Returns:
            a continuation of R = B * S rows; row b * S + s is copy s of prompt b.

        Raises:
            ValueError: no prompt, or no copy.
        """
        self._check_batch(prompts, None)
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        with self.activations_kept():
            continuation = self._read(prompts, None)
        rows = torch.arange(len(prompts), device=self.device)
        return continuation.spread(rows.repeat_interleave(copies))

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[list[str]]:
        """Draw answers, from torch's global random generator; each prompt is read once.

        Args:
            prompts: B prompts.
            num_samples: answers for each, independent of each other.
            temperature: divides the logits.
            top_p: at each token, keep the most probable ones, as few as have this probability
                together.

        Returns:
            per prompt `num_samples` answers without special tokens, cut to the target limit.

        Raises:
            ValueError: a number out of range.
        """
        continuation = self.begin(prompts, num_samples)
        if self.answer_prefix:
            prefix = torch.tensor(self.answer_prefix, device=self.device)
            continuation.append(prefix.expand(len(continuation.logits), -1))
        limit = self.config.max_target_length - len(self.answer_prefix)
        tokens = sample_tokens(
            continuation, self.end_id, limit, temperature=temperature, top_p=top_p
        )
        texts = self._decode(tokens)
        return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]

    def _shared_scores(
        self, prompts: Sequence[Prompt], plan: ScoringPlan, soft_prompt: Tensor | None
    ) -> list[Tensor]:
        """Score a plan, reading each prompt once."""
        with self.activations_kept():
            continuation = self._read(prompts, soft_prompt)
        roots = torch.tensor(plan.root_prompts, dtype=torch.long, device=self.device)
        root_logits = continuation.logits[roots]
        inner_logits = root_logits[:0]
        if plan.row_tokens:
            prompt_of_row = torch.tensor(plan.row_prompts, device=self.device)
            inner_logits = continuation.spread(prompt_of_row).read(
                self._padded(plan.row_tokens),
                torch.tensor(plan.inner_rows, device=self.device),
                torch.tensor(plan.inner_columns, device=self.device),
            )
        return plan.scores(root_logits, inner_logits)

    @abstractmethod
    def check_soft_prompt(self, size: int) -> None:
        """Check that soft prompts of `size` vectors fit beside the longest input.

        Raises:
            UserError: they do not.
        """

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], *, soft_prompt: Tensor | None = None
    ) -> list[str]:
        """Write an answer to each of B prompts, greedily or by beam search.

        Args:
            prompts: B prompts.
            soft_prompt: (B, P, D) vectors put into the input embeddings.

        Returns:
            B answers without special tokens.
        """

    @abstractmethod
    def _answer_logits(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[Sequence[int]],
        rows: Tensor,
        steps: Tensor,
        soft_prompt: Tensor | None,
    ) -> Tensor:
        """Return the logits (N, V) that predict token `steps[n]` of the answer of `rows[n]`."""

    @abstractmethod
    def _scored_logits(
        self, prompts: Sequence[Prompt], answers: Sequence[tuple[int, ...]], token_budget: int
    ) -> Iterator[tuple[list[int], list[int], Tensor]]:
        """Yield rows and steps of all answers' tokens with the logits (N, V) that predict them."""

    @abstractmethod
    def _read(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> Continuation:
        """Read B prompts: a continuation with one row for each."""

    def _check_targets(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> None:
        if len(targets) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many targets, got {len(targets)}")


def _log_p(logits: Tensor, labels: Sequence[int]) -> Tensor:
    """Return the log-probabilities (N,) of tokens, given logits (N, V)."""
    # One answer token per row of (N, 1, V): padding has no logits at all.
    wanted = torch.tensor(labels, device=logits.device)[:, None]
    return sequence_log_likelihood(logits[:, None], wanted)


def _reduced(
    table: Tensor, answers: Sequence[Sequence[int]], reduction: Literal["sum", "mean"]
) -> Tensor:
    """Return the sum or mean (B,) of the answers' log-probabilities (B, T), 0 after their end."""
    total = table.sum(dim=1)
    if reduction == "sum":
        return total
    return total / total.new_tensor([len(answer) for answer in answers])


def _key(prompt: Prompt) -> tuple[object, ...]:
    """Return what equal prompts have in common."""
    return prompt.best_last, *(text_key(text) for text in (prompt.query, *prompt.passages))


def _batches(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) whose sizes add up to at most `limit`, or of one element."""
    start = total = 0
    for stop, size in enumerate(sizes):
        if total + size > limit and stop > start:
            yield start, stop
            start, total = stop, 0
        total += size
    yield start, len(sizes)
