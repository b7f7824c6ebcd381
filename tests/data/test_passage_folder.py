"""Passages on disk: the same store, whole or refused, told before it is written."""

from __future__ import annotations

import json
import logging
import shutil
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_rag.data import passage_folder as module
from lightning_rag.data import room
from lightning_rag.data.passage_folder import PassageFolder, passage_folder, passages_room
from lightning_rag.data.store import PassageStore, exclusions
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Passage

PASSAGES = [
    Passage("p1", "Ada was born in London.", "Ada"),
    Passage("2", "no title"),
    Passage("ü-3", "Straße\nand \U0001f600 and \ud800", "Ünïcode"),
    Passage("4", "No  TITLE"),
]


def stored(parent: Path, passages=PASSAGES, key="a") -> PassageFolder:
    return passage_folder(parent, {"corpus": key}, lambda: iter(passages), 1000)


def test_is_the_store_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    memory, disk = PassageStore(PASSAGES), PassageStore(stored(tmp_path))
    assert disk.on_disk
    assert not memory.on_disk
    assert list(disk) == PASSAGES
    assert [disk[row] for row in range(4)] == PASSAGES
    assert disk[-1] == PASSAGES[-1]
    assert disk.passages[1:3] == PASSAGES[1:3]
    assert disk.fingerprint == memory.fingerprint
    assert [disk.row(passage.id) for passage in PASSAGES] == [0, 1, 2, 3]
    assert "p1" in disk
    assert "p" not in disk
    with pytest.raises(KeyError):
        disk.row("")
    with pytest.raises(IndexError, match="row 4 of 4"):
        disk[4]
    queries = [Instance("p1", "NO title", ("x",)), Instance("q", "other", ("x",))]
    assert [rows.tolist() for rows in exclusions(queries, disk)] == [[1, 3], []]


def test_many_rows_are_found_by_their_ids(tmp_path):
    passages = [Passage(f"id-{n * 7919 % 5000}", "t" * (n % 5 + 1)) for n in range(5000)]
    disk = PassageStore(stored(tmp_path, passages))
    assert all(disk.row(passage.id) == row for row, passage in enumerate(passages))
    assert list(disk) == passages


def test_ids_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_id_hash", lambda data: 7)
    disk = PassageStore(stored(tmp_path))
    assert [disk.row(passage.id) for passage in PASSAGES] == [0, 1, 2, 3]
    assert "p" not in disk


def test_is_written_once(tmp_path):
    first = stored(tmp_path)

    def fail():
        raise AssertionError("read again")

    again = passage_folder(tmp_path, {"corpus": "a"}, fail, 1000)
    assert list(again) == list(first)
    assert len(list(stored(tmp_path, PASSAGES[:2], key="b"))) == 2


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([], "is empty"),
        ([*PASSAGES, Passage("2", "again")], r"more than once: 2 \(passages 2 and 5\)"),
    ],
)
def test_bad_passages(tmp_path, passages, message):
    with pytest.raises(DataError, match=message):
        stored(tmp_path, passages)
    assert list(stored(tmp_path)) == PASSAGES  # what was left does no harm


def test_a_demonstration_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="'d' is a demonstration"):
        stored(tmp_path, [Passage("d", "t", instance=Instance("d", "t", ("x",)))])


def test_a_killed_build_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 1)

    def broken():
        yield from PASSAGES[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passage_folder(tmp_path, {"corpus": "a"}, broken, 1000)
    (left,) = tmp_path.glob("*.building")
    assert (left / "texts.bin").exists()
    assert list(stored(tmp_path)) == PASSAGES
    assert not left.exists()


def truncated(folder: Path) -> None:
    file = folder / "texts.bin"
    file.write_bytes(file.read_bytes()[:-3])


def of_other_data(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["key"] = {"corpus": "another"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, r"texts\.bin: has \d+ bytes, the manifest says \d+; legal: remove"),
        (lambda folder: (folder / "id_rows.bin").unlink(), r"id_rows\.bin: is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "it is not whole; legal: remove"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "it is not whole"),
        (of_other_data, 'holds other data, {"corpus": "another"}, than is asked for, .*"a"'),
    ],
)
def test_a_folder_that_is_not_what_it_should_be(tmp_path, spoil, message):
    folder = stored(tmp_path).folder
    spoil(folder)
    with pytest.raises(DataError, match=message):
        stored(tmp_path)
    shutil.rmtree(folder)
    assert list(stored(tmp_path)) == PASSAGES


def test_too_little_disk_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000_000))
    with pytest.raises(
        UserError,
        match=r"the passage store needs about \d+\.\d GB of disk, and .* has 0\.5 GB free; legal",
    ):
        passage_folder(tmp_path, {"corpus": "a"}, lambda: iter(PASSAGES), 10**10)
    assert not list(tmp_path.rglob("texts.bin"))


def test_too_little_memory_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(room, "available_memory", lambda: 10_000_000)
    with caplog.at_level(logging.WARNING):
        stored(tmp_path)
    assert "needs about 0.1 GB of memory, and 10.0 MB are available" in caplog.text


def test_available_memory(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(room, "MEMORY", meminfo)
    assert room.available_memory() is None
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:     12 kB\n")
    assert room.available_memory() == 12 * 1024


def test_the_expected_size_is_the_size(tmp_path):
    passages = [Passage(str(n), "word " * 100, "title") for n in range(3000)]
    size = sum(len(p.id + p.title + p.text) for p in passages)
    folder = passage_folder(tmp_path, {"corpus": "a"}, lambda: iter(passages), size).folder
    found = sum(path.stat().st_size for path in folder.iterdir())
    assert passages_room(iter(passages), size).disk == pytest.approx(found, rel=0.01)


def test_heaps_law():
    # V(n) = 10 n^0.5: 10 * 50 words in 2,500 passages, 10 * 1,000 in a million.
    assert room.heaps((round(10 * 1250**0.5), 500), 2500, 10**6) == pytest.approx(10_000, rel=0.02)
    assert room.heaps((3, 5), 100, 100) == 5
    assert room.heaps((0, 0), 100, 1000) == 0


def test_several_processes_write_it_once(tmp_path, in_processes):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from lightning_rag.data.passage_folder import passage_folder
        from lightning_rag.types import Passage

        def read():
            Path(sys.argv[1], f"read-{sys.argv[2]}").touch()
            for n in range(20):
                time.sleep(0.02)
                yield Passage(str(n), f"text {n}")

        found = passage_folder(Path(sys.argv[1]), {"corpus": "a"}, read, 200)
        assert [p.text for p in found] == [f"text {n}" for n in range(20)]
        """)
    )
    in_processes(script, [(tmp_path, number) for number in range(3)])
    assert len(list(tmp_path.glob("read-*"))) == 1
