import numpy as np
import pytest

from lightning_rag.comparison.rankings import MOVES
from lightning_rag.comparison.retrieval import measure, section
from lightning_rag.comparison.runs import System
from lightning_rag.errors import DataError

POOL = [f"p{n}" for n in range(30)]


def row(number, first, ranked, relevant, chosen=2, **more):
    return {
        "id": f"q{number}",
        "retrieved": ranked[:chosen],
        "first_stage": first,
        "first_stage_relevant": [int(p in relevant) for p in first],
        "ranked": ranked,
        "ranked_relevant": [int(p in relevant) for p in ranked],
        "relevant": len(relevant),
        **more,
    }


def random_rows(seed, size=25):
    draw = np.random.default_rng(seed)

    def some(least, most):
        return [str(p) for p in draw.permutation(POOL)[: draw.integers(least, most)]]

    return [row(n, some(3, 9), some(3, 9), set(some(0, 6))) for n in range(size)]


@pytest.fixture
def make_system(make_run):
    def make(name, *seeds, ks=(1, 3), store=40, **summary):
        runs = [
            make_run(
                name,
                seed=seed,
                rows=rows,
                config={"data": {"retrieval_ks": list(ks)}},
                summary={"data": {"store_size": store}, **summary},
            )
            for seed, rows in enumerate(seeds)
        ]
        return System(name, tuple(runs))

    return make


def rank(flags):
    return flags.index(1) + 1 if 1 in flags else None


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_a_plain_loop(make_system, seed):
    rows = random_rows(seed)
    found = measure(make_system("etrag", rows).runs[0], (1, 3))
    for side, flags in (("before", "first_stage_relevant"), ("after", "ranked_relevant")):
        given = [r[flags] for r in rows]
        expected = {
            "success@1": np.mean([sum(f[:1]) > 0 for f in given]),
            "success@3": np.mean([sum(f[:3]) > 0 for f in given]),
            "recall@3": np.mean(
                [sum(r[flags][:3]) / r["relevant"] if r["relevant"] else 0 for r in rows]
            ),
            "mrr": np.mean([1 / rank(f) if rank(f) else 0 for f in given]),
        }
        assert getattr(found, side) == pytest.approx(expected)
    overlap = [len(set(r["first_stage"][:3]) & set(r["ranked"][:3])) / 3 for r in rows]
    assert found.overlap[3] == pytest.approx(np.mean(overlap))
    before, after = (
        [rank(r[key]) for r in rows] for key in ("first_stage_relevant", "ranked_relevant")
    )
    ups = [a is not None and b is not None and b < a for a, b in zip(before, after, strict=True)]
    lost = [a is not None and b is None for a, b in zip(before, after, strict=True)]
    assert found.moves["up"] == pytest.approx(np.mean(ups))
    assert found.moves["lost"] == pytest.approx(np.mean(lost))
    assert sum(found.moves.values()) == pytest.approx(1)
    chosen = [p for r in rows for p in r["retrieved"]]
    assert found.unique == len(set(chosen))
    assert found.favourite == max(map(chosen.count, chosen)) / len(rows)
    hits = [flag for r in rows for flag in r["ranked_relevant"][:2]]
    assert found.agreement == pytest.approx(np.mean(hits))


def test_a_query_without_passages_counts_as_not_found(make_system):
    rows = [row(0, ["a", "b"], ["b", "a"], {"b"}), row(1, [], [], {"c"})]
    found = measure(make_system("dro", rows).runs[0], (1,))
    assert found.after == {"success@1": 0.5, "recall@1": 0.5, "mrr": 0.5}
    assert found.before["mrr"] == 0.25
    assert found.moves["up"] == 1  # of the queries that have passages
    assert found.shown == 1


def test_passages_that_the_first_stage_does_not_have(make_system):
    found = measure(make_system("ruie", [row(0, [], ["x"], {"x"})]).runs[0], (1,))
    assert (found.rbo, found.overlap[1], found.moves["found"]) == (0, 0, 1)


