"""The ledger's FLOPs against those that torch counts, and against parameters times tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_rag.backbones.config import GeneratorConfig, LoraConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase
from lightning_rag.types import LossTerms, Prompt, RagBatch, Rendered, Retrieved

# So wide that attention's quadratic part, which the estimate leaves out, is a small one.
WIDE = TinyConfig(vocab_size=300, hidden_size=128, heads=2, layers=2, dropout=0.0)
SOURCE = "a man saw the old house near a river and the man went home again"
TARGETS = ["old house", "a river"]


class Reader(Method):
    """A generator, and a soft prompt for it."""

    def __init__(self, config: GeneratorConfig, trains: tuple[str, ...]) -> None:
        super().__init__(config)
        self.trains = trains
        self.generator = build_generator(config, [SOURCE, *TARGETS])
        self.prompt = nn.Embedding(4, self.generator.hidden_size)

    def groups(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "prompt": self.prompt}

    def phases(self) -> list[Phase]:
        return [Phase("only", self.trains, self.nothing, epochs=1)]

    def nothing(self, batch: RagBatch) -> LossTerms:
        raise NotImplementedError

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        raise NotImplementedError

    def likelihood(self, soft: bool) -> Tensor:
        prompts = [Prompt(Rendered(SOURCE))] * 2  # of one length: padding costs, and is no token
        given = self.prompt.weight.expand(2, -1, -1) if soft else None
        return self.generator.log_likelihood(prompts, TARGETS, soft_prompt=given).sum()


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Reader, "trainer", SimpleNamespace(testing=False))

    def reader(*trains: str, **settings: object) -> Reader:
        torch.manual_seed(0)
        config = GeneratorConfig(architecture="decoder-only", tiny=WIDE, **settings)
        method = Reader(config, trains)
        for name, group in method.groups().items():
            if name not in trains:
                group.requires_grad_(False)
        return method

    return reader


def weights(method: Reader, *, learning: bool = False) -> int:
    """What is no embedding; the output layer has the embedding's weights."""
    return sum(
        p.numel()
        for name, p in method.generator.named_parameters()
        if not name.endswith(("wte.weight", "wpe.weight", "embed_tokens.weight"))
        and (p.requires_grad or not learning)
    )


@pytest.mark.parametrize(
    ("trains", "soft", "factor"),
    [
        ((), False, 2),  # forward only, with autograd on
        (("prompt",), False, 2),  # what learns is not read
        (("prompt",), True, 4),  # the gradient passes through frozen weights
        (("generator",), False, 6),
        (("generator", "prompt"), True, 6),
    ],
)
def test_what_a_step_costs(make, trains: tuple[str, ...], soft: bool, factor: int) -> None:
    """Exactly so many per parameter and token, and about as many as torch counts."""
    method, ledger = make(*trains), CostLedger()
    ledger.open(method)
    with FlopCounterMode(display=False) as counter:
        likelihood = method.likelihood(soft)
        if likelihood.requires_grad:
            likelihood.backward()
    ledger.book(method, "train")
    book = ledger.phases["only"]
    assert book["flops"] == factor * weights(method) * book["tokens/generator/train"]
    assert book["flops/train"] == book["flops"]
    assert 0.95 < counter.get_total_flops() / book["flops"] < 1.15


def test_a_step_that_looks_ahead_without_gradient(make) -> None:
    """As online DRO: what is drawn and scored within a step has no backward pass."""
    method, ledger = make("generator"), CostLedger()
    ledger.open(method)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            for _ in range(3):
                method.likelihood(False)
        read = method.generator.tokens
        method.likelihood(False).backward()
    ledger.book(method, "train")
    book = ledger.phases["only"]
    learned = method.generator.tokens - read
    assert read == 3 * learned
    assert book["flops"] == weights(method) * (2 * read + 6 * learned)
    assert 0.95 < counter.get_total_flops() / book["flops"] < 1.15


def test_adapters_pay_for_the_way_to_them(make) -> None:
    """Frozen weights 4, adapters 6."""
    pytest.importorskip("peft")
    method, ledger = make("generator", lora=LoraConfig(rank=4)), CostLedger()
    ledger.open(method)
    with FlopCounterMode(display=False) as counter:
        method.likelihood(False).backward()
    ledger.book(method, "train")
    book = ledger.phases["only"]
    learning = weights(method, learning=True)
    assert 0 < learning < weights(method) / 5
    expected = 4 * weights(method) + 2 * learning
    assert book["flops"] == expected * book["tokens/generator/train"]
    # Below the first adapters nothing has to be differentiated: torch counts a little less.
    assert 0.85 < counter.get_total_flops() / book["flops"] < 1.15


def test_a_model_that_does_not_say_is_charged_by_what_its_phase_trains(make) -> None:
    for trains, factor in ((("generator",), 6), ((), 2)):
        method, ledger = make(*trains), CostLedger()
        reader = nn.Linear(3, 5)
        reader.tokens = 0
        reader.requires_grad_(bool(trains))
        method.groups = lambda reader=reader: {"generator": reader}
        ledger.open(method)
        reader.tokens += 7
        ledger.book(method, "train")
        reader.tokens += 7
        ledger.open(method)
        reader.tokens += 2
        ledger.book(method, "evaluate")
        book = ledger.phases["only"]
        assert book["flops/train"] == factor * 20 * 7
        assert book["flops/evaluate"] == 2 * 20 * 2
