"""DRO's estimate of one query, m lists drawn and scored, against each list on its own.

    OMP_NUM_THREADS=1 python benchmarks/dro_estimate.py

The listwise selector draws m ordered lists of K out of N passages, and the generator gives the
log-likelihood of the answer after each of them. Both are models from scratch with random weights
and a vocabulary of 30,000, once decoder-only, once encoder-decoder with fused passages. Three ways:

    ours      ListwiseSelector.sample and Generator.score
    frugal    each list on its own, without needless work: drawn with keys and values kept, scored
              by log_likelihood of one pair, with logits at the answer's tokens only
    plain     each list on its own: a forward pass over everything for each identifier, no cache,
              and one for the answer; logits at every position

The three take turns query by query in one process. The lists that the others draw are replaced by
ours, so that their log-probabilities can be compared; stops unless these and the log-likelihoods
agree to 1e-4. Seconds are those that the process computes (on a busy machine others compute too),
medians over the queries. Peak memory is the largest sum of allocations during one query, without
the weights, by torch's profiler; of one list where each goes on its own.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from log_likelihood_memory import peak_bytes

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.tiny import train_tokenizer
from lightning_rag.functional.likelihood import sequence_log_likelihood
from lightning_rag.retrieval.listwise import ListwiseSelector
from lightning_rag.retrieval.selector import Offer
from lightning_rag.types import Prompt, Rendered

WAYS = ("ours", "frugal", "plain")
POSITIONS = 8192  # positions that the decoder-only model knows


class Words:
    """Invented words and texts of them."""

    def __init__(self):
        self.random = random.Random(0)
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        self.words = ["".join(self.random.choices(syllables, k=3)) for _ in range(30_000)]

    def text(self, shortest, longest):
        """So many words, or anything between."""
        count = self.random.randint(shortest, longest)
        return " ".join(self.random.choices(self.words, k=count))


def save_model(architecture, folder, options):
    """Write a model with random weights, and its tokeniser."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    words = Words()
    tokenizer = train_tokenizer(TinyConfig(vocab_size=options.vocabulary), words.words)
    torch.manual_seed(0)
    width, inner = options.width, 4 * options.width
    if architecture == "decoder-only":
        config = LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=options.decoder_only_layers,
            num_attention_heads=width // 64,
            initializer_range=0.04,  # twice the usual: logits vary as those of the T5 do
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = LlamaForCausalLM(config)
    else:
        config = T5Config(
            vocab_size=options.vocabulary,
            d_model=width,
            d_kv=64,
            d_ff=inner,
            num_layers=options.layers,
            num_decoder_layers=options.layers,
            num_heads=width // 64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.cls_token_id,
        )
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


class Estimate:
    """One query: what the three ways draw from and score.

    Attributes:
        lists: the m lists that ours drew, in columns of the candidates.
    """

    def __init__(self, selector, generator, words, options):
        self.selector, self.generator, self.options = selector, generator, options
        self.query = Rendered(words.text(8, 15))
        self.passages = [Rendered(words.text(*options.passage)) for _ in range(options.n)]
        self.answer = words.text(2, 4)
        offer = Offer([self.query], [self.passages], options.n)
        self.offer, (self.prompt,) = offer, selector.prompts(offer)
        self.chain = selector.chain_tokens()
        self.lists = []

    def context(self, places):
        """What the generator reads after a list."""
        return Prompt(self.query, tuple(self.passages[place] for place in places))

    def draw(self, way, count):
        """Log-probabilities (count,) of the first lists."""
        if way == "ours":
            sampled = self.selector.sample(self.offer, self.options.m)
            self.lists = sampled.positions[0].tolist()
            return sampled.log_prob[0]
        step = self.frugal_steps if way == "frugal" else self.plain_steps
        identifiers = torch.tensor(self.chain.identifiers)
        log_p = []
        for places in self.lists[:count]:
            left = torch.ones(len(identifiers), dtype=torch.bool)
            total = torch.zeros(())
            for place, logits in zip(places, step(places), strict=True):
                among = logits[identifiers].masked_fill(~left, -torch.inf).log_softmax(-1)
                among.exp().multinomial(1)  # what is drawn; ours takes its place
                total = total + among[place]
                left[place] = False
            log_p.append(total)
        return torch.stack(log_p)

    def frugal_steps(self, places):
        """Logits (V,) before each identifier of a list, with keys and values kept."""
        continuation = self.selector.generator.begin([self.prompt])
        read = 0
        for number in range(len(places)):
            prefix = self.chain.prefix(places[:number])
            yield continuation.append(torch.tensor([prefix[read:]]))[0]
            read = len(prefix)

    def plain_steps(self, places):
        """The same, all of it read for each."""
        for number in range(len(places)):
            written = self.chain.prefix(places[:number])
            # A copy: the logits of all positions must go before the next ones come.
            yield every_logit(self.selector.generator, self.prompt, written)[-1].clone()

    def score(self, way, count):
        """Log-likelihoods (count,) of the answer after the first lists."""
        prompts = [self.context(places) for places in self.lists[:count]]
        if way == "ours":
            targets = [self.answer] * count
            return self.generator.score(prompts, targets, token_budget=self.options.token_budget)
        if way == "frugal":
            return torch.cat([self.generator.log_likelihood([p], [self.answer]) for p in prompts])
        (answer,) = self.generator._answers([self.answer])
        scores = []
        for prompt in prompts:
            logits = every_logit(self.generator, prompt, answer[:-1])
            labels = torch.full((1, len(logits)), -100)
            labels[0, -len(answer) :] = torch.tensor(answer)
            scores.append(sequence_log_likelihood(logits[None], labels))
        return torch.cat(scores)


