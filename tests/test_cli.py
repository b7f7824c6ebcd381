"""The command line: configurations composed of files and flags, what is linked, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

from lightning_rag import cli
from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.retrieval.dense import Dense

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
FEW = (
    "--data.reader.init_args.train=16",
    "--data.reader.init_args.validation=8",
    "--data.reader.init_args.test=8",
    "--model.init_args.epochs=1",
)

Parse = Callable[..., Namespace]


def composed(
    data: str = "synthetic_relations", backbone: str = "tiny", method: str = "rag4re"
) -> list[str]:
    """The flags that compose a configuration of one file from each folder."""
    names = ("base", f"data/{data}", f"backbone/{backbone}", f"method/{method}")
    return [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]


def small() -> list[str]:
    return [*composed(), "--config", str(HERE / "small.yaml"), *FEW]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    return tmp_path


@pytest.fixture
def parse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parse:
    """Parse a command, without making anything; return its configuration."""
    parsed: list[Namespace] = []

    def stop(self: cli.RagCLI) -> None:
        parsed.append(self.config[self.subcommand])
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.RagCLI, "instantiate_classes", stop)

    def start(*words: str) -> Namespace:
        with pytest.raises(KeyboardInterrupt):
            cli.main(list(words))
        return parsed.pop()

    return start


def names(kind: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


@pytest.mark.parametrize("data", names("data"))
def test_every_data_file_parses(parse: Parse, data: str) -> None:
    config = parse("fit", *composed(data=data))
    assert config.data.name == ("crossner_ai" if data == "crossner" else data)
    assert config.model.class_path == "lightning_rag.methods.rag4re.Rag4re"
    parse("predict", *composed(data=data))


def test_crossners_domain_is_one_flag(parse: Parse) -> None:
    """Reader and run folder follow it."""
    config = parse("fit", *composed(data="crossner"), "--data.reader.domain=science")
    assert config.data.reader.init_args.domain == "science"
    assert "crossner_science" in cli.run_folder(config).parts


@pytest.mark.parametrize("method", names("method"))
@pytest.mark.parametrize("backbone", names("backbone"))
def test_every_method_and_backbone_file_parses(parse: Parse, method: str, backbone: str) -> None:
    config = parse("fit", *composed(method=method, backbone=backbone))
    file = yaml.safe_load((CONFIGS / "method" / f"{method}.yaml").read_text(encoding="utf-8"))
    assert config.model.class_path == file["model"]["class_path"]
    assert file["model"]["class_path"].rsplit(".")[-1].lower() in cli.run_folder(config).parts


def test_quickstart_parses_alone(parse: Parse) -> None:
    config = parse("fit", "--config", str(CONFIGS / "quickstart.yaml"))
    expected = "runs/quickstart/synthetic_relations/rag4re/default/seed=0"
    assert cli.run_folder(config) == Path(expected)


def test_print_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed can be saved and given back."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *small(), "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    (folder / "printed.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config=printed.yaml", "--print_config"])
    assert capsys.readouterr().out == printed


class TestInterpolation:
    """`${key}` stands for the value that the key has in the end, wherever that was given."""

    def test_follows_a_flag(self, folder: Path, parse: Parse) -> None:
        (folder / "mine.yaml").write_text("model:\n  init_args:\n    epochs: ${data.batch_size}\n")
        command = ("fit", *composed(), "--config=mine.yaml")
        assert parse(*command).model.init_args.epochs == 32  # configs/data/synthetic_relations
        assert parse(*command, "--data.batch_size=3").model.init_args.epochs == 3
        assert (
            parse(*command, "--data.batch_size=3", "--model.epochs=4").model.init_args.epochs == 4
        )

    def test_follows_a_later_file(self, folder: Path, parse: Parse) -> None:
        (folder / "a.yaml").write_text("data:\n  num_candidates: ${data.batch_size}\n")
        (folder / "b.yaml").write_text("data:\n  batch_size: 7\nvariant: n${data.num_candidates}\n")
        config = parse("test", *composed(), "--config=a.yaml", "--config=b.yaml")
        assert config.data.num_candidates == 7
        assert config.variant == "n7"

    def test_of_linked_values(self, folder: Path, parse: Parse) -> None:
        """What is linked can be pointed to."""
        (folder / "mine.yaml").write_text("variant: l${generator.max_source_length}\n")
        flag = "--generator.max_source_length=77"
        config = parse("fit", *composed(), "--config=mine.yaml", flag)
        assert config.model.init_args.generator.max_source_length == 77
        assert config.variant == "l77"

    def test_inside_linked_values(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """jsonargparse copies a relative `${…}` to where it points to something else: refused."""
        content = (
            "encoder: {max_length: '${generator.max_source_length}'}\n"
            "data: {first_stage: {class_path: lightning_rag.retrieval.dense.Dense}}\n"
        )
        (folder / "mine.yaml").write_text(content)
        assert cli.main(["fit", *composed(), "--config=mine.yaml"]) == 1
        message = capsys.readouterr().err
        assert "data.first_stage.init_args.encoder.max_length" in message
        assert "not found" in message

    def test_twice_in_a_process(self, folder: Path, parse: Parse) -> None:
        """A sweep calls the command line again and again."""
        (folder / "mine.yaml").write_text("variant: b${data.batch_size}\n")
        for size in (3, 4, 3):
            config = parse("fit", *composed(), "--config=mine.yaml", f"--data.batch_size={size}")
            assert config.variant == f"b{size}"


def test_links(parse: Parse) -> None:
    flags = ("--generator.num_beams=3", "--encoder.max_length=55", "--seed_everything=8")
    dense = "--data.first_stage=lightning_rag.retrieval.dense.Dense"
    config = parse("fit", *composed(), dense, *flags)
    assert config.model.init_args.generator.num_beams == 3
    assert config.data.first_stage.init_args.encoder.max_length == 55
    assert config.data.seed == 8
    assert cli.run_folder(config).name == "seed=8"
    rates = config.model.init_args.optimizer.learning_rates
    assert rates == config.optimizer.learning_rates


def test_links_reach_the_objects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method with an encoder gets it too; numbers arrive as the dataclasses' types."""
    monkeypatch.syspath_prepend(str(HERE / "methods"))
    made: list[cli.RagCLI] = []
    monkeypatch.setattr(cli.RagCLI, "after_instantiate_classes", lambda self: made.append(self))
    dense = "--data.first_stage=lightning_rag.retrieval.dense.Dense"
    two = str(HERE / "methods" / "two_phases.yaml")
    words = ["fit", *small(), "--config", two, dense, "--trainer.fast_dev_run=1"]
    rates = "--optimizer.learning_rates={generator: 1e-3, retriever: 1e-3}"
    assert cli.main([*words, "--encoder.pooling=first", rates]) == 0
    (one,) = made
    first_stage = one.datamodule.first_stage
    assert isinstance(first_stage, Dense)
    for encoder in (one.model.encoder_config, first_stage.encoder):
        assert isinstance(encoder, EncoderConfig)
        assert encoder.pooling == "first"
        assert encoder.tiny.hidden_size == 16
    assert isinstance(one.model.generator_config, GeneratorConfig)
    assert one.model.generator_config.tiny.vocab_size == 400
    assert not (folder / "runs").exists()  # fast_dev_run leaves nothing behind


