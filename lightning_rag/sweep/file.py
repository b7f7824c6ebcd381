"""The file of a sweep: what is compared, over which settings and seeds, where it runs.

`docs/sweeps.md` explains every key with an example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from omegaconf import OmegaConf

from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.sweep.checks import NAME, PART, Place, shown

Settings = Mapping[str, Json]  # dotted key of the configuration -> value
Axis = Mapping[str, Json]  # name of a value -> value

FILE_KEYS = (
    *("name", "configs", "arguments", "seeds", "systems", "grid", "variants", "search"),
    *("controls", "executor", "compare"),
)
SYSTEM_KEYS = (
    *("configs", "arguments", "grid", "variants", "begin_with", "train", "seeds", "search"),
    "controls",
)
SEARCH_KEYS = ("metric", "mode", "trials", "sampler", "at_once", "seeds", "space")
RANGE_KEYS = ("low", "high", "log", "step")
COMPARE_KEYS = ("metric", "resamples", "confidence", "seed", "examples")
# Arguments that a sweep gives itself.
OWN = {
    "config": "configs",
    "experiment": "name, at the top of the file",
    "variant": "the system's name, grid and variants",
    "runs": "sweep FILE --runs FOLDER",
    "seed_everything": "seeds",
    "data.seed": "seeds",
    "evaluate": "nothing, a sweep tests what it trains",
    "overwrite": "sweep FILE --overwrite true",
    "ckpt_path": "begin_with",
}


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Args:
        low: the least one.
        high: the largest one.
        log: whether they are drawn evenly over their logarithms.
        step: distance of neighbours; None = any number. Whole bounds and step give whole numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Search:
    """How settings are searched, on the validation split.

    Args:
        metric: name in the validation curve, without `val/`.
        mode: whether more of it or less is better.
        trials: settings that are tried; None = all of a grid.
        sampler: who proposes them: Optuna's TPE, random, or every combination.
        at_once: settings that are proposed together, and run before the next are proposed; None =
            as many as the executor runs at a time.
        seeds: seeds of each trial, whose mean counts; () = the first of the system's seeds.
        space: dotted key -> values, or a range of numbers.
    """

    metric: str
    mode: Literal["max", "min"]
    trials: int | None
    sampler: Literal["tpe", "random", "grid"]
    at_once: int | None
    seeds: tuple[int, ...]
    space: Mapping[str, tuple[Json, ...] | Range]


@dataclass(frozen=True)
class System:
    """One of the things that are compared, before its grid is multiplied out.

    Args:
        name: its name; with the values of the axes behind it, it is the runs' variant.
        configs: its configuration files, after those of the whole file.
        arguments: its settings, after those of the whole file.
        grid: dotted key -> its values by name; all combinations run.
        variants: name -> settings that belong together; `configs` among them is a list of files.
        begin_with: name of the system whose best weights of the same seed it begins with.
        train: False = it is tested alone, with the weights of `begin_with`, or untrained.
        seeds: its seeds; () = those of the whole file.
        search: how some of its settings are searched; None = they are given.
        controls: False = it gets no cells of its own where the whole file has `controls: true`.
        cell: what its runs' variant ends in, behind the values of the axes. Systems that differ in
            their cell alone share what a search finds, which runs for the one without a cell.
        fixed: what makes it a control: settings that win over axes and what a search finds, too.
    """

    name: str
    configs: tuple[str, ...] = ()
    arguments: Settings = field(default_factory=dict)
    grid: Mapping[str, Axis] = field(default_factory=dict)
    variants: Mapping[str, Settings] = field(default_factory=dict)
    begin_with: str | None = None
    train: bool = True
    seeds: tuple[int, ...] = ()
    search: Search | None = None
    controls: bool = True
    cell: str = ""
    fixed: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Local:
    """Runs on this machine.

    Args:
        processes: runs at a time.
    """

    processes: int = 1


@dataclass(frozen=True)
class Cluster:
    """Runs on the machines of a Ray cluster, which share a file system.

    Args:
        address: of the cluster; "auto" = the one that runs here, "local" = one of this machine.
        cpus: cores of a run.
        gpus: GPUs of a run; parts of one are shared by several runs.
    """

    address: str = "auto"
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class Comparison:
    """Arguments of the comparison at the end (see `compare`).

    Args:
        metric: what systems are compared by; None = what the task monitors.
        resamples: of bootstrap and permutation.
        confidence: of the intervals.
        seed: of the resamples.
        examples: queries that are shown.
    """

    metric: str | None = None
    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    examples: int = 20


@dataclass(frozen=True)
class SweepFile:
    """A sweep, as its file says.

    Args:
        path: the file.
        name: the experiment: a folder in `runs`.
        configs: configuration files of all systems.
        arguments: settings of all systems.
        seeds: seeds of all systems that have none of their own.
        systems: what is compared, in the order of the file.
        grid: axes of all systems.
        variants: settings that belong together, of all systems.
        controls: whether controls are added for every system (`sweep.controls`).
        executor: where the runs run.
        compare: the comparison at the end; None = none.
    """

    path: Path
    name: str
    systems: tuple[System, ...]
    configs: tuple[str, ...] = ()
    arguments: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    grid: Mapping[str, Axis] = field(default_factory=dict)
    variants: Mapping[str, Settings] = field(default_factory=dict)
    controls: bool = False
    executor: Local | Cluster = Local()
    compare: Comparison | None = Comparison()


def load(path: Path | str) -> SweepFile:
    """Read and check a sweep file.

    Paths of configuration files are taken from the working directory, else from the nearest folder
    above the sweep file below which they are found; they are returned so that they can be opened.

    Raises:
        UserError: the file cannot be read, a key is unknown or has an illegal value, a list or grid
            is empty, a configuration file is not there. The message names file and key.
    """
    path = Path(path)
    top = Place(str(path), "", _content(path))
    parts = top.keys(FILE_KEYS)
    for needed in ("name", "systems"):
        if needed not in parts:
            raise top.error(f"{needed} is missing")
    seeds = parts["seeds"].seeds() if "seeds" in parts else (0,)
    shared = parts.get("search")
    return SweepFile(
        path=path,
        name=parts["name"].name(),
        systems=tuple(_system(name, part, shared) for name, part in parts["systems"].items()),
        configs=_configs(parts.get("configs"), path),
        arguments=parts["arguments"].arguments(OWN) if "arguments" in parts else {},
        seeds=seeds,
        grid=_grid(parts.get("grid")),
        variants=_variants(parts.get("variants"), path),
        controls=parts["controls"].truth() if "controls" in parts else False,
        executor=_executor(parts["executor"]) if "executor" in parts else Local(),
        compare=_compare(parts["compare"]) if "compare" in parts else Comparison(),
    )


def _content(path: Path) -> Json:
    try:
        # Values such as ${…} are the configuration's: they are passed on as they are.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError as error:
        raise UserError(f"sweep: there is no file {path}") from error
    except Exception as error:  # yaml and omegaconf have each their own for bad text
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return cast(Json, content)


def _system(name: str, place: Place, shared: Place | None) -> System:
    if not NAME.fullmatch(name):
        raise place.error(f"{name!r} cannot name a system; legal: letters, digits and . _ = + -")
    parts = {} if place.value == {} else place.keys(SYSTEM_KEYS)  # it may differ in nothing
    file = Path(place.file)
    train = parts["train"].truth() if "train" in parts else True
    begin_with = parts["begin_with"].text() if "begin_with" in parts else None
    own = {k: v for k, v in OWN.items() if train or begin_with or k != "ckpt_path"}
    if begin_with is not None:
        own["initial_weights"] = "begin_with"
    search = _search(parts.get("search"), shared) if train else None
    if not train and "search" in parts:
        raise parts["search"].error("cannot be given with train: false, for it trains")
    return System(
        name=name,
        configs=_configs(parts.get("configs"), file),
        arguments=parts["arguments"].arguments(own) if "arguments" in parts else {},
        grid=_grid(parts.get("grid")),
        variants=_variants(parts.get("variants"), file),
        begin_with=begin_with,
        train=train,
        seeds=parts["seeds"].seeds() if "seeds" in parts else (),
        search=search,
        controls=parts["controls"].truth() if "controls" in parts else True,
    )


def _configs(place: Place | None, file: Path) -> tuple[str, ...]:
    """Return the paths of configuration files, each of which is there."""
    found = []
    for part in place.listed() if place is not None else []:
        named = Path(part.text())
        tried = [Path(), *file.resolve().parents]
        there = [above / named for above in tried if (above / named).is_file()]
        if not there:
            raise part.error(
                f"there is no file {named}, neither in the working directory nor in a folder above "
                f"{file}"
            )
        found.append(str(there[0]))
    return tuple(found)


def _grid(place: Place | None) -> dict[str, Axis]:
    if place is None:
        return {}
    place.arguments(OWN)
    return {key: _axis(part) for key, part in place.items()}


def _axis(place: Place) -> Axis:
    """Return the values of an axis by name: a list of plain values, or names with any values."""
    if isinstance(place.value, Mapping):
        return {below.below(name, name).name(): below.value for name, below in place.items()}
    axis: dict[str, Json] = {}
    for part in place.listed():
        if isinstance(part.value, list | Mapping):
            raise part.error(f"give it a name, as in {{small: {shown(part.value)}}}")
        name = value_name(part.value)
        if not PART.fullmatch(name):
            raise part.error(f"cannot be part of a folder's name; legal: {{name: {part.value!r}}}")
        if name in axis:
            raise part.error(f"two values would be called {name}; legal: {{name: value, …}}")
        axis[name] = part.value
    return axis


def value_name(value: Json) -> str:
    """Return what a plain value is called in the name of a run: of a class, its last name."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str) and all(part.isidentifier() for part in value.split(".")):
        return value.rpartition(".")[2]
    return str(value)


