"""DRO: lists, weights and losses by hand, warm-up, phases, every switch on the command line."""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_rag import cli
from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig, TinyConfig
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticQuestions, SyntheticRelations
from lightning_rag.errors import UserError
from lightning_rag.functional.permutation import plackett_luce_log_prob
from lightning_rag.methods.dro import Dro
from lightning_rag.methods.weighting import (
    WeightingConfig,
    averages,
    figures,
    merge_equal,
    selector_baseline,
)
from lightning_rag.retrieval import lists
from lightning_rag.retrieval.selector import Sampled
from lightning_rag.retrieval.selectors import SelectorConfig
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Passage, PermutationSamples, Prompt, RagBatch, Rendered

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"
TINY = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1)
KINDS = ("listwise", "multi-hop", "bi-encoder", "cross-encoder")


@pytest.fixture
def questions(tmp_path: Path) -> RagDataModule:
    return data_of(tmp_path)


def data_of(folder: Path) -> RagDataModule:
    """Forty questions, half of them of two hops, with eight candidates each."""
    data = RagDataModule(
        SyntheticQuestions(train=40, validation=8, test=8),
        QuestionAnswering(),
        BM25(),
        num_candidates=8,
        batch_size=8,
        cache_dir=str(folder / "cache"),
    )
    data.setup()
    return data


def attached(data: RagDataModule, phase: int = 1, **arguments: Any) -> Dro:
    """A DRO over `data` in the first iteration, without dropout."""
    arguments.setdefault("k", 2)
    arguments.setdefault("num_samples", 4)
    arguments.setdefault("selector", SelectorConfig(kind="bi-encoder"))
    generator = arguments.pop("generator", GeneratorConfig(tiny=TINY))
    method = Dro(generator, EncoderConfig(tiny=TINY), **arguments)
    method.attach(data)
    method.phase_index = phase
    return method


def batch_of(data: RagDataModule, size: int = 5) -> RagBatch:
    return data.queries("train").batch(range(size))


def banked(method: Dro, batch: RagBatch) -> tuple[Tensor, Tensor]:
    """Estimate over the batch as the schedule would; return positions and weights."""
    torch.manual_seed(7)
    with torch.no_grad():
        rows = method.estimate(batch)
    method.bank.put(batch.rows, rows, len(method.data.splits.train))
    return rows["positions"], rows["weights"]


def written_out(method: Dro, batch: RagBatch, row: int, columns: list[int]) -> Prompt:
    """The generator's input for a list, spelled out."""
    passages = [method.data.store[int(batch.candidate_ids[row, c])] for c in columns]
    return numbered_prompt(batch.instances[row].text, passages)


def numbered_prompt(question: str, passages: list[Passage]) -> Prompt:
    rendered = [
        Rendered(f"[{i}] {p.title}: {p.text}", {"name": (0, 3)})
        for i, p in enumerate(passages, start=1)
    ]
    return Prompt(Rendered(question), tuple(rendered))


def log_likelihoods(method: Dro, batch: RagBatch, positions: Tensor) -> Tensor:
    """Log-likelihood (B, S) of each answer given each list, one at a time."""
    values = [
        method.generator.log_likelihood(
            [written_out(method, batch, row, columns)], [batch.instances[row].answers[0]]
        )
        for row, of_query in enumerate(positions.tolist())
        for columns in of_query
    ]
    return torch.cat(values).view(positions.shape[:2])


# --- the E-step


@pytest.mark.parametrize("kind", KINDS)
def test_estimate_by_hand(questions: RagDataModule, kind: Any) -> None:
    """Weights are the softmax of the answers' log-likelihoods over a query's own lists."""
    method = attached(questions, selector=SelectorConfig(kind=kind), num_samples=6)
    batch = batch_of(questions)
    positions, weights = banked(method, batch)
    assert positions.shape == (5, 6, 2)
    expected = log_likelihoods(method, batch, positions).detach().softmax(dim=-1)
    for row in range(5):
        drawn = [tuple(columns) for columns in positions[row].tolist()]
        assert all(len(set(columns)) == 2 for columns in drawn)
        for columns in set(drawn):
            same = [s for s, other in enumerate(drawn) if other == columns]
            total = sum(float(expected[row, s]) for s in same)
            assert float(weights[row, same[0]]) == pytest.approx(total, abs=1e-5)
            assert not weights[row, same[1:]].any()  # merged into the first
    assert weights.requires_grad is False


