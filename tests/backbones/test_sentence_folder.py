"""Folders of sentence-transformers as the source of an encoder; test_export_encoders.py has the
library read what is written here."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.backbones.sentence_folder import read_folder, write_folder
from lightning_rag.errors import UserError

TINY = TinyConfig(vocab_size=400, hidden_size=32, heads=2)
E5 = {"query_prefix": "query: ", "passage_prefix": "passage: "}


def read(folder: Path, **settings) -> EncoderConfig:
    return read_folder(str(folder), EncoderConfig(source=str(folder), **settings))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, EncoderConfig(**E5), 32)
    config = read(tmp_path)
    assert (config.query_prefix, config.passage_prefix) == ("query: ", "passage: ")
    config = read(tmp_path, query_prefix="q ")
    assert (config.query_prefix, config.passage_prefix) == ("q ", "passage: ")


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": "q: ", "passage": "p: "}, ("q: ", "p: ")),
        ({"query": "q: ", "document": "", "corpus": "c: "}, ("q: ", "c: ")),
        ({"document": "d: ", "passage": "p: "}, ("", "d: ")),
        ({"query": None}, ("", "")),
        ({}, ("", "")),
        (None, ("", "")),
    ],
)
def test_prompts_under_other_names(tmp_path: Path, prompts, expected) -> None:
    write_folder(tmp_path, EncoderConfig(), 32)
    file = tmp_path / "config_sentence_transformers.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "prompts": prompts}))
    config = read(tmp_path)
    assert (config.query_prefix, config.passage_prefix) == expected
    file.unlink()
    assert read(tmp_path) == EncoderConfig(source=str(tmp_path))


@pytest.mark.parametrize(
    "form",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode": "cls"},  # since release 6
    ],
)
def test_another_pooling_is_said(tmp_path: Path, caplog, form) -> None:
    write_folder(tmp_path, EncoderConfig(pooling="first"), 32)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(form))
    with caplog.at_level(logging.WARNING):
        read(tmp_path, pooling="first")
        assert not caplog.records
        assert read(tmp_path).pooling == "mean"
    assert "was trained with the first token, and pooling is 'mean'" in caplog.text
    caplog.clear()
    write_folder(tmp_path / "mean", EncoderConfig(normalize=False), 32)
    with caplog.at_level(logging.WARNING):
        read(tmp_path / "mean")
        assert not caplog.records
        read(tmp_path / "mean", pooling="first")
    assert "was trained with the mean, and pooling is 'first'" in caplog.text


def test_other_folders_and_ids_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q"}}')
    assert read(tmp_path) == EncoderConfig(source=str(tmp_path))
    config = EncoderConfig(source="intfloat/e5-base-v2")
    assert read_folder("intfloat/e5-base-v2", config) == config


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, EncoderConfig(), 32)
    for text, reason in (("{", "is no JSON"), ("[]", "holds no JSON object")):
        (tmp_path / "config_sentence_transformers.json").write_text(text)
        with pytest.raises(UserError, match=rf"config_sentence_transformers.json {reason}"):
            read(tmp_path)


def test_an_encoder_takes_its_folders_prefixes(save_models, tmp_path: Path) -> None:
    save_models(tmp_path, TINY)
    source = tmp_path / "warm"
    assert build_encoder(EncoderConfig(source=str(source)), []).config.query_prefix == ""
    write_folder(source, EncoderConfig(**E5), 32)
    encoder = build_encoder(EncoderConfig(source=str(source)), [])
    assert encoder.config.query_prefix == "query: "
    assert encoder.config.passage_prefix == "passage: "


def test_minilm_has_no_prefixes(minilm, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = build_encoder(EncoderConfig(source=minilm), [])
    assert encoder.config == EncoderConfig(source=minilm)
    assert not [record for record in caplog.records if record.name.startswith("lightning_rag")]
