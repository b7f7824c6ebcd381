"""Sweep files: what they may say, and each mistake with its place and what is legal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_rag.errors import UserError
from lightning_rag.sweep.file import Cluster, Comparison, Local, Range, load

Write = Callable[..., Path]

FULL = """
name: all
seeds: [3, 1]
arguments: {data.fraction: 0.1, optimizer.learning_rates: {generator: 2e-3}}
systems:
  plain: {}
  many:
    arguments: {model.k: 2}
    seeds: [1]
    grid:
      model.temperature: [0.1, 1]
      data.first_stage: [lightning_rag.data.candidates.BM25, lightning_rag.data.candidates.Random]
      model.selector: {small: {kind: bi-encoder}, none: null}
    variants:
      short: {model.epochs: 1}
      long: {model.epochs: 9, trainer.check_val_every_n_epoch: 3}
  later: {begin_with: plain}
  swapped: {begin_with: plain, train: false}
  untrained: {train: false, arguments: {ckpt_path: some.ckpt}}
grid: {generator.num_beams: [1, 4]}
executor: {kind: local, processes: 2}
compare: {metric: f1, resamples: 500}
"""


def test_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(FULL)
    file = load(path)
    plain, many, later, swapped, untrained = file.systems
    assert (file.name, file.seeds) == ("all", (3, 1))
    # 2e-3 is a number, which plain YAML 1.1 takes for text
    assert file.arguments == {
        "data.fraction": 0.1,
        "optimizer.learning_rates": {"generator": 0.002},
    }
    assert file.grid == {"generator.num_beams": {"1": 1, "4": 4}}
    assert (file.executor, file.controls) == (Local(2), False)
    assert file.compare == Comparison("f1", 500)
    assert (plain.name, plain.seeds, plain.train, plain.begin_with) == ("plain", (), True, None)
    assert many.seeds == (1,)
    assert many.grid == {
        "model.temperature": {"0.1": 0.1, "1": 1},
        "data.first_stage": {
            "BM25": "lightning_rag.data.candidates.BM25",
            "Random": "lightning_rag.data.candidates.Random",
        },
        "model.selector": {"small": {"kind": "bi-encoder"}, "none": None},
    }
    assert many.variants["long"] == {"model.epochs": 9, "trainer.check_val_every_n_epoch": 3}
    assert (later.begin_with, later.train) == ("plain", True)
    assert (swapped.begin_with, swapped.train) == ("plain", False)
    assert untrained.arguments == {"ckpt_path": "some.ckpt"}


def test_what_is_left_out(write: Write) -> None:
    file = load(write())
    assert file.seeds == (0,)
    assert file.executor == Local(1)
    assert file.compare == Comparison()
    assert load(write(compare=False)).compare is None


def test_a_cluster(write: Write) -> None:
    executor = {"kind": "ray", "address": "10.0.0.1:6379", "cpus": 2, "gpus": 0.5}
    assert load(write(executor=executor)).executor == Cluster("10.0.0.1:6379", 2, 0.5)
    assert load(write(executor={"kind": "ray"})).executor == Cluster()


def test_interpolation_is_left_to_the_configuration(write: Write) -> None:
    file = load(write(arguments={"data.batch_size": "${data.num_candidates}"}))
    assert file.arguments == {"data.batch_size": "${data.num_candidates}"}


class TestSearch:
    def test_a_system_has_the_shared_keys_and_its_own(self, write: Write, system) -> None:
        shared = {"metric": "val/f1", "trials": 9, "space": {"model.k": [1, 2]}}
        space = {"model.temperature": {"low": 0.1, "high": 1, "log": True}}
        systems = {
            "a": system(),
            "b": system(search={"trials": 3, "space": space}),
            "c": system(search=False),
            "d": system(train=False),
        }
        a, b, c, d = load(write(systems=systems, search=shared)).systems
        assert a.search is not None
        assert b.search is not None
        assert (a.search.metric, a.search.mode, a.search.sampler) == ("f1", "max", "tpe")
        assert (a.search.trials, a.search.space) == (9, {"model.k": (1, 2)})
        assert (b.search.metric, b.search.trials) == ("f1", 3)
        assert b.search.space == {"model.temperature": Range(0.1, 1, log=True)}
        assert c.search is None
        assert d.search is None

    @pytest.mark.parametrize(
        ("search", "message"),
        [
            ({"trials": 3, "space": {"model.k": [1]}}, "systems.a.search: metric is missing"),
            ({"metric": "f1", "trials": 3}, "systems.a.search: space is missing"),
            ({"metric": "f1", "space": {"model.k": [1]}}, "trials is missing: how many settings"),
            (
                {"metric": "f1", "trials": 0, "space": {"model.k": [1]}},
                "whole number of at least 1",
            ),
            ({"metric": "f1", "trials": 3, "space": {}}, "systems.a.search.space: is empty"),
            ({"metric": "f1", "trials": 3, "space": {"model.k": []}}, "space.model.k: is empty"),
            (
                {"metric": "f1", "trials": 3, "space": {"model.k": [1, 2, 1]}},
                "space.model.k: a value is given twice: [1, 2, 1]",
            ),
            ({"metric": "f1", "trial": 3}, "unknown key 'trial'; did you mean 'trials'?"),
            ({"metric": "f1", "mode": "most"}, "mode: expected one of max, min, got 'most'"),
            (
                {"metric": "f1", "sampler": "grid", "space": {"model.k": {"low": 1, "high": 3}}},
                "space.model.k: the sampler grid needs a list of values",
            ),
            (
                {"metric": "f1", "trials": 3, "space": {"model.k": {"low": 3, "high": 1}}},
                "low must be less than high, got 3 and 1",
            ),
            (
                {"metric": "f1", "trials": 3, "space": {"m": {"low": 0, "high": 1, "log": True}}},
                "with log: true, low must be above 0",
            ),
            (
                {"metric": "f1", "trials": 3, "space": {"m": {"low": 0, "hi": 1}}},
                "unknown key 'hi'; did you mean 'high'?",
            ),
            (
                {"metric": "f1", "trials": 3, "space": {"seed_everything": [0, 1]}},
                "search.space.seed_everything: cannot be given here; legal: seeds",
            ),
        ],
    )
    def test_mistakes(self, write: Write, system, search: object, message: str) -> None:
        with pytest.raises(UserError) as mistake:
            load(write(systems={"a": system(search=search)}))
        assert message in str(mistake.value)

    def test_not_for_a_test_alone(self, write: Write, system) -> None:
        search = {"metric": "f1", "trials": 3, "space": {"model.k": [1]}}
        with pytest.raises(UserError, match=r"systems\.a\.search: cannot be given with train"):
            load(write(systems={"a": system(train=False, search=search)}))


MISTAKES = [
    ({"sytems": {"a": {}}}, "unknown key 'sytems'; did you mean 'systems'? legal: name, configs"),
    ({"systems": None}, "systems is missing"),
    ({"name": None}, "name is missing"),
    ({"name": "a/b"}, "name: 'a/b' cannot name a folder"),
    ({"name": 3}, "name: expected text, got 3"),
    ({"systems": {}}, "systems: is empty"),
    ({"systems": ["a"]}, "systems: expected keys with values, got ['a']"),
    ({"systems": {"a b": {"train": False}}}, "'a b' cannot name a system"),
    ({"systems": {3: {"train": False}}}, "systems: a key must be text, got 3"),
    ({"systems": {"a": {"gird": {}}}}, "systems.a: unknown key 'gird'; did you mean 'grid'?"),
    ({"systems": {"a": {"train": "no"}}}, "systems.a.train: expected true or false, got 'no'"),
    ({"systems": {"a": {"configs": ["none.yaml"]}}}, "there is no file none.yaml, neither in the"),
    ({"systems": {"a": {"configs": "x.yaml"}}}, "systems.a.configs: expected a list, got 'x.yaml'"),
    ({"seeds": []}, "seeds: is empty; legal: at least one value"),
    ({"seeds": [0, 0]}, "seeds: a seed is given twice: [0, 0]"),
    ({"seeds": [-1]}, "seeds.0: expected a whole number of at least 0, got -1"),
    ({"seeds": [True]}, "seeds.0: expected a whole number of at least 0, got True"),
    ({"seeds": 3}, "seeds: expected a list, got 3"),
    ({"grid": {}}, "grid: is empty"),
    ({"grid": {"model.k": []}}, "grid.model.k: is empty"),
    ({"grid": {"model.k": {}}}, "grid.model.k: is empty"),
    ({"grid": {"model.k": 3}}, "grid.model.k: expected a list, got 3"),
    ({"grid": {"model.k": [1, 1]}}, "grid.model.k.1: two values would be called 1"),
    ({"grid": {"a": ["x/y"]}}, "grid.a.0: cannot be part of a folder's name"),
    ({"grid": {"a": [{"b": 1}]}}, "grid.a.0: give it a name, as in {small: {'b': 1}}"),
    ({"grid": {"experiment": ["a"]}}, "grid.experiment: cannot be given here; legal: name"),
    ({"variants": {"a": {}}}, "variants.a: is empty"),
    ({"variants": {"a/b": {"model.k": 1}}}, "'a/b' cannot name a folder"),
    ({"variants": {"a": {"configs": ["no.yaml"]}}}, "variants.a.configs.0: there is no file"),
    ({"arguments": {"seed_everything": 3}}, "seed_everything: cannot be given here; legal: seeds"),
    ({"arguments": {"overwrite": True}}, "legal: sweep FILE --overwrite true"),
    ({"arguments": {"--model.k": 3}}, "expected a key as on the command line, without -- and ="),
    ({"arguments": {"model.k=3": 3}}, "expected a key as on the command line, without -- and ="),
    ({"arguments": {}}, "arguments: is empty"),
    ({"controls": "yes"}, "controls: expected true or false, got 'yes'"),
    ({"executor": {"kind": "slurm"}}, "executor.kind: expected one of local, ray, got 'slurm'"),
    ({"executor": {"processes": 0}}, "executor.processes: expected a whole number of at least 1"),
    ({"executor": {"cpus": 2}}, "executor: unknown key 'cpus'; legal: kind, processes"),
    ({"executor": {"kind": "ray", "processes": 2}}, "unknown key 'processes'"),
    ({"executor": {"kind": "ray", "cpus": 0}}, "cpus must be above 0"),
    ({"compare": {"metrics": "f1"}}, "compare: unknown key 'metrics'; did you mean 'metric'?"),
    ({"compare": {"confidence": 95}}, "compare.confidence: must lie between 0 and 1, got 95"),
    ({"compare": {"resamples": 0}}, "compare.resamples: expected a whole number of at least 1"),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes(write: Write, keys: dict[str, object], message: str) -> None:
    path = write(**keys)
    with pytest.raises(UserError) as mistake:
        load(path)
    assert str(mistake.value).startswith(str(path))
    assert message in str(mistake.value)


@pytest.mark.parametrize("key", ["initial_weights", "ckpt_path"])
def test_weights_are_given_once(write: Write, system, key: str) -> None:
    systems = {"a": system(), "b": system(begin_with="a", arguments={key: "x.ckpt"})}
    with pytest.raises(UserError, match=f"systems.b.arguments.{key}: cannot be given here"):
        load(write(systems=systems))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [a", "cannot be read: while parsing"),
        (b"name: a\nname: b\n", "cannot be read: .*found duplicate key name"),
        (b"name: \xff\xfe", "cannot be read"),
        (b"- a\n", "expected keys with values, got \\['a'\\]"),
        (b"", "is empty"),
        (b"just text", "unknown key 'just text'"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as mistake:
        load(path)
    assert str(path) in str(mistake.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none\.yaml"):
        load(tmp_path / "none.yaml")


class TestPathsOfConfigurations:
    """From the working directory, else from the nearest folder above the sweep file."""

    def test_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        work, repository = tmp_path / "work", tmp_path / "repository"
        for folder in (work, repository / "experiments", repository / "configs"):
            folder.mkdir(parents=True)
        (repository / "configs" / "a.yaml").touch()
        sweep = repository / "experiments" / "s.yaml"
        sweep.write_text("name: n\nsystems: {s: {configs: [configs/a.yaml]}}\n")
        monkeypatch.chdir(work)
        assert load(sweep).systems[0].configs == (str(repository / "configs" / "a.yaml"),)
        (work / "configs").mkdir()
        (work / "configs" / "a.yaml").touch()
        assert load(sweep).systems[0].configs == ("configs/a.yaml",)
