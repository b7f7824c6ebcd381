"""Every file of configs/paper is a whole command's configuration, or one that goes after another.

The data and models of the papers are not here, so the files are parsed by the command line, their
parts that need neither are made, and one small run goes through the stages that they describe.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import strategies
from omegaconf import OmegaConf

from lightning_rag import cli
from lightning_rag.data.candidates import FirstStage
from lightning_rag.data.readers.base import Reader
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.dro import Dro
from lightning_rag.tasks.base import Task
from lightning_rag.tasks.labels import TABLES
from lightning_rag.tasks.relation_extraction import RelationExtraction

HERE = Path(__file__).resolve().parent
PAPER = HERE.parent / "configs" / "paper"
MODELS = sorted(path.stem for path in PAPER.glob("rag4re_with_*.yaml"))  # go after another file
DATA = ("tacred", "tacrev", "retacred", "semeval2010")
FULL = ("dro_full_deepspeed", "dro_full_fsdp")
AFTER_DRO = ("dro_as_released", "dro_with_mistral_7b", *FULL)
DRO = ("dro_2wiki", "dro_hotpotqa", "dro_musique", "dro_nq", "dro_wow")
AFTER_RUIE = ("ruie_as_released",)  # see test_paper_ruie.py
AFTER = {*MODELS, *AFTER_DRO, *AFTER_RUIE}
WHOLE = sorted({path.stem for path in PAPER.glob("*.yaml")} - AFTER)
# Where a misspelt key is tried. The names of learning rates are free here; configure_optimizers
# compares them with the weights.
SELECTOR = ("model", "init_args", "selector")
MAPPINGS = (
    ("dro_nq", ()),
    ("dro_nq", ("data", "reader", "init_args")),
    ("dro_nq", ("data", "task", "init_args")),
    ("dro_nq", ("generator", "lora")),
    ("dro_nq", SELECTOR),
    ("dro_nq", (*SELECTOR, "model")),
    ("dro_nq", (*SELECTOR, "model", "lora")),
    ("dro_nq", ("model", "init_args", "weighting")),
    ("dro_nq", ("model", "init_args")),
    ("dro_full_deepspeed", ("trainer", "strategy", "init_args")),
    ("dro_full_fsdp", ("trainer", "strategy", "init_args")),
)
PRINTED: dict[tuple[tuple[str, ...], tuple[str, ...]], dict] = {}
# What the heads of the files offer as one flag, and what it changes.
DRO_FLAGS = {
    "--model.num_samples 4": "model.init_args.num_samples",
    "--model.train_selector false": "model.init_args.train_selector",
    "--model.train_generator false": "model.init_args.train_generator",
    "--model.selector.model.source meta-llama/Llama-3.2-1B-Instruct": (
        "model.init_args.selector.model.source"
    ),
    "--model.weighting.kind raw": "model.init_args.weighting.kind",
    "--model.selector.model.gradient_checkpointing true": (
        "model.init_args.selector.model.gradient_checkpointing"
    ),
    "--generator.quantization.type nf4": "generator.quantization.type",
    "--model.selector.model.quantization.type nf4": (
        "model.init_args.selector.model.quantization.type"
    ),
    "--data.fraction 0.108": "data.fraction",
    "--model.teacher FILE": "model.init_args.teacher",
    "--optimizer.learning_rates {generator: 1.0e-4, selector: 1.0e-4}": "optimizer.learning_rates",
    "--data.first_stage.class_path lightning_rag.data.candidates.BM25": (
        "data.first_stage.class_path"
    ),
}


def printed(
    names: tuple[str, ...], flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> Mapping[str, dict]:
    """What `fit --print_config` says of some files of configs/paper; asked once for equal ones."""
    if (names, flags) in PRINTED:
        return copy.deepcopy(PRINTED[names, flags])
    files = [word for name in names for word in ("--config", str(PAPER / f"{name}.yaml"))]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *files, *flags, "--print_config"])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    PRINTED[names, flags] = OmegaConf.to_container(OmegaConf.create(shown.out))
    return copy.deepcopy(PRINTED[names, flags])


def written(name: str) -> dict:
    """What stands in a file of configs/paper."""
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text(encoding="utf-8"))


def values(config: Mapping, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value of a configuration with the keys that lead to it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from values(value, (*path, key))
        else:
            yield (*path, key), value


def assert_holds(found: object, given: object, path: str = "") -> None:
    """Check that all that a file gives is in a configuration: nothing is dropped on the way."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            assert_holds(found[key], value, f"{path}.{key}")
    elif isinstance(given, list) and any(isinstance(value, Mapping) for value in given):
        for number, value in enumerate(given):
            assert_holds(found[number], value, f"{path}[{number}]")
    else:
        assert found == given, path


def at(config: Mapping, path: tuple[str, ...]) -> object:
    for key in path:
        config = config[key]
    return config


