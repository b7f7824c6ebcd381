"""Distillation: a student's distribution over candidates drawn towards a teacher's."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_distillation(
    student_scores: Tensor,
    teacher_scores: Tensor,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """KL(teacher || student) of the softmax distributions over each query's candidates, in nats.

    With p = softmax(r / T) of the teacher's scores r and v = softmax(z / t) of the student's z:
    sum_j p_j (log p_j - log v_j), whose gradient is (v_j - p_j) / t. RUIE's loss of the retriever
    has T = 1 and z the inner products with t = 0.01; Atlas' PDist (arXiv 2208.03299) has the log-
    likelihoods of the answer as r. The teacher gets no gradient.

    Args:
        student_scores: (..., C). -inf is right only where the teacher has -inf too.
        teacher_scores: (..., C); -inf is a candidate that the teacher gives nothing: its term is 0,
            and the student loses by what it gives to it.
        student_temperature: t, positive.
        teacher_temperature: T, positive.

    Returns:
        (...), float32 at least. A row in which the teacher has nothing but -inf gives 0, without a
        gradient.

    Raises:
        ValueError: shapes that differ, no candidates, or a temperature that is not positive and
            finite.

    Example:
        >>> kl_distillation(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -torch.inf]]))
        tensor([0.4055])
    """
    shape = student_scores.shape
    if shape != teacher_scores.shape or not shape or shape[-1] == 0:
        raise ValueError(
            "student_scores and teacher_scores must both be (..., C) with C >= 1, got "
            f"{tuple(shape)} and {tuple(teacher_scores.shape)}"
        )
    for name, value in (("student", student_temperature), ("teacher", teacher_temperature)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}_temperature must be positive and finite, got {value}")
    dtype = torch.promote_types(student_scores.dtype, teacher_scores.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    given = teacher_scores.detach().to(dtype)
    absent = given == -torch.inf
    none = absent.all(-1, keepdim=True)
    # Zeros stand in for rows that have nothing, and for terms that count 0: with -inf they would
    # be NaN, and so would their gradients.
    target = (given / teacher_temperature).masked_fill(none, 0).log_softmax(-1)  # (..., C)
    rows = (student_scores.to(dtype) / student_temperature).masked_fill(none, 0)
    difference = target.masked_fill(absent, 0) - rows.log_softmax(-1).masked_fill(absent, 0)
    return (target.exp() * difference).masked_fill(absent, 0).sum(-1)
