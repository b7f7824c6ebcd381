"""A user's mistakes: one clear message on stderr, an exit code other than 0, no traceback."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_rag import cli
from lightning_rag.errors import DataError, UserError

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
WORDS = ("wrote", "read", "sold")

Run = Callable[..., tuple[int, str]]
Record = dict[str, object]


def record(number: int, **changes: object) -> Record:
    """A legal line of the relation format, with changes; a value of None leaves the field out."""
    word = WORDS[number % 3]
    text = f"Person{number} {word} Book{number} today"
    start = text.index("Book")
    fields = {
        "id": f"r{number}",
        "text": text,
        "label": f"rel_{word}",
        "head": {"start": 0, "end": text.index(" ")},
        "tail": {"start": start, "end": text.index(" ", start)},
    }
    fields.update(changes)
    return {key: value for key, value in fields.items() if value is not None}


def write(path: Path, records: list[Record]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with legal data files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    write(tmp_path / "train.jsonl", [record(n) for n in range(24)])
    write(tmp_path / "validation.jsonl", [record(n) for n in range(24, 32)])
    write(tmp_path / "test.jsonl", [record(n) for n in range(32, 40)])
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a subcommand on the data of `folder`; return the exit code and what stderr got."""

    def start(*extra: str, command: str = "fit", method: str = "rag4re") -> tuple[int, str]:
        files = [
            CONFIGS / "base.yaml",
            CONFIGS / "data" / "relation_jsonl.yaml",
            CONFIGS / "method" / f"{method}.yaml",
            HERE / "small.yaml",
        ]
        configs = [part for file in files for part in ("--config", str(file))]
        reader = "--data.reader.init_args.validation=validation.jsonl"
        here = ("--data.root=.", reader, "--data.cache_dir=cache", "--model.epochs=1")
        capsys.readouterr()
        try:
            code = cli.main([command, *configs, *here, *extra])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return start


def complaint(result: tuple[int, str], *parts: str) -> None:
    """Check that a run failed with one message that has all `parts`, and no traceback."""
    code, err = result
    assert code != 0
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    for part in parts:
        assert part in errors[0], f"{part!r} is not in {errors[0]!r}"


def run_folder(folder: Path) -> Path:
    (config,) = (folder / "runs").rglob("config.yaml")
    return config.parent


def replace_line(path: Path, number: int, line: bytes) -> None:
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")


def as_line(one: Record) -> bytes:
    return json.dumps(one).encode()


def test_legal_input_runs(run: Run) -> None:
    code, err = run()
    assert code == 0
    assert "error" not in err


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"id": "r5", "text": ', ("no JSON", "legal: one JSON object a line")),
        (b'["r5"]', ("a list", "legal: one JSON object a line")),
        (as_line(record(5, label=None)), ("missing field 'label'", "legal: a string", "'id'")),
        (as_line(record(5, text=7)), ("'text' is an integer, 7", "legal: a string")),
        (
            as_line(record(5, tail={"start": 10, "end": 99})),
            ("tail is [10, 99)", "of 24 characters", "legal: 0 <= start < end <= 24"),
        ),
        (as_line(record(5, id="r2")), ("'r2'", "train.jsonl:3")),
        ("caf\xe9".encode("latin-1"), ("(0xe9) is not UTF-8", "legal: UTF-8 text")),
        (b"\xff\xfe{\x00}\x00", ("is not UTF-8", "legal: UTF-8 text")),
    ],
    ids=["no JSON", "no object", "no label", "number", "span", "id twice", "Latin-1", "UTF-16"],
)
def test_bad_line(folder: Path, run: Run, line: bytes, parts: tuple[str, ...]) -> None:
    replace_line(folder / "train.jsonl", 6, line)
    complaint(run(), "train.jsonl:6: ", *parts)
    assert not list((folder / "runs").rglob("*.ckpt"))


def test_unknown_label(folder: Path, run: Run) -> None:
    replace_line(folder / "test.jsonl", 2, as_line(record(33, label="rel_burnt")))
    labels = '--data.reader.init_args.labels=["rel_wrote","rel_read","rel_sold"]'
    complaint(run(labels), "test.jsonl:2: ", "'rel_burnt'", "legal: ", "rel_wrote")


