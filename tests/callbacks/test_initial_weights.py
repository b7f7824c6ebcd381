"""Beginning with the weights of another run, through the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from lightning_rag import cli

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"
STILL = '--optimizer.learning_rates={"generator": 1e-20, "selector": 1e-20}'


@pytest.fixture(autouse=True)
def plain_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether weights are the same but for steps at a rate of 1e-20."""
    return torch.allclose(one, other, rtol=0, atol=1e-12)


def fit(folder: Path, method: str, *flags: str, command: str = "fit", epochs: str = "") -> int:
    files = (
        CONFIGS / "base.yaml",
        CONFIGS / "data" / "synthetic_questions.yaml",
        CONFIGS / "backbone" / "tiny.yaml",
        CONFIGS / "method" / f"{method}.yaml",
        SMALL,
    )
    return cli.main(
        [
            command,
            *(part for file in files for part in ("--config", str(file))),
            *(f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")),
            f"--runs={folder / 'runs'}",
            f"--data.cache_dir={folder / 'cache'}",
            f"--model.{epochs}epochs=1",
            *(["--evaluate=false"] if command == "fit" else []),
            *flags,
        ]
    )


def weights(folder: Path, method: str, variant: str = "default") -> dict[str, torch.Tensor]:
    run = folder / "runs" / "default" / "synthetic_questions" / method / variant / "seed=0"
    state: dict[str, torch.Tensor] = torch.load(
        run / "checkpoints" / "best.ckpt", weights_only=True
    )["state_dict"]
    return {name: weight for name, weight in state.items() if not name.endswith("_extra_state")}


def test_a_run_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    assert fit(tmp_path, "no_retrieval", "--optimizer.learning_rates={generator: 0.01}") == 0
    trained = weights(tmp_path, "noretrieval")
    run = tmp_path / "runs" / "default" / "synthetic_questions" / "noretrieval" / "default"
    source = f"--initial_weights={run / 'seed=0' / 'checkpoints' / 'best.ckpt'}"

    # The same method; at a rate of almost 0 it ends with what it began with.
    assert fit(tmp_path, "no_retrieval", STILL, source, "--variant=same") == 0
    same = weights(tmp_path, "noretrieval", "same")
    assert all(equal(weight, trained[name]) for name, weight in same.items())

    # Another method takes the generator; its own selector is as its seed made it.
    dro = (STILL, "--model.warm_up_epochs=1", "--model.iterations=0")
    assert fit(tmp_path, "dro", *dro, source, "--variant=taken") == 0
    assert fit(tmp_path, "dro", *dro, "--variant=fresh") == 0
    taken, fresh = weights(tmp_path, "dro", "taken"), weights(tmp_path, "dro", "fresh")
    assert taken.keys() == fresh.keys()
    for name, weight in taken.items():
        expected = trained[name] if name.startswith("generator.") else fresh[name]
        assert equal(weight, expected), name
    assert any(not equal(trained[name], fresh[name]) for name in trained)


def test_a_test_alone_is_of_the_weights_of_another_run(tmp_path: Path) -> None:
    """Of no checkpoint of its own; what a training ends with is not replaced by what it began with.

    RUIE has a retriever besides, whose index must be of the weights that are tested.
    """

    def answers(variant: str, method: str = "noretrieval") -> tuple[str, str]:
        run = tmp_path / "runs" / "default" / "synthetic_questions" / method / variant / "seed=0"
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        text = (run / "predictions.jsonl").read_text(encoding="utf-8")
        return text, summary["configuration"]

    fast = "--optimizer.learning_rates={generator: 0.01, retriever: 0.01, reward: 0.01}"
    assert fit(tmp_path, "no_retrieval", fast, "--evaluate=true") == 0
    (best,) = tmp_path.rglob("best.ckpt")
    source = f"--initial_weights={best}"
    tested = {"command": "test"}
    assert fit(tmp_path, "no_retrieval", "--variant=untrained", **tested) == 0
    assert fit(tmp_path, "no_retrieval", "--variant=same", source, **tested) == 0
    assert answers("same")[0] == answers("default")[0] != answers("untrained")[0]
    assert answers("same")[1] != answers("untrained")[1]

    further = (fast, source, "--evaluate=true", "--variant=further")
    assert fit(tmp_path, "no_retrieval", *further) == 0
    own = best.parents[3] / "further" / "seed=0"
    of_it = f"--ckpt_path={own / 'checkpoints' / 'best.ckpt'}"
    assert fit(tmp_path, "no_retrieval", source, of_it, "--variant=given", **tested) == 0
    assert answers("given")[0] == answers("further")[0] != answers("default")[0]

    ruie = ("--model.reader_epochs=1", "--model.decoding=options", "--data.num_candidates=8")
    assert fit(tmp_path, "ruie", fast, *ruie, "--evaluate=true", epochs="distil_") == 0
    (taught,) = (path for path in tmp_path.rglob("best.ckpt") if "ruie" in path.parts)
    begun = (f"--initial_weights={taught}", "--variant=same")
    assert fit(tmp_path, "ruie", *ruie, *begun, **tested, epochs="distil_") == 0
    assert answers("same", "ruie")[0] == answers("default", "ruie")[0]


def test_what_was_trained_is_what_took_a_step(tmp_path: Path) -> None:
    """Not what the phases would train: a test alone, a phase that was never reached."""

    def trained(variant: str) -> list[str]:
        run = tmp_path / "runs" / "default" / "synthetic_questions" / "dro" / variant / "seed=0"
        content = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        assert content["phases"] == ["warm_up", "em_1"]
        found: list[str] = content["trained"]
        return found

    dro = ("--model.iterations=1", "--model.num_samples=2", "--model.train_generator=false")
    short = (*dro, "--model.warm_up_epochs=1")
    assert fit(tmp_path, "dro", *short, "--variant=none", command="test") == 0
    assert trained("none") == []
    assert fit(tmp_path, "dro", *short, "--evaluate=true") == 0
    assert trained("default") == ["generator", "selector"]
    (best,) = (path for path in tmp_path.rglob("best.ckpt") if "default" in path.parts)
    begun = f"--initial_weights={best}"
    assert fit(tmp_path, "dro", *short, begun, "--variant=begun", command="test") == 0
    assert trained("begun") == []
    of_it = f"--ckpt_path={best}"
    assert fit(tmp_path, "dro", *short, of_it, "--variant=given", command="test") == 0
    assert trained("given") == ["generator", "selector"]


def test_phases_that_were_not_reached_have_trained_nothing(tmp_path: Path) -> None:
    """RUIE's reader comes last: cut before it, the generator is what it was."""
    cut = ("--model.reader_epochs=1", "--model.distil_steps=1", "--model.reward_steps=1")
    flags = (*cut, "--data.num_candidates=8", "--model.decoding=options", "--trainer.max_steps=1")
    assert fit(tmp_path, "ruie", *flags, epochs="distil_") == 0
    (path,) = tmp_path.rglob("summary.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["phases"] == ["reward", "distil", "reader"]
    assert content["trained"] == ["reward"]


def test_bad_initial_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, "no_retrieval", f"--initial_weights={tmp_path / 'none.ckpt'}") == 1
    assert "initial_weights: there is no checkpoint" in capsys.readouterr().err
    assert fit(tmp_path, "no_retrieval") == 0
    (source,) = tmp_path.rglob("best.ckpt")
    larger = ("--generator.tiny.hidden_size=32", f"--initial_weights={source}", "--variant=b")
    assert fit(tmp_path, "no_retrieval", *larger) == 1
    message = capsys.readouterr().err
    assert "initial_weights" in message
    assert "the model's has" in message
