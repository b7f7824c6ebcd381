"""Runs are found and read; what cannot be compared is refused with the reason and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_rag.comparison.runs import find, read, systems
from lightning_rag.errors import DataError, UserError


def change(file: Path, edit: Callable[[str], str]) -> None:
    file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")


def without(key: str) -> Callable[[str], str]:
    """Remove a key from the first object of a JSON or JSONL file."""

    def edit(text: str) -> str:
        first, *others = text.splitlines(keepends=True)
        content = json.loads(first)
        del content[key]
        return json.dumps(content) + "\n" + "".join(others)

    return edit


def test_a_run_is_read_as_it_was_written(write_run):
    folder = write_run("Rag4re", "k=3", seed=7, right=(1, 0, 1), k=3)
    run = read(folder)
    assert (run.experiment, run.data, run.method, run.variant) == (
        "tests",
        "books",
        "rag4re",
        "k=3",
    )
    assert run.seed == 7
    assert run.config["model"]["init_args"]["k"] == 3
    assert run.test["f1"] == pytest.approx(2 / 3)
    assert [point["step"] for point in run.validation] == [10, 20]
    assert [row["id"] for row in run.rows] == ["q0", "q1", "q2"]
    assert run.passages["p0"] == "Person0 wrote Book0"


def test_a_method_without_retrieval_has_no_passages(write_run):
    folder = write_run("NoRetrieval", chosen=())
    (folder / "passages.jsonl").unlink()
    assert read(folder).passages == {}


def test_runs_are_found_below_a_path_once_and_in_order(write_run, tmp_path):
    folders = [write_run(seed=seed) for seed in (10, 2, 1)]
    other = write_run("NoRetrieval", seed=0)
    assert find([tmp_path / "runs"]) == [other, folders[2], folders[1], folders[0]]
    assert find([folders[0], other, folders[0].parent]) == [
        folders[0],
        other,
        folders[2],
        folders[1],
    ]


def test_a_report_below_the_path_is_no_run(write_run, tmp_path):
    folder = write_run()
    report = tmp_path / "runs" / "report"
    report.mkdir()
    (report / "comparison.json").write_text("{}")
    assert find([tmp_path / "runs"]) == [folder]


def test_paths_without_runs_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nowhere does not exist; legal: folders of runs"):
        find([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="file is no folder"):
        find([tmp_path / "file"])
    with pytest.raises(UserError, match=r"there is no run at or below .*empty"):
        find([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("config.yaml", None, "there is no config.yaml"),
        ("config.yaml", lambda text: "a: [1", "config.yaml cannot be read"),
        ("config.yaml", lambda text: "- 1", "config.yaml is damaged: expected keys"),
        ("config.yaml", lambda text: text.replace("class_path", "path"), "damaged: KeyError"),
        ("config.yaml", lambda text: text.replace('"seed_everything": 0', ""), "damaged|read"),
        ("metrics.json", None, "no metrics.json: the run is unfinished; go on with it: python -m"),
        ("metrics.json", lambda text: text[:-9], "metrics.json is damaged"),
        ("metrics.json", lambda text: "[]", "metrics.json is damaged: expected an object"),
        ("metrics.json", without("test"), "unfinished: it was not tested; test it: python -m"),
        ("summary.json", None, "no summary.json: the run is unfinished; go on with it"),
        ("summary.json", without("test"), "unfinished: it was not tested"),
        ("summary.json", without("metrics"), "written by an older version; test it: python"),
        ("predictions.jsonl", None, "no predictions.jsonl: no predictions; test it: python -m"),
        ("predictions.jsonl", lambda text: "", "no predictions: predictions.jsonl is empty"),
        ("predictions.jsonl", lambda text: text[:-20], r"predictions.jsonl:12: is damaged"),
        ("predictions.jsonl", lambda text: "3\n" + text, "jsonl:1: expected an object, got 3"),
        ("predictions.jsonl", without("counts"), "an older version; test it: .*best.ckpt"),
        ("predictions.jsonl", without("retrieved"), "jsonl:1: is damaged: retrieved missing"),
        (
            "predictions.jsonl",
            lambda text: "".join(text.splitlines(keepends=True)[:-1]),
            "11 rows, but summary.json says that 12 queries",
        ),
        (
            "predictions.jsonl",
            lambda text: text + text.splitlines()[0] + "\n",
            "jsonl:13: is damaged: query q0 occurs twice",
        ),
        ("passages.jsonl", lambda text: "{", "passages.jsonl:1: is damaged"),
    ],
)
def test_unfinished_and_damaged_runs_are_refused(write_run, name, edit, message):
    folder = write_run()
    if edit is None:
        (folder / name).unlink()
    else:
        change(folder / name, edit)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(write_run):
    folder = write_run()
    for name in ("predictions.jsonl", "metrics.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[:30] + b"\xff" + kept[30:])
        with pytest.raises(DataError, match=f"{name} is damaged"):
            read(folder)
        (folder / name).write_bytes(kept)


def test_systems_are_runs_that_differ_in_their_seed(write_run):
    runs = [
        read(write_run(method, variant, seed))
        for method, variant in (
            ("Rag4re", "k=3"),
            ("NoRetrieval", "default"),
            ("NoRetrieval", "no_retrieval-long"),
        )
        for seed in (10, 2)
    ]
    found = systems(runs)
    assert [system.name for system in found] == ["rag4re/k=3", "noretrieval", "no_retrieval-long"]
    assert [system.seeds for system in found] == [(2, 10)] * 3


def test_systems_of_two_experiments_are_told_apart(write_run):
    runs = [read(write_run(experiment=name)) for name in ("one", "two")]
    runs.append(read(write_run("NoRetrieval", experiment="two")))
    assert [system.name for system in systems(runs)] == ["one/rag4re", "two/rag4re", "noretrieval"]


def test_the_same_seed_twice_is_refused(write_run, tmp_path):
    run = read(write_run())
    with pytest.raises(UserError, match="are one run twice: tests, books, rag4re, default, seed 0"):
        systems([run, run])
