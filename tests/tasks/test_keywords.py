import random
import re
import string

import pytest

from lightning_rag.tasks.keywords import TOKENS, locate, place, tag
from lightning_rag.types import Mention

NEWS = "New York Times hired Ann in York."
NEWS_MENTIONS = [
    Mention("New York", 0, 8, "city"),
    Mention("New York Times", 0, 14, "paper"),
    Mention("Ann", type="person"),
    Mention("York", 99, 103, "city"),
]


def bracketed(text, mentions, **how):
    """Tag, and write tags as square brackets, so that expectations stay readable."""
    tagged = tag(text, locate(text, mentions, **how), "untyped")
    return tagged.replace(f"{TOKENS[0]} ", "[").replace(f" {TOKENS[1]}", "]")


def test_golden_cases_of_the_released_code():
    # spec section 17b: run through the released functions
    expected = "[New York Times] hired [Ann] in York."
    assert bracketed(NEWS, NEWS_MENTIONS, parity=True) == expected
    money = [Mention("U.S."), Mention("$5")]
    assert locate("U.S. ($5) won", money, parity=True) == []


def test_the_released_code_asks_for_no_letter_behind_a_known_place():
    mention = [Mention("York", 0, 4)]
    assert locate("Yorkshire, York", mention, parity=True) == [(11, 15, "")]
    assert locate("Yorkshire, York", mention) == [(0, 4, "")]
    assert locate("York2 York", mention, parity=True) == [(0, 4, "")]


def test_a_wrong_place_is_searched_for_where_nothing_stands():
    assert bracketed(NEWS, NEWS_MENTIONS) == "[New York Times] hired [Ann] in [York]."


@pytest.mark.parametrize(
    ("text", "mentions", "expected"),
    [
        ("U.S. ($5) won", ["U.S.", "$5", "("], "[U.S.] [(][$5]) won"),
        ("it ended !", ["!"], "it ended [!]"),
        ("a ? ? b", ["?", "?"], "a [?] [?] b"),
        ("Ann met Ann", ["Ann", "Ann"], "[Ann] met [Ann]"),
        ("Ann met Bob", ["Ann", "Ann"], "[Ann] met Bob"),
        ("Anna met Ann", ["Ann"], "Anna met [Ann]"),
        ("C++ and C", ["C", "C++"], "[C++] and [C]"),
        ("a a a", ["a a"], "[a a] a"),
        ("(a+b)* c", ["(a+b)*"], "[(a+b)*] c"),
        ("nothing here", ["absent", "", " "], "nothing here"),
        ("Zoë and Zo", ["Zo"], "Zoë and [Zo]"),
        ("北京 is big", ["北京"], "[北京] is big"),
    ],
)
def test_mentions_without_place(text, mentions, expected):
    assert bracketed(text, map(Mention, mentions)) == expected


def test_places_that_do_not_hold_the_mention_count_for_nothing():
    for start, end in ((0, 2), (-3, 3), (3, 3), (5, 2), (0, None), (None, 3), (7, 99)):
        assert locate("Ann met Bob", [Mention("Bob", start, end)]) == [(8, 11, "")]


def test_overlapping_mentions_are_one_keyword_and_touching_ones_two():
    text = "abcdefgh"
    assert tag(text, [(0, 3, ""), (2, 5, "")], "untyped") == "<Keyword> abcde </Keyword>fgh"
    touching = tag(text, [(3, 5, ""), (0, 3, "")], "untyped")
    assert touching == "<Keyword> abc </Keyword><Keyword> de </Keyword>fgh"
    equal = [(0, 3, "x"), (0, 3, "y"), (0, 3, "x")]
    assert tag(text, equal, "typed") == "<Keyword> x, y: abc </Keyword>defgh"


def test_typed_tags_name_every_type_of_a_keyword_once_the_widest_first():
    spans = locate(NEWS, NEWS_MENTIONS)
    assert tag(NEWS, spans, "typed") == (
        "<Keyword> paper, city: New York Times </Keyword> hired <Keyword> person: Ann </Keyword> "
        "in <Keyword> city: York </Keyword>."
    )
    assert tag("a b", [(0, 1, ""), (2, 3, "x")], "typed") == (
        "<Keyword> a </Keyword> <Keyword> x: b </Keyword>"
    )
    assert tag(NEWS, spans, "none") == NEWS


def test_each_span_is_told_where_its_keyword_stands():
    text, (second, first, inner) = place("abcdef", [(4, 6, ""), (0, 3, "x"), (1, 2, "")], "typed")
    assert text[slice(*second)] == "<Keyword> ef </Keyword>"
    assert text[slice(*first)] == text[slice(*inner)] == "<Keyword> x: abc </Keyword>"
    assert place("abc", [(1, 2, "")], "none") == ("abc", [(1, 2)])


@pytest.mark.parametrize("span", [(1, 1, ""), (-1, 2, ""), (0, 4, ""), (2, 1, "")])
def test_spans_outside_the_text_are_refused(span):
    with pytest.raises(ValueError, match=re.escape("within [0, 3)")):
        tag("abc", [span], "untyped")


def test_any_spans_leave_the_text_and_tag_their_characters_and_no_others():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(string.ascii_letters + " .$(", k=draw.randint(1, 30)))
        spans = []
        for _ in range(draw.randint(0, 6)):
            start = draw.randrange(len(text))
            spans.append((start, draw.randint(start + 1, len(text)), draw.choice(["", "t"])))
        tagged = tag(text, spans, "untyped")
        parts = re.split(r"(<Keyword> .*? </Keyword>)", tagged)
        bare, inside = "", []
        for part in parts:
            keyword = part.startswith("<Keyword>")
            words = part[len("<Keyword> ") : -len(" </Keyword>")] if keyword else part
            bare += words
            inside += [keyword] * len(words)
        assert bare == text
        assert inside == [any(a <= i < b for a, b, _ in spans) for i in range(len(text))]


def test_places_found_by_search_hold_the_mention_as_a_word():
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choices("ab .$", k=draw.randint(1, 14)))
        words = "".join(draw.choices("ab.$", k=draw.randint(1, 2)))
        found = locate(text, [Mention(words)])
        whole = [
            i
            for i in range(len(text))
            if text.startswith(words, i)
            and not (words[0].isalnum() and i and text[i - 1].isalnum())
            and not (words[-1].isalnum() and text[i + len(words) : i + len(words) + 1].isalnum())
        ]
        assert found == [(i, i + len(words), "") for i in whole[:1]]
