"""Mistakes of the user: the command line shows them in one line, without a traceback."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Something that the user can mend: the message says where, what came and what is legal."""


class DataError(UserError):
    """A data file that cannot be used as it is."""

    @classmethod
    def at(cls, path: Path | str, line: int, message: str) -> DataError:
        """Return the error for line `line` (from 1) of `path`."""
        return cls(f"{path}:{line}: {message}")
