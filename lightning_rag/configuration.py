"""What of a configuration decides the result, as one hash: the same hash, the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

# Where files lie, what a run is called, how it was started, what it shows: none changes a result.
INDIFFERENT = frozenset(
    {
        *("runs", "experiment", "variant", "evaluate", "overwrite", "config", "verbose"),
        *("ckpt_path", "weights_only", "checkpoint_every", "initial_weights"),  # see `weights`
        *("data.root", "data.cache_dir", "data.first_stage.init_args.cache_dir"),
        *("trainer.logger", "trainer.default_root_dir", "trainer.log_every_n_steps"),
        *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler"),
        "trainer.enable_autolog_hparams",
    }
)

# Copies of what stands at the top of a configuration, and the trainer's many keys.
NOT_SHOWN = (
    *("trainer.", "data.seed", "data.first_stage.init_args.encoder."),
    *(f"model.init_args.{part}." for part in ("generator", "encoder", "optimizer")),
)


def configuration_hash(config: Mapping[str, object], *, weights: str = "") -> str:
    """Return the hash of what a run computes, without where its files lie and how it is called.

    A key whose value is null counts as not given, so that a later version of the package can add
    an argument that is null by default without making every former run another one.

    Args:
        config: the parsed configuration of a `fit` or `test`, nested.
        weights: the weights that it begins with, or tests, by a name that stays when all runs are
            moved (`weights_name`); "" for a training from its models' own weights, and for the
            test of what the run itself trained.

    Returns:
        64 hexadecimal digits.
    """
    kept = {key: value for key, value in _flat(config) if value is not None}
    if weights:
        kept["weights"] = weights
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def weights_name(checkpoint: Path | str, runs: Path | str) -> str:
    """Return a checkpoint's path below the folder of all runs; if it lies elsewhere, in full."""
    path, above = Path(checkpoint).resolve(), Path(runs).resolve()
    return str(path.relative_to(above) if path.is_relative_to(above) else path)


def hyper_parameters(config: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Return what of a configuration is worth a column in a table of runs, as flat keys.

    Each value once, with the name that it has on the command line; no keys that are null, or that
    change no result. A class counts by its name: {"model": "Etrag", "model.k": 2, …}.

    Args:
        config: the parsed configuration of a `fit` or `test`, nested.
    """
    shown: dict[str, str | int | float | bool] = {}
    for key, value in _flat(config):
        if value is None or key.startswith(NOT_SHOWN):
            continue
        name = key.removesuffix(".class_path")
        if name != key:
            value = str(value).rpartition(".")[2]
        plain = value if isinstance(value, str | int | float | bool) else str(value)
        shown[name.replace(".init_args.", ".")] = plain
    return shown


def _flat(config: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted keys with their values; a whole number is the same whether written 1 or 1.0."""
    for key, value in config.items():
        name = f"{above}{key}"
        if name in INDIFFERENT:
            continue
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    return value
