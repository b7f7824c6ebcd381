"""The command line: `python -m lightning_rag.cli {fit,validate,test,predict} --config …`.

Beside these, which are the Trainer's, there are `compare RUNS… --output FOLDER`, `sweep FILE`,
`export CHECKPOINT --output FOLDER` and `request --config … --output FILE`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace, capture_parser, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.callbacks.budget import Budget, BudgetConfig
from lightning_rag.callbacks.checkpoints import InitialWeights, Replace, ResumePoint
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.dashboard import Dashboard
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.callbacks.index_refresh import IndexRefresh
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.callbacks.predictions import PredictionWriter
from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.comparison.command import main as compare
from lightning_rag.configuration import configuration_hash, hyper_parameters, weights_name
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.devices import DATA_PARALLEL, HALVES, HalfWeights, data_parallel
from lightning_rag.errors import UserError
from lightning_rag.export import export
from lightning_rag.methods.base import Method
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.preferences import request_preferences

TRACEBACK = "LIGHTNING_RAG_TRACEBACK"

log = logging.getLogger(__name__)


class Parser(LightningArgumentParser):
    """A parser that says which of several configuration files cannot be read."""

    reading: str | os.PathLike[str] | None = None

    def parse_path(
        self,
        path: str | os.PathLike[str],
        ext_vars: dict[str, str] | None = None,
        env: bool | None = None,
        defaults: bool = True,
        **settings: bool,  # jsonargparse's own, by which it calls this for --config
    ) -> Namespace:
        """Parse a configuration file."""
        self.reading = path
        try:
            parsed: Namespace = super().parse_path(path, ext_vars, env, defaults, **settings)
            return parsed
        except UnicodeDecodeError as error:
            self.error(str(error), error)
        finally:
            self.reading = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and leave with exit code 2."""
        super().error(message if self.reading is None else f"{self.reading}: {message}", ex)


