"""One of several processes that share queries: `python mean_process.py FOLDER RANK WORLD`.

Reads the queries' numbers from FOLDER/values.json, takes its share, and writes what it found with
the others to FOLDER/RANK.json.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightning_rag.functional.processes import (
    from_first,
    own_slice,
    query_mean,
    shared_mean,
    shared_ratio,
    texts_of_all,
)

WAIT = datetime.timedelta(seconds=60)


def found(values: list[float], rank: int, world: int) -> dict[str, Any]:
    """Means, a gradient as DistributedDataParallel averages it, and what is exchanged."""
    weight = torch.tensor(2.0, requires_grad=True)
    own = torch.tensor(values)[own_slice(len(values), rank, world)]
    counts = len(own) > 0
    own = own if counts else torch.tensor(values[:1])
    mean = shared_mean(own * weight.square(), counts=counts)
    ratio = shared_ratio((own * weight.detach()).sum(), len(own) if counts else 0)
    mean.backward()
    results = torch.stack([weight.grad, mean.detach(), ratio])
    if world > 1:
        dist.all_reduce(results)
    even = torch.where(own.remainder(2) == 0, own, torch.nan)
    average, known = query_mean(even, counts=counts)
    return {
        "gradient, mean, ratio": (results / world).tolist(),
        "even": [average.item(), known],
        "first": from_first(torch.tensor([rank, 7])).tolist(),
        "texts": texts_of_all(f"{rank}: \u00e9\n" * (rank + 1), torch.device("cpu")),
    }


def main() -> None:
    """Take part with every list of values."""
    torch.set_default_dtype(torch.float64)
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    lists = json.loads((folder / "values.json").read_text(encoding="utf-8"))
    alone = [found(values, 0, 1) for values in lists]
    place = f"file://{folder}/meeting_point"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world, timeout=WAIT)
    together = [found(values, rank, world) for values in lists]
    text = json.dumps({"alone": alone, "together": together})
    (folder / f"{rank}.json").write_text(text, encoding="utf-8")
    dist.barrier()  # no process leaves while another still waits for it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
