"""`score` and `sample`: what they save, and that they give what the plain ways give."""

import itertools
import weakref

import pytest
import torch

from lightning_rag.backbones.continuation import proposal, sample_tokens
from lightning_rag.functional.likelihood import sequence_log_likelihood
from lightning_rag.types import Prompt, Rendered

llama = pytest.mark.parametrize("generator", ["llama"], indirect=True)
fused = pytest.mark.parametrize("generator", ["t5-fuse", "warm-fuse"], indirect=True)
TEXTS = ["the lazy dog", "delo borks fenu : owner", "fox", "of cause", "component of whole cause"]


@pytest.fixture
def lists():
    """24 prompts: ordered lists of three out of five passages, for each of two queries."""
    passages = [Rendered(text) for text in TEXTS]
    chosen = list(itertools.permutations(passages, 3))[::5]
    queries = [Rendered("alba borks cimo"), Rendered("the quick brown fox")]
    return [Prompt(query, passages) for passages in chosen for query in queries]


@pytest.fixture
def answers(lists):
    return [("cause", "component of whole", "owner")[i % 3] for i in range(len(lists))]


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 60, 200, 8192])
def test_score_equals_log_likelihood(generator, lists, answers, budget):
    expected = generator.log_likelihood(lists, answers)
    got = generator.score(lists, answers, token_budget=budget)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    mean = generator.log_likelihood(lists, answers, reduction="mean")
    got = generator.score(lists, answers, reduction="mean", token_budget=budget)
    torch.testing.assert_close(got, mean, atol=1e-4, rtol=1e-5)


@llama
@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 60, 200, 8192])
@pytest.mark.parametrize("saving", [1, 8])
def test_however_prompts_are_cut(generator, lists, answers, budget, saving, monkeypatch):
    monkeypatch.setattr("lightning_rag.backbones.decoder_only.LEAST_SAVING", saving)
    expected = generator.log_likelihood(lists, answers)
    got = generator.score(lists, answers, token_budget=budget)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_several_answers_to_a_prompt(generator, prompts, monkeypatch):
    monkeypatch.setattr("lightning_rag.backbones.decoder_only.LEAST_SAVING", 1)
    texts = ["cause", "cause of", "cause", "owner"]
    pairs = [(prompt, text) for text in texts for prompt in prompts]
    got = generator.score(*zip(*pairs, strict=True))
    expected = generator.log_likelihood(*zip(*pairs, strict=True))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


def tokens_read(generator, run):
    before = generator.tokens
    with torch.no_grad():
        run()
    return generator.tokens - before


def test_equal_pairs_are_computed_once(generator, lists, answers):
    once = tokens_read(generator, lambda: generator.score(lists, answers))
    twice = tokens_read(generator, lambda: generator.score(lists * 2, answers * 2))
    assert once == twice
    scores = generator.score(lists * 2, answers * 2)
    assert torch.equal(scores[: len(lists)], scores[len(lists) :])


@fused
def test_equal_rows_of_the_encoder_are_encoded_once(generator, lists, answers):
    row_lengths = []
    encode = generator._encoder_states

    def counted(rows, soft_prompt):
        row_lengths.extend(row.key for row in rows)
        return encode(rows, soft_prompt)

    generator._encoder_states = counted
    for budget in (1, 8192):
        generator.score(lists, answers, token_budget=budget)
        assert len(row_lengths) == len(set(row_lengths)) == 2 * len(TEXTS)
        row_lengths.clear()
    generator.log_likelihood(lists, answers)
    assert len(row_lengths) == len(set(row_lengths)) == 2 * len(TEXTS)


@fused
def test_gradients_through_rows_encoded_once(generator, lists, answers):
    def gradients(batches):
        generator.zero_grad(set_to_none=True)
        for batch, texts in batches:
            generator.log_likelihood(batch, texts).sum().backward()
        return {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}

    together = gradients([(lists, answers)])
    alone = gradients([([p], [a]) for p, a in zip(lists, answers, strict=True)])
    assert together.keys() == alone.keys()
    for name, gradient in alone.items():
        scale = max(gradient.abs().max().item(), 1.0)
        torch.testing.assert_close(together[name], gradient, atol=1e-4 * scale, rtol=1e-3)


def test_equal_queries_keep_their_soft_prompts(generator, prompts):
    soft = torch.randn(2, 3, generator.hidden_size)
    twice = [prompts[0], prompts[0]]
    with torch.no_grad():
        both = generator.log_likelihood(twice, ["cause"] * 2, soft_prompt=soft)
        one = generator.log_likelihood(twice[:1], ["cause"], soft_prompt=soft[1:])
    assert both[0] != both[1]
    torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=1e-5)


@llama
def test_common_beginnings_are_read_once(generator, lists, answers, monkeypatch):
    monkeypatch.setattr("lightning_rag.backbones.decoder_only.LEAST_SAVING", 1)
    sequences = {
        (*ids, *answer[:-1])
        for ids, answer in zip(generator._rows(lists), generator._answers(answers), strict=True)
    }
    beginnings = {s[:length] for s in sequences for length in range(1, len(s) + 1)}
    assert len(beginnings) < 0.8 * sum(map(len, sequences))
    for budget in (60, 8192):
        read = tokens_read(
            generator, lambda b=budget: generator.score(lists, answers, token_budget=b)
        )
        assert read == len(beginnings)


def test_the_budget_limits_every_call(generator, lists, answers):
    calls = []
    generator.model.register_forward_pre_hook(
        lambda _, args, given: calls.append(given["attention_mask"].shape), with_kwargs=True
    )
    generator.score(lists, answers, token_budget=120)
    assert len(calls) > 2
    assert max(rows * length for rows, length in calls) <= 120


