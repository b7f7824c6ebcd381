"""The reading of lines and records, and the errors that name the place."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from lightning_rag.data.readers import jsonl
from lightning_rag.data.readers.base import locate
from lightning_rag.data.readers.checks import UniqueIds, check_label, check_span, token_span
from lightning_rag.data.readers.jsonl import (
    Record,
    json_document,
    json_lines,
    json_records,
    text_lines,
)
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Span


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "data.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def test_lines_end_at_lf_or_crlf_only(write):
    path = write("\ufeffa\r\nb\u2028c\x0cd\n\n\ufeffe")
    assert list(text_lines(path)) == [(1, "a"), (2, "b\u2028c\x0cd"), (3, ""), (4, "\ufeffe")]


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        ("ä\nb".encode("latin-1"), 1, 0),
        ("ok\nüber".encode() + b"\xe4", 2, 8),
        ("{}".encode("utf-16"), 1, 0),
        (b"a\nb\xc3\n", 2, 3),  # a character cut in two
    ],
)
def test_wrong_encoding_names_line_and_byte(write, content, line, byte):
    path = write(content)
    with pytest.raises(DataError, match=rf"data\.jsonl:{line}: byte {byte} of the file \(0x"):
        list(text_lines(path))
    assert content[byte] >= 0x80


def test_json_lines_number_the_lines_of_the_file(write):
    path = write('{"a": 1}\n\n  \n{"b": "\u2028"}\n')
    records = list(json_lines(path))
    assert [record.where for record in records] == [f"{path}:1", f"{path}:4"]
    assert records[1].string_or_empty("b") == "\u2028"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": }\n', r"data\.jsonl:2: '{\"a\": }' is no JSON \(Expecting value"),
        ('{"a": 1} {"b": 2}', r"data\.jsonl:1: .* is no JSON \(Extra data"),
        ("[1, 2]", r"data\.jsonl:1: \[1, 2\] is a list; legal: one JSON object a line"),
        ("null", r"data\.jsonl:1: None is null; legal: one JSON object a line"),
        ("[" * 100_000, r"data\.jsonl:1: .* is no JSON"),
        ('{"a": ' + "1" * 5000 + "}", r"data\.jsonl:1: .* is no JSON"),
        ("", r"data\.jsonl: no records; legal: at least one JSON object"),
        ("\n \n", r"data\.jsonl: no records"),
    ],
)
def test_json_lines_refuse(write, content, message):
    with pytest.raises(DataError, match=message) as caught:
        list(json_lines(write(content)))
    assert len(str(caught.value)) < 400 + len(str(write("")))
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a":\n 1,\n}', r"data\.jsonl:3: no JSON \(.*, column 1\)"),
        ("[" * 100_000, r"data\.jsonl: no JSON"),
        ("", r"data\.jsonl:1: no JSON"),
    ],
)
def test_json_document_refuses(write, content, message):
    with pytest.raises(DataError, match=message):
        json_document(write(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"data\.jsonl: {}; legal: a JSON list of at least one object"),
        ("[]", r"data\.jsonl: \[\]; legal: a JSON list of at least one object"),
        ("[{}, 3]", r"data\.jsonl: record 2 is 3; legal: a JSON object"),
    ],
)
def test_json_records_refuse(write, content, message):
    with pytest.raises(DataError, match=message):
        list(json_records(write(content)))


def any_value(draw, depth):
    kind = draw.randrange(8 if depth else 5)
    if kind == 0:
        return draw.choice([True, False, None])
    if kind == 1:
        return draw.choice([0, -17, 3.5e-7, 123456789012345678901, 1e300])
    if kind < 5:
        return "".join(
            draw.choice('ab"\\\n\u00e4\u2028\U0001f600]},[{') for _ in range(draw.randrange(9))
        )
    if kind == 5:
        return [any_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {f"k{i}": any_value(draw, depth - 1) for i in range(draw.randrange(4))}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50, 1 << 20])
def test_json_records_in_pieces_are_those_of_the_whole(write, monkeypatch, chunk):
    monkeypatch.setattr(jsonl, "_CHUNK", chunk)
    draw = random.Random(chunk)
    for indent, escape in [(None, True), (2, False), (None, False), (1, True)]:
        whole = [{"v": any_value(draw, 3)} for _ in range(draw.randrange(1, 12))]
        text = json.dumps(whole, indent=indent, ensure_ascii=escape)
        path = write(f"\ufeff \n{text}\r\n\t")
        records = list(json_records(path))
        assert [record.fields for record in records] == whole
        assert records[-1].where == f"{path}: record {len(whole)}"


@pytest.mark.parametrize("chunk", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize(
    ("content", "line", "column"),
    [
        ("", 1, 1),
        ("\n [", 2, 3),
        ('[{"a": 1},\n {"a": 2}', 2, 10),
        ('[{"a": 1}\n {"a": 2}]', 2, 2),
        ('[{"a": 1}, {"a": tru}]', 1, 18),
        ('[{"a": 1}, {"a" 2}]', 1, 17),
        ('[{"a": 1},\n\n   {"a": "b]', 3, 10),
        ('[{"a": 1}]\n]', 2, 1),
        ('[{"a": 1},\n{"a": nonsense, "b": "' + "x" * 99 + '"}]', 2, 7),
    ],
)
def test_json_records_name_line_and_column(write, monkeypatch, chunk, content, line, column):
    monkeypatch.setattr(jsonl, "_CHUNK", chunk)
    with pytest.raises(json.JSONDecodeError) as reference:
        json.loads(content)
    assert (reference.value.lineno, reference.value.colno) == (line, column)
    message = rf"data\.jsonl:{line}: no JSON \(.*, column {column}\); legal: a JSON list"
    with pytest.raises(DataError, match=message):
        list(json_records(write(content)))


def test_json_records_refuse_what_python_cannot_hold(write):
    for content in ("[" * 100_000, '[{"a": ' + "1" * 5000 + "}]"):
        with pytest.raises(DataError, match=r"data\.jsonl: no JSON \(.*; legal: a JSON list"):
            list(json_records(write(content)))


def test_an_early_error_does_not_read_the_whole_file(write, monkeypatch):
    monkeypatch.setattr(jsonl, "_CHUNK", 100)
    chunks = []
    read = jsonl._text_chunks
    monkeypatch.setattr(
        jsonl, "_text_chunks", lambda path: (chunks.append(1) or chunk for chunk in read(path))
    )
    path = write('[{"a": 1}, {"a" 2}' + ', {"a": 1}' * 1000 + "]")
    with pytest.raises(DataError, match="Expecting ':' delimiter, column 17"):
        list(json_records(path))
    assert len(chunks) < 4


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
def test_json_records_name_the_byte_that_is_not_utf8(write, monkeypatch, chunk):
    monkeypatch.setattr(jsonl, "_CHUNK", chunk)
    for content, byte in [('[{"ä": "'.encode() + b"\xff", 9), (b'[{"a": "\xc3', 8)]:
        assert content[byte] >= 0x80
        with pytest.raises(DataError, match=rf"data\.jsonl: byte {byte} of the file \(0x"):
            list(json_records(write(content)))


def test_packed_files_are_unpacked(tmp_path):
    path = tmp_path / "data.json.gz"
    path.write_bytes(gzip.compress(b'[{"a": 1}]'))
    assert [record.fields for record in json_records(path)] == [{"a": 1}]
    assert list(text_lines(path)) == [(1, '[{"a": 1}]')]
    for damaged in (b'[{"a": 1}]', gzip.compress(b'[{"a": 1}]' * 99)[:-9]):
        path.write_bytes(damaged)
        for read in (json_records, text_lines):
            with pytest.raises(DataError, match=r"data\.json\.gz: cannot be read: \w+"):
                list(read(path))


RECORD = Record(
    "f:7",
    {
        "text": "grün",
        "blank": " ",
        "number": 3,
        "true": True,
        "none": None,
        "half": "x\ud800",
        "list": ["a", "b"],
        "mixed": ["a", 1],
        "empty": [],
        "object": {"start": "0"},
        "lines": "a\nb",
        "ids": ["a", 7],
        "objects": [{"n": 1}, {"n": 2}],
    },
)


def test_fields_of_the_right_type_are_returned():
    assert RECORD.string("text") == "grün"
    assert RECORD.string_or_empty("absent") == ""
    assert RECORD.integer("number") == 3
    assert RECORD.identity("number") == "3"
    assert RECORD.identity("text") == "grün"
    assert RECORD.strings("list") == ("a", "b")
    assert RECORD.identities("ids") == ("a", "7")
    assert RECORD.identities("absent") == ()
    assert RECORD.boolean("true") is True
    assert RECORD.strings("empty", empty=True) == ()
    assert RECORD.objects("empty", empty=True) == []
    assert [r.where for r in RECORD.objects("objects")] == ["f:7: 'objects' 1", "f:7: 'objects' 2"]
    assert RECORD.objects("objects")[1].integer("n") == 2


@pytest.mark.parametrize(
    ("method", "key", "message"),
    [
        ("string", "absent", r"f:7: missing field 'absent'; legal: a string .*came: 'text', "),
        ("string", "number", r"f:7: field 'number' is an integer, 3; legal: a string that is not"),
        ("string", "blank", r"f:7: field 'blank' is a string, ' '; legal: a string that is not"),
        ("string", "none", r"f:7: field 'none' is null, None; legal: a string"),
        ("string", "half", r"f:7: field 'half' holds the lone surrogate '\\ud800' at character 1"),
        ("string_or_empty", "list", r"f:7: field 'list' is a list, .*; legal: a string"),
        ("integer", "true", r"f:7: field 'true' is true or false, True; legal: an integer"),
        ("integer", "text", r"f:7: field 'text' is a string, 'grün'; legal: an integer"),
        ("identity", "true", r"f:7: field 'true' is true or false, True; legal: a string"),
        ("identity", "blank", r"f:7: field 'blank' .*or an integer"),
        ("identity", "lines", r"f:7: field 'lines' .*without a line end"),
        (
            "strings",
            "mixed",
            r"f:7: field 'mixed' is a list, \['a', 1\]; legal: a list of at least",
        ),
        ("strings", "empty", r"f:7: field 'empty' is a list, \[\]; legal: a list of at least one"),
        ("identities", "text", r"f:7: field 'text' is a string, 'grün'; legal: a list of ids"),
        ("nested", "list", r"f:7: field 'list' is a list, .*; legal: an object"),
        (
            "objects",
            "list",
            r"f:7: field 'list' is a list, \['a', 'b'\]; legal: a list of at least",
        ),
        (
            "objects",
            "empty",
            r"f:7: field 'empty' is a list, \[\]; legal: a list of at least",
        ),
        ("objects", "text", r"f:7: field 'text' is a string, 'grün'; legal: a list of at least"),
        ("boolean", "number", r"f:7: field 'number' is an integer, 3; legal: true or false"),
        ("boolean", "absent", r"f:7: missing field 'absent'; legal: true or false"),
    ],
)
def test_fields_of_a_wrong_type_are_refused(method, key, message):
    with pytest.raises(DataError, match=message):
        getattr(RECORD, method)(key)


def test_an_error_in_a_nested_object_names_both_fields():
    with pytest.raises(DataError, match=r"f:7: in 'object': field 'start' is a string, '0'; legal"):
        RECORD.nested("object").integer("start")


def test_unique_ids_name_both_places():
    ids = UniqueIds()
    ids.add("1", "a.jsonl:1")
    ids.add("2", "a.jsonl:2")
    with pytest.raises(
        DataError, match=r"b\.jsonl:9: id '1' is already taken at a\.jsonl:1; legal"
    ):
        ids.add("1", "b.jsonl:9")


def test_unknown_label_lists_the_legal_ones():
    assert check_label("f:1", "a", ("a", "b")) == "a"
    with pytest.raises(DataError, match=r"f:1: unknown label 'c'; legal: a, b"):
        check_label("f:1", "c", ("a", "b"))


@pytest.mark.parametrize("span", [(-1, 2), (0, 0), (2, 1), (0, 6), (6, 7)])
def test_spans_outside_the_sentence_are_refused(span):
    with pytest.raises(DataError, match=r"f:1: head is \[.*in a sentence of 5 characters; legal"):
        check_span("f:1", "head", "ab cd", Span(*span))


def test_span_of_white_space_is_refused():
    with pytest.raises(DataError, match=r"f:1: head \[2, 3\) is only white space"):
        check_span("f:1", "head", "ab cd", Span(2, 3))


def test_token_spans_against_every_pair():
    tokens = ["ab", "c", "", "déf"]
    text = " ".join(tokens)
    for first in range(len(tokens)):
        for last in range(first, len(tokens)):
            if (first, last) == (2, 2):
                continue
            span = token_span("f:1", "head", tokens, first, last)
            assert text[span.start : span.end] == " ".join(tokens[first : last + 1])


@pytest.mark.parametrize(("first", "last"), [(-1, 0), (1, 0), (0, 2), (2, 2)])
def test_tokens_outside_the_sentence_are_refused(first, last):
    with pytest.raises(
        DataError, match=r"f:1: head is tokens .* of 2; legal: 0 <= first <= last < 2"
    ):
        token_span("f:1", "head", ["a", "b"], first, last)


def test_locate_counts_from_the_root(tmp_path, monkeypatch):
    file = tmp_path / "set" / "train.jsonl"
    file.parent.mkdir()
    file.touch()
    assert locate(tmp_path, "set/train.jsonl") == file
    assert locate(tmp_path / "elsewhere", str(file)) == file
    monkeypatch.chdir(tmp_path)
    assert locate(None, "set/train.jsonl").resolve() == file.resolve()


def test_locate_names_the_path_and_the_variable(tmp_path):
    with pytest.raises(DataError) as caught:
        locate(tmp_path, "set/train.jsonl")
    message = str(caught.value)
    assert str(tmp_path / "set" / "train.jsonl") in message
    assert "LIGHTNING_RAG_DATA" in message
    assert "--data.root" in message
    with pytest.raises(DataError, match=r"no data root is set.*LIGHTNING_RAG_DATA"):
        locate(None, "surely/not/here.jsonl")
