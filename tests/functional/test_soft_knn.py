import doctest

import pytest
import torch

from lightning_rag.functional import soft_knn
from lightning_rag.functional.soft_knn import (
    soft_knn_weights,
    soft_neighbours,
    span_cosine_distance,
    span_squared_distance,
)

VARIANTS = {"n3net": "n3", "etrag": "etrag"}
KINDS = {
    "random": 26,
    "precision_cliff": 5,
    "ties": 2,
    "masked": 2,
    "k_larger_than_n": 2,
    "temperature_limit": 2,
    "float32_as_released": 2,
}


def naive(scores, k, t, variant):
    """The definition, one row after the other, with log(1 - w) summed over the others; float64."""
    rows = []
    for row, temperature in zip(scores.double(), t, strict=True):
        logits, chosen = row / temperature, []
        for _ in range(k):
            chosen.append((logits - logits.logsumexp(0)).exp())
            left = torch.stack(
                [
                    torch.cat([logits[:i], logits[i + 1 :]]).logsumexp(0) - logits.logsumexp(0)
                    for i in range(len(logits))
                ]
            )
            logits = logits + left / (temperature if variant == "etrag" else 1)
        rows.append(torch.stack(chosen))
    return torch.stack(rows)


def assert_near(got, want, relative, absolute=0.0):
    """Within `relative` of the largest of `want`."""
    want = torch.as_tensor(want, dtype=torch.float64)
    bound = absolute + relative * want.abs().max().item()
    torch.testing.assert_close(got.detach().double(), want, rtol=0, atol=bound)


# --- golden values -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_golden_weights_and_gradients(golden, kind, dtype):
    file = golden("soft_knn")
    cases = [case for case in file["cases"] if case["kind"] == kind]
    assert len(cases) == KINDS[kind]
    assert {case["variant"] for case in cases} == set(VARIANTS)
    tolerance = file["tolerance"]
    for case in cases:
        given, want = case["inputs"], case["outputs"]
        scores = torch.tensor(given["scores"], dtype=dtype, requires_grad=True)
        log_t = torch.tensor(given["temperature"], dtype=dtype).log().requires_grad_()
        got = soft_knn_weights(scores, given["k"], log_t.exp(), variant=VARIANTS[case["variant"]])
        (got * torch.tensor(given["upstream"], dtype=dtype)).sum().backward()
        # Ill-conditioned cases have exact weights besides the released code's.
        assert case["well_conditioned"] != ("weights_exact" in want)
        weights = want.get("weights_exact", want["weights"])
        if dtype == torch.float32 or case["dtype"] == "float32":
            allowed = tolerance["float32"]
            weight, exact = allowed["weights_abs"], allowed["grad_rel"]
        else:
            allowed = tolerance["well_conditioned float64"]
            weight, exact = allowed["weights_abs"], allowed["grad_exact_rel"]
        assert_near(got, weights, 0, weight)
        assert_near(scores.grad, want["grad_scores_exact"], exact)
        if "grad_log_temperature_exact" in want:
            # A sum over the candidates whose terms cancel: as near as the terms are.
            scale = abs(scores.grad * scores.detach().masked_fill(scores.isinf(), 0)).sum().item()
            assert_near(
                log_t.grad,
                want["grad_log_temperature_exact"],
                exact,
                1e-6 * scale / given["temperature"] if dtype == torch.float32 else 0,
            )


def test_golden_temperature_per_query(golden):
    cases = [c for c in golden("soft_knn")["cases"] if c["kind"] == "per_query_temperature"]
    assert len(cases) == 2
    for case in cases:
        given, want = case["inputs"], case["outputs"]
        scores = torch.tensor(given["scores"], dtype=torch.float64, requires_grad=True)
        log_t = torch.tensor(given["temperature"], dtype=torch.float64).log().requires_grad_()
        got = soft_knn_weights(scores, given["k"], log_t.exp()[:, None])
        (got * torch.tensor(given["upstream"], dtype=torch.float64)).sum().backward()
        assert_near(got, want["weights_eval"], 0, 1e-9)
        # The reference's backward pass adds 1e-7 to 1 - w; no exact values are stored.
        assert_near(scores.grad, want["grad_scores_eval"], 1e-5)
        assert_near(log_t.grad, want["grad_log_temperature_eval"], 1e-5)


