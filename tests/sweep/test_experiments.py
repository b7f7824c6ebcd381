"""The delivered sweep files: each can be planned, and every method takes its settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from jsonargparse import Namespace

from lightning_rag.sweep.file import load
from lightning_rag.sweep.plan import Commands, Setting, parser, plan, with_controls_of

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "experiments").glob("*.yaml"))


def test_the_files_are_found() -> None:
    names = {path.stem for path in FILES}
    assert names >= {"demo", "methods", "methods_semeval2010"}
    methods = {"etrag", "dro", "ruie", "rag4re"}
    assert names >= {f"ablate_{method}" for method in methods}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse renames this method
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_can_be_planned_and_built(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed: the others differ by it alone. Data and pretrained models are not needed."""
    parsed: list[tuple[str, Namespace]] = []
    parse = Commands.parse

    def remember(self: Commands, setting: Setting, words: Sequence[str]) -> Namespace:
        config = parse(self, setting, words)
        parsed.append(("fit" if setting.system.train else "test", config))
        return config

    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    monkeypatch.setattr(Commands, "parse", remember)
    monkeypatch.chdir(REPOSITORY)
    file = with_controls_of(load(path))
    one = tuple(replace(system, seeds=()) for system in file.systems)
    runs = plan(replace(file, seeds=(0,), systems=one))
    assert len({run.configuration for run in runs}) == len(runs), "two runs are the same"
    assert file.compare is not None
    for subcommand, config in parsed:
        whole = Namespace(**{"subcommand": subcommand, subcommand: config})
        built = parser().instantiate_classes(whole)[subcommand]
        assert built["model"].k <= built["data"].num_candidates
