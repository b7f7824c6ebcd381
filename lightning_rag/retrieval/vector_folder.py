"""Embeddings on disk, in shards: encoded once each, mapped into memory, searched block by block."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rag.data.cache import Key
from lightning_rag.data.folder_entry import entry_name, open_entry, whole_number, write_whole
from lightning_rag.data.room import Room, check_room
from lightning_rag.errors import UserError
from lightning_rag.files import Json

log = logging.getLogger(__name__)

VectorType = Literal["float32", "float16"]

SHARD = 20_000  # vectors of a file: what a killed process has to encode again, at most
BLOCK = 20_000  # vectors that are compared with queries at once
QUERIES = 256  # queries that a block is compared with at once


class VectorFolder:
    """M embeddings in files of `SHARD` each, mapped into memory while they are read.

    Not for longer: a mapped file stays open, and a process may often have no more than 1,024 open.

    Args:
        folder: as `vector_folder` returns it.
        size: M.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size

    def __len__(self) -> int:
        return self._size

    @property
    def dimension(self) -> int:
        """D."""
        return int(next(self._shards())[1].shape[1])

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, (n, D) float32 embeddings) of all, in the order of the rows."""
        for first, shard in self._shards():
            for start in range(0, len(shard), BLOCK):
                block = np.array(shard[start : start + BLOCK], dtype=np.float32)
                yield first + start, torch.from_numpy(block)

    def drawn(self, size: int, seed: int) -> Tensor:
        """Return `size` embeddings drawn without repetition, (size, D) float32; at most all."""
        size = min(size, self._size)
        rows = np.sort(np.random.default_rng(seed).choice(self._size, size, replace=False))
        found = [
            np.asarray(shard[rows[(rows >= first) & (rows < first + SHARD)] - first], np.float32)
            for first, shard in self._shards()
        ]
        return torch.from_numpy(np.concatenate(found))

    def _shards(self) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield first row and embeddings (up to SHARD, D) of each file."""
        for number, first in enumerate(range(0, self._size, SHARD)):
            yield first, np.load(_shard(self._folder, number), mmap_mode="r")


def vector_folder(
    parent: Path,
    key: Key,
    texts: Sequence[str],
    dimension: int,
    encode: Callable[[Sequence[str]], Tensor],
    *,
    kind: VectorType = "float32",
) -> VectorFolder:
    """Return the embeddings of texts as a folder, which is written unless that was done before.

    Each shard is encoded once: a killed process is gone on from after its last whole one.

    Args:
        parent: folder of all such folders.
        key: what the embeddings depend on.
        texts: M texts.
        dimension: D.
        encode: returns the (n, D) embeddings of n texts.
        kind: how a number is stored; float16 takes half the disk and rounds to 3 digits.

    Raises:
        UserError: too little disk, or a value that float16 cannot hold.
        DataError: a folder that is not what it should be.
    """
    key = {**key, "type": kind, "shard": SHARD}
    entry = parent / entry_name("vectors", key)

    def build(place: Path) -> Mapping[str, Json]:
        needed = vectors_room(len(texts), dimension, kind)
        there = sum(path.stat().st_size for path in place.glob("shard-*.npy"))
        left = Room(max(0, needed.disk - there), needed.memory)
        check_room("the embeddings", parent, left, instead="another --data.cache_dir, or float16")
        _write(place, texts, encode, kind)
        return {"vectors": len(texts)}

    about = open_entry(entry, key, build)
    return VectorFolder(entry, whole_number(about, "vectors"))


def vectors_room(size: int, dimension: int, kind: VectorType) -> Room:
    """Return what embeddings take on disk, and while they are searched exactly in memory."""
    shard = min(size, SHARD) * dimension * 4
    scores = QUERIES * BLOCK * 4
    return Room(size * dimension * np.dtype(kind).itemsize, 3 * shard + 3 * scores)


def nearest(
    blocks: Iterator[tuple[int, Tensor]],
    queries: Tensor,
    k: int,
    *,
    exclude: Sequence[NDArray[np.int64]] | None,
) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of each query by inner product, best first; exact.

    Every block is read once. Equal scores stand in the order of the rows; which of several rows
    with the score of the last place gets it is not fixed.

    Args:
        blocks: first row and (n, D) embeddings of each block.
        queries: (Q, D).
        k: rows for each query.
        exclude: for each query the ascending rows that it must not get; None for none.

    Returns:
        Scores (Q, k) float32, padded with -inf, and rows (Q, k) long, padded with -1.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    queries = queries.to(device)
    best = Best(len(queries), k)
    for first, block in blocks:
        vectors = block.to(device)
        for start in range(0, len(queries), QUERIES):
            scores = queries[start : start + QUERIES] @ vectors.T  # (q, n)
            if exclude is not None:
                _leave_out(scores, exclude[start : start + QUERIES], first)
            found, columns = scores.topk(min(k, len(block)), dim=1)
            best.add(start, found.cpu().numpy(), first + columns.cpu().numpy())
    return best.result()


def _leave_out(scores: Tensor, exclude: Sequence[NDArray[np.int64]], first: int) -> None:
    """Set the scores (q, n) of excluded rows to -inf; their rows begin at `first`."""
    for query, gone in enumerate(exclude):
        here = np.searchsorted(gone, [first, first + scores.shape[1]])
        columns = gone[here[0] : here[1]] - first
        scores[query, torch.from_numpy(columns).to(scores.device)] = -torch.inf


class Best:
    """The k best rows of each of Q queries, of all that have been shown.

    Args:
        queries: Q.
        k: rows kept for each.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.scores = np.full((queries, k), -np.inf, dtype=np.float32)
        self.rows = np.full((queries, k), -1, dtype=np.int64)

    def add(self, start: int, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Show rows (q, n) and their scores to the queries from `start`; -inf = not to be kept."""
        part = slice(start, start + len(scores))
        scores = np.concatenate([self.scores[part], scores], axis=1)
        rows = np.concatenate([self.rows[part], rows], axis=1)
        rows[np.isneginf(scores)] = -1
        # Last key first: by score, then by row.
        order = np.lexsort((rows, -scores))[:, : self.rows.shape[1]]
        self.scores[part] = np.take_along_axis(scores, order, axis=1)
        self.rows[part] = np.take_along_axis(rows, order, axis=1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return scores (Q, k) and rows (Q, k), best first."""
        return torch.from_numpy(self.scores), torch.from_numpy(self.rows)


def _write(
    folder: Path, texts: Sequence[str], encode: Callable[[Sequence[str]], Tensor], kind: VectorType
) -> None:
    begun = time.monotonic()
    for number, start in enumerate(range(0, len(texts), SHARD)):
        path = _shard(folder, number)
        if path.exists():  # written under another name and renamed: it is whole
            continue
        vectors = encode(texts[start : start + SHARD]).numpy()
        stored = vectors.astype(kind)
        if not np.isfinite(stored).all():
            raise UserError(
                f"embeddings of passages {start + 1} to {start + len(stored)} have a value that is "
                f"not finite as {kind}; legal: vector_type float32, and an encoder without NaN"
            )
        write_whole(path, partial(_save, stored))
        done = start + len(stored)
        log.info("encoded %d of %d (%.0f s)", done, len(texts), time.monotonic() - begun)


def _save(vectors: NDArray[np.generic], path: Path) -> None:
    with path.open("wb") as file:  # np.save adds .npy to names without
        np.save(file, vectors)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npy"
