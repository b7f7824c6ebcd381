import dataclasses

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.backbones.cross_encoder import CrossEncoder, build_cross_encoder
from lightning_rag.backbones.tiny import train_tokenizer
from lightning_rag.errors import UserError
from lightning_rag.types import Rendered

TINY = TinyConfig(vocab_size=400, hidden_size=32, heads=2)
QUERIES = ["the fox", "alba borks cimo", "who borks fenu", "dog", ""]
PASSAGES = ["the quick brown fox jumps over the lazy dog", "delo", "", "fox " * 9, "cause"]


def rendered(texts):
    return [Rendered(text) for text in texts]


def larger(model):
    """Draw weights that make scores differ; a fresh model's are nearly equal."""
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


@pytest.fixture
def cross_encoder(corpus):
    torch.manual_seed(0)
    return larger(build_cross_encoder(EncoderConfig(tiny=TINY, max_length=64), corpus))


def plain_logits(cross_encoder, queries, passages, **options):
    """The library's own way from pairs of texts to logits, one pair at a time."""
    logits = []
    for query, passage in zip(queries, passages, strict=True):
        encoded = cross_encoder.tokenizer([query], [passage], return_tensors="pt", **options)
        logits.append(cross_encoder.model(**encoded).logits[0, 0])
    return torch.stack(logits)


@torch.no_grad()
def test_scores_are_the_librarys_logits(cross_encoder):
    queries, passages = QUERIES * 3, PASSAGES * 2 + PASSAGES[::-1]  # two groups on the CPU
    got = cross_encoder(rendered(queries), rendered(passages))
    expected = plain_logits(cross_encoder, queries, passages)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert got.std() > 0.01  # so the order of the pairs shows
    assert cross_encoder.truncated == 0
    lengths = cross_encoder.tokenizer(queries, passages)["input_ids"]
    assert cross_encoder.tokens == sum(map(len, lengths))


@torch.no_grad()
def test_token_types_tell_query_and_passage_apart(cross_encoder):
    there = cross_encoder(rendered(["the fox"]), rendered(["the dog"]))
    types = cross_encoder.model.bert.embeddings.token_type_embeddings.weight
    types.copy_(types.flip(0))
    assert not torch.allclose(cross_encoder(rendered(["the fox"]), rendered(["the dog"])), there)


@torch.no_grad()
def test_token_types_can_be_left_out(cross_encoder):
    """As RUIE's reward model reads its pairs, which are ELECTRA's without token types."""
    config = dataclasses.replace(cross_encoder.config, token_types=False)
    without = CrossEncoder(cross_encoder.model, cross_encoder.tokenizer, config)
    got = without(rendered(QUERIES), rendered(PASSAGES))
    expected = plain_logits(without, QUERIES, PASSAGES, return_token_type_ids=False)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, cross_encoder(rendered(QUERIES), rendered(PASSAGES)), atol=1e-3)


@torch.no_grad()
def test_a_tokenizer_without_token_types_says_that_the_model_learned_without(
    cross_encoder, tmp_path
):
    cross_encoder.model.save_pretrained(tmp_path)
    tokenizer = cross_encoder.tokenizer
    tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path)
    built = build_cross_encoder(EncoderConfig(source=str(tmp_path), max_length=64), []).eval()
    got = built(rendered(QUERIES), rendered(PASSAGES))
    expected = plain_logits(built, QUERIES, PASSAGES)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


MODELS = {
    # One token type, and a tokeniser that is told of none.
    "roberta": lambda vocab: RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=130,
            type_vocab_size=1,
            num_labels=1,
            pad_token_id=0,
        )
    ),
    # A decoder: its head reads the last token that is no padding.
    "llama": lambda vocab: LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            num_labels=1,
        )
    ),
    "bert": lambda vocab: BertForSequenceClassification(
        BertConfig(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            num_labels=1,
        )
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoints_own_head_is_kept(kind, corpus, tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TINY, corpus)
    if kind != "bert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model = larger(MODELS[kind](TINY.vocab_size))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    built = build_cross_encoder(EncoderConfig(source=str(tmp_path), max_length=64), []).eval()
    weights = model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in built.model.state_dict().items())
    got = built(rendered(QUERIES), rendered(PASSAGES))
    expected = plain_logits(CrossEncoder(model, tokenizer, built.config), QUERIES, PASSAGES)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_missing_head_is_fresh_and_follows_the_seed(save_models, tmp_path):
    save_models(tmp_path, TINY)
    config = EncoderConfig(source=str(tmp_path / "warm"), max_length=64)
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(build_cross_encoder(config, []).model.state_dict())
    first, same, other = built
    assert all(torch.equal(first[name], same[name]) for name in first)
    different = {name for name in first if not torch.equal(first[name], other[name])}
    assert different == {"bert.pooler.dense.weight", "classifier.weight"}


