"""RUIE: preferences, both losses, teachers and rankers by hand; every switch; the command line."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig, TinyConfig
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticQuestions, SyntheticRelations
from lightning_rag.errors import UserError
from lightning_rag.functional.contrastive import info_nce
from lightning_rag.functional.distillation import kl_distillation
from lightning_rag.methods.demonstrations import Choice, choose_passages
from lightning_rag.methods.preferences import agreement, drawn
from lightning_rag.methods.ruie import Ruie
from lightning_rag.tasks.keywords import TOKENS
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Prompt, RagBatch, Rendered

TINY = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1)
Make = Callable[..., RagDataModule]


@pytest.fixture
def extraction(three_tasks: Make) -> RagDataModule:
    """Two tasks to learn from, whose queries are offered demonstrations of both."""
    return three_tasks(train_scope="any")


@pytest.fixture
def relations(tmp_path: Path) -> RagDataModule:
    data = RagDataModule(
        SyntheticRelations(train=40, validation=16, test=16),
        RelationExtraction(scorer="accuracy", negative_label=None),
        BM25(),
        num_candidates=8,
        batch_size=8,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    return data


@pytest.fixture
def questions(tmp_path: Path) -> RagDataModule:
    data = RagDataModule(
        SyntheticQuestions(train=24, validation=8, test=8),
        QuestionAnswering(),
        BM25(),
        num_candidates=6,
        batch_size=8,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    return data


def attached(data: RagDataModule, **arguments: Any) -> Ruie:
    """A RUIE over `data`, with weights that tell texts apart, without dropout."""
    encoder = arguments.pop("encoder", EncoderConfig(tiny=TINY, max_length=256))
    generator = arguments.pop("generator", GeneratorConfig(tiny=TINY))
    method = Ruie(generator, encoder, **{"k": 2, "subsample": 4, **arguments})
    method.attach(data)
    torch.manual_seed(3)
    for name, weight in method.named_parameters():
        if weight.ndim > 1 and not name.startswith("retriever"):
            torch.nn.init.normal_(weight, std=0.3)
    return method.eval()


def batch_of(data: RagDataModule, rows: Any = range(10)) -> RagBatch:
    return data.queries("train").batch(list(rows))


def banked(method: Ruie, phase: int = 0) -> dict[str, Tensor]:
    """Estimate over the training queries as the schedule would; return the bank."""
    estimate = method.schedule[phase].estimate
    assert estimate is not None
    size = len(method.data.splits.train)
    with torch.no_grad():
        for batch in method.data.estimate_dataloader():
            method.bank.put(batch.rows, estimate(batch), size)
    return dict(method.bank.tensors)


def encoded(method: Ruie, texts: list[Rendered]) -> Tensor:
    return torch.stack([method.retriever([text])[0] for text in texts])


# --- phase reward


def test_preferences_one_pair_at_a_time(extraction: RagDataModule) -> None:
    """Mean log-likelihood of the answer after one demonstration; untagged, four of six drawn."""
    method = attached(extraction)
    bank = banked(method)["preference"]  # (20, 6)
    batch = batch_of(extraction, range(20))
    assert torch.equal(bank.isfinite(), drawn(batch, 4, 0, at_random=True))
    task, store = extraction.task, extraction.store
    for row, column in bank.isfinite().nonzero()[::7].tolist():
        instance = batch.instances[row]
        shown = task.passage(store[int(batch.candidate_ids[row, column])])
        prompt = Prompt(task.source(instance), (shown,))
        expected = method.generator.log_likelihood(
            [prompt], [instance.answers[0]], reduction="mean"
        )
        assert float(bank[row, column]) == pytest.approx(expected.item(), abs=1e-4)
        assert not any(token in shown.text for token in TOKENS)


def test_what_the_generator_prefers_can_be_tagged(extraction: RagDataModule) -> None:
    """As the released code has it: gold mentions of query and candidate, but not the answer."""
    method = attached(extraction, tagged_preferences=True)
    seen: list[Prompt] = []
    score = method.generator.score
    method.generator.score = lambda prompts, targets, **kw: (  # type: ignore[method-assign]
        seen.extend(prompts) or score(prompts, targets, **kw)
    )
    batch = batch_of(extraction, [1])
    wanted = torch.zeros(1, 6, dtype=torch.bool)
    wanted[0, 2] = True
    method.prefers.score(batch, wanted)
    (prompt,) = seen
    instance = batch.instances[0]
    name = instance.text.split()[0]
    assert f"<Keyword> {name} </Keyword> sees" in prompt.query.text
    assert prompt.query.text.endswith("Output:")
    shown = extraction.store[int(batch.candidate_ids[0, 2])]
    assert prompt.passages == (extraction.task.tagged_key(shown, "untyped"),)


def test_reward_loss_by_hand(extraction: RagDataModule) -> None:
    """Spec, section 6: listwise cross-entropy over tagged pairs; off-task candidates are last."""
    method = attached(extraction, reward_size=5)
    preferences = banked(method)["preference"]
    batch = batch_of(extraction)
    task, store = extraction.task, extraction.store
    losses, left_out = [], 0
    for row, instance in enumerate(batch.instances):
        ids = batch.candidate_ids[row].tolist()
        scores = preferences[row].clone()
        for column, passage in enumerate(ids):
            if store[passage].instance.task != instance.task:
                scores[column] -= 100
        own = (scores > -100).sum()
        choice = choose_passages(
            batch_of(extraction, [row]),
            scores[None],
            **{"size": 5, "positives": 3, "negatives": 16, "epoch": 0, "seed": 0, "store_size": 30},
        )
        if own < 3:
            left_out += 1
            continue
        rows = choice.rows[0].tolist()
        best = {ids[column] for column in scores.nan_to_num(-1e9).argsort(descending=True)[:3]}
        assert rows[0] in best
        assert not best & set(rows[1:])
        logits = torch.cat(
            [
                method.reward(
                    [task.tagged_query(instance, "untyped")],
                    [task.tagged_key(store[passage], "untyped")],
                )
                for passage in rows
            ]
        )
        losses.append(-(logits[0] - logits.exp().sum().log()))
    assert losses
    assert left_out
    found = method.reward_loss(batch)
    torch.testing.assert_close(found.total, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)
    assert float(found.terms["left_out"]) == pytest.approx(left_out / 10)


def test_positives_and_negatives_rotate_by_epoch(
    relations: RagDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = attached(relations, subsample=8, reward_size=4)
    scores = banked(method)["preference"]
    batch = batch_of(relations, range(8))
    firsts, others = [], []
    for epoch in range(6):
        monkeypatch.setattr(Ruie, "current_epoch", epoch)
        choice = method._choice(batch, scores[:8], 4, "preference")
        firsts.append(choice.rows[:, 0])
        others.append(choice.rows[:, 1:].sort().values)
    assert all(torch.equal(firsts[e], firsts[e + 3]) for e in range(3))
    assert all((firsts[a] != firsts[b]).all() for a, b in itertools.combinations(range(3), 2))
    # Five negatives, three at a time: other ones in the next epoch.
    assert all((one != two).any(dim=1).all() for one, two in itertools.pairwise(others))
    # Over all epochs each of the five has its turn.
    seen = [set(torch.stack(others)[:, row].flatten().tolist()) for row in range(8)]
    assert [len(rows) for rows in seen] == [5] * 8


def test_held_out_tasks_are_in_no_training_column(three_tasks: Make) -> None:
    """Neither as candidates nor as the random passages that fill up, whatever the scope."""
    for scope in ("any", "same_task"):
        data = three_tasks(train_scope=scope)
        method = attached(data, reward_size=8, distil_size=8)
        held_out = {row for row, p in enumerate(data.store) if p.instance.held_out}
        assert len(held_out) == 10
        read: set[int] = set()
        for phase, name in ((0, "preference"), (1, "reward")):
            scores = banked(method, phase)[name]
            for size in (4, 8, 12):
                choice = method._choice(batch_of(data, range(20)), scores, size, name)
                read |= set(choice.rows[choice.there].tolist())
        assert len(read) > 10
        assert not read & held_out


def test_demonstrations_of_other_tasks_are_never_positives(extraction: RagDataModule) -> None:
    """Unless nothing is taken off their scores."""
    method = attached(extraction, subsample=6, positives=2)
    scores = banked(method)["preference"]
    batch = batch_of(extraction, range(20))
    tasks = [p.instance.task for p in extraction.store]

    def positives(method: Ruie, name: str) -> list[bool]:
        choice = method._choice(batch, scores, 4, name)
        rows = zip(batch.instances, choice.rows[:, 0].tolist(), strict=True)
        return [tasks[row] == instance.task for instance, row in rows if row >= 0]

    assert all(positives(method, "preference"))
    assert all(positives(method, "reward"))
    assert not all(positives(attached(extraction, off_task_penalty=0.0), "preference"))
    released = attached(extraction, penalize_reward=False, positives=2)
    assert not all(positives(released, "reward"))
    assert all(positives(released, "preference"))


def test_agreement_of_the_reward_model(extraction: RagDataModule) -> None:
    """Over validation queries; the generator is asked once."""
    method = attached(extraction)
    batch = extraction.queries("validation").batch(range(8))
    found = method.reward_agreement(batch)["agreement"]
    everything = torch.ones(8, 6, dtype=torch.bool)
    wanted = method.prefers.score(batch, everything)
    wanted = wanted.masked_fill(~drawn(batch, 4, 0, at_random=True), math.nan)
    rewards = method.rewards.score(batch, everything)
    torch.testing.assert_close(found, agreement(rewards, wanted), equal_nan=True)
    method.generator.score = None  # type: ignore[assignment, method-assign]
    again = method.reward_agreement(extraction.queries("validation").batch([5, 2]))["agreement"]
    torch.testing.assert_close(again, found[[5, 2]], equal_nan=True)


# --- phase distil


def test_the_reward_model_scores_every_candidate(extraction: RagDataModule) -> None:
    method = attached(extraction)
    bank = banked(method, 1)["reward"]
    assert bank.isfinite().all()
    batch = batch_of(extraction)
    task, store = extraction.task, extraction.store
    for row, column in ((0, 0), (3, 5), (9, 2)):
        query = task.tagged_query(batch.instances[row], "untyped")
        key = task.tagged_key(store[int(batch.candidate_ids[row, column])], "untyped")
        assert batch.instances[row].answers[0] in query.text
        assert float(bank[row, column]) == pytest.approx(
            method.reward([query], [key]).item(), abs=1e-4
        )


@pytest.mark.parametrize("mask", ["none", "same_answer"])
def test_distil_loss_by_hand(extraction: RagDataModule, mask: Any) -> None:
    """Spec, section 8: InfoNCE over four blocks and KL, written out; a query is left out."""
    method = attached(extraction, mask_false_negatives=mask, penalize_reward=False)
    rewards = banked(method, 1)["reward"]
    method.bank._tensors["reward"][3, 2:] = math.nan
    batch = batch_of(extraction)
    choice = method._choice(batch, method.bank.get("reward", batch.rows), 4, "reward")
    kept = [row for row in range(10) if row != 3]
    assert choice.usable.nonzero().flatten().tolist() == kept
    task, store = extraction.task, extraction.store
    queries = encoded(method, [task.query(batch.instances[row]) for row in kept])
    rows = choice.rows[kept]  # (9, 4)
    passages = encoded(method, [task.tagged_key(store[r], "untyped") for r in rows.flatten()])
    ignore = torch.zeros(9, 36, dtype=torch.bool)
    for i, column in itertools.product(range(9), range(36)):
        passage = int(rows.flatten()[column])
        asked, shown = batch.instances[kept[i]], store[passage].instance
        same = (asked.task, asked.answers) == (shown.task, shown.answers)
        ignore[i, column] = (same or passage == int(rows[i, 0])) and column // 4 != i
    assert ignore.any()
    contrastive = info_nce(
        queries,
        passages,
        temperature=0.01,
        blocks=("qp", "pq", "qq", "pp"),
        ignore=ignore if mask == "same_answer" else None,
    ).mean()
    own = torch.einsum("bd,bpd->bp", queries, passages.view(9, 4, -1))
    columns = [
        [batch.candidate_ids[row].tolist().index(passage) for passage in rows[i].tolist()]
        for i, row in enumerate(kept)
    ]
    teacher = rewards[torch.tensor(kept)[:, None], torch.tensor(columns)]
    target = teacher.softmax(dim=1)
    divergence = (target * (target.log() - (own / 0.01).log_softmax(dim=1))).sum(dim=1).mean()
    found = method.distil_loss(batch)
    near = {"atol": 2e-2, "rtol": 1e-3}  # 1 / t magnifies the rounding
    torch.testing.assert_close(found.terms["contrastive"], contrastive.detach(), **near)
    torch.testing.assert_close(found.terms["distillation"], divergence.detach(), **near)
    total = 0.2 * contrastive + divergence
    torch.testing.assert_close(found.total, total, **near)
    assert float(found.terms["left_out"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("temperature", "blocks", "contrastive", "distillation", "total"),
    [
        (1.0, ("qp", "pq", "qq", "pp"), 2.526661, 0.541760, 1.047092),
        (1.0, ("qp", "pq"), 2.230743, 0.541760, 0.987908),
        (0.01, ("qp", "pq", "qq", "pp"), 103.482807, 69.961346, 90.657907),
        (0.01, ("qp", "pq"), 91.202347, 69.961346, 88.201815),
    ],
)
def test_the_released_figures(
    extraction: RagDataModule,
    temperature: float,
    blocks: Any,
    contrastive: float,
    distillation: float,
    total: float,
) -> None:
    """Section 17b of the notes on RUIE: given vectors, teacher's scores and logits."""
    method = attached(extraction, temperature=temperature, blocks=blocks, reward_size=4)
    i, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(4.0, dtype=torch.float64)
    queries, passages = (1 + 3 * i[:2] + j).sin(), (1 + 2 * i + j).cos()
    method.search.queries = lambda batch: queries / queries.norm(dim=1, keepdim=True)
    unit = passages / passages.norm(dim=1, keepdim=True)
    method.search.passages = lambda rows, queries: unit.view(2, 3, 4)
    teacher = torch.tensor([[2, 0.5, -1], [0.3, 0.1, -100]], dtype=torch.float64)
    rows = torch.arange(8)
    method._choice = lambda *arguments: Choice(rows[:6].view(2, 3), teacher)
    method.bank.put(torch.arange(20), dict.fromkeys(("reward", "preference"), torch.zeros(20)), 20)
    batch = batch_of(extraction, [0, 1])
    found = method.distil_loss(batch)
    assert found.terms["contrastive"].item() == pytest.approx(contrastive, abs=1e-5)
    assert found.terms["distillation"].item() == pytest.approx(distillation, abs=1e-5)
    assert found.total.item() == pytest.approx(total, abs=1e-5)
    logits = torch.tensor([2, 1, 0, -1, 0, 3, -1, 0.5])
    method._choice = lambda *arguments: Choice(rows.view(2, 4), torch.zeros(2, 4))
    method.reward.forward = lambda queries, passages: logits
    assert method.reward_loss(batch).total.item() == pytest.approx(1.790057, abs=1e-5)


