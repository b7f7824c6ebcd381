"""4-bit weights under adapters: values, training, checkpoints, and what is refused."""

import copy
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import torch

from lightning_rag.backbones.config import (
    GeneratorConfig,
    LoraConfig,
    QuantizationConfig,
    TinyConfig,
)
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.lora import merge_adapters
from lightning_rag.errors import UserError

TESTS = Path(__file__).resolve().parents[1]
CONFIGS = TESTS.parent / "configs"
TINY = TinyConfig(vocab_size=300, hidden_size=64, heads=4)
LORA = LoraConfig(rank=2, dropout=0.0)
NF4 = QuantizationConfig("nf4")
KINDS = ["t5", "llama", "warm"]
# Dettmers et al. 2023, appendix E: the 16 values of NF4.
VALUES = (
    *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, save_models):
    """Local folders with a model each, and one with other weights in the linear layers alone."""
    root = tmp_path_factory.mktemp("models")
    save_models(root, TINY)
    config = GeneratorConfig(source=str(root / "llama"), architecture="decoder-only")
    other = build_generator(config, ())
    with torch.no_grad():
        other.model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    other.model.save_pretrained(root / "other")
    other.tokenizer.save_pretrained(root / "other")
    return root


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(folders):
    def build(kind, quantization=NF4, source=None, lora=LORA, **settings):
        config = GeneratorConfig(
            source=str(folders / (source or kind)),
            architecture="encoder-decoder" if kind != "llama" else "decoder-only",
            decoder_layers=1 if kind == "warm" else None,
            lora=lora,
            quantization=quantization,
            **settings,
        )
        torch.manual_seed(0)
        return build_generator(config, []).eval()

    return build


def learning(generator):
    return {name: p for name, p in generator.named_parameters() if p.requires_grad}


def quantized(generator):
    """The 4-bit layers by their names in the model without adapters."""
    import bitsandbytes

    return {
        name.removesuffix(".base_layer"): module
        for name, module in generator.model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }


def values(layer):
    """What a 4-bit layer's codes stand for, as the library says."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def nearest(weight):
    """The nearest NF4 value of each weight, by the largest weight of its 64."""
    blocks = weight.float().reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(VALUES)
    return (table[(blocks / scale)[:, :, None].sub(table).abs().argmin(-1)] * scale).view_as(weight)


def train(generator, prompts, targets, steps, optimizer=None):
    generator.train()
    optimizer = optimizer or torch.optim.AdamW(learning(generator).values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        # A fresh decoder has dropout, drawn from the step's number as methods do.
        torch.manual_seed(next((int(s["step"]) for s in optimizer.state.values()), 0))
        loss = -generator.log_likelihood(prompts, targets, reduction="mean").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    generator.eval()
    return losses, optimizer


def written(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file


def read(file):
    file.seek(0)
    return torch.load(file, weights_only=True)


def reached(generator, prompts, targets):
    """The gradients of what learns, in training."""
    torch.manual_seed(5)
    generator.train().zero_grad()
    generator.log_likelihood(prompts, targets).sum().backward()
    gradients = {name: p.grad.clone() for name, p in learning(generator).items()}
    generator.eval()
    return gradients


class TestWeights:
    @pytest.mark.parametrize("double", [False, True])
    def test_they_are_the_papers_nf4(self, make, kind, double):
        whole = make(kind, QuantizationConfig(), lora=LoraConfig())
        layers = quantized(make(kind, QuantizationConfig("nf4", double=double)))
        assert len(layers) >= 10
        for name, layer in layers.items():
            weight = whole.model.get_submodule(name).weight
            expected = nearest(weight)
            # A scale that is itself quantised has 8 bits.
            error = (values(layer) - expected).abs().max() / expected.abs().max()
            assert error < (0.02 if double else 1e-5)
            assert (error > 1e-5) == double
            assert layer.weight.dtype == torch.uint8
            assert layer.weight.numel() == weight.numel() / 2

    def test_all_others_are_float32(self, make, kind):
        generator = make(kind, dtype="bfloat16")
        kinds = {p.dtype for p in generator.parameters() if p.dtype != torch.uint8}
        if kind == "warm":  # what stands on the quantised encoder is the decoder's own
            kinds = {p.dtype for p in generator.model.encoder.parameters()} - {torch.uint8}
        assert kinds == {torch.float32}
        head = generator.model.get_output_embeddings()
        assert type(head) is torch.nn.Linear

    @torch.no_grad()
    def test_the_products_are_those_of_the_values(self, make, prompts, targets):
        """The whole model's outputs, with every 4-bit weight replaced by what it stands for."""
        for kind in ("t5", "llama"):
            generator, plain = make(kind), make(kind, QuantizationConfig(), lora=LoraConfig())
            exact = plain.log_likelihood(prompts, targets)
            for name, layer in quantized(generator).items():
                plain.model.get_submodule(name).weight.copy_(values(layer))
            ours = generator.log_likelihood(prompts, targets)
            torch.testing.assert_close(ours, plain.log_likelihood(prompts, targets))
            assert not torch.allclose(ours, exact, atol=1e-4)

    @torch.no_grad()
    def test_compute_type_and_kind_of_4_bits(self, make, prompts, targets):
        ours = {
            settings: make("llama", QuantizationConfig(*settings)).log_likelihood(prompts, targets)
            for settings in (
                ("nf4", True, "float32"),
                ("nf4", True, "bfloat16"),
                ("fp4", True, "float32"),
            )
        }
        reference, rough, other = ours.values()
        assert 0 < (reference - rough).abs().max() < 0.5
        assert not torch.allclose(reference, other, atol=1e-3)


