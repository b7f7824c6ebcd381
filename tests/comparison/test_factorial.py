"""The 2 x 2 of trained and frozen parts: found by names, with its interaction."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_rag.comparison import factorial
from lightning_rag.comparison.measured import measure
from lightning_rag.comparison.runs import read, systems
from lightning_rag.comparison.style import svg
from lightning_rag.sweep.controls import CELLS as CONTROLS

DRAWS = {"resamples": 300, "confidence": 0.95, "seed": 0}
CELLS = ("", "-frozen-retriever", "-frozen-generator", "-frozen-both")
RATES = (0.9, 0.6, 0.5, 0.45)


@pytest.fixture
def compared(write_run):
    """Write systems: (method, variant, rate of right answers)."""

    def build(*cells, seeds=3, trained=None):
        random = np.random.default_rng(3)
        folders = [
            write_run(
                method,
                variant,
                seed,
                right=(random.random(50) < rate).astype(int).tolist(),
                summary={"trained": trained[variant]} if trained else None,
            )
            for method, variant, rate in cells
            for seed in range(seeds)
        ]
        return systems([read(folder) for folder in folders])

    return build


def section(built):
    return factorial.section(built, measure(built, ["f1"], **DRAWS)["f1"])


def square(method, base, cells=CELLS):
    return [(method, base + cell, RATES[CELLS.index(cell)]) for cell in cells]


def test_the_interaction_is_the_difference_of_differences(compared):
    built = compared(*square("Etrag", "soft"), ("NoRetrieval", "default", 0.4))
    found = section(built)
    cells, effects = found.tables
    tt, ft, tf, ff = (row[4] for row in cells.rows)
    assert [row[1:4] for row in cells.rows] == [
        ("trained", "trained", "etrag/soft"),
        ("frozen", "trained", "etrag/soft-frozen-retriever"),
        ("trained", "frozen", "etrag/soft-frozen-generator"),
        ("frozen", "frozen", "etrag/soft-frozen-both"),
    ]
    figures = [row[2] for row in effects.rows]
    assert figures == pytest.approx([tt - ft, tf - ff, tt - tf, ft - ff, tt - ft - tf + ff])
    assert effects.rows[-1][1] == "interaction"
    for row in effects.rows:
        assert row[3] < row[2] < row[4]
        assert row[5] < row[2] < row[6]
        assert 0 <= row[7] <= 1
    assert "interaction" not in " ".join(found.paragraphs[1:])
    assert found.summary[0].startswith(
        "Interaction of training retriever and generator, etrag/soft"
    )
    seeds = {system.name: [run.test["f1"] for run in system.runs] for system in built}
    by_hand = (
        np.array(seeds["etrag/soft"])
        - seeds["etrag/soft-frozen-retriever"]
        - seeds["etrag/soft-frozen-generator"]
        + seeds["etrag/soft-frozen-both"]
    )
    assert effects.rows[-1][2] == pytest.approx(by_hand.mean())


def test_missing_cells_are_named(compared):
    found = section(compared(*square("Dro", "em", ("", "-frozen-generator"))))
    said = " ".join(found.paragraphs)
    assert "dro/em: there are no runs of retriever and generator frozen, trained; frozen, f" in said
    assert [row[3] for row in found.tables[0].rows] == [
        "dro/em",
        None,
        "dro/em-frozen-generator",
        None,
    ]
    assert [row[1] for row in found.tables[1].rows] == ["training the generator, retriever trained"]
    assert found.summary == ()
    assert svg(found.plots[0].figure).startswith("<svg")


def test_cells_without_the_method_itself_are_shown(compared):
    found = section(compared(*square("Dro", "em", ("-frozen-both",)), ("Etrag", "soft", 0.5)))
    assert [row[3] for row in found.tables[0].rows] == [None, None, None, "dro/em-frozen-both"]
    assert {row[0] for row in found.tables[0].rows} == {"em"}
    assert len(found.tables) == 1


def test_controls_may_be_of_another_method(compared):
    built = compared(
        *square("Ruie", "ruie", ("", "-frozen-generator")),
        *square("Rag4re", "ruie", ("-frozen-retriever", "-frozen-both")),
    )
    (found,) = factorial.squares(built)
    assert found.missing == ()
    assert found.name == "ruie"


def test_a_method_that_freezes_its_generator_is_that_cell(compared):
    """As RUIE: what has both trained is a control of it."""
    trained = {
        "ruie": ["retriever", "reward"],
        "ruie-trained-both": ["generator", "retriever", "reward"],
        "ruie-frozen-retriever": ["generator"],
        "ruie-frozen-both": [],
    }
    rates = dict(zip(trained, (0.5, 0.9, 0.6, 0.45), strict=True))
    built = compared(*(("Ruie", *one) for one in rates.items()), trained=trained)
    (found,) = factorial.squares(built)
    assert found.name == "ruie"
    assert found.missing == ()
    assert [(cell, system.runs[0].variant) for cell, system in found.cells.items()] == [
        (factorial.TT, "ruie-trained-both"),
        (factorial.FT, "ruie-frozen-retriever"),
        (factorial.TF, "ruie"),
        (factorial.FF, "ruie-frozen-both"),
    ]
    assert (
        section(built)
        .summary[0]
        .startswith("Interaction of training retriever and generator, ruie")
    )
    (found,) = factorial.squares(built[:1] + built[2:])
    assert found.missing == (factorial.TT,)


def test_the_cells_are_called_as_a_sweep_calls_its_controls():
    assert [suffix.removeprefix("-") for suffix in factorial.SUFFIXES.values()] == [*CONTROLS]


def test_methods_of_one_variant_have_each_their_own_cells(compared):
    built = compared(*square("Etrag", "default"), *square("Dro", "default"), seeds=1)
    found = factorial.squares(built)
    assert [one.name for one in found] == ["etrag", "dro"]
    for one in found:
        assert {system.runs[0].method for system in one.cells.values()} == {one.name}
    drawn = section(built)
    assert len(drawn.tables[1].rows) == 10
    assert "One seed" in drawn.paragraphs[-1]
    assert all(row[5:] == (None, None, None) for row in drawn.tables[1].rows)
    assert "over queries:" in drawn.summary[0]


def test_without_frozen_parts_there_is_no_section(compared):
    built = compared(("Etrag", "default", 0.5), ("Dro", "default", 0.6), seeds=1)
    assert section(built) is None
