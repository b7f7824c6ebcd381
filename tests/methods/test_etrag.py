"""ETRAG: prompts, neighbours, candidates, self-exclusion, every switch on the command line."""

from __future__ import annotations

import json
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
from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.synthetic import SyntheticQuestions, SyntheticRelations
from lightning_rag.data.splits import Splits
from lightning_rag.errors import UserError
from lightning_rag.functional.soft_knn import span_cosine_distance
from lightning_rag.methods.etrag import Etrag
from lightning_rag.methods.no_retrieval import NoRetrieval
from lightning_rag.tasks.base import Task
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Passage, RagBatch, Rendered, Retrieved, Span

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"
TINY = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1)


@pytest.fixture
def relations(tmp_path: Path) -> RagDataModule:
    return data_of(RelationExtraction(scorer="accuracy", negative_label=None), tmp_path)


def data_of(task: Task, folder: Path, reader: Reader | None = None) -> RagDataModule:
    """Forty training queries; 72 of all splits with four demonstrations each, or a QA corpus."""
    data = RagDataModule(
        reader or SyntheticRelations(train=40, validation=16, test=16),
        task,
        BM25(),
        num_candidates=8,
        batch_size=8,
        cache_dir=str(folder / "cache"),
    )
    data.setup()
    return data


def attached(data: RagDataModule, **arguments: Any) -> Etrag:
    """An ETRAG over `data`, its index fresh, in training mode."""
    generator = arguments.pop("generator", GeneratorConfig(tiny=TINY))
    method = Etrag(generator, EncoderConfig(tiny=TINY), **arguments)
    method.attach(data)
    if method.k:
        method.refresh_index()
    return method


def batch_of(data: RagDataModule) -> RagBatch:
    return data.queries("train").batch(range(6))


def retrieved(method: Etrag, batch: RagBatch) -> tuple[Retrieved, Tensor]:
    """What is retrieved, and its soft prompt."""
    found = method.retrieve(batch, method.k)
    assert found.soft_prompt is not None
    return found, found.soft_prompt


# --- the soft prompt


@pytest.mark.parametrize(
    ("k", "vectors", "size"), [(1, "spans", 6), (4, "spans", 15), (4, "mean", 5), (2, "first", 3)]
)
@pytest.mark.parametrize("position", ["insert", "prepend"])
def test_the_soft_prompt_lengthens_input_and_mask(
    relations: RagDataModule, k: int, vectors: str, size: int, position: Any
) -> None:
    """(1 + k) V vectors, visible to attention, after the first token or before it."""
    config = GeneratorConfig(soft_prompt_position=position, tiny=TINY)
    method = attached(relations, generator=config, k=k, vectors=vectors).eval()
    batch = batch_of(relations)
    found, prompt = retrieved(method, batch)
    assert prompt.shape == (6, size, 16)

    seen: dict[str, Tensor] = {}
    encoder = method.generator.model.get_encoder()
    with encoder.register_forward_pre_hook(
        lambda module, args, inputs: seen.update(inputs), with_kwargs=True
    ):
        method.generator_loss(batch, found)
    texts = [relations.task.source(instance).text for instance in batch.instances]
    plain = method.generator.tokenizer(texts)["input_ids"]
    assert seen["attention_mask"].sum(dim=1).tolist() == [len(ids) + size for ids in plain]
    first = 1 if position == "insert" else 0
    torch.testing.assert_close(seen["inputs_embeds"][:, first : first + size], prompt)


def test_a_decoder_only_generator_reads_the_soft_prompt(relations: RagDataModule) -> None:
    config = GeneratorConfig(architecture="decoder-only", tiny=TINY)
    method = attached(relations, generator=config, k=2)
    batch = batch_of(relations)
    method.loss(batch).total.backward()
    assert method.projection.linear.weight.grad.abs().sum() > 0
    method.eval()
    texts = method.answer(batch, method.retrieve(batch, 2))
    assert set(texts) <= set(relations.splits.labels)


