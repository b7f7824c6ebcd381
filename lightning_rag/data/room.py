"""Disk and memory that something large will take: told before it is built, refused if short."""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_rag.errors import UserError

log = logging.getLogger(__name__)

MEMORY = Path("/proc/meminfo")
RESERVE = 0.02  # of the disk's free bytes that are left alone
GB = 1e9


@dataclass(frozen=True)
class Room:
    """What building and then using something takes, in bytes."""

    disk: int
    memory: int  # that cannot be given back while it runs; pages of mapped files can


def check_room(what: str, folder: Path, needed: Room, *, instead: str) -> None:
    """Tell what something needs, before it is built.

    Args:
        what: what is built, for the message.
        folder: where it will lie; it need not exist.
        needed: disk and memory.
        instead: what the user may do where the disk is too small.

    Raises:
        UserError: the disk has too little room; the message has both numbers.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    memory = available_memory()
    log.info(
        "%s: about %s of disk in %s (free: %s) and %s of memory (available: %s)",
        *(what, gigabytes(needed.disk), folder, gigabytes(free), gigabytes(needed.memory)),
        "unknown" if memory is None else gigabytes(memory),
    )
    if needed.disk > free * (1 - RESERVE):
        raise UserError(
            f"{what} needs about {gigabytes(needed.disk)} of disk, and {folder} has "
            f"{gigabytes(free)} free; legal: {instead}"
        )
    if memory is not None and needed.memory > memory:
        log.warning(
            "%s needs about %s of memory, and %s are available: it will be slow, or be killed",
            *(what, gigabytes(needed.memory), gigabytes(memory)),
        )


def available_memory() -> int | None:
    """Return the bytes that new work can get without swapping; None where Linux does not say."""
    if not MEMORY.exists():
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMORY.read_text(), re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def gigabytes(size: float) -> str:
    """Return bytes as text, such as "1.3 GB" (1 GB = 10^9 bytes)."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"


def heaps(distinct: Sequence[int], size: int, total: int) -> int:
    """Return how many distinct words a whole collection has, from a sample of it.

    Heaps' law: V(n) = K n^β, with β from the first half of the sample and all of it.

    Args:
        distinct: distinct words in the first half of the sample, and in all of it.
        size: passages of the sample.
        total: passages of the collection.
    """
    half, whole = distinct
    if not half or total <= size:
        return whole
    # V(n) / V(n / 2) = 2^β
    exponent = math.log2(whole / half)
    return round(whole * math.pow(total / size, exponent))