def test_id_in_two_splits(folder: Path, run: Run) -> None:
    replace_line(folder / "test.jsonl", 2, as_line(record(33, id="r3")))
    complaint(run(), "test.jsonl:2: ", "'r3'", "train.jsonl:4")


def test_same_record_in_train_and_test(folder: Path, run: Run) -> None:
    replace_line(folder / "test.jsonl", 2, as_line(record(3, id="copy")))
    complaint(run(), "test split", "passage store", "copy (= r3)")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_file(folder: Path, run: Run, split: str) -> None:
    (folder / f"{split}.jsonl").write_text("\n")
    complaint(run(), f"{split}.jsonl: no records", "legal: at least one JSON object")


def test_no_test_split(run: Run) -> None:
    """The training counts; only a command that asks for the split fails."""
    none = "--data.reader.init_args.test=null"
    code, _ = run(none)
    assert code == 0
    complaint(run(none, "--ckpt_path=last", command="test"), "the test split", "is empty")


def test_missing_data_file(folder: Path, run: Run) -> None:
    (folder / "train.jsonl").unlink()
    complaint(run(), "train.jsonl: no such file", "--data.root")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--model.k=5",), ("model.k is 5", "data.num_candidates is 4", "legal: k up to")),
        (("--model.k=-1",), ("model.k is -1", "legal: 0 or more")),
        (("--data.num_candidates=24",), ("data.num_candidates", "24", "23 passages", "store: 24")),
        (("--data.num_candidates=0",), ("data.num_candidates is 0", "legal: 1 or more")),
        (("--data.batch_size=0",), ("data.batch_size is 0", "legal: 1 or more")),
        (("--data.fraction=0",), ("fraction is 0", "legal: more than 0 and at most 1")),
        (("--data.test_size=0",), ("data.test_size is 0", "legal: 1 or more")),
        (("--data.ids_file=ids.txt",), ("ids.txt: cannot be read: No such file",)),
        (
            ("--data.task.init_args.scorer=semeval2010",),
            ("task.scorer is 'semeval2010'", "'rel_read'", "legal: ", "Cause-Effect(e1,e2)"),
        ),
        (
            ("--data.task.init_args.negative_label=none",),
            ("negative_label is 'none'", "legal: rel_read, rel_sold, rel_wrote"),
        ),
        (
            ("--data.task.init_args.wording=nowhere.json",),
            ("wording is 'nowhere.json'", "legal: semeval2010"),
        ),
        (
            ("--generator.source=package:not_installed_here/model",),
            ("'package:not_installed_here/model'", "not installed", "pip install not-installed"),
        ),
        (("--generator.source=./nowhere",), ("no folder './nowhere'", "legal are 'tiny'")),
        (("--generator.max_source_length=2",), ("max_source_length", "got 2")),
        (
            ("--optimizer.learning_rates={generator: 1e-3, generator.modle: 1e-4}",),
            ("optimizer.learning_rates.generator.modle", "matches no parameter", "legal: "),
        ),
        (
            ("--optimizer.learning_rates={generator.model.encoder: 1e-3}",),
            ("no learning rate for parameter 'generator.model.", "legal: "),
        ),
        (("--ckpt_path=last",), ("ckpt_path: there is no checkpoint", "last.ckpt")),
        (("--ckpt_path=nowhere.ckpt",), ("ckpt_path: there is no checkpoint nowhere.ckpt",)),
        (("--trainer.accelerator=abacus",), ("accelerator", "abacus")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and value[0][:2] == "--" else "",
)
def test_bad_value(run: Run, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
    complaint(run(*flags), *parts)


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--model.epoch=3", ("epoch",)),
        ("--data.batchsize=3", ("data.batchsize",)),
        ("--data.reader.init_args.trian=x", ("trian",)),
        ("--generator.sorce=tiny", ("generator.sorce",)),
        ("--trainer.max_epoch=3", ("trainer.max_epoch",)),
        ("--model.epochs=many", ("epochs", "many")),
        ("--model.decoding=guess", ("decoding", "guess", "options", "free")),
        ("--model=lightning_rag.methods.rag5re.Rag5re", ("rag5re",)),
        ("--seed_everything=maybe", ("seed_everything", "maybe")),
        ("--seed_everything=true", ("data.seed", "True")),
        ("--seed_everything=null", ("seed_everything", "None")),
        ("--config=nowhere.yaml", ("nowhere.yaml",)),
    ],
)
def test_bad_key(run: Run, flag: str, parts: tuple[str, ...]) -> None:
    """The parser's errors: exit code 2, with the usage before the message."""
    code, err = run(flag)
    assert code == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in err[err.index("error:") :]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("model:\n  init_args:\n    epoks: 3\n", ("epoks",)),
        ("trainer:\n  max_epoks: 3\n", ("max_epoks",)),
        ("triner:\n  max_epochs: 3\n", ("triner",)),
        ("trainer: [1, 2\n", ("mine.yaml: ", "line 2")),
        ("generator: tiny\n", ("generator", "tiny")),
        ("model:\n", ("model",)),
        ("- 1\n", ("mine.yaml: ",)),
    ],
)
def test_bad_configuration_file(
    folder: Path, run: Run, content: str, parts: tuple[str, ...]
) -> None:
    (folder / "mine.yaml").write_text(content)
    code, err = run("--config=mine.yaml")
    assert code == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in err[err.index("error:") :]


