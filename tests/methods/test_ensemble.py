"""The ensemble: loss, weights and answers one passage at a time; and what its page says of it."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.errors import UserError
from lightning_rag.methods import ensemble
from lightning_rag.methods.choice import first_stage_choice
from lightning_rag.methods.ensemble import Ensemble
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Prompt, RagBatch, Rendered, Retrieved

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = TinyConfig(vocab_size=400, hidden_size=16, heads=2, layers=1)


@pytest.fixture
def data(tmp_path: Path) -> RagDataModule:
    made = RagDataModule(
        SyntheticRelations(train=24, validation=8, test=8),
        RelationExtraction(scorer="accuracy", negative_label=None),
        BM25(),
        num_candidates=6,
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    made.setup()
    return made


def attached(data: RagDataModule, **arguments: object) -> Ensemble:
    """An ensemble over `data`, with weights that tell texts apart, without dropout."""
    config = GeneratorConfig(tiny=TINY, max_target_length=12)
    method = Ensemble(config, **{"k": 3, "temperature": 2.0, **arguments})  # type: ignore[arg-type]
    method.attach(data)
    torch.manual_seed(3)
    for weight in method.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return method.eval()


def mixture(method: Ensemble, batch: RagBatch, row: int, answer: str) -> float:
    """p(y|x), written out: passages with softmax weights, each read alone."""
    kept = [c for c, id_ in enumerate(batch.candidate_ids[row].tolist()) if id_ >= 0][: method.k]
    source = method.data.task.source(batch.instances[row])
    rows = [int(batch.candidate_ids[row, column]) for column in kept]
    shown: list[tuple[Rendered, ...]] = [(method.render(method.data.store[n]),) for n in rows]
    weights = [math.exp(float(batch.candidate_scores[row, c]) / method.temperature) for c in kept]
    shown, weights = shown or [()], weights or [1.0]
    found = 0.0
    for passages, weight in zip(shown, weights, strict=True):
        log_p = method.generator.log_likelihood([Prompt(source, passages)], [answer])
        found += weight / sum(weights) * math.exp(float(log_p.detach()))
    return found


@pytest.fixture
def batch(data: RagDataModule) -> RagBatch:
    """Four queries: two with all candidates, one with two of them, one with none."""
    found = data.queries("train").batch(range(4))
    found.candidate_ids[2, 2:], found.candidate_scores[2, 2:] = -1, -torch.inf
    found.candidate_ids[3], found.candidate_scores[3] = -1, -torch.inf
    return found


def test_the_loss_is_the_mixtures(data: RagDataModule, batch: RagBatch) -> None:
    method = attached(data)
    targets = [data.task.target(instance) for instance in batch.instances]
    each = [-math.log(mixture(method, batch, row, text)) for row, text in enumerate(targets)]
    loss = method.loss(batch).total
    assert loss.item() == pytest.approx(sum(each) / 4, rel=1e-5)
    torch.autograd.backward(loss)
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_the_weights(data: RagDataModule, batch: RagBatch) -> None:
    method = attached(data)
    weights = method.log_weights(first_stage_choice(batch, 3)).exp()
    expected = (batch.candidate_scores[:2, :3] / 2.0).softmax(dim=1)
    torch.testing.assert_close(weights[:2], expected)
    assert weights[2, 2] == 0
    assert weights[3].tolist() == [1, 0, 0]
    even = attached(data, temperature=1e9).log_weights(first_stage_choice(batch, 3)).exp()
    torch.testing.assert_close(even[:2], torch.full((2, 3), 1 / 3))


def test_the_answer_is_the_mixtures_best_option(data: RagDataModule, batch: RagBatch) -> None:
    method = attached(data)
    answers = method.answer(batch, first_stage_choice(batch, 3))
    weights = method.log_weights(first_stage_choice(batch, 3))
    for row, instance in enumerate(batch.instances):
        allowed = data.task.options(instance)
        assert allowed is not None
        texts = [data.task.option_target(instance, option) for option in allowed]
        total = torch.zeros(len(allowed))
        for place, prompt in enumerate(
            method.alone(batch, first_stage_choice(batch, 3))[row * 3 :][:3]
        ):
            (log_p,) = method.generator.choose([prompt], [texts])
            total += weights[row, place].exp() * log_p.exp()
        assert answers[row] == allowed[int(total.argmax())]
        assert total.sum().item() == pytest.approx(1, abs=1e-5)


def test_free_answers_are_scored_after_every_passage(
    data: RagDataModule, batch: RagBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was written after each passage the most likely under the mixture is taken."""
    method = attached(data, decoding="free")
    texts = [data.task.target(instance) for instance in data.splits.test]
    written = [texts[n % len(texts)] for n in range(11)] + [texts[0]]  # the last query: one twice
    monkeypatch.setattr(method.generator, "generate", lambda prompts: written[: len(prompts)])
    answers = method.answer(batch, first_stage_choice(batch, 3))
    for row, instance in enumerate(batch.instances):
        own = written[row * 3 : row * 3 + 3]
        best = max(own, key=lambda text: mixture(method, batch, row, text))
        assert answers[row] == data.task.parse(best, instance)


def test_other_passages_than_the_first_stages(data: RagDataModule, batch: RagBatch) -> None:
    """The weights go by what was retrieved, whoever retrieved it."""
    method = attached(data, k=2)
    positions = torch.tensor([[1, 0], [3, 2], [1, 0], [-1, -1]])
    chosen = Retrieved(batch.candidate_ids, batch.candidate_scores, positions)
    expected = (batch.candidate_scores[0, [1, 0]] / 2.0).softmax(dim=0)
    torch.testing.assert_close(method.log_weights(chosen)[0].exp(), expected)
    first = method.alone(batch, chosen)[0].passages[0].text
    assert first == method.render(data.store[int(batch.candidate_ids[0, 1])]).text


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"temperature": math.inf}])
def test_bad_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"legal: model.k 1 or more, model.temperature above 0"):
        Ensemble(GeneratorConfig(tiny=TINY), **wrong)  # type: ignore[arg-type]


def code_lines(node: ast.AST, source: str) -> list[str]:
    """Lines of a class that are neither empty nor comment nor docstring."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    texts = [n.body[0] for n in ast.walk(node) if isinstance(n, kinds) and ast.get_docstring(n)]
    prose = {line for text in texts for line in range(text.lineno, (text.end_lineno or 0) + 1)}
    assert isinstance(node, ast.ClassDef)
    span = range(node.lineno, (node.end_lineno or 0) + 1)
    lines = {number: source.splitlines()[number - 1].strip() for number in span}
    return [t for n, t in lines.items() if t and n not in prose and not t.startswith("#")]


def test_the_page_shows_this_method() -> None:
    """Each of its blocks stands in the file as it is shown, and the length is as it says."""
    page = (REPOSITORY / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    source = Path(str(ensemble.__file__)).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        assert block.strip("\n") in source
    (node,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    lines = code_lines(node, source)
    assert len(lines) < 60
    assert f"{len(lines)} lines" in page
    config = (REPOSITORY / "configs/method/ensemble.yaml").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert shown in config
