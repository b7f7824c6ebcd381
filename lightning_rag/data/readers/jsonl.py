"""Reading of text, JSON and JSON-lines files with an error that names the place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_rag.errors import DataError

_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file; CRLF and a BOM are dropped.

    Raises:
        DataError: if the file cannot be read, or is not UTF-8 (the first bad byte is named).
    """
    try:
        offset = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError.at(
                        path,
                        number,
                        f"byte {offset + error.start} of the file (0x{raw[error.start]:02x}) is "
                        "not UTF-8; legal: UTF-8 text",
                    ) from error
                offset += len(raw)
                yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Record:
    """A JSON object and its place, for errors; the fields are read with their type checked."""

    where: str  # "file:line", or "file: record n"
    fields: dict[str, object]

    def error(self, message: str) -> DataError:
        """Return the error for this record."""
        return DataError(f"{self.where}: {message}")

    def value(self, key: str, legal: str) -> object:
        """Return a field that must be there; `legal` says what it may hold."""
        if key not in self.fields:
            came = ", ".join(repr(name) for name in self.fields) or "none"
            raise self.error(f"missing field {key!r}; legal: {legal}; the fields that came: {came}")
        return self.fields[key]

    def mismatch(self, key: str, value: object, legal: str) -> DataError:
        """Return the error for a field whose value is not legal."""
        return self.error(f"field {key!r} is {_NAMES[type(value)]}, {_cut(value)}; legal: {legal}")

    def string(self, key: str) -> str:
        """Return a field that holds text with more than white space."""
        legal = "a string that is not blank"
        value = self.value(key, legal)
        if not isinstance(value, str) or not value.strip():
            raise self.mismatch(key, value, legal)
        return self._encodable(key, value)

    def string_or_empty(self, key: str) -> str:
        """Return a field that holds text and may be missing or empty."""
        value = self.fields.get(key, "")
        if not isinstance(value, str):
            raise self.mismatch(key, value, "a string")
        return self._encodable(key, value)

    def identity(self, key: str = "id") -> str:
        """Return an id: a string, or an integer, which becomes a string."""
        legal = "a string that is not blank, or an integer"
        value = self.value(key, legal)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.mismatch(key, value, legal)
        if "\n" in value or "\r" in value:
            raise self.mismatch(key, value, "a string without a line end")
        return self._encodable(key, value)

    def integer(self, key: str) -> int:
        """Return a field that holds an integer."""
        value = self.value(key, "an integer")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.mismatch(key, value, "an integer")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a field that holds a list of at least one string."""
        legal = "a list of at least one string"
        value = self.value(key, legal)
        if not isinstance(value, list) or not value:
            raise self.mismatch(key, value, legal)
        for item in value:
            if not isinstance(item, str):
                raise self.mismatch(key, value, legal)
            self._encodable(key, item)
        return tuple(value)

    def identities(self, key: str) -> tuple[str, ...]:
        """Return a list of ids that may be missing or empty; integers become strings."""
        value = self.fields.get(key, [])
        if not isinstance(value, list):
            raise self.mismatch(key, value, "a list of ids")
        return tuple(Record(f"{self.where}: in {key!r}", {"id": item}).identity() for item in value)

    def nested(self, key: str) -> Record:
        """Return a field that holds an object, as a record of its own."""
        value = self.value(key, "an object")
        if not isinstance(value, dict):
            raise self.mismatch(key, value, "an object")
        return Record(f"{self.where}: in {key!r}", value)

    def _encodable(self, key: str, value: str) -> str:
        # JSON may escape half a surrogate pair, which no tokeniser and no output file can take
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise self.error(
                    f"field {key!r} holds the lone surrogate {value[error.start]!r} at character "
                    f"{error.start}; legal: Unicode text"
                ) from error
        return value


def json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a file with one JSON object a line; blank lines do not count.

    Raises:
        DataError: if a line is no JSON object, or the file has none.
    """
    empty = True
    for number, line in text_lines(path):
        if not line.strip():
            continue
        empty = False
        try:
            value: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError.at(
                path, number, f"{_cut(line)} is no JSON ({error}); legal: one JSON object a line"
            ) from error
        if not isinstance(value, dict):
            raise DataError.at(
                path,
                number,
                f"{_cut(value)} is {_NAMES[type(value)]}; legal: one JSON object a line",
            )
        yield Record(f"{path}:{number}", value)
    if empty:
        raise DataError(f"{path}: no records; legal: at least one JSON object, one a line")


def json_document(path: Path) -> object:
    """Return the value of a file that is one JSON text.

    Raises:
        DataError: if the file is not UTF-8 or no JSON.
    """
    text = "\n".join(line for _, line in text_lines(path))
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError.at(
            path, error.lineno, f"no JSON ({error.msg}, column {error.colno}); legal: one JSON text"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); legal: one JSON text") from error
    return value


def json_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a file that is one JSON list of objects.

    Raises:
        DataError: if the file is not that, or the list is empty.
    """
    value = json_document(path)
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: {_cut(value)}; legal: a JSON list of at least one object")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise DataError(f"{path}: record {number} is {_cut(item)}; legal: a JSON object")
        yield Record(f"{path}: record {number}", item)


def _cut(value: object, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
