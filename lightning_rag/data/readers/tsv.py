"""Reading of tables with tabs between the columns, as DPR writes them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.jsonl import text_lines
from lightning_rag.errors import DataError


def tab_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (place, fields) of each row; a field in double quotes has its quotes undoubled.

    A row is one line, one row is held at a time, blank lines do not count, and a file whose name
    ends in .gz is unpacked.

    Args:
        path: the file.
        columns: what the columns are called; a first row of these names is passed over.

    Raises:
        DataError: if the file cannot be read, has no rows, or a row has other columns.
    """
    legal = f"legal: {len(columns)} columns with a tab between two: {', '.join(columns)}"
    found = False
    rows = csv.reader((line for _, line in text_lines(path)), delimiter="\t", strict=True)
    lines = 0  # read before this row
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError.at(path, rows.line_num, f"{error}; {legal}") from error
        if row is None:
            break
        number, lines = lines + 1, rows.line_num
        if not any(field.strip() for field in row):
            continue
        if lines > number:
            raise DataError.at(path, number, f"a double quote is not closed in this line; {legal}")
        if len(row) != len(columns):
            raise DataError.at(path, number, f"{len(row)} columns; {legal}")
        if number == 1 and tuple(row) == columns:
            continue
        found = True
        yield f"{path}:{number}", tuple(row)
    if not found:
        raise DataError(f"{path}: no rows; {legal}")
