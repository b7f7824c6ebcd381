"""Passages on disk: a store need not fit into memory.

A folder holds, for M passages in the order of their rows:

- `texts.bin`: id, title and text of each, as UTF-8, nothing between them;
- `ends.bin`: (M, 3) int64, where each of these ends; the first begins at 0;
- `id_hashes.bin` and `id_rows.bin`: 64-bit hashes of the ids, ascending, and whose they are.

All are mapped into memory: opening takes milliseconds, and the system keeps those pages in memory
that are asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, overload

import numpy as np
from numpy.typing import NDArray

from lightning_rag.data.cache import Key
from lightning_rag.data.folder_entry import entry_name, open_entry, whole_number
from lightning_rag.data.room import Room, check_room
from lightning_rag.errors import DataError
from lightning_rag.files import Json
from lightning_rag.types import Passage

TEXTS, ENDS, HASHES, ROWS = "texts.bin", "ends.bin", "id_hashes.bin", "id_rows.bin"
SAMPLE = 2000  # passages that are looked at to guess how many there are
CHUNK = 65536  # passages whose places are read or written at once
FIELDS = 3
SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
INSTEAD = "another --data.cache_dir, or fewer passages (corpus_share)"


class PassageFolder(Sequence[Passage]):
    """The passages of a folder, in the order of their rows. They are never demonstrations.

    Args:
        folder: as `passage_folder` returns it.
        size: M.
        fingerprint: that of a `PassageStore` of the same passages.
    """

    def __init__(self, folder: Path, size: int, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self._size = size
        with (folder / TEXTS).open("rb") as file:
            self._texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._ends = np.memmap(folder / ENDS, "<i8", "r", shape=(size, FIELDS))
        self.rows: Mapping[str, int] = _Rows(self)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, row: int) -> Passage: ...
    @overload
    def __getitem__(self, row: slice) -> list[Passage]: ...
    def __getitem__(self, row: int | slice) -> Passage | list[Passage]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(self._size))]
        if not -self._size <= row < self._size:
            raise IndexError(f"row {row} of {self._size} passages")
        row %= self._size
        begin = int(self._ends[row - 1, -1]) if row else 0
        return self._passage(begin, *self._ends[row].tolist())

    def __iter__(self) -> Iterator[Passage]:
        begin = 0
        for start in range(0, self._size, CHUNK):
            for ends in self._ends[start : start + CHUNK].tolist():
                yield self._passage(begin, *ends)
                begin = ends[-1]

    def _passage(self, begin: int, id_end: int, title_end: int, text_end: int) -> Passage:
        data = self._texts[begin:text_end]
        return Passage(
            id=_decoded(data[: id_end - begin]),
            title=_decoded(data[id_end - begin : title_end - begin]),
            text=_decoded(data[title_end - begin :]),
        )


class _Rows(Mapping[str, int]):
    """The rows of ids: a search among their hashes, then a look at the id itself."""

    def __init__(self, passages: PassageFolder) -> None:
        shape = (len(passages),)
        self._passages = passages
        self._hashes = np.memmap(passages.folder / HASHES, "<u8", "r", shape=shape)
        self._rows = np.memmap(passages.folder / ROWS, "<i8", "r", shape=shape)

    def __len__(self) -> int:
        return len(self._passages)

    def __iter__(self) -> Iterator[str]:
        return (passage.id for passage in self._passages)

    def __getitem__(self, passage_id: str) -> int:
        wanted = np.uint64(_id_hash(_encoded(passage_id)))
        first, last = (int(np.searchsorted(self._hashes, wanted, side)) for side in SIDES)
        for row in self._rows[first:last].tolist():
            if self._passages[row].id == passage_id:
                return int(row)
        raise KeyError(passage_id)


def passage_folder(
    parent: Path, key: Key, read: Callable[[], Iterator[Passage]], size: int
) -> PassageFolder:
    """Return passages as a folder, which is written unless that was done before.

    Args:
        parent: folder of all such folders.
        key: what decides which passages these are.
        read: yields them, each time anew, without an instance.
        size: about how many bytes their texts have.

    Raises:
        DataError: no passage, an id that occurs twice, or a folder that is not what it should be.
        UserError: too little disk; an error of `read`.
    """
    entry = parent / entry_name("passages", key)

    def build(place: Path) -> Mapping[str, Json]:
        check_room("the passage store", parent, passages_room(read(), size), instead=INSTEAD)
        return _write(place, read())

    about = open_entry(entry, key, build)
    return PassageFolder(entry, whole_number(about, "passages"), str(about.get("fingerprint")))


def passages_room(passages: Iterator[Passage], size: int) -> Room:
    """Return what writing passages takes, from the first of them and the size of all texts."""
    sample = [len(_encoded(p.id + p.title + p.text)) for p in itertools.islice(passages, SAMPLE)]
    count = size * len(sample) / max(sum(sample), 1)
    # On disk three ends, a hash and a row each; in memory the hashes, their order and a copy.
    return Room(round(size + 40 * count), round(100e6 + 32 * count))


def _write(folder: Path, passages: Iterator[Passage]) -> Mapping[str, Json]:
    digest = hashlib.sha256()  # as PassageStore.fingerprint
    hashes = array("Q")
    end = 0
    with (folder / TEXTS).open("wb") as texts, (folder / ENDS).open("wb") as places:
        ends = array("q")
        for passage in passages:
            if passage.instance is not None:
                raise ValueError(f"passage {passage.id!r} is a demonstration")
            fields = [_encoded(part) for part in (passage.id, passage.title, passage.text)]
            hashes.append(_id_hash(fields[0]))
            for data in fields:
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
                end += len(data)
                ends.append(end)
            texts.write(b"".join(fields))
            if len(ends) >= FIELDS * CHUNK:
                _flush(ends, places)
        _flush(ends, places)
    if not hashes:
        raise DataError("the passage store is empty; at least one passage is needed")
    _write_ids(folder, np.frombuffer(hashes, dtype=np.uint64))
    return {"passages": len(hashes), "fingerprint": digest.hexdigest()}


def _flush(values: array[int], file: BinaryIO) -> None:
    file.write(np.frombuffer(values, dtype=np.int64).astype("<i8").tobytes() if values else b"")
    del values[:]


def _write_ids(folder: Path, hashes: NDArray[np.uint64]) -> None:
    """Write the table of ids, in which no id may stand twice."""
    order = np.argsort(hashes, kind="stable")
    ascending = hashes[order]
    ascending.astype("<u8").tofile(folder / HASHES)
    order.astype("<i8").tofile(folder / ROWS)
    twice = np.flatnonzero(ascending[1:] == ascending[:-1])
    if not len(twice):
        return
    # Ids of one hash can be different: there are 64 bits.
    found = PassageFolder(folder, len(hashes), "")
    ids: dict[str, int] = {}
    for place in np.unique(np.concatenate([twice, twice + 1])):
        name = found[int(order[place])].id
        if name in ids:
            raise DataError(
                f"passage ids must occur once; more than once: {name} (passages "
                f"{ids[name] + 1} and {int(order[place]) + 1})"
            )
        ids[name] = int(order[place])


def _id_hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