class TestTraining:
    def test_learns_and_leaves_the_base_alone(self, make, kind, prompts, targets):
        generator = make(kind)
        before = {n: p.clone() for n, p in generator.named_parameters() if not p.requires_grad}
        losses, _ = train(generator, prompts, targets, 12)
        assert losses[-1] < losses[0] - 0.1
        after = dict(generator.named_parameters())
        assert any(weight.dtype == torch.uint8 for weight in before.values())
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        names = {n for n in learning(generator) if "lora_" not in n}
        assert all(name.startswith("model.decoder") for name in names)
        assert bool(names) == (kind == "warm")

    def test_an_evaluation_leaves_the_gradient_alone(self, make, kind, prompts, targets, options):
        """bitsandbytes repacks weights in evaluation on some CPUs, and then they have none."""
        generator = make(kind)
        train(generator, prompts, targets, 1)  # where B is 0, A has no gradient
        before = reached(generator, prompts, targets)
        with torch.no_grad():
            scores = generator.log_likelihood(prompts, targets)
            generator.choose(prompts, options)
            generator.generate(prompts)
        after = reached(generator, prompts, targets)
        assert all(torch.equal(after[name], gradient) for name, gradient in before.items())
        assert all(g.any() for name, g in before.items() if "lora_" in name)
        with torch.no_grad():  # and training leaves evaluation alone
            assert torch.equal(generator.log_likelihood(prompts, targets), scores)

    def test_the_gradient_reaches_a_soft_prompt(self, make, kind, prompts, targets):
        generator = make(kind)
        soft = torch.randn(3, 2, TINY.hidden_size, requires_grad=True)
        generator.train().log_likelihood(prompts, targets, soft_prompt=soft).sum().backward()
        assert soft.grad.any(dim=-1).all()

    @pytest.mark.parametrize("quantization", [QuantizationConfig(), NF4], ids=["plain", "nf4"])
    def test_gradient_checkpointing_changes_no_number(
        self, make, kind, quantization, prompts, targets, options
    ):
        plain = make(kind, quantization)
        saving = make(kind, quantization, gradient_checkpointing=True)
        kept = [0, 0]
        for number, generator in enumerate((plain, saving)):

            def count(tensor, number=number):
                kept[number] += tensor.numel()
                return tensor

            train(generator, prompts, targets, 1)
            generator.train()
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                generator.log_likelihood(prompts, targets)
        ours, theirs = (reached(g, prompts, targets) for g in (plain, saving))
        for name, gradient in theirs.items():
            torch.testing.assert_close(gradient, ours[name])
        assert kept[1] < 0.8 * kept[0]
        # The trie needs caches, which recomputed activations do not have.
        saving.load_state_dict(plain.state_dict())  # sums of gradients differ in their last bits
        scores = []
        for generator in (plain, saving):
            torch.manual_seed(6)
            scores.append(generator.train().choose(prompts, options))
        assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))


