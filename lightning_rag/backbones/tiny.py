"""Small models from scratch, with a tokeniser trained on the data at hand.

Their random weights come from torch's global random generator: the caller seeds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning_rag.backbones.config import TinyConfig
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerFast

PAD, UNKNOWN, CLS, SEP, BOS, EOS = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]"
SPECIALS = [PAD, UNKNOWN, CLS, SEP, BOS, EOS]
BYTES = 256
MAX_POSITIONS = 1024


def train_tokenizer(config: TinyConfig, corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokeniser; the same corpus gives the same tokeniser.

    Any text survives encoding and decoding, because every byte is a token.

    Raises:
        UserError: a vocabulary too small for the bytes and special tokens, or an empty corpus.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    smallest = BYTES + len(SPECIALS)
    if config.vocab_size < smallest:
        raise UserError(f"tiny.vocab_size must be at least {smallest}, got {config.vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for text in corpus if text.strip()]
    if not texts:
        raise UserError("the tokeniser of a tiny model needs texts to train on, got none")
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap_tokenizer(tokenizer.to_str())


def wrap_tokenizer(serialized: str) -> PreTrainedTokenizerFast:
    """Return the tokeniser of a tiny model from its JSON text."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        bos_token=BOS,
        eos_token=EOS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_encoder(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return a BERT encoder with random weights."""
    from transformers import BertModel

    return BertModel(_bert_config(config, tokenizer), add_pooling_layer=False)


def tiny_cross_encoder(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return a BERT with random weights and one logit over the pooled first token."""
    from transformers import BertForSequenceClassification

    settings = _bert_config(config, tokenizer)
    settings.num_labels = 1
    return BertForSequenceClassification(settings)


def _bert_config(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> BertConfig:
    """Return the shape of a tiny BERT."""
    from transformers import BertConfig

    _check(config)
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_sequence_to_sequence(
    config: TinyConfig, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """Return a T5 with random weights: relative positions, which learn to copy soonest."""
    from transformers import T5Config, T5ForConditionalGeneration

    _check(config)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            d_kv=config.hidden_size // config.heads,
            d_ff=4 * config.hidden_size,
            num_layers=config.layers,
            num_decoder_layers=config.layers,
            num_heads=config.heads,
            dropout_rate=config.dropout,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = tokenizer.cls_token_id
    return model


def tiny_decoder(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return a Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _check(config)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            attention_dropout=config.dropout,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _check(config: TinyConfig) -> None:
    """Refuse sizes that make no model."""
    if config.hidden_size <= 0 or config.hidden_size % config.heads:
        raise UserError(
            f"tiny.hidden_size must be a multiple of tiny.heads, got {config.hidden_size} "
            f"and {config.heads}"
        )
    if config.layers < 1:
        raise UserError(f"tiny.layers must be at least 1, got {config.layers}")
