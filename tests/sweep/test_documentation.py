"""docs/sweeps.md: its examples are legal sweep files, and every key is explained there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lightning_rag.sweep.command import parser
from lightning_rag.sweep.file import (
    COMPARE_KEYS,
    FILE_KEYS,
    RANGE_KEYS,
    SEARCH_KEYS,
    SYSTEM_KEYS,
    load,
)
from lightning_rag.sweep.plan import expand

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs" / "sweeps.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_can_be_read(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    path = tmp_path / "example.yaml"
    # A part of a file: what is left out there is what has to be in every file.
    present = set(yaml.safe_load(example))
    missing = {"name": "name: example\n", "systems": "systems: {one: {}}\n"}
    path.write_text(example + "".join(text for key, text in missing.items() if key not in present))
    assert expand(load(path))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(
    "key", sorted({*FILE_KEYS, *SYSTEM_KEYS, *SEARCH_KEYS, *RANGE_KEYS, *COMPARE_KEYS})
)
def test_every_key_is_there(key: str) -> None:
    assert re.search(rf"\b{key}\b", TEXT)


def test_every_argument_is_there() -> None:
    options = set(re.findall(r"--[a-z_.]+", parser().format_help()))
    assert {"--dry_run", "--data.root"} <= options
    for option in options - {"--help"}:
        assert f"`{option}" in TEXT


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "experiments").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_sweep_of_the_repository_can_be_read(path: Path) -> None:
    names = [setting.name for setting in expand(load(path))]
    assert len(set(names)) == len(names)
