"""Queries and instances as vectors of their spans."""

from __future__ import annotations

import pytest
import torch

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.errors import UserError
from lightning_rag.retrieval.instances import InstanceRetriever, Projection
from lightning_rag.types import Rendered

TINY = EncoderConfig(tiny=TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1))
SLOTS = ("head", "tail", "label")
QUERIES = [
    Rendered("Ann met Bob in Rome", {"head": (0, 3), "tail": (8, 11)}),
    Rendered("Bob saw Ann", {"head": (0, 3), "tail": (8, 11)}),
]
INSTANCES = [
    Rendered("Ann met Bob [SEP] friend", {"head": (0, 3), "tail": (8, 11), "label": (18, 24)}),
    Rendered("Al is Bo's [SEP] boss", {"head": (0, 2), "tail": (6, 8), "label": (17, 21)}),
    Rendered("Cy [SEP] no", {"head": (0, 1), "tail": (1, 2), "label": (9, 11)}),
]


def make(vectors="spans", query_label="separator", slots=SLOTS, encoder=TINY) -> InstanceRetriever:
    torch.manual_seed(0)
    corpus = [text.text for text in QUERIES + INSTANCES]
    return InstanceRetriever(encoder, slots, vectors, query_label, corpus).eval()


def test_a_query_has_the_closing_token_in_the_slot_of_the_label() -> None:
    retriever = make()
    vectors = retriever.queries(QUERIES)
    assert vectors.shape == (2, 3, 16)
    tokenizer = retriever.encoder.tokenizer
    for text, found in zip(QUERIES, vectors, strict=True):
        encoded = tokenizer(text.text, return_tensors="pt")
        states = retriever.encoder.model(**encoded).last_hidden_state[0]  # (L, D)
        torch.testing.assert_close(found[2], states[-1])
        assert encoded["input_ids"][0, -1] == tokenizer.sep_token_id


def test_instances_and_their_encoding_without_gradient_agree() -> None:
    retriever = make()
    vectors = retriever.instances(INSTANCES)
    assert vectors.requires_grad
    stored = retriever.encode(INSTANCES, batch_size=2)
    assert not stored.requires_grad
    torch.testing.assert_close(stored, vectors.detach())


@pytest.mark.parametrize(("vectors", "pooling"), [("mean", "mean"), ("first", "first")])
def test_one_vector_a_text(vectors: str, pooling: str) -> None:
    retriever = make(vectors)
    assert retriever.size == 1
    found = retriever.queries(QUERIES)
    assert found.shape == (2, 1, 16)
    states = retriever.encoder.model(
        **retriever.encoder.tokenizer(QUERIES[0].text, return_tensors="pt")
    ).last_hidden_state[0]
    expected = states[0] if pooling == "first" else states.mean(dim=0)
    torch.testing.assert_close(found[0, 0], expected)
    assert retriever.encode(INSTANCES, batch_size=2).shape == (3, 1, 16)


def test_vectors_keep_their_lengths_whatever_the_encoder_normalises() -> None:
    lengths = make().queries(QUERIES).norm(dim=-1)
    assert (lengths - 1).abs().min() > 0.1


def test_a_learned_label_slot_stands_in_its_place() -> None:
    retriever = make(query_label="learned", slots=("label", "head", "tail"))
    vectors = retriever.queries(QUERIES)
    assert torch.equal(vectors[0, 0], retriever.label)
    torch.testing.assert_close(vectors[:, 1:], make().queries(QUERIES)[:, :2])
    with pytest.raises(UserError, match="slots here: none, one vector a text"):
        make(query_label="learned", slots=())


def test_a_tokeniser_that_closes_with_nothing() -> None:
    retriever = make()
    retriever.encoder.layout = type(retriever.encoder.layout)((2,), (), ())
    with pytest.raises(UserError, match=r"legal with it: model\.query_label: learned"):
        retriever.queries(QUERIES)


def test_the_temperature_learns_only_if_asked() -> None:
    for learned in (True, False):
        projection = Projection(16, 8, 0.05, learned)
        assert projection.temperature.item() == pytest.approx(0.05)
        assert projection.log_temperature.requires_grad == learned
        assert projection(torch.randn(2, 6, 16)).shape == (2, 6, 8)
