"""Made-up words, and the checks of sizes that the synthetic data sets share."""

from __future__ import annotations

import random
from collections.abc import Callable

from lightning_rag.errors import UserError

SPLITS = ("train", "validation", "test")
MAX_VERBS = 50_000  # half of what the syllables give: more would make verbs hard to tell apart

_ONSETS = (
    "b", "bl", "br", "d", "dr", "f", "fl", "g", "gr", "k", "kl", "l",
    "m", "n", "p", "pl", "r", "s", "sk", "st", "t", "tr", "v", "z",
)  # fmt: skip
_VOWELS = "aeiou"
_CONSONANTS = "bdgklmnprtvz"
_VERB_CODAS = (
    "ft", "ld", "lk", "mp", "nd", "nk", "nt", "rk", "rm", "rn", "rt", "sk", "st", "zz",
)  # fmt: skip


def distinct(rng: random.Random, count: int, make: Callable[[random.Random], str]) -> list[str]:
    """Draw until there are `count` different ones; callers ask for far fewer than there are."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def verb(rng: random.Random) -> str:
    """Make up one of 100,800 verbs, in the past tense."""
    return f"{_root(rng)}{rng.choice(_VOWELS)}{rng.choice(_VERB_CODAS)}ed"


def first_name(rng: random.Random) -> str:
    """Make up one of 4,320 first names of people."""
    return _root(rng).capitalize() + rng.choice("aoi")


def last_name(rng: random.Random) -> str:
    """Make up one of 5,760 last names of people."""
    return _root(rng).capitalize() + rng.choice(("el", "ov", "an", "esk"))


def company_name(rng: random.Random) -> str:
    """Make up one of 5,760 names of organisations."""
    return _root(rng).capitalize() + rng.choice(("ic", "ine", "ar", "ox"))


def city_name(rng: random.Random) -> str:
    """Make up one of 5,760 names of places."""
    return _root(rng).capitalize() + rng.choice(("ham", "burg", "ton", "wick"))


def trade(rng: random.Random) -> str:
    """Make up one of 5,760 trades of people."""
    return _root(rng) + rng.choice(("smith", "wright", "monger", "weaver"))


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check one number of a configuration.

    Raises:
        UserError: if it is not in [low, high].
    """
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; legal: {low} to {high}")


def _root(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CONSONANTS)