class RagCLI(LightningCLI):
    """LightningCLI with the run's folder, the shared callbacks and shared backbones.

    `generator`, `encoder` and `optimizer` are written once, at the top of the configuration, and
    linked to every part that has an argument of that name, so that one backbone file serves all
    methods; `seed_everything` is the data module's seed.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what a run is called and where it goes, and link what parts share."""
        parser.add_argument("--experiment", type=str, default="default", help="Folder in runs.")
        parser.add_argument("--variant", type=str, default="default", help="Name of this setting.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--evaluate", type=bool, default=True, help="After fit, test the best weights."
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Let fit replace a run's files."
        )
        parser.add_argument(
            "--checkpoint_every", type=int, default=0, help="Steps; 0 = each epoch."
        )
        parser.add_argument(
            "--initial_weights", type=str | None, default=None, help="Checkpoint to begin with."
        )
        parser.add_argument("--budget", type=BudgetConfig, default=BudgetConfig())
        parser.add_argument("--generator", type=GeneratorConfig, default=GeneratorConfig())
        parser.add_argument("--encoder", type=EncoderConfig, default=EncoderConfig())
        parser.add_argument("--optimizer", type=OptimizerConfig, default=OptimizerConfig())
        parser.link_arguments("generator", "model.init_args.generator")
        parser.link_arguments("encoder", "model.init_args.encoder")
        parser.link_arguments("optimizer", "model.init_args.optimizer")
        parser.link_arguments("encoder", "data.first_stage.init_args.encoder")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, then check the checkpoint before anything reads it."""
        try:
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:  # ${…} that points to nothing, or to itself
            reason = str(error).splitlines()[0]
            raise UserError(f"configuration: {error.full_key}: {reason}") from error
        config = self.config[self.config.subcommand]
        folder = run_folder(config) / "checkpoints"
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = str(folder / f"{config.ckpt_path}.ckpt")
            if not Path(config.ckpt_path).exists() and (folder.parent / "estimates").is_dir():
                raise UserError(
                    f"ckpt_path: there is no checkpoint {config.ckpt_path} yet, but an estimate "
                    "that was interrupted; legal: fit without --ckpt_path, which goes on with it"
                )
        if config.ckpt_path is not None:
            _check_checkpoint(Path(config.ckpt_path), resumes=self.config.subcommand == "fit")
        if config.initial_weights is not None and (
            self.config.subcommand == "fit"
            or (self.config.subcommand == "test" and config.ckpt_path is None)
        ):
            _check_checkpoint(
                Path(config.initial_weights), resumes=False, argument="initial_weights"
            )

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Give the trainer the run's logger and the callbacks that every run has."""
        config = self.config[self.subcommand]
        folder = run_folder(config)
        rehearsed = bool(config.trainer.fast_dev_run)
        kwargs.setdefault("default_root_dir", config.trainer.default_root_dir or folder)
        own = self.config_init[self.subcommand].trainer.callbacks or []
        callbacks: list[Callback] = [*own] if isinstance(own, list) else [own]
        if not rehearsed:
            if config.trainer.logger is None:
                kwargs["logger"] = TensorBoardLogger(
                    save_dir=folder, name="", version="", default_hp_metric=False
                )
            if self.subcommand == "fit" and not config.ckpt_path:
                _check_folder(folder, config)
                callbacks.append(Replace(folder, estimates=config.overwrite))
        settings = _flat(config)
        callbacks += [CostLedger(), PhaseSchedule(folder / "checkpoints", settings)]
        callbacks += [Budget(self.config_init[self.subcommand].budget)]
        # Before the index, which is made of the weights.
        if config.initial_weights is not None and self.subcommand in ("fit", "test"):
            callbacks.append(InitialWeights(Path(config.initial_weights)))
        callbacks += [IndexRefresh(), Evaluator()]
        if not rehearsed:
            configuration = configuration_of(config, self.subcommand)
            callbacks += [Dashboard(), PredictionWriter(folder)]
            shown = hyper_parameters(config.as_dict())
            callbacks.append(RunFiles(folder, shown, configuration))
        if not rehearsed and config.trainer.enable_checkpointing is not False:
            callbacks.append(ResumePoint(folder / "checkpoints", config.checkpoint_every))
        kwargs["callbacks"] = callbacks
        if config.trainer.precision in HALVES and config.trainer.strategy in DATA_PARALLEL:
            given = self.config_init[self.subcommand].trainer.plugins or []
            half = HalfWeights(config.trainer.precision)
            kwargs["precision"] = None
            kwargs["plugins"] = [*(given if isinstance(given, list) else [given]), half]
        kwargs["use_distributed_sampler"] = False  # the data module shares its batches out itself
        try:
            trainer = super().instantiate_trainer(**kwargs)
            if trainer.world_size > 1 and config.trainer.strategy in DATA_PARALLEL:
                # Which devices there are, and so how many processes, the trainer alone knows.
                kwargs["strategy"] = data_parallel(config.trainer.strategy)
                trainer = super().instantiate_trainer(**kwargs)
            return trainer
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error

    def after_fit(self) -> None:
        """Evaluate the best weights, which fit leaves in the model, on the test split."""
        if not self.config[self.subcommand].evaluate or self.trainer.interrupted:
            return
        if not self.datamodule.splits.test:
            log.warning("there is no test split, so nothing is tested")
            return
        self.trainer.test(self.model, datamodule=self.datamodule)


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` when training begins; a `test` alone, of another run's weights, too."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: data and models may turn out not to fit, and then there is no run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is trained; how it was started or continued is no part of it."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        config = self.config.clone()
        config.ckpt_path, config.overwrite = None, False
        self._save(trainer, config)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is tested, and with whose weights, where there was no training."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        config = self.config.clone()
        config.pop("verbose")  # of `test` alone: the file is for the other subcommands too
        if not (run_folder(config) / "config.yaml").exists():
            self._save(trainer, config)

    def _save(self, trainer: Trainer, config: Namespace) -> None:
        if trainer.is_global_zero:
            folder = run_folder(config)
            folder.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                # `skip_unset`, the new name, is not known to older versions of jsonargparse. A
                # null must be written: it can differ from the default.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.parser.save(config, folder / "config.yaml", skip_none=False, overwrite=True)


def run_folder(config: Namespace) -> Path:
    """Return `<runs>/<experiment>/<data>/<method>/<variant>/seed=<n>`."""
    method = str(config.model.class_path).rsplit(".", 1)[-1].lower()
    seed = f"seed={int(config.seed_everything)}"
    parts = (config.experiment, config.data.name, method, config.variant, seed)
    return Path(config.runs).joinpath(*parts)


def configuration_of(config: Namespace, subcommand: str | None) -> str:
    """Return the hash of what a subcommand with this configuration computes, weights included."""
    checkpoint, runs = config.ckpt_path, config.runs
    weights = "" if config.initial_weights is None else weights_name(config.initial_weights, runs)
    if subcommand == "test" and checkpoint is None:
        weights = f"test of {weights}" if weights else "untrained"
    elif subcommand == "test":
        own = run_folder(config) / "checkpoints" / "best.ckpt"
        tested = weights_name(checkpoint, runs)
        weights = weights if tested == weights_name(own, runs) else f"test of {tested}"
    return configuration_hash(config.as_dict(), weights=weights)


def _check_folder(folder: Path, config: Namespace) -> None:
    """Refuse to train over a run that is there; continuing it or replacing it must be said."""
    if config.overwrite or not any((folder / "checkpoints").glob("*.ckpt")):
        return
    raise UserError(
        f"{folder} holds a run already; legal: --ckpt_path last to continue it, --overwrite true "
        "to replace it, or another --experiment, --variant or --seed_everything"
    )


def _check_checkpoint(file: Path, *, resumes: bool, argument: str = "ckpt_path") -> None:
    """Check that a checkpoint exists, is whole, and can be read, before anything relies on it."""
    if not file.is_file():
        raise UserError(f"{argument}: there is no checkpoint {file}")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        content = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # zip, zlib, struct and torch have each their own for bad bytes
        raise UserError(f"{argument}: {file} is no checkpoint, or damaged: {error}") from error
    if damaged is not None:
        raise UserError(f"{argument}: {file} is damaged (at {damaged}); use an earlier checkpoint")
    if not isinstance(content, dict) or not {"state_dict", "phase_index"} <= content.keys():
        raise UserError(
            f"{argument}: {file} is no checkpoint of a run; legal: last.ckpt, best.ckpt"
        )
    if resumes and "optimizer_states" not in content:
        raise UserError(f"{argument}: {file} holds weights only; legal to continue from: last.ckpt")


def _flat(config: Namespace) -> dict[str, str | int | float | bool]:
    """Return the configuration as flat keys with plain values."""
    flat = {}
    for key, value in config.items():
        if key.split(".")[0] in ("config", "trainer", "ckpt_path"):
            continue
        flat[key] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def _export(words: Sequence[str]) -> None:
    """Run `export`: a run's models as folders that other tools load."""
    parser = ArgumentParser(
        prog="python -m lightning_rag.cli export",
        description="Write the generator of a run, and its retriever if it has one, as folders "
        "that transformers and peft load.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", type=str, help="RUN/checkpoints/best.ckpt, with RUN/config.yaml."
    )
    parser.add_argument("--output", type=str, required=True, help="A new or empty folder.")
    parser.add_argument(
        "--merge",
        type=bool,
        default=False,
        help="Write whole weights with the LoRA adapters in them, not the adapters alone.",
    )
    config = parser.parse_args(list(words))
    _check_checkpoint(Path(config.checkpoint), resumes=False, argument="checkpoint")
    export(Path(config.checkpoint), Path(config.output), merge=config.merge)


def _request(words: Sequence[str]) -> None:
    """Run `request`: what another program needs to compute the preferences for a method."""
    options = argparse.ArgumentParser(  # which leaves what it does not know to the other parser
        prog="python -m lightning_rag.cli request",
        description="Write which candidates of the training queries RUIE's generator is to score, "
        "with prompts and answers, for another program; fit --model.preferences reads its scores. "
        "All arguments of fit are arguments of this command too.",
        allow_abbrev=False,
    )
    options.add_argument(
        "--output", required=True, help="File of JSON Lines; packed if its name ends in .gz."
    )
    own, rest = options.parse_known_args(list(words))
    parser = capture_parser(lambda: _train(None))
    made = parser.instantiate_classes(parser.parse_args(["fit", *rest])).fit
    request_preferences(made.model, made.data, Path(own.output).expanduser())


def _train(words: Sequence[str] | None, *, exit_on_error: bool = True) -> None:
    """Run a subcommand of the Trainer; None takes the process's arguments."""
    # An absolute ${…} follows a flag that overrides its target, in every subcommand.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    RagCLI(
        Method,
        RagDataModule,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_class=Parser,
        parser_kwargs={
            "parser_mode": "omegaconf+",
            # --trainer.max_epoch is a misspelt key, not a short one.
            "allow_abbrev": False,
            "exit_on_error": exit_on_error,
            "epilog": "Beside these: compare RUNS… --output FOLDER, one report on finished runs; "
            "sweep FILE, many runs from one file; export CHECKPOINT --output FOLDER, the models of "
            "a run for other tools; request --output FILE, preferences to compute elsewhere (each "
            "has --help).",
        },
        save_config_callback=RunConfig,
        save_config_kwargs={"overwrite": True},
        args=list(words) if words is not None else None,
    )


def command_parser() -> ArgumentParser:
    """Return the parser of fit, validate, test and predict; it raises ArgumentError, and lives on.

    So many commands can be checked in one process before any of them runs.
    """
    return capture_parser(lambda: _train(None, exit_on_error=False))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line on stderr and exit code 1."""
    # Of several processes the first says what all have to say.
    process = int(getattr(rank_zero_only, "rank", 0))
    said = "%(message)s" if process == 0 else f"process {process}: %(message)s"
    level = logging.INFO if process == 0 else logging.WARNING
    logging.basicConfig(level=level, format=said, stream=sys.stderr)
    # Lightning 2.6 and torchdata 0.11 call what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
    # The loaders only cut ids into batches: workers would cost more than they bring.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # The new name is not known to older versions of torch.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    # What is logged is the same in all processes.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log\\(")
    words = sys.argv[1:] if args is None else args
    try:
        if list(words[:1]) == ["export"]:
            _export(words[1:])
        elif list(words[:1]) == ["request"]:
            _request(words[1:])
        elif list(words[:1]) == ["compare"]:
            compare(words[1:])
        elif list(words[:1]) == ["sweep"]:
            # Here, because it is built on this module.
            from lightning_rag.sweep.command import main as sweep

            return sweep(words[1:])
        else:
            _train(args)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None or os.environ.get(TRACEBACK):
            raise
        where = "" if process == 0 else f"process {process}: "
        print(f"error: {where}{mistake} ({TRACEBACK}=1 shows where)", file=sys.stderr)
        return 1
    return 0


def _mistake(error: BaseException) -> BaseException | None:
    """Return what a user can mend: the error itself or its cause (jsonargparse wraps errors)."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError | MisconfigurationException):
        cause = cause.__cause__
    return cause


if __name__ == "__main__":
    sys.exit(main())
