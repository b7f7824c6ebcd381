"""Tables with tabs, in the dialect of Python's csv module that DPR's files are written in."""

from __future__ import annotations

import csv
import gzip

import pytest

from lightning_rag.data.readers.tsv import tab_rows
from lightning_rag.errors import DataError

COLUMNS = ("id", "text")


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "table.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def test_what_python_wrote_is_read(tmp_path):
    rows = [("1", 'a "b" c'), ("2", ""), ("3", '"'), ("4", "x,y; ä\u2028z"), ("5", "'q' ")]
    path = tmp_path / "table.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([COLUMNS, *rows])
    assert [fields for _, fields in tab_rows(path, COLUMNS)] == rows


def test_places_header_and_blank_lines(write):
    path = write("id\ttext\n1\ta\n\n2\t\n")
    assert list(tab_rows(path, COLUMNS)) == [(f"{path}:2", ("1", "a")), (f"{path}:4", ("2", ""))]
    assert list(tab_rows(write("1\ta"), COLUMNS)) == [(f"{path}:1", ("1", "a"))]


def test_packed(tmp_path):
    path = tmp_path / "table.tsv.gz"
    path.write_bytes(gzip.compress(b"1\ta\n"))
    assert [fields for _, fields in tab_rows(path, COLUMNS)] == [("1", "a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"table\.tsv: no rows; legal: 2 columns with a tab between two: id, text"),
        ("id\ttext\n", r"table\.tsv: no rows"),
        ("1\ta\n2\n", r"table\.tsv:2: 1 columns; legal: 2 columns"),
        ("1\ta\tb\n", r"table\.tsv:1: 3 columns; legal: 2 columns"),
        ('1\ta\n2\t"b\n3\tc"\n', r"table\.tsv:2: a double quote is not closed in this line; leg"),
        ('1\t"a" b\n', r"table\.tsv:1: .*expected after.*; legal: 2 columns"),
        ('1\ta\n2\t"b', r"table\.tsv:2: unexpected end of data; legal"),
        (b"1\ta\n2\t\xe4\n", r"table\.tsv:2: byte 6 of the file"),
    ],
)
def test_damaged_tables(write, content, message):
    with pytest.raises(DataError, match=message):
        list(tab_rows(write(content), COLUMNS))
