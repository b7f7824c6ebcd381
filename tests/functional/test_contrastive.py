import doctest
import math

import pytest
import torch

from lightning_rag.functional import contrastive
from lightning_rag.functional.contrastive import (
    BLOCKS,
    gather,
    info_nce,
    listwise_cross_entropy,
    own_scores,
)
from lightning_rag.functional.distillation import kl_distillation

INF = math.inf
KINDS = {"score_matrix": 5, "biencoder_loss": 10, "biencoder_loss_from_hidden": 2, "reward_loss": 3}
# Section 17b of the notes on RUIE: rows of Q and K normalised, P = 3.
TABLE = {
    (1.0, BLOCKS): (2.526661, 0.541760, 1.047092),
    (1.0, ("qp", "pq")): (2.230743, 0.541760, 0.987908),
    (0.01, BLOCKS): (103.482807, 69.961346, 90.657907),
    (0.01, ("qp", "pq")): (91.202347, 69.961346, 88.201815),
}


def wide(values, **kwargs):
    return torch.tensor(values, dtype=torch.float64, **kwargs)


def unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1)


def naive_info_nce(queries, passages, temperature, blocks, ignore=None):
    """Query by query, term by term."""
    queries, passages = queries.tolist(), passages.tolist()
    size = len(passages) // len(queries)
    positives = passages[::size]
    losses = []
    for i in range(len(queries)):
        rows = {"q": queries[i], "p": positives[i]}
        terms = []
        for j, passage in enumerate(passages):
            if j == i * size or ignore is None or not ignore[i][j]:
                terms.append(dot(rows["q"], passage) / temperature)
        for block in blocks:
            others = {"q": queries, "p": positives}.get(block[1]) if block != "qp" else None
            for j, other in enumerate(others or []):
                if j != i and (ignore is None or not ignore[i][j * size]):
                    terms.append(dot(rows[block[0]], other) / temperature)
        own = dot(queries[i], positives[i]) / temperature
        losses.append(math.log(sum(math.exp(term - own) for term in terms)))
    return wide(losses)


def dot(first, second):
    return sum(x * y for x, y in zip(first, second, strict=True))


# --- golden values -------------------------------------------------------------------------------


@pytest.fixture
def cases(golden):
    """Cases of one kind, and a comparison within the tolerance of the file."""
    file = golden("ruie_contrastive")

    def read(kind):
        found = [case for case in file["cases"] if case["kind"] == kind]
        assert len(found) == KINDS[kind]
        return [(case["inputs"], case["outputs"]) for case in found]

    def near(got, want):
        tolerance = file["tolerance"]
        want = torch.as_tensor(want, dtype=torch.float64)
        torch.testing.assert_close(got.detach(), want, rtol=tolerance["rel"], atol=tolerance["abs"])

    return read, near


def released_loss(given, queries, passages):
    """The released loss of the retriever; its parts besides.

    Where it does not normalise, it does not divide by the temperature either.
    """
    normalise = given.get("l2_normalize", True)
    t = given["temperature"] if normalise else 1.0
    if normalise:
        queries, passages = unit(queries), unit(passages)
    blocks = BLOCKS if given["use_all_pairs"] else ("qp", "pq")
    first = info_nce(queries, passages, temperature=t, blocks=blocks).mean()
    if not given["distill"]:
        return first, first, None
    teacher = wide(given["teacher_scores"])
    scores = own_scores(queries, passages)
    second = kl_distillation(scores, teacher, student_temperature=t).mean()
    return given["contrastive_weight"] * first + second, first, second


def test_golden_score_matrices(cases):
    read, near = cases
    for given, want in read("score_matrix"):
        blocks = BLOCKS if given["use_all_pairs"] else ("qp", "pq")
        got = info_nce(wide(given["query"]), wide(given["key"]), temperature=1.0, blocks=blocks)
        scores = wide(want["scores"])
        near(got, scores.logsumexp(-1) - scores[range(len(scores)), want["labels"]])
        own = own_scores(wide(given["query"]), wide(given["key"]))
        near(own, scores.gather(-1, torch.tensor(want["group_indices"])))


