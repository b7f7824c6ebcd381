"""Controls of a sweep: which systems are added; each of the delivered ones can be built."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lightning_rag.errors import UserError
from lightning_rag.sweep.controls import CELLS, setting, with_controls
from lightning_rag.sweep.file import SweepFile, System, load
from lightning_rag.sweep.plan import parser, plan

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
FIRST_STAGES = ["rag4re-random", "rag4re-bm25", "rag4re-oracle"]
OTHERS = ["rag4re-random", "rag4re-oracle"]  # where the data's own first stage is BM25
DATA = ("base", "data/synthetic_relations", "backbone/tiny")

Make = Callable[..., SweepFile]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A sweep with controls of systems, given by method or in full, beside copied configurations.

    They are found from the sweep file, for it lies beside `configs`, and not from where this runs.
    """
    monkeypatch.chdir(tmp_path / "..")
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    shutil.copytree(CONFIGS, tmp_path / "configs")

    def load_it(systems: dict[str, object], **keys: object) -> SweepFile:
        content = {
            "name": "tried",
            "configs": [f"configs/{name}.yaml" for name in DATA],
            "controls": True,
            "systems": {
                name: {"configs": [f"configs/method/{of}.yaml"]} if isinstance(of, str) else of
                for name, of in systems.items()
            },
            **keys,
        }
        path = tmp_path / "experiments" / "sweep.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return load(path)

    return load_it


def named(file: SweepFile) -> dict[str, System]:
    return {system.name + system.cell: system for system in file.systems}


def test_the_cells_of_a_method_and_the_shared_controls(make: Make) -> None:
    file = make({"etrag": "etrag"})
    found = named(with_controls(file))
    assert [*found] == [
        "etrag",
        "etrag-frozen-retriever",
        "etrag-frozen-generator",
        "etrag-frozen-both",
        "no_retrieval",
        *FIRST_STAGES,
    ]
    assert found["etrag"] == file.systems[0]
    assert found["etrag-frozen-retriever"].arguments == {"model.train_retriever": False}
    assert found["etrag-frozen-generator"].arguments == {"model.train_generator": False}
    assert found["etrag-frozen-both"].arguments == {
        "model.train_retriever": False,
        "model.train_generator": False,
    }
    oracle = {"data.first_stage": "lightning_rag.data.candidates.Oracle"}
    assert found["rag4re-oracle"].arguments == oracle
    assert [Path(path).name for path in found["rag4re-oracle"].configs] == ["rag4re.yaml"]
    assert all(Path(path).is_file() for one in found.values() for path in one.configs)


def test_a_cell_is_its_system_but_for_what_it_changes(make: Make) -> None:
    whole = {
        "configs": ["configs/method/etrag.yaml"],
        "arguments": {"model.k": 3, "model.train_generator": True},
        "grid": {"model.temperature": [0.1, 1.0]},
        "seeds": [4, 5],
        "begin_with": "first",
    }
    found = named(with_controls(make({"first": "no_retrieval", "etrag": whole})))
    system, cell = found["etrag"], found["etrag-frozen-generator"]
    assert cell.arguments == {"model.k": 3, "model.train_generator": False}
    for name in ("configs", "grid", "variants", "seeds", "begin_with", "train", "search"):
        assert getattr(cell, name) == getattr(system, name)


