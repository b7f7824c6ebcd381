"""The main job on made-up data: train the generator alone and with retrieval, and compare them.

Offline, on the CPU, in under three minutes: `tox -e demo`, or `python experiments/demo.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"
METHODS = ("no_retrieval", "rag4re")
COLUMNS = ("accuracy", "recall@1", "success@5", "mrr")


def fit(method: str, runs: Path, extra: list[str]) -> Path:
    """Train and test one method through the command line; return the run's folder."""
    files = ("base", "data/synthetic_relations", "backbone/tiny", f"method/{method}")
    command = [sys.executable, "-m", "lightning_rag.cli", "fit"]
    for file in files:
        command += ["--config", str(CONFIGS / f"{file}.yaml")]
    command += ["--experiment", "demo", "--runs", str(runs), "--overwrite", "true", *extra]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    name = method.replace("_", "")
    folders = (runs / "demo" / "synthetic_relations" / name).glob("*/seed=*")
    return max(folders, key=lambda folder: (folder / "metrics.json").stat().st_mtime)


def main() -> None:
    """Run both methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs")
    arguments, extra = parser.parse_known_args()
    started = time.perf_counter()
    folders = {method: fit(method, arguments.runs, extra) for method in METHODS}

    print(f"\n{'test metrics':<14}" + "".join(f"{column:>11}" for column in COLUMNS))
    for method, folder in folders.items():
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
        print(f"{method:<14}" + "".join(f"{metrics[column]:>11.3f}" for column in COLUMNS))
    print("\nruns:")
    for folder in folders.values():
        print(f"  {folder}")
    print(f"\ncompare them:  tensorboard --logdir {arguments.runs / 'demo'}")
    print(f"took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
