"""What the retrieval analysis measures, when, and that the run does not notice it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from lightning_rag import cli
from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.callbacks.checkpoints import ResumePoint
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.callbacks.index_refresh import IndexRefresh
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.callbacks.retrieval_analysis import RetrievalAnalysis
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticQuestions
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.no_retrieval import NoRetrieval
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.types import LossTerms, RagBatch, Retrieved

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
DEPTHS = {f"@{n}" for n in (1, 3, 5, 10)}


class Letters(Method):
    """Retrieves from the whole store by the letters of a text; dropout, a stale index, weights."""

    refresh_every = 3

    def __init__(self, scores: Sequence[float] = (), epochs: int = 2) -> None:
        rates = OptimizerConfig(learning_rates={"retriever": 0.05}, warmup=0.0)
        super().__init__(GeneratorConfig(), rates, k=2, decoding="free")
        self.scripted = list(scores)
        self.epochs = epochs
        self.validated: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.rows_of: list[list[str]] = []  # the queries that were retrieved for without gradient

    def build(self) -> None:
        self.retriever = nn.Sequential(nn.Linear(26, 6), nn.Dropout(0.2))
        self.index: Tensor
        self.register_buffer("index", torch.zeros(len(self.data.store), 6))

    def groups(self) -> dict[str, nn.Module]:
        return {"retriever": self.retriever}

    def phases(self) -> list[Phase]:
        monitor = "score" if self.scripted else "accuracy"
        return [Phase("fit", ("retriever",), self.loss, epochs=self.epochs, monitor=monitor)]

    def embed(self, texts: Sequence[str]) -> Tensor:
        counts = torch.tensor([[float(t.lower().count(c)) for c in LETTERS] for t in texts])
        vectors: Tensor = self.retriever(counts / counts.norm(dim=1, keepdim=True))
        return vectors

    def refresh_index(self) -> None:
        self.index.copy_(self.embed([p.text for p in self.data.store]))

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        if not torch.is_grad_enabled():
            assert not self.training
            self.rows_of.append([i.id for i in batch.instances])
        scores = self.embed([i.text for i in batch.instances]) @ self.index.T  # (B, M)
        ids = torch.arange(len(self.index)).expand_as(scores)
        weights = torch.stack([(scores / t).softmax(dim=1) for t in (0.1, 1.0)], dim=1)
        return Retrieved(ids, scores, scores.topk(k).indices, weights)

    def loss(self, batch: RagBatch) -> LossTerms:
        assert self.training
        log_p = self.retrieve(batch, 2).scores.log_softmax(dim=1)  # (B, M)
        losses = [-log_p[i, rows].logsumexp(0) for i, rows in enumerate(batch.relevant_rows)]
        total = torch.stack(losses).mean()
        self.losses.append(total.item())
        return LossTerms(total=total)

    def answer(self, batch: RagBatch, retrieved: Retrieved) -> list[str]:
        return [instance.answers[0] for instance in batch.instances]

    def on_validation_epoch_end(self) -> None:
        if self.scripted:
            self.log("val/score", self.scripted[len(self.validated)])
        weights = {name: w.detach().clone() for name, w in self.named_parameters()}
        self.validated.append(weights)


Start = Callable[..., Trainer]


@pytest.fixture
def trainer(tmp_path: Path) -> Start:
    """Make a trainer as the command line does: the user's callbacks come first."""

    def make(*callbacks: Callback, folder: str = "run", **settings: Any) -> Trainer:
        root = tmp_path / folder
        shared = [CostLedger(), PhaseSchedule(root / "checkpoints"), IndexRefresh(), Evaluator()]
        return Trainer(
            accelerator="cpu",
            logger=TensorBoardLogger(root, name="", version="", default_hp_metric=False),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=root,
            callbacks=[*callbacks, *shared, ResumePoint(root / "checkpoints")],
            **{"max_epochs": -1, **settings},
        )

    return make


def written(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "retrieval.json").read_text(encoding="utf-8"))
    return content


def by_hand(method: Letters, data: RagDataModule, n: int) -> dict[str, float]:
    """Some of the figures once more, from the weights that the method has now."""
    method.eval()
    agreeing, included, first = [], [], []
    with torch.no_grad():
        keys = method.embed([p.text for p in data.store])
        for query in data.splits.validation:
            scores = (method.embed([query.text]) @ keys.T)[0].tolist()
            ranked = sorted(range(len(scores)), key=lambda row: -scores[row])[:n]
            found = [data.store[row] for row in ranked]
            agreeing += [p.instance.answers == query.answers for p in found]
            names = [query.text[s.start : s.end] for s in (query.head, query.tail)]
            included.append(any(name in p.text for name in names for p in found))
            first.append(ranked[0])
    return {
        f"label_agreement@{n}": sum(agreeing) / len(agreeing),
        f"entity_inclusion@{n}": sum(included) / len(included),
        "distinct_top1": float(len(set(first))),
    }


