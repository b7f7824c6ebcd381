"""What all generators can do, whatever their architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_rag.backbones.backbone import Backbone
from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.continuation import Continuation
from lightning_rag.backbones.inputs import input_embeddings, tokenize
from lightning_rag.backbones.scoring import ScoringPlan, plan_scoring
from lightning_rag.backbones.trie import Trie, build_trie
from lightning_rag.backbones.truncation import Fitted, Piece, fit
from lightning_rag.errors import UserError
from lightning_rag.functional.likelihood import sequence_log_likelihood
from lightning_rag.types import Prompt, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lightning_rag.backbones.lora import FrozenBase

TRIES_KEPT = 1024  # distinct lists of allowed answers whose tries stay in memory
ROWS_PER_CALL = 512  # prefixes of allowed answers that a decoder reads in one call


class Generator(Backbone, ABC):
    """Reads a query with its passages and writes an answer.

    Args:
        model: a generator of the transformers library.
        tokenizer: its fast tokeniser.
        config: limits and input modes.

    Attributes:
        hidden_size: D, the width of the input embeddings, and so of soft prompts.
        end_id: the token that ends an answer.
        frozen_base: the weights that checkpoints leave out, with adapters on a pretrained model.
    """

    config: GeneratorConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: GeneratorConfig,
    ) -> None:
        super().__init__(model, tokenizer, config)
        if config.max_target_length < 2:
            raise UserError(f"max_target_length must be at least 2, got {config.max_target_length}")
        if config.num_beams < 1:
            raise UserError(f"num_beams must be at least 1, got {config.num_beams}")
        self.hidden_size: int = input_embeddings(model).embedding_dim
        end_id = tokenizer.eos_token_id
        self.end_id: int = tokenizer.sep_token_id if end_id is None else end_id
        # Tokens that begin every answer and are scored with it (BART's <s>), usually none.
        self.answer_prefix: tuple[int, ...] = ()
        self._tries: dict[tuple[str, ...], Trie] = {}
        self.frozen_base: FrozenBase | None = None

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
        if len(targets) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many targets, got {len(targets)}")
        answers = self._answers(targets)
        self.tokens += sum(len(answer) for answer in answers)
        rows = torch.tensor([b for b, answer in enumerate(answers) for _ in answer])
        steps = torch.tensor([t for answer in answers for t in range(len(answer))])
        rows, steps = rows.to(self.device), steps.to(self.device)
        logits = self._answer_logits(prompts, answers, rows, steps, soft_prompt)  # (N, V)
        labels = torch.tensor([token for answer in answers for token in answer])
        # One answer token per row of (N, 1, V): padding has no logits at all.
        each = sequence_log_likelihood(logits[:, None], labels[:, None].to(logits.device))
        # Placed, not added up at random: the order of a sum changes its last bits.
        table = each.new_zeros(len(answers), max(map(len, answers)))
        total = table.index_put((rows, steps), each).sum(dim=1)
        if reduction == "sum":
            return total
        return total / total.new_tensor([len(answer) for answer in answers])

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
        for start, stop in _batches([len(trie.rows) for trie in tries], ROWS_PER_CALL):
            plan = plan_scoring(tries[start:stop])
            self.tokens += sum(map(len, plan.row_tokens))
            soft = None if soft_prompt is None else soft_prompt[start:stop]
            scores += self._shared_scores(prompts[start:stop], plan, soft)
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
        self.tokens += sum(map(len, plan.row_tokens))
        repeated = plan.repeated(self.end_id)
        recomputed = self.training and self.config.gradient_checkpointing
        if not (recomputed and torch.is_grad_enabled() and repeated.prompts):
            return self._shared_scores(prompts, plan, soft_prompt)
        owners = torch.tensor(repeated.prompts)
        logits = self._answer_logits(
            [prompts[b] for b in repeated.prompts],
            repeated.answers,
            torch.tensor(repeated.rows, dtype=torch.long, device=self.device),
            torch.tensor(repeated.steps, dtype=torch.long, device=self.device),
            None if soft_prompt is None else soft_prompt[owners.to(soft_prompt.device)],
        )
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
        continuation.spread(rows.repeat_interleave(copies))
        return continuation

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
            continuation.spread(torch.tensor(plan.row_prompts, device=self.device))
            inner_logits = continuation.read(
                self._padded(plan.row_tokens),
                torch.tensor(plan.inner_rows, device=self.device),
                torch.tensor(plan.inner_columns, device=self.device),
            )
        return plan.scores(root_logits, inner_logits)

    def answer_pieces(self, texts: Sequence[str]) -> list[Piece]:
        """Return the tokens of answers, without `answer_prefix` and end.

        Their offsets are in the text as the model writes it after a prompt, `piece.rendered.text`,
        which may have a space in front.
        """
        return tokenize(self.tokenizer, [Rendered(self._answer_text(text)) for text in texts])

    def recompute_activations(self, wanted: bool) -> None:
        """Compute activations again in the backward pass (gradient checkpointing), or keep them.

        Raises:
            UserError: the model cannot do that.
        """
        model = self.model
        # transformers 5 gave it another name, and warns of the old one.
        new = hasattr(model, "activation_checkpointing_enable")
        if not wanted:
            if new:
                model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
            else:
                model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
            return
        try:
            # The older, reentrant kind has no gradient where the input embeddings have none.
            settings = {"use_reentrant": False}
            if new:
                model.activation_checkpointing_enable(settings)
            else:
                model.gradient_checkpointing_enable(settings)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise UserError(
                f"generator.gradient_checkpointing: {type(self.model).__name__} cannot recompute "
                f"its activations ({error}); legal: false"
            ) from error

    @contextmanager
    def activations_kept(self) -> Iterator[None]:
        """Do without gradient checkpointing: it has no caches of keys and values."""
        if not (self.config.gradient_checkpointing and self.training):
            yield
            return
        self.recompute_activations(False)
        try:
            yield
        finally:
            self.recompute_activations(True)

    def get_extra_state(self) -> Tensor:
        """What belongs to the weights: a tiny model's tokeniser, or which model has adapters."""
        if self.frozen_base is None:
            return super().get_extra_state()
        return torch.tensor(list(self.frozen_base.fingerprint.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the tokeniser of a tiny model from a checkpoint.

        Raises:
            UserError: adapters of another model.
        """
        if self.frozen_base is not None and state.numel():
            self.frozen_base.check(bytes(state.tolist()).decode(), self.config)
        elif self.config.source == "tiny":
            super().set_extra_state(state)
        self._tries.clear()  # made of the former tokeniser's tokens

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
    def _read(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> Continuation:
        """Read B prompts: a continuation with one row for each."""

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return rows of tokens padded on the right (B, T)."""
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        padded = pad_sequence(tensors, batch_first=True, padding_value=self.pad_id)
        return padded.to(self.device)

    def _answer_text(self, answer: str) -> str:
        """Return an answer as the model writes it after its prompt."""
        return answer

    def _fit(
        self, prompts: Sequence[Prompt], limit: int, separator: int, split: bool
    ) -> list[list[Fitted]]:
        """Tokenise prompts and cut them to a limit.

        Args:
            prompts: B prompts.
            limit: tokens of one input without the special tokens around it.
            separator: further tokens that each passage costs.
            split: one input for each passage, instead of one for the prompt.

        Returns:
            per prompt its inputs.
        """
        texts = [text for prompt in prompts for text in (prompt.query, *prompt.passages)]
        pieces = iter(tokenize(self.tokenizer, texts))
        fitted = []
        for prompt in prompts:
            query = next(pieces)
            passages = [next(pieces) for _ in prompt.passages]
            groups = [[passage] for passage in passages] if split and passages else [passages]
            inputs = [
                fit(
                    query,
                    group,
                    limit,
                    separator=separator,
                    passage_limit=self.config.max_passage_length,
                )
                for group in groups
            ]
            self.truncated += sum(one.truncated for one in inputs)
            fitted.append(inputs)
        return fitted

    def _answers(self, targets: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of answers, ended, and cut to the target limit."""
        limit = self.config.max_target_length
        answers = []
        for tokens in self._whole_answers(targets):
            if len(tokens) > limit:
                self.truncated += 1
                tokens = (*tokens[: limit - 1], self.end_id)
            answers.append(tokens)
        return answers

    def _whole_answers(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of answers, ended."""
        return [
            (*self.answer_prefix, *piece.ids, self.end_id) for piece in self.answer_pieces(texts)
        ]

    def _trie(self, options: tuple[str, ...]) -> Trie:
        """Return the trie of a list of allowed answers, built once for equal lists."""
        if options in self._tries:
            return self._tries[options]
        if len(set(options)) < len(options):
            twice = sorted({option for option in options if options.count(option) > 1})
            raise ValueError(f"allowed answers must differ, got more than once: {twice}")
        answers = self._whole_answers(options)
        longest = max(map(len, answers), default=0)
        if longest > self.config.max_target_length:
            raise UserError(
                f"max_target_length must be at least {longest} for the allowed answers, "
                f"got {self.config.max_target_length}"
            )
        if len(self._tries) >= TRIES_KEPT:
            self._tries.clear()
        if len(set(answers)) < len(answers):
            same = [
                option for option, a in zip(options, answers, strict=True) if answers.count(a) > 1
            ]
            raise UserError(f"allowed answers are the same tokens to this tokeniser: {same[:6]}")
        self._tries[options] = build_trie(answers)
        return self._tries[options]

    def _check_batch(self, prompts: Sequence[Prompt], soft_prompt: Tensor | None) -> None:
        """Refuse an empty batch and soft prompts that do not fit it."""
        if not prompts:
            raise ValueError("at least one prompt is needed, got none")
        if soft_prompt is not None and (
            soft_prompt.dim() != 3
            or soft_prompt.shape[0] != len(prompts)
            or soft_prompt.shape[2] != self.hidden_size
        ):
            raise ValueError(
                f"soft_prompt must be (B={len(prompts)}, P, D={self.hidden_size}), "
                f"got {tuple(soft_prompt.shape)}"
            )

    def _decode(self, sequences: Tensor) -> list[str]:
        """Return generated tokens as text."""
        texts: list[str] = self.tokenizer.batch_decode(
            sequences, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.strip() for text in texts]


def _batches(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) whose sizes add up to at most `limit`, or of one element."""
    start = total = 0
    for stop, size in enumerate(sizes):
        if total + size > limit and stop > start:
            yield start, stop
            start, total = stop, 0
        total += size
    yield start, len(sizes)
