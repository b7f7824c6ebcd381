"""The small files that make a model's folder one of the sentence-transformers library.

They are written as its releases 2 to 6 read them, and read from folders of any of these; the
library itself is not needed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.errors import UserError
from lightning_rag.files import Json, write_json

log = logging.getLogger(__name__)

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
POOLING = "1_Pooling"
# What the library's `encode_document` looks for, in its order.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def write_folder(folder: Path, config: EncoderConfig, dimension: int) -> None:
    """Write what turns the folder of a model and its tokeniser into one of sentence-transformers.

    `encode_query` and `encode_document` of the library then put the prefixes on; its `encode` puts
    on none.

    Args:
        folder: holds the model and the tokeniser already.
        config: pooling, limit, normalisation and prefixes.
        dimension: D, the width of the embeddings.
    """
    names = ["Transformer", "Pooling"] + ["Normalize"] * config.normalize
    modules: list[Json] = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    write_json(folder / MODULES, modules)
    if config.normalize:
        (folder / "2_Normalize").mkdir()
    write_json(
        folder / POOLING / "config.json",
        {
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": config.pooling == "first",
            "pooling_mode_mean_tokens": config.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": config.max_length, "do_lower_case": False},
    )
    write_json(
        folder / PROMPTS,
        {
            "model_type": "SentenceTransformer",
            "prompts": {"query": config.query_prefix, "document": config.passage_prefix},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if config.normalize else "dot",
        },
    )


def read_folder(path: str, config: EncoderConfig) -> EncoderConfig:
    """Return a configuration with the prefixes of a sentence-transformers folder.

    A prefix that the configuration has stays. Another pooling than the folder's stays too, with a
    warning in the log.

    Args:
        path: what `config.source` stands for: a folder of any kind, or a Hub id, which is not
            looked up.
        config: what the user asks for.

    Raises:
        UserError: one of the folder's files that cannot be read.
    """
    folder = Path(path)
    if not (folder / MODULES).is_file():
        return config
    pooling = _read(folder / POOLING / "config.json")
    first = pooling.get("pooling_mode_cls_token", pooling.get("pooling_mode") == "cls")
    if pooling and first is not (config.pooling == "first"):
        log.warning(
            "source: the model in %s was trained with %s, and pooling is %r",
            *(folder, "the first token" if first else "the mean", config.pooling),
        )
    prompts = _read(folder / PROMPTS).get("prompts")
    if not isinstance(prompts, dict):
        return config
    document = next((prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name)), "")
    return dataclasses.replace(
        config,
        query_prefix=config.query_prefix or prompts.get("query") or "",
        passage_prefix=config.passage_prefix or document,
    )


def _read(file: Path) -> dict[str, object]:
    """Return the object in a JSON file; an empty one where there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"source: {file} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"source: {file} holds no JSON object")
    return content