def test_without_neighbours_it_is_the_plain_generator(relations: RagDataModule) -> None:
    """k = 0: the same weights, losses and answers as `NoRetrieval`, bit for bit."""
    plain = NoRetrieval(GeneratorConfig(tiny=TINY))
    plain.attach(relations)
    method = attached(relations, k=0)
    batch = batch_of(relations)
    assert method.groups().keys() == plain.groups().keys()
    assert torch.equal(method.loss(batch).total, plain.generator_loss(batch).total)
    method.eval(), plain.eval()
    (ours, _), (theirs, _) = method.predict(batch), plain.predict(batch)
    assert ours.texts == theirs.texts
    assert torch.equal(ours.ranking, theirs.ranking)
    assert [phase.trains for phase in method.schedule] == [("generator",)]


# --- neighbours


def test_neighbours_by_hand(relations: RagDataModule) -> None:
    """The equations of the class, one query at a time, over the whole database."""
    method = attached(relations, k=3, temperature=0.1).eval()
    batch = relations.queries("validation").batch(range(4))
    found, prompt = retrieved(method, batch)
    assert found.candidate_ids.tolist() == [list(range(288))] * 4
    queries = method.retriever.queries([relations.task.query(i) for i in batch.instances])
    for number, query in enumerate(queries.double()):  # (3, D)
        index = method.index.double()  # (M, 3, D)
        distance = 1 - torch.cosine_similarity(query[None], index, dim=-1).mean(dim=1)  # (M,)
        assert found.positions[number].tolist() == distance.argsort()[:3].tolist()
        score, rows = -distance, [query]
        for _ in range(3):
            weights = torch.softmax(score / 0.1, dim=0)
            rows.append((weights[:, None, None] * index).sum(dim=0))
            score = score + torch.log(1 - weights)
        expected = method.projection(torch.cat(rows).float())
        torch.testing.assert_close(prompt[number], expected, atol=1e-4, rtol=1e-4)


def test_hard_neighbours_are_the_nearest_as_they_are(relations: RagDataModule) -> None:
    method = attached(relations, k=2, selection="hard").eval()
    found, prompt = retrieved(method, batch_of(relations))
    assert found.weights is None
    nearest = method.index[found.positions].flatten(1, 2)  # (B, 2 * 3, D)
    torch.testing.assert_close(prompt[:, 3:], method.projection(nearest))


def test_the_gradient_reaches_the_retriever_through_the_weights(relations: RagDataModule) -> None:
    """With the generator frozen; with hard neighbours there is none through the weights."""
    batch = batch_of(relations)
    for selection, expected in (("soft", True), ("hard", False)):
        method = attached(relations, k=2, selection=selection)
        method.generator.requires_grad_(False)
        method.projection.log_temperature.requires_grad_(True)  # acts on the weights alone
        method.loss(batch).total.backward()
        assert method.projection.linear.weight.grad.abs().sum() > 0
        assert sum(p.grad.abs().sum() for p in method.retriever.parameters() if p.grad is not None)
        through_weights = method.projection.log_temperature.grad
        assert (through_weights is not None and bool(through_weights != 0)) == expected


def test_random_neighbours_are_repeatable_and_in_order(relations: RagDataModule) -> None:
    """In evaluation a query's draw does not depend on the batch that it is in."""
    method = attached(relations, k=3, selection="random").eval()
    batch = relations.queries("validation").batch(range(4))
    (first, _), _ = retrieved(method, batch), torch.rand(5)
    second, _ = retrieved(method, relations.queries("validation").batch([2, 3]))
    assert torch.equal(first.positions[2:], second.positions)
    scores = first.scores.gather(1, first.positions)
    assert (scores.diff(dim=1) <= 0).all()
    assert not torch.equal(first.positions, first.scores.topk(3).indices)


def test_l2_and_cosine_rank_differently(relations: RagDataModule) -> None:
    batch = relations.queries("validation").batch(range(6))
    cosine, _ = retrieved(attached(relations, k=2).eval(), batch)
    squared, _ = retrieved(attached(relations, k=2, distance="l2").eval(), batch)
    method = attached(relations, k=2)
    queries = method.eval().retriever.queries([relations.task.query(i) for i in batch.instances])
    differences = queries[:, None] - method.index[None]  # (B, M, 3, D)
    expected = -differences.square().sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(squared.scores, expected, atol=1e-3, rtol=1e-4)
    assert not torch.equal(cosine.positions, squared.positions)


# --- candidates


