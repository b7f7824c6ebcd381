from itertools import pairwise, product

import numpy as np
import pytest

from lightning_rag.callbacks import cost_ledger
from lightning_rag.comparison import cost
from lightning_rag.comparison.cost import pareto_front, section
from lightning_rag.comparison.runs import System
from lightning_rag.errors import DataError

GIB = 2**30


def on_front(point, points):
    """The definition: nothing is as cheap and as good, and cheaper or better."""
    return not any(
        c <= point[0] and q >= point[1] and (c < point[0] or q > point[1]) for c, q in points
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_the_definition_says(seed):
    draw = np.random.default_rng(seed)
    points = [tuple(map(int, p)) for p in draw.integers(0, 5, (seed, 2))]  # with many ties
    costs, qualities = [c for c, _ in points], [q for _, q in points]
    assert pareto_front(costs, qualities) == [on_front(p, points) for p in points]


def test_equal_points_are_on_the_front_together():
    for costs, qualities in product([[1, 1, 2], [2, 1, 1]], [[3, 3, 3]]):
        expected = [c == 1 for c in costs]
        assert pareto_front(costs, qualities) == expected


def test_the_front_needs_a_quality_for_each_cost():
    with pytest.raises(ValueError, match="got 1 for 2"):
        pareto_front([1, 2], [1])


def test_training_is_what_the_ledger_says_it_is():
    assert set(cost.TRAINING) == set(cost_ledger.TRAINING)
    assert cost.TEST == cost_ledger.TEST


@pytest.fixture
def make_system(make_run):
    """A system of seeds 0 and 1; its costs are `scale` times those written here."""

    def make(name, quality, scale=1.0, *, test_only=False, config=None, memory=None, machine="m"):
        runs = []
        for seed in (0, 1):
            factor = scale * (1 + seed)  # so the mean is 1.5 times what stands here
            fit = {
                "seconds/train": 60 * factor,
                "seconds/estimate": 30 * factor,
                "seconds/refresh": 10 * factor,
                "seconds/evaluate": 1000.0,
                "seconds/analysis": 5000.0,
                "tokens/generator/train": 2000 * factor,
                "tokens/generator/estimate": 1000 * factor,
                "tokens/generator/evaluate": 77_000.0,
                "tokens/retriever/refresh": 400 * factor,
                "flops/train": 6e12 * factor,
                "flops/estimate": 2e12 * factor,
                "flops/evaluate": 9e15,
                "flops": 9.1e15,
                "memory/process": 2 * GIB,
            }
            tested = {
                "seconds/evaluate": 4.0,
                "seconds/refresh": 1.0,
                "tokens/generator/evaluate": 300.0,
                "flops/evaluate": 5e9,
                "flops": 5e9,
                "memory/process": 3 * GIB,
            }
            if memory:
                fit["memory/device"] = memory
            stages = ("test",) if test_only else ("fit", "test")
            costs = {"test": tested} if test_only else {"first": fit, "second": fit, "test": tested}
            summary = {"cost": costs, **{stage: {"machine": machine} for stage in stages}}
            runs.append(
                make_run(
                    name,
                    seed=seed,
                    rows=[{"id": str(n)} for n in range(10)],
                    test={"f1": quality + 0.1 * seed, "invalid_rate": 1 - quality},
                    summary=summary,
                    config=config,
                )
            )
        return System(name, tuple(runs))

    return make


def cells(table, system):
    return dict(
        zip(table.columns, next(row for row in table.rows if row[0] == system), strict=True)
    )


def test_the_table_holds_means_of_training_and_of_a_test_query(make_system):
    totals, phases = section([make_system("etrag", 0.5)], "f1").tables
    row = cells(totals, "etrag")
    assert row["f1"] == pytest.approx(0.55)
    assert row["training: seconds"] == pytest.approx(2 * 1.5 * 100)  # two phases, no validation
    assert row["TFLOPs"] == pytest.approx(2 * 1.5 * 8)
    assert row["generator tokens"] == 2 * 1.5 * 3000
    assert row["peak memory, GiB"] == 3
    assert row["test query: ms"] == pytest.approx(500)
    assert row["GFLOPs"] == pytest.approx(0.5)
    assert row["generator tokens a query"] == pytest.approx(30)
    assert [row[:2] for row in phases.rows] == [
        ("etrag", "first"),
        ("etrag", "second"),
        ("etrag", "test"),
    ]
    first, test = (dict(zip(phases.columns, phases.rows[i], strict=True)) for i in (0, 2))
    assert first["steps, s"] == pytest.approx(90)
    assert first["estimate, s"] == pytest.approx(45)
    assert first["evaluation, s"] == pytest.approx(1000)
    assert first["generator tokens"] == 77_000 + 4500
    assert first["other tokens"] == 600
    assert test["steps, s"] is None


def test_a_worse_and_dearer_system_is_on_no_front(make_system):
    systems = [
        make_system("cheap", 0.3, 1),
        make_system("good", 0.6, 2),
        make_system("bad", 0.2, 3),
    ]
    totals = section(systems, "f1").tables[0]
    # their memory is equal, so only the best is on that front
    assert cells(totals, "cheap")["on the front of"] == "seconds, FLOPs, generator tokens"
    assert cells(totals, "good")["on the front of"] == "all"
    assert cells(totals, "bad")["on the front of"] == ""
    assert {row for row, _ in totals.bold} == {0, 1}


def test_the_summary_names_who_is_worth_its_training(make_system):
    systems = [make_system("cheap", 0.3, 1), make_system("bad", 0.2, 3)]
    (said,) = section(systems, "f1").summary
    assert said.startswith("On the front of f1 against training FLOPs is cheap:")
    assert section(systems[:1], "f1").summary == ()


def test_of_some_metrics_less_is_better(make_system):
    systems = [make_system("valid", 0.9, 1), make_system("invalid", 0.1, 2)]
    totals = section(systems, "invalid_rate").tables[0]
    assert cells(totals, "valid")["on the front of"] == "all"
    assert cells(totals, "invalid")["on the front of"] == ""


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ("weights of other runs", {"config": {"initial_weights": "runs/a/best.ckpt"}}),
        ("weights of other runs", {"test_only": True, "config": {"ckpt_path": "runs/a/best.ckpt"}}),
        (
            "reads the gold answers",
            {"config": {"data": {"first_stage": {"class_path": "lightning_rag.data.Oracle"}}}},
        ),
    ],
)
def test_who_does_not_pay_is_on_no_front(make_system, said, settings):
    made = section([make_system("rag4re", 0.3), make_system("free", 0.9, 0.1, **settings)], "f1")
    assert cells(made.tables[0], "free")["on the front of"] == ""
    assert cells(made.tables[0], "rag4re")["on the front of"] == "all"
    assert any(said in text and "free" in text for text in made.paragraphs)


