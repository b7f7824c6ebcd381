"""The layout of TensorBoard's custom-scalars page, and the vectors of its projector."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import Tensor

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.dashboard import Dashboard, Projector, layout
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import first_stage_choice
from lightning_rag.methods.phase import Phase
from lightning_rag.types import RagBatch, Retrieved

CATEGORIES = ["Quality", "Retrieval", "Training", "Estimates", "Cost"]


def one(method: Method) -> Phase:
    return Phase("one", ("first",), method.loss, estimate=method.estimate, epochs=2)


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def written(folder: Path) -> list[Layout]:
    """The layouts in the event files of a run."""
    layouts = []
    for path in sorted(folder.glob("events.*")):
        events = read(path)
        if "custom_scalars__config__" in events.Tags()["tensors"]:
            for event in events.Tensors("custom_scalars__config__"):
                found = Layout()
                found.ParseFromString(event.tensor_proto.string_val[0])
                layouts.append(found)
    return layouts


@pytest.fixture
def trained(fit, tmp_path: Path) -> tuple[Method, Path]:
    """A method that was trained and tested, and the folder of its run."""
    logger = TensorBoardLogger(tmp_path, name="board", version="", default_hp_metric=False)
    ledger, dashboard = CostLedger(), Dashboard()
    method, trainer = fit(one, callbacks=[ledger, dashboard], logger=logger)
    trainer.test(method, datamodule=trainer.datamodule, verbose=False)
    logger.finalize("success")
    return method, tmp_path / "board"


def expressions(method: Method) -> dict[str, str]:
    """The regular expression of each chart, whatever category it is in."""
    return {
        title: expression
        for charts in layout(method).values()
        for title, (_, [expression]) in charts.items()
    }


def test_layout_of_a_run(trained: tuple[Method, Path]) -> None:
    """Once, though it was trained and tested; what TensorBoard reads is what was meant."""
    method, board = trained
    (found,) = written(board)
    charts = {
        category.title: {c.title: ("Multiline", [*c.multiline.tag]) for c in category.chart}
        for category in found.category
    }
    assert charts == layout(method)
    assert [*charts] == CATEGORIES
    assert charts["Quality"] == {
        "accuracy on validation": ("Multiline", ["val/accuracy$"]),
        "accuracy on test": ("Multiline", ["test/accuracy$"]),
    }


def test_charts_find_what_runs_log(trained: tuple[Method, Path]) -> None:
    """TensorBoard matches at the beginning of a scalar's name; each chart is one kind of figure."""
    method, board = trained
    tags = read(board).Tags()["scalars"]
    found = {
        title: {tag for tag in tags if re.match(expression, tag)}
        for title, expression in expressions(method).items()
    }
    assert found["accuracy on validation"] == {"val/accuracy"}
    assert found["accuracy on test"] == {"test/accuracy"}
    assert found["loss (its scale is the method's own)"] == {"train/loss"}
    assert found["what the loss is made of, and what was logged with it"] == {"train/first"}
    assert found["mean reciprocal rank"] == {"val/mrr"}
    assert {"cost/training/seconds"} in found.values()
    assert {"cost/training/generator_tokens"} in found.values()
    assert {"cost/training/flops"} in found.values()
    assert found["peak memory in bytes"] >= {"cost/memory/process"}


def test_charts_of_what_a_method_has(fit) -> None:
    """Estimates, an index that training reads, a phase that is judged by a figure of its own."""

    def two(method: Method) -> Phase:
        return Phase("two", ("first",), method.loss, epochs=1, monitor="score")

    method, _ = fit(two, scores=[0.5])
    charts = layout(method)
    assert [*charts] == CATEGORIES  # TensorBoard loses charts of those that the first run lacks
    assert [*charts["Quality"]] == [
        *("accuracy on validation", "score on validation", "accuracy on test"),
    ]
    assert charts["Estimates"] == {}
    index = "overlap@k of the index with a fresh one"
    assert index not in charts["Retrieval"]
    method.refresh_every = 0
    assert index not in layout(method)["Retrieval"]
    method.refresh_every = 3
    assert layout(method)["Retrieval"][index] == ("Multiline", ["index/overlap@"])
    estimating, _ = fit(one)
    assert "effective sample size" in layout(estimating)["Estimates"]


def test_a_test_alone_has_the_layout(fit, tmp_path: Path) -> None:
    method, _ = fit(one)
    logger = TensorBoardLogger(tmp_path, name="tested", version="", default_hp_metric=False)
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[Evaluator(), Dashboard()],
    )
    trainer.test(method, datamodule=method.data, verbose=False)
    logger.finalize("success")
    assert len(written(tmp_path / "tested")) == 1


