"""Low-rank adapters on a generator, in place, and checkpoints that hold only what learns."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import GeneratorConfig, LoraConfig
from lightning_rag.backbones.quantization import (
    dequantize,
    is_quantized,
    prepare_for_training,
)
from lightning_rag.errors import UserError
from lightning_rag.functional.weights import number_of_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lightning_rag.backbones.generator import Generator

log = logging.getLogger(__name__)


@dataclass
class FrozenBase:
    """The weights under the adapters, which come from the generator's source and never change."""

    names: frozenset[str]  # as in the generator's state
    fingerprint: str  # hexadecimal
    prefix: str = ""  # of the generator, in the state that is being loaded

    def check(self, fingerprint: str, config: GeneratorConfig) -> None:
        """Refuse adapters that were trained on other weights.

        Raises:
            UserError: the fingerprints differ.
        """
        if fingerprint != self.fingerprint:
            raise UserError(
                f"generator.source is {config.source!r}, whose weights are not those that the "
                "checkpoint's adapters were trained on; legal: the generator.source of that "
                "training, unchanged"
            )


def add_adapters(generator: Generator) -> None:
    """Put adapters onto a generator, in place, as its `config.lora` says (rank above 0).

    The model keeps its class and its methods. What is frozen has `requires_grad` False. Adapters
    are drawn from torch's global random generator.

    The frozen weights of a pretrained model are left out of `state_dict()`, and its extra state
    says which they were: a checkpoint is small, and is loaded into a generator that is built from
    the same source. A tiny model's checkpoint is whole, for its weights come from nowhere else.

    Raises:
        UserError: peft is not installed, or no target is a linear layer of the model.
    """
    config = generator.config
    model = _adapted_part(generator)
    (path,) = [name for name, module in generator.named_modules() if module is model]
    targets = _targets(model, config.lora.targets)
    fingerprint = "" if config.source == "tiny" else _fingerprint(model)
    if is_quantized(model):
        prepare_for_training(model)
    _inject(model, config.lora, targets)
    if config.source != "tiny":
        learning = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        names = frozenset(f"{path}.{name}" for name in model.state_dict().keys() - learning)
        generator.frozen_base = FrozenBase(names, fingerprint)
        _leave_out_base(generator)
    sizes = [(number_of_weights(p), p.requires_grad) for p in generator.parameters()]
    log.info(
        "adapters of rank %d on %d layers (%s); %d of the generator's %d weights learn",
        config.lora.rank,
        len(targets),
        ", ".join(_last_parts(targets)),
        sum(size for size, learns in sizes if learns),
        sum(size for size, _ in sizes),
    )


def save_adapters(generator: Generator, folder: Path, base: str) -> None:
    """Write a generator's adapters into a folder as the peft library reads them.

    `peft.PeftModel.from_pretrained(model, folder)` puts them onto the model of `base`.

    Args:
        generator: a generator with adapters on its whole model.
        folder: where `adapter_config.json` and `adapter_model.safetensors` go.
        base: folder or Hub id of the model under the adapters.
    """
    import peft
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    model = generator.model
    config: peft.LoraConfig = copy.copy(model.peft_config["default"])  # type: ignore[assignment]
    config.base_model_name_or_path = base
    decoder_only = generator.config.architecture == "decoder-only"
    config.task_type = peft.TaskType.CAUSAL_LM if decoder_only else peft.TaskType.SEQ_2_SEQ_LM
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules or ())
    config.save_pretrained(str(folder))
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    # Names begin as in a PeftModel, which this model is not: its adapters are in place.
    weights = {f"base_model.model.{name}": weight.contiguous() for name, weight in state.items()}
    save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


