"""What the values of a sweep file may be; every mistake names file, key and what is legal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from lightning_rag.errors import UserError
from lightning_rag.files import Json

# Names become folders and parts of them.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
PART = re.compile(r"[A-Za-z0-9._=+-]+")


@dataclass(frozen=True)
class Place:
    """A value of a sweep file, with where it stands.

    Args:
        file: the sweep file.
        key: its dotted key, "" for the whole file.
        value: what stands there.
    """

    file: str
    key: str
    value: Json

    def error(self, message: str) -> UserError:
        """Return the error that something is wrong here."""
        where = f"{self.file}: {self.key}" if self.key else self.file
        return UserError(f"{where}: {message}")

    def below(self, name: str, value: Json) -> Place:
        """Return the place of a part of this value."""
        return Place(self.file, f"{self.key}.{name}" if self.key else name, value)

    def items(self) -> list[tuple[str, Place]]:
        """Return the parts of a mapping by name.

        Raises:
            UserError: it is no mapping, it is empty, or a key of it is no text.
        """
        if not isinstance(self.value, Mapping):
            raise self.error(f"expected keys with values, got {shown(self.value)}")
        if not self.value:
            raise self.error("is empty; legal: at least one key with a value, or leave it out")
        for key in self.value:
            if not isinstance(key, str) or not key:
                raise self.error(f"a key must be text, got {key!r}; legal: put it in quotes")
        return [(name, self.below(name, value)) for name, value in self.value.items()]

    def keys(self, legal: Collection[str]) -> dict[str, Place]:
        """Return the parts of a mapping that has these keys only.

        Raises:
            UserError: as `items`, or a key is unknown: with the legal key that it resembles.
        """
        parts = dict(self.items())
        for name in parts:
            if name not in legal:
                near = difflib.get_close_matches(name, legal, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise self.error(f"unknown key {name!r}; {hint}legal: {', '.join(legal)}")
        return parts

    def text(self) -> str:
        """Return a text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"expected text, got {shown(self.value)}")
        return self.value

    def name(self) -> str:
        """Return a text that can be the name of a folder."""
        text = self.text()
        if not NAME.fullmatch(text):
            raise self.error(
                f"{text!r} cannot name a folder; legal: letters, digits and . _ = + -, beginning "
                "with a letter or digit"
            )
        return text

    def choice(self, legal: Collection[str]) -> str:
        """Return one of some words."""
        if not isinstance(self.value, str) or self.value not in legal:
            raise self.error(f"expected one of {', '.join(legal)}, got {shown(self.value)}")
        return self.value

    def truth(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, got {shown(self.value)}")
        return self.value

    def whole(self, least: int) -> int:
        """Return a whole number of at least `least`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            raise self.error(
                f"expected a whole number of at least {least}, got {shown(self.value)}"
            )
        return self.value

    def number(self) -> float:
        """Return a number."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self.error(f"expected a number, got {shown(self.value)}")
        return self.value

    def listed(self) -> list[Place]:
        """Return the places of a list's values; the list is not empty.

        Raises:
            UserError: it is no list, or has nothing in it.
        """
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, got {shown(self.value)}")
        if not self.value:
            raise self.error("is empty; legal: at least one value, or leave it out")
        return [self.below(str(index), value) for index, value in enumerate(self.value)]

    def seeds(self) -> tuple[int, ...]:
        """Return different whole numbers."""
        found = [place.whole(0) for place in self.listed()]
        if len(set(found)) < len(found):
            raise self.error(f"a seed is given twice: {found}")
        return tuple(found)

    def arguments(self, forbidden: Mapping[str, str]) -> dict[str, Json]:
        """Return dotted keys of the configuration with their values.

        Args:
            forbidden: keys that cannot be given, with what is legal instead.
        """
        for name, place in self.items():
            if name.startswith("-") or "=" in name or name != name.strip():
                raise place.error("expected a key as on the command line, without -- and =")
            if name in forbidden:
                raise place.error(f"cannot be given here; legal: {forbidden[name]}")
        return dict(cast(Mapping[str, Json], self.value))


def shown(value: Json) -> str:
    """Return a value for a message, short, and null as the file calls it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
