"""Peak memory of `log_likelihood` over growing prompts, against logits at every position.

    python benchmarks/log_likelihood_memory.py

A decoder-only model with a large vocabulary reads prompts of growing length. The peak of the
allocations during one forward and backward pass is read from torch's profiler. `log_likelihood`
computes logits at the answer's tokens only, so that its peak grows with the prompt's hidden states
alone; with logits at every position it grows with prompt length times vocabulary. The last column
is what each further prompt token costs, in KiB: vocabulary x 4 bytes is the part that must be gone.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.functional.likelihood import sequence_log_likelihood
from lightning_rag.types import Prompt, Rendered

ANSWER = "the answer"


def peak_bytes(run):
    """Largest sum of live allocations during a call, without those from before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def answer_positions_only(generator, prompts):
    generator.log_likelihood(prompts, [ANSWER] * len(prompts)).sum().backward()


def every_position(generator, prompts):
    batch = generator._embed(prompts, None)
    answer = torch.tensor(generator._answers([ANSWER] * len(prompts)))
    ids = torch.cat([batch.ids, answer], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -answer.shape[1] :] = answer
    logits = generator.model(input_ids=ids).logits
    sequence_log_likelihood(logits[:, :-1], labels[:, 1:]).sum().backward()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tiny = TinyConfig(vocab_size=arguments.vocabulary)
    config = GeneratorConfig(
        architecture="decoder-only", max_source_length=max(arguments.lengths) + 8, tiny=tiny
    )
    generator = build_generator(config, ["x y the answer"])
    print(f"vocabulary {arguments.vocabulary}, batch {arguments.batch}, torch {torch.__version__}")
    print("prompt tokens | answer positions only, MiB | every position, MiB | ratio")
    peaks = {}
    for length in arguments.lengths:
        prompts = [Prompt(Rendered(" x" * (length - 8)))] * arguments.batch
        row = []
        for run in (answer_positions_only, every_position):
            generator.zero_grad(set_to_none=True)
            row.append(peak_bytes(lambda run=run, prompts=prompts: run(generator, prompts)))
        peaks[length] = row
        only, every = (peak / 2**20 for peak in row)
        print(f"{length:13d} | {only:26.1f} | {every:19.1f} | {every / only:5.1f}")
    first, last = arguments.lengths[0], arguments.lengths[-1]
    slopes = [
        (peaks[last][i] - peaks[first][i]) / (last - first) / arguments.batch / 2**10
        for i in range(2)
    ]
    print(f"each further prompt token: {slopes[0]:.1f} KiB | {slopes[1]:.1f} KiB")
    print(f"one row of logits: {arguments.vocabulary * 4 / 2**10:.1f} KiB")


if __name__ == "__main__":
    main()