@torch.no_grad()
def merge_adapters(generator: Generator) -> None:
    """Add the adapters' products B A to the weights under them, in place: a model without adapters.

    4-bit weights become, before that, the values they stand for: those that the adapters were
    trained on, and not the source's.
    """
    from peft.tuners.lora import LoraLayer

    part = _adapted_part(generator)
    changes: dict[str, Tensor] = {}
    for name, layer in [*part.named_modules()]:
        if isinstance(layer, LoraLayer):
            # That of linear layers, which alone have adapters here.
            changes[name] = layer.get_delta_weight("default")  # type: ignore[attr-defined]
            part.set_submodule(name, layer.get_base_layer())
    if is_quantized(part):
        dequantize(part)
    for name, change in changes.items():
        weight = part.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.data = (weight.float() + change).to(weight.dtype)
    del part.peft_config
    generator.frozen_base = None


def _adapted_part(generator: Generator) -> PreTrainedModel:
    """Return what gets adapters: the model, or the encoder of a warm start."""
    model = generator.model
    if generator.config.decoder_layers is not None:
        model = model.get_encoder()  # the decoder is fresh, and must learn whole
    return model


def _inject(model: PreTrainedModel, config: LoraConfig, targets: list[str]) -> None:
    """Replace linear layers by themselves with adapters, and freeze all other weights."""
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"generator.lora.rank is {config.rank}, which needs the package peft: "
            f"pip install 'lightning_rag[lora]' ({error})"
        ) from error
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # an int by its hint, a factor in use
        lora_dropout=config.dropout,
        target_modules=targets,
        # GPT-2 keeps its weights transposed, in a class of its own.
        fan_in_fan_out=not isinstance(model.get_submodule(targets[0]), nn.Linear),
        bias="none",
    )
    peft.inject_adapter_in_model(adapters, model)
    for weight in model.parameters():
        if weight.requires_grad:
            # In the base's bfloat16 or float16 small steps of training would vanish.
            weight.data = weight.data.float()


def _targets(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the linear layers that get adapters.

    The output layer is left out: it is as large as the vocabulary, and often one with the input
    embeddings.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    if wanted is None:
        return linear
    endings = tuple(f".{name}" for name in wanted)
    found = [name for name in linear if f".{name}".endswith(endings)]
    if not found:
        raise UserError(
            f"generator.lora.targets is {list(wanted)}, and none of them is a linear layer of this "
            f"model; legal: {', '.join(_last_parts(linear))}, or null for all"
        )
    return found


def _last_parts(names: Sequence[str]) -> list[str]:
    """Return the last parts of dotted names, each once."""
    return sorted({name.rpartition(".")[2] for name in names})


def _fingerprint(model: PreTrainedModel) -> str:
    """Hash a model's weights, before they are frozen and cast for training.

    They are hashed as bfloat16: the precision that they are loaded in may change between training
    and use. Of quantised weights the codes are hashed; their scales come from sums, whose last bits
    are not the same on all machines.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        kept = weight.detach().cpu()
        if kept.is_floating_point():
            kept = kept.to(torch.bfloat16)
        digest.update(kept.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _leave_out_base(generator: Generator) -> None:
    """Leave the frozen weights out of the generator's state, and do not miss them there."""
    generator.register_state_dict_post_hook(_drop_base)  # type: ignore[no-untyped-call]
    generator.register_load_state_dict_pre_hook(_note_prefix)  # type: ignore[no-untyped-call]
    generator.register_load_state_dict_post_hook(_miss_no_base)  # type: ignore[no-untyped-call]


# Functions, not closures or methods: a copy of the generator must not act on the original.


def _drop_base(
    generator: Generator, state: dict[str, Tensor], prefix: str, metadata: dict[str, object]
) -> None:
    """Take the frozen weights out of a state."""
    if generator.frozen_base is not None:
        for name in generator.frozen_base.names:
            state.pop(prefix + name, None)


def _note_prefix(
    generator: Generator,
    state: dict[str, Tensor],
    prefix: str,
    metadata: dict[str, object],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Keep what the generator is called in a state, which the hook after loading is not told."""
    if generator.frozen_base is not None:
        generator.frozen_base.prefix = prefix


def _miss_no_base(generator: Generator, keys: tuple[list[str], list[str]]) -> None:
    """Take the frozen weights off the list of missing ones."""
    base = generator.frozen_base
    if base is not None:
        left_out = {base.prefix + name for name in base.names}
        keys[0][:] = [name for name in keys[0] if name not in left_out]
