"""Reading of text, JSON and JSON-lines files with an error that names the place."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

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

_CHUNK = 1 << 20  # bytes read at once where a file is not read by lines
# The longest JSON token but strings: an error nearer than this to the end of what has been read may
# only mean that the rest is missing.
_LONGEST_TOKEN = 32


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked where its name ends in .gz; what fails is a DataError."""
    try:
        packed = path.suffix == ".gz"
        with cast(BinaryIO, gzip.open(path)) if packed else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file; CRLF and a BOM are dropped.

    A file whose name ends in .gz is unpacked.

    Raises:
        DataError: if the file cannot be read, or is not UTF-8 (the first bad byte is named).
    """
    offset = 0
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                message = _no_utf8(offset + error.start, raw[error.start])
                raise DataError.at(path, number, message) from error
            offset += len(raw)
            yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")


def _no_utf8(offset: int, byte: int) -> str:
    return f"byte {offset} of the file (0x{byte:02x}) is not UTF-8; legal: UTF-8 text"


def _text_chunks(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces; a BOM is dropped.

    Raises:
        DataError: as `text_lines`, without the line.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0  # of the first byte that the decoder has not turned into text yet
    with _opened(path) as file:
        while True:
            raw = file.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                message = _no_utf8(offset + error.start, error.object[error.start])
                raise DataError(f"{path}: {message}") from error
            offset += pending + len(raw) - len(decoder.getstate()[0])
            if text:
                yield text
            if not raw:
                return


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

    def boolean(self, key: str) -> bool:
        """Return a field that holds true or false."""
        value = self.value(key, "true or false")
        if not isinstance(value, bool):
            raise self.mismatch(key, value, "true or false")
        return value

    def strings(self, key: str, *, empty: bool = False) -> tuple[str, ...]:
        """Return a field that holds a list of strings.

        Args:
            key: the field.
            empty: whether the list may be empty.
        """
        legal = "a list of strings" if empty else "a list of at least one string"
        value = self.value(key, legal)
        if not isinstance(value, list) or not (value or empty):
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

    def objects(self, key: str, *, empty: bool = False) -> list[Record]:
        """Return a field that holds a list of objects, as records of their own.

        Args:
            key: the field.
            empty: whether the list may be empty.
        """
        legal = "a list of objects" if empty else "a list of at least one object"
        value = self.value(key, legal)
        if not isinstance(value, list) or not (value or empty):
            raise self.mismatch(key, value, legal)
        for item in value:
            if not isinstance(item, dict):
                raise self.mismatch(key, value, legal)
        return [
            Record(f"{self.where}: {key!r} {number}", item)
            for number, item in enumerate(value, start=1)
        ]

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

    One object is held at a time, so the file may be larger than memory.

    Raises:
        DataError: if the file is not that, or the list is empty.
    """
    number = 0
    for number, item in enumerate(_Elements(path), start=1):
        if not isinstance(item, dict):
            raise DataError(f"{path}: record {number} is {_cut(item)}; legal: a JSON object")
        yield Record(f"{path}: record {number}", item)
    if not number:
        raise DataError(f"{path}: []; legal: {_LIST}")


_LIST = "a JSON list of at least one object"


class _Elements:
    """The elements of the JSON list in a file, parsed while the file is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks = _text_chunks(path)
        self.text = ""  # the part of the file that is held
        self.at = 0  # what of it has been parsed
        self.line = 1  # number of the line that it begins in
        self.column = 0  # characters of that line before it
        self.complete = False

    def __iter__(self) -> Iterator[object]:
        first = self._next()
        if first != "[":
            if not first:
                raise self._error("Expecting value", self.at)
            begins = " ".join(self.text[self.at : self.at + 80].split())
            raise DataError(f"{self.path}: {begins}; legal: {_LIST}")
        self.at += 1
        if self._next() != "]":
            yield self._element()
            while self._next() == ",":
                self.at += 1
                self._next()
                yield self._element()
            if self._next() != "]":
                raise self._error("Expecting ',' delimiter", self.at)
        self.at += 1
        if self._next():
            raise self._error("Extra data", self.at)

    def _element(self) -> object:
        decoder = json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                refusal = self._error(error.msg, error.pos)
                cut_off = error.msg.startswith("Unterminated string")
                cut_off |= error.pos >= len(self.text) - _LONGEST_TOKEN
                if not (cut_off and self._read()):
                    raise refusal from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.path}: no JSON ({error}); legal: {_LIST}") from error
            else:
                length = end - self.at
                if end == len(self.text) and self._read():
                    continue  # a number may go on
                self.at += length  # not `end`: reading on moves what is held
                return cast(object, value)

    def _next(self) -> str:
        """Pass over white space; return the character that follows, "" at the end of the file."""
        while True:
            while self.text[self.at : self.at + 1] in (" ", "\t", "\r", "\n"):
                self.at += 1
            if self.at < len(self.text) or not self._read():
                return self.text[self.at : self.at + 1]

    def _read(self) -> bool:
        """Drop what has been parsed and read on; return whether there was anything to read."""
        self.line, self.column = self._place(self.at)
        parts = [self.text[self.at :]]
        # as much again as is there: a long element must not be parsed once for every chunk
        wanted = max(len(parts[0]), 1)
        while not self.complete and wanted > 0:
            parts.append(next(self.chunks, ""))
            self.complete = not parts[-1]
            wanted -= len(parts[-1])
        self.text, self.at = "".join(parts), 0
        return any(parts[1:])

    def _place(self, position: int) -> tuple[int, int]:
        """Return the number of the line of a position in `text` and the characters before it."""
        lines = self.text.count("\n", 0, position)
        if not lines:
            return self.line, self.column + position
        return self.line + lines, position - self.text.rfind("\n", 0, position) - 1

    def _error(self, message: str, position: int) -> DataError:
        line, column = self._place(position)
        return DataError.at(
            self.path, line, f"no JSON ({message}, column {column + 1}); legal: {_LIST}"
        )


def _cut(value: object, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