def test_a_system_without_training_costs_nothing_and_is_drawn(make_system):
    untrained = make_system("untrained", 0.2, test_only=True)
    made = section([untrained, make_system("dear", 0.5, 100), make_system("x", 0.3, 1)], "f1")
    assert cells(made.tables[0], "untrained")["training: seconds"] == 0
    assert "seconds" in cells(made.tables[0], "untrained")["on the front of"]
    panel = made.plots[0].figure.axes[0]
    assert panel.get_xscale() == "log"
    drawn = [line.get_xdata()[0] for line in panel.lines if len(line.get_xdata()) == 1]
    assert min(drawn) > 0
    assert "0" in [text.get_text() for text in panel.texts]
    # nobody trained
    made = section([untrained], "f1")
    made.plots[0].figure.draw_without_rendering()
    made.plots[1].figure.draw_without_rendering()


def test_memory_is_the_device_s_where_there_is_one(make_system):
    made = section([make_system("a", 0.5, memory=7 * GIB)], "f1")
    assert cells(made.tables[0], "a")["peak memory, GiB"] == 7
    assert "of the device" in made.paragraphs[0]


def test_seconds_of_different_machines_do_not_compare(make_system):
    systems = [make_system("a", 0.5), make_system("b", 0.4, machine="another")]
    assert any("machines that differ" in text for text in section(systems, "f1").paragraphs)
    assert not any("machines" in text for text in section(systems[:1], "f1").paragraphs)


def test_every_system_stands_in_the_pictures(make_system):
    names = [f"system {n}" for n in range(20)]
    made = section([make_system(name, 0.01 * n, 1 + n) for n, name in enumerate(names)], "f1")
    front, phases = (plot.figure for plot in made.plots)
    written = [text.get_text() for text in front.axes[-1].texts]
    assert sorted(text for text in written if text in names) == sorted(names)
    assert [label.get_text() for label in phases.axes[0].get_yticklabels()] == names
    phase_names = {text.get_text().strip() for text in phases.axes[0].texts}
    assert phase_names == {"first", "second"}


def test_names_beside_a_panel_do_not_touch(make_system):
    names = [f"system {n}" for n in range(20)]
    made = section([make_system(name, 0.5, 1) for name in names], "f1")
    figure = made.plots[0].figure
    figure.draw_without_rendering()
    texts = [t for t in figure.axes[-1].texts if t.get_text() in names]
    boxes = sorted((t.get_window_extent() for t in texts), key=lambda box: box.y0)
    assert len(boxes) == len(names)
    assert all(a.y1 <= b.y0 + 1 for a, b in pairwise(boxes))


def test_a_run_without_books_is_named(make_run):
    run = make_run("dro", test={"f1": 0.5}, rows=[{"id": "1"}])
    with pytest.raises(DataError, match=r"seed=0/summary.json is damaged: cost is missing"):
        section([System("dro", (run,))], "f1")
