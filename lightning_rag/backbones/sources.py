"""Where models and tokenisers come from: a folder, the Hub, or an installed package."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_rag.backbones.config import QuantizationConfig
from lightning_rag.backbones.quantization import reading_settings
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["encoder", "encoder-decoder", "decoder-only"]
LEGAL = (
    "legal are 'tiny', a local folder, a Hub id such as 'google/flan-t5-small', "
    "or 'package:<module>/<folder>'"
)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(source: str) -> str:
    """Return the folder or Hub id that a `source` other than "tiny" stands for.

    Raises:
        UserError: a package that is not installed, a folder that is not there, or no legal form.
    """
    if source.startswith("package:"):
        return _packaged(source)
    if Path(source).expanduser().is_dir():
        return str(Path(source).expanduser())
    if source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source):
        raise UserError(f"source: there is no folder {source!r}; {LEGAL}")
    return source


def _packaged(source: str) -> str:
    """Return the folder of "package:<module>/<folder>"."""
    module, _, folder = source.removeprefix("package:").partition("/")
    try:
        root = importlib.resources.files(module)
    except (ImportError, ValueError):
        name = module.replace("_", "-")
        raise UserError(
            f"source: {source!r} needs the package {module!r}, which is not installed: "
            f"pip install {name}, or another source; {LEGAL}"
        ) from None
    path = Path(str(root)) / folder
    if not path.is_dir():
        raise UserError(f"source: the package {module!r} has no folder {folder!r} ({path})")
    return str(path)


def load_tokenizer(source: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the fast tokeniser of a source.

    Raises:
        UserError: it cannot be had, or knows no character offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(source), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(_unavailable("tokeniser", source, error)) from error
    if not tokenizer.is_fast:
        raise UserError(f"source: {source!r} has no fast tokeniser (tokenizer.json)")
    return tokenizer


def load_model(
    source: str,
    kind: Kind,
    *,
    trust_remote_code: bool,
    dtype: Literal["float32", "bfloat16", "float16", "auto"],
    quantization: QuantizationConfig | None = None,
) -> PreTrainedModel:
    """Load the weights of a source; safetensors files only, because pickles run code.

    They are quantised on the CPU, whatever they are used on: so they are the same everywhere.

    Raises:
        UserError: they cannot be had, or are of another kind of model.
    """
    import transformers

    settings: dict[str, BitsAndBytesConfig | dict[str, str]] = {}
    if quantization is not None and (quantized := reading_settings(quantization)) is not None:
        settings = {"quantization_config": quantized, "device_map": {"": "cpu"}}

    loader = {
        "encoder": transformers.AutoModel,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        "decoder-only": transformers.AutoModelForCausalLM,
    }[kind]
    try:
        with _no_progress_bar():
            model: PreTrainedModel = loader.from_pretrained(
                resolve(source),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                **settings,
            )
    except (OSError, ValueError) as error:
        raise UserError(_unavailable(f"{kind} model", source, error)) from error
    _drop_pooler(model)
    return model


def load_cross_encoder(
    source: str,
    *,
    trust_remote_code: bool,
    dtype: Literal["float32", "bfloat16", "float16", "auto"],
) -> PreTrainedModel:
    """Load the weights of a source as a sequence classifier with one label.

    What a checkpoint lacks, such as the head, is drawn from torch's global random generator.

    Raises:
        UserError: they cannot be had, or have a head with several labels.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        with _no_progress_bar():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                resolve(source),
                num_labels=1,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                # Weights of other shapes are reported instead: they get a message of ours below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise UserError(_unavailable("cross-encoder", source, error)) from error
    # transformers 4 reports names, 5 names with the two shapes.
    others = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if others:
        raise UserError(
            f"source: {source!r} has a head with several labels ({', '.join(others)}), and a "
            "cross-encoder has one; legal: a checkpoint with one label, or without a head"
        )
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Read a checkpoint without a progress bar: it would break up the trainer's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _unavailable(what: str, source: str, error: Exception) -> str:
    """Return one line that says why a source gives no `what`."""
    reason = (
        str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    )
    hint = ""
    if what == "encoder-decoder model" and "Unrecognized configuration class" in reason:
        hint = "; for an encoder checkpoint set decoder_layers, for a warm start"
    return f"source: no {what} can be loaded from {source!r} ({reason}){hint}; {LEGAL}"


def _drop_pooler(model: PreTrainedModel) -> None:
    """Remove BERT's pooler: nothing here reads it, and weights without gradient upset training."""
    if "pooler" in dict(model.named_children()):
        model.pooler = None  # type: ignore[assignment]