def test_golden_losses_and_gradients(cases):
    read, near = cases
    for given, want in read("biencoder_loss"):
        queries = wide(given["query"], requires_grad=True)
        passages = wide(given["passages"], requires_grad=True)
        loss, first, second = released_loss(given, queries, passages)
        loss.backward()
        near(loss, want["loss"])
        near(first, want["contrastive_loss"])
        if second is not None:
            near(second, want["kl_loss"])
        near(queries.grad, want["grad_query"])
        near(passages.grad, want["grad_passages"])


def test_golden_losses_from_hidden_states(cases):
    read, near = cases
    for given, want in read("biencoder_loss_from_hidden"):
        hidden = wide(given["last_hidden_state"], requires_grad=True)
        mask = wide(given["attention_mask"]).unsqueeze(-1)
        pooled = {"avg": (hidden * mask).sum(1) / mask.sum(1), "cls": hidden[:, 0]}
        vectors = pooled[given["pool_type"]]
        queries, passages = vectors[: given["n_queries"]], vectors[given["n_queries"] :]
        loss, _, _ = released_loss(given, queries, passages)
        loss.backward()
        near(unit(vectors), want["embeddings"])
        near(loss, want["loss"])
        near(hidden.grad, want["grad_last_hidden_state"])


def test_golden_losses_of_the_reward_model(cases):
    read, near = cases
    for given, want in read("reward_loss"):
        logits = wide(given["logits"], requires_grad=True)
        loss = listwise_cross_entropy(logits).mean()
        loss.backward()
        near(loss, want["loss"])
        near(logits.grad, want["grad_logits"])


def test_golden_multiple_negatives_ranking_losses(golden):
    file = golden("mnrl")
    assert len(file["cases"]) == 11
    for case in file["cases"]:
        given, want = case["inputs"], case["outputs"]
        anchor = wide(given["anchor"], requires_grad=True)
        texts = [wide(one, requires_grad=True) for one in [given["positive"], *given["negatives"]]]
        passages = torch.stack(texts, dim=1).flatten(0, 1)
        vectors = (anchor, passages)
        if given["similarity"] == "cos":
            vectors = (unit(anchor), unit(passages))
        loss = ranking_loss(given, *vectors)
        loss.backward()
        got = [loss.detach(), anchor.grad, *(text.grad for text in texts)]
        expected = [want["loss"], want["grad_anchor"], want["grad_positive"]]
        expected += want["grad_negatives"]
        for one, other in zip(got, expected, strict=True):
            allowed = file["tolerance"]
            torch.testing.assert_close(one, wide(other), rtol=allowed["rel"], atol=allowed["abs"])


def ranking_loss(given, queries, passages):
    t = 1 / given["scale"]
    if len(given["directions"]) == 4:
        # The library's form has more in the sum: p_i . q_i a second time, and hard negatives
        # of other queries in "pp" too.
        size = len(given["negatives"]) + 1
        loss = info_nce(queries, passages, temperature=t, blocks=BLOCKS)
        positives = passages[::size]
        more = (positives @ passages.T - (queries * positives).sum(-1, keepdim=True)) / t
        hard = torch.arange(len(passages)) % size > 0
        own = torch.eye(len(queries), dtype=torch.bool).repeat_interleave(size, 1)
        return (loss.exp() + 1 + more.exp().masked_fill(~hard | own, 0).sum(-1)).log().mean()
    loss = info_nce(queries, passages, temperature=t).mean()
    if given["directions"] == ["query_to_doc"]:
        return loss
    return (loss + info_nce(passages, queries, temperature=t).mean()) / 2