def assert_measured(measured: dict[str, Any], method: Letters, data: RagDataModule) -> None:
    for n in (1, 5):
        for name, value in by_hand(method, data, n).items():
            assert measured["figures"][name] == pytest.approx(value), name


def fresh(data: RagDataModule) -> Letters:
    method = Letters()
    method.attach(data)
    return method


def test_three_retrievers(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    method = Letters()
    trainer(RetrievalAnalysis()).fit(method, datamodule=data)
    content = written(tmp_path / "run")
    assert list(content) == ["split", "queries", "ks", "retrievers"]
    assert (content["split"], content["queries"]) == ("validation", 8)
    assert content["ks"] == [1, 3, 5, 10]
    found = content["retrievers"]
    assert list(found) == ["untrained", "trained", "random"]
    assert_measured(found["trained"], method, data)
    assert_measured(found["untrained"], fresh(data), data)
    assert found["trained"]["figures"] != found["untrained"]["figures"]
    soft = {"perplexity_1", "perplexity_2"}
    assert set(found["trained"]["figures"]) == set(found["random"]["figures"]) | soft
    for measured in found.values():
        figures = measured["figures"]
        assert figures["candidates"] == len(data.store)
        assert {"@" + name.partition("@")[2] for name in figures if "@" in name} == DEPTHS
        counts = [c for row in measured["confusion"].values() for c in row.values()]
        assert sum(counts) == 8
        same = sum(row.get(label, 0) for label, row in measured["confusion"].items())
        assert same / 8 == figures["label_agreement@1"]
        assert set(measured["confusion"]) == {i.answers[0] for i in data.splits.validation}


def test_perplexities(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    trainer(RetrievalAnalysis()).fit(Letters(), datamodule=data)
    figures = written(tmp_path / "run")["retrievers"]["untrained"]["figures"]
    method = fresh(data).eval()
    with torch.no_grad():
        method.refresh_index()
        for j, temperature in ((1, 0.1), (2, 1.0)):
            texts = [query.text for query in data.splits.validation]
            log_p = (method.embed(texts) @ method.index.T / temperature).log_softmax(dim=1)
            expected = (-(log_p.exp() * log_p).sum(dim=1)).exp().mean()
            assert figures[f"perplexity_{j}"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"max_epochs": 3}], ids=["whole", "cut short"])
def test_best_weights_are_measured(
    trainer: Start, data: RagDataModule, tmp_path: Path, settings: dict[str, int]
) -> None:
    method = Letters(scores=[0.9, 0.1, 0.1, 0.1], epochs=3 if not settings else 4)
    trainer(RetrievalAnalysis(), **settings).fit(method, datamodule=data)
    best, last = method.validated[0], method.validated[2]
    assert not torch.equal(best["retriever.0.weight"], last["retriever.0.weight"])
    measured = written(tmp_path / "run")["retrievers"]["trained"]
    method.load_state_dict({**best, "index": method.index})
    assert_measured(measured, method, data)
    method.load_state_dict({**last, "index": method.index})
    with pytest.raises(AssertionError):  # else this test could not fail
        assert_measured(measured, method, data)


