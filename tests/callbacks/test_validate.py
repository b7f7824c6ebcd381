"""A phase that is judged by figures of its own instead of answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_rag.callbacks.index_refresh import IndexRefresh
from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase
from lightning_rag.types import LossTerms, RagBatch

ROWS = torch.arange(8.0)  # validation queries, all in one batch


def judged(method: Method, monitor: str | None = "figure", **settings: object) -> Phase:
    """A phase whose figure is 4 in the first validation, 5 in the second, …"""

    def validate(batch: RagBatch) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert not method.training
        figure = batch.rows.float() + method.trainer.current_epoch
        figure[batch.rows == 0] = torch.nan
        return {"figure": figure, "nothing": torch.full_like(figure, torch.nan)}

    settings.setdefault("loss", method.loss)  # type: ignore[attr-defined]
    return Phase("one", ("first",), epochs=2, validate=validate, monitor=monitor, **settings)


def plain(method: Method) -> Phase:
    return Phase("two", ("second",), method.loss, epochs=1)  # type: ignore[attr-defined]


def test_figures_take_the_place_of_answers(fit, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "files", {})
    method, _ = fit(judged, plain, callbacks=[files])
    kept = [{k: v for k, v in point.items() if k not in ("step", "phase")} for point in files.curve]
    assert [point["phase"] for point in files.curve] == ["one", "one", "two"]
    # Rows 1 to 7: the one without a figure is not in the mean, nor is a figure that nobody has.
    assert kept[:2] == [{"figure": 4.0}, {"figure": 5.0}]
    # The next phase is judged by its answers, and what an earlier one logged is forgotten.
    assert kept[2]["accuracy"] == 0.5
    assert "figure" not in kept[2]
    # No answer was made in the first phase: of validation queries only the second phase's.
    assert method.second.tokens == 10 * (3 * 40 + 8)


def test_the_figure_chooses_the_weights(fit) -> None:
    method, _ = fit(lambda method: judged(method, mode="min"), plain)
    first = method.validations[0]
    started = method.steps[10][1]
    assert all(torch.equal(started[name], first[name]) for name in first)


def test_the_loss_can_be_monitored_beside_figures(fit) -> None:
    def loss(batch: RagBatch) -> LossTerms:
        value = method_seen[0].first(batch.rows)
        return LossTerms(value)

    method_seen: list[Method] = []

    def make(method: Method) -> Phase:
        method_seen.append(method)
        return judged(method, monitor="loss", mode="min", loss=loss)

    _, trainer = fit(make)
    assert {"val/loss", "val/figure"} <= trainer.callback_metrics.keys()


def test_no_index_is_made_for_it(fit) -> None:
    refreshed: list[str] = []

    def watching(method: Method) -> Phase:
        method.refresh_every = 0
        method.refresh_index = lambda: refreshed.append(method.phase.name)  # type: ignore[method-assign]
        return judged(method)

    fit(watching, plain, callbacks=[IndexRefresh()])
    assert refreshed == ["two"]


def test_validate_on_its_own_gives_answers(fit, data) -> None:
    method, trainer = fit(judged)
    (found,) = trainer.validate(method, datamodule=data, verbose=False)
    assert found["val/accuracy"] == 0.5
    assert "val/figure" not in found


def test_a_figure_that_nobody_has_cannot_be_monitored(fit) -> None:
    with pytest.raises(UserError, match="monitors 'val/nothing', which is none of: val/figure"):
        fit(lambda method: judged(method, monitor="nothing"))


def test_a_phase_with_figures_says_which_it_monitors() -> None:
    with pytest.raises(ValueError, match="monitors the task's; legal: one of its own"):
        Phase("one", (), lambda batch: LossTerms(ROWS), epochs=1, validate=lambda batch: {})
