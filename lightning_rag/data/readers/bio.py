"""Named entities from files of tokens and BIO tags: CrossNER and others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import check_label, token_span
from lightning_rag.data.readers.extraction import (
    check_words,
    extraction_instance,
    spaced,
    without_repeats,
)
from lightning_rag.data.readers.jsonl import text_lines
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, Fact, Mention

log = logging.getLogger(__name__)

CrossNerDomain = Literal["ai", "literature", "music", "politics", "science"]

_SHARED = {
    "organisation": "organisation",
    "person": "person",
    "location": "location",
    "country": "country",
    "misc": "miscellaneous",
}
# As a schema lists them: the domain's own types first, those of all domains last.
CROSSNER: Mapping[str, Mapping[str, str]] = {
    "ai": {
        "researcher": "researcher",
        "field": "field",
        "task": "task",
        "algorithm": "algorithm",
        "programlang": "programming language",
        "product": "product",
        "metrics": "metric",
        "conference": "conference",
        "university": "university",
        **_SHARED,
    },
    "literature": {
        "writer": "writer",
        "book": "book",
        "poem": "poem",
        "magazine": "magazine",
        "literarygenre": "literary genre",
        "award": "award",
        "event": "event",
        **_SHARED,
    },
    "music": {
        "musicalartist": "musical artist",
        "band": "band",
        "song": "song",
        "album": "album",
        "musicgenre": "music genre",
        "musicalinstrument": "musical instrument",
        "award": "award",
        "event": "event",
        **_SHARED,
    },
    "politics": {
        "politician": "politician",
        "politicalparty": "political party",
        "election": "election",
        "event": "event",
        **_SHARED,
    },
    "science": {
        "scientist": "scientist",
        "discipline": "discipline",
        "theory": "theory",
        "academicjournal": "academic journal",
        "enzyme": "enzyme",
        "protein": "protein",
        "chemicalelement": "chemical element",
        "chemicalcompound": "chemical compound",
        "astronomicalobject": "astronomical object",
        "university": "university",
        "award": "award",
        "event": "event",
        **_SHARED,
    },
}
"""Domain -> type as the files glue it together -> its words."""


class BioEntities(Reader):
    """Files with a token and its tag in a line, a tab between, and a blank line between sentences.

    ```
    Ada	B-person
    Lovelace	I-person
    wrote	O
    ```

    A tag is `O`, `B-<type>` (an entity begins) or `I-<type>` (it goes on). An `I-` without an
    entity of its type before it begins an entity, as the official scorer of CoNLL-2000
    (`conlleval`) reads it; how many do is logged. The text is the tokens joined by a space.

    Sentences without entities stay: they teach that there can be nothing to extract. Training
    sentences that are in validation or test too are left out (`without_repeats`).

    Args:
        name: the data set's name in the task's, "NER_<name>".
        train: file of the training split; absolute or relative to the data root.
        validation: file of the validation split.
        test: file of the test split.
        labels: type -> its words, in the order of the schema; other types are an error. None: the
            types that occur in the files, sorted, with their names spaced and in lower case.
    """

    def __init__(
        self,
        name: str,
        train: str,
        validation: str,
        test: str,
        labels: dict[str, str] | None = None,
    ) -> None:
        if labels is not None:
            if not labels:
                raise UserError("labels is {}; legal: at least one type, or null")
            check_words("labels", labels)
        self.name = name
        self.files = {"train": train, "validation": validation, "test": test}
        self.labels = labels

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the three files; the seed changes nothing."""
        found = {
            split: list(_sentences(locate(root, path), self.labels))
            for split, path in self.files.items()
        }
        words = self.labels
        if words is None:
            types = {e[2] for part in found.values() for s in part for e in s.entities}
            words = {label: spaced(label) for label in sorted(types)}
            check_words(f"types of {self.name}", words)
            if not words:
                raise DataError(f"{self.files}: no entity in any file; legal: at least one")
        schema = tuple(words.values())
        parts = {
            split: tuple(
                extraction_instance(
                    f"NER_{self.name}",
                    split,
                    number,
                    " ".join(sentence.tokens),
                    Extraction("entities", schema, sentence.facts(words)),
                )
                for number, sentence in enumerate(sentences)
            )
            for split, sentences in found.items()
        }
        train = without_repeats(self.name, *parts.values())
        return Splits(train, parts["validation"], parts["test"])


