"""Controls of a sweep: what a method has to be compared with before its retrieval is believed.

`controls: true` adds to every trained system the other cells of the 2 x 2 of trained or frozen
retriever and generator, and once for the file the generator alone and frozen retrieval by random,
BM25 and oracle candidates. Which settings these are stands in `configs/controls`: a file a method,
and `every_method.yaml`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.sweep.checks import Place
from lightning_rag.sweep.file import OWN, Settings, SweepFile, System

log = logging.getLogger(__name__)

FOLDER = Path("configs/controls")
SHARED = "every_method.yaml"
# The comparison finds the cells of a 2 x 2 by these ends of their variants' names.
CELLS = ("trained-both", "frozen-retriever", "frozen-generator", "frozen-both")


@dataclass(frozen=True)
class Cell:
    """How a method is run as a cell of the 2 x 2.

    Args:
        arguments: settings that win over the system's.
        train: False = nothing is trained: a test alone, of what the system begins with.
        when: the settings of a system that this is for; {} = of any.
    """

    arguments: Settings
    train: bool
    when: Settings


@dataclass(frozen=True)
class Controls:
    """The 2 x 2 of a method.

    Args:
        method: dotted path of its class.
        itself: the cell that the method is without further settings; "" = none.
        cells: the others, each with its ways to be run: the first whose `when` fits is taken.
        missing: cells that cannot be, with the reason.
    """

    method: str
    itself: str
    cells: Mapping[str, tuple[Cell, ...]]
    missing: Mapping[str, str]


@dataclass(frozen=True)
class Shared:
    """A control that serves all systems of a file.

    Args:
        name: of its system.
        method: dotted path of its class.
        configs: its configuration files, if the file has no system of its method.
        arguments: what makes it this control.
    """

    name: str
    method: str
    configs: tuple[str, ...]
    arguments: Settings


def with_controls(file: SweepFile) -> SweepFile:
    """Return a sweep with the controls of its systems behind them.

    A control whose name a system of the file has is left to that one; it is a cell then itself, and
    has no cells of its own.

    Args:
        file: the sweep.

    Raises:
        UserError: there is no folder of controls, none of its files is about a system's method, or
            one of them cannot be read.
    """
    folder = find(FOLDER, file.path)
    methods = {one.method: one for one in _of_methods(folder)}
    systems, names = [*file.systems], {system.name for system in file.systems}
    own_cells = {f"{name}-{cell}" for name in names for cell in CELLS}
    for system in file.systems:
        if not (system.train and system.controls) or system.name in own_cells:
            continue
        method = setting(file, system, "model.class_path")
        if method not in methods:
            raise UserError(
                f"{file.path}: systems.{system.name}: controls: true, but no file in {folder} is "
                f"about {method}; legal: one of {', '.join(methods)}, or a file that says what its "
                "cells are"
            )
        cells = _cells(file, system, methods[method])
        systems += [cell for cell in cells if system.name + cell.cell not in names]
    shared = _shared(file, folder)
    systems += [system for system in shared if system.name not in names]
    return replace(file, systems=tuple(systems))


def find(path: Path, sweep: Path) -> Path:
    """Return a path as seen from the working directory, else from a folder above the sweep file.

    Raises:
        UserError: it is in none of them.
    """
    for above in (Path(), *sweep.resolve().parents):
        if (above / path).exists():
            return above / path
    raise UserError(
        f"{sweep}: controls: true needs {path}, which is neither in the working directory nor in a "
        "folder above this file; legal: a copy of the repository's, or controls: false"
    )


def setting(file: SweepFile, system: System, key: str) -> Json:
    """Return what a system's files and arguments say of a key; None = nothing.

    Values of its axes are not looked at.

    Args:
        file: the sweep, whose configuration files and arguments come first.
        system: the system.
        key: dotted, without `init_args`; that of a class ends in `class_path`.
    """
    found: Json = None
    for config in (*file.configs, *system.configs):
        found = _last(_content(Path(config)), key, found)
    for arguments in (file.arguments, system.arguments):
        found = _last(arguments, key, found)
    return found


def _last(settings: Mapping[str, Json], key: str, before: Json) -> Json:
    for name, value in _flat(settings):
        # A class can be given by its path alone.
        if name in (key, key.removesuffix(".class_path")):
            before = value
    return before


def _flat(settings: Mapping[str, Json], above: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in settings.items():
        name = above + key.replace("init_args.", "")
        if isinstance(value, Mapping):
            yield from _flat(value, above if key == "init_args" else f"{name}.")
        else:
            yield name, value


def _cells(file: SweepFile, system: System, controls: Controls) -> Iterator[System]:
    """Return a system as the other cells of its 2 x 2."""
    if controls.cells:  # without any, the method has no 2 x 2 at all
        for name, reason in controls.missing.items():
            log.info("%s has no control %s: %s", system.name, name, reason)
    for name, ways in controls.cells.items():
        for way in ways:
            if all(setting(file, system, key) == value for key, value in way.when.items()):
                arguments = {**system.arguments, **way.arguments}
                cell = replace(system, arguments=arguments, train=way.train, cell=f"-{name}")
                yield replace(cell, fixed=way.arguments)
                break


def _shared(file: SweepFile, folder: Path) -> Iterator[System]:
    """Return the controls that serve all systems, but for what the file has already."""
    for control in _of_all(folder):
        alike = [
            system
            for system in file.systems
            if system.train and setting(file, system, "model.class_path") == control.method
        ]
        if any(_is_one(file, system, control.arguments) for system in alike):
            continue
        if alike:
            arguments = {**alike[0].arguments, **control.arguments}
            fixed = control.arguments
            yield replace(alike[0], name=control.name, arguments=arguments, fixed=fixed)
        else:
            configs = tuple(str(find(Path(config), file.path)) for config in control.configs)
            yield System(control.name, configs, control.arguments, fixed=control.arguments)


def _is_one(file: SweepFile, system: System, arguments: Settings) -> bool:
    """Whether a system has these settings by itself; a class can be given by its path alone."""
    return all(
        value in (setting(file, system, key), setting(file, system, f"{key}.class_path"))
        for key, value in arguments.items()
    )


def _of_methods(folder: Path) -> Iterator[Controls]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name == SHARED:
            continue
        parts = _place(path).keys(("method", "itself", "cells", "missing"))
        if "method" not in parts:
            raise UserError(f"{path}: method is missing; legal: the dotted path of its class")
        places = parts["cells"].keys(CELLS) if "cells" in parts else {}
        cells = {name: tuple(_ways(place)) for name, place in places.items()}
        missing = parts["missing"].keys(CELLS) if "missing" in parts else {}
        itself = parts["itself"].choice(CELLS) if "itself" in parts else ""
        named = [*cells, *missing, *([itself] if itself else [])]
        if sorted(named) != sorted(CELLS):
            raise UserError(
                f"{path}: itself, cells and missing name {', '.join(named) or 'nothing'}; legal: "
                f"each of {', '.join(CELLS)} once"
            )
        yield Controls(
            parts["method"].text(),
            itself,
            cells,
            {name: place.text() for name, place in missing.items()},
        )


def _ways(place: Place) -> Iterable[Cell]:
    """Yield the ways to run a cell: one, or a list."""
    for one in place.listed() if isinstance(place.value, list) else [place]:
        parts = one.keys(("arguments", "train", "when"))
        yield Cell(
            parts["arguments"].arguments(OWN) if "arguments" in parts else {},
            parts["train"].truth() if "train" in parts else True,
            parts["when"].arguments(OWN) if "when" in parts else {},
        )


def _of_all(folder: Path) -> Iterator[Shared]:
    for name, place in _place(folder / SHARED).items():
        parts = place.keys(("method", "configs", "arguments"))
        for needed in ("method", "configs"):
            if needed not in parts:
                raise place.error(f"{needed} is missing")
        yield Shared(
            name,
            parts["method"].text(),
            tuple(config.text() for config in parts["configs"].listed()),
            parts["arguments"].arguments(OWN) if "arguments" in parts else {},
        )


def _place(path: Path) -> Place:
    return Place(str(path), "", dict(_content(path)))


def _content(path: Path) -> Mapping[str, Json]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # yaml and omegaconf have each their own for bad text
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values")
    return cast(Mapping[str, Json], content)