def test_other_loggers_are_left_alone(fit) -> None:
    fit(one, callbacks=[Dashboard()], logger=False)


def test_costs_are_totals_over_the_phases(fit, tmp_path: Path) -> None:
    """Of steps and estimates, and not of validations: the same whatever the phases are."""
    logger = TensorBoardLogger(tmp_path, name="board", version="")
    ledger = CostLedger()
    two = lambda method: Phase("two", ("second",), method.loss, epochs=1)  # noqa: E731
    fit(one, two, callbacks=[ledger], logger=logger)
    logger.finalize("success")
    events = read(tmp_path / "board")
    flops = [(e.step, e.value) for e in events.Scalars("cost/training/flops")]
    step, estimate = 4 * 80 * (6 + 2), 4 * 80 * 2
    assert flops == [(n, 5 * estimate + n * step) for n in (5, 10, 15)]
    assert events.Scalars("cost/flops")[-1].value == ledger.totals()["flops"] > flops[-1][1]


class Indexed(Method):
    """Has a made-up index: two vectors of three numbers for each passage."""

    refresh_every = 0
    rows = 0  # that the index has less than the store

    def phases(self) -> list[Phase]:
        return []

    def build(self) -> None:
        size = len(self.data.store) - self.rows
        self.index = torch.arange(size * 6.0).reshape(size, 2, 3)

    def groups(self) -> dict[str, torch.nn.Module]:
        return {}

    def _rehearse(self) -> None:
        """There is no generator."""

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        return first_stage_choice(batch, k)

    def answer(self, batch: RagBatch, retrieved: Retrieved) -> list[str]:
        return ["" for _ in batch.instances]


def show(data: RagDataModule, folder: Path, method: Method, projector: Projector) -> Path:
    logger = TensorBoardLogger(folder, name="board", version="")
    trainer = Trainer(
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[Evaluator(), projector],
    )
    trainer.test(method, datamodule=data, verbose=False)
    return folder / "board"


@pytest.fixture
def indexed() -> Indexed:
    return Indexed(GeneratorConfig(), k=1)


def shown(board: Path) -> tuple[Tensor, list[list[str]]]:
    """The vectors and the lines beside them, by the file that TensorBoard begins with."""
    config = (board / "projector_config.pbtxt").read_text()
    (tensors,) = re.findall(r'tensor_path: "(.+)"', config)
    (metadata,) = re.findall(r'metadata_path: "(.+)"', config)
    lines = (board / tensors).read_text().splitlines()
    vectors = torch.tensor([[float(number) for number in line.split("\t")] for line in lines])
    text = (board / metadata).read_text(encoding="utf-8")
    return vectors, [line.split("\t") for line in text.splitlines()]


def test_projector(data: RagDataModule, indexed: Indexed, tmp_path: Path) -> None:
    vectors, lines = shown(show(data, tmp_path, indexed, Projector()))
    size = len(data.store)
    assert torch.equal(vectors, torch.arange(size * 6.0).reshape(size, 6))
    assert lines[0] == ["id", "label", "text"]
    for line, passage in zip(lines[1:], data.store, strict=True):
        assert line == [passage.id, passage.instance.answers[0], " ".join(passage.text.split())]


def test_projector_of_some(data: RagDataModule, indexed: Indexed, tmp_path: Path) -> None:
    vectors, lines = shown(show(data, tmp_path, indexed, Projector(passages=7, seed=1)))
    assert vectors.shape == (7, 6)
    rows = [int(first) // 6 for first in vectors[:, 0].tolist()]
    assert rows == sorted(set(rows)) != list(range(7))
    assert [line[0] for line in lines[1:]] == [data.store[row].id for row in rows]


def test_projector_of_no_index(data: RagDataModule, indexed: Indexed, tmp_path: Path) -> None:
    indexed.refresh_every = None
    with pytest.raises(UserError, match="vectors of an index, Indexed has none as it is"):
        show(data, tmp_path, indexed, Projector())


def test_projector_of_a_part(data: RagDataModule, indexed: Indexed, tmp_path: Path) -> None:
    indexed.rows = 1
    with pytest.raises(UserError, match="legal: an index of the whole store") as raised:
        show(data, tmp_path, indexed, Projector())
    size = len(data.store)
    assert f"has {size - 1} of the store's {size} passages" in str(raised.value)


@pytest.mark.parametrize("passages", [1, 0, -5])
def test_projector_of_nothing(passages: int) -> None:
    with pytest.raises(UserError, match=rf"Projector\.passages is {passages}; legal: 2 or more"):
        Projector(passages=passages)