class TestCheckpoints:
    def test_saved_and_continued_is_uninterrupted(self, make, kind, prompts, targets):
        whole = make(kind)
        train(whole, prompts, targets, 4)
        first = make(kind)
        _, optimizer = train(first, prompts, targets, 2)
        file = written({"weights": first.state_dict(), "optimizer": optimizer.state_dict()})
        second = make(kind)
        content = read(file)
        assert second.load_state_dict(content["weights"]) == ([], [])
        again = torch.optim.AdamW(learning(second).values(), lr=1.0)
        again.load_state_dict(content["optimizer"])
        train(second, prompts, targets, 2, again)
        assert learning(second).keys() == learning(whole).keys()
        for name, weight in learning(second).items():
            assert torch.equal(weight, learning(whole)[name]), name
        assert second.fingerprint() == whole.fingerprint() != first.fingerprint()

    def test_they_hold_what_learns_alone(self, make, kind):
        generator = make(kind)
        state = generator.state_dict()
        assert set(learning(generator)) <= state.keys()
        assert not [name for name in state if "absmax" in name or "quant" in name]
        learned = sum(p.numel() * p.element_size() for p in learning(generator).values())
        numbers = written({name: torch.zeros(1) for name in state}).getbuffer().nbytes
        size = written(dict(state)).getbuffer().nbytes
        buffers = sum(b.numel() * b.element_size() for b in generator.model.buffers())
        assert abs(size - numbers - learned) <= 200 + 64 * len(state) + buffers

    def test_another_base_is_refused(self, make):
        state = make("llama").state_dict()
        make("llama").load_state_dict(state)
        make("llama", QuantizationConfig("nf4", double=False)).load_state_dict(state)
        for other in (
            make("llama", source="other"),
            make("llama", QuantizationConfig("fp4")),
            make("llama", QuantizationConfig()),
        ):
            with pytest.raises(UserError, match="adapters were trained on"):
                other.load_state_dict(state)

    def test_a_copy_has_its_own(self, make, prompts, targets):
        generator = make("llama")
        start = generator.fingerprint()
        train(copy.deepcopy(generator), prompts, targets, 1)
        assert generator.fingerprint() == start


class TestMerging:
    @torch.no_grad()
    @pytest.mark.parametrize("quantization", [QuantizationConfig(), NF4], ids=["plain", "nf4"])
    @pytest.mark.parametrize("targets_", [None, ["q", "v", "v_proj", "value"]], ids=["all", "some"])
    def test_the_outputs_stay(self, make, kind, quantization, targets_, prompts, targets):
        generator = make(kind, quantization, lora=LoraConfig(rank=2, targets=targets_))
        start = generator.log_likelihood(prompts, targets)
        with torch.no_grad():
            for name, weight in learning(generator).items():
                weight.add_(torch.randn_like(weight), alpha=0.2 * ("lora_" in name))
        trained = generator.log_likelihood(prompts, targets)
        merge_adapters(generator)
        merged = generator.log_likelihood(prompts, targets)
        moved = (trained - start).abs().max()
        assert (merged - trained).abs().max() < 0.05 * moved
        assert moved > 1e-3
        assert not quantized(generator)
        names = list(generator.state_dict())
        assert not [n for n in names if "lora" in n or "base_layer" in n or "absmax" in n]
        assert any(name.endswith("weight") for name in names)


