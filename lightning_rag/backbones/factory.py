"""Generators from their configuration."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.decoder_only import DecoderOnlyGenerator
from lightning_rag.backbones.generator import Generator
from lightning_rag.backbones.lora import add_adapters
from lightning_rag.backbones.quantization import check_quantization, is_quantized
from lightning_rag.backbones.sequence_to_sequence import SequenceToSequenceGenerator
from lightning_rag.backbones.sources import load_model, load_tokenizer
from lightning_rag.backbones.tiny import tiny_decoder, tiny_sequence_to_sequence, train_tokenizer
from lightning_rag.backbones.warm_start import add_decoder
from lightning_rag.errors import UserError


def build_generator(config: GeneratorConfig, corpus: Iterable[str]) -> Generator:
    """Build a generator.

    Args:
        config: what it is made of.
        corpus: texts for the tokeniser of a tiny model; not read for other sources.

    Raises:
        UserError: a source that cannot be had, or a setting that is not legal.
    """
    check_quantization(config)
    generator = _whole(config, corpus)
    if config.lora.rank:
        add_adapters(generator)
    elif is_quantized(generator.model):
        raise UserError(
            f"generator.source {config.source!r} has quantised weights, which cannot learn; "
            "legal with it: generator.lora.rank above 0"
        )
    if config.gradient_checkpointing:
        generator.recompute_activations(True)
    return generator


def _whole(config: GeneratorConfig, corpus: Iterable[str]) -> Generator:
    """Return the generator without adapters."""
    if config.architecture not in ("encoder-decoder", "decoder-only"):
        raise UserError(
            f"architecture must be 'encoder-decoder' or 'decoder-only', got {config.architecture!r}"
        )
    decoder_only = config.architecture == "decoder-only"
    if config.decoder_layers is not None and (decoder_only or config.source == "tiny"):
        raise UserError(
            "decoder_layers puts a decoder onto an encoder checkpoint; "
            f"it must be null for source {config.source!r}, architecture {config.architecture!r}"
        )
    if config.source == "tiny":
        tiny = train_tokenizer(config.tiny, corpus)
        if decoder_only:
            return DecoderOnlyGenerator(tiny_decoder(config.tiny, tiny), tiny, config)
        return SequenceToSequenceGenerator(
            tiny_sequence_to_sequence(config.tiny, tiny), tiny, config
        )
    tokenizer = load_tokenizer(config.source, trust_remote_code=config.trust_remote_code)
    model = load_model(
        config.source,
        "encoder" if config.decoder_layers is not None else config.architecture,
        trust_remote_code=config.trust_remote_code,
        dtype=config.dtype,
        quantization=config.quantization,
    )
    if config.decoder_layers is not None:
        model = add_decoder(model, tokenizer, config.decoder_layers)
    if decoder_only:
        return DecoderOnlyGenerator(model, tokenizer, config)
    return SequenceToSequenceGenerator(model, tokenizer, config)
