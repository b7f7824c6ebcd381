"""Fixtures that many tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def pytest_configure() -> None:
    """Let Ctrl-C interrupt, as it does on a terminal.

    A shell script starts what it puts into the background with SIGINT ignored; processes inherit
    that, and the tests that interrupt a sweep would wait in vain.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def decode(value: Any) -> Any:
    """Replace the strings that stand for non-finite numbers in the golden files."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    return SPECIAL.get(value, value) if isinstance(value, str) else value


@pytest.fixture
def open_files() -> Callable[[], int]:
    """Count the files that this process has open."""
    place = Path("/proc/self/fd")
    if not place.is_dir():
        pytest.skip("needs /proc")
    return lambda: len(list(place.iterdir()))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("LIGHTNING_RAG_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data sets at {root} (set LIGHTNING_RAG_DATA)")
    return root


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """Read a golden file by name; tests that need it are skipped where it is absent."""

    def read(name: str) -> dict[str, Any]:
        path = REPOSITORY.parent / "shared" / "golden" / f"{name}.json"
        if not path.is_file():
            pytest.skip(f"no golden values at {path}")
        return decode(json.loads(path.read_text(encoding="utf-8")))

    return read


@pytest.fixture(scope="session")
def in_processes() -> Callable[[Path, Sequence[Sequence[object]]], None]:
    """Run a script in several processes at once, one for each list of arguments; none may fail."""

    def run(script: Path, arguments: Sequence[Sequence[object]]) -> None:
        # They import what this process imports, and need no network to find each other.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
        }
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        started = [
            subprocess.Popen(
                [sys.executable, str(script), *map(str, given)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for given in arguments
        ]
        try:
            for process in started:
                said, _ = process.communicate(timeout=180)
                assert process.returncode == 0, said
        finally:
            for process in started:
                process.kill()
                process.communicate()

    return run