def test_training_draws_random_candidates_for_a_batch(relations: RagDataModule) -> None:
    method = attached(relations, k=2, pool_size=20)
    batch = batch_of(relations)
    first, _ = retrieved(method, batch)
    second, _ = retrieved(method, batch)
    assert first.candidate_ids.shape == (6, 20)
    assert (first.candidate_ids == first.candidate_ids[0]).all()
    assert first.candidate_ids[0].unique().numel() == 20
    assert not torch.equal(first.candidate_ids, second.candidate_ids)


def test_candidates_are_encoded_anew_with_gradient(relations: RagDataModule) -> None:
    """Stored vectors are for evaluation: in training they must not enter the result."""
    for candidates in ("random", "nearest", "first_stage"):
        method = attached(relations, k=2, candidates=candidates, pool_size=8)
        batch = batch_of(relations)
        torch.manual_seed(1)
        found, prompt = retrieved(method, batch)
        queries = method.retriever.queries([relations.task.query(i) for i in batch.instances])
        texts = [[method.render(relations.store[i]) for i in row] for row in found.candidate_ids]
        for number, row in enumerate(texts):
            fresh = method.retriever.instances(row)  # (N, 3, D)
            expected = -span_cosine_distance(queries[number : number + 1], fresh)[0]
            torch.testing.assert_close(found.scores[number], expected, atol=1e-5, rtol=1e-5)
        assert found.scores.requires_grad
        assert prompt.requires_grad


def test_nearest_candidates_and_their_replacement(relations: RagDataModule) -> None:
    """A batch shares them: the nearest of each query, then the second of each, and so on."""
    batch = batch_of(relations)
    for replaced, near in ((0.0, 18), (0.5, 9), (1.0, 0)):
        method = attached(relations, k=2, candidates="nearest", pool_size=18, replaced=replaced)
        queries = method.retriever.queries([relations.task.query(i) for i in batch.instances])
        ranked = span_cosine_distance(queries, method.index).argsort(dim=1).T.flatten().tolist()
        expected = list(dict.fromkeys(ranked))[:near]
        pools = [retrieved(method, batch)[0].candidate_ids for _ in range(2)]
        for pool in pools:
            assert (pool == pool[0]).all()
            assert pool[0].unique().numel() == 18
            assert pool[0, :near].tolist() == expected
        assert torch.equal(pools[0], pools[1]) == (replaced == 0.0)


def test_evaluation_searches_the_database(relations: RagDataModule) -> None:
    """All of it, its nearest part, a random part of the store, or the first stage's candidates."""
    batch = relations.queries("validation").batch(range(4))
    whole, _ = retrieved(attached(relations, k=2).eval(), batch)
    part, _ = retrieved(attached(relations, k=2, evaluation_pool=16).eval(), batch)
    assert part.candidate_ids.shape == (4, 16)
    chosen = part.candidate_ids.gather(1, part.positions)
    assert torch.equal(chosen, whole.candidate_ids.gather(1, whole.positions))

    small = attached(relations, k=2, database_size=50)
    assert torch.equal(small.database, small.database.unique())  # ascending, none twice
    found, _ = retrieved(small.eval(), batch)
    assert found.candidate_ids.tolist() == [small.database.tolist()] * 4
    rows = [small.render(relations.store[int(row)]) for row in small.database]
    torch.testing.assert_close(small.index, small.retriever.instances(rows), atol=1e-5, rtol=1e-4)

    given, _ = retrieved(attached(relations, k=2, candidates="first_stage").eval(), batch)
    assert torch.equal(given.candidate_ids, batch.candidate_ids)


class InItsOwnStore(SyntheticRelations):
    """The training queries are the demonstrations, as in every real data set."""

    def read(self, root: Path | None, seed: int) -> Splits:
        return replace(super().read(root, seed), passages=())


