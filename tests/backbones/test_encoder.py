import dataclasses

import pytest
import torch

from lightning_rag.backbones.backbone import Backbone
from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.backbones.inputs import CPU_GROUP
from lightning_rag.errors import UserError
from lightning_rag.types import Rendered

TINY = TinyConfig(vocab_size=400, hidden_size=32, heads=2)


@pytest.fixture
def encoder(corpus):
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(tiny=TINY, normalize=False, max_length=32), corpus).eval()


def states(encoder, text):
    """(L, D): the hidden states of one text and its tokens' characters, by a plain call."""
    encoded = encoder.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    return encoder.model(**encoded).last_hidden_state[0], offsets


@torch.no_grad()
def test_mean_pooling_ignores_padding(encoder):
    texts = ["the fox", "alba borks cimo and delo borks fenu", "dog"]
    got = encoder([Rendered(text) for text in texts])
    expected = torch.stack([states(encoder, text)[0].mean(dim=0) for text in texts])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert encoder.dimension == 32


@torch.no_grad()
def test_first_token_and_unit_length(encoder):
    encoder.config.pooling = "first"
    encoder.config.normalize = True
    got = encoder([Rendered("the fox")])[0]
    expected = states(encoder, "the fox")[0][0]
    torch.testing.assert_close(got, expected / expected.norm(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_spans_are_found_by_characters(encoder):
    # "borks" comes twice: the characters say which of them is meant.
    text = "[e1] alba [/e1] borks cimo and delo borks fenu"
    spans = {"head": (5, 9), "tail": (36, 41), "verb": (16, 21)}
    hidden, offsets = states(encoder, text)
    got = encoder.spans([Rendered("the fox", {"head": (4, 7), "tail": (0, 3)})] * 2, ["head"])
    assert got.shape == (2, 1, 32)
    got = encoder.spans([Rendered(text, spans)], ["head", "tail", "verb"])[0]
    for vector, (start, end) in zip(got, spans.values(), strict=True):
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        assert all(
            text[a:b].strip() in text[start:end] for a, b in map(offsets.__getitem__, inside)
        )
        torch.testing.assert_close(vector, hidden[inside].mean(dim=0), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got[1], got[2])


@torch.no_grad()
def test_spans_survive_truncation(encoder):
    encoder.config.max_length = 10
    text = "the quick brown fox jumps over the lazy dog " * 3 + "alba"
    end = len(text)
    vector = encoder.spans([Rendered(text, {"head": (end - 4, end)})], ["head"])[0, 0]
    assert encoder.truncated == 1
    assert encoder.tokens == 10
    assert torch.isfinite(vector).all()
    with pytest.raises(UserError, match=r"need \d+ tokens, the limit leaves 8"):
        encoder([Rendered(text, {"head": (0, end)})])


def test_bad_spans(encoder):
    with pytest.raises(ValueError, match=r"no span 'tail', only \['head'\]"):
        encoder.spans([Rendered("the fox", {"head": (4, 7)})], ["tail"])
    with pytest.raises(UserError, match=r"'head' at \(3, 3\) of a text has no tokens"):
        encoder.spans([Rendered("the fox", {"head": (3, 3)})], ["head"])
    with pytest.raises(ValueError, match="at least one text"):
        encoder([])


def test_encode_keeps_the_order_and_the_mode(corpus):
    torch.manual_seed(0)
    tiny = TinyConfig(vocab_size=400, hidden_size=32, heads=2, dropout=0.3)
    encoder = build_encoder(EncoderConfig(tiny=tiny), corpus).train()
    texts = [Rendered("dog " * (1 + i * 7 % 5)) for i in range(11)]
    before = torch.get_rng_state()
    got = encoder.encode(texts, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.training
    assert not got.requires_grad
    encoder.eval()
    expected = torch.cat([encoder([text]) for text in texts])
    torch.testing.assert_close(got, expected.detach(), atol=1e-5, rtol=1e-5)
    assert encoder.encode([], batch_size=4).shape == (0, 32)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        encoder.encode(texts, batch_size=0)


def test_gradient_reaches_every_weight(encoder):
    texts = [Rendered("alba borks cimo", {"head": (0, 4)})]
    (encoder(texts).sum() + encoder.spans(texts, ["head"]).pow(2).sum()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_fingerprint_follows_weights_configuration_and_tokenizer(encoder, corpus):
    first = encoder.fingerprint()
    assert encoder.fingerprint() == first
    encoder.config.max_length = 31
    assert encoder.fingerprint() != first
    encoder.config.max_length = 32
    with torch.no_grad():
        next(encoder.parameters())[7, 3] += 1e-3
    assert encoder.fingerprint() != first
    torch.manual_seed(0)
    config = EncoderConfig(tiny=TINY, normalize=False, max_length=32)
    assert build_encoder(config, corpus).fingerprint() == first
    torch.manual_seed(0)
    assert build_encoder(config, ["another corpus"]).fingerprint() != first


def test_a_checkpoint_brings_the_tokenizer_of_a_tiny_model(encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "weights.pt")
    other = build_encoder(encoder.config, ["another corpus, with other words"]).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.fingerprint() == encoder.fingerprint()
    text = [Rendered("alba borks cimo")]
    assert torch.equal(other(text), encoder(text))


E5 = {"query_prefix": "query: ", "passage_prefix": "passage: "}


@torch.no_grad()
def test_a_role_puts_its_prefix_before_the_text(encoder):
    encoder.config = dataclasses.replace(encoder.config, **E5)
    texts = [Rendered("the fox"), Rendered("alba borks cimo")]
    for role, prefix in (("query", "query: "), ("passage", "passage: "), ("none", "")):
        expected = torch.stack([states(encoder, prefix + t.text)[0].mean(dim=0) for t in texts])
        got = encoder(texts, role)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder.encode(texts, 1, role=role), got, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder(texts), encoder(texts, "none"))
    assert encoder.config.query_prefix == "query: "


@torch.no_grad()
def test_spans_move_with_the_prefix(encoder):
    encoder.config = dataclasses.replace(encoder.config, **E5)
    text = Rendered("the quick fox", {"verb": (4, 9)})
    hidden, offsets = states(encoder, "passage: the quick fox")
    inside = [i for i, (a, b) in enumerate(offsets) if a < 18 and b > 13]
    got = encoder.spans([text], ["verb"], "passage")
    torch.testing.assert_close(got[0, 0], hidden[inside].mean(dim=0), atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.encode([text], 1, ["verb"], "passage"), got)
    assert not torch.allclose(encoder.spans([text], ["verb"]), got)
    assert text.spans == {"verb": (4, 9)}


@torch.no_grad()
@pytest.mark.parametrize("spans", [{}, {"head": (len("the lazy dog " * 3), -1)}])
def test_a_prefix_survives_truncation(encoder, spans):
    encoder.config = dataclasses.replace(encoder.config, **E5, max_length=12)
    text = "the lazy dog " * 3 + "alba"
    marked = Rendered(text, {name: (start, len(text)) for name, (start, _) in spans.items()})
    seen = []

    def note(module, args, kwargs):
        seen.append(encoder.tokenizer.decode(kwargs["input_ids"][0], skip_special_tokens=True))

    encoder.model.register_forward_pre_hook(note, with_kwargs=True)
    encoder([marked], "query")
    assert encoder.truncated == 1
    assert seen[0].strip().startswith("query:")
    assert ("alba" in seen[0]) == bool(spans)
    encoder.config.max_length = 5
    if spans:
        with pytest.raises(UserError, match=r"need \d+ tokens, the limit leaves 3"):
            encoder.check([marked], [], "query")


def gradients(encoder, chunk, embed):
    """Gradients of a loss that depends on all vectors, the vectors, and the bytes kept for it."""
    encoder.config = dataclasses.replace(encoder.config, encode_chunk=chunk)
    encoder.zero_grad()
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = embed(encoder)
    loss = torch.logsumexp(3 * vectors.flatten(1) @ vectors.flatten(1).T, dim=1).sum()
    loss.backward()
    return {n: p.grad.clone() for n, p in encoder.named_parameters()}, vectors.detach(), kept


TEXTS = [
    Rendered("dog " * (1 + i * 7 % 5) + "alba", {"head": (0, 3), "tail": (4, 7)}) for i in range(19)
]
WAYS = {
    "texts": lambda encoder: encoder(TEXTS),
    "spans": lambda encoder: encoder.spans(TEXTS, ["tail", "head"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("chunk", "dropout"), [(1, 0.0), (5, 0.0), (CPU_GROUP, 0.3), (2 * CPU_GROUP, 0.3), (50, 0.3)]
)
def test_gradients_in_chunks_are_those_of_the_whole_batch(corpus, way, chunk, dropout):
    """Dropout too: the second forward pass of a chunk has the masks of the first."""
    torch.manual_seed(0)
    tiny = TinyConfig(vocab_size=400, hidden_size=32, heads=2, dropout=dropout)
    encoder = build_encoder(EncoderConfig(tiny=tiny), corpus).train()
    expected, vectors, whole = gradients(encoder, None, WAYS[way])
    tokens = encoder.tokens
    got, same, kept = gradients(encoder, chunk, WAYS[way])
    assert encoder.tokens == 2 * tokens
    torch.testing.assert_close(same, vectors, atol=1e-6, rtol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
        assert gradient.abs().max() > 0 or "key.bias" in name
    if chunk < len(TEXTS):  # only the vectors are kept, and what gathers them
        assert kept < whole / 50
    else:
        assert kept == whole


@torch.no_grad()
def test_without_gradient_there_are_no_chunks(encoder):
    expected = encoder(TEXTS)
    calls = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    encoder.config = dataclasses.replace(encoder.config, encode_chunk=1)
    assert torch.equal(encoder(TEXTS), expected)
    assert len(calls) == -(-len(TEXTS) // CPU_GROUP)


def test_fingerprint_knows_what_outputs_depend_on(corpus):
    """New settings leave the fingerprints of old runs as they are, and their caches valid."""
    built = {}
    changes = {
        "default": {},
        "chunk": {"encode_chunk": 4},
        "frozen": {"freeze_positions": True},
        "query": {"query_prefix": "query: "},
        "passage": {"passage_prefix": "query: "},
        "types": {"token_types": False},
        "tokens": {"extra_tokens": ["<K>"]},
    }
    for name, change in changes.items():
        torch.manual_seed(0)
        encoder: Backbone = build_encoder(EncoderConfig(tiny=TINY, **change), corpus)
        built[name] = encoder.fingerprint()
    assert built["chunk"] == built["frozen"] == built["default"]
    assert len(set(built.values())) == 5
    old = ("source", "pooling", "max_length", "normalize", "tiny", "trust_remote_code", "dtype")
    assert tuple(EncoderConfig().identity()) == old


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encode_chunk": 0}, "encode_chunk is 0; legal: 1 or more, or null"),
        ({"extra_tokens": ["<K>", "<K>"]}, "extra_tokens is .* legal: words that are not empty"),
        ({"extra_tokens": [" "]}, "extra_tokens is .* legal: words that are not empty"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(UserError, match=message):
        EncoderConfig(**settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncoderConfig(pooling="max"), "pooling must be 'mean' or 'first', got 'max'"),
        (EncoderConfig(max_length=2), "max_length must be 3 to 1024 for this model, got 2"),
        (EncoderConfig(max_length=2000), "max_length must be 3 to 1024 for this model, got 2000"),
    ],
)
def test_bad_configuration(config, message, corpus):
    with pytest.raises(UserError, match=message):
        build_encoder(config, corpus)


@torch.no_grad()
def test_minilm(minilm):
    encoder = build_encoder(EncoderConfig(source=minilm), iter(())).eval()
    assert encoder.dimension == 384
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell."]
    vectors = encoder([Rendered(text) for text in texts])
    similarity = vectors @ vectors.T
    assert similarity.diag().tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
    assert not any("pooler" in name for name, _ in encoder.named_parameters())
    assert encoder.state_dict()["_extra_state"].numel() == 0