def test_configuration_file_in_another_encoding(folder: Path, run: Run) -> None:
    (folder / "mine.yaml").write_bytes("data:\n  name: café\n".encode("latin-1"))
    code, err = run("--config=mine.yaml")
    assert code == 2
    assert "Traceback" not in err
    assert "mine.yaml" in err[err.index("error:") :]


@pytest.mark.parametrize("target", ["${no.such.key}", "${data.name}"])
def test_interpolation_of_nothing(run: Run, target: str) -> None:
    complaint(run(f"--data.name={target}"), "configuration: ", "data.name")


@pytest.mark.parametrize("words", [[], ["fit"], ["train"], ["fit", "--config"]])
def test_incomplete_command(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_traceback_on_request(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(UserError, match=r"model\.k is 5"):
        run("--model.k=5")
    # What jsonargparse wraps is raised as it came.
    with pytest.raises(ValueError, match=r"model\.k is -1"):
        run("--model.k=-1")
    (folder / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="no records"):
        run()


@pytest.mark.parametrize(
    ("every", "what"), [(0, "the loss of phase 'fit' is nan"), (1, "the weights generator.")]
)
def test_loss_that_is_not_finite(folder: Path, run: Run, every: int, what: str) -> None:
    """It ends the run before a checkpoint takes it in.

    With a checkpoint after every step, the weights are looked at before they are saved: here the
    loss of the second step is finite still, but its gradient is not.
    """
    flags = ("--optimizer.learning_rates={generator: 1e30}", f"--checkpoint_every={every}")
    complaint(run(*flags), what, " step 2", "a smaller learning rate", "checkpoint is untouched")
    for path in (run_folder(folder) / "checkpoints").glob("*"):
        content = torch.load(path, weights_only=True)
        for name, weight in content["state_dict"].items():
            assert torch.isfinite(weight).all(), name
    assert len(list(folder.rglob("last.ckpt"))) == every


def test_run_that_exists(folder: Path, run: Run) -> None:
    assert run()[0] == 0
    there = run_folder(folder)
    kept = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    result = run()
    complaint(result, str(there.relative_to(folder)), "holds a run already", "--overwrite true")
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == kept

    assert run("--ckpt_path=last")[0] == 0  # finished already: tested once more
    assert len(json.loads((there / "metrics.json").read_text())["validation"]) == 1
    (there / "left_over.txt").write_text("of the former run")
    again = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    complaint(run("--overwrite=true", "--generator.source=./nowhere"), "no folder './nowhere'")
    complaint(run("--overwrite=true", "--data.root=nowhere"), "train.jsonl: no such file")
    now = {path: path.read_bytes() for path in there.rglob("*") if path in again}
    assert now == again  # a start that failed costs nothing
    assert run("--overwrite=true")[0] == 0
    assert len(json.loads((there / "metrics.json").read_text())["validation"]) == 1
    assert not (there / "left_over.txt").exists()
    assert not set(there.glob("events.*")) & set(kept)


def test_failed_start_is_no_run(run: Run) -> None:
    """After a mistake that comes before the first step, the same command works, corrected."""
    complaint(run("--generator.source=./nowhere"), "no folder './nowhere'")
    assert run()[0] == 0


class TestCheckpoint:
    """A checkpoint that cannot be used is named, and nothing is written."""

    def trained(self, folder: Path, run: Run) -> Path:
        assert run()[0] == 0
        return run_folder(folder) / "checkpoints" / "last.ckpt"

    def test_truncated(self, folder: Path, run: Run) -> None:
        path = self.trained(folder, run)
        whole = path.read_bytes()
        for length in (0, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            for command in ("fit", "test"):
                result = run("--ckpt_path=last", command=command)
                complaint(result, "ckpt_path: ", "last.ckpt", "damaged")
        assert path.read_bytes() == whole[:-1]
        assert path.with_name("best.ckpt").exists()

    def test_one_flipped_byte(self, folder: Path, run: Run) -> None:
        """In the first, a middle and the last record, in the index, in the first and last bytes."""
        path = self.trained(folder, run)
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            records = [info for info in archive.infolist() if info.file_size > 8]
            index = archive.start_dir
        places = [0, index, index + 20, len(whole) - 20]
        for info in (records[0], records[len(records) // 2], records[-1]):
            # local header, name and padding come before the content
            name, padding = struct.unpack_from("<HH", whole, info.header_offset + 26)
            begin = info.header_offset + 30 + name + padding
            places.append(begin + info.file_size // 2)
        for place in places:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            complaint(run("--ckpt_path=last"), "ckpt_path: ", "last.ckpt", "damaged")

    def test_of_another_shape(self, folder: Path, run: Run) -> None:
        path = self.trained(folder, run)
        other = ("--generator.tiny.hidden_size=32", f"--ckpt_path={path}")
        for command in ("fit", "test"):
            result = run(*other, command=command)
            complaint(result, "last.ckpt", "generator.model.", "(400, 16)", "(400, 32)")

    def test_of_another_size(self, folder: Path, run: Run) -> None:
        path = self.trained(folder, run)
        result = run("--generator.tiny.layers=2", f"--ckpt_path={path}", command="test")
        complaint(result, "lacks", "generator.model.", "block.1.")

    def test_of_another_method(self, folder: Path, run: Run) -> None:
        path = self.trained(folder, run)
        result = run(f"--ckpt_path={path}", command="test", method="no_retrieval")
        complaint(result, "last.ckpt was trained as Rag4re", "legal: one of NoRetrieval")

    def test_of_something_else(self, folder: Path, run: Run) -> None:
        torch.save({"state_dict": {}}, folder / "other.ckpt")
        result = run("--ckpt_path=other.ckpt", command="test")
        complaint(result, "other.ckpt is no checkpoint of a run")
        torch.save(torch.nn.Linear(2, 2), folder / "object.ckpt")  # a pickle that would run code
        result = run("--ckpt_path=object.ckpt", command="test")
        complaint(result, "object.ckpt is no checkpoint")


def test_monitor_that_nobody_computes(folder: Path, run: Run) -> None:
    module = (
        "from dataclasses import replace\n"
        "from lightning_rag.methods.rag4re import Rag4re\n"
        "class Blind(Rag4re):\n"
        "    def phases(self):\n"
        "        return [replace(phase, monitor='f2') for phase in super().phases()]\n"
    )
    (folder / "blind_method.py").write_text(module)
    sys.path.insert(0, str(folder))
    try:
        result = run("--model.class_path=blind_method.Blind")
    finally:
        sys.path.remove(str(folder))
    complaint(result, "phase 'fit' monitors 'val/f2'", "val/accuracy")


def test_long_texts_are_cut_and_counted(
    folder: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    tail = " and more words" * 30
    train = [record(n) for n in range(24)]
    for one in train[:3]:
        one["text"] = str(one["text"]) + tail
    write(folder / "train.jsonl", train)
    assert run("--generator.max_source_length=40", method="no_retrieval")[0] == 0
    summary = json.loads((run_folder(folder) / "summary.json").read_text())
    assert summary["test"]["truncated_texts"] == {"generator": 3}
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    warned = [message for message in warned if "were cut" in message]
    assert len(warned) == 1
    assert "generator: 3" in warned[0]
    assert "max_source_length" in warned[0]


def test_no_warning_where_nothing_was_cut(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert run(method="no_retrieval")[0] == 0
    assert not any("were cut" in r.getMessage() for r in caplog.records)
