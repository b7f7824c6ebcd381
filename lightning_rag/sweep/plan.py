"""The runs of a sweep: axes multiplied out, each command parsed, in an order that can be run."""

from __future__ import annotations

import argparse
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import cast

from jsonargparse import ArgumentParser, Namespace
from omegaconf.errors import OmegaConfBaseException

from lightning_rag.cli import command_parser, configuration_of, run_folder
from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.sweep.file import Axis, Settings, SweepFile, System


@dataclass(frozen=True)
class Setting:
    """A system with one value of each of its axes: what all of its seeds share.

    Args:
        system: what it comes from.
        name: the variant of its runs: the system's name, the values of its axes, its cell.
        own: names of the values of the system's axes.
        shared: names of the values of the axes of all systems.
        configs: configuration files, the last one wins.
        arguments: dotted keys with their values, which win over the files.
    """

    system: System
    name: str
    own: tuple[str, ...]
    shared: tuple[str, ...]
    configs: tuple[str, ...]
    arguments: Settings

    @property
    def base(self) -> str:
        """Return the name without the cell: what a search finds for it serves all its cells."""
        return self.name.removesuffix(self.system.cell)


@dataclass(frozen=True)
class PlannedRun:
    """A run: a process of `python -m lightning_rag.cli`.

    Args:
        name: unlike that of all other runs of the sweep.
        system: name of its setting, which is its variant.
        base: that name without the cell.
        seed: its seed.
        words: its arguments, without `fit` or `test`.
        folder: where its files go.
        configuration: the hash that its summary has when it is finished.
        train: whether it is trained; else it is tested alone.
        after: names of the runs that must be finished before.
        method: the class of its method, without the modules.
        data: name of its data.
        fraction: share of the training data.
        evaluate: whether it is tested after its training.
    """

    name: str
    system: str
    base: str
    seed: int
    words: tuple[str, ...]
    folder: Path
    configuration: str
    train: bool
    after: tuple[str, ...]
    method: str
    data: str
    fraction: float
    evaluate: bool = True

    @property
    def log(self) -> Path:
        """Return the file of what its process says: beside the folder, which a training clears."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def best(self) -> Path:
        """Return its best weights."""
        return self.folder / "checkpoints" / "best.ckpt"


@functools.cache
def parser() -> ArgumentParser:
    """Return the parser of commands, which takes a third of a second to build."""
    return command_parser()


def configuration_of_folder(folder: Path) -> str:
    """Return the configuration hash of a training that was begun; "" = it cannot be read."""
    try:
        parsed = parser().parse_args(["fit", "--config", str(folder / "config.yaml")])
    except (argparse.ArgumentError, OmegaConfBaseException):
        return ""
    return configuration_of(parsed["fit"], "fit")


class Commands:
    """Parses commands as the processes will, without running them.

    Args:
        file: the sweep file, for messages.
        runs: the folder of all runs.
        extra: dotted keys that win over all of the file's, such as `data.root`.
    """

    def __init__(self, file: SweepFile, runs: Path, extra: Settings) -> None:
        self._file = file
        self._runs = runs
        self._extra = extra

    def words(self, setting: Setting, seed: int, experiment: str) -> tuple[str, ...]:
        """Return the arguments of a run, but for the weights that it begins with."""
        return (
            *(part for config in setting.configs for part in ("--config", config)),
            "--trainer.enable_progress_bar=false",
            *(word(key, value) for key, value in {**setting.arguments, **self._extra}.items()),
            f"--experiment={experiment}",
            f"--variant={setting.name}",
            f"--runs={self._runs}",
            f"--seed_everything={seed}",
        )

    def parse(self, setting: Setting, words: Sequence[str]) -> Namespace:
        """Return the configuration of a command.

        Raises:
            UserError: a key or value is illegal; names the system.
        """
        subcommand = "fit" if setting.system.train else "test"
        where = f"{self._file.path}: systems.{setting.system.name}"
        try:
            parsed: Namespace = parser().parse_args([subcommand, *words])
        except (argparse.ArgumentError, OmegaConfBaseException) as error:
            raise UserError(f"{where}: {error}") from error
        config: Namespace = parsed[subcommand]
        return config


def word(key: str, value: Json) -> str:
    """Return a setting as an argument of the command line."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def with_controls_of(file: SweepFile) -> SweepFile:
    """Return a sweep that has the controls it asks for among its systems."""
    if not file.controls:
        return file
    # Here, because most sweeps ask for none.
    from lightning_rag.sweep.controls import with_controls

    return replace(with_controls(file), controls=False)


def expand(file: SweepFile) -> list[Setting]:
    """Multiply out the axes of every system and of the file.

    Raises:
        UserError: two settings would have the same name.
    """
    settings = []
    for system in file.systems:
        for own in product(*_axes(system.grid, system.variants)):
            for shared in product(*_axes(file.grid, file.variants)):
                arguments: dict[str, Json] = {**file.arguments, **system.arguments}
                configs = [*file.configs, *system.configs]
                for _, values in (*shared, *own):
                    configs += cast(list[str], values.get("configs", []))
                    arguments |= {key: v for key, v in values.items() if key != "configs"}
                arguments = _with_last(arguments, system.fixed)
                names = tuple(name for name, _ in own), tuple(name for name, _ in shared)
                name = "-".join((system.name, *names[0], *names[1])) + system.cell
                settings.append(Setting(system, name, *names, tuple(configs), arguments))
    for name, count in Counter(setting.name for setting in settings).items():
        if count > 1:
            raise UserError(f"{file.path}: systems: {count} of them would be called {name}")
    return settings