@pytest.mark.parametrize(("setting", "want"), TABLE.items(), ids=str)
def test_table_of_the_notes(setting, want):
    queries = unit(wide([[math.sin(1 + 3 * i + j) for j in range(4)] for i in range(2)]))
    passages = unit(wide([[math.cos(1 + 2 * i + j) for j in range(4)] for i in range(6)]))
    given = {
        "temperature": setting[0],
        "use_all_pairs": setting[1] == BLOCKS,
        "contrastive_weight": 0.2,
        "distill": True,
        "teacher_scores": [[2, 0.5, -1], [0.3, 0.1, -100]],
    }
    loss, first, second = released_loss(given, queries, passages)
    for got, expected in zip((first, second, loss), want, strict=True):
        assert got.item() == pytest.approx(expected, abs=1e-6)


def test_reward_loss_of_the_notes():
    logits = wide([[2, 1, 0, -1], [0, 3, -1, 0.5]])
    assert listwise_cross_entropy(logits).mean().item() == pytest.approx(1.790057, abs=1e-6)


# --- InfoNCE -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "blocks", [("qp",), ("pq", "qp"), ("qp", "qq"), ("qp", "pp"), BLOCKS, BLOCKS[::-1]]
)
def test_equals_a_naive_loop(blocks, masked, size):
    torch.manual_seed(0)
    queries, passages = torch.randn(4, 5).double(), torch.randn(4 * size, 5).double()
    ignore = torch.rand(4, 4 * size) < 0.4 if masked else None
    got = info_nce(queries, passages, temperature=0.7, blocks=blocks, ignore=ignore)
    want = naive_info_nce(queries, passages, 0.7, blocks, ignore.tolist() if masked else None)
    torch.testing.assert_close(got, want)


def test_gradients():
    torch.manual_seed(0)
    queries = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    passages = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    ignore = torch.rand(3, 6) < 0.4
    assert torch.autograd.gradcheck(
        lambda q, p: info_nce(q, p, temperature=0.5, blocks=BLOCKS, ignore=ignore),
        (queries, passages),
    )
    assert torch.autograd.gradcheck(own_scores, (queries, passages))


def test_what_is_ignored_has_no_gradient_and_the_positive_stays():
    torch.manual_seed(0)
    queries = torch.randn(2, 4)
    passages = torch.randn(4, 4, requires_grad=True)
    everything = torch.ones(2, 4, dtype=torch.bool)
    loss = info_nce(queries, passages, temperature=0.01, blocks=BLOCKS, ignore=everything)
    assert loss.tolist() == [0.0, 0.0]
    mask = torch.tensor([[False, True, False, False], [False, True, False, False]])
    info_nce(queries, passages, temperature=1.0, ignore=mask).sum().backward()
    assert passages.grad[1].tolist() == [0.0] * 4
    assert all(passages.grad[[0, 2, 3]].abs().sum(-1) > 0)
    assert mask.sum() == 2  # the caller's mask is as it was


def test_one_query_and_one_passage_have_nothing_to_lose():
    queries = torch.randn(1, 3, requires_grad=True)
    loss = info_nce(queries, torch.randn(1, 3), temperature=0.01, blocks=BLOCKS)
    loss.sum().backward()
    assert loss.item() == 0
    assert queries.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_small_temperatures_neither_overflow_nor_lose_digits():
    queries = torch.eye(2, requires_grad=True)
    loss = info_nce(queries, torch.eye(2), temperature=1e-3, blocks=BLOCKS)
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert queries.grad.isfinite().all()
    wrong = info_nce(torch.eye(2), torch.eye(2)[[1, 0]], temperature=1e-3)
    torch.testing.assert_close(wrong, torch.full((2,), 1000.0))
    # Where log-sum-exp less the score would round to 0 or to a multiple of 7.6e-6:
    near = info_nce(torch.eye(2), torch.eye(2), temperature=1 / 12)
    torch.testing.assert_close(near, torch.full((2,), math.log1p(math.exp(-12))))