def test_golden_neighbours(golden):
    cases = [c for c in golden("soft_knn")["cases"] if c["kind"] == "soft_neighbours"]
    assert len(cases) == 2
    for case in cases:
        given, want = case["inputs"], case["outputs"]
        scores = torch.tensor(given["scores"], dtype=torch.float64)
        variant = VARIANTS[case["variant"]]
        got = soft_knn_weights(scores, given["k"], given["temperature"], variant=variant)
        assert_near(got, want["weights"], 0, 1e-9)
        vectors = torch.tensor(given["vectors"], dtype=torch.float64)
        assert_near(soft_neighbours(got, vectors), want["z"], 1e-9)


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize(
    ("distance", "function", "count"),
    [("cos", span_cosine_distance, 7), ("l2", span_squared_distance, 1)],
)
def test_golden_span_distances(golden, distance, function, count, per_query):
    used = 0
    for case in golden("cosine_span_distance")["cases"]:
        given, want = case["inputs"], case["outputs"]
        if case["kind"] != "distance" or given["all_slot_pairs"] or given["reduction"] != "mean":
            continue
        if given["distance"] != distance:
            continue
        used += 1
        queries = torch.tensor(given["query"], dtype=torch.float64, requires_grad=True)
        instances = torch.tensor(given["instances"], dtype=torch.float64, requires_grad=True)
        candidates = instances.expand(len(queries), *instances.shape) if per_query else instances
        got = function(queries, candidates)
        (got * torch.tensor(given["upstream"], dtype=torch.float64)).sum().backward()
        assert_near(got, want["distance"], 1e-9, 1e-10)
        for leaf, name in ((queries, "grad_query"), (instances, "grad_instances")):
            wanted = torch.tensor(want[name], dtype=torch.float64)
            # Elementwise: beside the huge gradient of a zero vector the others count too.
            torch.testing.assert_close(leaf.grad, wanted, rtol=1e-9, atol=1e-10)
    assert used == count


# --- the definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["n3", "etrag"])
@pytest.mark.parametrize("t", [1.0, 0.1, 0.02, 0.005])
def test_equals_a_naive_loop_and_its_gradient(variant, t):
    torch.manual_seed(0)
    values = -2 * torch.rand(3, 12, dtype=torch.float64)
    upstream = torch.randn(3, 10, 12, dtype=torch.float64)
    leaves, results = [], []
    for function in (naive, soft_knn_weights):
        scores = values.clone().requires_grad_()
        temperature = torch.tensor([[t], [2 * t], [t]], dtype=torch.float64, requires_grad=True)
        got = function(scores, 10, temperature, variant=variant)
        (got * upstream).sum().backward()
        leaves.append((scores, temperature))
        results.append(got)
    assert_near(results[1], results[0].detach(), 1e-9)
    for mine, theirs in zip(leaves[1], leaves[0], strict=True):
        assert theirs.grad.isfinite().all()
        assert_near(mine.grad, theirs.grad, 1e-7)


