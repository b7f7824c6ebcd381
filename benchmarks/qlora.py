"""Full tuning, LoRA and QLoRA of one small decoder: peak memory and seconds of a training step.

    OMP_NUM_THREADS=1 python benchmarks/qlora.py

A Llama with random weights, written into a temporary folder, learns to write answers of a few words
after prompts with one passage. Five ways, the same texts, AdamW and learning rate:

    full          all weights, through Generator
    lora          adapters on all linear layers, through Generator
    qlora         the same over nf4 with double quantisation, through Generator
    plain lora    the same adapters by transformers and peft alone: texts tokenised beforehand,
                  padded on the right, -100 on the prompts, the model's own loss
    plain qlora   the same over nf4

Stops unless the losses of ours and plain agree to 1e-4 before the first step.

Seconds: all ways take turns, step by step, in one process, there and back again; these are the
seconds that the process computes (on a busy machine others compute too). Ratios are medians over
the rounds' ratios, with the middle half of them.

Memory: a process for each way, which allocates large tensors by themselves, so that what is freed
is given back. Peak is the largest resident memory over three steps, less that before the model was
read. Weights are copied before: as they are read they are pages of the file, which stay while any
of them is in use.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from dro_estimate import Words, save_model

from lightning_rag.backbones.config import GeneratorConfig, LoraConfig, QuantizationConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.types import Prompt, Rendered

WAYS = ("full", "lora", "qlora", "plain lora", "plain qlora")
TARGET = 1.03  # ours against plain
MIB = 2**20
# Fixed, so that glibc does not raise it: larger blocks go back to the system when they are freed.
MEMORY_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def generator_config(way: str, folder: str, options: argparse.Namespace) -> GeneratorConfig:
    """Return what a way's generator is made of; a plain way takes its tokeniser alone."""
    rank = 0 if way == "full" else options.rank
    return GeneratorConfig(
        source=folder,
        architecture="decoder-only",
        max_source_length=1024,
        lora=LoraConfig(rank=rank, alpha=2 * options.rank, dropout=0.0),
        quantization=QuantizationConfig("nf4" if way == "qlora" else "none"),
    )


def batches(options: argparse.Namespace) -> list[tuple[list[Prompt], list[str]]]:
    """Return the batches that all ways read, in turn."""
    words = Words()
    made = []
    for _ in range(options.batches):
        prompts = [
            Prompt(Rendered(words.text(10, 20)), (Rendered(words.text(20, 30)),))
            for _ in range(options.batch)
        ]
        made.append((prompts, [words.text(1, 3) for _ in prompts]))
    return made


class Ours:
    """A step through Generator."""

    def __init__(self, way: str, folder: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.generator = build_generator(generator_config(way, folder, options), []).train()
        self.model = self.generator.model
        self.batches = batches(options)
        self.optimizer = optimizer(self.model)

    def tokens(self, number: int) -> tuple[list[list[int]], list[tuple[int, ...]]]:
        """Return the tokens of a batch's prompts and answers."""
        prompts, answers = self.batches[number % len(self.batches)]
        return self.generator._rows(prompts), self.generator._answers(answers)

    def token_loss(self, number: int) -> float:
        """Return the mean over all answers' tokens, which is what a model's own loss is."""
        with torch.no_grad():
            total = self.generator.log_likelihood(*self.batches[number % len(self.batches)]).sum()
        return -total.item() / sum(len(answer) for answer in self.tokens(number)[1])

    def step(self, number: int) -> None:
        """Train on a batch."""
        prompts, answers = self.batches[number % len(self.batches)]
        loss = -self.generator.log_likelihood(prompts, answers, reduction="mean").mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Plain:
    """A step as a script with transformers and peft takes it."""

    def __init__(self, way: str, folder: str, options: argparse.Namespace) -> None:
        import peft
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        torch.manual_seed(0)
        quantized = way == "plain qlora"
        settings = {}
        if quantized:
            nf4 = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
            settings = {"quantization_config": nf4, "device_map": {"": "cpu"}}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)
        if quantized:
            model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        adapters = peft.LoraConfig(
            r=options.rank,
            lora_alpha=2 * options.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(model, adapters).train()
        self.batches: list[dict[str, torch.Tensor]] = []
        self.optimizer = optimizer(self.model)

    def take(self, tokenised: list[tuple[list[list[int]], list[tuple[int, ...]]]]) -> None:
        """Pad the tokens of all batches."""
        for prompts, answers in tokenised:
            pairs = list(zip(prompts, answers, strict=True))
            shape = (len(pairs), max(len(p) + len(a) for p, a in pairs))
            ids = torch.zeros(shape, dtype=torch.long)
            labels, mask = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
            for row, (prompt, answer) in enumerate(pairs):
                end = len(prompt) + len(answer)
                ids[row, :end] = torch.tensor([*prompt, *answer])
                labels[row, len(prompt) : end] = torch.tensor(answer)
                mask[row, :end] = 1
            self.batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})

    def token_loss(self, number: int) -> float:
        """Return the model's own loss."""
        with torch.no_grad():
            return self.model(**self.batches[number % len(self.batches)]).loss.item()

    def step(self, number: int) -> None:
        """Train on a batch."""
        loss = self.model(**self.batches[number % len(self.batches)]).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of what learns."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(learning, lr=1e-5, fused=True)


