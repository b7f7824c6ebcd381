"""DRO on made-up questions of one and two hops: what each of its halves gives, m, and the weights.

    python experiments/dro_synthetic.py                           # trains, tests, prints the tables
    python experiments/dro_synthetic.py --parts warm-up both report    # some of it

Of a question of two hops BM25 ranks the first passage first, and never the other, which that one
names, second. The selector is warmed up on lists of gold passages for one question in fifty, 80 of
4,000; what it knows beyond that it has from the generator. All variants of a seed begin with the
same warm-up. `first-stage` and `oracle` are generators trained on BM25's order, and on the gold
passages.
"""

from __future__ import annotations

from laboratory import Laboratory, Run, parser, spread, table

SEEDS = (0, 1, 2)
COMMON = (
    "--data.reader.init_args.train=4000",
    "--data.retrieval_ks=[1,2,5]",
    "--data.num_candidates=10",
    "--generator.max_source_length=128",
    "--model.k=2",
    "--model.decoding=free",
)
EPOCHS = 6  # of the warm-up, and of the generators that are trained with a fixed order
WARM_UP = (
    "--model.teacher=gold_first",
    "--model.teacher_share=0.02",
    f"--model.warm_up_epochs={EPOCHS}",
    "--model.iterations=0",
)
ITERATIONS = ("--model.iterations=2", "--model.epochs=1", "--model.patience=null")
ORACLE = "--data.first_stage=lightning_rag.data.candidates.Oracle"
METRICS = ("exact_match", "success@1", "recall@2")


def main() -> None:
    """Train, test, and print the tables."""
    options = parser(__doc__)
    options.add_argument(
        "--parts",
        nargs="*",
        help="of warm-up (before all others), both, selector-only, generator-only, first-stage, "
        "oracle, m, weights, report",
    )
    options.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    chosen = options.parse_args()
    laboratory = Laboratory(
        chosen,
        experiment="dro_synthetic",
        data="synthetic_questions",
        configs=("base", "data/synthetic_questions", "backbone/tiny"),
        common=COMMON,
    )

    def warm(seed: int) -> Run:
        return Run("dro", "warm-up", seed, WARM_UP)

    def trained(name: str, seed: int, *flags: str) -> Run:
        """Return iterations that begin with the seed's warm-up."""
        start = laboratory.folder(warm(seed)) / "checkpoints" / "best.ckpt"
        begins = (f"--initial_weights={start}", "--model.warm_up_epochs=0")
        return Run("dro", name, seed, (*begins, *ITERATIONS, *flags))

    epochs = f"--model.epochs={EPOCHS}"
    seeds: list[int] = chosen.seeds
    parts = {
        "warm-up": [warm(seed) for seed in seeds],
        "both": [trained("both", seed) for seed in seeds],
        "selector-only": [
            trained("selector-only", seed, "--model.train_generator=false") for seed in seeds
        ],
        "generator-only": [
            trained("generator-only", seed, "--model.train_selector=false") for seed in seeds
        ],
        "first-stage": [Run("rag4re", "first-stage", seed, (epochs,)) for seed in seeds],
        "oracle": [Run("rag4re", "oracle", seed, (epochs, ORACLE)) for seed in seeds],
        "m": [trained(f"m={m}", 0, f"--model.num_samples={m}") for m in (1, 2, 4)],
        "weights": [
            trained(kind, 0, f"--model.weighting.kind={kind}")
            for kind in ("raw", "uniform", "hard_max")
        ],
    }
    for part in chosen.parts or parts:
        if part != "report":
            laboratory.train(parts[part])
            laboratory.test(parts[part])
    report(laboratory, [run for runs in parts.values() for run in runs])


def report(laboratory: Laboratory, runs: list[Run]) -> None:
    """Print the test metrics of what was tested, as Markdown."""
    named: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if laboratory.tested(run):
            named.setdefault((run.method, run.variant), []).append(run)
    rows = [
        [
            method,
            variant,
            str(len(same)),
            *(spread(laboratory.test_values(same, metric)) for metric in METRICS),
        ]
        for (method, variant), same in named.items()
    ]
    print(table(("method", "variant", "seeds", "exact match", "success@1", "recall@2"), rows))


if __name__ == "__main__":
    main()
