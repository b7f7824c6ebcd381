"""One of several processes that share a batch: `python gather_process.py FOLDER RANK WORLD`.

Reads the batches from FOLDER/batches.json and writes losses and gradients to FOLDER/RANK.json:
first of each whole batch, before it joins the other processes, then of the shared one.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_rag.functional.contrastive import BLOCKS, gather, info_nce, own_scores
from lightning_rag.functional.distillation import kl_distillation

WAIT = datetime.timedelta(seconds=60)


def encoder(width: int) -> torch.nn.Module:
    """The same small network in every process."""
    torch.manual_seed(7)
    layers = [torch.nn.Linear(width, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)]
    return torch.nn.Sequential(*layers).double()


def loss_of(model: torch.nn.Module, queries: Tensor, passages: Tensor, rest: Tensor) -> Tensor:
    """InfoNCE without false negatives plus KL of the whole batch, whoever has its rows.

    rest: (B, P + 1), the teacher's scores and a label; passages of queries with the same label
    are no negatives.
    """
    vectors = torch.nn.functional.normalize(model(torch.cat([queries, passages])), dim=-1)
    own, others = vectors.split([len(queries), len(passages)])
    own, others = gather(own), gather(others)
    teacher, label = gather(rest[:, :-1]), gather(rest[:, -1].long())
    same = label.unsqueeze(-1) == label.repeat_interleave(teacher.shape[1])
    contrastive = info_nce(own, others, temperature=0.1, blocks=BLOCKS, ignore=same)
    student = own_scores(own, others)
    return (0.2 * contrastive + kl_distillation(student, teacher, student_temperature=0.1)).mean()


def whole_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradients of the weights, all rows in one process."""
    tensors = [torch.tensor(batch[name]).double() for name in ("queries", "passages", "rest")]
    model = encoder(tensors[0].shape[1])
    loss = loss_of(model, *tensors)
    loss.backward()
    return {"loss": loss.item(), "gradients": [p.grad.tolist() for p in model.parameters()]}


def shared_batch(batch: dict[str, Any], rank: int) -> dict[str, Any]:
    """The same from this process' rows, under DistributedDataParallel."""
    tensors = [torch.tensor(batch[name]).double() for name in ("queries", "passages", "rest")]
    size = len(tensors[1]) // len(tensors[0])
    start, count = sum(batch["shares"][:rank]), batch["shares"][rank]
    place = slice(start, start + count)
    mine = [tensors[0][place], tensors[1][start * size : (start + count) * size], tensors[2][place]]
    model = torch.nn.parallel.DistributedDataParallel(encoder(tensors[0].shape[1]))
    loss = loss_of(model, *mine)
    loss.backward()
    return {"loss": loss.item(), "gradients": [p.grad.tolist() for p in model.parameters()]}


def own_rows(given: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """The released loss: of the own rows alone, gradients before they are averaged."""
    names, t = ("query", "passages", "teacher_scores"), given["temperature"]
    parts = [torch.tensor(given[name]).double().chunk(world)[rank] for name in names]
    queries, passages = (part.clone().requires_grad_() for part in parts[:2])
    vectors = [torch.nn.functional.normalize(part, dim=-1) for part in (queries, passages)]
    everything = [gather(part) for part in vectors]
    losses = info_nce(*everything, temperature=t, blocks=BLOCKS).chunk(world)[rank]
    divergence = kl_distillation(own_scores(*vectors), parts[2], student_temperature=t)
    loss = given["contrastive_weight"] * losses.mean() + divergence.mean()
    loss.backward()
    return {
        "loss": loss.item(),
        "grad_query": queries.grad.tolist(),
        "grad_passages": passages.grad.tolist(),
    }


def main() -> None:
    """Take part in every batch of the folder."""
    torch.set_default_dtype(torch.float64)  # so that numbers are read without loss
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    given = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    whole = [whole_batch(batch) for batch in given["batches"]]
    place = f"file://{folder}/meeting_point"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world, timeout=WAIT)
    found: dict[str, Any] = {
        "whole": whole,
        "shared": [shared_batch(batch, rank) for batch in given["batches"]],
        "released": [own_rows(case, rank, world) for case in given["released"]],
        # Without a gradient, of any type and number of dimensions.
        "ids": gather(torch.tensor([10 * rank + i for i in range(rank + 1)])).tolist(),
        "images": list(gather(torch.zeros(2 - rank, 3, 4, dtype=torch.bool)).shape),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()  # no process leaves while another still waits for it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