def test_the_distil_loss_takes_its_numbers(relations: RagDataModule) -> None:
    """Weights, temperatures and blocks change the terms as the functions say."""
    batch = batch_of(relations, range(8))
    plain = attached(relations, temperature=0.1)
    banked(plain, 1)
    scores = plain.bank.get("reward", batch.rows)
    base = plain.distil_loss(batch)

    def of(**settings: Any) -> Any:
        method = attached(relations, **{"temperature": 0.1, **settings})
        method.load_state_dict(plain.state_dict())
        method.bank = plain.bank
        return method.distil_loss(batch)

    weighted = of(contrastive_weight=0.7, distillation_weight=0.1)
    expected = 0.7 * base.terms["contrastive"] + 0.1 * base.terms["distillation"]
    torch.testing.assert_close(weighted.total.detach(), expected)
    alone = of(distillation_weight=0.0)
    torch.testing.assert_close(alone.total.detach(), 0.2 * base.terms["contrastive"])
    less = of(blocks=("qp",))
    assert less.terms["contrastive"] < base.terms["contrastive"]
    torch.testing.assert_close(less.terms["distillation"], base.terms["distillation"])
    choice = plain._choice(batch, scores, 4, "reward")
    queries = plain.search.queries(batch)
    own = torch.einsum("bd,bpd->bp", queries, plain.search.passages(choice.rows, queries))
    for name, settings in (
        ("teacher_temperature", {"student_temperature": 0.1, "teacher_temperature": 3.0}),
        ("temperature", {"student_temperature": 3.0}),
    ):
        expected = kl_distillation(own, choice.teacher, **settings).mean().detach()
        torch.testing.assert_close(of(**{name: 3.0}).terms["distillation"], expected)


