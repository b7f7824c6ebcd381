import random

import pytest

from lightning_rag.tasks.marking import bare, marked
from lightning_rag.types import Instance, Span


def make(text, head, tail, head_type="", tail_type=""):
    """An instance whose mentions are given as texts (first occurrence) or as ranges."""
    ranges = []
    for mention in (head, tail):
        start = text.index(mention) if isinstance(mention, str) else mention[0]
        end = start + len(mention) if isinstance(mention, str) else mention[1]
        ranges.append((start, end))
    return Instance("i", text, ("r",), Span(*ranges[0], head_type), Span(*ranges[1], tail_type))


def named(rendered, name):
    start, end = rendered.spans[name]
    return rendered.text[start:end]


SENTENCE = "Bill Gates lives in Hawaii."


@pytest.mark.parametrize(
    ("markers", "types", "expected"),
    [
        ("punctuation", ("", ""), "@ Bill Gates @ lives in # Hawaii #."),
        (
            "punctuation",
            ("PERSON", "STATE_OR_PROVINCE"),
            "@ * person * Bill Gates @ lives in # ^ state or province ^ Hawaii #.",
        ),
        ("punctuation", ("", "CITY"), "@ Bill Gates @ lives in # ^ city ^ Hawaii #."),
        ("tags", ("", ""), "<e1>Bill Gates</e1> lives in <e2>Hawaii</e2>."),
        ("tags", ("PERSON", "CITY"), "<e1>Bill Gates</e1> lives in <e2>Hawaii</e2>."),
        (
            "clauses",
            ("", ""),
            "The subject is Bill Gates . The object is Hawaii . Bill Gates lives in Hawaii.",
        ),
        (
            "clauses",
            ("PERSON", "STATE_OR_PROVINCE"),
            "The subject is Bill Gates . The object is Hawaii . Bill Gates is of type person . "
            "Hawaii is of type state or province . Bill Gates lives in Hawaii.",
        ),
        (
            "clauses",
            ("", "CITY"),
            "The subject is Bill Gates . The object is Hawaii . Hawaii is of type city . "
            "Bill Gates lives in Hawaii.",
        ),
        ("none", ("", ""), "Bill Gates lives in Hawaii. Relation of Bill Gates to Hawaii?"),
        (
            "none",
            ("PERSON", "CITY"),
            "Bill Gates lives in Hawaii. Relation of person Bill Gates to city Hawaii?",
        ),
    ],
)
def test_forms(markers, types, expected):
    rendered = marked(make(SENTENCE, "Bill Gates", "Hawaii", *types), markers)
    assert rendered.text == expected
    assert named(rendered, "head") == "Bill Gates"
    assert named(rendered, "tail") == "Hawaii"


@pytest.mark.parametrize(
    ("text", "head", "tail", "expected"),
    [
        ("in Hawaii, Bill rests", "Bill", "Hawaii", "in # Hawaii #, @ Bill @ rests"),  # tail first
        ("Bill's (Hawaii)", "Bill", "Hawaii", "@ Bill @'s (# Hawaii #)"),
        ("Bill", (0, 2), (2, 4), "@ Bi @ # ll #"),  # touching, the whole text
        ("Bill", (2, 4), (0, 2), "# Bi # @ ll @"),
        ("US-based IBM", "US", "IBM", "@ US @-based # IBM #"),
        ("prefixed by", (3, 6), (9, 11), "pre @ fix @ ed # by #"),  # inside a word
        ("Zoë in 東京都", "Zoë", "東京", "@ Zoë @ in # 東京 # 都"),
        (
            "a{head}b c",
            "{head}",
            "c",
            "a @ {head} @ b # c #",
        ),
    ],
)
def test_edges(text, head, tail, expected):
    instance = make(text, head, tail)
    rendered = marked(instance, "punctuation")
    assert rendered.text == expected
    assert named(rendered, "head") == text[instance.head.start : instance.head.end]
    assert named(rendered, "tail") == text[instance.tail.start : instance.tail.end]


@pytest.mark.parametrize(
    ("head", "tail", "expected", "head_text", "tail_text"),
    [
        # University of Leeds (0, 19), Leeds (14, 19)
        ((0, 19), (14, 19), "@ University of # Leeds # @ won", "University of # Leeds", "Leeds"),
        ((14, 19), (0, 19), "# University of @ Leeds @ # won", "Leeds", "University of @ Leeds"),
        ((0, 10), (0, 13), "# @ University @ of # Leeds won", "University", "University @ of"),
        ((14, 19), (14, 19), "University of @ # Leeds # @ won", "Leeds", "Leeds"),
        (
            (0, 13),
            (11, 19),
            "@ University # of @ Leeds # won",
            "University # of",
            "of @ Leeds",
        ),
    ],
    ids=["tail in head", "head in tail", "same start", "equal", "crossing"],
)
def test_overlap(head, tail, expected, head_text, tail_text):
    rendered = marked(make("University of Leeds won", head, tail), "punctuation")
    assert rendered.text == expected
    assert named(rendered, "head") == head_text
    assert named(rendered, "tail") == tail_text