def samples_of(log_likelihood: Tensor, positions: Tensor, **settings: Any) -> PermutationSamples:
    """Samples with given log-likelihoods, equally probable under selector and proposal."""
    even = torch.full(log_likelihood.shape, math.log(0.25))
    valid = torch.ones(log_likelihood.shape, dtype=torch.bool)
    weights = WeightingConfig(**settings).weights(
        Sampled(positions, even, even, valid), log_likelihood
    )
    return PermutationSamples(positions, even, even, valid, log_likelihood, weights)


def test_figures_by_hand() -> None:
    log_likelihood = torch.tensor(
        [[-2.0, -3.0, -3.0, -10.0], [-5.0, -6.0, -7.0, -8.0], [-math.inf, math.nan, -math.inf, 0]]
    )
    log_likelihood[2, 3] = -math.inf
    positions = torch.tensor([[[0, 1], [1, 0], [1, 0], [2, 0]], [[0, 1]] * 4, [[0, 1]] * 4])
    samples = samples_of(log_likelihood, positions)
    samples.valid[0, 3] = False
    weights = samples.weights
    # Specification, section 13.
    torch.testing.assert_close(
        weights[0], torch.tensor([0.576006, 0.211901, 0.211901, 0.000193]), atol=1e-6, rtol=0
    )
    found = figures(samples)
    assert float(found["ess"][0]) == pytest.approx(2.372, abs=1e-3)
    assert found["distinct"].tolist() == [0.75, 0.25, 0.25]
    assert found["mended"].tolist() == [0.25, 0.0, 0.0]
    assert found["useless"].tolist() == [0.0, 1.0, 1.0]  # exp(-5) < 0.01
    assert found["left_out"].tolist() == [0.0, 0.0, 1.0]
    assert float(found["selector_entropy"][0]) == pytest.approx(math.log(4))
    likelihood = log_likelihood[:2].exp()
    torch.testing.assert_close(found["log_marginal"][:2], likelihood.mean(dim=1).log())
    torch.testing.assert_close(
        found["likelihood_variance"][:2], likelihood.var(dim=1, correction=0)
    )
    # What a query without weight has none of is in no mean, and not the smallest of anything.
    means = averages(found)
    assert means["ess"] == pytest.approx(float(found["ess"][:2].mean()))
    assert means["ess_min"] == pytest.approx(float(found["ess"][:2].min()))
    merged = merge_equal(positions, weights)
    assert merged[0].tolist() == pytest.approx([0.576006, 0.423801, 0, 0.000193], abs=1e-5)
    assert merged[1].tolist() == pytest.approx([1.0, 0, 0, 0])


def test_weights_point_along_the_gradient() -> None:
    """Exact expectation over all draws of two samples, raw weights (section 13): the gradient.

    Whatever the samples were drawn from, and with the baseline; the scale does not grow with S.
    """
    scores = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    every = torch.tensor(list(itertools.permutations(range(3), 2)))  # (6, 2)
    log_likelihood = torch.tensor([0.8, 0.1, 0.6, 0.05, 0.2, 0.02], dtype=torch.float64).log()
    log_prob = plackett_luce_log_prob(scores, every)  # (6,)
    gradients = torch.stack(
        [torch.autograd.grad(one, scores, retain_graph=True)[0] for one in log_prob]
    )
    log_prob = log_prob.detach()
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))  # (36, 2)
    exact = torch.tensor([0.090242, 0.016813, -0.107055], dtype=torch.float64)
    for tempered, kind in ((1.0, "raw"), (0.5, "raw")):
        log_proposal = plackett_luce_log_prob(scores.detach() / tempered, every)
        drawn = log_proposal[pairs].sum(dim=1).exp()  # (36,)
        sampled = Sampled(
            every[pairs],
            log_prob[pairs],
            log_proposal[pairs],
            torch.ones(36, 2, dtype=torch.bool),
        )
        weights = WeightingConfig(kind="raw").weights(sampled, log_likelihood[pairs])
        versions = [weights]
        if tempered == 1:
            versions.append(weights - selector_baseline(kind, weights))
        for version in versions:
            expected = torch.einsum("d,ds,dsn->n", drawn, version, gradients[pairs])
            torch.testing.assert_close(expected, exact, atol=2e-6, rtol=0)