@pytest.mark.parametrize("variant", ["n3", "etrag"])
def test_the_gradient_survives_underflow_in_float32(variant):
    """All weights but one are 0 in float32, yet the second round's gradient is not."""
    values = torch.tensor([[0.0, -0.7, -0.703, -1.5]])
    grads = {}
    for dtype in (torch.float32, torch.float64):
        scores = values.detach().clone().to(dtype).requires_grad_()
        weights = soft_knn_weights(scores, 3, 0.005, variant=variant)
        assert dtype == torch.float64 or (weights[0, 0] == torch.tensor([1.0, 0, 0, 0])).all()
        weights[0, 1:, 1].sum().backward()
        grads[dtype] = scores.grad
    assert grads[torch.float64].abs().max() > 1
    assert_near(grads[torch.float32], grads[torch.float64], 1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", ["n3", "etrag"])
@pytest.mark.parametrize("t", [0.7, 0.1])
def test_gradcheck(variant, masked, t):
    torch.manual_seed(1)
    scores = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)
    temperature = t * torch.ones(2, 2, 1, dtype=torch.float64)
    temperature[0] *= 2
    mask = torch.rand(2, 2, 6) > 0.3 if masked else None

    def weights(s, temperature):
        return soft_knn_weights(s, 4, temperature, mask=mask, variant=variant)

    assert torch.autograd.gradcheck(weights, (scores, temperature.requires_grad_()))
    assert torch.autograd.gradcheck(weights, (scores, torch.tensor(t).double().requires_grad_()))


@pytest.mark.parametrize("function", [span_cosine_distance, span_squared_distance])
def test_gradcheck_of_distances(function):
    torch.manual_seed(0)
    queries = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    instances = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (queries, instances))
    assert torch.autograd.gradcheck(lambda q: function(q, instances.detach()), queries)


def test_a_vector_shorter_than_the_smallest_norm():
    torch.manual_seed(0)
    queries = torch.randn(2, 3, 4, dtype=torch.float64)
    instances = torch.randn(5, 3, 4, dtype=torch.float64)
    instances[1, 2] *= 1e-13
    grads = []
    for shape in ((5, 3, 4), (2, 5, 3, 4)):  # the second by torch.nn.functional.normalize
        leaf = instances.clone().requires_grad_()
        distance = span_cosine_distance(queries, leaf.expand(shape))
        grads.append(torch.autograd.grad(distance.square().sum(), leaf)[0])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


# --- limits --------------------------------------------------------------------------------------


def test_etrag_tends_to_hard_neighbours_in_order():
    scores = torch.tensor([[-0.5, -0.1, -0.9, -0.3]], dtype=torch.float64)
    order = torch.nn.functional.one_hot(torch.tensor([[1, 3, 0, 2]]), 4).double()
    away = [
        (soft_knn_weights(scores, 4, t, variant="etrag") - order).abs().max().item()
        for t in (0.1, 0.05, 0.02, 0.01)
    ]
    assert away == sorted(away, reverse=True)
    assert away[0] > 0.1
    assert away[-1] < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_n3_tends_to_halves_on_the_two_best(dtype):
    scores = torch.tensor([[-0.5, -0.1, -0.9, -0.3]], dtype=dtype)
    got = soft_knn_weights(scores, 4, 0.005, variant="n3")
    half = torch.tensor([0, 0.5, 0, 0.5], dtype=dtype)
    torch.testing.assert_close(got[0, 0], torch.tensor([0, 1, 0, 0], dtype=dtype))
    for j in (1, 2, 3):
        torch.testing.assert_close(got[0, j], half, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["n3", "etrag"])
@pytest.mark.parametrize("t", [1.0, 0.1, 0.02, 0.005])
def test_everything_is_finite(t, variant, dtype):
    torch.manual_seed(0)
    for width in (1, 2, 3, 11, 40, 300):
        uniform = -2 * torch.rand(40, width)
        tied = (uniform * 2).round() / 2
        for scores in (uniform, tied, torch.zeros_like(uniform), 15 * uniform):
            scores = scores.to(dtype).requires_grad_()
            temperature = torch.tensor(t, dtype=dtype, requires_grad=True)
            weights = soft_knn_weights(scores, 10, temperature, variant=variant)
            weights.backward(torch.randn_like(weights))
            torch.testing.assert_close(weights.sum(-1), torch.ones(40, 10, dtype=dtype))
            assert (weights >= 0).all()
            assert scores.grad.isfinite().all()
            assert temperature.grad.isfinite()


