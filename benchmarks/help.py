"""`--help` of the command line against importing Lightning: at most 1.5 times as long.

Both are started in turns, each in a fresh process, so that a busy machine slows both down. The
ratio is that of the medians; its spread is the middle half of the ratios of neighbouring pairs.

    python benchmarks/help.py [--repeat N]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version

COMMANDS = {
    "import lightning.pytorch": ["-c", "import lightning.pytorch"],
    "--help": ["-m", "lightning_rag.cli", "--help"],
    "fit --help": ["-m", "lightning_rag.cli", "fit", "--help"],
}
TARGET = 1.5


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=7)
    repeat = parser.parse_args().repeat
    for command in COMMANDS.values():
        seconds(command)  # writes the .pyc files, reads the libraries into the page cache
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeat):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    print(f"Python {platform.python_version()}, lightning {version('lightning')}, {repeat} turns")
    base = times["import lightning.pytorch"]
    for name, measured in times.items():
        ratios = sorted(a / b for a, b in zip(measured, base, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        ratio = statistics.median(measured) / statistics.median(base)
        print(f"{name:25} {statistics.median(measured):6.2f} s  {ratio:.2f} ({low:.2f}-{high:.2f})")
    print(f"target for --help: {TARGET}")


if __name__ == "__main__":
    main()