class CrossNer(BioEntities):
    """One domain of CrossNER (Liu et al. 2021): sentences of Wikipedia with types of the domain.

    The names of types are glued together in the files; `CROSSNER` has their words. A name may mean
    other things in another domain: `person` is who fits no finer type of the domain.

    Args:
        domain: "ai", "literature", "music", "politics" or "science".
        folder: holds a folder for each domain; absolute or relative to the data root.
    """

    def __init__(self, domain: CrossNerDomain = "ai", folder: str = "crossner") -> None:
        if domain not in CROSSNER:
            raise UserError(f"domain is {domain!r}; legal: {', '.join(CROSSNER)}")
        train, validation, test = (f"{folder}/{domain}/{s}.txt" for s in ("train", "dev", "test"))
        super().__init__(f"crossner_{domain}", train, validation, test, dict(CROSSNER[domain]))
        self.domain = domain


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first token, last token, type) of the entities of a sentence's BIO tags, in order.

    An entity begins at `B-`, and at an `I-` that does not go on with an entity of its own type
    (as `conlleval` has it).

    Args:
        tags: legal tags, one a token.
    """
    found: list[tuple[int, int, str]] = []
    inside = ""  # type of the entity that the token before belongs to
    for place, tag in enumerate(tags):
        kind = tag[2:]
        if kind and (tag[0] == "B" or kind != inside):
            found.append((place, place, kind))
        elif kind:
            found[-1] = (found[-1][0], place, kind)
        inside = kind
    return found


@dataclass(frozen=True)
class _Sentence:
    where: str  # file and line of the first token
    tokens: list[str]
    entities: list[tuple[int, int, str]]

    def facts(self, words: Mapping[str, str]) -> tuple[Fact, ...]:
        """Return the entities with the words of their types and their places in the text."""
        text = " ".join(self.tokens)
        found = []
        for first, last, kind in self.entities:
            span = token_span(self.where, "an entity", self.tokens, first, last)
            mention = Mention(text[span.start : span.end], span.start, span.end)
            found.append(Fact(words[kind], (mention,)))
        return tuple(found)


def _sentences(path: Path, labels: Mapping[str, str] | None) -> Iterator[_Sentence]:
    """Yield the sentences of a file; what is not legal in it is an error with its line."""
    legal = "legal: a token, a tab and a tag, or a blank line between sentences"
    start, strays, found = 1, 0, 0
    tokens: list[str] = []
    tags: list[str] = []
    # a blank line closes the file, where it has none
    for number, line in (*text_lines(path), (-1, "")):
        if line.strip():
            start = start if tokens else number
            columns = line.split("\t")
            if len(columns) != 2:
                raise DataError.at(path, number, f"{len(columns)} column(s) in {line!r}; {legal}")
            if not columns[0].strip():
                raise DataError.at(path, number, f"the token {columns[0]!r} is blank; {legal}")
            tokens.append(columns[0])
            tags.append(_tag(f"{path}:{number}", columns[1], labels))
        elif tokens:
            sentence = _Sentence(f"{path}:{start}", tokens, entities(tags))
            strays += sum(tags[first][0] == "I" for first, _, _ in sentence.entities)
            found += 1
            yield sentence
            tokens, tags = [], []
    if not found:
        raise DataError(f"{path}: no sentences; {legal}")
    if strays:
        log.warning("%s: %d entities begin with an I- tag; read as B-", path, strays)


def _tag(where: str, tag: str, labels: Mapping[str, str] | None) -> str:
    """Return a legal tag: of a known type, where the types are known."""
    tag = tag.strip()
    prefix, _, kind = tag.partition("-")  # a type may have a hyphen of its own
    if tag != "O" and (prefix not in ("B", "I") or not kind.strip()):
        raise DataError(f"{where}: tag {tag!r}; legal: O, B-<type>, I-<type>")
    if kind and labels is not None:
        check_label(where, kind, labels)
    return tag
