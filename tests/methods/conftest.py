"""Three small tasks of information extraction, one of them held out, for the tests of RUIE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_rag.data.candidates import BM25, FirstStage
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.extraction import extraction_instance
from lightning_rag.data.splits import Splits
from lightning_rag.tasks.information_extraction import InformationExtraction
from lightning_rag.types import Extraction, Fact, Instance, Mention, Passage

NAMES = ("Ada", "Bo", "Cem", "Dov", "Eli", "Fay", "Gus", "Hal")
TOWNS = ("Rome", "Oslo", "Bonn", "Lyon", "Kyiv")
TASKS = ("NER_one", "NER_two", "NER_held")
HELD_OUT = "NER_held"


def record(task: str, split: str, number: int) -> Instance:
    """A sentence with a name and, in two of three, a town."""
    shift = TASKS.index(task) + {"train": 0, "validation": 3, "test": 5}[split]
    name = NAMES[(number * 3 + shift) % len(NAMES)]
    town = TOWNS[(number + shift) % len(TOWNS)]
    text = f"{name} sees number {number} of {split} {TASKS.index(task)} in {town} ."
    facts = [Fact("person", (Mention(name, 0, len(name)),))]
    if number % 3:
        start = text.index(town)
        facts.append(Fact("town", (Mention(town, start, start + len(town)),)))
    asked = Extraction("entities", ("person", "town"), tuple(facts))
    return replace(extraction_instance(task, split, number, text, asked), held_out=task == HELD_OUT)


class ThreeTasks(Reader):
    """Training and validation queries of two tasks; demonstrations and test queries of all."""

    def __init__(self, train: int = 10, few: int = 10) -> None:
        self.train = train
        self.few = few  # demonstrations of the second task

    def read(self, root: Path | None, seed: int) -> Splits:
        sizes = {"NER_one": self.train, "NER_two": self.few, "NER_held": self.train}
        train = {t: [record(t, "train", n) for n in range(sizes[t])] for t in TASKS}
        return Splits(
            train=tuple(i for task in TASKS[:2] for i in train[task]),
            validation=tuple(record(task, "validation", n) for task in TASKS[:2] for n in range(4)),
            test=tuple(record(task, "test", n) for task in TASKS for n in range(4)),
            passages=tuple(Passage(i.id, i.text, instance=i) for t in TASKS for i in train[t]),
        )


@pytest.fixture
def three_tasks(tmp_path: Path) -> Callable[..., RagDataModule]:
    """Make the data module of `ThreeTasks`, with six candidates for each query."""

    def make(
        reader: Reader | None = None, first_stage: FirstStage | None = None, **settings
    ) -> RagDataModule:
        settings.setdefault("num_candidates", 6)
        data = RagDataModule(
            reader or ThreeTasks(),
            InformationExtraction(),
            first_stage or BM25(),
            batch_size=5,
            eval_batch_size=5,
            cache_dir=str(tmp_path / "cache"),
            **settings,
        )
        data.setup()
        return data

    make.reader = ThreeTasks
    return make
