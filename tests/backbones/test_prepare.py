"""Extra tokens and frozen positions, of tiny models and of folders."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, BertModel, LlamaConfig, LlamaModel

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.backbones.cross_encoder import build_cross_encoder
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.errors import UserError
from lightning_rag.types import Rendered

TINY = TinyConfig(vocab_size=400, hidden_size=32, heads=2)
TAGS = ["<Keyword>", "</Keyword>"]
TEXT = "alba <Keyword> borks </Keyword> cimo"
BUILD = {"encoder": build_encoder, "cross-encoder": build_cross_encoder}


def tokens(built, text=TEXT):
    return built.tokenizer.convert_ids_to_tokens(
        built.tokenizer(text, add_special_tokens=False)["input_ids"]
    )


def rows(built):
    return built.model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", BUILD)
def test_a_tiny_model_keeps_extra_tokens_whole(kind, corpus):
    torch.manual_seed(0)
    plain = BUILD[kind](EncoderConfig(tiny=TINY), corpus)
    torch.manual_seed(0)
    built = BUILD[kind](EncoderConfig(tiny=TINY, extra_tokens=TAGS), corpus)
    assert [token for token in tokens(built) if token in TAGS] == TAGS
    assert not set(TAGS) & set(tokens(plain))
    assert built.tokenizer.decode(built.tokenizer(TEXT)["input_ids"]).count("Keyword") == 2
    assert not set(TAGS) & set(built.tokenizer.all_special_tokens)  # ordinary tokens
    # The rest of the model is the one without them.
    assert torch.equal(rows(built)[:400], rows(plain))
    first, second = rows(built)[built.tokenizer.convert_tokens_to_ids(TAGS)]
    assert not torch.allclose(first, second, atol=1e-2)
    assert len(rows(built)) == built.model.config.vocab_size == 402


def test_a_checkpoint_fits_whatever_the_corpus(corpus, tmp_path):
    """The number of rows follows from the configuration, and the ids from the checkpoint."""
    config = EncoderConfig(tiny=TINY, extra_tokens=TAGS)
    torch.manual_seed(0)
    built = build_encoder(config, corpus).eval()
    torch.save(built.state_dict(), tmp_path / "weights.pt")
    other = build_encoder(config, ["x"]).eval()
    assert len(other.tokenizer) < len(built.tokenizer)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert tokens(other) == tokens(built)
    with torch.no_grad():
        assert torch.equal(other([Rendered(TEXT)]), built([Rendered(TEXT)]))
    assert other.fingerprint() == built.fingerprint()


@pytest.mark.parametrize("kind", BUILD)
def test_a_folder_gets_rows_for_new_tokens_alone(kind, save_models, tmp_path):
    save_models(tmp_path, TINY)
    source = str(tmp_path / "warm")
    torch.manual_seed(1)
    plain = build_encoder(EncoderConfig(source=source), [])
    known = tokens(plain, "the fox")[0]
    config = EncoderConfig(source=source, extra_tokens=[known, *TAGS])
    built = BUILD[kind](config, [])
    assert torch.equal(rows(built)[:400], rows(plain)[:400])
    assert len(rows(built)) == max(400, len(plain.tokenizer) + 2)
    assert [token for token in tokens(built) if token in TAGS] == TAGS

    built.model.save_pretrained(tmp_path / "again")
    built.tokenizer.save_pretrained(tmp_path / "again")
    for extra in (TAGS, []):  # they are in the folder by now
        config = EncoderConfig(source=str(tmp_path / "again"), extra_tokens=extra)
        again = BUILD[kind](config, [])
        assert torch.equal(rows(again), rows(built))
        assert tokens(again) == tokens(built)


def test_minilm_keeps_tags_whole_although_it_lowers_the_case(minilm):
    plain = build_encoder(EncoderConfig(source=minilm), [])
    built = build_encoder(EncoderConfig(source=minilm, extra_tokens=TAGS), [])
    assert tokens(built, "Alba <Keyword> Borks </Keyword>.").count("<Keyword>") == 1
    assert [token for token in tokens(built) if token in TAGS] == TAGS
    assert len(rows(built)) == len(rows(plain)) + 2
    assert torch.equal(rows(built)[:-2], rows(plain))


@pytest.mark.parametrize("kind", BUILD)
def test_frozen_positions_get_no_gradient(kind, corpus):
    built = BUILD[kind](EncoderConfig(tiny=TINY, freeze_positions=True), corpus)
    frozen = {name for name, weight in built.named_parameters() if not weight.requires_grad}
    assert {name.split(".")[-2] for name in frozen} == {"position_embeddings"}
    texts = [Rendered("the fox"), Rendered("the dog")]
    out = built(texts) if isinstance(built, Encoder) else built(texts, texts[::-1])
    out.square().sum().backward()
    assert {name for name, weight in built.named_parameters() if weight.grad is None} == frozen


def test_no_positions_to_freeze(corpus, tmp_path):
    """Rotary positions are not learned."""
    tokenizer = build_encoder(EncoderConfig(tiny=TINY), corpus).tokenizer
    LlamaModel(
        LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
        )
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = EncoderConfig(source=str(tmp_path), freeze_positions=True)
    with pytest.raises(UserError, match=r"freeze_positions is true, and .* legal: false"):
        build_encoder(config, [])


def test_saved_folders_are_plain(corpus, tmp_path):
    """Other tools load the resized model and its tokeniser with no help."""
    torch.manual_seed(0)
    built = build_encoder(EncoderConfig(tiny=TINY, extra_tokens=TAGS), corpus).eval()
    built.model.save_pretrained(tmp_path)
    built.tokenizer.save_pretrained(tmp_path)
    model = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path)(TEXT, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
        got = built([Rendered(TEXT)])[0]
    mean = states.mean(dim=0)
    torch.testing.assert_close(got, mean / mean.norm(), atol=1e-6, rtol=1e-5)
