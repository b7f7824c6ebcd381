from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_rag.data import cache
from lightning_rag.data.cache import cached, hash_rows, hash_texts

KEY = {"name": "bm25", "k1": 1.2, "count": 20, "stem": True}
ARRAYS = {
    "ids": np.arange(12, dtype=np.int64).reshape(3, 4),
    "scores": np.array([[1.5, -np.inf]], dtype=np.float32),
}


class Computer:
    """Counts how often it had to work."""

    def __init__(self, arrays=ARRAYS) -> None:
        self.arrays = arrays
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.arrays


def entry(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def assert_equal(found, expected=ARRAYS) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_computed_once_and_read_after(tmp_path, caplog):
    compute = Computer()
    folder = tmp_path / "deep" / "cache"
    for _ in range(3):
        assert_equal(cached(folder, KEY, compute))
    assert compute.calls == 1
    assert not caplog.records
    assert sorted(path.name for path in entry(folder).iterdir()) == [
        "ids.npy",
        "manifest.json",
        "scores.npy",
    ]
    manifest = json.loads((entry(folder) / "manifest.json").read_text())
    assert manifest["key"] == KEY
    assert manifest["arrays"]["ids"]["shape"] == [3, 4]
    assert manifest["arrays"]["scores"]["dtype"] == "float32"


@pytest.mark.parametrize(
    "change", [{"k1": 1.5}, {"name": "bm25 "}, {"stem": False}, {"more": 1}, {"count": 21}]
)
def test_another_key_is_another_entry(tmp_path, change):
    compute = Computer()
    cached(tmp_path, KEY, compute)
    cached(tmp_path, {**KEY, **change}, compute)
    cached(tmp_path, dict(reversed(KEY.items())), compute)
    assert compute.calls == 2
    assert len(list(tmp_path.iterdir())) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_key(path: Path) -> None:
    path.write_text(path.read_text().replace("bm25", "bm26"))


def other_shape(path: Path) -> None:
    manifest = json.loads(path.read_text())
    del manifest["arrays"]["ids"]["sha256"]
    path.write_text(json.dumps(manifest))


def pickled(path: Path) -> None:
    """An object array, with a manifest that vouches for it, is still not loaded."""
    np.save(path, np.array([{}]), allow_pickle=True)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["arrays"]["ids"]["sha256"] = cache.hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("ids.npy", truncate),
        ("ids.npy", flip),
        ("ids.npy", Path.unlink),
        ("ids.npy", pickled),
        ("scores.npy", lambda path: path.write_bytes(b"")),
        ("manifest.json", Path.unlink),
        ("manifest.json", truncate),
        ("manifest.json", other_key),
        ("manifest.json", other_shape),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe")),
    ],
)
def test_a_damaged_entry_is_reported_and_replaced(tmp_path, caplog, file, damage):
    compute = Computer()
    cached(tmp_path, KEY, compute)
    damage(entry(tmp_path) / file)
    assert_equal(cached(tmp_path, KEY, compute))
    assert compute.calls == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(entry(tmp_path)) in caplog.text
    assert_equal(cached(tmp_path, KEY, compute))
    assert compute.calls == 2


def test_an_entry_that_is_a_file(tmp_path, caplog):
    cached(tmp_path, KEY, Computer())
    path = entry(tmp_path)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.write_text("not a folder")
    compute = Computer()
    for _ in range(2):
        assert_equal(cached(tmp_path, KEY, compute))
    assert compute.calls == 1
    assert "is not used" in caplog.text
    assert entry(tmp_path).is_dir()


def test_a_failed_computation_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached(tmp_path, KEY, fail)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_stored_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        cached(tmp_path, KEY, Computer({"ids": np.array([{}])}))
    with pytest.raises(ValueError, match=r"'\.\./ids'"):
        cached(tmp_path, KEY, Computer({"../ids": np.zeros(1)}))
    with pytest.raises(ValueError, match="Out of range"):
        cached(tmp_path, {"k1": float("nan")}, Computer())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert_equal(cached(tmp_path / "file" / "cache", KEY, Computer()))
    assert "cannot keep the cache entry" in caplog.text


def test_a_whole_entry_of_another_process_stays(tmp_path):
    """Another process finishes while this one computes."""

    def compute():
        cached(tmp_path, KEY, Computer())
        (entry(tmp_path) / "mark").write_text("")
        return ARRAYS

    assert_equal(cached(tmp_path, KEY, compute))
    assert (entry(tmp_path) / "mark").exists()


def test_a_damaged_entry_of_another_process_is_replaced(tmp_path):
    def compute():
        cached(tmp_path, KEY, Computer())
        truncate(entry(tmp_path) / "ids.npy")
        return ARRAYS

    assert_equal(cached(tmp_path, KEY, compute))
    again = Computer()
    assert_equal(cached(tmp_path, KEY, again))
    assert again.calls == 0


def work(folder: Path, start: float, rounds: int) -> None:
    """Use and damage the same entries as the other processes, all at the same time."""
    time.sleep(max(0.0, start - time.time()))
    for number in range(rounds):
        key = {**KEY, "round": number}
        arrays = {"ids": np.full(5000, number)}
        assert_equal(cached(folder, key, Computer(arrays)), arrays)
        if os.getpid() % 2:
            for path in folder.glob("*/ids.npy"):
                with contextlib.suppress(OSError):  # replaced meanwhile
                    truncate(path)
        assert_equal(cached(folder, key, Computer(arrays)), arrays)


def test_processes_that_compute_the_same_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = time.time() + 1.0
    workers = [context.Process(target=work, args=(tmp_path, start, 20)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    for number in range(20):
        arrays = {"ids": np.full(5000, number)}
        assert_equal(cached(tmp_path, {**KEY, "round": number}, Computer(arrays)), arrays)
    assert len(list(tmp_path.iterdir())) == 20  # no temporary folder is left


def test_hashes_see_where_one_part_ends():
    texts = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], [], ["\ud800"]]
    assert len({hash_texts(parts) for parts in texts}) == len(texts)
    rows = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[1, 2, 3], []], [[2], []], []]
    hashes = {hash_rows([np.array(part, dtype=np.int64) for part in parts]) for parts in rows}
    assert len(hashes) == len(rows)