def _variants(place: Place | None, file: Path) -> dict[str, Settings]:
    variants: dict[str, Settings] = {}
    for name, part in place.items() if place is not None else []:
        settings = part.arguments(OWN)
        if "configs" in settings:
            settings["configs"] = [*_configs(part.below("configs", settings["configs"]), file)]
        variants[part.below(name, name).name()] = settings
    return variants


def _search(place: Place | None, shared: Place | None) -> Search | None:
    """Return a system's search: its own keys, and for the others those of the whole file."""
    if place is not None and place.value is False:
        return None
    if place is None and shared is None:
        return None
    where = cast(Place, place or shared)
    parts = shared.keys(SEARCH_KEYS) if shared is not None else {}
    parts |= place.keys(SEARCH_KEYS) if place is not None else {}
    mode = parts["mode"].choice(("max", "min")) if "mode" in parts else "max"
    sampler = parts["sampler"].choice(("tpe", "random", "grid")) if "sampler" in parts else "tpe"
    for needed in ("metric", "space"):
        if needed not in parts:
            raise where.error(f"{needed} is missing")
    if sampler != "grid" and "trials" not in parts:
        raise where.error(f"trials is missing: how many settings the sampler {sampler} tries")
    parts["space"].arguments(OWN)
    space = {key: _dimension(part) for key, part in parts["space"].items()}
    for key, values in space.items():
        if sampler == "grid" and isinstance(values, Range):
            raise parts["space"].below(key, None).error("the sampler grid needs a list of values")
    return Search(
        metric=parts["metric"].text().removeprefix("val/"),
        mode=cast(Literal["max", "min"], mode),
        trials=parts["trials"].whole(1) if "trials" in parts else None,
        sampler=cast(Literal["tpe", "random", "grid"], sampler),
        at_once=parts["at_once"].whole(1) if "at_once" in parts else None,
        seeds=parts["seeds"].seeds() if "seeds" in parts else (),
        space=space,
    )


