"""What a sweep costs beside its runs: the same commands, started by a sweep and by hand, in turn.

Tiny runs on made-up relations, one at a time. A sweep parses every command before it starts the
first, so some tenths of a second a run are expected. Wall time tells little where other programs
run; so the processor time of the sweep's own process, without its runs', is given too: more it
cannot cost on a machine of its own. What it needs once (imports, the parser) is told from what it
needs for each run by a dry run of one run. Target: less than 2 s a run.

    python benchmarks/sweep.py [--runs N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "lightning_rag.cli"]
CONFIGS = (
    "configs/base.yaml",
    "configs/data/synthetic_relations.yaml",
    "configs/backbone/tiny.yaml",
)
SETTINGS = {
    "data.reader.init_args.train": 32,
    "data.reader.init_args.validation": 8,
    "data.reader.init_args.test": 16,
    "model.epochs": 1,
    "trainer.accelerator": "cpu",
}
METHOD = "configs/method/rag4re.yaml"


def file_of(seeds: int, folder: Path) -> Path:
    """Write a sweep of so many runs."""
    path = folder / f"sweep-{seeds}.yaml"
    content = {
        "name": f"swept-{seeds}",
        "configs": [*CONFIGS],
        "arguments": SETTINGS,
        "seeds": [*range(seeds)],
        "systems": {"rag": {"configs": [METHOD]}},
        "compare": False,
    }
    path.write_text(json.dumps(content))
    return path


def by_hand(seed: int, runs: Path) -> float:
    """Start a run as the sweep does; return its seconds."""
    words = [part for config in (*CONFIGS, METHOD) for part in ("--config", config)]
    words += [f"--{key}={value}" for key, value in SETTINGS.items()]
    words += ["--trainer.enable_progress_bar=false", f"--runs={runs}", f"--seed_everything={seed}"]
    began = time.perf_counter()
    subprocess.run([*COMMAND, "fit", *words], check=True, cwd=REPOSITORY, capture_output=True)
    return time.perf_counter() - began


def swept(file: Path, runs: Path, *words: str) -> tuple[float, float]:
    """Run a sweep; return its seconds, and the processor seconds of its own process."""
    command = [*COMMAND, "sweep", str(file), f"--runs={runs}", *words]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    # /proc/PID/stat counts the children apart; it can be read until the process is waited for.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    took = time.perf_counter() - began
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if process.wait() != 0:
        raise SystemExit("the sweep failed")
    return took, own


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=6, help="of the sweep, and as many by hand")
    number = parser.parse_args().runs
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, once = swept(file_of(1, folder), folder / "dry", "--dry_run")
        hand = [by_hand(seed, folder / "hand") for seed in range(number // 2)]
        together, own = swept(file_of(number, folder), folder / "swept")
        hand += [by_hand(seed, folder / "hand") for seed in range(number // 2, number)]
        again, _ = swept(file_of(number, folder), folder / "swept")
    load = os.getloadavg()[0]
    print(f"{number} runs one after another, {platform.processor() or platform.machine()}, ")
    print(f"{os.cpu_count()} cores, load {load:.1f} (others' programs included)")
    print(f"by hand            {sum(hand) / number:7.2f} s a run, wall")
    print(f"by a sweep         {together / number:7.2f} s a run, wall, all that it does included")
    print(f"its own process    {own / number:7.2f} s a run, processor")
    print(
        f"  of it for each   {(own - once) / (number - 1):7.2f} s a run, besides {once:.2f} s once"
    )
    print(f"given again        {again:7.2f} s for all, wall: all are finished and skipped")


if __name__ == "__main__":
    main()
