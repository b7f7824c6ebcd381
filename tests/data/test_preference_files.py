"""Preferences that were computed elsewhere: what is written comes back, what is wrong is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import QuerySet, RagDataModule
from lightning_rag.data.preference_files import (
    prompt_text,
    read_preferences,
    write_preferences,
    write_requests,
)
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.errors import DataError
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Prompt, Rendered

Q, N = 12, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RagDataModule:
    module = RagDataModule(
        reader=SyntheticRelations(train=Q, validation=4, test=4),
        task=RelationExtraction(scorer="accuracy", negative_label=None),
        first_stage=BM25(),
        num_candidates=N,
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )
    module.setup()
    return module


@pytest.fixture
def queries(data: RagDataModule) -> QuerySet:
    """The training queries; the last two have fewer candidates than there are columns."""
    found = data.queries("train")
    candidates = type(found.candidates)(found.candidates.ids.copy(), found.candidates.scores.copy())
    candidates.ids[-1], candidates.ids[-2, 3:] = -1, -1
    return QuerySet(found.instances, candidates, found.relevant, found.answers, found.excluded)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores(seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(Q, N, generator=torch.Generator().manual_seed(seed)) * 10
    drawn[0, 1], drawn[3], drawn[5, 0], drawn[5, 4] = torch.nan, torch.nan, torch.inf, -torch.inf
    drawn[1, :3] = torch.tensor([1e-45, -torch.finfo(torch.float32).max, 0.1])
    return drawn


@pytest.mark.parametrize("name", ["scores.jsonl", "new/scores.jsonl.gz"])
def test_what_is_written_comes_back(
    data: RagDataModule, queries: QuerySet, tmp_path: Path, name: str
) -> None:
    path, wanted = tmp_path / name, scores()
    write_preferences(path, queries, data.store, wanted)
    first = path.read_bytes()
    write_preferences(path, queries, data.store, wanted)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = read_preferences(path, queries, data.store)
    padding = torch.from_numpy(queries.candidates.ids < 0)
    kept = wanted.isfinite() & ~padding
    assert found.dtype == torch.float32
    assert torch.equal(found[kept], wanted[kept])
    assert found[~kept].isnan().all()
    assert kept.sum() == Q * N - 5 - 2 - 1 - 2 - 5


def test_the_layout(data: RagDataModule, queries: QuerySet, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_preferences(path, queries, data.store, scores())
    written = lines(path)
    assert [row["query"] for row in written] == [i.id for i in queries.instances]
    ids = queries.candidates.ids
    assert written[0] == {
        "query": queries.instances[0].id,
        "passages": [data.store[int(ids[0, column])].id for column in (0, 2, 3, 4)],
        "scores": [float(str(np.float32(scores()[0, column]))) for column in (0, 2, 3, 4)],
    }
    assert written[1]["scores"][2] == 0.1  # not 0.10000000149
    assert written[3]["passages"] == written[-1]["passages"] == []


def test_any_order_of_lines_and_passages_and_other_fields(
    data: RagDataModule, queries: QuerySet, tmp_path: Path
) -> None:
    path = tmp_path / "scores.jsonl"
    write_preferences(path, queries, data.store, scores())
    straight = read_preferences(path, queries, data.store)
    turned = [
        {"model": "m", **{k: v[::-1] if isinstance(v, list) else v for k, v in row.items()}}
        for row in reversed(lines(path))
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in turned))
    again = read_preferences(path, queries, data.store)
    assert torch.equal(again.nan_to_num(7.0), straight.nan_to_num(7.0))


def changed(row: dict[str, Any], data: RagDataModule, queries: QuerySet, case: str) -> object:
    """A line of the file with one mistake."""
    passages, values = row["passages"], row["scores"]
    own = set(queries.candidates.ids[0].tolist())
    stranger = next(p.id for r, p in enumerate(data.store) if r not in own)
    cases: dict[str, object] = {
        "foreign query": {**row, "query": "stranger"},
        "validation query": {**row, "query": data.splits.validation[0].id},
        "no query": {"passages": passages, "scores": values},
        "unknown passage": {**row, "passages": ["nowhere", *passages[1:]]},
        "other passage": {**row, "passages": [stranger, *passages[1:]]},
        "twice": {**row, "passages": [passages[1], *passages[1:]]},
        "no passages": {"query": row["query"], "scores": values},
        "passages text": {**row, "passages": passages[0]},
        "no scores": {"query": row["query"], "passages": passages},
        "scores number": {**row, "scores": 1.0},
        "too few": {**row, "scores": values[1:]},
        "too many": {**row, "scores": [*values, 0.0]},
        "text": {**row, "scores": ["0.5", *values[1:]]},
        "true": {**row, "scores": [True, *values[1:]]},
        "null": {**row, "scores": [None, *values[1:]]},
        "nan": {**row, "scores": [float("nan"), *values[1:]]},
        "infinite": {**row, "scores": [*values[1:], float("-inf")]},
        "too large": {**row, "scores": [3.402823567797337e38, *values[1:]]},
        "whole and too large": {**row, "scores": [10**400, *values[1:]]},
        "list": [row],
    }
    return cases[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("foreign query", f"field 'query' names 'stranger'; legal: the {Q} queries"),
        ("validation query", "field 'query' names"),
        ("no query", "missing field 'query'"),
        ("unknown passage", "'passages' names 'nowhere', no passage of the store; legal: the cand"),
        ("other passage", "another passage of the store; legal: the candidates of the query"),
        ("twice", "twice; legal: each passage once"),
        ("no passages", "missing field 'passages'"),
        ("passages text", "legal: a list of ids"),
        ("no scores", "missing field 'scores'"),
        ("scores number", "field 'scores' is a number, 1.0; legal: a list of finite numbers"),
        ("too few", f"{N - 1} 'scores' for {N} 'passages'"),
        ("too many", f"{N + 1} 'scores' for {N} 'passages'"),
        ("text", "number 1 of 'scores' is '0.5'; legal: a list of finite numbers"),
        ("true", "number 1 of 'scores' is True"),
        ("null", "number 1 of 'scores' is None"),
        ("nan", "number 1 of 'scores' is nan"),
        ("infinite", f"number {N} of 'scores' is -inf"),
        ("too large", "number 1 of 'scores' is 3.402823567797337e+38"),
        ("whole and too large", "number 1 of 'scores' is 1000"),
        ("list", "legal: one JSON object a line"),
    ],
)
def test_a_bad_line_is_named(
    data: RagDataModule, queries: QuerySet, tmp_path: Path, case: str, message: str
) -> None:
    path = tmp_path / "scores.jsonl"
    write_preferences(path, queries, data.store, torch.zeros(Q, N))
    rows: list[object] = [*lines(path)]
    first = lines(path)[0]
    rows = [*rows[1:4], changed(first, data, queries, case), *rows[4:]]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError) as caught:
        read_preferences(path, queries, data.store)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_query_with_two_lines(data: RagDataModule, queries: QuerySet, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_preferences(path, queries, data.store, torch.zeros(Q, N))
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows, rows[2]]))
    with pytest.raises(DataError) as caught:
        read_preferences(path, queries, data.store)
    assert str(caught.value) == (
        f"{path}:{Q + 1}: the query {queries.instances[2].id!r} has a line already, {path}:3; "
        "legal: one line a query"
    )


def test_queries_without_a_line(data: RagDataModule, queries: QuerySet, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    write_preferences(path, queries, data.store, torch.zeros(Q, N))
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:4] + rows[6:]))
    with pytest.raises(DataError) as caught:
        read_preferences(path, queries, data.store)
    names = ", ".join(repr(instance.id) for instance in queries.instances[4:6])
    assert str(caught.value) == (
        f"{path}: no line for 2 of {Q} queries, such as {names}; legal: a line for each of them"
    )


# Packed without the time of day: all processes that share the tests must find the same ones.
CUT = gzip.compress(b"{}" * 99, mtime=0)[:-9]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", CUT])
def test_files_that_cannot_be_read(
    data: RagDataModule, queries: QuerySet, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / ("scores.jsonl.gz" if content and content[:1] == b"\x1f" else "scores.jsonl")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.jsonl"):
        read_preferences(path, queries, data.store)


def test_scores_of_another_shape(data: RagDataModule, queries: QuerySet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \(12, 5\), as the candidates, got \(12, 4\)"):
        write_preferences(tmp_path / "a", queries, data.store, torch.zeros(Q, N - 1))
    with pytest.raises(ValueError, match="got"):
        write_requests(
            tmp_path / "a", queries, data.store, data.task, torch.ones(Q - 1, N, dtype=torch.bool)
        )
    assert not (tmp_path / "a").exists()


def test_requests_become_preferences(
    data: RagDataModule, queries: QuerySet, tmp_path: Path
) -> None:
    """Another program adds the scores to each line, here the number of characters it read."""
    path, task = tmp_path / "requests.jsonl.gz", data.task
    wanted = torch.rand(Q, N, generator=torch.Generator().manual_seed(1)) < 0.6
    write_requests(path, queries, data.store, task, wanted)
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [set(row) for row in rows] == [{"query", "passages", "prompts", "target"}] * Q
    for row in rows:
        row["scores"] = [-float(len(prompt + row["target"])) for prompt in row["prompts"]]
    answered = tmp_path / "scores.jsonl"
    answered.write_text("\n".join(json.dumps(row) for row in rows))

    found = read_preferences(answered, queries, data.store)
    padding = torch.from_numpy(queries.candidates.ids < 0)
    assert torch.equal(found.isfinite(), wanted & ~padding)
    for row, column in found.isfinite().nonzero().tolist():
        passage = data.store[int(queries.candidates.ids[row, column])]
        instance = queries.instances[row]
        read = f"{task.passage(passage).text}\n{task.source(instance).text}\nAnswer:"
        assert found[row, column] == -len(f"{read} {task.target(instance)}")


@pytest.mark.parametrize(
    "query",
    [
        Rendered("Who?"),
        Rendered("Do this.\n\nWho?\nOutput:", {"lead": (0, 10), "cue": (15, 22)}),
        Rendered("Who?\nOutput:", {"cue": (5, 12)}),
        Rendered("Do this.\n\nWho?", {"lead": (0, 10)}),
    ],
)
def test_prompts_are_what_a_generator_reads(query: Rendered) -> None:
    passage = Rendered("Whoever: him\n")
    text = prompt_text(query, passage, "Reply:")
    tiny = TinyConfig(vocab_size=320, hidden_size=8, heads=1, layers=1)
    config = GeneratorConfig(architecture="decoder-only", answer_cue="Reply:", tiny=tiny)
    generator = build_generator(config, [text])
    (ids,) = generator._rows([Prompt(query, (passage,))])
    read = generator.tokenizer.decode(ids, skip_special_tokens=True)
    # This tokeniser puts a space in front of each part.
    assert read.replace(" ", "") == text.replace(" ", "")