def test_kinds_of_weights() -> None:
    log_likelihood = torch.tensor([[-1.0, -2.0, -2.0], [-6.0, -7.0, -8.0]])
    sampled = Sampled(
        positions=torch.tensor([[[0, 1], [1, 0], [1, 0]]] * 2),
        log_prob=torch.tensor([[-0.5, -1.5, -1.5]] * 2),
        log_proposal=torch.tensor([[-0.7, -1.0, -1.0]] * 2),
        valid=torch.ones(2, 3, dtype=torch.bool),
    )

    def of(**settings: Any) -> list[float]:
        found: list[float] = (
            WeightingConfig(**settings).weights(sampled, log_likelihood)[0].tolist()
        )
        return found

    def softmax(*values: float) -> Any:
        return pytest.approx(torch.tensor(values).softmax(dim=0).tolist(), abs=1e-6)

    assert of() == softmax(-0.8, -2.5, -2.5)  # corrected by log p - log q
    assert of(proposal_correction=False) == softmax(-1.0, -2.0, -2.0)
    assert of(temperature=2.0, proposal_correction=False) == softmax(-0.5, -1.0, -1.0)
    assert of(duplicates="merge") == softmax(-1.5, -3.5, -math.inf)
    assert of(duplicates="released") == softmax(-1.0, -2.0, -math.inf)
    assert of(kind="uniform") == pytest.approx([1 / 3] * 3)
    assert of(kind="hard_max") == [1.0, 0.0, 0.0]
    raw = [math.exp(-0.8) / 3, math.exp(-2.5) / 3, math.exp(-2.5) / 3]
    assert of(kind="raw") == pytest.approx(raw)
    assert sum(of(query_weight="marginal")) == pytest.approx(sum(raw))
    marginal = (math.exp(-1) + 2 * math.exp(-2)) / 3
    uncorrected = of(query_weight="marginal", proposal_correction=False)
    assert sum(uncorrected) == pytest.approx(marginal)
    floor = WeightingConfig(min_log_likelihood=-5.0).weights(sampled, log_likelihood)
    assert floor.sum(dim=1).tolist() == pytest.approx([1.0, 0.0])


def test_a_query_without_finite_likelihood_is_left_out_and_named(
    questions: RagDataModule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    method = attached(questions, iterations=1)
    batch = batch_of(questions, 40)
    score = method.generator.score

    def spoiled(*arguments: Any, **settings: Any) -> Tensor:
        values = score(*arguments, **settings).view(40, 4)
        values[3] = -math.inf
        values[7] = math.nan
        values[9, 1] = math.nan  # one list alone does not spoil a query
        return values.flatten()

    monkeypatch.setattr(method.generator, "score", spoiled)
    with torch.no_grad():
        rows = method.estimate(batch)
    assert not rows["weights"][[3, 7]].any()
    assert rows["weights"][9].sum() == pytest.approx(1.0)
    with caplog.at_level(logging.WARNING):
        found = method.summarize(rows)
    ids = [questions.splits.train[row].id for row in (3, 7)]
    assert "2 of 40 queries are left out" in caplog.text
    assert all(name in caplog.text for name in ids)
    assert found["left_out"] == pytest.approx(2 / 40)
    assert all(math.isfinite(value) for value in found.values())
    method.bank.put(batch.rows, rows, 40)
    method.phase_index = 1
    loss = method.em_loss(questions.queries("train").batch([3, 7])).total
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_a_batch_that_is_left_out_has_a_gradient_of_zero(questions: RagDataModule) -> None:
    batch = batch_of(questions)
    for frozen in ("train_selector", "train_generator"):
        method = attached(
            questions, weighting=WeightingConfig(min_log_likelihood=-1e-4), **{frozen: False}
        )
        _, weights = banked(method, batch)
        assert not weights.any()
        method.em_loss(batch).total.backward()
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        assert grads
        assert not any(grad.any() for grad in grads)


def test_samples_are_scored_without_dropout(questions: RagDataModule) -> None:
    """In training mode too, as `online` has it."""
    noisy = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1, dropout=0.5)
    method = attached(questions, generator=GeneratorConfig(tiny=noisy), online=True).train()
    batch = batch_of(questions)
    torch.manual_seed(7)
    samples = method._sample(batch)
    assert method.generator.training
    expected = log_likelihoods(method.eval(), batch, samples.positions)
    torch.testing.assert_close(samples.log_likelihood, expected.detach(), atol=1e-4, rtol=1e-5)


# --- the M-step