def test_a_head_with_several_labels_is_refused(corpus, tmp_path):
    tokenizer = train_tokenizer(TINY, corpus)
    shape = MODELS["bert"](TINY.vocab_size).config
    shape.num_labels = 3
    BertForSequenceClassification(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = r"source: '.*' has a head with several labels \(classifier.bias, .* one label"
    with pytest.raises(UserError, match=message):
        build_cross_encoder(EncoderConfig(source=str(tmp_path)), [])


def test_a_source_without_weights(corpus, tmp_path):
    train_tokenizer(TINY, corpus).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no cross-encoder can be loaded from .*legal are 'tiny'"):
        build_cross_encoder(EncoderConfig(source=str(tmp_path)), [])


@torch.no_grad()
def test_minilm_without_a_head(minilm):
    torch.manual_seed(0)
    built = build_cross_encoder(EncoderConfig(source=minilm), []).eval()
    got = built(rendered(QUERIES), rendered(PASSAGES))
    expected = plain_logits(built, QUERIES, PASSAGES)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert built.state_dict()["_extra_state"].numel() == 0


@torch.no_grad()
def test_a_long_pair_loses_tokens_of_its_passage(cross_encoder):
    cross_encoder.config.max_length = 12
    got = cross_encoder(rendered(["the fox"]), rendered(["the lazy dog " * 9]))
    expected = plain_logits(
        cross_encoder, ["the fox"], ["the lazy dog " * 9], truncation="only_second", max_length=12
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (cross_encoder.truncated, cross_encoder.tokens) == (1, 12)


@torch.no_grad()
def test_spans_survive_truncation(cross_encoder):
    cross_encoder.config.max_length = 12
    text = "the lazy dog " * 9 + "alba"
    marked = Rendered(text, {"head": (len(text) - 4, len(text))})
    cut = cross_encoder([Rendered("the fox")], [marked])
    assert not torch.allclose(cut, cross_encoder([Rendered("the fox")], [Rendered(text)]))
    # A passage that would have to lose a span is dropped whole, and the query stands alone.
    whole = Rendered(text, {"head": (0, len(text))})
    alone = cross_encoder([Rendered("the fox")], [whole])
    encoded = cross_encoder.tokenizer("the fox", return_tensors="pt")
    expected = cross_encoder.model(**encoded).logits[:, 0]
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"need \d+ tokens, the limit leaves 10"):
        cross_encoder([whole], [Rendered("the fox")])


def test_gradient_reaches_every_weight(cross_encoder):
    cross_encoder(rendered(QUERIES), rendered(PASSAGES)).sum().backward()
    assert [name for name, p in cross_encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("chunk", "dropout"), [(1, 0.0), (5, 0.0), (8, 0.3), (16, 0.3), (50, 0.3)])
def test_gradients_in_chunks_are_those_of_the_whole_batch(corpus, chunk, dropout):
    torch.manual_seed(0)
    tiny = dataclasses.replace(TINY, dropout=dropout)
    cross_encoder = larger(build_cross_encoder(EncoderConfig(tiny=tiny), corpus)).train()
    queries, passages = rendered(QUERIES * 4), rendered(PASSAGES * 2 + PASSAGES[::-1] * 2)
    found = []
    for size in (None, chunk):
        cross_encoder.config = dataclasses.replace(cross_encoder.config, encode_chunk=size)
        cross_encoder.zero_grad()
        torch.manual_seed(7)
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = cross_encoder(queries, passages)
        scores.view(4, 5).logsumexp(dim=1).sum().backward()
        grads = {n: p.grad.clone() for n, p in cross_encoder.named_parameters()}
        found.append((scores.detach(), grads, cross_encoder.tokens, kept))
    (expected, old, tokens, whole), (got, new, both, kept) = found
    assert both == 2 * tokens
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    for name, gradient in old.items():
        torch.testing.assert_close(new[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert (kept < whole / 50) == (chunk < len(queries))


def test_a_tiny_model_learns_which_passage_repeats_the_query(corpus):
    torch.manual_seed(0)
    tiny = TinyConfig(vocab_size=400)
    cross_encoder = build_cross_encoder(EncoderConfig(tiny=tiny), corpus)
    words = ["fox", "dog", "alba", "cimo", "delo", "fenu"]
    pairs = [(a, b) for a in words for b in words]
    queries, passages = (rendered(side) for side in zip(*pairs, strict=True))
    right = torch.arange(6)
    optimizer = torch.optim.AdamW(cross_encoder.parameters(), lr=2e-3)
    for _ in range(30):
        scores = cross_encoder(queries, passages).view(6, 6)
        loss = torch.nn.functional.cross_entropy(scores, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert scores.argmax(dim=1).equal(right)


@pytest.mark.parametrize(("queries", "passages"), [([], []), (["a"], []), (["a"], ["b", "c"])])
def test_bad_pairs(cross_encoder, queries, passages):
    with pytest.raises(ValueError, match=rf"{len(queries)} queries need as many passages"):
        cross_encoder(rendered(queries), rendered(passages))


def test_bad_configuration(corpus):
    with pytest.raises(UserError, match="max_length must be 3 to 1024 for this model, got 2000"):
        build_cross_encoder(EncoderConfig(max_length=2000), corpus)


@torch.no_grad()
def test_a_checkpoint_brings_the_tokenizer_of_a_tiny_model(cross_encoder, tmp_path):
    torch.save(cross_encoder.state_dict(), tmp_path / "weights.pt")
    other = build_cross_encoder(cross_encoder.config, ["another corpus, with other words"]).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.fingerprint() == cross_encoder.fingerprint()
    pair = rendered(["alba borks"]), rendered(["the dog"])
    assert torch.equal(other(*pair), cross_encoder(*pair))
