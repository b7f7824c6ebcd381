"""A run's models as folders that other tools load."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from lightning_rag.backbones.backbone import Backbone
from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.lora import merge_adapters, save_adapters
from lightning_rag.backbones.sources import resolve
from lightning_rag.errors import UserError

log = logging.getLogger(__name__)

MARK = "_extra_state"  # what every backbone has in a checkpoint, whatever it is made of
# A tiny model's tokeniser comes out of the checkpoint, in place of one trained on this.
CORPUS = ["no text of the data is needed here"]


@dataclass
class Backbones:
    """The part of a run's configuration that says what its models are."""

    generator: GeneratorConfig
    encoder: EncoderConfig


def export(checkpoint: Path, output: Path, *, merge: bool = False) -> None:
    """Write a run's generator, and its retriever if it has one, into a folder.

    The generator with its tokeniser goes into the folder itself: whole weights for transformers'
    `from_pretrained`, or with LoRA the adapters alone, for `peft.PeftModel.from_pretrained`. Each
    encoder that the run trained goes into a folder below, named as in the checkpoint. The folder is
    there complete or not at all.

    Args:
        checkpoint: `RUN/checkpoints/<name>.ckpt`; `RUN/config.yaml` says what it is.
        output: a folder that is empty or not there.
        merge: write whole weights that the adapters are added to.

    Raises:
        UserError: no `config.yaml`, or one of other models; a folder that is not empty; a `merge`
            that does not fit the generator.
    """
    config = read_config(checkpoint.absolute().parent.parent / "config.yaml")
    _check_merge(config.generator, merge)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} is not empty; legal: a new folder, or an empty one")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    state: dict[str, Tensor] = content["state_dict"]
    temporary = output.absolute().with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        left_out = _write(config, state, temporary, merge=merge)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if left_out:
        log.info("not exported, for no other tool knows them: %s", ", ".join(left_out))
    log.info("exported to %s", output)


def read_config(file: Path) -> Backbones:
    """Return what the models of a run are.

    Args:
        file: the run's `config.yaml`.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    if not file.is_file():
        raise UserError(
            f"there is no {file}, which says what the checkpoint is; legal: a checkpoint in its "
            "run's folder, RUN/checkpoints/best.ckpt beside RUN/config.yaml"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--generator", type=GeneratorConfig, default=GeneratorConfig())
    parser.add_argument("--encoder", type=EncoderConfig, default=EncoderConfig())
    try:
        loaded = OmegaConf.load(file)
    except Exception as error:  # yaml and omegaconf have each their own for bad text
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig) or "generator" not in loaded:
        raise UserError(f"{file} is no configuration of a run: it has no key 'generator'")
    names = [name for name in ("generator", "encoder") if name in loaded]
    try:
        parts = {name: OmegaConf.to_container(loaded[name], resolve=True) for name in names}
        made = parser.instantiate(parser.parse_object(parts))
    except OmegaConfBaseException as error:  # its further lines are about its own objects
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error
    except ArgumentError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error
    return Backbones(made.generator, made.encoder)


def _check_merge(config: GeneratorConfig, merge: bool) -> None:
    """Refuse to merge what has no adapters, and adapters whose base nobody else has."""
    if merge and config.lora.rank == 0:
        raise UserError(
            "merge is true, and the run's generator has no adapters (generator.lora.rank is 0), so "
            "its weights are written whole in any case; legal: false"
        )
    if merge or config.lora.rank == 0:
        return
    for kind, is_it in (
        ("a tiny model, whose base is in the checkpoint alone", config.source == "tiny"),
        ("a warm start, whose decoder learnt whole", config.decoder_layers is not None),
    ):
        if is_it:
            raise UserError(
                f"merge is false, and the run's generator is {kind}: adapters alone would not be "
                "enough; legal: true"
            )


def _write(config: Backbones, state: dict[str, Tensor], folder: Path, *, merge: bool) -> list[str]:
    """Write all models into a folder; return the names of groups that are left out."""
    generator = build_generator(config.generator, CORPUS).eval()
    _load(generator, state, "generator.")
    if merge:
        merge_adapters(generator)
    if config.generator.lora.rank and not merge:
        source = resolve(config.generator.source)
        base = str(Path(source).absolute()) if Path(source).is_dir() else source
        save_adapters(generator, folder, base)
    else:
        generator.model.save_pretrained(folder)
    generator.tokenizer.save_pretrained(folder)
    written = ["generator."]
    for name in sorted(state):
        prefix = name.removesuffix(MARK)
        if prefix != name and prefix != "generator.":
            encoder = build_encoder(config.encoder, CORPUS).eval()
            _load(encoder, state, prefix)
            below = folder.joinpath(*prefix.rstrip(".").split("."))
            encoder.model.save_pretrained(below)
            encoder.tokenizer.save_pretrained(below)
            written.append(prefix)
    others = [name for name in state if not name.startswith(tuple(written))]
    return sorted({name.split(".")[0] for name in others})


def _load(backbone: Backbone, state: dict[str, Tensor], prefix: str) -> None:
    """Give a backbone its weights, and a tiny one its tokeniser."""
    own = {
        name.removeprefix(prefix): weight
        for name, weight in state.items()
        if name.startswith(prefix)
    }
    try:
        backbone.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the checkpoint's weights {prefix}* do not fit the models that config.yaml describes "
            f"({reason}); legal: the config.yaml that the run wrote"
        ) from error
