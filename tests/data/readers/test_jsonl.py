"""The reading of lines and records, and the errors that name the place."""

from __future__ import annotations

import pytest

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
