"""Half precision with a warm-started backbone, through the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_rag import cli
from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.tiny import tiny_encoder, train_tokenizer
from lightning_rag.devices import HalfWeights
from lightning_rag.types import Prompt, Rendered

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = Path(__file__).resolve().parent / "small.yaml"
TINY = TinyConfig(vocab_size=300, hidden_size=16, heads=2, layers=1)
WORDS = ["alpha beta gamma delta", "one of them moved the other to a house"]
STEPS = {
    "rag4re": ("--model.epochs=1",),
    "etrag": ("--model.epochs=1", "--model.pool_size=8", "--model.monitor=loss"),
    "dro": ("--model.warm_up_epochs=1", "--model.iterations=1", "--model.num_samples=2"),
    "ruie": ("--model.reward_steps=1", "--model.distil_steps=1", "--model.reader_epochs=1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder checkpoint of two kilobytes."""
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TINY, WORDS)
    tiny_encoder(TINY, tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def fit(folder: Path, runs: Path, method: str, *flags: str) -> int:
    files = (
        CONFIGS / "base.yaml",
        CONFIGS / "data" / "synthetic_relations.yaml",
        CONFIGS / "backbone" / "minilm.yaml",
        CONFIGS / "method" / f"{method}.yaml",
        SMALL,
    )
    words = [
        *(part for file in files for part in ("--config", str(file))),
        *(f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")),
        *(f"--{model}.source={folder}" for model in ("generator", "encoder")),
        "--generator.decoder_layers=1",
        "--data.num_candidates=8",
        f"--runs={runs / 'runs'}",
        f"--data.cache_dir={runs / 'cache'}",
        *STEPS[method],
        *flags,
    ]
    return cli.main(["fit", *words])


def written(runs: Path, name: str) -> Any:
    (path,) = runs.rglob(name)
    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True)["state_dict"]
    return json.loads(path.read_text(encoding="utf-8"))


def floating(state: dict[str, torch.Tensor]) -> set[torch.dtype]:
    return {weight.dtype for weight in state.values() if weight.is_floating_point()}


@pytest.mark.parametrize("method", STEPS)
def test_weights_of_half_precision(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They learn, and answer; and a run goes on from its checkpoint."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    half = "--trainer.precision=bf16-true"
    assert fit(folder, tmp_path, method, half) == 0
    assert floating(written(tmp_path, "best.ckpt")) == {torch.bfloat16}
    metrics = written(tmp_path, "metrics.json")
    assert metrics["validation"]
    assert 0 <= metrics["test"]["accuracy"] <= 1
    if method == "ruie":
        assert fit(folder, tmp_path, method, half, "--ckpt_path=last") == 0


@pytest.mark.parametrize("method", ["etrag", "ruie"])
def test_products_of_half_precision(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    assert fit(folder, tmp_path, method, "--trainer.precision=bf16-mixed") == 0
    assert floating(written(tmp_path, "best.ckpt")) == {torch.float32}


def test_a_mistake_of_the_precision_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    plugin = "--trainer.plugins=[lightning.pytorch.plugins.precision.HalfPrecision]"
    assert fit(folder, tmp_path, "rag4re", "--trainer.precision=bf16-true", plugin) == 1
    assert "plugins" in capsys.readouterr().err


def test_a_warm_start_is_of_one_precision(folder: Path) -> None:
    config = GeneratorConfig(source=str(folder), decoder_layers=1, dtype="bfloat16")
    torch.manual_seed(0)
    half = build_generator(config, [])
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    decoder = half.model.decoder
    assert decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight
    torch.manual_seed(0)
    config.dtype = "float32"
    whole = build_generator(config, [])
    prompts, targets = [Prompt(Rendered(WORDS[0]))], ["one house"]
    found = half.log_likelihood(prompts, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole.log_likelihood(prompts, targets), rtol=0.02, atol=0.02)


def test_weights_are_converted_and_nothing_else() -> None:
    """Buffers stay, and so does what is packed; parameters stay the same objects."""
    module = nn.Linear(3, 2)
    module.register_buffer("index", torch.ones(4))
    module.packed = nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)
    weight = module.weight
    for precision, dtype in (("bf16-true", torch.bfloat16), ("16-true", torch.float16)):
        plugin = HalfWeights(precision)  # type: ignore[arg-type]
        assert plugin.convert_module(module) is module
        assert plugin.precision == precision
        assert module.weight is weight
        assert (module.weight.dtype, module.bias.dtype) == (dtype, dtype)
        assert module.index.dtype == torch.float32
        assert module.packed.dtype == torch.uint8
    batch = {"scores": torch.ones(2)}
    assert plugin.convert_input(batch) is batch
