"""Runs that do not belong together are refused; equal answers are told; rows are aligned."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightning_rag.comparison.comparable import aligned, check, one_test_set
from lightning_rag.comparison.runs import System, read, systems
from lightning_rag.errors import DataError, UserError

MACRO = {
    "version": 1,
    "monitor": "f1",
    "aggregations": {"f1": {"kind": "f1", "average": "macro"}},
}
OTHER = (0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 0)


def test_runs_that_belong_together_pass(write_run):
    runs = [read(write_run(seed=seed)) for seed in (0, 1)]
    runs += [read(write_run("NoRetrieval", seed=seed, right=OTHER)) for seed in (0, 1)]
    assert check(systems(runs)) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": "films"}, "the data set differs: books and films"),
        ({"ids": "others"}, "the list of test queries differs: ids of the test split and others"),
        ({"store": "another"}, "the passage store differs: store of seed 0 and another"),
        ({"version": 2}, "the version of the metrics differs: 1 and 2"),
        ({"summary": {"task": "QuestionAnswering"}}, "the task differs: RelationExtraction and Qu"),
        (
            {"summary": {"metrics": MACRO}},
            "the metric f1 differs",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(write_run, changes, reason):
    one, other = write_run(), write_run("NoRetrieval", right=OTHER, **changes)
    with pytest.raises(UserError, match=reason) as caught:
        check(systems([read(one), read(other)]))
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)
    assert "do not belong together" in str(caught.value)


def test_other_stores_for_other_seeds_are_legal(write_run):
    runs = [read(write_run(seed=seed, store=f"drawn by {seed}")) for seed in (0, 1)]
    assert check(systems(runs)) == ()


def test_seeds_may_have_test_queries_of_their_own(write_run):
    def of_seed(folder, seed):
        """What a run has whose seed makes the data: equal ids, other queries."""
        run = read(folder)
        rows = [{**row, "target": [f"{row['target'][0]} {seed}"]} for row in run.rows]
        return replace(run, rows=rows)

    runs = [of_seed(write_run(seed=seed), seed) for seed in (0, 1)]
    runs += [of_seed(write_run("NoRetrieval", seed=seed, right=OTHER), seed) for seed in (0, 1)]
    (note,) = check(systems(runs))
    assert note.startswith("Each seed has test queries of its own.")
    assert not one_test_set(systems(runs))


def test_seeds_with_ids_of_their_own_keep_their_order(write_run):
    def drawn(folder, seed):
        run = read(folder)
        return replace(run, rows=[{**row, "id": f"{row['id']} {seed}"} for row in run.rows])

    runs = [drawn(write_run(seed=seed, ids=f"of {seed}"), seed) for seed in (0, 1)]
    other = [
        drawn(write_run("NoRetrieval", seed=seed, ids=f"of {seed}", right=OTHER), seed)
        for seed in (0, 1)
    ]
    runs += [replace(run, rows=run.rows[::-1]) for run in other]
    assert len(check(systems(runs))) == 1
    first, second = aligned(systems(runs))[0]
    for one, two in zip(first.runs, second.runs, strict=True):
        ids = [f"q{n} {one.seed}" for n in range(12)]
        assert [row["id"] for row in one.rows] == ids
        assert [row["id"] for row in two.rows] == ids


def test_test_sets_of_other_sizes_are_refused(write_run):
    runs = [read(write_run(seed=0)), read(write_run(seed=1, right=OTHER[:8]))]
    with pytest.raises(UserError, match="the number of test queries differs: 12 and 8"):
        check(systems(runs))


def test_other_targets_are_refused(write_run):
    one, other = read(write_run()), read(write_run("NoRetrieval", right=OTHER))
    rows = [{**other.rows[0], "target": ["rel_sold"]}, *other.rows[1:]]
    with pytest.raises(UserError, match="the target of query q0 differs"):
        check([System("a", (one,)), System("b", (replace(other, rows=rows),))])


def test_other_queries_under_the_same_hash_are_damage(write_run):
    one, other = read(write_run()), read(write_run("NoRetrieval", right=OTHER))
    rows = [{**other.rows[0], "id": "q99"}, *other.rows[1:]]
    with pytest.raises(DataError, match="query q99 is not among those"):
        check([System("a", (one,)), System("b", (replace(other, rows=rows),))])


def test_a_configuration_twice_is_refused(write_run):
    one = write_run(configuration="equal")
    other = write_run(variant="copy", configuration="equal")
    with pytest.raises(UserError, match="are identical runs: they have the same config") as caught:
        check(systems([read(one), read(other)]))
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)


def test_equal_answers_of_two_systems_are_told(write_run):
    runs = [read(write_run(seed=seed)) for seed in (0, 1)]
    runs += [read(write_run(variant="switch", seed=0))]
    runs += [read(write_run(variant="switch", seed=1, right=OTHER))]
    (note,) = check(systems(runs))
    assert "rag4re and rag4re/switch give the same answers" in note
    assert "(seed 0)" in note


def test_equal_answers_from_other_passages_are_no_copy(write_run):
    runs = [read(write_run()), read(write_run(variant="switch", chosen=("p1", "p0")))]
    assert check(systems(runs)) == ()


def test_nothing_to_compare_is_refused():
    with pytest.raises(UserError, match="there is nothing to compare"):
        check([])


def test_seeds_that_not_all_have_are_left_out_and_told(write_run):
    runs = [read(write_run(seed=seed)) for seed in (0, 1, 2)]
    runs += [read(write_run("NoRetrieval", seed=seed)) for seed in (2, 0, 5)]
    assert one_test_set(systems(runs))
    found, (note,) = aligned(systems(runs))
    assert [system.seeds for system in found] == [(0, 2), (0, 2)]
    assert note.endswith("were left out: rag4re (seed 1); noretrieval (seed 5).")


def test_no_common_seed_is_refused(write_run):
    runs = [read(write_run(seed=0)), read(write_run("NoRetrieval", seed=1))]
    with pytest.raises(UserError, match=r"no seed is common to all .*rag4re: 0; noretrieval: 1"):
        aligned(systems(runs))


def test_rows_are_put_into_one_order(write_run):
    one, other = write_run(), write_run("NoRetrieval", right=OTHER)
    file = other / "predictions.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[::-1]) + "\n")
    first, second = aligned(systems([read(one), read(other)]))[0]
    ids = [row["id"] for row in first.runs[0].rows]
    assert [row["id"] for row in second.runs[0].rows] == ids
    assert json.loads(lines[0]) == second.runs[0].rows[0]
