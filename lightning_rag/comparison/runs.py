"""Finished runs, read from the files in their folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from lightning_rag.errors import DataError, UserError
from lightning_rag.files import Json

MARKS = ("config.yaml", "summary.json", "metrics.json", "predictions.jsonl")


@dataclass(frozen=True)
class Run:
    """A finished run: what its folder says.

    Args:
        folder: where it lies.
        experiment: its experiment, as configured (`--experiment`).
        data: the name of its data.
        method: the class of its method in small letters, such as "rag4re".
        variant: its variant, as configured (`--variant`).
        seed: its seed.
        config: `config.yaml`, nested.
        test: the test metrics of `metrics.json`.
        validation: the points of the validation curve of `metrics.json`, each with `step`, `phase`
            and metrics; empty for a run that was tested only.
        summary: `summary.json`.
        rows: `predictions.jsonl`, one row a test query, in the order of the test split.
        passages: text of every passage that was retrieved for a test query, by id.
    """

    folder: Path
    experiment: str
    data: str
    method: str
    variant: str
    seed: int
    config: Mapping[str, Json]
    test: Mapping[str, float]
    validation: list[Mapping[str, Json]]
    summary: Mapping[str, Json]
    rows: list[Mapping[str, Json]]
    passages: Mapping[str, str]


@dataclass(frozen=True)
class System:
    """What is compared: a method with its settings, trained with one seed or several.

    Args:
        name: how the report calls it, unlike all others of a comparison.
        runs: its runs, by seed, each seed once.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds of its runs, ascending."""
        return tuple(run.seed for run in self.runs)


def find(paths: Iterable[Path | str]) -> list[Path]:
    """Return the folders of runs at or below `paths`, in order, each once.

    A run's folder is one with any of the files in `MARKS`.

    Raises:
        UserError: a path that is not there, is no folder, or has no run at or below it.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            what = "is no folder" if path.exists() else "does not exist"
            raise UserError(f"runs: {path} {what}; legal: folders of runs, or folders above them")
        folders = {file.parent for mark in MARKS for file in path.rglob(mark)}
        if not folders:
            raise UserError(
                f"runs: there is no run at or below {path}; a run is a folder with config.yaml, "
                "summary.json, metrics.json and predictions.jsonl"
            )
        for folder in sorted(folders, key=_natural):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def read(folder: Path) -> Run:
    """Read a run.

    Raises:
        DataError: it is unfinished or damaged, has no predictions, or was written by a version that
            did not yet record what single queries add to the metrics.
    """
    config = _config(folder)
    metrics = _object(folder / "metrics.json", f"the run is unfinished; {_go_on(folder)}")
    summary = _object(folder / "summary.json", f"the run is unfinished; {_go_on(folder)}")
    test = metrics.get("test")
    if not isinstance(test, dict) or "test" not in summary:
        raise DataError(f"{folder}: the run is unfinished: it was not tested; {_test(folder)}")
    model, data = config.get("model"), config.get("data")
    try:
        run = Run(
            folder=folder,
            experiment=str(config["experiment"]),
            data=str(cast(Mapping[str, Json], data)["name"]),
            method=str(cast(Mapping[str, Json], model)["class_path"]).rsplit(".", 1)[-1].lower(),
            variant=str(config["variant"]),
            seed=int(cast(int, config["seed_everything"])),
            config=config,
            test={name: float(cast(float, value)) for name, value in test.items()},
            validation=cast(list[Mapping[str, Json]], metrics.get("validation", [])),
            summary=summary,
            rows=_lines(folder / "predictions.jsonl", f"no predictions; {_test(folder)}"),
            passages=_passages(folder / "passages.jsonl"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: config.yaml or metrics.json is damaged: {error!r}") from error
    _check_rows(run)
    return run


def systems(runs: Sequence[Run]) -> list[System]:
    """Group runs that differ in their seed alone, in the order in which they come.

    A system is called by its method, with the variant behind it where that is not "default", or by
    a variant that begins with the method's name, as a sweep's do; and with the experiment before it
    where two systems would have the same name otherwise.

    Raises:
        UserError: two runs of one system have the same seed.
    """
    groups: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        key = (run.experiment, run.data, run.method, run.variant)
        groups.setdefault(key, []).append(run)
    found = []
    for (experiment, data, method, variant), members in groups.items():
        members.sort(key=lambda run: run.seed)
        for one, other in pairwise(members):
            if one.seed == other.seed:
                raise UserError(
                    f"runs: {one.folder} and {other.folder} are one run twice: {experiment}, "
                    f"{data}, {method}, {variant}, seed {one.seed}; give one of them alone, or "
                    "train with another --variant or --experiment"
                )
        name = _name(method, variant)
        rivals = [key for key in groups if _name(*key[2:]) == name]
        found.append(System(f"{experiment}/{name}" if len(rivals) > 1 else name, tuple(members)))
    return found


def _name(method: str, variant: str) -> str:
    if re.sub("[^a-z0-9]", "", variant.lower()).startswith(method):
        return variant
    return method if variant == "default" else f"{method}/{variant}"


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order as people do: seed=2 before seed=10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _go_on(folder: Path) -> str:
    command = "python -m lightning_rag.cli fit"
    return f"go on with it: {command} --config {folder / 'config.yaml'} --ckpt_path last"


def _test(folder: Path) -> str:
    command = "python -m lightning_rag.cli test"
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "best.ckpt"
    return f"test it: {command} --config {config} --ckpt_path {checkpoint}"


def _config(folder: Path) -> Mapping[str, Json]:
    path = folder / "config.yaml"
    if not path.is_file():
        raise DataError(f"{folder}: there is no config.yaml, so nothing says what this run is")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # yaml and omegaconf have each their own for bad text
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: expected keys with values")
    return cast(Mapping[str, Json], content)


def _object(path: Path, absent: str) -> Mapping[str, Json]:
    """Return a JSON file's content."""
    if not path.is_file():
        raise DataError(f"{path.parent}: there is no {path.name}: {absent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: expected an object, got {type(content).__name__}")
    return content


def _lines(path: Path, absent: str) -> list[Mapping[str, Json]]:
    """Return the objects of a JSONL file, one a line."""
    if not path.is_file():
        raise DataError(f"{path.parent}: there is no {path.name}: {absent}")
    rows: list[Mapping[str, Json]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError.at(path, number, f"expected an object, got {row!r}")
                rows.append(row)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError.at(path, len(rows) + 1, f"is damaged: {error}") from error
    return rows


def _passages(path: Path) -> dict[str, str]:
    """Return texts by id; a method that retrieves nothing has no such file."""
    if not path.is_file():
        return {}
    return {str(row.get("id")): str(row.get("text")) for row in _lines(path, "")}


def _check_rows(run: Run) -> None:
    path = run.folder / "predictions.jsonl"
    if not run.rows:
        raise DataError(f"{run.folder}: no predictions: {path.name} is empty; {_test(run.folder)}")
    ids: set[str] = set()
    for number, row in enumerate(run.rows, 1):
        absent = {"id", "target", "prediction", "retrieved"} - row.keys()
        if absent:
            raise DataError.at(path, number, f"is damaged: {', '.join(sorted(absent))} missing")
        if "counts" not in row:
            raise DataError(
                f"{run.folder}: its predictions do not say what each query adds to the metrics: "
                f"they were written by an older version; {_test(run.folder)}"
            )
        if str(row["id"]) in ids:
            raise DataError.at(path, number, f"is damaged: query {row['id']} occurs twice")
        ids.add(str(row["id"]))
    data = run.summary.get("data")
    split = data.get("test") if isinstance(data, dict) else None
    size = split.get("size") if isinstance(split, dict) else None
    if size != len(run.rows):
        raise DataError(
            f"{path} is damaged: {len(run.rows)} rows, but summary.json says that {size} queries "
            f"were tested; {_test(run.folder)}"
        )
    if not isinstance(run.summary.get("metrics"), dict):
        raise DataError(
            f"{run.folder}: summary.json does not say how the metrics come about: it was written "
            f"by an older version; {_test(run.folder)}"
        )
