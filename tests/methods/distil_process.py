"""One of two processes that share a batch: `python distil_process.py FOLDER RANK WORLD`.

Computes RUIE's distillation of whole batches before it joins the other process, then of its own
queries of them, and writes losses and gradients to FOLDER/RANK.pt.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig, TinyConfig
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.methods.ruie import Ruie
from lightning_rag.tasks.relation_extraction import RelationExtraction

TINY = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1)
SHARES = ([4, 4], [3, 5])  # queries of a batch of eight that each process has
LEFT_OUT = (0, 1, 2, 6)  # with the second shares these are all of the first process
WAIT = datetime.timedelta(seconds=60)


def method_of(folder: Path) -> Ruie:
    """The same data, weights and teacher's scores in every process."""
    data = RagDataModule(
        SyntheticRelations(train=24, validation=8, test=8),
        RelationExtraction(scorer="accuracy", negative_label=None),
        BM25(),
        num_candidates=8,
        cache_dir=str(folder / "cache"),
    )
    data.setup()
    method = Ruie(
        GeneratorConfig(tiny=TINY),
        EncoderConfig(tiny=TINY),
        temperature=0.1,
        mask_false_negatives="same_answer",
    )
    method.attach(data)
    method.eval()
    scores = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    scores[list(LEFT_OUT)] = torch.nan
    method.bank.put(torch.arange(24), {"reward": scores}, 24)
    return method


def measured(method: Ruie, rows: list[int]) -> dict[str, Tensor]:
    """The loss of the queries `rows`, its terms and the gradients of the retriever."""
    method.zero_grad()
    loss = method.distil_loss(method.data.queries("train").batch(rows))
    loss.total.backward()
    gradients = {n: p.grad for n, p in method.retriever.named_parameters() if p.grad is not None}
    return {"loss": loss.total.detach(), **loss.terms, **gradients}


def averaged(found: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """The mean over the processes, as DistributedDataParallel makes it of the gradients."""
    for tensor in found.values():
        dist.all_reduce(tensor)
        tensor /= world
    return found


def main() -> None:
    """Take part in both batches."""
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    method = method_of(folder / str(rank))
    whole = measured(method, list(range(8)))
    place = f"file://{folder}/meeting_point"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world, timeout=WAIT)
    shared = []
    for shares in SHARES:
        start = sum(shares[:rank])
        own = measured(method, list(range(start, start + shares[rank])))
        shared.append(averaged(own, world))
    torch.save({"whole": whole, "shared": shared}, folder / f"{rank}.pt")
    dist.barrier()  # no process leaves while another still waits for it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
