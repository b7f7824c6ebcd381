"""Soft k-nearest neighbours, forward and backward, against loops that keep every round.

    OMP_NUM_THREADS=1 python benchmarks/soft_knn.py

One step of ETRAG's retriever over a whole store: scores from the cosine distance of span vectors,
k rows of weights, k soft neighbours, and the gradients of queries and instances. Three ways:

    ours      functional/soft_knn.py
    loop      distance by matrix product; the rounds as autograd records them, each round's weights
              put into one tensor, log(1 - w) as it stands; neighbours by einsum
    released  the same rounds and einsum, but the distance as ETRAG's authors compute it, with a
              (B, N, V, D) product of the unit vectors

All three take turns in one process, after a check that they agree in neighbours and gradients. Peak
memory is taken in a process of its own for each (largest resident size less that before the step;
on an accelerator the largest sum of allocations less the inputs). "weights only" leaves out
distance and neighbours. The curve gives the time of ours per thousand candidates, which should stay
the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from lightning_rag.functional.soft_knn import (
    soft_knn_weights,
    soft_neighbours,
    span_cosine_distance,
)

VARIANTS = ("etrag", "n3")


def loop_weights(scores, k, temperature, variant):
    divisor = temperature if variant == "etrag" else 1.0
    logits = scores / temperature
    kept = torch.zeros(scores.shape[0], k, scores.shape[1], device=scores.device)
    for j in range(k):
        kept[:, j] = logits.softmax(dim=-1)
        logits = logits + torch.log(1 - kept[:, j]) / divisor
    return kept


def ours(queries, instances, options):
    scores = -span_cosine_distance(queries, instances)
    weights = soft_knn_weights(scores, options.k, options.temperature, variant=options.variant)
    return soft_neighbours(weights, instances)


def loop(queries, instances, options):
    unit = torch.nn.functional.normalize(queries, dim=-1)
    others = torch.nn.functional.normalize(instances, dim=-1)
    scores = torch.einsum("bvd,nvd->bn", unit, others) / queries.shape[1] - 1
    weights = loop_weights(scores, options.k, options.temperature, options.variant)
    return torch.einsum("bkn,nvd->bkvd", weights, instances)


def released(queries, instances, options):
    unit = torch.nn.functional.normalize(queries, dim=-1)
    others = torch.nn.functional.normalize(instances, dim=-1)
    scores = ((unit[:, None] * others[None]).sum(dim=-1) - 1).mean(dim=-1)
    weights = loop_weights(scores, options.k, options.temperature, options.variant)
    return torch.einsum("bkn,nvd->bkvd", weights, instances)


def ours_weights(scores, _, options):
    return soft_knn_weights(scores, options.k, options.temperature, variant=options.variant)


def loop_weights_only(scores, _, options):
    return loop_weights(scores, options.k, options.temperature, options.variant)


WHOLE = {"ours": ours, "loop": loop, "released": released}
WEIGHTS = {"ours, weights only": ours_weights, "loop, weights only": loop_weights_only}


def inputs(name, options):
    """Leaf tensors of a run: (queries, instances), or (scores, nothing of interest)."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        values = torch.randn(*shape, generator=generator)
        return values.to(options.device).requires_grad_()

    if name in WEIGHTS:
        scores = leaf(options.batch, options.candidates)
        return scores.detach().mul_(0.1).requires_grad_(), leaf(1)
    return (
        leaf(options.batch, options.slots, options.dimensions),
        leaf(options.candidates, options.slots, options.dimensions),
    )


def step(name, tensors, options):
    """Seconds of one forward and backward pass; the output and the gradients."""
    for tensor in tensors:
        tensor.grad = None
    synchronise(options)
    start = time.perf_counter()
    out = {**WHOLE, **WEIGHTS}[name](*tensors, options)
    # The square makes the gradient depend on the output, as a loss would.
    out.square().sum().backward()
    synchronise(options)
    return (
        time.perf_counter() - start,
        out.detach(),
        [t.grad for t in tensors if t.grad is not None],
    )


def synchronise(options):
    if options.device == "cuda":
        torch.cuda.synchronize()


def measure(options):
    """Runs in a process of its own: peak of the first step in bytes, seconds of the best of two."""
    tensors = inputs(options.measure, options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    first = step(options.measure, tensors, options)[0]
    if options.device == "cuda":
        after = torch.cuda.max_memory_allocated()
    else:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = first if options.once else min(step(options.measure, tensors, options)[0], first)
    print(json.dumps({"bytes": after - before, "seconds": seconds}))


def in_own_process(name, options, **changes):
    arguments = ["--measure", name]
    for key, value in {**vars(options), **changes}.items():
        if key in ("candidates", "batch", "k", "slots", "dimensions", "temperature", "variant"):
            arguments += [f"--{key}", str(value)]
    arguments += ["--device", options.device] + (["--once"] if changes.get("once") else [])
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def compare(options, names, peaks):
    """Stop unless neighbours and gradients agree with ours; then a line for each way."""
    tensors = inputs(names[0], options)
    seconds, results = {}, {}
    for name in names:
        taken, out, gradients = step(name, tensors, options)
        seconds[name], results[name] = [taken], [out, *gradients]
    for name in names[1:]:
        worst = []
        for mine, theirs in zip(results[names[0]], results[name], strict=True):
            scale = theirs.abs().max().item()
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * scale)
            worst.append((mine - theirs).abs().max().item() / scale)
        text = ", ".join(f"{value:.0e}" for value in worst)
        print(f"{names[0]} = {name}: output, gradients differ by at most {text} of the largest")
    results.clear()
    for _ in range(options.repeats):
        for name in names:
            if name != "released":  # takes tens of seconds; once is enough
                seconds[name].append(step(name, tensors, options)[0])
    best = {name: min(values) for name, values in seconds.items()}
    print("way                | seconds | x ours | peak, MiB | x ours")
    for name in names:
        print(
            f"{name:18s} | {best[name]:7.3f} | {best[name] / best[names[0]]:6.1f} "
            f"| {peaks[name] / 2**20:9.1f} | {peaks[name] / peaks[names[0]]:6.1f}"
        )


def curve(options):
    print(f"curve, ours, {options.curve_batch} queries")
    print("candidates | seconds | ms per 1,000 | peak, MiB | KiB per candidate")
    for count in options.curve:
        got = in_own_process("ours", options, candidates=count, batch=options.curve_batch)
        print(
            f"{count:10d} | {got['seconds']:7.3f} | {got['seconds'] / count * 1e6:12.2f} "
            f"| {got['bytes'] / 2**20:9.1f} | {got['bytes'] / count / 1024:6.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=5_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--slots", type=int, default=3)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--variant", choices=VARIANTS, default="etrag")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--curve", type=int, nargs="*", default=[1_000, 3_000, 10_000, 30_000, 100_000]
    )
    parser.add_argument("--curve-batch", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=None)
    parser.add_argument("--measure", choices=[*WHOLE, *WEIGHTS], help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.measure:
        measure(options)
        return
    print(
        f"B {options.batch}, N {options.candidates}, k {options.k}, V {options.slots}, "
        f"D {options.dimensions}, t {options.temperature}, {options.variant}, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    # First what runs in processes of its own: a child counts its parent's largest size as its own.
    peaks = {n: in_own_process(n, options, once=True)["bytes"] for n in [*WHOLE, *WEIGHTS]}
    curve(options)
    compare(options, list(WHOLE), peaks)
    compare(options, list(WEIGHTS), peaks)


if __name__ == "__main__":
    main()