# --- masks and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["n3", "etrag"])
@pytest.mark.parametrize("t", [1.0, 0.005])
def test_masked_candidates_are_as_if_absent(variant, t):
    torch.manual_seed(0)
    scores = (-torch.rand(5, 9)).requires_grad_()
    mask = torch.arange(9) != 4  # as a query in the store masks itself
    upstream = torch.randn(5, 6, 9)
    got = soft_knn_weights(scores, 6, t, mask=mask, variant=variant)
    got.backward(upstream)
    assert (got[..., 4] == 0).all()
    assert (scores.grad[:, 4] == 0).all()
    rest = scores.detach()[:, mask].requires_grad_()
    want = soft_knn_weights(rest, 6, t, variant=variant)
    want.backward(upstream[..., mask])
    torch.testing.assert_close(got[..., mask], want)
    assert_near(scores.grad[:, mask], rest.grad, 1e-4)
    infinite = scores.detach().masked_fill(~mask, -torch.inf)
    assert torch.equal(soft_knn_weights(infinite, 6, t, variant=variant), got)


@pytest.mark.parametrize("variant", ["n3", "etrag"])
@pytest.mark.parametrize("t", [0.1, 0.002])  # at the latter weights of the third row round to 1
def test_one_candidate_or_none(variant, t):
    scores = torch.tensor([[-0.2, -0.4, -0.1], [-0.2, -0.4, -0.1], [-0.2, -0.4, -0.1]])
    scores.requires_grad_()
    temperature = torch.tensor(t, requires_grad=True)
    mask = torch.tensor([[False, True, False], [False] * 3, [True] * 3])
    got = soft_knn_weights(scores, 4, temperature, mask=mask, variant=variant)
    assert torch.equal(got[0], torch.tensor([0.0, 1.0, 0.0]).expand(4, 3))
    assert torch.equal(got[1], torch.zeros(4, 3))
    (alone,) = torch.autograd.grad(got[2].square().sum(), temperature, retain_graph=True)
    got.square().sum().backward()
    assert torch.equal(scores.grad[:2], torch.zeros(2, 3))
    assert scores.grad[2].abs().max() > 0
    assert temperature.grad == alone  # the first two rows add nothing, and no NaN


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 3), (0,), (3, 0)])
def test_any_leading_dimensions(lead):
    torch.manual_seed(0)
    scores = torch.randn(*lead, 7, requires_grad=True)
    temperature = torch.rand(*lead, 1) + 0.5
    got = soft_knn_weights(scores, 3, temperature)
    assert got.shape == (*lead, 3, 7)
    got.square().sum().backward()
    assert scores.grad.shape == scores.shape
    flat = (
        naive(scores.detach().reshape(-1, 7), 3, temperature.view(-1), "n3")
        if 0 not in lead
        else got
    )
    torch.testing.assert_close(got.double().view(flat.shape), flat.double(), rtol=1e-5, atol=1e-6)


def test_rows_do_not_touch_each_other(monkeypatch):
    """Rows are worked off in pieces; where a piece ends makes no difference."""
    torch.manual_seed(0)
    scores = (-torch.rand(7, 5)).requires_grad_()
    scores.data[2] *= 400  # one saturated row changes how its piece is done
    upstream = torch.randn(7, 4, 5)
    results = []
    for numbers in (1, 10 * 5, 2**20):
        monkeypatch.setattr(soft_knn, "_CPU_PIECE", numbers)
        weights = soft_knn_weights(scores, 4, 0.1, variant="etrag")
        results.append((weights, *torch.autograd.grad(weights, scores, upstream)))
    for weights, grad in results[1:]:
        torch.testing.assert_close(weights, results[0][0])
        torch.testing.assert_close(grad, results[0][1], rtol=1e-4, atol=1e-5)