@pytest.mark.parametrize("kind", KINDS)
def test_em_loss_by_hand(questions: RagDataModule, kind: Any) -> None:
    method = attached(questions, selector=SelectorConfig(kind=kind))
    batch = batch_of(questions)
    positions, weights = banked(method, batch)
    loss = method.em_loss(batch)
    log_p = log_likelihoods(method, batch, positions)
    log_z = method.selector.log_prob(method._offer(batch), positions)
    expected = {
        "selector": -(weights * log_z).sum(dim=1).mean(),
        "generator": -(weights * log_p).sum(dim=1).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(loss.terms[name], value, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss.total, sum(expected.values()), atol=1e-4, rtol=1e-5)


def test_generator_gradient_is_that_of_the_marginal(questions: RagDataModule) -> None:
    """At θ^t the weighted NLL has the gradient of -log (1/S) Σ_i exp(l_i) (section 8, c)."""
    method = attached(questions, train_selector=False)
    batch = batch_of(questions)
    positions, _ = banked(method, batch)
    weight = next(p for p in method.generator.parameters() if p.ndim == 2)
    (ours,) = torch.autograd.grad(method.em_loss(batch).total, weight)
    log_p = log_likelihoods(method, batch, positions)
    marginal = torch.logsumexp(log_p, dim=1) - math.log(4)
    (expected,) = torch.autograd.grad(-marginal.mean(), weight)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)


def test_online_is_the_same_step(questions: RagDataModule) -> None:
    """With the same draw the online loss is the M-step's at θ^t."""
    method = attached(questions, online=True)
    batch = batch_of(questions)
    banked(method, batch)
    torch.manual_seed(7)
    online = method.online_loss(batch)
    torch.testing.assert_close(online.total, method.em_loss(batch).total, atol=1e-4, rtol=1e-5)
    assert {"ess", "distinct"} <= online.terms.keys()


def test_the_mean_baseline_changes_the_selector_alone(questions: RagDataModule) -> None:
    batch = batch_of(questions)
    losses = {}
    for baseline in ("none", "mean"):
        method = attached(questions, online=True, baseline=baseline)
        torch.manual_seed(7)
        losses[baseline] = method.online_loss(batch)
    plain, based = losses["none"].terms, losses["mean"].terms
    torch.testing.assert_close(plain["generator"], based["generator"])
    torch.manual_seed(7)
    samples = method._sample(batch)
    log_z = method.selector.log_prob(method._offer(batch), samples.positions)
    expected = plain["selector"] + log_z.mean(dim=1).mean()
    torch.testing.assert_close(based["selector"], expected, atol=1e-4, rtol=1e-5)


def test_frozen_halves(questions: RagDataModule) -> None:
    batch = batch_of(questions)
    for name, other in (("selector", "generator"), ("generator", "selector")):
        method = attached(questions, **{f"train_{other}": False})
        banked(method, batch)
        assert method.em_loss(batch).terms.keys() == {name}
        warm_up, *iterations = [phase.trains for phase in method.schedule]
        assert warm_up == ("selector", "generator")
        assert set(iterations) == {(name,)}


# --- what is read


def test_the_generator_reads_the_list_in_its_order(questions: RagDataModule) -> None:
    batch = batch_of(questions, 2)
    method = attached(questions)
    found = method.retrieve(batch, 2)
    prompts = method.prompts(batch, found)
    for row, columns in enumerate(found.positions.tolist()):
        assert prompts[row] == written_out(method, batch, row, columns)
    # The order of the first stage, if only the set is to count.
    method = attached(questions, generator_order="retrieved", numbered=False)
    for row, columns in enumerate(found.positions.tolist()):
        kept = written_out(method, batch, row, sorted(columns)).passages
        texts = [text.text for text in method.prompts(batch, found)[row].passages]
        assert texts == [text.text.split(" ", 1)[1] for text in kept]


