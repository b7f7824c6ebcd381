"""BM25 candidates of SemEval-2010 Task 8: the top 20 of 8,000 sentences for each of them.

Each query's own sentence, and copies of it, are excluded. Tokenising, stemming, indexing and
searching are all in the time. Target: under 10 s on 2 cores.

    python benchmarks/bm25.py [--data FOLDER] [--repeat N]
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import time
from pathlib import Path

import bm25s
import numpy as np

from lightning_rag.data.candidates import BM25, SearchRequest
from lightning_rag.data.store import PassageStore, exclusions
from lightning_rag.types import Instance

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FILE = "semeval2010_task8/SemEval2010_task8_training/TRAIN_FILE.TXT"


def cpu() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.M) if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("LIGHTNING_RAG_DATA", DATA))
    )
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()

    found = re.findall(
        r'^(\d+)\t"(.*)"', (arguments.data / FILE).read_text(encoding="utf-8"), re.MULTILINE
    )
    instances = [Instance(id=n, text=re.sub("</?e[12]>", "", text)) for n, text in found]
    texts = [instance.text for instance in instances]
    print(f"Python {platform.python_version()}, bm25s {bm25s.__version__}, numpy {np.__version__}")
    print(cpu())
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        exclude = exclusions(instances, PassageStore.from_instances(instances))
        request = SearchRequest(
            queries=texts,
            keys=texts,
            count=20,
            exclude=exclude,
            relevant=[np.empty(0, dtype=np.int64)] * len(texts),
            seed=0,
        )
        candidates = BM25().search(request)
        seconds = time.perf_counter() - start
        rows = (candidates.ids == np.arange(len(texts))[:, None]).any()
        assert not rows, "a query got itself"
        print(f"top 20 of {len(texts)} passages for {len(texts)} queries: {seconds:.2f} s")


if __name__ == "__main__":
    main()