def test_random_passages_have_no_teacher(relations: RagDataModule) -> None:
    """They are negatives of both losses, and the teacher gives them nothing."""
    method = attached(relations, distil_size=8)
    banked(method, 1)
    batch = batch_of(relations, range(4))
    choice = method._choice(batch, method.bank.get("reward", batch.rows), 8, "reward")
    assert (choice.teacher == -math.inf).sum(dim=1).tolist() == [2] * 4
    assert choice.there.all()
    method.distil_loss(batch).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_a_store_without_enough_passages(three_tasks: Make) -> None:
    """Twelve passages a query of a task with ten: places stay empty, and count for nothing."""
    data = three_tasks()
    method = attached(data, distil_size=12, reward_size=12)
    for phase, loss in ((0, "reward_loss"), (1, "distil_loss")):
        banked(method, phase)
        found = getattr(method, loss)(batch_of(data))
        found.total.backward()
        assert found.total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    with torch.no_grad():
        full = method.distil_loss(batch_of(data)).total
        method.distil_size = 9  # as many as there are
        torch.testing.assert_close(method.distil_loss(batch_of(data)).total, full)


def test_a_batch_that_is_left_out_has_a_gradient_of_zero(extraction: RagDataModule) -> None:
    method = attached(extraction)
    batch = batch_of(extraction)
    for phase, name, loss in ((0, "preference", "reward_loss"), (1, "reward", "distil_loss")):
        banked(method, phase)
        method.bank._tensors[name].fill_(math.nan)
        found = getattr(method, loss)(batch)
        assert found.total.item() == 0
        assert float(found.terms["left_out"]) == 1
        method.zero_grad()
        found.total.backward()
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        assert grads
        assert not any(grad.any() for grad in grads)


