import shlex

import pytest

from lightning_rag.comparison.manifest import section
from lightning_rag.comparison.runs import System

MACHINE = {"platform": "Linux", "python": "3.11.7", "cpus": 2, "threads": 1, "gpus": []}
COMMIT = "0123456789abcdef" * 2


@pytest.fixture
def make_system(make_run):
    def make(name, seeds=(0, 1), *, stages=("fit", "test"), store="a" * 20, **changed):
        runs = []
        for seed in seeds:
            stage = {
                "commit": COMMIT,
                "date": f"2026-11-2{seed}T10:00:00+00:00",
                "versions": {"torch": "2.13.0", "lightning": "2.6.6"},
                "machine": MACHINE,
                **{k: v for k, v in changed.items() if k != "stopped_by"},
            }
            split = {"size": 10, "ids": f"ids{seed}"}
            data = {"fraction": 0.1, "store_size": 30, "store": f"{seed}{store}"}
            data |= dict.fromkeys(("train", "validation", "test"), split)
            summary = {"data": data, "configuration": "c" * 64, **dict.fromkeys(stages, stage)}
            if "stopped_by" in changed:
                summary["stopped_by"] = changed["stopped_by"]
            runs.append(make_run(name, seed=seed, summary=summary))
        return System(name, tuple(runs))

    return make


def tables(systems):
    return {table.name: table.rows for table in section(systems).tables}


def test_every_run_is_listed_with_its_circumstances(make_system):
    found = tables([make_system("dro"), make_system("etrag", stages=("test",))])
    date = "2026-11-20T10:00:00+00:00"
    assert found["runs"][0] == ("dro", 0, date, date, "0123456789ab", "A", "c" * 12)
    assert found["runs"][2] == ("etrag", 0, None, date, "0123456789ab", "A", "c" * 12)
    assert len(found["runs"]) == 4
    assert found["versions"] == (("torch", "2.13.0"), ("lightning", "2.6.6"))
    assert found["machines"] == (("A", "Linux", "3.11.7", "2", "1", None),)


def test_equal_data_are_told_once_a_seed(make_system):
    found = tables([make_system("dro"), make_system("etrag"), make_system("ruie", store="b" * 20)])
    assert found["data"][0] == (
        *("books", 0, "0.1", "30", "0" + "a" * 11),
        *("10 (ids0)", "10 (ids0)", "10 (ids0)", "dro, etrag"),
    )
    assert [row[-1] for row in found["data"]] == ["dro, etrag", "dro, etrag", "ruie", "ruie"]
    assert {row[-1] for row in tables([make_system("dro"), make_system("etrag")])["data"]} == {
        "all"
    }


def test_commands_make_the_runs_again_beside_the_old_ones(make_system):
    found = tables([make_system("dro"), make_system("a b", (0,), stages=("test",))])
    words = [shlex.split(row[2]) for row in found["commands"]]
    assert words[0] == [
        *("python", "-m", "lightning_rag.cli", "fit"),
        *("--config", "runs/tests/books/dro/default/seed=0/config.yaml", "--runs", "again"),
    ]
    assert words[2][3:6] == ["test", "--config", "runs/tests/books/a b/default/seed=0/config.yaml"]


def test_other_machines_and_versions_are_told_apart(make_system):
    other = {**MACHINE, "gpus": ["H200", "H200"]}
    systems = [
        make_system("dro"),
        make_system("etrag", machine=other, versions={"torch": "2.12.0"}),
    ]
    found = tables(systems)
    assert [row[5] for row in found["runs"]] == ["A", "A", "B", "B"]
    assert found["machines"][1] == ("B", "Linux", "3.11.7", "2", "1", "H200, H200")
    assert found["versions"][0] == ("torch", "2.13.0, 2.12.0")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"commit": COMMIT + "+changes"}, "changed after its commit"),
        ({"commit": ""}, "not known"),
        ({"commit": "f" * 32}, "different commits"),
        ({"stopped_by": "flops"}, "by flops: etrag (seed 0); by flops: etrag (seed 1)"),
    ],
)
def test_what_makes_the_runs_hard_to_repeat_is_said(make_system, changed, said):
    made = section([make_system("dro"), make_system("etrag", **changed)])
    assert any(said in text for text in made.paragraphs)


def test_nothing_is_said_of_runs_that_are_all_alike(make_system):
    made = section([make_system("dro", stopped_by="phases"), make_system("etrag")])
    assert made.paragraphs == ("All runs were made with the same code.",)
