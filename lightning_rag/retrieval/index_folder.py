"""A FAISS index on disk: trained once, filled shard by shard, mapped into memory for searching."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_rag.data.cache import Key
from lightning_rag.data.folder_entry import entry_name, open_entry, whole_number, write_whole
from lightning_rag.data.room import Room, check_room
from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.retrieval.index import faiss_reason, new_index, set_parameters
from lightning_rag.retrieval.vector_folder import Best, VectorFolder

log = logging.getLogger(__name__)

PART = 500_000  # embeddings in an index of its own
TRAINING = 200_000  # embeddings that a kind of index is trained on, at most
SAMPLE = 1000  # embeddings that tell how large an index will be
TRAINED = "trained.faiss"
QUERIES = 1024  # searched at once


class IndexFolder:
    """Indexes of `PART` embeddings each, of one training; all are asked, the best kept.

    Args:
        folder: as `index_folder` returns it.
        parts: how many there are.
        search_parameters: FAISS search-time parameters, such as "nprobe=16"; "" for the defaults.
    """

    def __init__(self, folder: Path, parts: int, factory: str, search_parameters: str) -> None:
        self._parts = [
            faiss.read_index(str(_part(folder, number)), faiss.IO_FLAG_MMAP)
            for number in range(parts)
        ]
        for part in self._parts:
            set_parameters(part, factory, search_parameters)

    def __len__(self) -> int:
        return sum(int(part.ntotal) for part in self._parts)

    def search(
        self, queries: Tensor, k: int, *, exclude: Sequence[NDArray[np.int64]] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows of each query that the parts find, best first.

        Args:
            queries: (Q, D).
            k: rows for each query.
            exclude: for each query the rows that it must not get; None for none.

        Returns:
            Scores (Q, k) float32, padded with -inf, and rows (Q, k) long, padded with -1.
        """
        best = Best(len(queries), k)
        array = queries.float().contiguous().numpy()
        first = 0
        for part in self._parts:
            for start in range(0, len(array), QUERIES):
                gone = None if exclude is None else exclude[start : start + QUERIES]
                # So many more than k that k remain when all excluded ones are dropped.
                more = max((len(rows) for rows in gone), default=0) if gone is not None else 0
                scores, rows = part.search(
                    array[start : start + QUERIES], min(k + more, int(part.ntotal))
                )
                missing = rows < 0
                rows = rows + first
                for query, excluded in enumerate(gone if gone is not None else ()):
                    missing[query] |= np.isin(rows[query], excluded)
                best.add(start, np.where(missing, -np.inf, scores).astype(np.float32), rows)
            first += int(part.ntotal)
        return best.result()


def index_folder(
    parent: Path, key: Key, vectors: VectorFolder, factory: str, search_parameters: str
) -> IndexFolder:
    """Return an index of embeddings as a folder, which is written unless that was done before.

    Args:
        parent: folder of all such folders.
        key: what the embeddings depend on.
        vectors: M embeddings.
        factory: FAISS index factory string, such as "IVF4096,Flat".
        search_parameters: FAISS search-time parameters; the folder does not depend on them.

    Raises:
        UserError: FAISS does not understand a string, too few embeddings, or too little disk.
        DataError: a folder that is not what it should be.
    """
    key = {**key, "factory": factory, "part": PART, "training": TRAINING}
    entry = parent / entry_name("index", key)

    def build(place: Path) -> Mapping[str, Json]:
        index = _trained(place, vectors, factory)
        there = sum(path.stat().st_size for path in place.glob("part-*.faiss"))
        needed = index_room(index, vectors)
        left = Room(max(0, needed.disk - there), needed.memory)
        check_room(f"the index {factory}", parent, left, instead="another --data.cache_dir")
        return {"parts": _write(place, index, vectors)}

    # A string that FAISS does not know is told before any work.
    set_parameters(new_index(vectors.dimension, factory), factory, search_parameters)
    about = open_entry(entry, key, build)
    return IndexFolder(entry, whole_number(about, "parts"), factory, search_parameters)


def index_room(index: faiss.Index, vectors: VectorFolder) -> Room:
    """Return what an index takes on disk, from how a trained one grows by a sample."""
    empty = faiss.serialize_index(index)
    probe = faiss.deserialize_index(empty)
    sample = vectors.drawn(SAMPLE, seed=1).numpy()
    probe.add(sample)
    each = (len(faiss.serialize_index(probe)) - len(empty)) / len(sample)
    parts = -(-len(vectors) // PART)
    part = min(PART, len(vectors)) * each + len(empty)
    return Room(round(len(vectors) * each + (parts + 1) * len(empty)), round(2 * part))


def _trained(folder: Path, vectors: VectorFolder, factory: str) -> faiss.Index:
    path = folder / TRAINED
    if not path.exists():
        index = new_index(vectors.dimension, factory)
        if not index.is_trained:
            sample = vectors.drawn(TRAINING, seed=0).numpy()
            log.info("training the index %s on %d embeddings", factory, len(sample))
            try:
                index.train(sample)
            except RuntimeError as error:
                raise UserError(
                    f"FAISS cannot train an index {factory!r} on {len(sample)} embeddings "
                    f"({faiss_reason(error)}); 'Flat' works for any number"
                ) from error
        write_whole(path, partial(_save, index))
    return faiss.read_index(str(path))


def _write(folder: Path, empty: faiss.Index, vectors: VectorFolder) -> int:
    """Write the index of each part of the embeddings that is not there yet; return how many."""
    blocks = vectors.blocks()
    parts = -(-len(vectors) // PART)
    for number in range(parts):
        path = _part(folder, number)
        index = None if path.exists() else faiss.clone_index(empty)
        for array in _of_part(blocks, number):
            if index is not None:
                index.add(array)
        if index is not None:
            write_whole(path, partial(_save, index))
            log.info("index: %d of %d parts", number + 1, parts)
    return parts


def _of_part(blocks: Iterator[tuple[int, Tensor]], number: int) -> Iterator[NDArray[np.float32]]:
    """Take the embeddings of a part off the blocks, of which a whole number makes a part."""
    for first, block in blocks:
        yield block.numpy()
        if first + len(block) >= (number + 1) * PART:
            return


def _save(index: faiss.Index, path: Path) -> None:
    faiss.write_index(index, str(path))


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.faiss"