def test_queries_left_out_are_named_and_counted(
    three_tasks: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of three demonstrations: each query has two of its own."""
    data = three_tasks(three_tasks.reader(few=3), train_scope="any")  # type: ignore[attr-defined]
    method = attached(data, subsample=6)
    monkeypatch.setattr(Ruie, "trainer", type("T", (), {"fast_dev_run": 0}))
    rows = banked(method)
    with caplog.at_level(logging.WARNING):
        found = method.summarize(rows)
    names = [i.id for i in data.splits.train if i.task == "NER_two"]
    assert len(names) == 3
    assert found["left_out"] >= 3 / 13
    assert "fewer than 3 scored candidates of their own task" in caplog.text
    few = rows["figures/left_out"].nonzero().flatten().tolist()
    assert {10, 11, 12} <= set(few)
    assert 0 < found["off_task"] < 1
    choice = method._choice(batch_of(data, range(13)), rows["preference"], 4, "preference")
    assert (~choice.usable).nonzero().flatten().tolist() == few


def test_preferences_can_teach_by_themselves(extraction: RagDataModule) -> None:
    """No reward model, no first phase; the retriever begins with the same weights."""
    method = attached(extraction, teacher="preference")
    assert [phase.name for phase in method.schedule] == ["distil"]
    assert method.groups().keys() == {"generator", "retriever"}
    bank = banked(method, 0)
    assert "reward" not in bank
    whole = attached(extraction)
    expected = banked(whole, 0)["preference"]
    torch.testing.assert_close(bank["preference"], expected, equal_nan=True)
    retriever = whole.retriever.state_dict()
    assert all(torch.equal(w, retriever[n]) for n, w in method.retriever.state_dict().items())
    method.distil_loss(batch_of(extraction)).total.backward()
    assert any(p.grad is not None and p.grad.any() for p in method.retriever.parameters())


def test_agreement_of_the_retriever(extraction: RagDataModule) -> None:
    method = attached(extraction, monitor="agreement")
    distil = method.schedule[1]
    assert distil.monitor == "agreement"
    assert distil.validate is not None
    batch = extraction.queries("validation").batch(range(8))
    task, store = extraction.task, extraction.store
    scores = torch.zeros(8, 6)
    for row, column in itertools.product(range(8), range(6)):
        query, key = encoded(
            method,
            [
                task.query(batch.instances[row]),
                task.tagged_key(store[int(batch.candidate_ids[row, column])], "untyped"),
            ],
        )
        scores[row, column] = query @ key
    wanted = method.prefers.of_validation(batch)
    assert wanted.isfinite().sum(dim=1).tolist() == [4] * 8
    with torch.no_grad():
        found = distil.validate(batch)["agreement"]
    torch.testing.assert_close(found, agreement(scores.detach(), wanted))


# --- what is read


def test_tags(extraction: RagDataModule) -> None:
    """On the reward model's pairs and the passages; never on the retriever's queries."""
    batch = batch_of(extraction, [1])
    for tags, opening in (("untyped", "<Keyword> "), ("typed", "<Keyword> person: ")):
        method = attached(extraction, tags=tags)
        queries, passages = method.rewards.pairs(batch, [0], [4])
        assert all(opening in text.text for text in (*queries, *passages))
        seen: list[tuple[str, str]] = []
        method.retriever.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.extend(
                (text.text, kwargs["role"]) for text in args[0]
            ),
            with_kwargs=True,
        )
        method.retriever(method.search.keys([4]), role="passage"), method.search.queries(batch)
        (passage, role), (query, query_role) = seen
        assert (role, query_role) == ("passage", "query")
        assert opening in passage
        assert "Keyword" not in query
        assert query.endswith("Output:")
        assert passage == passages[0].text
    plain = attached(extraction, tags="none")
    queries, passages = plain.rewards.pairs(batch, [0], [4])
    assert not any("Keyword" in text.text for text in (*queries, *passages))


def test_the_best_demonstration_is_the_last(relations: RagDataModule) -> None:
    method = attached(relations, k=3)
    method.refresh_index()
    batch = relations.queries("validation").batch(range(4))
    found = method.retrieve(batch, 3)
    for row, prompt in enumerate(method.prompts(batch, found)):
        assert prompt.best_last
        ids = found.candidate_ids[row, found.positions[row]].tolist()
        assert [p.text for p in prompt.passages] == [
            relations.task.passage(relations.store[one]).text for one in ids
        ]


# --- rankers


def test_the_store_by_the_index(extraction: RagDataModule) -> None:
    """Exact inner products over all demonstrations that a query may have."""
    method = attached(extraction, k=3)
    for method.searches in ("candidates", "store"):
        with pytest.raises(RuntimeError, match="refresh_index"):
            method.retrieve(batch_of(extraction), 3)
    method.refresh_index()
    task = extraction.task
    keys = encoded(method, [task.tagged_key(p, "untyped") for p in extraction.store])
    torch.testing.assert_close(method.index, keys.detach(), atol=1e-5, rtol=1e-4)
    for split, size in (("train", 20), ("test", 12)):
        batch = extraction.queries(split).batch(range(size))
        found = method.retrieve(batch, 3)
        assert found.candidate_ids.shape == (size, 6)
        queries = encoded(method, [task.query(i) for i in batch.instances])
        scores = (queries @ keys.T).detach()  # (B, 30)
        for row in range(size):
            scores[row, batch.excluded_rows[row]] = -math.inf
            expected = scores[row].sort(descending=True)
            assert found.candidate_ids[row].tolist() == expected.indices[:6].tolist()
            torch.testing.assert_close(found.scores[row], expected.values[:6], atol=1e-4, rtol=0)
            assert found.positions[row].tolist() == [0, 1, 2]
            tasks = {extraction.store[p].instance.task for p in found.candidate_ids[row].tolist()}
            if split == "test":  # held-out ones too, each within its task
                assert tasks == {batch.instances[row].task}
            else:
                assert "NER_held" not in tasks


def test_a_query_that_may_have_less_than_k(three_tasks: Make) -> None:
    data = three_tasks(three_tasks.reader(few=3))  # type: ignore[attr-defined]
    method = attached(data, k=5)
    method.refresh_index()
    batch = batch_of(data, [10, 0])
    for settings in (("retriever", "store"), ("retriever", "candidates"), ("reward", "candidates")):
        method.ranker, method.searches = settings
        found = method.retrieve(batch, 5)
        assert (found.positions >= 0).sum(dim=1).tolist() == [2, 5]
        assert [len(prompt.passages) for prompt in method.prompts(batch, found)] == [2, 5]
        assert not found.scores.isnan().any()


def test_rankers_by_hand(extraction: RagDataModule) -> None:
    """Each ranks the first stage's candidates; to the teachers those of other tasks are last."""
    batch = extraction.queries("test").batch(range(6))
    mixed = extraction.queries("train").batch(range(20))
    for ranker in ("retriever", "reward", "preference"):
        method = attached(extraction, ranker=ranker, searches="candidates")
        assert method.refresh_every == (0 if ranker == "retriever" else None)
        for some in (batch, mixed):
            everything = torch.ones_like(some.candidate_ids, dtype=torch.bool)
            if ranker == "retriever":
                expected = method.search.scores(some)
                method.refresh_index()
            else:
                score = method.rewards.score if ranker == "reward" else method.prefers.score
                expected = score(some, everything)
            for row, instance in enumerate(some.instances if ranker != "retriever" else ()):
                for column, passage in enumerate(some.candidate_ids[row].tolist()):
                    if extraction.store[passage].instance.task != instance.task:
                        expected[row, column] -= 100
            with torch.no_grad():
                found = method.retrieve(some, 4)
            torch.testing.assert_close(found.scores, expected, atol=1e-4, rtol=1e-4)
            assert all(len(set(scores)) == 6 for scores in expected.tolist())
            order = expected.argsort(dim=1, descending=True)[:, :4]
            assert torch.equal(found.positions, order)
    first = attached(extraction, ranker="first_stage").retrieve(batch, 4)
    assert first.positions.tolist() == [[0, 1, 2, 3]] * 6
    assert torch.equal(first.scores, batch.candidate_scores)


def test_rankers_that_read_the_answer_need_one(extraction: RagDataModule) -> None:
    batch = extraction.queries("test").batch(range(3))
    batch.instances[1] = replace(batch.instances[1], answers=())
    for ranker in ("reward", "preference"):
        method = attached(extraction, ranker=ranker)
        with pytest.raises(UserError, match=r"NER_one/test/1' has no answer, .* legal: model.rank"):
            method.retrieve(batch, 2)
    attached(extraction, ranker="first_stage").retrieve(batch, 2)


def test_without_demonstrations(extraction: RagDataModule) -> None:
    method = attached(extraction, k=0)
    assert method.refresh_every is None
    batch = extraction.queries("test").batch(range(3))
    found = method.retrieve(batch, 0)
    assert found.positions.shape == (3, 0)
    assert all(not prompt.passages for prompt in method.prompts(batch, found))


def test_in_training_the_candidates_are_ranked_as_they_are_encoded_now(
    relations: RagDataModule,
) -> None:
    method = attached(relations, k=2).train()
    batch = batch_of(relations, range(4))
    found = method.retrieve(batch, 2)
    assert torch.equal(found.candidate_ids, batch.candidate_ids)
    torch.testing.assert_close(found.scores, method.search.scores(batch))


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subsample": 0}, "model.subsample is 0; legal: 1 or more"),
        ({"reward_epochs": 0}, "model.reward_epochs is 0; legal: 1 or more"),
        ({"distil_steps": 0}, "model.distil_steps is 0; legal: 1 or more"),
        ({"reward_size": 1}, "model.reward_size is 1; legal: 2 or more"),
        ({"distil_size": 1}, "model.distil_size is 1; legal: 2 or more"),
        ({"positives": 0}, "model.positives is 0; legal: 1 or more"),
        ({"off_task_penalty": -1.0}, r"model.off_task_penalty is -1.0; legal: 0 or more"),
        ({"contrastive_weight": math.nan}, "model.contrastive_weight is nan; legal: 0 or more"),
        ({"contrastive_weight": 0, "distillation_weight": 0}, "must be above 0"),
        ({"temperature": 0.0}, "model: temperature is 0.0; legal: above 0"),
        ({"teacher_temperature": math.inf}, "model: teacher_temperature is inf; legal: above 0"),
        ({"blocks": ("qq",)}, r"blocks is \['qq'\]; legal: qp and any of pq, qq, pp"),
        ({"blocks": ("qp", "qp")}, "each once"),
        ({"teacher": "preference", "ranker": "reward"}, "has no reward model"),
        ({"tagged_preferences": True, "tags": "none"}, "tagged_preferences: true needs tags"),
        ({"preferences": "a", "preferences_to": "b"}, "not both"),
        ({"reader_epochs": -1}, "model.reader_epochs is -1; legal: 0 or more"),
        ({"train_retriever": False}, "something must train"),
        ({"k": 9}, "model.k is 9, but data.num_candidates is 6"),
    ],
)
def test_bad_settings(extraction: RagDataModule, settings: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attached(extraction, **settings)


def test_phases(extraction: RagDataModule) -> None:
    method = attached(extraction, reward_epochs=4, distil_steps=7)
    reward, distil = method.schedule
    assert (reward.trains, distil.trains) == (("reward",), ("retriever",))
    assert (reward.epochs, reward.steps, distil.epochs, distil.steps) == (4, None, None, 7)
    assert (reward.monitor, distil.monitor, distil.validate) == ("agreement", None, None)
    own = replace(TINY, layers=2)
    other = attached(extraction, reward_encoder=EncoderConfig(tiny=own, max_length=256))
    assert sum(p.numel() for p in other.reward.parameters()) > sum(
        p.numel() for p in method.reward.parameters()
    )


@pytest.mark.parametrize("searches", ["store", "candidates"])
@pytest.mark.parametrize("ranker", ["retriever", "first_stage"])
def test_the_reader_reads_what_the_retriever_finds(
    extraction: RagDataModule, monkeypatch: pytest.MonkeyPatch, searches: Any, ranker: Any
) -> None:
    """The bank holds the k nearest by the weights as they are now, whatever ranks in evaluation."""
    method = attached(
        extraction, reader_epochs=1, train_retriever=False, searches=searches, ranker=ranker
    )
    monkeypatch.setattr(Ruie, "trainer", type("T", (), {"global_step": 5}))
    (reader,) = method.schedule
    assert (reader.trains, reader.epochs) == (("generator",), 1)
    batch = batch_of(extraction, range(8))
    method.refresh_index()
    method.refreshed_at = 4
    with torch.no_grad():
        for weight in method.retriever.parameters():  # the index is stale from here on
            weight.mul_(1.5).add_(0.01)
        assert reader.estimate is not None
        rows = reader.estimate(batch)["demonstrations"]
        assert method.refreshed_at == 5
        texts = [extraction.task.query(instance) for instance in batch.instances]
        keys = [extraction.task.tagged_key(passage, "untyped") for passage in extraction.store]
        scores = method.retriever(texts, role="query") @ method.retriever(keys, role="passage").T
    for row, excluded in enumerate(batch.excluded_rows):
        allowed = set(range(len(extraction.store))) - set(excluded.tolist())
        if searches == "candidates":
            allowed = set(batch.candidate_ids[row].tolist()) - {-1}
        best = sorted(allowed, key=lambda passage: -float(scores[row, passage]))[:2]
        assert rows[row].tolist() == best

    method.bank.put(batch.rows, {"demonstrations": rows}, len(extraction.splits.train))
    given: list[list[Prompt]] = []
    inner = method.generator.log_likelihood
    monkeypatch.setattr(
        method.generator,
        "log_likelihood",
        lambda prompts, *rest, **more: given.append(prompts) or inner(prompts, *rest, **more),
    )
    assert reader.loss(batch).total.requires_grad
    for prompt, chosen in zip(given[0], rows.tolist(), strict=True):
        assert prompt.best_last
        assert list(prompt.passages) == [method.render(extraction.store[r]) for r in chosen]


@pytest.mark.parametrize(
    "settings",
    [{"ranker": "first_stage"}, {"ranker": "reward"}, {"ranker": "preference"}, {"k": 0}],
)
def test_answers_without_the_retriever_do_not_select_it(
    extraction: RagDataModule, settings: dict[str, Any]
) -> None:
    """They are the same after every epoch, so the first weights would be the best."""
    distil = attached(extraction, **settings).schedule[1]
    assert distil.monitor == "agreement"
    assert distil.validate is not None


@pytest.mark.parametrize("data", ["relations", "questions"])
def test_other_tasks(data: str, request: pytest.FixtureRequest) -> None:
    """Plain relation extraction, and passages without labels."""
    module: RagDataModule = request.getfixturevalue(data)
    method = attached(module)
    batch = batch_of(module, range(6))
    for phase, loss in ((0, "reward_loss"), (1, "distil_loss")):
        banked(method, phase)
        found = getattr(method, loss)(batch)
        assert found.total.isfinite()
        assert float(found.terms["left_out"]) == 0
    method.refresh_index()
    assert len(method.answer(batch, method.retrieve(batch, 2))) == 6


def test_the_models_learn_what_they_are_taught(
    relations: RagDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By heart: the reward model which three the generator prefers, the retriever after it."""
    method = attached(relations, subsample=8, temperature=0.1, reward_size=4)
    batch = batch_of(relations, range(6))

    def best(scores: Tensor) -> list[set[int]]:
        return [set(columns) for columns in scores.topk(3).indices.tolist()]

    def taught(group: str, loss: Callable[[RagBatch], Any], steps: int) -> None:
        optimizer = torch.optim.AdamW(method.groups()[group].parameters(), lr=1e-2)
        for step in range(steps):
            monkeypatch.setattr(Ruie, "current_epoch", step)
            optimizer.zero_grad()
            loss(batch).total.backward()
            optimizer.step()

    wanted = best(banked(method)["preference"][:6])
    everything = torch.ones(6, 8, dtype=torch.bool)
    assert best(method.rewards.score(batch, everything)) != wanted
    taught("reward", method.reward_loss, 60)
    rewards = method.rewards.score(batch, everything)
    assert best(rewards) == wanted
    method.bank.put(batch.rows, {"reward": rewards}, 40)
    assert best(method.search.scores(batch)) != wanted
    taught("retriever", method.distil_loss, 60)
    assert best(method.search.scores(batch)) == wanted