@pytest.mark.parametrize("candidates", ["random", "nearest"])
@pytest.mark.parametrize("exclude", [True, False])
def test_a_query_has_no_weight_on_itself(candidates: str, exclude: bool, tmp_path: Path) -> None:
    """Nor does anything of its own instance, the gold label say, reach its prompt."""
    reader = InItsOwnStore(train=40, validation=16, test=16)
    data = data_of(RelationExtraction(scorer="accuracy", negative_label=None), tmp_path, reader)
    batch = batch_of(data)
    method = attached(
        data, k=2, candidates=candidates, pool_size=40, exclude_self=exclude, temperature=0.2
    )
    torch.manual_seed(0)
    found, prompt = retrieved(method, batch)
    assert found.weights is not None
    own = found.candidate_ids == batch.rows[:, None]  # a query's row is its instance's
    assert own.any(dim=1).all()
    weight = found.weights.detach().transpose(1, 2)[own]  # (B, K)
    assert (weight == 0).all() if exclude else (weight > 0).all()

    label, other = batch.instances[0].answers[0], data.splits.labels
    changed = next(name for name in other if name != label)
    as_it_is = method.render

    def relabelled(passage: Passage) -> Rendered:
        text = as_it_is(passage)
        if passage.id != batch.instances[0].id:
            return text
        start, _ = text.spans["label"]
        return Rendered(text.text[:start] + changed, {**text.spans, "label": (start, start + 5)})

    method.render = relabelled  # type: ignore[method-assign]
    torch.manual_seed(0)
    _, again = retrieved(method, batch)
    assert torch.allclose(again[0], prompt[0]) == exclude


def test_a_query_without_candidates_has_an_empty_prompt(relations: RagDataModule) -> None:
    """Zeros for weights and neighbours, a finite loss, and no choice."""
    method = attached(relations, k=2, candidates="first_stage")
    batch = batch_of(relations)
    batch.candidate_ids[0] = -1
    found, prompt = retrieved(method, batch)
    assert found.weights is not None
    assert (found.weights[0] == 0).all()
    assert found.positions[0].tolist() == [-1, -1]
    bias = method.projection.linear.bias
    torch.testing.assert_close(prompt[0, 3:], bias.expand(6, -1))
    loss = method.loss(batch).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_the_database_is_the_same_whatever_the_models_are(relations: RagDataModule) -> None:
    one = attached(relations, k=2, database_size=50)
    other = attached(relations, k=2, database_size=50, query_label="learned")
    assert torch.equal(one.database, other.database)
    assert not {"database", "index"} & one.state_dict().keys()


def test_the_index_must_be_made_first(relations: RagDataModule) -> None:
    method = Etrag(GeneratorConfig(tiny=TINY), EncoderConfig(tiny=TINY), k=2)
    method.attach(relations)
    method.eval()
    with pytest.raises(RuntimeError, match="refresh_index"):
        method.retrieve(batch_of(relations), 2)


# --- slots


def test_a_learned_vector_in_the_query_label_slot(relations: RagDataModule) -> None:
    """It is the same for all queries and gets a gradient; the closing tokens' vector differs."""
    batch = batch_of(relations)
    texts = [relations.task.query(instance) for instance in batch.instances]
    method = attached(relations, k=2, query_label="learned")
    queries = method.retriever.queries(texts)
    assert (queries[:, 2] == method.retriever.label).all()
    method.loss(batch).total.backward()
    assert method.retriever.label.grad.abs().sum() > 0
    closing = attached(relations, k=2).retriever.queries(texts)
    torch.testing.assert_close(closing[:, :2], queries[:, :2])
    assert closing[:, 2].unique(dim=0).shape[0] > 1


def test_the_temperature_learns_if_asked(relations: RagDataModule) -> None:
    for learned in (True, False):
        method = attached(relations, k=2, learned_temperature=learned)
        loss = method.loss(batch_of(relations))
        loss.total.backward()
        assert (method.projection.log_temperature.grad is not None) == learned
        assert ("temperature" in loss.terms) == learned
        assert float(method.projection.temperature.detach()) == pytest.approx(0.02)
        assert 1.0 <= float(loss.terms["perplexity"]) <= 32.0


def test_question_answering_has_one_vector_a_passage(tmp_path: Path) -> None:
    reader = SyntheticQuestions(train=40, validation=16, test=16)
    data = data_of(QuestionAnswering(), tmp_path, reader)
    method = attached(data, k=2, candidates="first_stage")
    batch = batch_of(data)
    _, prompt = retrieved(method, batch)
    assert prompt.shape == (6, 3, 16)
    method.loss(batch).total.backward()
    assert sum(p.grad.abs().sum() for p in method.retriever.parameters() if p.grad is not None) > 0
    method.eval()
    assert len(method.answer(batch, method.retrieve(batch, 2))) == 6