def test_a_damaged_order_is_named(make_system):
    system = make_system("dro", [row(0, ["a", "a"], ["a"], set())])
    with pytest.raises(DataError, match=r"seed=0: query q0: a ranking has an id twice"):
        section([system])


def test_figures_are_means_over_seeds(make_system):
    good = [row(0, ["a", "b"], ["b", "a"], {"b"})]
    bad = [row(0, ["a", "b"], ["a", "b"], {"b"})]
    quality, moves, passages = section([make_system("dro", good, bad)]).tables
    values = dict(zip(quality.columns, quality.rows[0], strict=True))
    assert values["success@1 before"] == 0
    assert values["success@1 after"] == 0.5
    assert values["success@3 after"] == 1
    assert values["mrr after"] == pytest.approx(0.75)
    values = dict(zip(moves.columns, moves.rows[0], strict=True))
    assert (values["up"], values["same"]) == (0.5, 0.5)
    assert values["overlap@1"] == 0.5
    values = dict(zip(passages.columns, passages.rows[0], strict=True))
    assert values["share of the store"] == 2 / 40
    assert values["queries with the most retrieved one"] == 1


def test_who_keeps_the_order_and_who_retrieves_nothing_is_said(make_system):
    order = [row(0, ["a", "b"], ["a", "b"], {"b"})]
    systems = [
        make_system("rag4re", order),
        make_system("dro", random_rows(0)),
        make_system("noretrieval", [row(0, ["a"], [], {"a"}, retrieved=[])]),
    ]
    made = section(systems)
    assert "These keep the order of their first stage: rag4re." in made.paragraphs
    assert "These retrieve nothing: noretrieval." in made.paragraphs
    assert [table_row[0] for table_row in made.tables[0].rows] == ["rag4re", "dro"]
    moves = next(plot for plot in made.plots if plot.name == "retrieval_moves").figure
    assert [label.get_text() for label in moves.axes[0].get_yticklabels()] == ["dro"]


def test_nothing_is_said_where_nothing_is_retrieved(make_system):
    assert section([make_system("noretrieval", [row(0, [], [], set())])]) is None


def test_no_picture_of_moves_where_nothing_moves(make_system):
    made = section([make_system("rag4re", [row(0, ["a", "b"], ["a", "b"], {"b"})])])
    assert [plot.name for plot in made.plots] == ["retrieval"]


@pytest.mark.parametrize(("store", "said"), [(40, True), (5, False)])
def test_a_collapse_is_said_if_chance_does_not_explain_it(make_system, store, said):
    rows = [row(n, ["a", f"b{n}"], ["a", f"b{n}"], set(), chosen=1 + n % 2) for n in range(6)]
    made = section([make_system("etrag", rows, store=store)])
    assert bool(made.summary) == said
    if said:
        assert made.summary == (
            "The retrieval of etrag collapsed: one passage is retrieved for 100% of the queries.",
        )


def test_staleness_is_shown_where_there_is_an_index(make_system):
    rows = random_rows(1)
    points = [{"step": 10, "overlap@5": 0.4}, {"step": 20, "overlap@5": 0.8}]
    made = section([make_system("etrag", rows, staleness=points), make_system("dro", rows)])
    table = made.tables[-1]
    assert table.name == "staleness"
    assert table.rows == (("etrag", "overlap@5", 2, pytest.approx(0.6), 0.4, 0.8),)
    assert made.plots[-1].name == "staleness"
    plain = section([make_system("dro", rows, staleness=[])])
    assert all(made.name != "staleness" for made in (*plain.tables, *plain.plots))


def test_the_pictures_show_the_numbers(make_system):
    rows = random_rows(2)
    system = make_system("etrag", rows)
    made = section([system])
    found = measure(system.runs[0], (1, 3))
    before_after, moves = (plot.figure for plot in made.plots)
    for ax in before_after.axes:
        name = ax.get_title(loc="left")
        ends = [x for line in ax.lines for x in line.get_xdata()]
        assert ends == pytest.approx(
            [found.before[name], found.after[name], found.before[name], found.after[name]]
        )
    widths = [bar.get_width() for bar in moves.axes[0].patches]
    assert widths == pytest.approx([found.moves[move] for move in MOVES])
