"""Labels to words and back."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lightning_rag.errors import UserError
from lightning_rag.tasks.labels import TABLES, Wording

FROM_DATA = "fewrel"  # the data set whose wording comes with its files
NAMES = "names"  # the labels as they are, for models that are given the list of them

_PLACES = re.compile(r"\{(head|tail)\}")


def fill(clause: str, head: str, tail: str) -> str:
    """Put the mentions into the places {head} and {tail} of a clause."""
    named = {"head": head, "tail": tail}
    return _PLACES.sub(lambda place: named[place[1]], clause)


def choose_wording(
    labels: Sequence[str], choice: str | None, from_data: Mapping[str, str]
) -> dict[str, Wording]:
    """Return the wording of every label.

    Args:
        labels: all labels of the data set.
        choice: the name of a table ("semeval2010", "tacred", "retacred"), "fewrel" for the wording
            that the data set brings, "names" for the labels as they are, the path of a JSON file
            {label: text} or {label: {"label": text, "clause": text}}, or None: what the data set
            brings, and for other labels their own name with spaces in place of `_`, `:` and `/`.
        from_data: label -> text, as the data set brings it.

    Raises:
        UserError: a label without wording, two labels with the same one, an unknown choice or a
            file that cannot be used.
    """
    if choice is None:
        table = {**prettified(labels), **{name: _plain(text) for name, text in from_data.items()}}
        where = "the data set's wording"
    elif choice == FROM_DATA:
        table = {name: _plain(text) for name, text in from_data.items()}
        where = "the data set's wording"
    elif choice == NAMES:
        table = {label: _plain(label) for label in labels}
        where = "the labels' names"
    elif choice in TABLES:
        table = dict(TABLES[choice])
        where = f"the wording {choice!r}"
    else:
        table = read_wording(choice)
        where = choice
    for label in labels:
        if label not in table:
            raise UserError(
                f"label {label!r} is not in {where}; legal there: {', '.join(table) or 'none'}"
            )
    wording = {label: table[label] for label in labels}
    _check_texts(wording, where)
    return wording


def prettified(labels: Sequence[str]) -> dict[str, Wording]:
    """Return the labels with spaces in place of `_`, `:` and `/`, where they stay distinct."""
    pretty = {label: " ".join(re.sub(r"[_:/]+", " ", label).split()) for label in labels}
    seen = Counter(text.casefold() for text in pretty.values())
    return {
        label: _plain(text if text and seen[text.casefold()] == 1 else label)
        for label, text in pretty.items()
    }


def read_wording(name: str) -> dict[str, Wording]:
    """Read a file of wordings: JSON {label: text} or {label: {"label": text, "clause": text}}.

    Raises:
        UserError: no such file, no such JSON, or a clause without one of its two places.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        legal = ", ".join([*TABLES, FROM_DATA, NAMES])
        raise UserError(
            f"wording is {name!r}; legal: {legal}, null, or the path of a JSON file (none is there)"
        )
    try:
        decoded = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: no JSON in UTF-8: {error}") from None
    if not isinstance(decoded, dict):
        raise UserError(f"{path}: came a {type(decoded).__name__}; legal: an object label: text")
    return {label: _entry(path, label, value) for label, value in decoded.items()}


def _entry(path: Path, label: str, value: object) -> Wording:
    if isinstance(value, str) and value.strip():
        return _plain(value)
    if isinstance(value, dict) and set(value) == {"label", "clause"}:
        phrase, clause = value["label"], value["clause"]
        if isinstance(phrase, str) and phrase.strip() and isinstance(clause, str):
            if sorted(_PLACES.findall(clause)) != ["head", "tail"]:
                raise UserError(
                    f"{path}: label {label!r}: clause {clause!r}; legal: {{head}} and {{tail}}, "
                    "each once"
                )
            return Wording(phrase.strip(), clause.strip())
    raise UserError(
        f"{path}: label {label!r}: came {value!r}; legal: a text, or an object with the texts "
        '"label" and "clause"'
    )


def _plain(text: str) -> Wording:
    """A wording without a clause of its own: the phrase between the two mentions."""
    phrase = " ".join(text.split())
    return Wording(phrase, f"{{head}} {phrase} {{tail}}")


def _check_texts(wording: Mapping[str, Wording], where: str) -> None:
    for label, words in wording.items():
        if not words.phrase:
            raise UserError(f"label {label!r} has an empty text in {where}; legal: a text")
    for field in Wording._fields:
        first: dict[str, str] = {}
        for label, words in wording.items():
            text: str = getattr(words, field)
            other = first.setdefault(text, label)
            if other != label:
                raise UserError(
                    f"labels {other!r} and {label!r} have the same text {text!r} in {where}; "
                    "legal: a text of its own for each label"
                )


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> str:
    return _spaced(text).casefold()


def _loose(text: str) -> str:
    """Letters and digits only: what remains when a tokeniser drops accents and moves spaces."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if character.isalnum())


def _unambiguous(
    pairs: Iterable[tuple[str, str]], form: Callable[[str], str]
) -> dict[str, str | None]:
    """Form of a text -> its label, None where two labels share the form."""
    found: dict[str, str | None] = {}
    for text, label in pairs:
        key = form(text)
        if key:
            found[key] = label if found.get(key, label) == label else None
    return found


class LabelFinder:
    """Finds the label that a text stands for, among texts of known labels.

    A text is compared as it is, then without regard to case, then by its letters and digits alone;
    the first form that belongs to exactly one label decides.

    Args:
        pairs: (text, label); a label may have several texts.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = list(pairs)
        self._indices: list[dict[str, str | None]] = []  # one for each form that was needed so far

    def find(self, text: str) -> str | None:
        """Return the label of `text`, or None."""
        for depth, form in enumerate((_spaced, _folded, _loose)):
            if depth == len(self._indices):
                self._indices.append(_unambiguous(self._pairs, form))
            label = self._indices[depth].get(form(text))
            if label is not None:
                return label
        return None