def test_training_candidates(questions: RagDataModule) -> None:
    """Shuffled, the same candidates in an order of the query's own; gold put in at the end."""
    batch = batch_of(questions, 40)
    method = attached(questions, shuffle_candidates=True)
    first, second = method._training_candidates(batch), method._training_candidates(batch)
    assert torch.equal(first.candidate_ids, second.candidate_ids)
    assert not torch.equal(first.candidate_ids, batch.candidate_ids)
    assert torch.equal(first.candidate_ids.sort().values, batch.candidate_ids.sort().values)
    for row, instance in enumerate(batch.instances):
        gold = {questions.store.row(name) for name in instance.relevant}
        ids = first.candidate_ids[row].tolist()
        assert [float(passage in gold) for passage in ids] == first.relevance[row].tolist()
    missing = batch.relevance.sum(dim=1) < torch.tensor([len(r) for r in batch.relevant_rows])
    assert missing.any()  # eight candidates do not hold both hops of every question
    injected = attached(questions, inject_gold=2)._training_candidates(batch)
    assert injected.relevance.sum(dim=1).tolist() == [len(r) for r in batch.relevant_rows]
    kept = ~missing
    assert torch.equal(injected.candidate_ids[kept], batch.candidate_ids[kept])
    # Where there is room nothing is lost.
    batch.candidate_ids[:, 6:], batch.candidate_scores[:, 6:] = -1, -math.inf
    batch.relevance[:, 6:] = 0.0
    roomy = lists.with_gold(batch, questions.store, 2)
    assert torch.equal(roomy.candidate_ids[:, :6], batch.candidate_ids[:, :6])
    assert roomy.relevance.sum(dim=1).tolist() == [len(r) for r in batch.relevant_rows]
    assert (roomy.candidate_scores.isfinite() == (roomy.candidate_ids >= 0)).all()


def test_gold_can_be_injected_only_where_it_is_named(questions: RagDataModule) -> None:
    unnamed = [replace(instance, relevant=()) for instance in questions.splits.train]
    questions._splits = replace(questions.splits, train=tuple(unnamed))
    with pytest.raises(UserError, match="no training query of this data set names its relevant"):
        attached(questions, inject_gold=1)


# --- the warm-up


def test_warm_up_by_hand(questions: RagDataModule) -> None:
    """Gold first in the order of the hops, then the first stage's order; cut to K."""
    method = attached(questions, phase=0, k=3, warm_up_gold=2)
    batch = batch_of(questions)
    store = questions.store
    wanted, prompts = [], []
    for row, instance in enumerate(batch.instances):
        ids = batch.candidate_ids[row].tolist()
        gold = [store.row(name) for name in instance.relevant]
        wanted.append([ids.index(r) for r in dict.fromkeys([*gold, *ids]) if r in ids][:3])
        read = list(dict.fromkeys([*gold, *ids]))[:3]  # gold is read even if not retrieved
        prompts.append(numbered_prompt(instance.text, [store[r] for r in read]))
    loss = method.warm_up_loss(batch)
    taught = torch.tensor(wanted)[:, None]
    log_z = method.selector.log_prob(method._offer(batch), taught)
    answers = [instance.answers[0] for instance in batch.instances]
    log_p = method.generator.log_likelihood(prompts, answers)
    torch.testing.assert_close(loss.terms["selector"], -log_z.mean())
    torch.testing.assert_close(loss.terms["generator"], -log_p.mean())


def test_gold_without_names_is_among_the_candidates(questions: RagDataModule) -> None:
    """A passage elsewhere in the store that holds the answer's words can be about anything."""
    batch = batch_of(questions, 40)
    batch.instances = [replace(instance, relevant=()) for instance in batch.instances]
    # As the task would judge by contents: a candidate and passages that were not retrieved.
    strangers = [r for r in range(len(questions.store)) if r not in batch.candidate_ids[0]]
    own = batch.candidate_ids[0, [5, 2]].tolist()
    batch.relevant_rows[0] = torch.tensor(sorted([*strangers[:3], *own]))
    assert lists.gold(batch, 0, questions.store) == own[::-1]
    first = lists.gold_first(batch, 0, questions.store, most=1)
    assert first[0] == own[1]
    assert sorted(first) == sorted(batch.candidate_ids[0].tolist())


def test_teachers(questions: RagDataModule, tmp_path: Path) -> None:
    batch = batch_of(questions, 40)
    first = attached(questions, teacher="first_stage", k=3)
    assert all(first._teacher.columns(batch, row, 3).tolist() == [0, 1, 2] for row in range(40))
    lines = []
    for row, instance in enumerate(batch.instances):
        ids = batch.candidate_ids[row].tolist()
        names = [questions.store[ids[column]].id for column in (4, 2, 7, 0)]
        lines.append(json.dumps({"id": instance.id, "passages": names[: 1 + row % 4]}))
    path = tmp_path / "lists.jsonl"
    path.write_text("\n".join([*lines, '{"id": "someone else\'s", "passages": ["?"]}']))
    from_file = attached(questions, teacher=str(path), k=3)
    for row in range(40):
        assert (
            from_file._teacher.columns(batch, row, 3).tolist()
            == [4, 2, 7, 0][: min(3, 1 + row % 4)]
        )
    from_file.phase_index = 0
    assert torch.isfinite(from_file.warm_up_loss(batch).total)