class TestRefused:
    def test_nothing_that_could_learn(self, make):
        with pytest.raises(
            UserError, match=r"type is 'nf4', and 4-bit.*legal: generator.lora.rank"
        ):
            make("t5", lora=LoraConfig())

    def test_a_tiny_model(self, corpus):
        config = GeneratorConfig(lora=LORA, quantization=NF4)
        with pytest.raises(UserError, match=r"source is 'tiny'.*legal: a pretrained source"):
            build_generator(config, corpus)

    def test_an_unknown_kind(self, make):
        with pytest.raises(UserError, match=r"type is 'int8'; legal: none, nf4, fp4"):
            make("t5", QuantizationConfig("int8"))

    def test_without_bitsandbytes(self, make, monkeypatch):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(UserError, match=r"pip install 'lightning_rag\[qlora\]'"):
            make("t5")
        make("t5", QuantizationConfig())

    def test_a_source_that_is_quantised_already(self, make, tmp_path, prompts, targets):
        generator = make("llama")
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        AutoModelForCausalLM.from_pretrained(
            generator.config.source, quantization_config=settings, device_map={"": "cpu"}
        ).save_pretrained(tmp_path)
        generator.tokenizer.save_pretrained(tmp_path)
        config = GeneratorConfig(source=str(tmp_path), architecture="decoder-only")
        with pytest.raises(
            UserError, match=r"has quantised weights.*legal with it: .*rank above 0"
        ):
            build_generator(config, [])
        config.lora = LORA
        losses, _ = train(build_generator(config, []), prompts, targets, 5)
        assert losses[-1] < losses[0]

    def test_checkpointing_that_the_model_cannot_do(self, make, monkeypatch):
        from transformers import LlamaForCausalLM

        monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
        with pytest.raises(UserError, match=r"LlamaForCausalLM cannot.*legal: false"):
            make("llama", gradient_checkpointing=True)

    @pytest.mark.parametrize(
        "word", ["type=int4", "double=x", "compute=float8", "bits=4", "type=null"]
    )
    def test_bad_values_of_flags(self, word):
        parser = jsonargparse.ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
        parser.add_argument("--generator", type=GeneratorConfig, default=GeneratorConfig())
        with pytest.raises(jsonargparse.ArgumentError):
            parser.parse_args([f"--generator.quantization.{word}"])
        good = ["--generator.quantization.type=nf4", "--generator.quantization.compute=bfloat16"]
        made = parser.instantiate(parser.parse_args(good)).generator.quantization
        assert made == QuantizationConfig("nf4", True, "bfloat16")


def test_killed_and_resumed_ends_with_the_same_weights(folders, tmp_path):
    """By the command line: with SIGKILL between two checkpoints, after a validation."""
    words = [
        *("fit", "--config", "base", "--config", "data/synthetic_relations"),
        *("--config", "backbone/tiny", "--config", "method/no_retrieval", "--config", "small"),
        *("--data.reader.init_args.train=40", "--data.reader.init_args.validation=8"),
        *("--data.reader.init_args.test=8", "--model.epochs=2", "--checkpoint_every=3"),
        *(f"--generator.source={folders / 't5'}", "--generator.lora.rank=2"),
        *("--generator.quantization.type=nf4", "--generator.gradient_checkpointing=true"),
    ]
    files = {"small": TESTS / "small.yaml"}
    words = [
        str(files.get(word, CONFIGS / f"{word}.yaml")) if before == "--config" else word
        for before, word in zip(["", *words], words, strict=False)
    ]

    def start(name, *more):
        path = os.pathsep.join([str(TESTS / "methods"), str(TESTS.parent)])
        command = [*words, f"--runs={tmp_path / name}", *more]
        return subprocess.run(
            [sys.executable, "-m", "lightning_rag.cli", *command],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    kill = ("--trainer.callbacks+=interruption.KillAt", "--trainer.callbacks.init_args.step=8")
    done = start("whole")
    assert done.returncode == 0, done.stderr
    killed = start("killed", *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = start("killed", "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("last.ckpt", "best.ckpt"):
        states = []
        for run in ("whole", "killed"):
            (path,) = (tmp_path / run).rglob(name)
            states.append(torch.load(path, weights_only=True)["state_dict"])
        assert states[0].keys() == states[1].keys()
        assert all("lora_" in key for key in states[0] if not key.endswith("_extra_state"))
        assert all(torch.equal(weight, states[1][key]) for key, weight in states[0].items())
    # Its files count a 4-bit weight as the value that it stands for, not as half a byte.
    config = GeneratorConfig(source=str(folders / "t5"), lora=LORA)
    expected = sum(p.numel() for p in build_generator(config, []).parameters())
    (summary,) = (tmp_path / "whole").rglob("summary.json")
    assert json.loads(summary.read_text())["parameters"]["generator"] == expected
