"""A generator made of an encoder checkpoint and a fresh decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_rag.backbones.inputs import input_embeddings
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_decoder(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: int
) -> PreTrainedModel:
    """Put a fresh BERT-style decoder with cross-attention onto an encoder.

    Its word embeddings, and the output layer tied to them, start as a copy of the encoder's:
    fresh ones would have to learn the vocabulary from the few targets (Rothe et al. 2020,
    "Leveraging Pre-trained Checkpoints", warm-start both sides for the same reason). The rest is
    drawn from torch's global random generator, and in the encoder's precision. Parameters begin
    with "encoder." or "decoder.".

    Args:
        encoder: a pretrained encoder.
        tokenizer: its tokeniser.
        layers: layers of the decoder.

    Raises:
        UserError: fewer than one layer, or a tokeniser without tokens to start and end with.
    """
    from transformers import BertConfig, BertLMHeadModel, EncoderDecoderModel

    if layers < 1:
        raise UserError(f"decoder_layers must be at least 1, got {layers}")
    start = _first(tokenizer.cls_token_id, tokenizer.bos_token_id)
    end = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    if start is None or end is None:
        raise UserError("decoder_layers: the encoder's tokeniser has no start or no end token")
    shape = encoder.config
    embeddings = input_embeddings(encoder).weight
    config = BertConfig(
        vocab_size=embeddings.shape[0],
        hidden_size=shape.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=512,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=start,
        eos_token_id=end,
        is_decoder=True,
        add_cross_attention=True,
    )
    decoder = BertLMHeadModel(config)
    with torch.no_grad():
        input_embeddings(decoder).weight.copy_(embeddings)
    decoder.to(embeddings.dtype)  # type: ignore[arg-type]  # what it attends to is in that precision
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = start
        settings.pad_token_id = tokenizer.pad_token_id
        settings.eos_token_id = end
    return model


def _first(*tokens: int | None) -> int | None:
    """Return the first token that there is."""
    return next((token for token in tokens if token is not None), None)
