"""The mean log-likelihood of the gold answers, against one query at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_rag import cli
from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticQuestions
from lightning_rag.methods.rag4re import Rag4re
from lightning_rag.tasks.question_answering import QuestionAnswering

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"


def test_equals_the_mean_over_single_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line: a test of untrained weights, 10 queries in batches of 4."""
    files = [CONFIGS / f"{name}.yaml" for name in ("data/synthetic_questions", "method/rag4re")]
    words = ["test", *(word for file in (*files, SMALL) for word in ("--config", str(file)))]
    words += [f"--runs={tmp_path}", "--data.eval_batch_size=4", "--model.k=2"]
    words += ["--data.reader.init_args.train=16", "--data.reader.init_args.validation=4"]
    words += ["--data.reader.init_args.test=10", f"--data.cache_dir={tmp_path / 'cache'}"]
    callback = "lightning_rag.callbacks.answer_likelihood.AnswerLikelihood"
    monkeypatch.setattr("sys.argv", ["lightning_rag"])
    assert cli.main([*words, f"--trainer.callbacks+={callback}"]) == 0
    (file,) = tmp_path.rglob("metrics.json")
    found = json.loads(file.read_text(encoding="utf-8"))["test"]["answer_log_likelihood"]

    data = RagDataModule(
        SyntheticQuestions(train=16, validation=4, test=10),
        QuestionAnswering(),
        BM25(),
        num_candidates=4,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    tiny = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1)
    method = Rag4re(GeneratorConfig(source="tiny", tiny=tiny), k=2)
    method.attach(data)
    method.eval()
    total = 0.0
    with torch.no_grad():
        for row in range(10):
            batch = data.queries("test").batch([row])
            prompts = method.prompts(batch, method.retrieve(batch, 2))
            target = data.task.target(batch.instances[0])
            total += float(method.generator.log_likelihood(prompts, [target]))
    assert found == pytest.approx(total / 10, abs=1e-4)