def test_neighbours_and_distances_equal_their_definitions():
    torch.manual_seed(0)
    queries, shared, own = torch.randn(2, 3, 4), torch.randn(5, 3, 4), torch.randn(2, 5, 3, 4)
    weights = torch.rand(2, 6, 5)
    for instances in (shared, own):
        spread = instances.expand(2, 5, 3, 4)
        neighbours = torch.einsum("bkn,bnvd->bkvd", weights, spread)
        torch.testing.assert_close(soft_neighbours(weights, instances), neighbours)
        cosine = torch.nn.functional.cosine_similarity(queries[:, None], spread, dim=-1)
        torch.testing.assert_close(span_cosine_distance(queries, instances), 1 - cosine.mean(-1))
        squared = (queries[:, None] - spread).square().sum(-1).mean(-1)
        torch.testing.assert_close(span_squared_distance(queries, instances), squared)
    assert (span_squared_distance(shared, shared).diagonal() >= 0).all()


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    queries, instances = torch.randn(2, 3, 64).bfloat16(), torch.randn(9, 3, 64).bfloat16()

    def run(queries, instances, autocast=False):
        leaf = instances.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            weights = soft_knn_weights(-span_cosine_distance(queries, leaf), 4, 0.05)
            out = soft_neighbours(weights, leaf)
            far = span_squared_distance(queries, leaf)
        # The backward pass outside of autocast, as torch asks for.
        return out, far, *torch.autograd.grad(out.square().sum() + far.sum(), leaf)

    *want, want_grad = run(queries.float(), instances.float())
    *got, got_grad = run(queries, instances)
    for mine, exact in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact)
    # Its parts, from the weights and from the vectors, are added in the leaf's bfloat16.
    assert_near(got_grad, want_grad, 0.01)
    for mine, exact in zip(
        run(queries.float(), instances.float(), autocast=True), [*want, want_grad], strict=True
    ):
        assert torch.equal(mine, exact)
    scores = torch.randn(2, 9).bfloat16()
    assert soft_knn_weights(scores, 2).dtype == torch.float32
    assert soft_knn_weights(scores.double(), 2, torch.tensor(0.5)).dtype == torch.float64


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"scores": torch.zeros(2, 0)}, r"N >= 1, got \(2, 0\)"),
        ({"scores": torch.tensor(1.0)}, r"N >= 1, got \(\)"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"temperature": float("inf")}, "temperature must be positive"),
        ({"temperature": 1e-50}, "temperature must be positive"),
        ({"temperature": torch.tensor([[1.0], [0.0]])}, "temperature must be positive"),
        ({"temperature": torch.ones(2)}, r"temperature \(2,\) does not broadcast to \(2, 1\)"),
        ({"mask": torch.ones(2, 3)}, "mask must be bool .* got torch.float32"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"mask \(2, 4\) does not broadcast"),
        ({"variant": "hard"}, "variant must be 'n3' or 'etrag', got 'hard'"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        soft_knn_weights(**{"scores": torch.zeros(2, 3), "k": 2, **changes})


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 4), (5, 3, 3), (1, 5, 3, 4)])
def test_vectors_that_do_not_fit(shape):
    queries, instances = torch.zeros(2, 3, 4), torch.zeros(shape)
    for function in (span_cosine_distance, span_squared_distance):
        with pytest.raises(ValueError, match=r"queries must be \(B, V, D\) and instances"):
            function(queries, instances)


@pytest.mark.parametrize(
    ("weights", "vectors"),
    [((2, 5), (5, 3, 4)), ((2, 1, 5), (6, 3, 4)), ((2, 1, 5), (5, 4)), ((2, 1, 5), (1, 5, 3, 4))],
)
def test_neighbours_that_do_not_fit(weights, vectors):
    with pytest.raises(ValueError, match=r"weights must be \(B, k, N\) and vectors"):
        soft_neighbours(torch.zeros(weights), torch.zeros(vectors))


def test_examples_of_the_documentation():
    assert doctest.testmod(soft_knn).failed == 0
