"""What a run costs, split by phase: seconds, tokens, estimated FLOPs, peak memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_rag.functional.processes import process_count, texts_of_all
from lightning_rag.functional.weights import number_of_weights
from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import RagBatch

Counters = dict[str, float]


class Tokens(NamedTuple):
    """What a group's model has read so far."""

    read: int
    differentiated: int | None  # of these; None = it does not say


TRAINING = ("estimate", "refresh", "train")  # what training costs; the others look at what it did
TEST = "test"  # what is booked under no phase


class CostLedger(Callback):
    """Books seconds and tokens under the phase in which they were spent.

    `seconds/train` counts training batches, `seconds/evaluate` validation and test batches,
    `seconds/estimate` a phase's estimate pass, `seconds/refresh` encoding the store again for an
    index that training reads (one that only evaluation reads is a part of that). Tokens
    are non-padding tokens through each group's model. FLOPs are estimated from them, for each token
    and parameter that is no embedding: 2 for a forward pass, 2 more where a gradient passes through
    (to adapters, or through a frozen generator to a soft prompt), and again 2 where the parameter
    learns, which makes the 6 of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1). That leaves
    attention's quadratic part out, and what is computed twice to save memory, and it charges the
    tokens of an encoder-decoder with both of its halves. `flops` is the phase's sum, `flops/<what>`
    its parts.
    Memory is the process's peak resident size, and the device's peak where there is one.

    Several processes each keep books of their own until `agree`: then tokens and FLOPs are summed,
    and of seconds and memory that process counts that has the most.

    After every validation the sums over all phases up to then are logged as `cost/<name>`, and what
    `spent` returns as `cost/training/<name>`: these three mean the same for every method, whatever
    its phases are and whether it has estimates or an index.
    """

    def __init__(self) -> None:
        self.phases: dict[str, Counters] = {}
        self._own: dict[str, Counters] = {}  # of this process, since the processes agreed
        self._device = torch.device("cpu")
        self._since = time.perf_counter()
        self._tokens: dict[str, Tokens] = {}
        # Counting parameters takes a millisecond: of each group, and of each phase and group.
        self._sizes: dict[str, int] = {}
        self._backwards: dict[tuple[str, str], float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the books, so that a resumed run goes on counting."""
        self.agree()
        return {"phases": self.phases}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the books of a checkpoint."""
        self.phases = state_dict["phases"]

    def open(self, method: Method) -> None:
        """Count from here."""
        self._since = time.perf_counter()
        self._tokens, self._device = _tokens(method), method.device

    def book(self, method: Method, what: str) -> None:
        """Book what was spent since `open` on `what`, under the current phase."""
        name = TEST if method.trainer.testing else method.phase.name
        books = self._own if process_count() > 1 else self.phases
        book = books.setdefault(name, {})
        _add(book, f"seconds/{what}", time.perf_counter() - self._since)
        for group, now in _tokens(method).items():
            since = self._tokens.get(group, Tokens(0, 0))
            tokens = now.read - since.read
            if tokens == 0:
                continue
            if now.differentiated is not None:
                back = now.differentiated - (since.differentiated or 0)
            else:  # a model of somebody's own, which does not say
                back = tokens if what == "train" and group in method.phase.trains else 0
            if group not in self._sizes:
                self._sizes[group] = _parameters(method.groups()[group])
            _add(book, f"tokens/{group}/{what}", tokens)
            flops = 2.0 * self._sizes[group] * tokens
            if back:
                flops += self._backward(method, group) * back
            _add(book, "flops", flops)
            _add(book, f"flops/{what}", flops)
        for memory, size in _peak_memory().items():
            book[memory] = max(book.get(memory, 0.0), size)

    def _backward(self, method: Method, group: str) -> float:
        """Return the FLOPs of a backward pass through a group's model in this phase, by token."""
        place = (method.phase.name, group)
        if place not in self._backwards:
            module = method.groups()[group]
            learning = _parameters(module, learning=True)
            self._backwards[place] = 2.0 * (_parameters(module) + learning)
        return self._backwards[place]

    def agree(self) -> None:
        """Put the books of all processes together; each of them has to call this."""
        if process_count() == 1:
            return
        parts = [json.loads(text) for text in texts_of_all(json.dumps(self._own), self._device)]
        self._own = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            book = self.phases.setdefault(name, {})
            for key in dict.fromkeys(key for part in parts for key in part.get(name, {})):
                values = [part[name].get(key, 0.0) for part in parts if name in part]
                if key.startswith("memory/"):
                    book[key] = max(book.get(key, 0.0), *values)
                else:
                    _add(book, key, max(values) if key.startswith("seconds/") else sum(values))

    def credit(self, seconds: float) -> None:
        """Book seconds besides with the next `book`: a former process spent them on the same."""
        self._since -= seconds

    def withdraw(self, method: Method, what: str) -> None:
        """Take back what is booked as `what` under the current phase: it is to be booked anew."""
        self.agree()
        book = self.phases.get(method.phase.name, {})
        for name in [name for name in book if name.endswith(f"/{what}")]:
            value = book.pop(name)
            if name.startswith("flops/"):
                book["flops"] -= value

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RagBatch, batch_idx: int
    ) -> None:
        """Open the books."""
        self.open(as_method(pl_module))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: RagBatch,
        batch_idx: int,
    ) -> None:
        """Book a training batch."""
        self.book(as_method(pl_module), "train")
        self.open(as_method(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the books."""
        self.open(as_method(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the books."""
        self.open(as_method(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Book a validation, and log the totals so far."""
        if trainer.sanity_checking:
            return
        self.book(as_method(pl_module), "evaluate")
        self.agree()
        self.open(as_method(pl_module))
        if trainer.logger is not None:
            costs = {f"cost/{name}": value for name, value in self.totals().items()}
            costs |= {f"cost/training/{name}": value for name, value in self.spent().items()}
            trainer.logger.log_metrics(costs, step=trainer.global_step)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the books."""
        self.open(as_method(pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Book the test."""
        self.book(as_method(pl_module), "evaluate")
        self.agree()

    def totals(self) -> Counters:
        """Return the sums over the phases; of memory, the largest."""
        totals: Counters = {}
        for book in self.phases.values():
            for name, value in book.items():
                if name.startswith("memory/"):
                    totals[name] = max(totals.get(name, 0.0), value)
                else:
                    _add(totals, name, value)
        return totals

    def spent(self) -> Counters:
        """Return what training has cost so far: `seconds`, `generator_tokens` and `flops`.

        Steps, estimates and refreshes of the index count, over all phases; validations and tests do
        not: how often a run is looked at is no part of its method. Each of several processes has to
        call this.
        """
        self.agree()
        books = [book for name, book in self.phases.items() if name != TEST]

        def total(prefix: str) -> float:
            return sum(book.get(f"{prefix}/{what}", 0.0) for book in books for what in TRAINING)

        return {
            "seconds": total("seconds"),
            "generator_tokens": total("tokens/generator"),
            "flops": total("flops"),
        }


@contextmanager
def booked(method: Method, what: str) -> Iterator[Callable[[], None]]:
    """Book what happens inside as `what`, if the trainer keeps a ledger.

    Yields:
        A function that books what was spent up to now, for those who look at the books meanwhile.
    """
    ledgers = [c for c in method.trainer.callbacks if isinstance(c, CostLedger)]  # type: ignore[attr-defined]

    def book() -> None:
        for ledger in ledgers:
            ledger.book(method, what)
            ledger.open(method)

    for ledger in ledgers:
        ledger.open(method)
    yield book
    book()


def _add(book: Counters, name: str, value: float) -> None:
    book[name] = book.get(name, 0.0) + value


def _tokens(method: Method) -> dict[str, Tokens]:
    """Return the tokens that each group's model has processed so far."""
    return {
        name: Tokens(int(getattr(group, "tokens", 0)), getattr(group, "differentiated", None))
        for name, group in method.groups().items()
    }


def _parameters(module: nn.Module, *, learning: bool = False) -> int:
    """Count the parameters that are multiplied with every token: all but embeddings.

    Args:
        module: a group's model.
        learning: count those alone that learn.
    """
    embeddings = {
        id(parameter)
        for child in module.modules()
        if isinstance(child, nn.Embedding)
        for parameter in child.parameters()
    }
    return sum(
        number_of_weights(p)
        for p in module.parameters()
        if id(p) not in embeddings and (p.requires_grad or not learning)
    )


def _peak_memory() -> Counters:
    """Return the peak memory so far, in bytes."""
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"memory/process": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    if torch.cuda.is_available():
        memory["memory/device"] = float(torch.cuda.max_memory_allocated())
    return memory
