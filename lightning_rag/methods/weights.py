"""Whether weights of a checkpoint are those of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_rag.errors import UserError


def check_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not those of the same models.

    Args:
        ours: the state dictionary of the method.
        theirs: that of the checkpoint.
        where: what the latter came from, for errors.

    Raises:
        UserError: naming the first weights that are missing, unknown or of another shape.
    """
    change = "; configure the models (generator, encoder) and data as they were trained"
    for key in sorted(ours.keys() ^ theirs.keys()):
        what = "lacks the weights" if key in ours else "has unknown weights"
        raise UserError(f"{where} {what} {key}{change}")
    for key, weight in ours.items():
        came, expected = tuple(theirs[key].shape), tuple(weight.shape)
        if came != expected and not key.endswith("_extra_state"):  # bytes, of any length
            raise UserError(f"{where}: {key} has shape {came}, the model's has {expected}{change}")
