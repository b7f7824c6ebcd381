import doctest
import math

import pytest
import torch

from lightning_rag.functional import distillation
from lightning_rag.functional.distillation import kl_distillation

INF = math.inf


def wide(values, **kwargs):
    return torch.tensor(values, dtype=torch.float64, **kwargs)


def probabilities(row, temperature):
    terms = [math.exp(score / temperature) for score in row]
    return [term / sum(terms) for term in terms]


def naive(student, teacher, t, temperature):
    """Query by query, candidate by candidate."""
    losses = []
    for own, given in zip(student, teacher, strict=True):
        v, p = probabilities(own, t), probabilities(given, temperature)
        pairs = zip(p, v, strict=True)
        losses.append(sum(a * (math.log(a) - math.log(b)) for a, b in pairs if a))
    return wide(losses)


# --- golden values -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("atlas_pdist", 3), ("atlas_loop", 3)])
def test_golden_losses_of_atlas(golden, kind, count):
    """Atlas' own loss is the mean over all elements, which is 1 / K of the KL divergence."""
    file = golden("joint_losses")
    cases = [case for case in file["cases"] if case["kind"] == kind]
    assert len(cases) == count
    for case in cases:
        given, want = case["inputs"], case["outputs"]
        student = wide(given["retriever_scores"], requires_grad=True)
        teacher = wide(want["gold_score"])
        loss = kl_distillation(
            student,
            teacher,
            student_temperature=given["temperature_score"],
            teacher_temperature=given["temperature_gold"],
        ).mean()
        (loss / student.shape[1]).backward()
        near(file, loss, want["retriever_loss_batchmean"])
        near(file, student.grad, want["grad_retriever_scores"])


@pytest.mark.parametrize(
    ("target", "reduce"), [("pdist_sum", torch.sum), ("pdist_mean", torch.mean)]
)
def test_golden_formulas(golden, target, reduce):
    file = golden("joint_losses")
    cases = [case for case in file["cases"] if case["kind"] == "exact_tables"]
    assert len(cases) == 3
    for case in cases:
        given, want = case["inputs"], case["outputs"][target]
        student = wide(given["doc_scores"], requires_grad=True)
        teacher = reduce(wide(given["token_log_likelihoods"]), dim=-1)
        loss = kl_distillation(
            student,
            teacher,
            student_temperature=given["tau_score"],
            teacher_temperature=given["tau_target"],
        )
        loss.backward()
        near(file, loss, want["loss"])
        near(file, student.grad, want["grad_doc_scores"])


def test_golden_losses_of_replug(golden):
    """The paper's KL has the retriever in front: our value, with the two exchanged."""
    file = golden("joint_losses")
    cases = [case for case in file["cases"] if case["kind"] == "replug_lsr"]
    assert len(cases) == 3
    for case in cases:
        given, want = case["inputs"], case["outputs"]
        loss = kl_distillation(
            wide(given["probabilities"]),
            wide(given["retriever_scores"]),
            student_temperature=given["temperature_gold"],
            teacher_temperature=given["temperature_score"],
        )
        near(file, loss.mean(), want["paper_loss"])


def near(file, got, want):
    allowed = file["tolerance"]
    want = torch.as_tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got.detach(), want, rtol=allowed["rel"], atol=allowed["abs"])


# --- other references ----------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "temperature"), [(1.0, 1.0), (0.3, 1.0), (0.5, 2.5)])
def test_equals_a_naive_loop(t, temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5).double(), 2 * torch.randn(4, 5).double()
    teacher[0, 2] = teacher[1, 0] = teacher[1, 4] = -INF
    got = kl_distillation(student, teacher, student_temperature=t, teacher_temperature=temperature)
    torch.testing.assert_close(got, naive(student.tolist(), teacher.tolist(), t, temperature))


def test_gradient_is_the_difference_of_the_distributions():
    torch.manual_seed(0)
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    kl_distillation(student, teacher, student_temperature=0.2).sum().backward()
    want = ((student / 0.2).softmax(-1) - teacher.softmax(-1)) / 0.2
    torch.testing.assert_close(student.grad, want.detach())
    assert teacher.grad is None


def test_equal_distributions_lose_nothing():
    scores = wide([[1.0, -2.0, 0.5, -INF]], requires_grad=True)
    loss = kl_distillation(scores, 0.5 * scores.detach() + 7, student_temperature=2.0)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), wide([0.0]), rtol=0, atol=1e-15)
    torch.testing.assert_close(scores.grad, wide([[0.0] * 4]), rtol=0, atol=1e-15)


def test_minus_infinity_counts_nothing_in_values_and_gradients():
    student = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [-INF] * 3], requires_grad=True)
    teacher = torch.tensor([[1.0, 1.0, -INF], [-INF] * 3, [-INF] * 3])
    with torch.autograd.set_detect_anomaly(True):
        loss = kl_distillation(student, teacher)
        loss.sum().backward()
    # The student loses what it gives to the third: log 3 - log 2.
    torch.testing.assert_close(loss.detach(), torch.tensor([math.log(1.5), 0.0, 0.0]))
    want = torch.tensor([[-1 / 6, -1 / 6, 1 / 3], [0.0] * 3, [0.0] * 3])
    torch.testing.assert_close(student.grad, want)
    # -100, the released code's "not scored", is the same thing in effect.
    near_nothing = kl_distillation(student[:1].detach(), teacher[:1].clamp(min=-100))
    torch.testing.assert_close(near_nothing, loss[:1].detach())


def test_impossible_for_the_student_is_an_infinite_loss():
    assert kl_distillation(torch.tensor([0.0, -INF]), torch.zeros(2)).item() == INF


def test_what_is_not_a_number_shows():
    assert kl_distillation(torch.zeros(2), torch.tensor([0.0, math.nan])).isnan()
    assert kl_distillation(torch.tensor([0.0, math.nan]), torch.zeros(2)).isnan()


def test_far_scores_at_a_small_temperature_stay_finite():
    student = torch.tensor([[1.0, -1.0, 0.3]], requires_grad=True)
    teacher = torch.tensor([[-500.0, 500.0, 0.0]])
    loss = kl_distillation(student, teacher, student_temperature=0.001)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([2000.0]))
    torch.testing.assert_close(student.grad, torch.tensor([[1000.0, -1000.0, 0.0]]))


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4).bfloat16(), torch.randn(2, 4).bfloat16()
    got = kl_distillation(student, teacher, student_temperature=0.1)
    want = kl_distillation(student.float(), teacher.float(), student_temperature=0.1)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    ("student", "teacher", "given", "message"),
    [
        ((2, 3), (2, 4), {}, r"both be \(..., C\) .* got \(2, 3\) and \(2, 4\)"),
        ((2, 0), (2, 0), {}, r"C >= 1, got \(2, 0\)"),
        ((), (), {}, r"got \(\) and \(\)"),
        ((2, 3), (2, 3), {"student_temperature": 0}, "student_temperature must be .* got 0"),
        ((2, 3), (2, 3), {"teacher_temperature": INF}, "teacher_temperature must be .* got inf"),
    ],
)
def test_bad_input(student, teacher, given, message):
    with pytest.raises(ValueError, match=message):
        kl_distillation(torch.zeros(student), torch.zeros(teacher), **given)


def test_examples_of_the_documentation():
    assert doctest.testmod(distillation).failed == 0