def test_no_seed_is_seed_0(parse: Parse, folder: Path) -> None:
    words = [word for word in composed() if "base.yaml" not in word]
    words.remove("--config")
    config = parse("fit", *words)
    assert config.data.seed == 0
    assert cli.run_folder(config).name == "seed=0"


def test_config_of_a_run_can_be_given_back(folder: Path) -> None:
    assert cli.main(["fit", *small(), "--variant=first", "--overwrite=true"]) == 0
    (first,) = folder.rglob("config.yaml")
    content = first.read_text()
    assert "overwrite: false" in content
    assert "ckpt_path: null" in content

    for command in ("test", "predict", "validate"):
        assert cli.main([command, "--config", str(first), "--ckpt_path=last"]) == 0
    assert first.read_text() == content
    assert (first.parent / "predictions-test.jsonl").exists()

    # A test alone is a run of its own: it says what it is, and whose weights it tests.
    weights = str(first.parent / "checkpoints" / "last.ckpt")
    words = ["test", "--config", str(first), f"--ckpt_path={weights}", "--variant=tested"]
    assert cli.main(words) == 0
    tested = (Path(str(first.parent).replace("first", "tested")) / "config.yaml").read_text()
    expected = content.replace("variant: first", "variant: tested")
    assert tested == expected.replace("ckpt_path: null", f"ckpt_path: {weights}")

    assert cli.main(["fit", "--config", str(first), "--variant=second"]) == 0
    second = Path(str(first.parent).replace("first", "second"))
    states = [
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for path in (first.parent, second)
    ]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    written = (second / "config.yaml").read_text()
    assert written == content.replace("variant: first", "variant: second")
    results = [json.loads((path / "metrics.json").read_text()) for path in (first.parent, second)]
    assert results[0] == results[1]


def test_evaluate_false_leaves_out_the_test(folder: Path) -> None:
    assert cli.main(["fit", *small(), "--evaluate=false"]) == 0
    (config,) = folder.rglob("config.yaml")
    assert "test" not in json.loads((config.parent / "metrics.json").read_text())
    assert not (config.parent / "predictions.jsonl").exists()


def test_as_a_program(folder: Path) -> None:
    """Exit code and stderr of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "lightning_rag.cli", "fit", *small(), "--model.k=9"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: model.k is 9, but data.num_candidates is 4; legal: ")


def test_import_is_light() -> None:
    """`--help` is as fast as importing Lightning (benchmarks/help.py); these are for later.

    Lightning's own import decides about what it brings along (transformers, where torchmetrics
    finds it), so only what comes on top counts.
    """
    code = (
        "import sys, lightning.pytorch\n"
        "before = set(sys.modules)\n"
        "import lightning_rag.cli\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"transformers", "faiss", "bm25s", "Stemmer", "tensorboard", "peft", "bitsandbytes"}
    added = set(done.stdout.split())
    assert "lightning_rag" in added
    assert not heavy & added
