"""Folders of large files that are built once, under a hash of all that they depend on.

`cache.py` keeps arrays that fit into memory and are hashed whenever they are read. Here files are
mapped into memory, and opening one must not read it: its size is checked alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lightning_rag.data.cache import Key
from lightning_rag.data.room import gigabytes
from lightning_rag.errors import DataError
from lightning_rag.files import Json, write_json

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the layout of any of these folders changes
MANIFEST = "manifest.json"
KEY = "key.json"


def entry_name(kind: str, key: Key) -> str:
    """Return the name of a folder: its kind and a hash of its key."""
    text = json.dumps({"format": FORMAT, "key": dict(key)}, sort_keys=True, allow_nan=False)
    return f"{kind}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def open_entry(
    entry: Path, key: Key, build: Callable[[Path], Mapping[str, Json]]
) -> Mapping[str, Json]:
    """Return what is known about a folder; it is built if it is not there.

    It is built beside its final place, in `<entry>.building`, and renamed when it is complete: so a
    folder that is there is whole. Of several processes one builds (a file `<entry>.lock` is locked
    meanwhile) and the others wait. What a killed one left is handed to the next `build`.

    Args:
        entry: the folder.
        key: everything that its contents depend on.
        build: writes the files into a folder, which may hold what a former build of the same key
            left; returns what is to be known about them.

    Raises:
        DataError: the folder is of another key, or is not as it was written.
    """
    if not entry.exists():
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_name(f"{entry.name}.lock")):
            if not entry.exists():
                _build(entry, key, build)
    return _about(entry, key)


def _build(entry: Path, key: Key, build: Callable[[Path], Mapping[str, Json]]) -> None:
    place = entry.with_name(f"{entry.name}.building")
    if place.exists() and _json(place / KEY) != dict(key):
        shutil.rmtree(place)  # killed before it had begun, or of another format
    if place.exists():
        log.info("%s: going on with what a former process left", place)
    else:
        place.mkdir()
        write_json(place / KEY, dict(key))
    start = time.monotonic()
    about = build(place)
    files = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
    manifest: dict[str, Json] = {"format": FORMAT, "key": dict(key), "about": about, "files": files}
    write_json(place / MANIFEST, manifest)
    place.rename(entry)
    log.info(
        "%s: built in %.0f s, %s on disk",
        *(entry, time.monotonic() - start, gigabytes(sum(files.values()))),
    )


def _about(entry: Path, key: Key) -> Mapping[str, Json]:
    """Return what a folder's manifest says, after a look at whether the folder is what it says."""
    legal = "legal: remove this folder, and it is built again"
    manifest = _json(entry / MANIFEST)
    if not isinstance(manifest, dict) or not {"format", "key", "about", "files"} <= manifest.keys():
        raise DataError(f"{entry}: no {MANIFEST} that can be read, so it is not whole; {legal}")
    if manifest["format"] != FORMAT or manifest["key"] != dict(key):
        said = json.dumps(manifest["key"], ensure_ascii=False)
        raise DataError(
            f"{entry}: holds other data, {said}, than is asked for, "
            f"{json.dumps(dict(key), ensure_ascii=False)}; {legal}"
        )
    files, about = manifest["files"], manifest["about"]
    if not isinstance(files, dict) or not isinstance(about, dict):
        raise DataError(f"{entry / MANIFEST}: 'files' and 'about' are no objects; {legal}")
    for name, size in files.items():
        path = entry / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            came = "is missing" if found is None else f"has {found} bytes"
            raise DataError(f"{path}: {came}, the manifest says {size}; {legal}")
    return about


def _json(path: Path) -> Json:
    try:
        value: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when the process ends, however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is building it; waiting", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def whole_number(about: Mapping[str, Json], name: str) -> int:
    """Return a number that `build` has noted.

    Raises:
        DataError: there is none.
    """
    value = about.get(name)
    if not isinstance(value, int):
        raise DataError(f"{MANIFEST}: {name!r} is {value!r}; legal: a whole number")
    return value


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, then rename it: a killed process leaves no half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)
