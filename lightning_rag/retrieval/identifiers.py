"""The names by which a language model calls the candidates, and chains of them: "[2] > [1]"."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_rag.backbones.generator import Generator
from lightning_rag.errors import UserError

LETTERS = string.ascii_uppercase
SEPARATOR = " > "
NUMBER = re.compile(r"[0-9]+")
# A letter by itself may be a word; tokenisers without capitals write small ones.
LETTER = re.compile(r"\[\s*([A-Za-z])\s*\]")

Kind = Literal["numbers", "letters"]


@dataclass(frozen=True)
class ChainTokens:
    """How a model writes chains in which every identifier is one token."""

    kind: Kind
    before: tuple[int, ...]  # what begins every chain, the generator's `answer_prefix` included
    identifiers: tuple[int, ...]  # N
    between: tuple[int, ...]  # what stands between two identifiers

    def prefix(self, places: Sequence[int]) -> tuple[int, ...]:
        """Return what the model has written before it chooses the next identifier."""
        chosen = [(self.identifiers[place], *self.between) for place in places]
        return (*self.before, *itertools.chain(*chosen))


def name(kind: Kind, place: int) -> str:
    """Return the identifier of the candidate in column `place`: "1" or "A" for column 0."""
    return str(place + 1) if kind == "numbers" else LETTERS[place]


def chain(kind: Kind, places: Sequence[int]) -> str:
    """Return "[9] > [20]" for columns 8 and 19."""
    return SEPARATOR.join(f"[{name(kind, place)}]" for place in places)


def parse(kind: Kind, text: str) -> list[int]:
    """Return the columns that a text names, in its order; what is none may be out of range."""
    if kind == "letters":
        return [LETTERS.index(letter.upper()) for letter in LETTER.findall(text)]
    # No list is so long that a number of ten digits could be a place in it.
    return [int(number) - 1 if len(number) < 10 else -1 for number in NUMBER.findall(text)]


def mend(found: Sequence[int], count: int) -> list[int]:
    """Make an order of all candidates of what a model wrote (spec A19).

    The first occurrence of each candidate that there is, then the others in the first stage's
    order, as the released code of DRO does.

    Args:
        found: columns, which may be repeated, missing or out of range.
        count: number of candidates.
    """
    kept = dict.fromkeys(place for place in found if 0 <= place < count)
    return [*kept, *(place for place in range(count) if place not in kept)]


def read_chain_tokens(generator: Generator, kind: Kind, size: int) -> ChainTokens | None:
    """Learn how a generator writes chains of `size` identifiers.

    Two chains, one the reverse of the other, show each identifier in two surroundings.

    Returns:
        the tokens; None if some identifier is not one token of its own, the same everywhere.
    """
    if kind == "letters" and size > len(LETTERS):
        return None
    orders = [list(range(size)), list(reversed(range(size)))]
    pieces = generator.answer_pieces([chain(kind, order) for order in orders])
    known: dict[int, int] = {}
    befores, betweens = set(), set()
    for order, piece in zip(orders, pieces, strict=True):
        text = chain(kind, order)
        start = len(piece.rendered.text) - len(text)  # the generator may put a space in front
        columns = []
        for place in order:
            start += 1  # the bracket
            end = start + len(name(kind, place))
            if (start, end) not in piece.offsets:
                return None
            columns.append(piece.offsets.index((start, end)))
            if known.setdefault(place, piece.ids[columns[-1]]) != piece.ids[columns[-1]]:
                return None
            start = end + 1 + len(SEPARATOR)
        befores.add(tuple(piece.ids[: columns[0]]))
        for left, right in itertools.pairwise(columns):
            betweens.add(tuple(piece.ids[left + 1 : right]))
    if len(set(known.values())) < size or len(befores) > 1 or len(betweens) > 1:
        return None
    identifiers = tuple(known[place] for place in range(size))
    before = (*generator.answer_prefix, *befores.pop())
    return ChainTokens(kind, before, identifiers, betweens.pop() if betweens else ())


def find_chain_tokens(
    generator: Generator, wanted: Literal["auto", "numbers", "letters"], size: int
) -> ChainTokens:
    """Return by which identifiers a generator can call `size` candidates.

    Args:
        generator: what has to write them.
        wanted: a kind, or "auto" = numbers if all of them are single tokens, else letters.
        size: N.

    Raises:
        UserError: none of those that are wanted are one token each.
    """
    kinds: list[Kind] = ["numbers", "letters"] if wanted == "auto" else [wanted]
    for kind in kinds:
        tokens = read_chain_tokens(generator, kind, size)
        if tokens is not None:
            return tokens
    every: list[Kind] = ["numbers", "letters"]
    mosts = {kind: _most(generator, kind, size) for kind in every}
    legal = [f"{kind} for up to {most}" for kind, most in mosts.items() if most]
    raise UserError(
        f"identifiers: {wanted!r} gives no names of one token each for {size} candidates with "
        f"the tokeniser of {generator.config.source!r}; legal with it: "
        f"{', '.join(legal) or 'none'}, or decoding: string"
    )


def _most(generator: Generator, kind: Kind, size: int) -> int:
    """Return the largest number of candidates, at most `size`, that a kind has names for."""
    return next((n for n in range(size, 0, -1) if read_chain_tokens(generator, kind, n)), 0)
