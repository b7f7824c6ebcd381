import pytest

from lightning_rag.comparison.curves import TOGETHER, curve_figure, mean_curve, section
from lightning_rag.comparison.runs import System
from lightning_rag.comparison.style import looks


@pytest.fixture
def make_system(make_run):
    """A system with a validation curve for each seed: {step: f1}."""

    def make(name, *curves):
        runs = [
            make_run(
                name,
                seed=seed,
                test={"f1": 0.5 + 0.1 * seed},
                validation=[{"step": s, "phase": "fit", "f1": v} for s, v in curve.items()],
            )
            for seed, curve in enumerate(curves)
        ]
        return System(name, tuple(runs))

    return make


def test_the_mean_is_over_the_steps_that_all_seeds_have():
    curves = [[(10.0, 0.2), (20.0, 0.4), (30.0, 0.9)], [(10.0, 0.4), (20.0, 0.5), (25.0, 0.1)]]
    assert mean_curve(curves) == [(10.0, pytest.approx(0.3)), (20.0, pytest.approx(0.45))]
    assert mean_curve([[(1.0, 0.5)], [(2.0, 0.5)]]) == []
    assert mean_curve([]) == []


def test_the_table_says_where_each_seed_was_best(make_system):
    made = section([make_system("dro", {10: 0.1, 20: 0.6, 30: 0.5}, {10: 0.2, 20: 0.3})], "f1")
    name, validations, first, best, step, last, test = made.tables[0].rows[0]
    assert (name, validations, step) == ("dro", 2, "20, 20")  # 2.5 validations, rounded
    assert (first, best, last, test) == pytest.approx((0.15, 0.45, 0.4, 0.55))


def test_of_some_metrics_the_least_is_the_best(make_run):
    points = [{"step": s, "invalid_rate": v} for s, v in ((1, 0.4), (2, 0.1), (3, 0.2))]
    run = make_run("dro", validation=points, test={"invalid_rate": 0.2})
    made = section([System("dro", (run,))], "invalid_rate")
    assert made.tables[0].rows[0][3:5] == (0.1, "2")
    marks = [line for line in made.plots[0].figure.axes[0].lines if line.get_marker() != "None"]
    assert (2.0, 0.1) in [(line.get_xdata()[0], line.get_ydata()[0]) for line in marks]


def test_points_of_phases_with_another_metric_are_left_out(make_run):
    points = [
        {"step": 5, "phase": "reward", "agreement": 0.7},
        {"step": 10, "phase": "distil", "f1": None},
        {"step": 20, "phase": "distil", "f1": 0.4},
        {"step": 20, "phase": "distil", "f1": 0.5},  # validated again at the same step
    ]
    run = make_run("ruie", validation=points, test={"f1": 0.3})
    made = section([System("ruie", (run,))], "f1")
    assert made.tables[0].rows[0][:4] == ("ruie", 1.0, 0.5, 0.5)


def test_a_system_that_was_never_validated_is_named(make_system, make_run):
    untrained = System("untrained", (make_run("untrained", test={"f1": 0.1}),))
    made = section([untrained, make_system("dro", {10: 0.1})], "f1")
    assert [row[0] for row in made.tables[0].rows] == ["dro"]
    assert made.paragraphs[-1] == "Never validated by f1: untrained."
    assert section([untrained], "f1") is None


def test_a_system_keeps_its_look_where_others_have_no_curve(make_system, make_run):
    names = [f"system {n}" for n in range(5)]
    all_but_one = [System(n, (make_run(n, test={"f1": 0.1}),)) for n in names[1:]]
    made = section([*all_but_one, make_system(names[0], {1: 0.1, 2: 0.2})], "f1")
    mean = max(made.plots[0].figure.axes[0].lines, key=lambda line: line.get_linewidth())
    assert mean.get_color() == looks(names)[names[0]].colour


def test_few_systems_share_a_panel(make_system):
    systems = [make_system(f"s{n}", {1: 0.1 * n, 2: 0.2}, {1: 0.2, 2: 0.1}) for n in range(3)]
    (ax,) = section(systems, "f1").plots[0].figure.axes
    widths = [line.get_linewidth() for line in ax.lines if len(line.get_xdata()) == 2]
    assert widths.count(2.0) == 3  # means
    assert widths.count(0.8) == 6  # seeds
    assert {t.get_text() for t in ax.texts} >= {"s0", "s1", "s2"}


def test_many_systems_have_a_panel_each():
    curves = {f"s{n}": [[(1.0, 0.1), (2.0, 0.2)]] for n in range(TOGETHER + 3)}
    figure = curve_figure(curves, looks(list(curves)), "step", "f1")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list(curves)
    figure.draw_without_rendering()
