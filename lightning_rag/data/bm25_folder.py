"""BM25 over passages that need not fit into memory: postings on disk, in blocks of passages.

`bm25s` can map a finished index into memory, but makes it of all passages at once: an estimated 90
GB of memory for 21 million pieces of 100 words. Here a block of passages is counted at a time. Term
frequencies are kept and not scores, so k1, b and the variant are chosen when a query comes.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rag.data.cache import Key
from lightning_rag.data.folder_entry import entry_name, open_entry
from lightning_rag.data.room import Room, check_room, heaps
from lightning_rag.errors import DataError
from lightning_rag.files import Json, write_json

log = logging.getLogger(__name__)

Variant = Literal["lucene", "robertson", "atire"]
# Cuts texts into words: for each text numbers of a list of words that is of these texts alone.
Cut = Callable[[Sequence[str]], tuple[list[list[int]], list[str]]]
BLOCK = 50_000  # passages counted at once
SAMPLE = 2000  # passages that are looked at to tell what is needed
WORDS, LENGTHS, HOLDING, ENDS = "words.json", "lengths.npy", "holding.npy", "ends.npy"
# What is known of the blocks, one after the other in a file of each: a mapped file stays open, and
# a process may often have no more than 1,024 of them.
PARTS = {"words.bin": "<i4", "starts.bin": "<i8", "rows.bin": "<i4", "counts.bin": "<u2"}
# Bytes of memory: a word of a passage while its block is counted; a distinct word in the
# dictionary; a passage while a query is scored and ranked.
PER_WORD, PER_DISTINCT, PER_SCORE = 110, 150, 32
LONG = 10.0  # seconds between two lines of progress


class BM25Folder:
    """The index of a folder; scores are those of `BM25Index` over the same passages.

    Of each block of passages there are its words (ascending numbers), where the postings of each
    start, and the postings: row within the block and how often the word stands there.

    Args:
        folder: as `bm25_folder` returns it.
        k1: saturation of the term frequency.
        b: strength of the length normalisation, 0 to 1.
        method: variant, as in `BM25Index`.
    """

    def __init__(self, folder: Path, *, k1: float, b: float, method: Variant) -> None:
        names: list[str] = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        self.vocabulary = {word: number for number, word in enumerate(names)}
        self.k1, self.b, self.method = k1, b, method
        self._holding = np.load(folder / HOLDING)  # (V,) passages with each word
        self._lengths = np.load(folder / LENGTHS, mmap_mode="r")  # (M,) words of each passage
        self._mean = float(self._lengths.mean())
        ends = np.load(folder / ENDS)  # (blocks, 4) where each ends in its file
        parts = [
            np.split(_mapped(folder / name, kind), ends[:-1, column])
            for column, (name, kind) in enumerate(PARTS.items())
        ]
        self._blocks = list(zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self._lengths)

    def scores(self, query: Sequence[str]) -> NDArray[np.float64]:
        """Return the (M,) scores of a query; words that no passage has count nothing."""
        scores = np.zeros(len(self), dtype=np.float64)
        for word in query:
            number = self.vocabulary.get(word)
            if number is not None:
                self._add(scores, number)
        return scores

    def _add(self, scores: NDArray[np.float64], word: int) -> None:
        rarity = self._rarity(int(self._holding[word]))
        for number, (words, starts, rows, counts) in enumerate(self._blocks):
            place = int(np.searchsorted(words, word))
            if place == len(words) or words[place] != word:
                continue
            postings = slice(int(starts[place]), int(starts[place + 1]))
            found = rows[postings] + number * BLOCK
            scores[found] += rarity * self._saturated(counts[postings], self._lengths[found])

    def _rarity(self, holding: int) -> float:
        """Return the inverse document frequency (Kamphuis et al. 2020, Table 1)."""
        size = len(self)
        if self.method == "atire":
            return math.log(size / holding)
        odds = (size - holding + 0.5) / (holding + 0.5)
        return math.log(1 + odds) if self.method == "lucene" else math.log(max(odds, 1.0))

    def _saturated(
        self, counts: NDArray[np.uint16], lengths: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """Return what the term frequencies count in passages of these lengths, both (P,)."""
        frequency = counts.astype(np.float64)
        norm = self.k1 * ((1 - self.b) + self.b * lengths / self._mean)
        factor = self.k1 + 1 if self.method == "atire" else 1.0
        return frequency * factor / (frequency + norm)


def bm25_folder(
    parent: Path,
    key: Key,
    keys: Sequence[str],
    cut: Cut,
    *,
    k1: float,
    b: float,
    method: Variant,
) -> BM25Folder:
    """Return the index of M keys as a folder, which is written unless that was done before.

    Args:
        parent: folder of all such folders.
        key: what the words of the passages depend on.
        keys: M texts.
        cut: makes words of texts.
        k1: saturation of the term frequency.
        b: strength of the length normalisation, 0 to 1.
        method: variant, as in `BM25Index`.

    Raises:
        DataError: a folder that is not what it should be.
        UserError: too little disk.
    """
    key = {**key, "block": BLOCK}
    entry = parent / entry_name("bm25", key)

    def build(place: Path) -> Mapping[str, Json]:
        needed = bm25_room(keys, cut)
        check_room("the BM25 index", parent, needed, instead="another --data.cache_dir")
        return _write(place, keys, cut)

    open_entry(entry, key, build)
    return BM25Folder(entry, k1=k1, b=b, method=method)


def bm25_room(keys: Sequence[str], cut: Cut) -> Room:
    """Return what building and using the index takes, from a sample of the passages."""
    step = max(1, len(keys) // SAMPLE)
    words, _ = cut([keys[row] for row in range(0, len(keys), step)])
    share = len(keys) / len(words)
    postings = share * sum(len(set(passage)) for passage in words)
    half, whole = (len({*itertools.chain(*words[:end])}) for end in (len(words) // 2, None))
    distinct, of_block = (heaps((half, whole), len(words), n) for n in (len(keys), BLOCK))
    blocks = -(-len(keys) // BLOCK)
    length = sum(map(len, words)) / len(words)
    # On disk row and count of a posting, number and start of a block's word, length of a passage,
    # and the words themselves with how many passages have each.
    disk = 6 * postings + 12 * blocks * min(of_block, distinct) + 4 * len(keys) + 20 * distinct
    building = min(BLOCK, len(keys)) * length * PER_WORD
    memory = PER_DISTINCT * distinct + max(building, PER_SCORE * len(keys))
    return Room(round(disk), round(memory))


def _write(folder: Path, keys: Sequence[str], cut: Cut) -> Mapping[str, Json]:
    numbers: dict[str, int] = {}
    lengths: list[NDArray[np.int32]] = []
    holding = np.zeros(0, dtype=np.int64)
    sizes: list[list[int]] = []
    shown = time.monotonic()
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in PARTS]
        for texts in _blocks(keys):
            words, names = cut(texts)
            lengths.append(np.array([len(passage) for passage in words], dtype=np.int32))
            found, starts, rows, counts = _postings(words, names, lengths[-1], numbers)
            parts: list[NDArray[np.generic]] = [found, starts, rows, counts]
            for file, kind, values in zip(files, PARTS.values(), parts, strict=True):
                file.write(values.astype(kind).tobytes())
            sizes.append([len(values) for values in parts])
            holding = np.pad(holding, (0, len(numbers) - len(holding)))
            holding[found] += np.diff(starts)
            if time.monotonic() - shown > LONG:
                shown = time.monotonic()
                log.info("BM25: %d of %d passages", sum(map(len, lengths)), len(keys))
    np.save(folder / LENGTHS, np.concatenate(lengths))
    np.save(folder / HOLDING, holding)
    np.save(folder / ENDS, np.cumsum(sizes, axis=0))
    write_json(folder / WORDS, list(numbers))
    return {"blocks": len(sizes)}


def _postings(
    words: Sequence[Sequence[int]],
    names: Sequence[str],
    lengths: NDArray[np.int32],
    numbers: dict[str, int],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.uint16]]:
    """Count the words of a block; new ones get the next numbers.

    Args:
        words: for each passage numbers of `names`.
        names: words of the block.
        lengths: (n,) words of each passage.
        numbers: word -> its number in the whole index.

    Returns:
        Its words (W,) ascending, where the postings of each start (W + 1,), rows and counts (P,).
    """
    flat = itertools.chain.from_iterable(words)
    local = np.fromiter(flat, dtype=np.int64, count=int(lengths.sum()))
    known, places = np.unique(local, return_inverse=True)
    of_index = [numbers.setdefault(names[word], len(numbers)) for word in known.tolist()]
    ids = np.array(of_index, dtype=np.int64)[places]
    rows = np.repeat(np.arange(len(words)), lengths)
    pairs, counts = np.unique(ids * BLOCK + rows, return_counts=True)
    found, starts = np.unique(pairs // BLOCK, return_index=True)
    most = np.iinfo(np.uint16).max
    if counts.size and counts.max() > most:
        raise DataError(f"a passage has one word {counts.max()} times; legal: up to {most} times")
    return (
        found.astype(np.int32),
        np.append(starts, len(pairs)).astype(np.int64),
        (pairs % BLOCK).astype(np.int32),
        counts.astype(np.uint16),
    )


def _blocks(keys: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(keys)
    while block := list(itertools.islice(texts, BLOCK)):
        yield block


def _mapped(path: Path, kind: str) -> NDArray[np.generic]:
    """Map a file of numbers into memory; one without any cannot be mapped."""
    return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.empty(0, kind)
