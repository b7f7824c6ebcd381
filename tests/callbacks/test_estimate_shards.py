"""An estimate that is interrupted goes on from its finished batches, with the same result."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_rag import cli
from lightning_rag.callbacks import phases
from lightning_rag.callbacks.checkpoints import ResumePoint
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.estimate_shards import EstimateShards, Shard
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
MANIFEST = {"phase": "one", "weights": "abc", "settings": {"model.k": "3"}, "seed": 0}


def values(batch: int) -> dict[str, Tensor]:
    """Two rows of every kind of tensor that a bank may hold."""
    draw = torch.Generator().manual_seed(batch)
    floats = torch.randn(2, 3, generator=draw)
    floats[0, 0], floats[1, 1] = float("nan"), float("-inf")
    return {
        "scores": floats,
        "figures/half": floats.bfloat16(),
        "batches": torch.randint(2**40, (2,), generator=draw),  # a name that shards use themselves
        "valid": torch.rand(2, 3, 2, generator=draw) < 0.5,
        "nothing": torch.zeros(2, 0),
    }


def fill(shards: EstimateShards, batches: Sequence[int]) -> None:
    for number in batches:
        rows = torch.tensor([2 * number + 1, 2 * number])
        shards.add(number, rows, values(number), {"seconds": 0.5, "first.tokens": 10})


def bits(tensor: Tensor) -> bytes:
    """What a tensor is made of; NaN is equal to itself here."""
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def assert_holds(shards: Sequence[Shard], batches: Sequence[int]) -> None:
    """All bits of these batches, each once."""
    assert [number for shard in shards for number in shard.batches] == list(batches)
    rows = torch.cat([shard.rows for shard in shards])
    assert rows.tolist() == [row for n in batches for row in (2 * n + 1, 2 * n)]
    for name in values(0):
        found = torch.cat([shard.values[name] for shard in shards])
        wanted = torch.cat([values(number)[name] for number in batches])
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert bits(found) == bits(wanted)
    assert all(list(shard.values) == list(values(0)) for shard in shards)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert EstimateShards(tmp_path / "one", MANIFEST, 0.0).read() == []
    assert not (tmp_path / "one").exists()


def test_a_shard_for_each_batch(tmp_path: Path) -> None:
    fill(EstimateShards(tmp_path, MANIFEST, 0.0), [0, 1, 5])
    names = [f"{number:08d}.safetensors" for number in (0, 1, 5)]
    assert files(tmp_path) == [*names, "manifest.json"]
    found = EstimateShards(tmp_path, MANIFEST, 0.0).read()
    assert_holds(found, [0, 1, 5])
    assert found[2].spent == {"seconds": 0.5, "first.tokens": 10}


def test_batches_wait_for_their_time(tmp_path: Path) -> None:
    shards = EstimateShards(tmp_path / "one", MANIFEST, 1000.0)
    fill(shards, [0, 1, 2])
    assert not (tmp_path / "one").exists()
    shards.flush()
    shards.flush()
    fill(shards, [3])
    assert files(tmp_path / "one") == ["00000000.safetensors", "manifest.json"]
    (found,) = EstimateShards(tmp_path / "one", MANIFEST, 0.0).read()
    assert_holds([found], [0, 1, 2])
    assert found.spent == {"seconds": 1.5, "first.tokens": 30}


def test_several_writers_share_a_folder(tmp_path: Path) -> None:
    """As several processes will: each has every second batch."""
    writers = [EstimateShards(tmp_path, MANIFEST, 1000.0) for _ in range(2)]
    for start in (0, 4):
        for rank, writer in enumerate(writers):
            fill(writer, [start + rank, start + rank + 2])
            writer.flush()
    found = writers[0].read()
    assert [shard.batches for shard in found] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert_holds(found, [0, 2, 1, 3, 4, 6, 5, 7])


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "words", "no key", "half a write"])
def test_damaged_shards_are_told_and_left_out(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import save

    fill(EstimateShards(tmp_path, MANIFEST, 0.0), [0, 1, 2])
    path = tmp_path / "00000001.safetensors"
    whole = path.read_bytes()
    content = {
        "cut": whole[:-1],
        "empty": b"",
        "zeros": bytes(len(whole)),
        "words": b"nothing of the kind",
        "no key": save({"batches": torch.tensor([1])}),
        "half a write": whole,
    }
    path.write_bytes(content[damage])
    if damage == "half a write":  # killed before the file got its name
        path.rename(tmp_path / f".{path.name}.77.tmp")
    found = EstimateShards(tmp_path, MANIFEST, 0.0).read()
    assert_holds(found, [0, 2])
    assert not path.exists()
    told = [] if damage == "half a write" else [f"{path}: damaged, its batches are computed again"]
    assert [message.split(":", 2)[:2] for message in caplog.messages] == [
        line.split(":", 2)[:2] for line in told
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": "abd"}, "weights"),
        ({"settings": {"model.k": "4"}, "seed": 1}, "seed, settings model.k"),
        ({"settings": {"model.k": "3", "model.l": "1"}}, "settings model.l"),
        ({"device": "cuda"}, "device"),
    ],
)
def test_shards_of_another_estimate_are_told_and_removed(
    tmp_path: Path, change: dict[str, object], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "one"
    fill(EstimateShards(folder, MANIFEST, 0.0), [0, 1])
    assert EstimateShards(folder, {**MANIFEST, **change}, 0.0).read() == []
    assert caplog.messages == [
        f"{folder}: the batches found there are computed again, for their estimate differs in: "
        f"{named}"
    ]
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff"])
def test_a_damaged_manifest(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    fill(EstimateShards(tmp_path / "one", MANIFEST, 0.0), [0])
    (tmp_path / "one" / "manifest.json").write_bytes(content)
    assert EstimateShards(tmp_path / "one", MANIFEST, 0.0).read() == []
    assert "no manifest that can be read" in caplog.text


def test_a_shard_of_another_manifest_in_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(EstimateShards(tmp_path / "one", MANIFEST, 0.0), [0])
    fill(EstimateShards(tmp_path / "two", {**MANIFEST, "weights": "other"}, 0.0), [1])
    other = tmp_path / "two" / "00000001.safetensors"
    other.rename(tmp_path / "one" / other.name)
    assert_holds(EstimateShards(tmp_path / "one", MANIFEST, 0.0).read(), [0])
    assert "it is of another manifest" in caplog.text


def test_where_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    shards = EstimateShards(tmp_path / "file" / "one", MANIFEST, 0.0)
    fill(shards, [0, 1, 2])
    assert len(caplog.messages) == 1
    assert "cannot keep the batches of an estimate" in caplog.messages[0]


# From here on within Lightning's loop: 40 queries, estimated in five batches of 8.


class Cut(Exception):
    """Ends a run where a power cut might."""


def estimated(name: str, cut: int | None = None, **settings: int):
    """A phase whose estimate draws, and fails before its batch number `cut`."""

    def make(method: Method) -> Phase:
        def estimate(batch) -> dict[str, Tensor]:
            if cut is not None and batch.rows[0] == 8 * cut:
                raise Cut
            found = method.estimate(batch)
            method.second.truncated += 1
            return {**found, "drawn": torch.rand(len(batch.rows), 2)}

        return Phase(name, ("first",), method.loss, estimate=estimate, **settings)

    return make


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "SHARD_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_an_interrupted_estimate_goes_on(
    fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = CostLedger()
    whole, _ = fit(estimated("one", epochs=1), callbacks=[ledger], folder="whole")
    assert not (tmp_path / "whole" / "estimates").exists()
    wanted = {name: tensor.clone() for name, tensor in whole.bank.tensors.items()}

    with pytest.raises(Cut):
        fit(estimated("one", 3, epochs=1))
    assert len(files(tmp_path / "run" / "estimates" / "one")) == 4
    again = CostLedger()
    with caplog.at_level(logging.INFO, logger="lightning_rag"):
        method, _ = fit(estimated("one", epochs=1), callbacks=[again])
    assert "phase 'one': estimate goes on, 3 batches were found" in caplog.messages
    assert method.estimated == list(range(24, 40))
    assert list(method.bank.tensors) == list(wanted)
    for name, tensor in method.bank.tensors.items():
        assert torch.equal(tensor, wanted[name])
    for name, weight in method.weights().items():
        assert torch.equal(weight, whole.weights()[name])
    # What the first process did counts, as if this one had done it.
    assert again.phases["one"]["tokens/first/estimate"] == 400
    assert again.phases["one"]["flops"] == ledger.phases["one"]["flops"]
    assert method.second.truncated == 5


@pytest.mark.usefixtures("at_once")
def test_seconds_of_the_interrupted_process_are_booked(fit, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(estimated("one", 3, epochs=1))
    (path, *_) = sorted((tmp_path / "run" / "estimates" / "one").glob("*.safetensors"))
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    said["spent"] = json.dumps({**json.loads(said["spent"]), "seconds": 5000.0})
    save_file(load_file(path), path, said)
    ledger = CostLedger()
    fit(estimated("one", epochs=1), callbacks=[ledger])
    assert 5000.0 < ledger.phases["one"]["seconds/estimate"] < 5060.0


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("change", ["weights", "candidates"])
def test_shards_of_other_weights_or_data_are_not_used(
    fit, data, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Cut):
        fit(estimated("one", 3, epochs=1))
    if change == "candidates":
        data.queries("train").candidates.scores[7, 0] += 1.0
        named = "data"
    else:
        data.seed, named = 1, "seed, weights"
    method, _ = fit(estimated("one", epochs=1))
    assert method.estimated == list(range(40))
    assert f"for their estimate differs in: {named}" in caplog.text


@pytest.mark.usefixtures("at_once")
def test_shards_go_when_a_checkpoint_has_the_bank(fit, tmp_path: Path) -> None:
    """Here after the first epoch of each phase; the shards of a phase to come stay."""
    folder = tmp_path / "run" / "estimates"
    seen: list[tuple[str, list[str]]] = []

    def watching(name: str, cut: int | None = None):
        def make(method: Method) -> Phase:
            phase = estimated(name, cut, epochs=2)(method)

            def loss(batch):
                seen.append((name, files(folder) if folder.exists() else []))
                return method.loss(batch)

            phase.loss = loss
            return phase

        return make

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(Cut):
        fit(watching("one"), watching("two", 2), callbacks=[ResumePoint(last.parent)])
    assert seen == [("one", ["one"])] * 5 + [("one", [])] * 5
    assert files(folder) == ["two"]
    seen.clear()
    method, _ = fit(
        watching("one"), watching("two"), callbacks=[ResumePoint(last.parent)], ckpt_path=last
    )
    assert method.estimated == list(range(16, 40))
    assert seen == [("two", ["two"])] * 5 + [("two", [])] * 5
    assert not folder.exists()


@pytest.mark.usefixtures("at_once")
def test_a_rehearsal_leaves_and_reads_no_shards(fit, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        fit(estimated("one", 3, steps=1))
    folder = tmp_path / "run" / "estimates" / "one"
    before = files(folder)
    method, _ = fit(estimated("one", steps=1), fast_dev_run=2)
    assert len(method.estimated) == 16
    assert files(folder) == before


# And through the command line, with a method whose estimate draws.


def command(folder: Path, *extra: str) -> list[str]:
    names = ("base", "data/synthetic_relations", "backbone/tiny", "method/dro")
    paths = [*(CONFIGS / f"{name}.yaml" for name in names), HERE.parent / "small.yaml"]
    folder.mkdir(exist_ok=True)
    return [
        *("fit", *(part for path in paths for part in ("--config", str(path)))),
        *(f"--data.reader.init_args.{split}=16" for split in ("validation", "test")),
        *("--data.reader.init_args.train=40", "--data.eval_batch_size=4"),
        *("--model.num_samples=4", "--model.warm_up_epochs=0", "--model.iterations=2"),
        *("--model.epochs=1", "--model.patience=null"),
        *("--trainer.callbacks+=estimate_interruption.Watch",),
        *(f"--trainer.callbacks.init_args.record={folder / 'computed'}",),
        *(f"--runs={folder / 'runs'}", f"--data.cache_dir={folder / 'cache'}", *extra),
    ]


def ended_in(phase: str, batch: int, signal: int | None = None) -> tuple[str, str, str]:
    return (
        f"--trainer.callbacks.init_args.phase={phase}",
        f"--trainer.callbacks.init_args.batch={batch}",
        f"--trainer.callbacks.init_args.signal={'null' if signal is None else int(signal)}",
    )


def start(folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return subprocess.run(
        [sys.executable, "-m", "lightning_rag.cli", *command(folder, *extra)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def kill(folder: Path, phase: str, batch: int, *extra: str) -> dict[Path, int]:
    """Start a run that is killed; return the shards that it leaves, and when they were written."""
    killed = start(folder, *extra, *ended_in(phase, batch, signal.SIGKILL))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    shards = (folder / "runs").rglob(f"estimates/{phase}/*.safetensors")
    return {path: path.stat().st_mtime_ns for path in shards}


def checkpoint(folder: Path, name: str) -> dict[str, dict[str, Tensor]]:
    (path,) = (folder / "runs").rglob(name)
    content: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return content


def summary(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "runs").rglob("summary.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.slow
def test_killed_within_estimates_and_continued(tmp_path: Path) -> None:
    """SIGKILL in the first estimate, when there is no checkpoint yet, and twice in the second."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = start(whole)
    assert done.returncode == 0, done.stderr

    assert len(kill(folder, "em_1", 6)) == 6
    assert not list((folder / "runs").rglob("*.ckpt"))
    before = kill(folder, "em_2", 4)  # the same command: there is nothing to resume from
    assert len(before) == 4
    after = kill(folder, "em_2", 3, "--ckpt_path=last")
    assert len(after) == 7
    assert {path: after[path] for path in before} == before
    resumed = start(folder, "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    assert "phase 'em_2': estimate goes on, 7 batches were found" in resumed.stderr
    assert not list((folder / "runs").rglob("estimates"))

    # Every batch of every estimate was computed once.
    computed = (folder / "computed").read_text().splitlines()
    assert computed == [f"em_{i} {row}" for i in (1, 2) for row in range(0, 40, 4)]
    assert computed == (whole / "computed").read_text().splitlines()
    # Weights and bank are the same to the bit.
    for file, part in (("last", "bank"), ("last", "state_dict"), ("best", "state_dict")):
        ours, theirs = (checkpoint(f, f"{file}.ckpt")[part] for f in (folder, whole))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ours, theirs = summary(folder), summary(whole)
    assert ours["estimates"] == theirs["estimates"]
    for group in ("selector", "generator"):
        name = f"tokens/{group}/estimate"
        assert ours["cost"]["em_1"][name] == theirs["cost"]["em_1"][name] > 0
        assert ours["cost"]["em_2"][name] == theirs["cost"]["em_2"][name] > 0


def test_another_configuration_estimates_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])

    def cut(batch: int, *extra: str) -> list[str]:
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="lightning_rag"),
            pytest.raises(RuntimeError, match="ended within an estimate"),
        ):
            cli.main(command(tmp_path, *extra, *ended_in("em_1", batch)))
        return [m for m in caplog.messages if "goes on" in m or "differs" in m]

    assert cut(6) == []
    assert cli.main(command(tmp_path, "--ckpt_path=last")) == 1
    assert "last.ckpt yet, but an estimate that was interrupted" in capsys.readouterr().err
    assert cut(1) == ["phase 'em_1': estimate goes on, 6 batches were found"]
    (told,) = cut(1, "--model.num_samples=2")
    assert told.endswith("their estimate differs in: settings model.init_args.num_samples")
    # What says nothing of the estimate may change.
    assert len(cut(1, "--model.num_samples=2", "--trainer.log_every_n_steps=2")) == 1
    # --overwrite true is a start from nothing, also where all is as before.
    assert cut(1, "--model.num_samples=2", "--overwrite=true") == []
    computed = (tmp_path / "computed").read_text().splitlines()
    assert computed == [f"em_1 {row}" for row in (*range(0, 28, 4), 0, 4, 0)]


def test_a_file_counts_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A list of preferences or of a teacher that was corrected under its old name."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    lists = tmp_path / "lists.jsonl"
    for content in ("old", "old", "corrected"):
        lists.write_text(content)
        caplog.clear()
        with (
            caplog.at_level(logging.INFO, logger="lightning_rag"),
            pytest.raises(RuntimeError, match="ended within an estimate"),
        ):
            cli.main(command(tmp_path, f"--model.teacher={lists}", *ended_in("em_1", 1)))
        told = [m for m in caplog.messages if "goes on" in m or "differs" in m]
        if content == "corrected":
            assert told[0].endswith("their estimate differs in: settings model.init_args.teacher")