def test_a_teacher_of_a_share_of_the_queries(questions: RagDataModule) -> None:
    """Its loss is that of the queries which it has lists for; the others cost no encoding."""
    batch = batch_of(questions, 40)
    all_taught = attached(questions, teacher="first_stage", k=3)
    method = attached(questions, teacher="first_stage", teacher_share=0.25, k=3)
    shown = [row for row in range(40) if len(method._teacher.columns(batch, row, 3))]
    assert len(shown) == 10
    positions = torch.tensor([0, 1, 2]).expand(40, 1, 3)
    log_z = method.selector.log_prob(method._offer(batch), positions)
    loss = method.warm_up_loss(batch)
    torch.testing.assert_close(loss.terms["selector"], -log_z[shown].mean())
    torch.testing.assert_close(
        loss.terms["generator"], all_taught.warm_up_loss(batch).terms["generator"]
    )
    alone = questions.queries("train").batch([row for row in range(40) if row not in shown][:4])
    nothing = method.warm_up_loss(alone)
    assert nothing.terms["selector"] == 0
    assert nothing.total.requires_grad


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ('["p"]', "'passages' names 'p', no passage of the store"),
        ("OTHER", "another passage of the store; legal: the candidates of the query"),
        ("TWICE", "twice; legal: each passage once"),
        ("[]", "'passages' is empty or missing"),
        ('"p"', "a list of ids"),
        ("SECOND", "a second list for the query"),
        ("NONE", "no list for 39 of 40 training queries"),
    ],
)
def test_bad_teacher_lists(
    questions: RagDataModule, tmp_path: Path, passages: str, message: str
) -> None:
    train, batch = questions.splits.train, batch_of(questions, 40)
    own = questions.store[int(batch.candidate_ids[0, 0])].id
    strangers = [r for r in range(len(questions.store)) if r not in batch.candidate_ids[0]]
    fine = json.dumps({"id": train[0].id, "passages": [own]})
    made = {
        "OTHER": json.dumps([questions.store[strangers[0]].id]),
        "TWICE": json.dumps([own, own]),
    }
    bad = f'{{"id": "{train[0].id}", "passages": {made.get(passages, passages)}}}'
    text = {"SECOND": f"{fine}\n{fine}", "NONE": fine}.get(passages, bad)
    path = tmp_path / "lists.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"lists\.jsonl") as caught:
        attached(questions, teacher=str(path))
    assert message in str(caught.value)


# --- phases and settings