@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [
        ("in Hawaii, Bill rests", "Bill", "Hawaii"),  # tail first
        ("University of Leeds won", (0, 19), (14, 19)),  # the tail within the head
        ("University of Leeds won", (14, 19), (0, 19)),
        ("University of Leeds won", (0, 13), (11, 19)),  # crossing
        ("Leeds won", (0, 5), (0, 5)),  # equal
        ("Bill met Bill and Bill", (9, 13), (18, 22)),  # the same words, other places
        ("C++ (v1.*) is [a-z]+ or \\d$", "C++ (v1.*)", "[a-z]+"),  # letters of regular expressions
        ("C++ (v1.*) is [a-z]+ or \\d$", "\\d$", "is"),
        ("{head} met {tail} of Acme Inc.", "{head}", "Acme Inc."),
        ("The subject is subject . is", "subject", (25, 27)),  # the words of the clauses
        ("Zoë in 東京都", "Zoë", "東京"),
    ],
)
@pytest.mark.parametrize("types", [("", ""), ("PERSON", "CITY"), ("PERSON", "")])
def test_clauses_name_the_mentions(text, head, tail, types):
    instance = make(text, head, tail, *types)
    rendered = marked(instance, "clauses")
    first, second = (text[span.start : span.end] for span in (instance.head, instance.tail))
    opening = f"The subject is {first} . The object is {second} . "
    kinds = [
        f"{mention} is of type {kind.lower()} . "
        for mention, kind in zip((first, second), types, strict=True)
        if kind
    ]
    assert rendered.text == opening + "".join(kinds) + text
    assert (named(rendered, "head"), named(rendered, "tail")) == (first, second)
    # in the clause that names each, whatever else has the same words
    assert rendered.text[: rendered.spans["head"][0]] == "The subject is "
    assert rendered.text[: rendered.spans["tail"][0]] == f"The subject is {first} . The object is "


@pytest.mark.parametrize("markers", ["punctuation", "tags", "clauses", "none"])
def test_random_spans_against_a_naive_walk(markers):
    """Without the markers the sentence is back, and each range covers its mention's characters."""
    rng = random.Random(0)
    alphabet = "ab ., "
    for _ in range(500):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))
        ranges = []
        for _ in range(2):
            start = rng.randrange(len(text))
            ranges.append((start, rng.randint(start + 1, len(text))))
        instance = make(text, *ranges)
        rendered = marked(instance, markers)
        foreign = "@#" if markers == "punctuation" else ""

        def clean(part, foreign=foreign):
            for tag in ("<e1>", "</e1>", "<e2>", "</e2>"):
                part = part.replace(tag, "")
            return "".join(c for c in part if c not in foreign and not c.isspace())

        for name, (start, end) in zip(("head", "tail"), ranges, strict=True):
            assert clean(named(rendered, name)) == clean(text[start:end])
        if markers == "tags":
            assert clean(rendered.text) == clean(text)
            # tags nest or cross, but each opens before it closes and holds the mention
            for tag, (start, end) in zip(("e1", "e2"), ranges, strict=True):
                between = rendered.text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
                assert clean(between) == clean(text[start:end])
        elif markers == "punctuation":
            assert clean(rendered.text) == clean(text)
            for mark, (start, end) in zip("@#", ranges, strict=True):
                assert clean(rendered.text.split(mark)[1]) == clean(text[start:end])


def test_bare_is_the_sentence():
    rendered = bare(make(SENTENCE, "Bill Gates", "Hawaii", "PERSON", "CITY"))
    assert rendered.text == SENTENCE
    assert (named(rendered, "head"), named(rendered, "tail")) == ("Bill Gates", "Hawaii")


@pytest.mark.parametrize("markers", ["punctuation", "tags", "clauses", "none"])
@pytest.mark.parametrize("head", [None, Span(2, 2), Span(-1, 2), Span(3, 99), Span(5, 2)])
def test_bad_spans(markers, head):
    with pytest.raises(ValueError, match="'x7'"):
        marked(Instance("x7", SENTENCE, ("r",), head, Span(0, 4)), markers)
