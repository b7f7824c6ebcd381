"""A run's models as folders that other tools load."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jsonargparse import ArgumentError, ArgumentParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from lightning_rag.backbones.backbone import Backbone
from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.cross_encoder import CrossEncoder, build_cross_encoder
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.lora import merge_adapters, save_adapters
from lightning_rag.backbones.sentence_folder import write_folder
from lightning_rag.backbones.sources import resolve
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

OWN = "_encoder"
MARK = "_extra_state"  # what every backbone has in a checkpoint, whatever it is made of
IDENTITY = "torch.nn.modules.linear.Identity"
# A tiny model's tokeniser comes out of the checkpoint, in place of one trained on this.
CORPUS = ["no text of the data is needed here"]


@dataclass
class Backbones:
    """The part of a run's configuration that says what its models are."""

    generator: GeneratorConfig
    encoder: EncoderConfig
    # By group of parameters: what the method sets for one as `<group>_encoder`, such as RUIE's
    # `reward_encoder`. The others are made of `encoder`.
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)


def export(checkpoint: Path, output: Path, *, merge: bool = False) -> None:
    """Write a run's generator, and its retriever and reward model if it has them, into a folder.

    The generator with its tokeniser goes into the folder itself: whole weights for transformers'
    `from_pretrained`, or with LoRA the adapters alone, for `peft.PeftModel.from_pretrained`. Each
    encoder and cross-encoder that the run trained goes into a folder below, named as in the
    checkpoint. All of them are for transformers. An encoder that is a method's whole retriever
    (RUIE's) embeds texts as its configuration says, so its folder is one of sentence-transformers
    too; what others make of an encoder's states (ETRAG's vectors of spans) that library does not
    know. A cross-encoder's folder gives logits in its `CrossEncoder`. Any of them can be the
    `source` of an encoder. The folder is there complete or not at all.

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
    try:
        loaded = OmegaConf.load(file)
    except Exception as error:  # yaml and omegaconf have each their own for bad text
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig) or "generator" not in loaded:
        raise UserError(f"{file} is no configuration of a run: it has no key 'generator'")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--generator", type=GeneratorConfig, default=GeneratorConfig())
    parser.add_argument("--encoder", type=EncoderConfig, default=EncoderConfig())
    try:
        given: dict[str, object] = {
            name: OmegaConf.to_container(loaded[name], resolve=True)
            for name in ("generator", "encoder")
            if name in loaded
        }
        for name, settings in _own_encoders(loaded).items():
            parser.add_argument(f"--{name}", type=EncoderConfig)
            given[name] = settings
        made = parser.instantiate(parser.parse_object(given))
    except OmegaConfBaseException as error:  # its further lines are about its own objects
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error
    except ArgumentError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error
    own = {name.removesuffix(OWN): made[name] for name in given if name.endswith(OWN)}
    return Backbones(made.generator, made.encoder, own)


def _own_encoders(loaded: DictConfig) -> dict[str, object]:
    """Return the settings of the model that are named `<group>_encoder` and are not null."""
    settings = OmegaConf.select(loaded, "model.init_args")
    if not isinstance(settings, DictConfig):
        return {}
    found: dict[str, object] = {}
    for name in map(str, settings):
        if name.endswith(OWN) and isinstance(settings[name], DictConfig):
            found[name] = OmegaConf.to_container(settings[name], resolve=True)
    return found


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
            parts = prefix.rstrip(".").split(".")
            _write_encoder(config, state, prefix, folder.joinpath(*parts))
            written.append(prefix)
    others = [name for name in state if not name.startswith(tuple(written))]
    return sorted({name.split(".")[0] for name in others})


def _write_encoder(config: Backbones, state: dict[str, Tensor], prefix: str, folder: Path) -> None:
    """Write an encoder or a cross-encoder; which of them it is, the names of its weights say."""
    group = prefix.split(".")[0]
    settings = config.encoders.get(group, config.encoder)
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    built: Encoder | CrossEncoder = build_encoder(settings, CORPUS)
    if names != set(built.state_dict()):
        built = build_cross_encoder(settings, CORPUS)
    _load(built.eval(), state, prefix)
    built.tokenizer.model_max_length = settings.max_length
    if isinstance(built, CrossEncoder):
        # Without this the library's CrossEncoder gives probabilities.
        built.model.config.sentence_transformers = {"activation_fn": IDENTITY}
        if not settings.token_types:
            _leave_out_token_types(built.tokenizer)
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    if isinstance(built, Encoder) and prefix == f"{group}.":
        write_folder(folder, built.config, built.dimension)


def _leave_out_token_types(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokeniser give no token types, for the model was trained without."""
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names  # what of it is saved


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