def every_logit(generator, prompt, written):
    """Logits (L, V) at all positions of the decoder, prompt and what is written read anew."""
    if generator.config.architecture == "decoder-only":
        ids = [*generator._rows([prompt])[0], *written]
        return generator.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    encoded = generator._encode([prompt], None)
    return generator.model(
        encoder_outputs=(encoded.states,),
        attention_mask=encoded.mask,
        decoder_input_ids=torch.tensor([[generator.start_id, *written]]),
        use_cache=False,
    ).logits[0]


PARTS = {"sampling": Estimate.draw, "scoring": Estimate.score}


def timed(run):
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def agreement(name, results):
    """Stop unless all ways agree; say by how much they do."""
    worst = max((results[way] - results["ours"]).abs().max().item() for way in WAYS)
    if worst > 1e-4:
        raise SystemExit(f"{name}: the ways differ by {worst:.1e}")
    return worst


@torch.no_grad()
def measure(architecture, options):
    with tempfile.TemporaryDirectory() as folder:
        size = save_model(architecture, Path(folder), options)
        config = GeneratorConfig(
            source=folder,
            architecture=architecture,
            passages="concatenate" if architecture == "decoder-only" else "fuse",
            max_source_length=POSITIONS if architecture == "decoder-only" else 512,
        )
        selector = ListwiseSelector(config, [], options.k, options.n).eval()
        generator = build_generator(config, []).eval()
    words = Words()
    seconds = {(part, way): [] for part in PARTS for way in WAYS}
    worst, spread = dict.fromkeys(PARTS, 0.0), []
    for number in range(options.queries + 1):  # the first warms up, and shows the memory
        estimate = Estimate(selector, generator, words, options)
        for part, run in PARTS.items():
            if number == 0:
                count = {"ours": options.m, "frugal": 1, "plain": 1}
            else:
                count = dict.fromkeys(WAYS, options.m)
            results = {}
            for way in WAYS:
                taken, results[way] = timed(partial(run, estimate, way, count[way]))
                seconds[part, way].append(taken)
            if number:
                worst[part] = max(worst[part], agreement(part, results))
                spread.append((results["ours"].min().item(), results["ours"].max().item()))
        if number == 0:
            peaks = {
                (part, way): peak_bytes(partial(run, estimate, way, count[way]))
                for part, run in PARTS.items()
                for way in WAYS
            }
    report(architecture, size, estimate, seconds, peaks, worst)
    for part, (low, high) in zip(PARTS, spread[-2:], strict=True):
        print(f"  {part}: the last query's values from {low:.2f} to {high:.2f}")


def report(architecture, size, estimate, seconds, peaks, worst):
    fuse = estimate.generator.config.passages == "fuse"
    generator = estimate.generator
    read = [estimate.prompt, estimate.context(estimate.lists[0])]
    if fuse:
        lengths = [sum(len(r.ids) for r in rows) for rows in generator._inputs(read, 0)]
    else:
        lengths = [len(ids) for ids in generator._rows(read)]
    print(
        f"{architecture}, {size / 1e6:.1f} M parameters; the last query's inputs: {lengths[0]} "
        f"tokens of the selector, {lengths[1]} of the generator for a list"
    )
    gaps = ", ".join(f"{part} {value:.0e}" for part, value in worst.items())
    print(f"the ways differ by at most: {gaps}")
    print("part     | way    | seconds | x ours | peak, MiB | x ours")
    time_of = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    for way in WAYS:
        both = [sum(pair) for pair in zip(*(seconds[p, way][1:] for p in PARTS), strict=True)]
        time_of["both", way] = statistics.median(both)
        peaks["both", way] = max(peaks[part, way] for part in PARTS)
    for part in (*PARTS, "both"):
        for way in WAYS:
            taken, peak = time_of[part, way], peaks[part, way]
            print(
                f"{part:8s} | {way:6s} | {taken:7.2f} | {taken / time_of[part, 'ours']:6.1f} "
                f"| {peak / 2**20:9.1f} | {peak / peaks[part, 'ours']:6.1f}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--m", type=int, default=8, help="lists of a query")
    parser.add_argument("--n", type=int, default=20, help="candidates of a query")
    parser.add_argument("--k", type=int, default=5, help="passages of a list")
    parser.add_argument("--passage", type=int, nargs=2, default=[45, 75], help="words")
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--token_budget", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6, help="of encoder and of decoder")
    parser.add_argument("--decoder_only_layers", type=int, default=8)
    parser.add_argument(
        "--architecture", nargs="+", default=["decoder-only", "encoder-decoder"], metavar="NAME"
    )
    options = parser.parse_args()
    print(
        f"m {options.m}, N {options.n}, K {options.k}, {options.queries} queries, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for architecture in options.architecture:
        measure(architecture, options)


if __name__ == "__main__":
    main()