# --- the command line


def command(tmp_path: Path, *extra: str, data: str = "synthetic_relations") -> list[str]:
    files = [
        CONFIGS / "base.yaml",
        CONFIGS / "data" / f"{data}.yaml",
        CONFIGS / "method" / "etrag.yaml",
        SMALL,
    ]
    configs = [part for file in files for part in ("--config", str(file))]
    sizes = [f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")]
    here = [f"--runs={tmp_path / 'runs'}", f"--data.cache_dir={tmp_path / 'cache'}"]
    random = ("--model.k=2", "--model.candidates=random", "--model.pool_size=8")
    fixed = ("--model.temperature=0.02", "--model.learned_temperature=false")
    return ["fit", *configs, *sizes, *here, *random, *fixed, *extra]


SWITCHES = (
    "--model.k=0",
    "--model.k=1",
    "--model.selection=hard",
    "--model.selection=random",
    "--model.train_retriever=false",
    "--model.train_generator=false",
    "--model.distance=l2",
    "--model.vectors=first",
    "--model.vectors=mean",
    "--generator.soft_prompt_position=prepend",
    "--model.learned_temperature=true",
    "--model.temperature=1",
    "--model.variant=n3",
    "--model.query_label=learned",
    "--model.candidates=nearest",
    "--model.candidates=first_stage",
    "--model.pool_size=4",
    "--model.evaluation_pool=4",
    "--model.database_size=40",
    "--model.retriever_first_steps=1",
    "--model.monitor=loss",
    "--generator.lora.rank=2",
    "--generator.architecture=decoder-only",
)
# What changes nothing of the loss of a first batch: it is about later steps, or about evaluation.
LATER = ("train_", "learned_temperature", "evaluation_pool", "first_steps", "monitor")


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_is_one_argument(
    switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs, and each but those of later steps changes the loss of the first batch."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    losses = []
    for extra in ((), (switch,)):
        built: list[Any] = []
        monkeypatch.setattr(
            cli.RagCLI, "after_fit", lambda self, built=built: built.append(self.trainer)
        )
        assert cli.main([*command(tmp_path, *extra), "--trainer.fast_dev_run=1"]) == 0
        losses.append(float(built[0].callback_metrics["train/loss"]))
    # Frozen weights may go through other kernels, which round the last bit otherwise.
    same = math.isclose(losses[0], losses[1], rel_tol=1e-6)
    assert same == any(name in switch for name in LATER)


def test_a_frozen_retriever_stays_as_it_is(relations: RagDataModule) -> None:
    """And no phase trains it, but all train what is new."""
    trained = [phase.trains for phase in attached(relations, retriever_first_steps=2).schedule]
    new = ("retriever", "projection")
    assert trained == [new, (*new, "generator")]
    method = attached(relations, retriever_first_steps=2, train_retriever=False)
    assert [phase.trains for phase in method.schedule] == [
        ("projection",),
        ("projection", "generator"),
    ]


def test_a_frozen_generator_teaches_the_others(relations: RagDataModule) -> None:
    """No phase trains it; with both frozen the projection, which belongs to neither, learns."""
    method = attached(relations, retriever_first_steps=2, train_generator=False)
    new = ("retriever", "projection")
    assert [phase.trains for phase in method.schedule] == [new, new]
    both = attached(relations, train_retriever=False, train_generator=False)
    assert [phase.trains for phase in both.schedule] == [("projection",)]


def test_the_two_relaxations_differ_from_the_second_neighbour_on(relations: RagDataModule) -> None:
    batch = relations.queries("validation").batch(range(4))
    weights = {}
    for variant in ("etrag", "n3"):
        found, _ = retrieved(attached(relations, k=3, variant=variant).eval(), batch)
        assert found.weights is not None
        weights[variant] = found.weights
    torch.testing.assert_close(weights["etrag"][:, 0], weights["n3"][:, 0])
    assert (weights["etrag"] - weights["n3"])[:, 1].abs().max() > 0.01


@pytest.mark.parametrize("monitor", ["loss", "task"])
def test_a_validation_retrieves_once(
    monitor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For loss and answers together: 16 queries in batches of 8, in two validations."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    seen: list[int] = []
    retrieve, step = Etrag.retrieve, Etrag.validation_step

    def counted(self: Etrag, batch: RagBatch, k: int) -> Retrieved:
        seen.append(k)
        return retrieve(self, batch, k)

    def watched(self: Etrag, batch: RagBatch, batch_idx: int) -> Any:
        before = len(seen)
        found = step(self, batch, batch_idx)
        retrieved_in.append(len(seen) - before)
        return found

    retrieved_in: list[int] = []
    monkeypatch.setattr(Etrag, "retrieve", counted)
    monkeypatch.setattr(Etrag, "validation_step", watched)
    switches = (f"--model.monitor={monitor}", "--model.epochs=2", "--data.eval_batch_size=8")
    assert cli.main(command(tmp_path, *switches)) == 0
    assert retrieved_in == [1] * 4
    (path,) = tmp_path.rglob("metrics.json")
    points = json.loads(path.read_text(encoding="utf-8"))["validation"]
    assert [("loss" in point, "accuracy" in point) for point in points] == [
        (monitor == "loss", True)
    ] * 2


def test_the_loss_of_a_validation_is_of_what_it_answers_from(relations: RagDataModule) -> None:
    """Kept within the step alone: the next batch, and a training step, retrieve for themselves."""
    method = attached(relations, k=2, monitor="loss").eval()
    first, second = batch_of(relations), relations.queries("train").batch(range(6, 12))
    with method._retrieving_once():
        once = method.retrieve_once(first)
        assert method.retrieve_once(first) is once
    assert method.retrieve_once(first) is not once
    with method._retrieving_once():
        assert not torch.equal(method.retrieve_once(second).scores, once.scores)


def test_tokens_through_a_frozen_generator_are_known(relations: RagDataModule) -> None:
    """Those that the gradient of the soft prompt passes; none in evaluation, none without it."""
    method = attached(relations, k=2, train_generator=False)
    method.generator.requires_grad_(False)
    method.loss(batch_of(relations)).total.backward()
    generator, retriever = method.generator, method.retriever
    assert generator.differentiated == generator.tokens > 0
    assert 0 < retriever.differentiated < retriever.tokens  # the index was made without gradient
    with torch.no_grad():
        method.eval().loss(batch_of(relations))
    assert generator.differentiated == generator.tokens / 2
    plain = attached(relations, k=0)
    plain.generator.requires_grad_(False)
    plain.loss(batch_of(relations))
    assert plain.generator.differentiated == 0 < plain.generator.tokens


@pytest.mark.parametrize("data", ["synthetic_relations", "synthetic_questions"])
def test_a_run_from_the_command_line(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases, a stale index with replaced candidates, loss as monitor, and the test."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    switches = (
        "--model.candidates=nearest",
        "--model.pool_size=6",
        "--model.replaced=0.5",
        "--model.refresh_every=1",
        "--model.retriever_first_steps=1",
        "--model.epochs=2",
        "--model.monitor=loss",
        "--model.patience=5",
    )
    assert cli.main(command(tmp_path, *switches, data=data)) == 0
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("metrics.json"))
    assert (folder / "checkpoints" / "best.ckpt").exists()
    curve = json.loads((folder / "metrics.json").read_text())["validation"]
    assert all(point["loss"] > 0 for point in curve)


# --- bad input


def test_a_query_may_not_have_itself_and_other_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    switches = ("--model.candidates=random", "--model.exclude_self=false")
    assert cli.main(command(tmp_path, *switches, data="synthetic_extraction")) == 1
    assert "model.exclude_self is false, and the data are of several" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "model.temperature is 0.0; legal: above 0"),
        ({"temperature": -1.0}, "model.temperature is -1.0; legal: above 0"),
        ({"temperature": float("nan")}, "model.temperature is nan; legal: above 0"),
        ({"k": 5, "pool_size": 4}, "model.pool_size is 4; legal with k = 5: 5 or more"),
        ({"k": 5, "evaluation_pool": 0}, "model.evaluation_pool is 0; legal with k = 5: 5"),
        ({"k": 5, "database_size": 3}, "model.database_size is 3; legal with k = 5: 5 or more"),
        ({"replaced": 1.5}, "model.replaced is 1.5; legal: 0 to 1"),
        ({"retriever_first_steps": -1}, "model.retriever_first_steps is -1"),
        ({"refresh_every": 0}, "model.refresh_every is 0; legal with k = 5: 1 or more"),
        ({"candidates": "first_stage", "database_size": 9}, "database_size: null"),
        ({"candidates": "first_stage", "evaluation_pool": 9}, "evaluation_pool: null"),
        ({"candidates": "first_stage", "exclude_self": False}, "exclude_self: true"),
        ({"replaced": 0.5}, "replaced needs candidates: nearest"),
        ({"query_label": "learned", "train_retriever": False}, "needs train_retriever: true"),
        ({"k": 0, "train_generator": False}, "something must train"),
    ],
)
def test_values_that_are_not_legal(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Etrag(GeneratorConfig(), EncoderConfig(), **arguments)
    assert message in str(caught.value)


def test_more_neighbours_than_a_query_may_have(relations: RagDataModule, monkeypatch: Any) -> None:
    """An empty database after self-exclusion, and too small a pool, before any training."""
    own = [torch.tensor([3]).numpy()] * 40
    monkeypatch.setattr("lightning_rag.methods.etrag.exclusions", lambda queries, store: own)
    with pytest.raises(UserError, match=r"model.pool_size is 4, .* legal with k = 4: 5 or more"):
        attached(relations, k=4, pool_size=4)
    relations.num_candidates = 288
    with pytest.raises(UserError, match=r"may have only 287 of the 288 instances of the database"):
        attached(relations, k=288, pool_size=288)


def test_spans_that_do_not_fit_fail_before_training(relations: RagDataModule) -> None:
    encoder = EncoderConfig(tiny=TINY, max_length=8)
    method = Etrag(GeneratorConfig(tiny=TINY), encoder, k=2)
    with pytest.raises(UserError, match=r"max_length is 8, .* labels of a text need \d+ tokens"):
        method.attach(relations)


def test_a_test_query_that_does_not_fit_fails_before_training(relations: RagDataModule) -> None:
    longest = relations.splits.test[0]
    text = "A" + "x y " * 100
    query = replace(longest, text=text, head=Span(0, len(text) - 1))
    relations._splits = replace(relations.splits, test=(query,))
    method = Etrag(GeneratorConfig(tiny=TINY), EncoderConfig(tiny=TINY), k=2)
    with pytest.raises(UserError, match=r"encoder.max_length is 128, .* need \d+ tokens"):
        method.attach(relations)


def test_more_neighbours_than_the_first_stage_offers(relations: RagDataModule) -> None:
    """That is no matter where the first stage's candidates are not read."""
    assert attached(relations, k=10).k == 10
    with pytest.raises(UserError, match=r"model.k is 10, but data.num_candidates is 8"):
        attached(relations, k=10, candidates="first_stage")


def test_the_encoder_computes_in_mixed_precision_and_distances_do_not(
    relations: RagDataModule,
) -> None:
    method = attached(relations, k=2)
    seen = set()
    hook = method.retriever.encoder.model.register_forward_hook(
        lambda module, args, output: seen.add(output.last_hidden_state.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16), hook:
        queries = method.retriever.encoder.model.dtype
        found, _ = retrieved(method, batch_of(relations))
    assert queries == torch.float32
    assert found.scores.dtype == torch.float32
    assert found.weights is not None
    assert found.weights.dtype == torch.float32
    torch.testing.assert_close(found.weights.sum(dim=-1), torch.ones(6, 2))


def test_a_soft_prompt_that_does_not_fit(relations: RagDataModule) -> None:
    config = GeneratorConfig(architecture="decoder-only", tiny=TINY, max_source_length=1020)
    with pytest.raises(UserError, match=r"max_source_length with 9 soft-prompt vectors"):
        attached(relations, generator=config, k=2)


def test_a_label_slot_needs_spans(relations: RagDataModule) -> None:
    with pytest.raises(UserError, match=r"model.query_label is 'learned'"):
        attached(relations, k=2, vectors="mean", query_label="learned")
