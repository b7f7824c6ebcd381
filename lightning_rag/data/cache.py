"""Arrays on disk under a hash of all that they depend on: read when whole, else computed again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the layout of an entry changes: older entries are then not found
MANIFEST = "manifest.json"

Key = Mapping[str, str | int | float | bool]
Arrays = dict[str, NDArray[np.generic]]


class _DamagedError(Exception):
    """An entry that is there but cannot be used."""


def hash_texts(texts: Iterable[str]) -> str:
    """Return the SHA-256 of a list of texts; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def hash_rows(rows: Iterable[NDArray[np.int64]]) -> str:
    """Return the SHA-256 of a list of arrays of row numbers of different lengths."""
    digest = hashlib.sha256()
    for array in rows:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


def cached(folder: Path, key: Key, compute: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of `key` from `folder`, or compute and keep them.

    An entry is a folder named by the SHA-256 of the key, with one .npy file for each array and a
    manifest (the key in clear; shape, type and SHA-256 of every file). It is written under a
    temporary name and renamed, so a reader sees all of it or nothing, also when several
    processes compute the same key. An entry that is stale or damaged is reported as a warning
    and computed again. When nothing can be written, that is a warning too.

    Args:
        folder: where the entries lie; created if it is absent.
        key: everything that the arrays depend on.
        compute: makes the arrays; their names become file names.

    Raises:
        ValueError: a name that is no identifier, or a key that is not plain JSON.
    """
    text = json.dumps({"format": FORMAT, "key": dict(key)}, sort_keys=True, allow_nan=False)
    entry = folder / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    try:
        return _read(entry, key)
    except FileNotFoundError:
        pass
    except _DamagedError as error:
        log.warning("cache entry %s is not used and computed again: %s", entry, error)
    arrays = compute()
    for name in arrays:
        if not name.isidentifier():
            raise ValueError(f"array name {name!r} in a cache entry; legal: an identifier")
    try:
        _write(entry, key, arrays)
    except OSError as error:
        log.warning("cannot keep the cache entry %s: %s", entry, error)
    return arrays


def _read(entry: Path, key: Key) -> Arrays:
    """Read an entry.

    Raises:
        FileNotFoundError: there is no such entry.
        _DamagedError: there is one, but it is not what was written, or not for this key.
    """
    if not entry.exists():
        raise FileNotFoundError(entry)
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["key"] != dict(key):
            raise _DamagedError("its manifest is for another key")
        return {name: _read_array(entry, name, said) for name, said in manifest["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _read_array(entry: Path, name: str, said: Mapping[str, object]) -> NDArray[np.generic]:
    path = entry / f"{name}.npy"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != said["sha256"]:
        raise _DamagedError(f"{path.name} has SHA-256 {found}, the manifest says {said['sha256']}")
    array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    return array


def _write(entry: Path, key: Key, arrays: Arrays) -> None:
    """Write an entry beside its final place, then move it there."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name[:16]}.tmp-", dir=entry.parent))
    try:
        described = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            described[name] = {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": digest,
            }
        manifest = {"format": FORMAT, "key": dict(key), "arrays": described}
        (temporary / MANIFEST).write_text(
            json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        temporary.chmod(0o755)  # mkdtemp makes it private; a shared cache folder shall stay shared
        _publish(temporary, entry, key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, entry: Path, key: Key) -> None:
    """Move a whole entry to its place; a whole one that another process put there stays."""
    while True:
        try:
            temporary.rename(entry)
            return
        except OSError:
            if not entry.exists():
                raise
        try:
            _read(entry, key)
            return
        except FileNotFoundError:
            continue  # another process is replacing it
        except _DamagedError:
            aside = entry.with_name(f"{entry.name[:16]}.old-{uuid.uuid4().hex}")
            try:
                entry.rename(aside)
            except FileNotFoundError:
                continue
            if aside.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink()
