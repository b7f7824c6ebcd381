import random

import pytest

from lightning_rag.backbones.trie import build_trie

END = 0


def test_branches_of_a_small_trie():
    trie = build_trie([(5, 6, END), (5, 7, END), (8, END)])
    # The root branches into 5 and 8, the prefix (5,) into 6 and 7; nothing else is decided.
    assert trie.rows == ((5,),)
    assert set(zip(trie.nodes, trie.children, strict=True)) == {
        ((0, 0), (5, 8)),
        ((0, 1), (6, 7)),
    }
    assert [len(path) for path in trie.paths] == [2, 2, 1]


def test_one_answer_is_a_prefix_of_another():
    trie = build_trie([(5, END), (5, 6, END)])
    assert trie.nodes == ((0, 1),)
    assert trie.children == ((END, 6),)


def test_a_single_answer_decides_nothing():
    trie = build_trie([(5, 6, END)])
    assert trie.nodes == ()
    assert trie.rows == ()
    assert trie.paths == ((),)


def test_random_tries_against_brute_force():
    rng = random.Random(0)
    for _ in range(200):
        sequences = {
            (*(rng.randint(1, 3) for _ in range(rng.randint(0, 5))), END) for _ in range(8)
        }
        answers = sorted(sequences)
        trie = build_trie(answers)
        for answer, path in zip(answers, trie.paths, strict=True):
            decided = []
            for node, child in path:
                row, length = trie.nodes[node]
                assert trie.rows[row][:length] == answer[:length]
                decided.append((answer[:length], trie.children[node], trie.children[node][child]))
            expected = []
            for length in range(len(answer)):
                follow = {a[length] for a in answers if a[:length] == answer[:length]}
                if len(follow) > 1:
                    expected.append((answer[:length], tuple(sorted(follow)), answer[length]))
            assert decided == expected
        for row in trie.rows:  # no row is the beginning of another one
            others = [other for other in trie.rows if other != row]
            assert not any(other[: len(row)] == row for other in others)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "at least one allowed answer"),
        ([()], "at least one token"),
        ([(1, END), (1, END)], "same tokens"),
        ([(1,), (1, 2)], "prefix of another"),
    ],
)
def test_bad_input(sequences, message):
    with pytest.raises(ValueError, match=message):
        build_trie(sequences)
