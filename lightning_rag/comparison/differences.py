"""The settings in which systems differ, and nothing else of their configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from lightning_rag.comparison.runs import System
from lightning_rag.comparison.section import Cell, Section, Table
from lightning_rag.configuration import INDIFFERENT
from lightning_rag.files import Json

# What says where files lie or what a run is called differs for no reason. The weights that a run
# began with are another matter, though they lie at a path.
WEIGHTS = frozenset({"initial_weights", "ckpt_path"})
HIDDEN = (INDIFFERENT | {"seed_everything"}) - WEIGHTS
MANY = 4  # from here on the systems that share the most frequent value are not listed


def section(systems: Sequence[System]) -> Section | None:
    """Return the settings that differ; None if none does.

    Args:
        systems: what is compared.
    """
    settings = {system.name: _settings(system) for system in systems}
    keys = sorted({key for own in settings.values() for key in own})
    different: list[tuple[Cell, ...]] = []
    own: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key in keys:
        holders: dict[str, list[str]] = {}
        for name, values in settings.items():
            if key in values:
                holders.setdefault(values[key], []).append(name)
        if len(holders) > 1:
            different += _rows(key, holders)
        elif sum(map(len, holders.values())) < len(systems):
            ((value, names),) = holders.items()
            own.setdefault(tuple(names), []).append((key, value))
    tables = []
    if different:
        tables.append(
            Table(
                name="differences",
                title="Settings with different values",
                columns=("setting", "value", "systems"),
                rows=tuple(different),
                note="Systems that have no such setting are not named. A value that differs from "
                "seed to seed is given for each.",
            )
        )
    if own:
        tables.append(
            Table(
                name="own_settings",
                title="Settings that only some systems have",
                columns=("systems", "setting", "value"),
                rows=tuple(
                    (", ".join(names), key, value)
                    for names, entries in own.items()
                    for key, value in entries
                ),
            )
        )
    if not tables:
        return None
    said = "All other settings are equal, but for names, paths, seeds and what is shown."
    return Section("differences", "Differences of configuration", (said,), tuple(tables))


def _rows(key: str, holders: Mapping[str, Sequence[str]]) -> Iterator[tuple[Cell, ...]]:
    """Yield a row for each value, the most frequent first."""
    ordered = sorted(holders.items(), key=lambda item: -len(item[1]))
    for place, (value, names) in enumerate(ordered):
        often = place == 0 and len(names) >= MANY
        yield key, value, f"the other {len(names)}" if often else ", ".join(names)


def _settings(system: System) -> dict[str, str]:
    """Return a system's settings by dotted key, as text; seeds that differ are told apart."""
    runs = [(run.seed, dict(_flat(run.config))) for run in system.runs]
    found = {}
    for key in dict.fromkeys(key for _, values in runs for key in values):
        by_value: dict[str, list[str]] = {}
        for seed, values in runs:
            if key in values:
                by_value.setdefault(values[key], []).append(str(seed))
        found[key] = (
            next(iter(by_value))
            if len(by_value) == 1
            else "; ".join(f"{value} (seed {', '.join(s)})" for value, s in by_value.items())
        )
    return found


def _flat(config: Mapping[str, Json], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values as text; null counts as not given, as in the hash."""
    for key, value in config.items():
        name = f"{above}{key}"
        if name in HIDDEN or value is None:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _text(name, value)


def _text(name: str, value: Json) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1 and 1.0 are one setting
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if name in WEIGHTS:
        return re.sub(r"\bseed=\d+", "seed=…", value)  # of each seed its own
    return value.rsplit(".", 1)[-1] if name.endswith("class_path") else value
