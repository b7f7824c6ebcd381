"""Where the numbers come from: code, versions, data, machines, and how to make them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.section import Cell, Section, Table
from lightning_rag.files import Json

STAGES = ("fit", "test")
SHORT = 12  # characters of a hash that are shown
COMPLETE = "phases"  # what ended a training that ran to its end
CHANGES = "+changes"  # behind a commit that is not all of the code


def section(systems: Sequence[System]) -> Section:
    """Return the manifest.

    Args:
        systems: what is compared.
    """
    machines = _machines(systems)
    commits = {_text(stage, "commit") for _, run in _all(systems) for stage in _stages(run)}
    return Section(
        "manifest",
        "Manifest",
        tuple(_paragraphs(systems, commits)),
        (
            _runs_table(systems, machines),
            _data_table(systems),
            _versions_table(systems),
            _machines_table(machines),
            _commands_table(systems),
        ),
    )


def _all(systems: Sequence[System]) -> list[tuple[str, Run]]:
    return [(system.name, run) for system in systems for run in system.runs]


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Mapping[str, Json], key: str) -> str:
    return "" if value.get(key) is None else str(value[key])


def _stages(run: Run) -> list[Mapping[str, Json]]:
    """Return the circumstances of the training, if there was one, and of the test."""
    return [_mapping(run.summary[stage]) for stage in STAGES if run.summary.get(stage)]


def _paragraphs(systems: Sequence[System], commits: set[str]) -> list[str]:
    said = []
    if any(not commit for commit in commits):
        said.append("Of some runs the commit of the code is not known: it was no checkout.")
    if any(commit.endswith(CHANGES) for commit in commits):
        said.append(
            "Some runs were made with code that was changed after its commit: the commit alone "
            "does not make them again."
        )
    if len({commit.removesuffix(CHANGES) for commit in commits}) > 1:
        said.append("The runs were made with code of different commits.")
    cut = [
        f"{why}: {name} (seed {run.seed})"
        for name, run in _all(systems)
        if (why := _text(run.summary, "stopped_by")) not in ("", COMPLETE)
    ]
    if cut:
        said.append(f"Trainings that ended before their phases did, by {'; by '.join(cut)}.")
    return said or ["All runs were made with the same code."]


def _machines(systems: Sequence[System]) -> dict[str, Mapping[str, Json]]:
    """Return the different machines by what they say of themselves, in the order of the runs."""
    found: dict[str, Mapping[str, Json]] = {}
    for _, run in _all(systems):
        for stage in _stages(run):
            machine = _mapping(stage.get("machine"))
            found.setdefault(str(machine), machine)
    return found


def _letter(number: int) -> str:
    """Return A to Z, then A1 to Z1 and so on."""
    turn, place = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(turn) if turn else "")


def _runs_table(systems: Sequence[System], machines: Mapping[str, Mapping[str, Json]]) -> Table:
    letters = {name: _letter(number) for number, name in enumerate(machines)}
    rows: list[tuple[Cell, ...]] = []
    for name, run in _all(systems):
        fit, test = (_mapping(run.summary.get(stage)) for stage in STAGES)
        stages = _stages(run)
        used = dict.fromkeys(letters[str(_mapping(stage.get("machine")))] for stage in stages)
        codes = dict.fromkeys(_short(_text(stage, "commit")) for stage in stages)
        rows.append(
            (
                name,
                run.seed,
                _text(fit, "date") or None,
                _text(test, "date"),
                ", ".join(codes),
                ", ".join(used),
                _short(_text(run.summary, "configuration")),
            )
        )
    return Table(
        name="runs",
        title="Runs",
        columns=("system", "seed", "trained", "tested", "commit", "machine", "configuration"),
        rows=tuple(rows),
        note="Times are UTC, of the end. “configuration” is a hash of all that decides the result.",
    )


def _short(commit: str) -> str:
    """Return a hash's first characters, and whether the code was changed after the commit."""
    own = commit.removesuffix(CHANGES)
    return own[:SHORT] + (CHANGES if own != commit else "")


def _data_table(systems: Sequence[System]) -> Table:
    """Give a row for each different set of data: mostly one for each seed."""
    rows: dict[tuple[Cell, ...], list[str]] = {}
    for name, run in _all(systems):
        data = _mapping(run.summary.get("data"))
        cells: list[Cell] = [run.data, run.seed, _text(data, "fraction")]
        cells += [_text(data, "store_size"), _text(data, "store")[:SHORT]]
        for split in ("train", "validation", "test"):
            part = _mapping(data.get(split))
            cells.append(f"{_text(part, 'size')} ({_text(part, 'ids')[:SHORT]})")
        rows.setdefault(tuple(cells), []).append(name)
    everyone = len(systems)
    return Table(
        name="data",
        title="Data",
        columns=(
            *("data", "seed", "fraction", "passages", "store"),
            *("training", "validation", "test", "systems"),
        ),
        rows=tuple(
            (*cells, "all" if len(names) == everyone else ", ".join(names))
            for cells, names in rows.items()
        ),
        note="Numbers of records with hashes of their ids; “store” is the hash of all passages.",
    )


def _versions_table(systems: Sequence[System]) -> Table:
    found: dict[str, dict[str, None]] = {}
    for _, run in _all(systems):
        for stage in _stages(run):
            for package, version in _mapping(stage.get("versions")).items():
                found.setdefault(package, {})[str(version)] = None
    return Table(
        name="versions",
        title="Versions",
        columns=("package", "version"),
        rows=tuple((package, ", ".join(versions)) for package, versions in found.items()),
    )


def _machines_table(machines: Mapping[str, Mapping[str, Json]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, machine in enumerate(machines.values()):
        gpus = machine.get("gpus")
        rows.append(
            (
                _letter(number),
                _text(machine, "platform"),
                _text(machine, "python"),
                _text(machine, "cpus"),
                _text(machine, "threads"),
                ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else None,
            )
        )
    return Table(
        name="machines",
        title="Machines",
        columns=("machine", "platform", "Python", "CPUs", "threads", "GPUs"),
        rows=tuple(rows),
    )


def _commands_table(systems: Sequence[System]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, run in _all(systems):
        command = "fit" if run.summary.get("fit") else "test"
        config = shlex.quote(str(run.folder / "config.yaml"))
        rows.append(
            (
                name,
                run.seed,
                f"python -m lightning_rag.cli {command} --config {config} --runs again",
            )
        )
    return Table(
        name="commands",
        title="Commands that make the runs again",
        columns=("system", "seed", "command"),
        rows=tuple(rows),
        note="They write below the folder “again”, beside the runs that there are. The data must "
        "lie where they lay, or be named by --data.root.",
    )