@pytest.mark.parametrize("key", ["model.iterations", "model.init_args.iterations"])
def test_neither_axes_nor_searches_undo_what_makes_a_cell(make: Make, key: str) -> None:
    """DRO that is frozen by taking no iteration takes none, however many the system tries."""
    dro = {"configs": ["configs/method/dro.yaml"], "grid": {key: [1, 2]}}
    file = with_controls(make({"dro": dro}))
    name, found = f"dro-{key.rpartition('.')[2]}=1", {key: 3}
    for run in plan(file, runs="runs", found={name: found}):
        if run.base.startswith("dro-"):
            took = [word.rpartition("=")[2] for word in run.words if "iterations=" in word][:-1]
            frozen = run.system.endswith("-frozen-both")
            wanted = "3" if run.base == name else "2"
            assert took[-1] == ("0" if frozen else wanted), run.name
    staged = "lightning_rag.data.candidates.BM25"
    rag4re = {"configs": ["configs/method/rag4re.yaml"], "grid": {"data.first_stage": [staged]}}
    runs = plan(with_controls(make({"plain": "no_retrieval", "mine": rag4re})), runs="runs")
    (oracle,) = [run for run in runs if run.system.startswith("rag4re-oracle")]
    assert "--data.first_stage=lightning_rag.data.candidates.Oracle" in oracle.words


def test_the_files_own_systems_say_how_the_shared_controls_train(make: Make) -> None:
    """What the file has already is not added; what it has otherwise is taken as a pattern."""
    rag4re = {"configs": ["configs/method/rag4re.yaml"], "arguments": {"model.epochs": 3}}
    found = named(with_controls(make({"plain": "no_retrieval", "mine": rag4re})))
    assert [*found] == ["plain", "mine", *OTHERS]
    assert found["rag4re-random"].arguments == {
        "model.epochs": 3,
        "data.first_stage": "lightning_rag.data.candidates.Random",
    }
    # The first stage of its own is no longer BM25.
    rag4re["arguments"] = {"data.first_stage": "lightning_rag.data.candidates.Oracle"}
    found = named(with_controls(make({"plain": "no_retrieval", "mine": rag4re})))
    assert [*found] == ["plain", "mine", "rag4re-random", "rag4re-bm25"]
    shared = {"data.first_stage.class_path": "lightning_rag.data.candidates.Random"}
    found = named(with_controls(make({"plain": "no_retrieval", "r": "rag4re"}, arguments=shared)))
    assert [*found] == ["plain", "r", "rag4re-bm25", "rag4re-oracle"]


def test_a_system_of_the_file_takes_the_place_of_a_control(make: Make) -> None:
    own = {"configs": ["configs/method/etrag.yaml"], "arguments": {"model.epochs": 1}}
    systems = {"etrag": "etrag", "etrag-frozen-both": own, "rag4re-oracle": "rag4re"}
    file = make(systems)
    found = with_controls(file).systems
    names = [system.name + system.cell for system in found]
    assert len(set(names)) == len(names)
    assert named(with_controls(file))["etrag-frozen-both"] == file.systems[1]
    assert named(with_controls(file))["rag4re-oracle"] == file.systems[2]
    # It is a cell, and has none itself.
    assert not [name for name in names if name.startswith("etrag-frozen-both-")]


def test_what_trains_nothing_has_no_controls(make: Make) -> None:
    tested = {"configs": ["configs/method/dro.yaml"], "train": False}
    found = named(with_controls(make({"plain": "no_retrieval", "dro": tested})))
    assert not [name for name in found if name.startswith("dro-")]


def test_a_system_can_do_without(make: Make) -> None:
    """One that others begin with, say."""
    first = {"configs": ["configs/method/etrag.yaml"], "controls": False}
    found = named(with_controls(make({"first": first, "etrag": "etrag", "r": "rag4re"})))
    assert not [name for name in found if name.startswith("first-")]
    assert "etrag-frozen-both" in found
    with pytest.raises(UserError, match=r"systems.first.controls: expected true or false"):
        make({"first": {**first, "controls": "no"}})