def made(kind: type, config: Mapping) -> object:
    """An object of a configuration with class_path and init_args, as the command line makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "it")
    return parser.instantiate(parser.parse_object({"it": dict(config)})).it


def made_method(config: Mapping) -> Method:
    """The method of a whole configuration, with what the command line links; without models."""
    given = copy.deepcopy(config["model"])
    given["init_args"] |= {name: config[name] for name in ("generator", "encoder", "optimizer")}
    return made(Method, given)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_rag"])
    return tmp_path


@pytest.mark.parametrize("name", WHOLE)
def test_every_file_parses(name, capsys):
    config = printed((name,), (), capsys)
    assert config["experiment"] == name
    assert config["data"]["name"] in name
    assert_holds(config, written(name))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_goes_with_every_data_set(data, model, capsys):
    alone = printed((f"rag4re_{data}",), (), capsys)
    config = printed((f"rag4re_{data}", model), (), capsys)
    assert config["generator"]["architecture"] == "decoder-only"
    assert config["generator"]["chat_template"]
    task = config["data"]["task"]["init_args"]
    assert task.pop("refinement") == "decoder_only"
    expected = alone["data"]["task"]["init_args"]
    assert expected.pop("refinement") == "sequence_to_sequence"
    assert task == expected  # a file of a model changes nothing else of the task
    batch = config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    assert batch == alone["data"]["batch_size"] * alone["trainer"]["accumulate_grad_batches"] == 16


@pytest.mark.parametrize("data", DATA)
def test_their_tasks_fit_the_labels(data, capsys):
    given = printed((f"rag4re_{data}",), (), capsys)["data"]["task"]["init_args"]
    for refinement in ("sequence_to_sequence", "decoder_only"):
        task = RelationExtraction(**{**given, "refinement": refinement})
        task.prepare(tuple(TABLES.get(data, TABLES["tacred"])))
        published = "micro19_f1" if data == "semeval2010" else "negative_f1"
        assert published.split("_")[0] in task.metrics(())
        assert task.monitor == "f1"  # the standard scorer chooses


def test_the_stages_of_rag4re(folder, capsys):
    """Fine-tuning on simple prompts, the same weights with examples, and no fine-tuning at all."""
    names = ("base", "data/synthetic_relations", "backbone/tiny", "method/rag4re")
    files = [str(HERE.parent / "configs" / f"{name}.yaml") for name in names]
    words = [word for name in (*files, str(HERE / "small.yaml")) for word in ("--config", name)]
    sizes = [f"--data.reader.init_args.{split}=16" for split in ("train", "validation", "test")]
    task = [
        *("--data.task.init_args.prompt=instruction", "--data.task.init_args.wording=names"),
        "--data.task.init_args.refinement=sequence_to_sequence",
        *("--model.with_label=false", "--model.decoding=free", "--model.epochs=1"),
    ]
    words += [*sizes, *task]
    assert cli.main(["fit", *words, "--model.k=0", "--variant=simple"]) == 0
    [fitted] = folder.rglob("best.ckpt")
    tuned = ("--model.k=1", "--variant=example", f"--ckpt_path={fitted}")
    assert cli.main(["test", *words, *tuned]) == 0
    assert cli.main(["test", *words, "--model.k=0", "--variant=general"]) == 0
    for variant, shown in (("simple", 0), ("example", 1), ("general", 0)):
        [rows] = [path for path in folder.rglob("predictions*.jsonl") if variant in path.parts]
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        assert [len(line["retrieved"]) for line in lines] == [shown] * 16


class TestDro:
    @pytest.mark.parametrize("name", DRO)
    def test_every_data_set(self, name, capsys):
        config = printed((name,), (), capsys)
        method = made_method(config)
        assert isinstance(method, Dro)
        assert (method.num_samples, config["data"]["num_candidates"], method.k) == (8, 20, 5)
        assert [phase.name for phase in method.phases()] == [
            "warm_up", *(f"em_{iteration}" for iteration in range(1, 6)),
        ]  # fmt: skip
        # Long answers alone have means: the sum would leave one sample of each query.
        assert method.weighting.reduction == ("mean" if name == "dro_wow" else "sum")
        assert set(config["optimizer"]["learning_rates"]) == {"generator", "selector"}
        selector = method.selector_config.model
        for part in ("source", "architecture", "chat_template", "max_source_length", "lora"):
            assert getattr(selector, part) == getattr(method.generator_config, part)
        reader = made(Reader, config["data"]["reader"])
        assert reader.corpus == "psgs_w100.tsv"
        assert reader.files.validation is None  # the test file chooses no weights
        assert reader.files.validation_fraction == 0.02
        assert reader.files.test
        task = made(Task, config["data"]["task"])
        assert task.monitor == "dro_f1"
        assert {"dro_exact_match", "kilt_f1", "answer_recall@20"} <= set(
            task.metrics(config["data"]["retrieval_ks"])
        )
        first_stage = config["data"]["first_stage"]
        first_stage["init_args"]["encoder"] = config["encoder"]
        assert made(FirstStage, first_stage).factory == "Flat"

    @pytest.mark.parametrize("after", [(), *[(name,) for name in AFTER_DRO]])
    def test_a_step_has_128_rows(self, after, capsys):
        config = printed(("dro_nq", *after), (), capsys)
        trainer, data = config["trainer"], config["data"]
        queries = data["batch_size"] * trainer["accumulate_grad_batches"] * trainer["devices"]
        assert queries * config["model"]["init_args"]["num_samples"] == 128

    @pytest.mark.parametrize("name", AFTER_DRO)
    def test_every_file_that_goes_after_another(self, name, capsys):
        alone = dict(values(printed(("dro_nq",), (), capsys)))
        composed = printed(("dro_nq", name), (), capsys)
        given = dict(values(written(name)))
        found = dict(values(composed))
        for path, value in given.items():
            if path[-1] != "auto_wrap_policy":  # printed in another form
                assert at(composed, path) == value, path
        # It changes nothing else; a strategy brings arguments of its own.
        changed = {path for path in found if found[path] != alone.get(path, ...)}
        assert {path for path in changed if path[:2] != ("trainer", "strategy")} <= given.keys()
        method = made_method(composed)
        assert method.generator_config.source == method.selector_config.model.source

    @pytest.mark.parametrize("name", FULL)
    def test_weights_in_shards_are_refused_as_the_files_say(self, name, capsys, monkeypatch):
        first = (PAPER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert "weights in shards are refused" in first
        config = printed(("dro_nq", name), (), capsys)
        method = made_method(config)
        assert method.generator_config.lora.rank == method.selector_config.model.lora.rank == 0
        trainer, path = config["trainer"], config["trainer"]["strategy"]["class_path"]
        kind = getattr(strategies, path.rpartition(".")[2])
        strategy = kind.__new__(kind)  # to make one needs its library, and GPUs
        devices = SimpleNamespace(world_size=trainer["devices"], strategy=strategy)
        monkeypatch.setattr(Dro, "trainer", devices)
        with pytest.raises(UserError, match=f"{kind.__name__} for 8 processes .* legal: auto, ddp"):
            method.setup("fit")

    @pytest.mark.parametrize("mapping", MAPPINGS)
    def test_a_misspelt_key_fails(self, mapping, folder, capsys):
        name, path = mapping
        config = written(name)
        parent = at(config, path)
        key = list(parent)[-1]
        parent[f"{key}s"] = parent.pop(key)
        (folder / "wrong.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        words = ["--config", str(PAPER / "dro_nq.yaml"), "--config", str(folder / "wrong.yaml")]
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", *words, "--print_config"])
        assert stop.value.code == 2
        assert f"{key}s" in capsys.readouterr().err

    def test_the_flags_of_the_heads(self, capsys):
        heads = "".join((PAPER / f"{name}.yaml").read_text(encoding="utf-8") for name in DRO)
        heads = " ".join(heads.replace("#", " ").replace("'", "").split())
        flags = {flag: flag.split(" ", 1) for flag in DRO_FLAGS}
        words = tuple(word for flag in flags.values() for word in flag)
        config = printed(("dro_nq",), words, capsys)
        for flag, (_, value) in flags.items():
            assert flag in heads
            assert at(config, tuple(DRO_FLAGS[flag].split("."))) == yaml.safe_load(value), flag

    def test_a_run(self, folder, capsys):
        """The settings of NQ on files of DPR's form, with models from scratch."""
        pytest.importorskip("peft")
        names = [f"{first}{last}" for first in ("Ba", "De", "Ki", "Lo") for last in ("dor", "vel")]
        towns = [f"{name}{end}" for name in names for end in ("stad", "ham", "burg")]
        rows = [f"{n}\tIts mayor is {t[::-1]}.\t{t}" for n, t in enumerate(towns)]
        table = "\n".join(["id\ttext\ttitle", *rows])
        (folder / "psgs_w100.tsv").write_text(f"{table}\n", encoding="utf-8")
        for split, chosen in (("train", range(10)), ("dev", range(10, 14))):
            questions = [
                {
                    "question": f"who is the mayor of {towns[n]}",
                    "answers": [towns[n][::-1]],
                    "positive_ctxs": [{"title": towns[n], "text": rows[n], "passage_id": str(n)}],
                }
                for n in chosen
            ]
            file = folder / f"biencoder-nq-{split}.json"
            file.write_text(json.dumps(questions), encoding="utf-8")
        tiny = {"source": "tiny", "tiny": {"hidden_size": 16, "heads": 2, "layers": 1}}
        decoder = {**tiny, "chat_template": False, "dtype": "float32", "max_source_length": 512}
        small = {
            "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
            "data": {"root": str(folder), "reader": {"init_args": {"validation_fraction": 0.2}}},
            "generator": decoder,
            "encoder": {**tiny, "max_length": 32},
            "model": {"init_args": {"iterations": 1, "selector": {"model": decoder}}},
        }
        (folder / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
        words = ["--config", str(PAPER / "dro_nq.yaml"), "--config", str(folder / "small.yaml")]
        assert cli.main(["fit", *words]) == 0
        [summary] = folder.rglob("summary.json")
        found = json.loads(summary.read_text(encoding="utf-8"))
        assert "em_1" in found["estimates"]
        assert 1 <= found["estimates"]["em_1"]["ess_min"] <= 8
        [file] = folder.rglob("predictions*.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert [len(line["retrieved"]) for line in lines] == [5] * 4
