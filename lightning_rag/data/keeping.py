"""Where a data set's passages are kept: in memory, or on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from lightning_rag.data.passage_folder import passage_folder
from lightning_rag.data.readers.base import Corpus, Reader, StreamingReader
from lightning_rag.data.readers.checks import check_gold
from lightning_rag.data.splits import Splits
from lightning_rag.data.store import PassageStore
from lightning_rag.errors import UserError

Keeping = Literal["memory", "disk"]

LARGE = 2**30  # bytes of a file of passages, packed or not, that are kept on disk by default
PACKED = 3.0  # how often larger a text is when it is unpacked, about


def read_data(
    reader: Reader, root: Path | None, seed: int, keeping: Keeping | None
) -> tuple[Splits, Corpus | None]:
    """Read a data set; its passages too, or where they are to be read from.

    Args:
        reader: reads it.
        root: folder of the data sets.
        seed: seed of the cuts.
        keeping: where the passages will be; None = by the size of their file.

    Raises:
        UserError: an unknown place, or an error of the reader.
    """
    if keeping is not None and keeping not in get_args(Keeping):
        legal = ", ".join(get_args(Keeping))
        raise UserError(
            f"data.store is {keeping!r}; legal: {legal}, or null for the choice by size"
        )
    if keeping == "memory" or not isinstance(reader, StreamingReader):
        return reader.read(root, seed), None
    if keeping is None and reader.corpus_file(root).stat().st_size <= LARGE:
        return reader.read(root, seed), None
    return reader.read_apart(root, seed)


def make_store(
    splits: Splits, corpus: Corpus | None, keeping: Keeping | None, folder: Path
) -> PassageStore:
    """Make the passage store.

    Args:
        splits: with the passages, unless there is a `corpus`; without either, the store is made of
            the training instances.
        corpus: the passages to put on disk.
        keeping: "disk" puts those of `splits` there too.
        folder: of all stores on disk.

    Raises:
        UserError: demonstrations are asked to be put on disk; too little disk; passages that are
            not what they should be.
    """
    if corpus is not None:
        return _streamed(corpus, folder)
    passages = splits.passages
    if keeping != "disk":
        return PassageStore(passages) if passages else PassageStore.from_instances(splits.train)
    if not passages or any(passage.instance is not None for passage in passages):
        raise UserError(
            "data.store is disk, and the passages are labelled instances, which are in memory in "
            "any case; legal: memory, null"
        )
    key = {"passages": PassageStore(passages).fingerprint}
    size = sum(len((p.id + p.title + p.text).encode("utf-8", "surrogatepass")) for p in passages)
    return PassageStore(passage_folder(folder, key, lambda: iter(passages), size))


def _streamed(corpus: Corpus, folder: Path) -> PassageStore:
    file = corpus.file.stat()
    # Reading the file to hash it would take as long as storing it: a file that has changed has
    # another size or time.
    key = {**corpus.chosen, "file": str(corpus.file.resolve())}
    key |= {"bytes": file.st_size, "changed": file.st_mtime_ns}
    packed = corpus.file.suffix == ".gz"
    size = round(file.st_size * (PACKED if packed else 1.0) * corpus.share)
    store = PassageStore(passage_folder(folder, key, corpus.read, size))
    check_gold(corpus, store)
    return store
