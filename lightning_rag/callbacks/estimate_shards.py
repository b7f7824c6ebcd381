"""What an estimate has found so far, on disk: a run killed within one goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.files import Json, write_json
from lightning_rag.functional.contrastive import gather
from lightning_rag.functional.processes import process_count, texts_of_all
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Bank
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the layout of a shard changes: older shards are then discarded
MANIFEST = "manifest.json"
PACKAGES = ("lightning_rag", "torch", "transformers")
# The part of the configuration that an estimate may depend on, besides what is hashed.
SETTINGS = ("generator", "encoder", "model", "data.reader", "data.task")
NO_SETTINGS = ("model.init_args.optimizer",)  # the weights show what it did

Spent = Mapping[str, float]


@dataclass
class Shard:
    """Some batches of an estimate.

    Attributes:
        batches: their numbers in the estimate, ascending.
        rows: (R,) long, the queries' rows in the training split, batch by batch.
        values: what the estimate returned for them, (R, …) by name.
        spent: what they cost, as `Meter.lap` counts it.
    """

    batches: list[int]
    rows: Tensor
    values: dict[str, Tensor]
    spent: dict[str, float] = field(default_factory=dict)


class EstimateShards:
    """The finished batches of one phase's estimate, in a folder of safetensors files.

    A shard holds whole batches, and is written beside its place and renamed: it is there or not,
    whenever the process is killed. It is called by its first batch, and says which batches it has;
    so several processes that each have batches of their own can write into one folder. A manifest
    says what the estimate depends on; shards of another manifest are not used.

    Args:
        folder: where the shards lie; made with the first.
        manifest: everything that the values depend on, as plain JSON (see `manifest_of`).
        seconds: least time between two shards: so much work a kill can cost.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Json], seconds: float) -> None:
        self.folder = folder
        self._manifest = dict(manifest)
        text = json.dumps(self._manifest, sort_keys=True, allow_nan=False)
        self._key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self._seconds = seconds
        self._written = time.monotonic()
        self._waiting: list[Shard] = []  # a batch each
        self._has_manifest = False
        self._fails = False

    def read(self) -> list[Shard]:
        """Return the shards that can be used; remove, and tell of, those that cannot.

        Batches that are still waiting to be written are not among them.
        """
        paths = sorted(self.folder.glob("*.safetensors"))
        if not paths:
            return []
        other = _differences(self._manifest, _read_manifest(self.folder / MANIFEST))
        if other:
            log.warning(
                "%s: the batches found there are computed again, for their estimate differs in: %s",
                *(self.folder, ", ".join(other)),
            )
            shutil.rmtree(self.folder, ignore_errors=True)
            return []
        shards = []
        for path in paths:
            try:
                shards.append(self._read(path))
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                log.warning("%s: damaged, its batches are computed again: %s", path, error)
                path.unlink(missing_ok=True)
        return shards

    def add(self, batch: int, rows: Tensor, values: Mapping[str, Tensor], spent: Spent) -> None:
        """Take a finished batch; write a shard if it is time to.

        Args:
            batch: its number.
            rows: (B,) long, rows of its queries.
            values: (B, …) by name, the same names in every batch.
            spent: what it cost.
        """
        kept = {name: value.detach().cpu() for name, value in values.items()}
        self._waiting.append(Shard([batch], rows.cpu(), kept, dict(spent)))
        if time.monotonic() - self._written >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write the batches that wait; where that fails, the estimate goes on without shards."""
        if self._waiting and not self._fails:
            try:
                self._write(self._waiting)
            except OSError as error:
                self._fails = True
                log.warning("%s: cannot keep the batches of an estimate: %s", self.folder, error)
        self._waiting = []
        self._written = time.monotonic()

    def _write(self, parts: list[Shard]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._has_manifest:
            write_json(self.folder / MANIFEST, self._manifest)
            self._has_manifest = True
        spent: Counter[str] = Counter()
        for part in parts:
            spent.update(part.spent)  # which adds
        batches = [number for part in parts for number in part.batches]
        names = list(parts[0].values)
        tensors = {f"value/{n}": torch.cat([part.values[n] for part in parts]) for n in names}
        tensors["batches"] = torch.tensor(batches)
        tensors["rows"] = torch.cat([part.rows for part in parts])
        said = {"key": self._key, "names": json.dumps(names), "spent": json.dumps(spent)}
        path = self.folder / f"{batches[0]:08d}.safetensors"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(save(tensors, said))
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a name without its content
        os.replace(temporary, path)

    def _read(self, path: Path) -> Shard:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            if said.get("key") != self._key:
                raise ValueError("it is of another manifest")
            values = {n: file.get_tensor(f"value/{n}") for n in json.loads(said["names"])}
            batches, rows = file.get_tensor("batches").tolist(), file.get_tensor("rows")
        return Shard(batches, rows, values, json.loads(said["spent"]))


class Meter:
    """What a method's models did since the last look: seconds, and their counters.

    Args:
        method: whose modules are watched.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._ledgers = [c for c in method.trainer.callbacks if isinstance(c, CostLedger)]  # type: ignore[attr-defined]
        self._counters = {
            f"{name}.{what}": (module, what)
            for name, module in method.named_modules()
            for what in ("tokens", "truncated")
            if what in vars(module)  # no property, which sums up the counters of others
        }
        self._before = self._now()

    def lap(self) -> Spent:
        """Return what was counted since the last call, or since the beginning.

        Of several processes, which work at the same time, each has its part of the seconds.
        """
        before, self._before = self._before, self._now()
        spent = {name: value - before[name] for name, value in self._before.items()}
        return {**spent, "seconds": spent["seconds"] / process_count()}

    def withdraw(self) -> None:
        """Take back what a checkpoint had booked of this estimate: all of it is credited anew."""
        for ledger in self._ledgers:
            ledger.withdraw(self._method, "estimate")

    def credit(self, spent: Spent) -> None:
        """Count what a former process spent, as if it were spent now (inside `booked`)."""
        for name, value in spent.items():
            if name in self._counters:
                module, what = self._counters[name]
                setattr(module, what, getattr(module, what) + int(value))
        for ledger in self._ledgers:
            ledger.credit(spent.get("seconds", 0.0))
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        counts = {name: getattr(module, what) for name, (module, what) in self._counters.items()}
        return {"seconds": time.perf_counter(), **counts}