def test_phases(questions: RagDataModule) -> None:
    plain = attached(questions, iterations=2)
    assert [phase.name for phase in plain.schedule] == ["warm_up", "em_1", "em_2"]
    assert all(phase.series == "em" for phase in plain.schedule)
    assert [phase.estimate is not None for phase in plain.schedule] == [False, True, True]
    halves = attached(questions, iterations=1, sequential=True)
    assert [(p.name, p.trains) for p in halves.schedule[1:]] == [
        ("em_1_generator", ("generator",)),
        ("em_1_selector", ("selector",)),
    ]
    reinit = attached(questions, iterations=2, reinit=True)
    assert [phase.start_from for phase in reinit.schedule] == [None, "warm_up", "warm_up"]
    online = attached(questions, iterations=1, online=True)
    assert online.schedule[1].estimate is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "model.k is 0; legal: 1 or more"),
        ({"num_samples": 0}, "model.num_samples is 0; legal: 1 or more"),
        ({"warm_up_epochs": 0, "iterations": 0}, "warm_up_epochs or iterations"),
        ({"train_selector": False, "train_generator": False}, "something must train"),
        ({"baseline": "mean"}, "baseline: mean needs online: true"),
        (
            {
                "baseline": "mean",
                "online": True,
                "weighting": WeightingConfig(kind="uniform"),
            },
            "baseline: mean needs weighting.kind: self_normalized or raw",
        ),
        ({"reinit": True, "online": True}, "reinit: true has no online or sequential"),
        ({"reinit": True, "sequential": True}, "reinit: true has no online or sequential"),
        ({"teacher_share": 0.0}, "model.teacher_share is 0.0; legal: above 0, up to 1"),
        ({"teacher": "gold-first"}, "model.teacher is 'gold-first'; legal: first_stage, gold_fi"),
        ({"online": True, "sequential": True}, "online: true has no sequential"),
        ({"reinit": True, "warm_up_epochs": 0}, "reinit: true needs warm_up_epochs"),
        ({"sequential": True, "train_selector": False}, "sequential: true needs"),
        ({"k": 9}, "model.k is 9, but data.num_candidates is 8"),
    ],
)
def test_bad_settings(questions: RagDataModule, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attached(questions, **settings)


def test_bad_groups_of_settings() -> None:
    with pytest.raises(UserError, match=r"model.weighting.temperature is 0.* above 0"):
        WeightingConfig(temperature=0.0)
    with pytest.raises(UserError, match=r"model\.weighting\.duplicates"):
        WeightingConfig(kind="raw", duplicates="merge")
    with pytest.raises(UserError, match=r"weighting\.temperature is 2.0; legal with kind: uniform"):
        WeightingConfig(kind="uniform", temperature=2.0)
    with pytest.raises(UserError, match=r"selector\.instruction is True; legal with kind: cross"):
        SelectorConfig(kind="cross-encoder", instruction=True)
    with pytest.raises(UserError, match=r"model.selector.top_p is 1.5"):
        SelectorConfig(top_p=1.5)
    with pytest.raises(UserError, match=r"model.selector.proposal_temperature is -1"):
        SelectorConfig(proposal_temperature=-1)
    with pytest.raises(UserError, match="legal with kind: bi-encoder"):
        SelectorConfig(kind="bi-encoder", decoding="string")
    with pytest.raises(UserError, match=r"selector\.decoding: string gives no probability"):
        Dro(
            GeneratorConfig(tiny=TINY),
            EncoderConfig(tiny=TINY),
            selector=SelectorConfig(decoding="string", top_p=0.9),
        )


def test_one_sample_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Dro(GeneratorConfig(tiny=TINY), EncoderConfig(tiny=TINY), num_samples=1)
    assert "expected gradient is zero" in caplog.text


@pytest.mark.parametrize("frozen", ["selector", "generator"])
def test_the_warm_up_trains_what_the_iterations_do_not(
    questions: RagDataModule, caplog: pytest.LogCaptureFixture, frozen: str
) -> None:
    """As the docstring has it, and it is said; without a warm-up or iterations there is no word."""
    settings = {f"train_{frozen}": False, "iterations": 2}
    with caplog.at_level(logging.WARNING):
        method = attached(questions, **settings)
    assert f"model.train_{frozen} is false for the iterations alone" in caplog.text
    warm_up, *iterations = method.schedule
    assert warm_up.trains == ("selector", "generator")
    assert all(frozen not in phase.trains and phase.trains for phase in iterations)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        alone = attached(questions, warm_up_epochs=0, **settings)
        attached(questions, **{**settings, "iterations": 0})
        attached(questions, iterations=2)
    assert all(frozen not in phase.trains for phase in alone.schedule)
    assert "for the iterations alone" not in caplog.text


# --- the command line


def arguments(folder: Path, *flags: str, data: str = "synthetic_questions") -> list[str]:
    files = (
        CONFIGS / "base.yaml",
        CONFIGS / "data" / f"{data}.yaml",
        CONFIGS / "backbone" / "tiny.yaml",
        CONFIGS / "method" / "dro_listwise.yaml",
        SMALL,
    )
    return [
        "fit",
        *(part for file in files for part in ("--config", str(file))),
        *(f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")),
        f"--runs={folder / 'runs'}",
        f"--data.cache_dir={folder / 'cache'}",
        "--model.warm_up_epochs=1",
        "--model.epochs=1",
        *flags,
    ]


SWITCHES = [
    ("selector.kind=bi-encoder",),
    ("selector.kind=cross-encoder",),
    ("selector.kind=multi-hop",),
    ("selector.decoding=string",),
    ("selector.decoding=string", "selector.top_p=0.9", "weighting.proposal_correction=false"),
    ("selector.identifiers=letters",),
    ("selector.instruction=true",),
    ("selector.proposal_temperature=0.7", "selector.top_p=0.95"),
    ("selector.temperature=0.5", "selector.kind=bi-encoder"),
    ("weighting.kind=raw",),
    ("weighting.kind=uniform",),
    ("weighting.kind=hard_max",),
    ("weighting.length_normalized=true",),
    ("weighting.temperature=2.0",),
    ("weighting.duplicates=merge",),
    ("weighting.duplicates=released",),
    ("weighting.query_weight=marginal",),
    ("weighting.min_log_likelihood=-20.0",),
    ("num_samples=1",),
    ("k=1",),
    ("teacher=first_stage",),
    ("teacher_share=0.5",),
    ("warm_up_gold=0",),
    ("generator_order=retrieved",),
    ("shuffle_candidates=true",),
    ("inject_gold=1",),
    ("numbered=false",),
    ("online=true",),
    ("online=true", "baseline=mean"),
    ("sequential=true",),
    ("reinit=true",),
    ("train_selector=false",),
    ("train_generator=false",),
    ("iterations=0",),
]


@pytest.mark.parametrize("switch", SWITCHES, ids=" ".join)
def test_every_switch_is_one_flag(
    switch: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of the first iteration, or of the warm-up where the switch is of that."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    steps: list[str] = []
    weighted, warm_up = Dro._weighted, Dro.warm_up_loss

    def seen(name: str, original: Any) -> Any:
        return lambda self, *given: steps.append(name) or original(self, *given)

    monkeypatch.setattr(Dro, "_weighted", seen("iteration", weighted))
    monkeypatch.setattr(Dro, "warm_up_loss", seen("warm_up", warm_up))
    of_warm_up = switch[0].startswith(("teacher", "warm_up", "iterations=0"))
    length = ("iterations=0",) if of_warm_up else ("warm_up_epochs=0", "iterations=1")
    if "reinit=true" in switch:  # a whole run: a rehearsal keeps no weights to begin with
        length = ("warm_up_epochs=1", "iterations=1")
    flags = [f"--model.{setting}" for setting in (*length, *switch)]
    rehearsal = [] if "reinit=true" in switch else ["--trainer.fast_dev_run=2"]
    assert cli.main([*arguments(tmp_path), *flags, *rehearsal]) == 0
    assert ("warm_up" if of_warm_up else "iteration") in steps


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_a_run_leaves_the_figures_of_its_estimates(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    flags = [f"--generator.architecture={architecture}", "--generator.passages=concatenate"]
    flags += ["--model.iterations=2", "--model.patience=null", "--model.weighting.kind=uniform"]
    assert cli.main([*arguments(tmp_path), *flags]) == 0
    (path,) = tmp_path.rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["phases"] == ["warm_up", "em_1", "em_2"]
    assert summary["estimates"].keys() == {"em_1", "em_2"}
    found = summary["estimates"]["em_1"]
    assert found["ess"] == pytest.approx(8.0)  # uniform weights of eight samples
    assert 0 < found["distinct"] <= 1
    assert found["log_marginal"] < 0 < found["selector_entropy"]
    assert {"success@1/selector", "success@1/first_stage", "ess_min", "useless"} <= found.keys()
    assert {"em_1", "em_2", "warm_up"} <= summary["cost"].keys()
    assert summary["cost"]["em_1"]["tokens/selector/estimate"] > 0


def test_a_selector_that_writes_freely_says_how_often_it_was_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    flags = ["--model.selector.decoding=string", "--model.iterations=0"]
    assert cli.main([*arguments(tmp_path), *flags]) == 0
    (path,) = tmp_path.rglob("metrics.json")
    metrics = json.loads(path.read_text())
    assert 0.5 < metrics["test"]["mended_lists"] <= 1  # after a few steps it writes no list yet
    assert "mended_lists" in metrics["validation"][0]


def test_documents_are_demonstrations_in_relation_extraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    flags = ["--model.iterations=1", "--model.warm_up_epochs=0", "--trainer.fast_dev_run=1"]
    assert cli.main([*arguments(tmp_path, data="synthetic_relations"), *flags]) == 0
    data = RagDataModule(
        SyntheticRelations(train=24, validation=8, test=8),
        RelationExtraction(scorer="accuracy", negative_label=None),
        BM25(),
        num_candidates=4,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    method = attached(data)
    batch = data.queries("train").batch(range(4))
    prompts = method.prompts(batch, method.retrieve(batch, 2))
    for prompt in prompts:
        first = prompt.passages[0]
        start, end = first.spans["label"]
        assert first.text.startswith("[1] ")
        assert first.text[start:end].strip()  # the label's place moved with the number