def test_the_run_does_not_notice(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    methods = [Letters(), Letters()]
    trainer(folder="without").fit(methods[0], datamodule=data)
    trainer(RetrievalAnalysis(), folder="with").fit(methods[1], datamodule=data)
    assert methods[0].losses == methods[1].losses
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (
            torch.load(tmp_path / folder / "checkpoints" / name, weights_only=True)["state_dict"]
            for folder in ("without", "with")
        )
        assert one.keys() == other.keys() == {"index", "retriever.0.weight", "retriever.0.bias"}
        assert all(torch.equal(one[key], other[key]) for key in one)
    ends = [method.state_dict() for method in methods]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


class Noted(Callback):
    """Notes what could be disturbed: random state, modes, index."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, Tensor, list[bool]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        modes = [module.training for module in pl_module.modules()]
        self.state = (torch.get_rng_state(), pl_module.index.clone(), modes)
        assert torch.is_grad_enabled()


class Drawing(Letters):
    """Draws from torch's generator wherever it can."""

    def refresh_index(self) -> None:
        super().refresh_index()
        torch.rand(3)


def test_what_was_there_before_is_there_after(trainer: Start, data: RagDataModule) -> None:
    before, after, method = Noted(), Noted(), Drawing()
    callbacks = (before, RetrievalAnalysis(), after)
    trainer(*callbacks, max_steps=1).fit(method, datamodule=data)
    assert torch.equal(before.state[0], after.state[0])
    assert torch.equal(before.state[1], after.state[1])
    assert before.state[2] == after.state[2]
    assert any(before.state[2])


def test_a_resumed_run_has_the_untrained_figures(
    trainer: Start, data: RagDataModule, tmp_path: Path
) -> None:
    whole, half, rest = Letters([0.1, 0.2]), Letters([0.1]), Letters([0.2])
    trainer(RetrievalAnalysis(), folder="whole").fit(whole, datamodule=data)
    trainer(RetrievalAnalysis(), max_epochs=1).fit(half, datamodule=data)
    assert written(tmp_path / "run") != written(tmp_path / "whole")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trainer(RetrievalAnalysis()).fit(rest, datamodule=data, ckpt_path=last, weights_only=True)
    assert rest.losses == whole.losses[5:]
    validated = [ids for ids in rest.rows_of if ids == [i.id for i in data.splits.validation]]
    assert len(validated) == 2  # the second validation and the trained retriever
    assert written(tmp_path / "run") == written(tmp_path / "whole")


def test_a_run_begun_without_it(
    trainer: Start, data: RagDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(max_epochs=1).fit(Letters(), datamodule=data)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with caplog.at_level(logging.WARNING):
        trainer(RetrievalAnalysis()).fit(Letters(), datamodule=data, ckpt_path=last)
    assert list(written(tmp_path / "run")["retrievers"]) == ["trained", "random"]
    assert "the run was begun without it" in caplog.text


def test_one_callback_for_two_methods(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    analysis, shifted = RetrievalAnalysis(), Letters()
    trainer(analysis, folder="one").fit(Letters(), datamodule=data)
    shifted.attach(data)
    nn.init.normal_(shifted.retriever[0].weight)
    trainer(analysis, folder="two").fit(shifted, datamodule=data)
    one, two = (written(tmp_path / name)["retrievers"] for name in ("one", "two"))
    assert one["untrained"] != two["untrained"]
    assert one["random"] == two["random"]


def test_split_of_the_test(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    """It is not looked at before the test, and then the trained and a random one are measured."""
    method = Letters(epochs=1)
    start = trainer(RetrievalAnalysis(ks=(2, 1, 2), split="test"))
    start.fit(method, datamodule=data)
    assert not (tmp_path / "run" / "retrieval.json").exists()
    assert not {q.id for q in data.splits.test} & {name for row in method.rows_of for name in row}
    start.test(method, datamodule=data, verbose=False)
    content = written(tmp_path / "run")
    assert (content["split"], content["ks"]) == ("test", [1, 2])
    assert list(content["retrievers"]) == ["trained", "random"]
    labels = {instance.answers[0] for instance in data.splits.test}
    assert set(content["retrievers"]["trained"]["confusion"]) == labels


def test_a_test_leaves_the_validation_figures(
    trainer: Start, data: RagDataModule, tmp_path: Path
) -> None:
    method, start = Letters(epochs=1), trainer(RetrievalAnalysis())
    start.fit(method, datamodule=data)
    (tmp_path / "run" / "retrieval.json").unlink()
    start.test(method, datamodule=data, verbose=False)
    start.validate(method, datamodule=data, verbose=False)
    assert not (tmp_path / "run" / "retrieval.json").exists()


def test_rehearsal_writes_nothing(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    data.eval_batch_size = 2
    method = Letters()
    trainer(RetrievalAnalysis(), fast_dev_run=1).fit(method, datamodule=data)
    assert not list(tmp_path.rglob("retrieval.json"))
    ids = [i.id for i in data.splits.validation[:2]]
    assert method.rows_of == [ids] * 3  # untrained, validation, trained


def test_questions_have_no_entities(trainer: Start, tmp_path: Path) -> None:
    data = RagDataModule(
        reader=SyntheticQuestions(train=16, validation=8, test=8),
        task=QuestionAnswering(),
        first_stage=BM25(),
        num_candidates=4,
        cache_dir=str(tmp_path / "cache"),
    )
    method = Letters(scores=[0.5], epochs=1)
    trainer(RetrievalAnalysis()).fit(method, datamodule=data)
    for name, measured in written(tmp_path / "run")["retrievers"].items():
        assert list(measured) == ["figures"]
        expected = {f"label_agreement{depth}" for depth in DEPTHS}
        expected |= {"distinct_top1", "most_frequent_top1", "candidates"}
        expected |= set() if name == "random" else {"perplexity_1", "perplexity_2"}
        assert set(measured["figures"]) == expected
    rows = ranked_by(method, data)
    agreeing = [data.task.matches(q, data.store[row]) for q, row in rows]
    figures = written(tmp_path / "run")["retrievers"]["trained"]["figures"]
    assert figures["label_agreement@1"] == sum(agreeing) / 8


def ranked_by(method: Letters, data: RagDataModule) -> list[tuple[Any, int]]:
    method.eval()
    keys = method.embed([p.text for p in data.store])
    queries = data.splits.validation
    return [(q, int((method.embed([q.text]) @ keys.T).argmax())) for q in queries]


class Nothing(Letters):
    """Retrieves nothing, as the baseline does, and has no index."""

    refresh_every = None

    def refresh_index(self) -> None:
        raise AssertionError("a method without an index is not asked to refresh it")

    def loss(self, batch: RagBatch) -> LossTerms:
        return LossTerms(total=self.embed([i.text for i in batch.instances]).square().mean())

    retrieve = NoRetrieval.retrieve


def test_a_method_that_retrieves_nothing(
    trainer: Start, data: RagDataModule, tmp_path: Path
) -> None:
    trainer(RetrievalAnalysis()).fit(Nothing(epochs=1), datamodule=data)
    found = written(tmp_path / "run")["retrievers"]
    assert found["trained"] == {"figures": {"candidates": 0.0}, "confusion": {}}
    assert "label_agreement@10" in found["random"]["figures"]


def test_cost_and_tensorboard(trainer: Start, data: RagDataModule, tmp_path: Path) -> None:
    start = trainer(RetrievalAnalysis())
    start.fit(Letters(), datamodule=data)
    (ledger,) = [c for c in start.callbacks if isinstance(c, CostLedger)]
    assert ledger.phases["fit"]["seconds/analysis"] > 0
    (path,) = (tmp_path / "run").glob("events.*")
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    found = written(tmp_path / "run")["retrievers"]
    for name, value in found["trained"]["figures"].items():
        points = [(event.step, event.value) for event in events.Scalars(f"retrieval/{name}")]
        expected = [(0, found["untrained"]["figures"][name]), (10, value)]
        assert points == [(step, pytest.approx(value)) for step, value in expected]
    (event,) = events.Tensors("retrieval/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["| figure | untrained | trained | random |", "|---|---|---|---|"]
    table = {cells[1].strip(" `"): cells[2:5] for cells in (line.split("|") for line in lines[2:])}
    assert set(table) == set(found["trained"]["figures"])
    for name, cells in table.items():
        figures = [found[column]["figures"].get(name) for column in found]
        assert [cell.strip() for cell in cells] == [
            "" if value is None else f"{value:.4g}" for value in figures
        ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": ()}, r"RetrievalAnalysis.ks is \[\]; legal: one number or more, each 1 or more"),
        ({"ks": (1, 0)}, r"RetrievalAnalysis.ks is \[1, 0\]; legal"),
        ({"split": "train"}, "RetrievalAnalysis.split is 'train'; legal: validation, test"),
    ],
)
def test_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RetrievalAnalysis(**settings)


@pytest.mark.parametrize("method", ["etrag", "rag4re"])
def test_from_the_command_line(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    (tmp_path / "analysis.yaml").write_text(
        "trainer:\n"
        "  callbacks:\n"
        "    - class_path: lightning_rag.callbacks.retrieval_analysis.RetrievalAnalysis\n"
        "      init_args: {ks: [1, 3, 10]}\n"
    )
    names = ("base", "data/synthetic_relations", "backbone/tiny", f"method/{method}")
    files = [*(CONFIGS / f"{name}.yaml" for name in names), CONFIGS.parent / "tests/small.yaml"]
    configs = [part for file in (*files, tmp_path / "analysis.yaml") for part in ("--config", file)]
    sizes = (("train", 24), ("validation", 8), ("test", 8))
    command = [
        "fit",
        *map(str, configs),
        *[f"--data.reader.init_args.{split}={size}" for split, size in sizes],
        "--optimizer.learning_rates={generator: 1e-3, retriever: 1e-3, projection: 1e-3}"
        if method == "etrag"
        else "--optimizer.learning_rates={generator: 1e-3}",
        "--model.epochs=1",
        f"--runs={tmp_path / 'runs'}",
        f"--data.cache_dir={tmp_path / 'cache'}",
    ]
    assert cli.main(command) == 0
    (path,) = tmp_path.rglob("retrieval.json")
    found = written(path.parent)["retrievers"]
    trained = found["trained"]["figures"]
    assert {"label_agreement@1", "label_agreement@3"} <= trained.keys()
    assert "label_agreement@10" not in trained  # of four candidates
    assert "label_agreement@10" in found["random"]["figures"]
    assert trained["candidates"] <= 4
    soft = [name for name in trained if name.startswith("perplexity")]
    if method == "rag4re":  # its retriever does not learn
        assert found["trained"] == found["untrained"]
        assert not soft
    else:
        assert soft == ["perplexity_1", "perplexity_2"]
        assert all(1 <= trained[name] <= 4 for name in soft)
    summary = json.loads((path.parent / "summary.json").read_text())
    assert any("seconds/analysis" in book for book in summary["cost"].values())