def turns(
    batches: Iterable[RagBatch],
    done: Container[int],
    rank: int,
    world: int,
    affords: Callable[[], bool],
) -> Iterator[tuple[int, RagBatch]]:
    """Pass on the batches of an estimate that are this process's, with their numbers.

    Args:
        batches: all.
        done: numbers of those that are known.
        rank: the process; it has every `world`-th of the others.
        world: how many processes there are.
        affords: whether there may be another round; all processes ask before each.
    """
    left = 0
    for index, batch in enumerate(batches):
        if index in done:
            continue
        if left % world == 0 and not affords():
            return
        if left % world == rank:
            yield index, batch
        left += 1


def share_bank(bank: Bank, own: Sequence[Tensor], size: int, device: torch.device) -> None:
    """Give every process what the others have estimated; all of them have to call this.

    Args:
        bank: of this process.
        own: the rows that it has estimated, (B,) each.
        size: number of training queries.
        device: where the processes exchange tensors.
    """
    if process_count() == 1:
        return
    kinds = {
        name: [list(tensor.shape[1:]), str(tensor.dtype)] for name, tensor in bank.tensors.items()
    }
    known: dict[str, tuple[list[int], str]] = {}  # one without a batch knows of nothing
    for text in texts_of_all(json.dumps(kinds), device):
        known |= json.loads(text)
    rows = torch.cat([torch.empty(0, dtype=torch.long), *own])
    everyones = gather(rows.to(device))
    for name, (shape, kind) in known.items():
        dtype: torch.dtype = getattr(torch, kind.removeprefix("torch."))
        values = bank.tensors[name][rows] if len(rows) else torch.empty(0, *shape, dtype=dtype)
        bank.put(everyones, {name: gather(values.to(device))}, size)


def manifest_of(
    trainer: Trainer, method: Method, settings: Mapping[str, object]
) -> dict[str, Json]:
    """Return everything that the estimate of the current phase depends on.

    Args:
        trainer: says the precision.
        method: the method, with the weights of the estimate.
        settings: the run's configuration, flat; what cannot matter here is left out.
    """
    data = method.data
    return {
        "format": FORMAT,
        "phase": method.phase.name,
        "phase_index": method.phase_index,
        "seed": data.seed,
        "batch_size": data.eval_batch_size,
        "data": _data_hash(method),
        "weights": _weights_hash(method),
        "precision": str(trainer.precision),
        "device": method.device.type,
        "versions": {package: version(package) for package in PACKAGES},
        "settings": {
            key: _identity(value)
            for key, value in settings.items()
            if _within(key, SETTINGS) and not _within(key, NO_SETTINGS)
        },
    }


def _identity(value: object) -> str:
    """Return a setting as text; a file that it names counts by what is in it."""
    text = str(value)
    if isinstance(value, str | Path):
        try:
            content = Path(value).expanduser().read_bytes()
        except (OSError, ValueError):  # no file: an ordinary setting
            return text
        return f"{text} {hashlib.sha256(content).hexdigest()}"
    return text


def _within(key: str, parts: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{part}.") for part in parts)


def _data_hash(method: Method) -> str:
    """Return the SHA-256 of the training queries, their candidates and the store."""
    queries, store = method.data.queries("train"), method.data.store
    digest = hashlib.sha256(store.fingerprint.encode())
    demonstrations = (p.instance for p in store if p.instance is not None)
    for instances in (queries.instances, demonstrations):
        for instance in instances:  # a record's repr is all of its fields
            digest.update(repr(instance).encode("utf-8", "surrogatepass") + b"\n")
    for array in (queries.candidates.ids, queries.candidates.scores):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _weights_hash(method: Method) -> str:
    """Return the SHA-256 of all weights that a checkpoint would hold."""
    digest = hashlib.sha256()
    for name, tensor in method.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_manifest(path: Path) -> object:
    """Return what a manifest says; None where there is none that can be read."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _differences(ours: Mapping[str, Json], theirs: object) -> list[str]:
    """Return what two manifests do not have in common, in words."""
    if not isinstance(theirs, dict):
        return ["no manifest that can be read"]
    found = []
    for key in sorted({*ours, *theirs}):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{key} {name}" for name in _differences(one, other)]
        elif one != other:
            found.append(key)
    return found