def build(way: str, folder: str, options: argparse.Namespace) -> Ours | Plain:
    """Build a way's model."""
    return (Plain if way.startswith("plain") else Ours)(way, folder, options)


def tokenised(folder: str, options: argparse.Namespace) -> list[tuple[list, list]]:
    """Return the tokens of all batches as Generator makes them."""
    ours = Ours("full", folder, options)
    return [ours.tokens(number) for number in range(options.batches)]


def status(field: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {field}: this needs Linux")


def forget_peak() -> None:
    """Let the largest resident memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def own_weights(model: torch.nn.Module) -> None:
    """Copy a model's weights out of the file that they were read from, and let go of the file."""
    for weight in model.parameters():
        if weight.is_floating_point():  # quantised ones are no part of the file
            weight.data = weight.data.clone()
    gc.collect()


def memory(way: str, folder: str, options: argparse.Namespace) -> dict[str, int]:
    """Measure one way, in this process, which has done nothing else."""
    import bitsandbytes  # noqa: F401  # what libraries take is not the model's
    import peft  # noqa: F401

    tokens = json.loads(Path(folder, "tokens.json").read_text())
    before = status("VmRSS")
    built = build(way, folder, options)
    if isinstance(built, Plain):
        built.take(tokens)
    own_weights(built.model)
    forget_peak()
    for number in range(3):
        built.step(number)
    peak = status("VmHWM") - before
    learning = sum(weight.numel() for weight in built.model.parameters() if weight.requires_grad)
    weights = sum(weight.nbytes for weight in built.model.parameters())
    return {"weights": weights, "learning": learning, "peak": peak}


def measured_alone(way: str, folder: str, options: argparse.Namespace) -> dict[str, int]:
    """Measure one way's memory in a process of its own."""
    given = [f"--{name}={getattr(options, name)}" for name in ("batch", "batches", "rank")]
    done = subprocess.run(
        [sys.executable, __file__, "--memory_of", way, "--folder", folder, *given],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **MEMORY_SETTINGS},
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds(folder: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Time all ways, which take turns; the first round warms up."""
    built = {way: build(way, folder, options) for way in WAYS}
    tokens = tokenised(folder, options)
    for one in built.values():
        if isinstance(one, Plain):
            one.take(tokens)
    for way in ("lora", "qlora"):
        ours, plain = built[way].token_loss(0), built[f"plain {way}"].token_loss(0)
        print(f"loss of {way}: {ours:.6f}, plain {plain:.6f}")
        if abs(ours - plain) > 1e-4:
            raise SystemExit(f"{way}: the losses differ by {abs(ours - plain):.1e}")
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds + 1):
        for way in (*WAYS, *reversed(WAYS)):  # there and back: no way is always the first
            start = time.process_time()
            built[way].step(number)
            taken[way].append(time.process_time() - start)
    # The two steps of a round are one figure: what grows within it hits all ways alike.
    return {way: [sum(pair) / 2 for pair in _pairs(times[2:])] for way, times in taken.items()}


def _pairs(values: list[float]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))


def ratio(above: list[float], below: list[float]) -> str:
    """Return the median of the rounds' ratios, and the middle half of them."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    quarter = len(ratios) // 4
    return f"{statistics.median(ratios):.3f} ({ratios[quarter]:.3f}-{ratios[-1 - quarter]:.3f})"


def report(times: dict[str, list[float]], found: dict[str, dict[str, int]]) -> None:
    """Print the tables."""
    print("| way | learn | weights, MiB | peak, MiB | x full | s a step | x full |")
    print("|---|---|---|---|---|---|---|")
    for way in WAYS:
        one = found[way]
        print(
            f"| {way} | {one['learning'] / 1e6:.2f} M | {one['weights'] / MIB:.0f} "
            f"| {one['peak'] / MIB:.0f} "
            f"| {one['peak'] / found['full']['peak']:.2f} | {statistics.median(times[way]):.2f} "
            f"| {ratio(times[way], times['full'])} |"
        )
    for way in ("lora", "qlora"):
        print(f"{way}, ours / plain: {ratio(times[way], times[f'plain {way}'])}; target {TARGET}")


def main() -> None:
    """Measure all ways and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--memory_of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory(options.memory_of, options.folder, options)))
        return
    options.decoder_only_layers = options.layers
    with tempfile.TemporaryDirectory() as folder:
        size = save_model("decoder-only", Path(folder), options)
        tokens = tokenised(folder, options)
        Path(folder, "tokens.json").write_text(json.dumps(tokens))
        lengths = [len(p) + len(a) for batch in tokens for p, a in zip(*batch, strict=True)]
        print(
            f"Llama of {size / 1e6:.1f} M parameters, vocabulary {options.vocabulary}; batches of "
            f"{options.batch}, {min(lengths)} to {max(lengths)} tokens; {options.rounds} rounds of "
            f"two steps, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        found = {way: measured_alone(way, folder, options) for way in WAYS}
        report(seconds(folder, options), found)


if __name__ == "__main__":
    main()
