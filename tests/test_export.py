"""`export`: what transformers and peft load from it gives the outputs of the run's own models."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

from lightning_rag import cli
from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.tiny import tiny_encoder, train_tokenizer
from lightning_rag.methods.base import Method
from lightning_rag.types import Rendered

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
TINY = TinyConfig(vocab_size=300, hidden_size=64, heads=4, layers=1)
TEXTS = ["alba borks cimo", "the company owns"]
LORA = ("--generator.lora.rank=2",)
NF4 = (*LORA, "--generator.quantization.type=nf4")
DECODER = ("--generator.architecture=decoder-only", "--generator.passages=concatenate")
LLAMA = ("--generator.source={root}/llama", *DECODER)
WARM = ("--generator.source={root}/encoder", "--generator.decoder_layers=1")
T5 = ("--generator.source={root}/t5",)
KINDS: dict[str, tuple[str, ...]] = {
    "tiny t5": (),
    "tiny llama": DECODER,
    "tiny lora": LORA,
    "warm": WARM,
    "warm lora": (*WARM, *LORA),
    "warm nf4": (*WARM, *NF4),
    "t5 lora": (*T5, *LORA),
    "t5 nf4": (*T5, *NF4),
    "llama lora": (*LLAMA, *LORA, "--generator.lora.targets=[q_proj,v_proj]"),
    "llama nf4": (*LLAMA, *NF4),
    "etrag": ("--config", str(CONFIGS / "method" / "etrag.yaml"), "--model.k=1"),
}
TRAINED = [kind for kind in KINDS if "lora" in kind or "nf4" in kind]

Train = Callable[[str], tuple[Path, Method]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a generator of some kind by the command line; return its checkpoint and the method."""
    root = tmp_path_factory.mktemp("exports")
    corpus = ["alba borks cimo and delo borks fenu : owner, the company owns it"] * 3
    torch.manual_seed(0)
    for name, architecture in (("t5", "encoder-decoder"), ("llama", "decoder-only")):
        config = GeneratorConfig(architecture=architecture, tiny=TINY)
        generator = build_generator(config, corpus)
        generator.model.save_pretrained(root / name)
        generator.tokenizer.save_pretrained(root / name)
    tokenizer = train_tokenizer(TINY, corpus)
    tiny_encoder(TINY, tokenizer).save_pretrained(root / "encoder")
    tokenizer.save_pretrained(root / "encoder")
    files = ("base", "data/synthetic_relations", "backbone/tiny", "method/no_retrieval")
    base = [part for name in files for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    small = [
        *("--config", str(HERE / "small.yaml"), "--data.reader.init_args.train=16"),
        *("--data.reader.init_args.validation=8", "--data.reader.init_args.test=8"),
    ]
    done: dict[str, tuple[Path, Method]] = {}

    def run(kind: str) -> tuple[Path, Method]:
        if kind not in done:
            made: list[cli.RagCLI] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                patch.setattr(sys, "argv", ["lightning_rag"])
                patch.setattr(cli.RagCLI, "after_fit", lambda self: made.append(self))
                own = [word.replace("{root}", str(root)) for word in KINDS[kind]]
                rates = "{generator: 0.05, retriever: 0.001, projection: 0.001}"
                words = [*own, "--model.epochs=1", f"--runs={kind}"]
                words.append(f"--optimizer.learning_rates={rates}")
                assert cli.main(["fit", *base, *small, *words]) == 0
            (checkpoint,) = (root / kind).rglob("best.ckpt")
            done[kind] = checkpoint, made[0].model.eval()
        return done[kind]

    return run


def export(checkpoint: Path, output: Path, *more: str) -> int:
    return cli.main(["export", str(checkpoint), f"--output={output}", *more])


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """The logits of some tokens; 4-bit layers compute as in training, on every kind of CPU."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    inputs = {"input_ids": torch.tensor([[5, 60, 70, 80], [90, 100, 110, 120]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[2, 61, 71], [2, 91, 101]])
    result: torch.Tensor = model.eval()(**inputs).logits
    return result


def whole_class(kind: str) -> type:
    if "warm" in kind:
        return EncoderDecoderModel
    return AutoModelForCausalLM if "llama" in kind else AutoModelForSeq2SeqLM


def check_tokenizer(folder: Path, method: Method) -> None:
    ours, theirs = method.generator.tokenizer, AutoTokenizer.from_pretrained(folder)
    assert theirs(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]
    assert theirs.eos_token_id == ours.eos_token_id


@pytest.mark.parametrize("kind", ["tiny t5", "tiny llama", "warm"])
def test_whole_weights(train: Train, tmp_path: Path, kind: str) -> None:
    checkpoint, method = train(kind)
    assert export(checkpoint, tmp_path / "out") == 0
    model = whole_class(kind).from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(method.generator.model))
    check_tokenizer(tmp_path / "out", method)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# peft calls what transformers 5 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind.split()[0] in ("t5", "llama")])
def test_adapters(train: Train, tmp_path: Path, kind: str) -> None:
    """By the ways that peft's and transformers' manuals show."""
    checkpoint, method = train(kind)
    assert export(checkpoint, tmp_path / "out") == 0
    settings = {}
    if "nf4" in kind:
        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        settings = {"quantization_config": four, "device_map": {"": "cpu"}, "dtype": "float32"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    base = whole_class(kind).from_pretrained(config["base_model_name_or_path"], **settings)
    before = logits(base)
    ours = logits(method.generator.model)
    assert not torch.allclose(before, ours, atol=1e-2)
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(logits(model), ours)
    check_tokenizer(tmp_path / "out", method)

    again = whole_class(kind).from_pretrained(tmp_path / "out", **settings)
    assert torch.equal(logits(again), ours)
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    learned = sum(p.numel() for p in method.generator.parameters() if p.requires_grad)
    assert 4 * learned < size < 4 * learned + 12_000


@pytest.mark.parametrize("kind", TRAINED)
def test_merged(train: Train, tmp_path: Path, kind: str) -> None:
    checkpoint, method = train(kind)
    assert export(checkpoint, tmp_path / "out", "--merge=true") == 0
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    model = whole_class(kind).from_pretrained(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "quantization_config" not in model.config.to_dict()
    torch.testing.assert_close(logits(model), logits(method.generator.model), rtol=1e-4, atol=1e-4)
    check_tokenizer(tmp_path / "out", method)


def test_a_retriever(train: Train, tmp_path: Path) -> None:
    checkpoint, method = train("etrag")
    assert export(checkpoint, tmp_path / "out") == 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(method.generator.model))

    folder = tmp_path / "out" / "retriever" / "encoder"
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    encoder = method.get_submodule("retriever.encoder")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        ours = encoder([Rendered(text) for text in TEXTS])
    torch.testing.assert_close((states * mask).sum(1) / mask.sum(1), ours)


def test_an_empty_folder_will_do(train: Train, tmp_path: Path) -> None:
    (tmp_path / "a" / "out").mkdir(parents=True)
    assert export(train("tiny t5")[0], tmp_path / "a" / "out") == 0
    assert export(train("tiny t5")[0], tmp_path / "b" / "c" / "out") == 0
    one, other = (sorted(p.name for p in (tmp_path / n).rglob("*.*")) for n in ("a", "b/c"))
    assert one == other
    assert "model.safetensors" in one


def test_the_readmes_commands(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the README's own configuration, with a model that is at hand."""
    readme = (HERE.parent / "README.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "lora:" in b]
    (tmp_path / "adapted.yaml").write_text(block)
    KINDS["readme"] = (
        *("--config", str(tmp_path / "adapted.yaml"), "--generator.source={root}/llama"),
        "--generator.passages=concatenate",
    )
    checkpoint, method = train("readme")
    assert method.generator_config.quantization.type == "nf4"
    lines = [line for line in readme.splitlines() if "cli export RUN" in line]
    assert len(lines) == 2
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = line.replace("RUN", str(checkpoint.parent.parent)).split()
        assert cli.main(words[3:]) == 0
    assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "export CHECKPOINT --output FOLDER" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lightning_rag", "export", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "--merge" in capsys.readouterr().out


class TestMistakes:
    def fails(
        self, capsys: pytest.CaptureFixture[str], checkpoint: Path, output: Path, *more: str
    ) -> str:
        assert export(checkpoint, output, *more) == 1
        assert not [p for p in output.parent.glob(".*") if p.name.endswith(".tmp")]
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("error: ")
        return lines[-1]

    def test_no_checkpoint(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = self.fails(capsys, tmp_path / "no.ckpt", tmp_path / "out")
        assert "checkpoint: there is no checkpoint" in message
        (tmp_path / "no.ckpt").write_bytes(b"no zip")
        message = self.fails(capsys, tmp_path / "no.ckpt", tmp_path / "out")
        assert "is no checkpoint, or damaged" in message
        assert not (tmp_path / "out").exists()

    def test_a_checkpoint_of_something_else(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
        message = self.fails(capsys, tmp_path / "other.ckpt", tmp_path / "out")
        assert "is no checkpoint of a run" in message

    def test_a_folder_that_is_not_empty(
        self, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        for output in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
            message = self.fails(capsys, train("tiny t5")[0], output)
            assert f"output: {output} is not empty; legal: a new folder" in message
        assert (tmp_path / "out" / "mine.txt").read_text() == "mine"

    def test_without_config(
        self, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        alone = shutil.copy(train("tiny t5")[0], tmp_path / "run" / "checkpoints")
        message = self.fails(capsys, Path(alone), tmp_path / "out")
        assert f"there is no {tmp_path / 'run' / 'config.yaml'}" in message
        for text, expected in (
            ("model: {}", "has no key 'generator'"),
            ("- a list", "has no key 'generator'"),
            ("generator: {sauce: tiny}", "sauce"),
            ("generator: {source: '${nothing.there}'}", "nothing.there"),
            ("generator: [", "config.yaml"),
            ("generator: {tiny: {hidden_size: 48}}", "legal: the config.yaml that the run wrote"),
            ("generator: {source: /no/such/folder}", "there is no folder '/no/such/folder'"),
        ):
            (tmp_path / "run" / "config.yaml").write_text(text)
            assert expected in self.fails(capsys, Path(alone), tmp_path / "out"), text
            assert not (tmp_path / "out").exists()

    def test_merge_without_adapters(
        self, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = self.fails(capsys, train("warm")[0], tmp_path / "out", "--merge=true")
        assert "merge is true, and the run's generator has no adapters" in message

    @pytest.mark.parametrize(("kind", "why"), [("tiny lora", "a tiny"), ("warm nf4", "a warm")])
    def test_adapters_whose_base_nobody_has(
        self,
        train: Train,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        kind: str,
        why: str,
    ) -> None:
        message = self.fails(capsys, train(kind)[0], tmp_path / "out")
        assert f"merge is false, and the run's generator is {why}" in message
        assert "legal: true" in message

    def test_another_base(
        self, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The source has other weights by now."""
        checkpoint, _ = train("llama lora")
        run = tmp_path / "run"
        shutil.copytree(checkpoint.parent.parent, run)
        from transformers import LlamaForCausalLM

        text = (run / "config.yaml").read_text()
        folder = (
            next(parent for parent in checkpoint.parents if (parent / "llama").is_dir()) / "llama"
        )
        changed = tmp_path / "changed"
        shutil.copytree(folder, changed)
        model = LlamaForCausalLM.from_pretrained(changed)
        model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
        model.save_pretrained(changed)
        (run / "config.yaml").write_text(text.replace(str(folder), str(changed)))
        message = self.fails(capsys, run / "checkpoints" / "best.ckpt", tmp_path / "out")
        assert "whose weights are not those that the checkpoint's adapters were trained" in message

    def test_a_failure_while_writing_leaves_nothing(
        self, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError("no space left")

        checkpoint, method = train("tiny t5")
        monkeypatch.setattr(type(method.generator.tokenizer), "save_pretrained", full)
        with pytest.raises(OSError, match="no space left"):
            export(checkpoint, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_unknown_flags_and_no_output(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for words in (["a.ckpt"], ["a.ckpt", "--output=b", "--merged=true"], ["--output=b"]):
            with pytest.raises(SystemExit) as stop:
                cli.main(["export", *words])
            assert stop.value.code == 2
            assert "usage: python -m lightning_rag.cli export" in capsys.readouterr().err