def test_half_precision_and_autocast_are_computed_in_float32():
    torch.manual_seed(0)
    queries, passages = unit(torch.randn(8, 16)), unit(torch.randn(16, 16))
    want = info_nce(queries, passages, temperature=0.01, blocks=BLOCKS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = info_nce(queries, passages, temperature=0.01, blocks=BLOCKS)
        scores = own_scores(queries, passages)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(scores, own_scores(queries, passages), rtol=0, atol=0)
    half = info_nce(queries.bfloat16(), passages, temperature=0.01)
    want = info_nce(queries.bfloat16().float(), passages, temperature=0.01)
    torch.testing.assert_close(half, want, rtol=0, atol=0)
    assert half.dtype == listwise_cross_entropy(torch.zeros(2, 2).half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("queries", "passages", "given", "message"),
    [
        ((2, 3), (4, 5), {}, r"queries must be \(B, D\) .* got \(2, 3\) and \(4, 5\)"),
        ((2, 3), (5, 3), {}, r"got \(2, 3\) and \(5, 3\)"),
        ((0, 3), (0, 3), {}, r"at least 1, got \(0, 3\) and \(0, 3\)"),
        ((2, 3), (0, 3), {}, r"got \(2, 3\) and \(0, 3\)"),
        ((2, 3, 1), (2, 3, 1), {}, r"got \(2, 3, 1\)"),
        ((2, 3), (4, 3), {"temperature": 0.0}, "temperature must be positive and finite, got 0"),
        ((2, 3), (4, 3), {"temperature": math.nan}, "positive and finite, got nan"),
        ((2, 3), (4, 3), {"blocks": ("pq",)}, r"blocks must be 'qp' .* got \['pq'\]"),
        ((2, 3), (4, 3), {"blocks": ("qp", "qk")}, r"got \['qp', 'qk'\]"),
        ((2, 3), (4, 3), {"blocks": ("qp", "qq", "qq")}, "each once, got"),
        ((2, 3), (4, 3), {"ignore": torch.zeros(2, 4)}, r"ignore must be bool .* torch.float32"),
        (
            (2, 3),
            (4, 3),
            {"ignore": torch.zeros(4, 2, dtype=torch.bool)},
            r"here \(2, 4\), got torch.bool \(4, 2\)",
        ),
    ],
)
def test_bad_input(queries, passages, given, message):
    with pytest.raises(ValueError, match=message):
        info_nce(torch.zeros(queries), torch.zeros(passages), **{"temperature": 1.0, **given})


def test_own_scores_needs_whole_groups():
    with pytest.raises(ValueError, match=r"passages \(B \* P, D\)"):
        own_scores(torch.zeros(2, 3), torch.zeros(3, 3))


# --- listwise cross-entropy ----------------------------------------------------------------------


@pytest.mark.parametrize("positive", [0, 2])
def test_listwise_cross_entropy_equals_a_naive_loop(positive):
    scores = [[0.3, -1.2, 2.0], [1.0, -INF, 0.5]]
    want = [math.log(sum(map(math.exp, row))) - row[positive] for row in scores]
    torch.testing.assert_close(listwise_cross_entropy(wide(scores), positive), wide(want))


@pytest.mark.parametrize(
    ("shape", "positive", "message"),
    [
        ((3,), 0, r"scores must be \(B, C\) .* got \(3,\) and 0"),
        ((2, 3), 3, r"got \(2, 3\) and 3"),
        ((2, 3), -1, r"got \(2, 3\) and -1"),
        ((2, 0), 0, r"got \(2, 0\) and 0"),
    ],
)
def test_listwise_cross_entropy_of_bad_input(shape, positive, message):
    with pytest.raises(ValueError, match=message):
        listwise_cross_entropy(torch.zeros(shape), positive)


def test_one_process_has_all_rows():
    vectors = torch.randn(3, 2)
    assert gather(vectors) is vectors


def test_examples_of_the_documentation():
    assert doctest.testmod(contrastive).failed == 0
