"""Two processes on the CPU, started by the command line: their run is that of one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
# 41 queries leave a batch of one behind batches of 8; 17 a batch of one behind batches of 4.
SIZES = {"train": 41, "validation": 17, "test": 21}
BATCHES = 11  # of an estimate, 4 queries each


DRO = (
    *("--model.k=2", "--model.num_samples=3", "--model.iterations=1"),
    *("--model.warm_up_epochs=1", "--model.teacher_share=0.5"),
)
# Those whose losses look across the batch.
ACROSS = {
    "etrag": (
        *("--model.k=2", "--model.pool_size=8", "--model.epochs=1", "--model.refresh_every=3"),
        *("--model.candidates=nearest", "--model.replaced=0.5", "--model.retriever_first_steps=2"),
    ),
    "ruie": (
        *("--model.reward_epochs=1", "--model.distil_epochs=1", "--model.reader_epochs=1"),
        *("--model.positives=1", "--model.negatives=3"),
    ),
}


def command(folder: Path, method: str, processes: int, *extra: str) -> list[str]:
    files = ["base", "data/synthetic_relations", "backbone/tiny", f"method/{method}"]
    paths = [*(CONFIGS / f"{name}.yaml" for name in files), HERE / "small.yaml"]
    return [
        *("fit", *(part for path in paths for part in ("--config", str(path)))),
        *(f"--data.reader.init_args.{split}={size}" for split, size in SIZES.items()),
        *("--data.eval_batch_size=4", *(DRO if method == "dro" else ACROSS[method])),
        *(f"--trainer.devices={processes}", f"--runs={folder / 'runs'}"),
        *(f"--data.cache_dir={folder / 'cache'}", *extra),
    ]


def start(
    folder: Path, processes: int, *extra: str, method: str = "dro"
) -> subprocess.CompletedProcess[str]:
    """Run `fit` to its end."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE / "callbacks"), str(HERE.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.run(
        [sys.executable, "-m", "lightning_rag.cli", *command(folder, method, processes, *extra)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def run_folder(folder: Path) -> Path:
    (found,) = folder.rglob("seed=0")
    return found


def read(folder: Path, name: str) -> Any:
    return json.loads((run_folder(folder) / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A run of one process and one of two."""
    found = {}
    for processes in (1, 2):
        found[processes] = tmp_path_factory.mktemp(f"processes-{processes}")
        done = start(found[processes], processes)
        assert done.returncode == 0, done.stderr
    return found


@pytest.mark.parametrize("name", ["predictions.jsonl", "passages.jsonl"])
def test_files_are_those_of_one_process(folders: dict[int, Path], name: str) -> None:
    """Every query once, in order, with what it counts; equal but for the last digits."""

    def rows(processes: int) -> list[dict[str, Any]]:
        text = (run_folder(folders[processes]) / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    one, two = rows(1), rows(2)
    assert [row["id"] for row in two] == [row["id"] for row in one]
    for own, other in zip(one, two, strict=True):
        assert own.pop("scores", []) == pytest.approx(other.pop("scores", []), abs=1e-4)
        assert own == other
    assert len(one) == SIZES["test"] or name == "passages.jsonl"


def test_metrics_and_estimates_are_those_of_one_process(folders: dict[int, Path]) -> None:
    one, two = (read(folder, "metrics.json") for folder in folders.values())
    assert two["test"] == pytest.approx(one["test"], abs=1e-5)
    assert [point.pop("phase") for point in one["validation"]] == [
        point.pop("phase") for point in two["validation"]
    ]
    for own, other in zip(one["validation"], two["validation"], strict=True):
        assert other == pytest.approx(own, abs=1e-5)
    one, two = (read(folder, "summary.json") for folder in folders.values())
    assert two["estimates"]["em_1"] == pytest.approx(one["estimates"]["em_1"], rel=1e-4)
    assert two["metrics"] == one["metrics"]
    assert (one["fit"]["processes"], two["fit"]["processes"]) == (1, 2)


def test_books_are_those_of_both(folders: dict[int, Path]) -> None:
    """What an estimate or a test reads is read once; a query that only takes part costs too."""
    one, two = (read(folder, "summary.json")["cost"] for folder in folders.values())
    for what in ("tokens/generator/estimate", "tokens/selector/estimate", "flops/estimate"):
        assert two["em_1"][what] == pytest.approx(one["em_1"][what])
    for phase in ("warm_up", "em_1"):
        extra = two[phase]["tokens/generator/train"] / one[phase]["tokens/generator/train"]
        assert 1 <= extra < 1 + 2 / SIZES["train"]


@pytest.mark.parametrize("name", ["warm_up-best.ckpt", "last.ckpt", "best.ckpt"])
def test_weights_and_bank_are_those_of_one_process(folders: dict[int, Path], name: str) -> None:
    one, two = (
        torch.load(run_folder(folder) / "checkpoints" / name, weights_only=True)
        for folder in folders.values()
    )
    assert two["global_step"] == one["global_step"]
    for part in ("state_dict", "bank"):
        assert two[part].keys() == one[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(
                two[part][key], value, atol=2e-5, rtol=1e-4, equal_nan=True, msg=f"{part} {key}"
            )
    assert name != "last.ckpt" or len(one["bank"]["weights"]) == SIZES["train"]


@pytest.mark.parametrize("method", ACROSS)
def test_methods_whose_losses_look_across_the_batch(method: str, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = start(folder, processes, method=method)
        assert done.returncode == 0, done.stderr
        found.append(folder)
    one, two = (read(folder, "metrics.json") for folder in found)
    assert two["test"] == pytest.approx(one["test"], abs=1e-4)
    assert len(two["validation"]) == len(one["validation"]) > 0
    for own, other in zip(one["validation"], two["validation"], strict=True):
        assert own.pop("phase") == other.pop("phase")
        assert other == pytest.approx(own, abs=1e-4)
    one, two = (read(folder, "summary.json")["cost"] for folder in found)
    assert {phase: book.keys() for phase, book in two.items()} == {
        phase: book.keys() for phase, book in one.items()
    }


def test_a_process_that_dies_ends_the_run_and_one_goes_on(
    folders: dict[int, Path], tmp_path: Path
) -> None:
    """Each has computed batches when the second dies; a restart of one computes the others."""
    record = tmp_path / "computed"
    watch = (
        "--trainer.callbacks+=estimate_interruption.Watch",
        f"--trainer.callbacks.init_args.record={record}",
    )
    dies = ("phase=em_1", "batch=2", "rank=1")
    done = start(tmp_path, 2, *watch, *(f"--trainer.callbacks.init_args.{one}" for one in dies))
    assert done.returncode != 0
    assert "ended within an estimate" in done.stderr
    shards = list(run_folder(tmp_path).glob("estimates/em_1/*.safetensors"))
    numbers = {int(path.stem) for path in shards}
    assert {1, 3} <= numbers  # those of the process that died; the other may have come further
    assert numbers & {0, 2, 4}
    before = record.read_text().splitlines()
    assert len(before) == len(set(before)) >= 4
    done = start(tmp_path, 1, *watch, "--ckpt_path=last")
    assert done.returncode == 0, done.stderr
    after = record.read_text().splitlines()[len(before) :]
    assert {int(line.split()[1]) // 4 for line in after} == set(range(BATCHES)) - numbers
    assert read(tmp_path, "metrics.json")["test"] == pytest.approx(
        read(folders[1], "metrics.json")["test"], abs=1e-5
    )
    assert read(tmp_path, "summary.json")["estimates"]["em_1"] == pytest.approx(
        read(folders[1], "summary.json")["estimates"]["em_1"], rel=1e-4
    )


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    done = start(tmp_path, 2, "--data.batch_size=9")
    assert done.returncode != 0
    told = "data.batch_size is 9, to be shared by 2 processes; legal: a multiple of 2"
    assert re.search(f"^error: (process 1: )?{told}", done.stderr, re.MULTILINE), done.stderr
