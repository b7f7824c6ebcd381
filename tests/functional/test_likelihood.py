import doctest

import pytest
import torch

from lightning_rag.functional import likelihood
from lightning_rag.functional.likelihood import sequence_log_likelihood


def naive(logits, labels, mean):
    sums = []
    for row in range(labels.shape[0]):
        total, count = 0.0, 0
        for step in range(labels.shape[1]):
            if labels[row, step] != -100:
                log_p = logits[row, step].double() - logits[row, step].double().logsumexp(-1)
                total += log_p[labels[row, step]].item()
                count += 1
        sums.append(total / max(count, 1) if mean else total)
    return torch.tensor(sums)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equals_a_naive_loop(reduction):
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 5, 7)
    labels = torch.randint(0, 7, (4, 5))
    labels[0, 3:] = -100
    labels[1, 0] = -100  # a gap in front counts no more than one behind
    labels[2] = -100
    got = sequence_log_likelihood(logits, labels, reduction=reduction)
    torch.testing.assert_close(got, naive(logits, labels, reduction == "mean"))
    assert got[2] == 0


def test_half_precision_is_summed_in_float32():
    torch.manual_seed(0)
    logits = torch.randn(2, 30, 50).bfloat16()
    labels = torch.randint(0, 50, (2, 30))
    got = sequence_log_likelihood(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, naive(logits, labels, False))


def test_gradient():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 2, -100], [0, 3, 3]])
    assert torch.autograd.gradcheck(lambda x: sequence_log_likelihood(x, labels), logits)


@pytest.mark.parametrize(
    ("shape", "labels", "reduction", "message"),
    [
        ((2, 3), (2, 3), "sum", r"logits must be \(B, T, V\)"),
        ((2, 3, 4), (2, 4), "sum", r"labels \(B, T\), got \(2, 3, 4\) and \(2, 4\)"),
        ((2, 3, 4), (2, 3), "max", "reduction must be 'sum' or 'mean', got 'max'"),
    ],
)
def test_bad_input(shape, labels, reduction, message):
    with pytest.raises(ValueError, match=message):
        sequence_log_likelihood(
            torch.zeros(shape), torch.zeros(labels, dtype=torch.long), reduction=reduction
        )


def test_examples_of_the_documentation():
    assert doctest.testmod(likelihood).failed == 0