def plan(
    file: SweepFile,
    *,
    runs: Path | str = "runs",
    extra: Settings | None = None,
    found: Mapping[str, Settings] | None = None,
) -> list[PlannedRun]:
    """Return the runs of a sweep, each behind those that it begins with.

    Every command is parsed. Nothing is run, and nothing is read of the runs' folders.

    Args:
        file: the sweep.
        runs: the folder of all runs.
        extra: dotted keys that win over all of the file's, such as `data.root`.
        found: by `Setting.base`, what a search has found for it.

    Raises:
        UserError: a key or value of a configuration is illegal; a system that another one begins
            with is not there, trains nothing or lacks a seed; systems begin with each other; two
            runs would have one folder. All mistakes of configurations come in one message.
    """
    settings = [_replaced(setting, (found or {}).get(setting.base, {})) for setting in expand(file)]
    settings, before = ordered(file, settings)
    commands = Commands(file, Path(runs), extra or {})
    planned: dict[tuple[str, int], PlannedRun] = {}
    mistakes: dict[str, None] = {}
    for setting in settings:
        for seed in setting.system.seeds or file.seeds:
            first = planned.get((before[setting.name], seed))
            try:
                run = planned_run(commands, setting, seed, file.name, first)
            except UserError as error:
                mistakes[str(error)] = None
                break  # the other seeds have the same mistake
            planned[setting.name, seed] = run
    if mistakes:
        raise UserError("\n".join(mistakes))
    _check_folders(file, planned.values())
    return [*planned.values()]


def planned_run(
    commands: Commands, setting: Setting, seed: int, experiment: str, first: PlannedRun | None
) -> PlannedRun:
    """Return the run of a setting and a seed.

    Args:
        commands: parses its command.
        setting: what is run.
        seed: its seed.
        experiment: the experiment that it belongs to.
        first: the run with whose best weights it begins, or which it tests.

    Raises:
        UserError: a key or value is illegal.
    """
    train = setting.system.train
    words = commands.words(setting, seed, experiment)
    config = commands.parse(setting, words)
    method = str(config.model.class_path).rpartition(".")[2]
    if first is not None:
        # A checkpoint is of one method; of another one's run the parts are taken that both have.
        key = "initial_weights" if train or first.method != method else "ckpt_path"
        config[key] = str(first.best)
        words += (f"--{key}={first.best}",)
    return PlannedRun(
        name=f"{setting.name}/seed={seed}",
        system=setting.name,
        base=setting.base,
        seed=seed,
        words=words,
        folder=run_folder(config),
        configuration=configuration_of(config, "fit" if train else "test"),
        train=train,
        after=(first.name,) if first is not None else (),
        method=method,
        data=str(config.data.name),
        fraction=float(config.data.fraction),
    )


def ordered(file: SweepFile, settings: Sequence[Setting]) -> tuple[list[Setting], dict[str, str]]:
    """Return the settings, each behind the one that it begins with, and that one's name ("").

    Raises:
        UserError: what a system begins with is not there, trains nothing or lacks a seed; systems
            begin with each other.
    """
    by_name = {setting.name: setting for setting in settings}
    # A system without axes of its own is meant with the same values of the shared axes.
    alike = {("-".join((s.system.name, *s.own)) + s.system.cell, s.shared): s for s in settings}
    before = dict.fromkeys(by_name, "")
    for setting in settings:
        begin_with = setting.system.begin_with
        if begin_with is None:
            continue
        first = alike.get((begin_with, setting.shared)) or by_name.get(begin_with)
        where = f"{file.path}: systems.{setting.system.name}.begin_with"
        if first is None:
            raise UserError(
                f"{where}: there is no system {begin_with}; legal: {', '.join(by_name)}"
            )
        if not first.system.train:
            raise UserError(f"{where}: {first.name} trains nothing, so it has no weights")
        seeds, theirs = (s.system.seeds or file.seeds for s in (setting, first))
        if not set(seeds) <= set(theirs):
            raise UserError(
                f"{where}: {first.name} has the seeds {list(theirs)}, {setting.name} {list(seeds)}"
            )
        before[setting.name] = first.name
    graph = {name: {first} - {""} for name, first in before.items()}
    try:
        order = [*TopologicalSorter(graph).static_order()]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise UserError(f"{file.path}: systems begin with each other: {circle}") from error
    # The order of the file, as far as it can be kept: stages of settings that can run together.
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = 1 + depth[before[name]] if before[name] else 0
    return sorted(settings, key=lambda setting: depth[setting.name]), before


def _axes(
    grid: Mapping[str, Axis], variants: Mapping[str, Settings]
) -> list[list[tuple[str, Settings]]]:
    """Return the axes, each with its values: their names, and what they set."""
    axes: list[list[tuple[str, Settings]]] = []
    if variants:
        axes.append([*variants.items()])
    short = Counter(key.rpartition(".")[2] for key in grid)
    for key, values in grid.items():
        last = key.rpartition(".")[2]
        label = last if short[last] == 1 else key
        axes.append([(f"{label}={name}", {key: value}) for name, value in values.items()])
    return axes


def _replaced(setting: Setting, found: Settings) -> Setting:
    """Return a setting with what a search has found for it."""
    arguments = {**setting.arguments, **found}
    return replace(setting, arguments=_with_last(arguments, setting.system.fixed))


def _with_last(arguments: Settings, fixed: Settings) -> dict[str, Json]:
    """Return settings with some behind all others, where they win over other names of a key too."""
    return {**{key: v for key, v in arguments.items() if key not in fixed}, **fixed}


def _check_folders(file: SweepFile, runs: Iterable[PlannedRun]) -> None:
    seen: dict[Path, PlannedRun] = {}
    for run in runs:
        other = seen.setdefault(run.folder, run)
        if other is not run:
            raise UserError(f"{file.path}: {other.name} and {run.name} have one folder")