def _dimension(place: Place) -> tuple[Json, ...] | Range:
    """Return the values of a searched key, or their range."""
    if not isinstance(place.value, Mapping):
        values = [part.value for part in place.listed()]
        if any(value in values[:index] for index, value in enumerate(values)):
            raise place.error(f"a value is given twice: {shown(values)}")
        return tuple(values)
    parts = place.keys(RANGE_KEYS)
    for needed in ("low", "high"):
        if needed not in parts:
            raise place.error(f"{needed} is missing; legal: a list of values, or low and high")
    low, high = parts["low"].number(), parts["high"].number()
    log = parts["log"].truth() if "log" in parts else False
    step = parts["step"].number() if "step" in parts else None
    if not math.isfinite(low) or not math.isfinite(high) or low >= high:
        raise place.error(f"low must be less than high, got {low} and {high}")
    if log and (low <= 0 or step is not None):
        raise place.error("with log: true, low must be above 0 and there is no step")
    if step is not None and step <= 0:
        raise parts["step"].error(f"must be above 0, got {step}")
    return Range(low, high, log, step)


def _executor(place: Place) -> Local | Cluster:
    kinds = {"local": ("kind", "processes"), "ray": ("kind", "address", "cpus", "gpus")}
    parts = dict(place.items())
    kind = parts["kind"].choice(tuple(kinds)) if "kind" in parts else "local"
    place.keys(kinds[kind])
    if kind == "local":
        return Local(parts["processes"].whole(1) if "processes" in parts else 1)
    cpus = parts["cpus"].number() if "cpus" in parts else 1
    gpus = parts["gpus"].number() if "gpus" in parts else 0
    if cpus <= 0 or gpus < 0:
        raise place.error(f"cpus must be above 0 and gpus not below, got {cpus} and {gpus}")
    return Cluster(parts["address"].text() if "address" in parts else "auto", cpus, gpus)


def _compare(place: Place) -> Comparison | None:
    if isinstance(place.value, bool):
        return Comparison() if place.value else None
    parts = place.keys(COMPARE_KEYS)
    confidence = parts["confidence"].number() if "confidence" in parts else 0.95
    if not 0 < confidence < 1:
        raise parts["confidence"].error(f"must lie between 0 and 1, got {confidence}")
    return Comparison(
        metric=parts["metric"].text() if "metric" in parts else None,
        resamples=parts["resamples"].whole(1) if "resamples" in parts else 10_000,
        confidence=confidence,
        seed=parts["seed"].whole(0) if "seed" in parts else 0,
        examples=parts["examples"].whole(0) if "examples" in parts else 20,
    )