def test_dro_is_frozen_by_its_warm_up_or_by_what_it_begins_with(make: Make) -> None:
    begun = {"configs": ["configs/method/dro.yaml"], "arguments": {"model.warm_up_epochs": 0}}
    found = named(with_controls(make({"dro": "dro", "begun": begun})))
    warm, none = found["dro-frozen-both"], found["begun-frozen-both"]
    assert (warm.arguments, warm.train) == ({"model.iterations": 0}, True)
    assert (none.arguments, none.train) == ({"model.warm_up_epochs": 0}, False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse renames this method
@pytest.mark.parametrize("method", METHODS)
def test_every_delivered_control_can_be_built_and_freezes_what_it_says(
    make: Make, method: str
) -> None:
    """Constructors accept the settings, and the phases train what the cell's name says."""
    retrievers = {"retriever", "selector"}
    for run in plan(with_controls(make({method: method})), runs="runs"):
        cell = run.system.removeprefix(f"{method}-")
        if cell not in CELLS or not run.train:
            continue
        config = parser().parse_args(["fit", *run.words])
        built = parser().instantiate_classes(config)["fit"]["model"]
        # DRO's warm-up makes what is frozen later.
        phases = [phase for phase in built.schedule if phase.name != "warm_up"]
        trained = {name for phase in phases for name in phase.trains}
        assert bool(trained & retrievers) == (cell in ("trained-both", "frozen-generator"))
        assert ("generator" in trained) == (cell in ("trained-both", "frozen-retriever"))


def test_the_last_word_on_a_setting(make: Make, tmp_path: Path) -> None:
    """Files of the sweep, files of the system, arguments of the sweep, arguments of the system."""
    extra = tmp_path / "extra.yaml"
    extra.write_text("model: {class_path: a.B, init_args: {k: 7, deep: {init_args: {x: 1}}}}\n")
    one = {"configs": ["configs/method/etrag.yaml", str(extra)], "arguments": {"model.k": 9}}
    file = make({"one": one, "two": "etrag", "three": {"arguments": {"model": "c.D"}}})
    first, second, third = file.systems
    assert setting(file, first, "model.class_path") == "a.B"
    assert setting(file, first, "model.k") == 9
    assert setting(file, first, "model.deep.x") == 1
    assert setting(file, second, "model.k") == 2
    assert setting(file, second, "model.none") is None
    assert setting(file, third, "model.class_path") == "c.D"
    again = make({"two": "etrag"}, arguments={"model.k": 4})
    assert setting(again, again.systems[0], "model.k") == 4


def test_a_method_that_no_file_is_about(make: Make, tmp_path: Path) -> None:
    (tmp_path / "configs" / "controls" / "etrag.yaml").unlink()
    with pytest.raises(UserError, match=r"systems.etrag: controls: true, .* about .*Etrag; legal"):
        with_controls(make({"etrag": "etrag"}))


def test_controls_that_are_not_there(make: Make, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "configs" / "controls")
    with pytest.raises(UserError, match=r"needs configs/controls, .* legal: a copy"):
        with_controls(make({"etrag": "etrag"}))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("etrag.yaml", "itself: trained-both", r"etrag.yaml: method is missing"),
        ("etrag.yaml", "methods: a.B", r"did you mean 'method'"),
        ("etrag.yaml", "method: [", r"etrag.yaml cannot be read"),
        ("etrag.yaml", "- a", r"etrag.yaml: expected keys"),
        ("etrag.yaml", "{method: a.B, itself: trained-both}", r"each of trained-both, .* once"),
        ("etrag.yaml", "{method: a.B, itself: frozen}", r"itself: expected one of"),
        (
            "etrag.yaml",
            "{method: a.B, cells: {frozen-both: {argument: {}}}}",
            r"cells.frozen-both: unknown key 'argument'; did you mean 'arguments'",
        ),
        (
            "etrag.yaml",
            "{method: a.B, cells: {frozen-both: {arguments: {seed_everything: 1}}}}",
            r"seed_everything: cannot be given here",
        ),
        ("every_method.yaml", "bm25: {configs: [a]}", r"every_method.yaml: bm25: method is mis"),
        ("every_method.yaml", "bm25: {method: a.B, configs: [no.yaml]}", r"needs no.yaml"),
    ],
)
def test_damaged_controls(make: Make, tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / "configs" / "controls" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        with_controls(make({"dro": "dro"}))
