"""Natural Questions over the passages of two releases, and damaged files."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from lightning_rag.data.readers.nq_open import ORACLE_FILE, SAMPLE_FILE, NqOpen
from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.metrics.text import exact_match
from lightning_rag.tasks.question_answering import normalised_words
from lightning_rag.types import Instance, Passage


@pytest.fixture(scope="module")
def splits(data_root):
    return NqOpen().read(data_root, seed=0)


def test_sizes(splits):
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [900, 100, 2655]
    assert len(splits.passages) == 2588 + 4889
    assert len({name for i in splits.test for name in i.relevant}) == 2588
    assert all(len(i.relevant) == 1 for i in splits.test)
    assert not any(i.relevant for i in splits.train + splits.validation)
    assert splits.labels == ()


def test_no_question_is_in_two_splits(splits):
    asked = [{normalise(i.text) for i in p} for p in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*asked)) == sum(map(len, asked)) == 3655


def test_every_gold_passage_holds_an_answer(splits, data_root):
    passages = {p.id: p for p in splits.passages}
    with gzip.open(data_root / "nq_open" / ORACLE_FILE, "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    for instance, record in zip(splits.test, raw, strict=True):
        gold = passages[instance.relevant[0]]
        assert normalise(gold.text) == normalise(record["ctxs"][0]["text"])
        assert instance.text == record["question"]
        assert instance.answers == tuple(dict.fromkeys(record["answers"]))
        words = normalised_words(f"{gold.title}\n{gold.text}")
        squeezed = words.replace(" ", "")
        # SOURCE.md normalises without word borders; "$ 5" and "90\u00b0" have letters run together
        assert any(normalised_words(a).replace(" ", "") in squeezed for a in instance.answers)


def test_the_passages_of_the_sample(splits, data_root):
    """Against another way to take the prompts apart: block by block, by the places of the marks."""
    with gzip.open(data_root / "nq_open" / SAMPLE_FILE, "rt", encoding="utf-8") as file:
        raw = json.load(file)
    known = {(p.title, p.text) for p in splits.passages}
    by_id = {i.id: i for i in splits.train + splits.validation}
    found = unquoted = answerable = 0
    for record in raw:
        prompt, own = record["prompt"], []
        marks = [prompt.index(f"\n[{k}] Title: ") for k in range(1, 6)]
        for start, end in zip(marks, [*marks[1:], prompt.rindex("\nQuestion: ")], strict=True):
            title, text = prompt[start + len("\n[1] Title: ") : end].split(" Text:  ", 1)
            unquoted += not title.startswith('"')
            own.append((re.sub(r'^"|"$', "", title).replace('""', '"'), text.replace('""', '"')))
        assert set(own) <= known
        found += len(own)
        instance = by_id[f"sample-{record['query_id']}"]
        assert f'answer the question: "{instance.text}" using' in prompt
        assert instance.answers == (record["response"],)
        answer = normalised_words(record["response"])
        answerable += any(answer in normalised_words(f"{t}\n{x}") for t, x in own)
    assert (found, unquoted) == (5000, 410)
    assert abs(answerable - 708) < 25  # by words; SOURCE.md: 708 by SQuAD's normalisation


def test_tokenised_answers_need_a_normalisation(splits):
    date = next(i for i in splits.train + splits.validation if i.answers == ("February 20 , 2017",))
    assert date.text == "when does season 5 of bates motel come out"
    assert exact_match("February 20, 2017", date.answers) == 1.0


def test_quotes_are_undoubled(splits):
    titles = {p.title for p in splits.passages}
    assert 'Ron "Pigpen" McKernan' in titles
    assert any(p.text.startswith('"Friday the 13th" was first released') for p in splits.passages)


def prompt(question="who", *blocks):
    blocks = blocks or ('Title: "A ""b"" c" Text:  He said ""no"".\nTwice.', "Title: D Text:  e")
    numbered = "\n".join(f"[{k}] {block}" for k, block in enumerate(blocks, start=1))
    return (
        "Here are the related passages for your reference.\n"
        f"{numbered}\nQuestion: {question}\nYour answer: "
    )


def row(identity, **changes):
    return {"query_id": identity, "prompt": prompt(f"who {identity}"), "response": "x"} | changes


GOLD = {"title": "G", "text": "g", "isgold": True}


def gold_row(question, *contexts):
    return {"question": question, "answers": ["x", "y", "x"], "ctxs": list(contexts) or [GOLD]}


SAMPLE = [row(str(i)) for i in range(10)]
ORACLE = [gold_row("q1"), gold_row("q2", {**GOLD, "isgold": False, "text": "h"}, GOLD)]


@pytest.fixture
def read(tmp_path):
    def of(sample, oracle):
        folder = tmp_path / "nq_open"
        folder.mkdir()
        packed = gzip.compress(json.dumps(sample).encode())
        (folder / SAMPLE_FILE).write_bytes(packed)
        lines = "\n".join(json.dumps(record) for record in oracle)
        (folder / ORACLE_FILE).write_bytes(gzip.compress(lines.encode()))
        return NqOpen().read(tmp_path, seed=0)

    return of


def test_small_files(read):
    splits = read(SAMPLE, ORACLE)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [9, 1, 2]
    assert splits.passages == (
        Passage("G#0", "g", "G"),
        Passage('A "b" c#0', 'He said "no".\nTwice.', 'A "b" c'),
        Passage("D#0", "e", "D"),
    )
    assert splits.test == (
        Instance("oracle-1", "q1", ("x", "y"), relevant=("G#0",), group="q1"),
        Instance("oracle-2", "q2", ("x", "y"), relevant=("G#0",), group="q2"),
    )
    first = min(splits.train + splits.validation, key=lambda i: i.id)
    assert first == Instance("sample-0", "who 0", ("x",), group="who 0")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("0"), r"training\.json\.gz: record 11: id '0' is already taken at .*record 1; legal"),
        (row("a", prompt="Who?"), r"record 11: field 'prompt' is not as documented; legal: '… pa"),
        (
            row("a", prompt=prompt("who", "D Text:  e")),
            r"record 11: passages of the prompt begi",
        ),
        (
            row("a", prompt=prompt("who", "Title: D Text:  e", "Title: D Text: e")),
            r"record 11: passage 2 of the prompt is 'Title: D Text: e'; legal: '\[k\] Title: …",
        ),
        (row("a", response=" "), r"record 11: field 'response' is a string, ' '; legal"),
        (row("a", response=["x"]), r"record 11: field 'response' is a list, \['x'\]; legal"),
        ({"query_id": "a"}, r"record 11: missing field 'prompt'"),
        (3, r"training\.json\.gz: record 11 is 3; legal: a JSON object"),
    ],
)
def test_damaged_sample(read, bad, message):
    with pytest.raises(DataError, match=message):
        read([*SAMPLE, bad], ORACLE)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (gold_row("q", GOLD | {"isgold": False}), r"oracle\.jsonl\.gz:3: no passage of 'ctxs' has"),
        (gold_row("q", GOLD | {"isgold": 1}), r"gz:3: 'ctxs' 1: field 'isgold' is an integer, 1"),
        (gold_row("q", GOLD | {"text": ""}), r"gz:3: 'ctxs' 1: field 'text' is a string, ''; leg"),
        (gold_row("q") | {"answers": []}, r"gz:3: field 'answers' is a list, \[\]; legal: a list"),
        (gold_row("q") | {"answers": [""]}, r"gz:3: the answers are \[''\]; legal"),
        (gold_row("q") | {"ctxs": []}, r"gz:3: field 'ctxs' is a list, \[\]; legal"),
        ([], r"gz:3: \[\] is a list; legal: one JSON object a line"),
    ],
)
def test_damaged_oracle(read, bad, message):
    with pytest.raises(DataError, match=message):
        read(SAMPLE, [*ORACLE, bad])


def test_missing_file_and_fraction(tmp_path):
    with pytest.raises(DataError, match=r"json\.gz: no such file; .*LIGHTNING_RAG_DATA"):
        NqOpen().read(tmp_path, seed=0)
    with pytest.raises(UserError, match="validation_fraction is 1"):
        NqOpen(validation_fraction=1.0)