def test_no_gradient_and_no_cache_where_nothing_follows(generator, lists, answers, monkeypatch):
    assert not generator.score(lists, answers).requires_grad
    caches = []
    generator.model.register_forward_pre_hook(
        lambda _, args, given: caches.append(given["past_key_values"]), with_kwargs=True
    )
    monkeypatch.setattr("lightning_rag.backbones.decoder_only.LEAST_SAVING", 10_000)
    generator.score(lists, answers)
    assert caches
    assert all(cache is None for cache in caches)


def test_logits_of_one_call_at_a_time(generator, lists, answers, monkeypatch):
    """Those of the call before are gone, and few are copied for the softmax."""
    monkeypatch.setattr("lightning_rag.backbones.decoder_only.LEAST_SAVING", 8)
    monkeypatch.setattr("lightning_rag.backbones.generator.TOKENS_AT_ONCE", 3)
    alive, copied = [], []

    def forget(module, inputs, logits):
        assert [reference() for reference in alive] == [None] * len(alive)
        alive.append(weakref.ref(logits))

    def counted(logits, labels):
        copied.append(len(logits))
        return sequence_log_likelihood(logits, labels)

    expected = generator.score(lists, answers, token_budget=60)
    generator.model.get_output_embeddings().register_forward_hook(forget)
    monkeypatch.setattr("lightning_rag.backbones.generator.sequence_log_likelihood", counted)
    assert torch.equal(generator.score(lists, answers, token_budget=60), expected)
    assert len(alive) > 4
    assert max(copied) == 3


@pytest.mark.parametrize("generator", ["t5", "warm"], indirect=True)
def test_inputs_that_nothing_shares_go_by_length(generator, prompts):
    """Also where a query's prompts would exceed the budget, and whatever order they come in."""
    passages = [" ".join(["the fox"] * length) for length in (9, 1, 5, 1, 9, 5)]
    lists = [Prompt(p.query, (Rendered(text),)) for text in passages for p in prompts]
    lengths = [
        len(row.ids) + 2 for rows in generator._inputs(lists, 0) for row in rows
    ]  # an answer of one word and its end
    words = ["fox"] * len(lists)
    assert {len(answer) for answer in generator._answers(words)} <= {2, 3}
    shapes = []
    generator.model.get_encoder().register_forward_pre_hook(
        lambda _, args, given: shapes.append(given["attention_mask"].shape), with_kwargs=True
    )
    got = generator.score(lists, words, token_budget=90)
    scored = [*shapes]
    torch.testing.assert_close(got, generator.log_likelihood(lists, words), atol=1e-4, rtol=1e-5)
    assert max(rows * length for rows, length in scored) <= 90
    read = sum(rows * length for rows, length in scored)
    assert read < 1.1 * sum(lengths)  # hardly any padding
    assert [length for _, length in scored] == sorted((n for _, n in scored), reverse=True)


def test_in_training_with_recomputed_activations(generator, lists, answers):
    expected = generator.score(lists, answers)
    generator.config.gradient_checkpointing = True
    generator.recompute_activations(True)
    torch.testing.assert_close(generator.train().score(lists, answers), expected)


def test_bad_scores(generator, prompts, targets):
    with pytest.raises(ValueError, match="3 prompts need as many targets, got 2"):
        generator.score(prompts, targets[:2])
    with pytest.raises(ValueError, match="at least one prompt"):
        generator.score([], [])
    with pytest.raises(ValueError, match="token_budget must be at least 1, got 0"):
        generator.score(prompts, targets, token_budget=0)


@torch.no_grad()
def test_samples_come_from_the_models_distribution(generator, prompts):
    torch.manual_seed(0)
    start = generator.begin(prompts[:1])
    first = start.logits[0].softmax(-1)
    token = int(first.argmax())
    second = start.append(torch.tensor([[token]]))[0].softmax(-1)
    rows = generator.begin(prompts[:1], 8000)
    drawn = sample_tokens(rows, generator.end_id, 2, temperature=1.0, top_p=1.0)
    assert drawn.shape == (8000, 2)
    for tokens, expected in ((drawn[:, 0], first), (drawn[drawn[:, 0] == token, 1], second)):
        counts = tokens.bincount(minlength=len(expected))
        # Chi-squared over the tokens: mean V - 1, variance about 2 (V - 1).
        surprise = ((counts - len(tokens) * expected) ** 2 / (len(tokens) * expected)).sum()
        freedom = len(expected) - 1
        assert surprise < freedom + 6 * (2 * freedom) ** 0.5


def test_nearly_no_temperature_is_greedy(generator, prompts):
    generator.config.max_target_length = 5
    drawn = generator.sample(prompts, 2, temperature=1e-8)
    assert drawn == [[text] * 2 for text in generator.generate(prompts)]
    assert generator.sample(prompts, 2, top_p=1e-6) == drawn


def test_samples_repeat_with_the_seed(generator, prompts):
    first, again, other = (
        (torch.manual_seed(seed), generator.sample(prompts, 3))[1] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_what_is_sampled_from():
    logits = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log()
    kept = proposal(logits, temperature=1.0, top_p=0.6).softmax(-1)
    torch.testing.assert_close(kept, torch.tensor([[5 / 8, 0, 3 / 8], [0, 0, 1.0]]))
    kept = proposal(logits, temperature=0.5, top_p=1.0).softmax(-1)
    torch.testing.assert_close(kept, logits.exp().square() / logits.exp().square().sum(-1)[:, None])
    masked = torch.tensor([0.0, float("-inf"), 0.0])
    assert proposal(masked, temperature=1.0, top_p=0.9).softmax(-1).tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0, "top_p": 1.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_proposals(generator, prompts, given, message):
    with pytest.raises(ValueError, match=message):
        generator.sample(prompts, 2, **given)
