"""The hash of a configuration: what changes a result changes it, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_rag import cli
from lightning_rag.configuration import (
    INDIFFERENT,
    configuration_hash,
    hyper_parameters,
    weights_name,
)

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "experiment": "default",
    "runs": "runs",
    "trainer": {"max_epochs": -1, "precision": None, "logger": None, "callbacks": None},
    "data": {"root": "/a", "fraction": 0.5, "first_stage": {"init_args": {"cache_dir": None}}},
    "model": {"init_args": {"k": 3, "rates": {"generator.model": 5e-4}, "depths": [1, 2]}},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The configuration with another value at a path, whose parts are parted by "/"."""
    config = copy.deepcopy(CONFIG)
    *above, last = path.split("/")
    place = config
    for key in above:
        place = place.setdefault(key, {})
    place[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 1),
        ("trainer/max_epochs", 3),
        ("trainer/precision", "bf16-mixed"),
        ("data/fraction", 0.25),
        ("data/name", "other"),
        ("model/init_args/k", 4),
        ("model/init_args/k", "3"),
        ("model/init_args/rates/generator.model", 6e-4),
        ("model/init_args/rates", {}),
        ("model/init_args/depths", [2, 1]),
        ("model/init_args/depths", []),
        ("model/init_args/runs", "the same name further down"),
        ("trainer/callbacks", [{"class_path": "A", "init_args": {"n": 1}}]),
    ],
)
def test_what_changes_a_result_changes_the_hash(path: str, value: object) -> None:
    assert configuration_hash(changed(path, value)) != configuration_hash(CONFIG)


@pytest.mark.parametrize("key", sorted(INDIFFERENT))
def test_what_changes_no_result_does_not(key: str) -> None:
    path = key.replace(".", "/")
    assert configuration_hash(changed(path, "another")) == configuration_hash(CONFIG)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model/init_args/k", 3.0),
        ("model/init_args/depths", [1.0, 2]),
        ("model/init_args/depths", (1, 2)),
        ("model/init_args/new", None),
    ],
)
def test_what_means_the_same_has_the_same_hash(path: str, value: object) -> None:
    assert configuration_hash(changed(path, value)) == configuration_hash(CONFIG)


def test_the_order_of_the_keys_does_not_count() -> None:
    assert configuration_hash(dict(reversed(CONFIG.items()))) == configuration_hash(CONFIG)


def test_true_is_not_one() -> None:
    one, true = changed("model/init_args/k", 1), changed("model/init_args/k", True)
    assert configuration_hash(one) != configuration_hash(true)


def test_the_weights_count() -> None:
    hashes = {configuration_hash(CONFIG, weights=w) for w in ("", "a/best.ckpt", "b/best.ckpt")}
    assert len(hashes) == 3


def test_weights_are_named_by_their_place_below_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "runs" / "a" / "best.ckpt"
    assert weights_name(inside, "runs") == "a/best.ckpt"
    assert weights_name("runs/b/../a/best.ckpt", tmp_path / "runs") == "a/best.ckpt"
    assert weights_name(tmp_path / "best.ckpt", "runs") == str(tmp_path / "best.ckpt")


class TestOfACommand:
    """`configuration_of`: the hash that a run's summary gets."""

    @pytest.fixture
    def hash_of(self, tmp_path: Path) -> Callable[..., str]:
        parser = cli.command_parser()
        config = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"

        def parse(subcommand: str, *words: str) -> str:
            command = [subcommand, "--config", str(config), f"--runs={tmp_path}", *words]
            parsed = parser.parse_args(command)[subcommand]
            return cli.configuration_of(parsed, subcommand)

        return parse

    def test_training_and_the_test_of_what_it_trained_are_one(
        self, hash_of: Callable[..., str], tmp_path: Path
    ) -> None:
        own = tmp_path / "quickstart/synthetic_relations/rag4re/default/seed=0/checkpoints"
        first = f"--initial_weights={tmp_path}/a.ckpt"
        trained = hash_of("fit", first)
        assert trained == hash_of("test", first, f"--ckpt_path={own}/best.ckpt")
        assert trained == hash_of("fit", first, "--ckpt_path=last", "--evaluate=false")
        others = [
            hash_of("fit"),
            hash_of("fit", f"--initial_weights={tmp_path}/b.ckpt"),
            hash_of("test"),  # untrained
            hash_of("test", first, f"--ckpt_path={own}/last.ckpt"),
            hash_of("test", first, f"--ckpt_path={tmp_path}/a.ckpt"),
            hash_of("fit", first, "--model.k=2"),
        ]
        assert len({trained, *others}) == 1 + len(others)
        # These weights are what is tested, however they are given.
        assert hash_of("test", first) == hash_of("test", f"--ckpt_path={tmp_path}/a.ckpt")

    def test_the_seed_counts_and_the_name_does_not(self, hash_of: Callable[..., str]) -> None:
        assert hash_of("fit") == hash_of("fit", "--variant=b", "--experiment=c", "--data.root=/d")
        assert hash_of("fit") != hash_of("fit", "--seed_everything=1")


def test_hyper_parameters() -> None:
    config = {
        "seed_everything": 2,
        "experiment": "other",
        "trainer": {"max_epochs": -1},
        "budget": {"seconds": None, "flops": 1e12},
        "generator": {"source": "tiny", "tiny": {"heads": 8}},
        "optimizer": {"learning_rates": {"generator.model": 5e-4}, "betas": (0.9, 0.999)},
        "data": {
            "seed": 2,
            "name": "made_up",
            "cache_dir": "/a",
            "first_stage": {
                "class_path": "lightning_rag.retrieval.dense.Dense",
                "init_args": {"encoder": {"source": "tiny"}, "depth": 7},
            },
        },
        "model": {
            "class_path": "lightning_rag.methods.etrag.Etrag",
            "init_args": {"k": 3, "soft": True, "generator": {"source": "tiny"}, "patience": None},
        },
    }
    assert hyper_parameters(config) == {
        "seed_everything": 2,
        "budget.flops": 1_000_000_000_000,
        "generator.source": "tiny",
        "generator.tiny.heads": 8,
        "optimizer.learning_rates.generator.model": 5e-4,
        "optimizer.betas": "[0.9, 0.999]",
        "data.name": "made_up",
        "data.first_stage": "Dense",
        "data.first_stage.depth": 7,
        "model": "Etrag",
        "model.k": 3,
        "model.soft": True,
    }
