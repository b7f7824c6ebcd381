"""The passages of question answering data sets, and how a data set's words for them find ids."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lightning_rag.data.readers.jsonl import Record, json_document
from lightning_rag.data.readers.tsv import tab_rows
from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Passage

_TABLE = re.compile(r"\.tsv(\.gz)?$")


class PassagePool:
    """Distinct passages in the order in which they came.

    Two passages are the same if title and text are, up to case and white space. The id of one is
    "<title>#<number, from 0, among those of that title>".
    """

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self._of_content: dict[tuple[str, str], str] = {}
        self._of_title: dict[str, list[Passage]] = {}
        self._numbers: Counter[str] = Counter()

    def add(self, title: str, text: str) -> str:
        """Return the id of a passage, which is added if it is new."""
        known = self.find(title, text)
        if known is not None:
            return known
        name = " ".join(title.split())  # an id stands in one line
        passage = Passage(f"{name}#{self._numbers[name]}", text.strip(), title.strip())
        self._numbers[name] += 1
        self.passages.append(passage)
        self._of_content[normalise(title), normalise(text)] = passage.id
        self._of_title.setdefault(normalise(title), []).append(passage)
        return passage.id

    def find(self, title: str, text: str) -> str | None:
        """Return the id of the passage with this title and text, or None."""
        return self._of_content.get((normalise(title), normalise(text)))

    def titled(self, title: str) -> str | None:
        """Return the id of the only passage with this title, or None.

        A title that differs in case or white space alone counts where no other passage has it.
        """
        same = self._of_title.get(normalise(title), [])
        found = [passage for passage in same if passage.title == title] or same
        return found[0].id if len(found) == 1 else None

    @classmethod
    def read(cls, path: Path) -> PassagePool:
        """Read a corpus file.

        Args:
            path: a JSON object of title: list of sentences; or a JSON list of {"title", "text"};
                or, if its name ends in .tsv or .tsv.gz, a table as `table_passages` reads it. The
                passages of a table are pieces of pages, which have the ids of the table and are
                not found by title or text.

        Raises:
            DataError: if the file is none of these.
        """
        pool = cls()
        if is_table(path):
            pool.passages.extend(table_passages(path))
            return pool
        document = json_document(path)
        if isinstance(document, dict) and document:
            corpus = Record(str(path), document)
            for title in document:
                pool.add(title, paragraph(corpus.strings(title)))
        elif isinstance(document, list) and document:
            for record in Record(str(path), {"corpus": document}).objects("corpus"):
                pool.add(record.string("title"), record.string("text"))
        else:
            raise DataError(
                f"{path}: legal: a JSON object of title: list of sentences, or a JSON list of "
                '{"title", "text"}, not empty'
            )
        return pool


def is_table(path: Path) -> bool:
    """Whether the name of a corpus file says that it is a table."""
    return _TABLE.search(path.name) is not None


def table_passages(path: Path) -> Iterator[Passage]:
    """Yield the passages of a table with the columns id, text, title.

    This is the format of `psgs_w100.tsv`, the 21,015,324 pieces of 100 words of the English
    Wikipedia of 20 December 2018 (Karpukhin et al. 2020, arXiv 2004.04906).

    Whether ids are unique is checked where a store is made of the passages.

    Raises:
        DataError: if a row is not that, or has no id or text.
    """
    for where, (identity, text, title) in tab_rows(path, ("id", "text", "title")):
        if not identity.strip() or not text.strip():
            raise DataError(f"{where}: id {identity!r}, text {text!r}; legal: neither is blank")
        yield Passage(identity, text, title)


def check_share(share: float) -> float:
    """Return the share of a corpus that is to be kept.

    Raises:
        UserError: if it is not above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"corpus_share is {share}; legal: more than 0 and at most 1")
    return share


def keep_share(
    passages: Iterable[Passage], share: float, seed: int, gold: Callable[[Passage], bool]
) -> Iterator[Passage]:
    """Yield the gold passages and about `share` of the others, drawn by seed and id."""
    for passage in passages:
        if share >= 1.0 or gold(passage):
            yield passage
            continue
        digest = hashlib.sha256(f"corpus\n{seed}\n{passage.id}".encode()).digest()
        if int.from_bytes(digest[:8]) < share * 2**64:
            yield passage


def paragraph(sentences: Sequence[str]) -> str:
    """Join the sentences of a paragraph.

    HotpotQA's keep the space before them, where there was one (some are cut within a name);
    2WikiMultihopQA's have lost it. A paragraph in which none has it gets one between any two.
    """
    kept = any(sentence[:1].isspace() for sentence in sentences[1:])
    return ("" if kept else " ").join(sentences).strip()
