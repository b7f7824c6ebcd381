"""4-bit weights under a generator's adapters, by the bitsandbytes library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_rag.backbones.config import GeneratorConfig, QuantizationConfig
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def check_quantization(config: GeneratorConfig) -> None:
    """Refuse 4-bit weights where nothing could learn, or where there is nothing to read.

    Raises:
        UserError: naming the setting, what came and what is legal.
    """
    kind = config.quantization.type
    if kind not in ("none", "nf4", "fp4"):
        raise UserError(f"generator.quantization.type is {kind!r}; legal: none, nf4, fp4")
    if kind == "none":
        return
    if config.lora.rank == 0:
        raise UserError(
            f"generator.quantization.type is {kind!r}, and 4-bit weights cannot learn; legal: "
            "generator.lora.rank above 0, or quantization.type none"
        )
    if config.source == "tiny":
        raise UserError(
            f"generator.quantization.type is {kind!r}, and generator.source is 'tiny', a model "
            "from scratch; legal: a pretrained source, or quantization.type none"
        )


def reading_settings(config: QuantizationConfig) -> BitsAndBytesConfig | None:
    """Return how the transformers library is to quantise weights; None = not at all.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if config.type == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"generator.quantization.type is {config.type!r}, which needs the package "
            f"bitsandbytes: pip install 'lightning_rag[qlora]' ({error})"
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=config.type,
        bnb_4bit_use_double_quant=config.double,
        bnb_4bit_compute_dtype=compute_dtype(config),
    )


def compute_dtype(config: QuantizationConfig) -> torch.dtype:
    """Return the precision of products with quantised weights."""
    if config.compute == "auto":
        modern = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if modern else torch.float32
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return kinds[config.compute]


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether a model has quantised weights: by configuration, or as its source has them."""
    return bool(getattr(model, "is_quantized", False))


def prepare_for_training(model: PreTrainedModel) -> None:
    """Freeze a quantised model, in place, with float32 for all weights that are not quantised."""
    import peft

    peft.prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
        model, use_gradient_checkpointing=False
    )
    for module in model.modules():
        # In evaluation bitsandbytes 0.50 repacks weights for CPUs with AVX-512 BF16 and computes in
        # bfloat16. It goes on so in training, where these products then have no gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def dequantize(model: PreTrainedModel) -> None:
    """Replace 4-bit weights, in place, by the values they stand for, in the model's `dtype`."""
    dtype = model.config.dtype
    # transformers 4 deletes this, which the configuration of a part of a model does not have.
    model.config._pre_quantization_dtype = dtype
    model.dequantize()  # type: ignore[no-untyped-call]
    vars(model.config).pop("_pre_quantization_dtype", None)
    model.to(dtype)  # type: ignore[arg-type]
