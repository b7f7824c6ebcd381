"""What a reader is, and where its files lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError
from lightning_rag.types import Passage

ENVIRONMENT = "LIGHTNING_RAG_DATA"
"""The environment variable that holds the data root where the configuration does not."""


class Reader(ABC):
    """Reads one data set, or one file format, into the records of the project.

    The constructor arguments say which files and how to split them; YAML gives them as `class_path`
    and `init_args`.
    """

    @abstractmethod
    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the data set.

        Args:
            root: folder of the data sets, which relative paths count from.
            seed: seed of the cuts that the data set does not fix.

        Raises:
            DataError: if a file is missing or not as documented.
        """


@dataclass(frozen=True)
class Corpus:
    """The passages of a data set, left in their file until they are asked for, one by one."""

    read: Callable[[], Iterator[Passage]]  # all passages, each time anew
    file: Path
    # What decides, besides the file, which passages come.
    chosen: Mapping[str, str | int | float | bool]
    gold: frozenset[str]  # ids that the questions name
    share: float = 1.0  # of the file's passages that come, about


class StreamingReader(Reader):
    """A reader whose passages need not all be in memory."""

    @abstractmethod
    def corpus_file(self, root: Path | None) -> Path:
        """Return the file of the passages.

        Raises:
            DataError: if it is missing.
        """

    @abstractmethod
    def read_apart(self, root: Path | None, seed: int) -> tuple[Splits, Corpus]:
        """Read the data set as `read` does, but for the passages.

        That the passages which the questions name are there is checked where they are stored.

        Raises:
            DataError: if a file is missing or not as documented.
        """


def locate(root: Path | None, path: str) -> Path:
    """Return the existing file at `path`: absolute, or relative to the data root.

    Without a data root, relative paths count from the working directory.

    Raises:
        DataError: if there is no such file.
    """
    found = (root or Path()) / Path(path).expanduser()
    if not found.is_file():
        where = f"the data root is {root}" if root else "no data root is set"
        raise DataError(
            f"{found}: no such file; {where}, set it by --data.root or the environment variable "
            f"{ENVIRONMENT}"
        )
    return found
