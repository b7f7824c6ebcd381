"""What generators read and write, as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_rag.backbones.backbone import Backbone
from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.inputs import input_embeddings, tokenize
from lightning_rag.backbones.trie import Trie, build_trie
from lightning_rag.backbones.truncation import Fitted, Piece, fit
from lightning_rag.errors import UserError
from lightning_rag.types import Prompt, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lightning_rag.backbones.lora import FrozenBase

TRIES_KEPT = 1024  # distinct lists of allowed answers whose tries stay in memory


class PromptedBackbone(Backbone):
    """Prompts and answers as tokens, whatever is then asked of the model.

    Args:
        model: a generator of the transformers library.
        tokenizer: its fast tokeniser.
        config: limits and input modes.

    Attributes:
        hidden_size: D, the width of the input embeddings, and so of soft prompts.
        end_id: the token that ends an answer.
        answer_prefix: tokens that begin every answer and are scored with it, usually none.
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
        self.answer_prefix: tuple[int, ...] = ()  # BART's is <s>
        self._tries: dict[tuple[str, ...], Trie] = {}
        self.frozen_base: FrozenBase | None = None

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

    def _answer_text(self, answer: str) -> str:
        """Return an answer as the model writes it after its prompt."""
        return answer

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return rows of tokens padded on the right (B, T)."""
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        padded = pad_sequence(tensors, batch_first=True, padding_value=self.pad_id)
        return padded.to(self.device)

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
            if prompt.best_last:
                for one in inputs:
                    one.passages.reverse()
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
