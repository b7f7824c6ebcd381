import random

import pytest

from lightning_rag.backbones.prefixes import prefix_forest, within_budget


def spelled(forest):
    """Per sequence its tokens, put together from the nodes; and all nodes."""
    tokens, nodes = {}, []
    waiting = list(forest)
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        for i in node.sequences:
            assert len(tokens.setdefault(i, ())) == node.start
            tokens[i] += node.tokens
        waiting += node.children  # a node's children come after it
        assert all(set(child.sequences) <= set(node.sequences) for child in node.children)
    return tokens, nodes


def test_a_small_forest():
    a, b, c = (1, 2, 3, 4, 5), (1, 2, 3, 9), (7, 8)
    forest = prefix_forest([a, b, c, c], saving=3)
    tops = {node.tokens: node for node in forest}
    assert tops.keys() == {(1, 2, 3), (7, 8)}
    assert tops[7, 8].sequences == [2, 3]
    assert {(n.start, n.tokens) for n in tops[1, 2, 3].children} == {(3, (4, 5)), (3, (9,))}


def test_a_beginning_that_saves_too_little_is_read_again():
    a, b = (1, 2, 3, 4, 5), (1, 2, 3, 9)
    forest = prefix_forest([a, b], saving=4)
    assert sorted(node.tokens for node in forest) == [a, b]
    # Three sequences save twice the tokens of two.
    assert [n.tokens for n in prefix_forest([a, b, (1, 2, 3, 7)], saving=4)] == [(1, 2, 3)]


def test_a_short_beginning_does_not_hide_a_longer_one():
    # All share one token, which is too little; two of them share four.
    forest = prefix_forest([(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 7)], saving=4)
    assert sorted(node.tokens for node in forest) == [(1, 2, 3, 4), (1, 7)]


def test_a_sequence_that_begins_another():
    forest = prefix_forest([(1, 2, 3), (1, 2, 3, 4), (1, 2, 3)], saving=1)
    (node,) = forest
    assert (node.tokens, sorted(node.sequences)) == ((1, 2, 3), [0, 1, 2])
    assert [(child.tokens, child.sequences) for child in node.children] == [((4,), [1])]


@pytest.mark.parametrize("saving", [1, 2, 5, 1000])
def test_random_sequences_are_whole(saving):
    generator = random.Random(saving)
    for _ in range(50):
        count = generator.randrange(12)
        sequences = [
            tuple(generator.choices([1, 2], k=generator.randrange(9))) for _ in range(count)
        ]
        tokens, nodes = spelled(prefix_forest(sequences, saving))
        assert tokens == {i: s for i, s in enumerate(sequences) if s}
        for node in nodes:
            if node.children:
                assert (len(node.sequences) - 1) * len(node.tokens) >= saving
        if saving == 1:  # every beginning is in one node
            assert sum(len(node.tokens) for node in nodes) == len(
                {s[:length] for s in sequences for length in range(1, len(s) + 1)}
            )
        if saving == 1000:  # nothing is shared but what is equal
            assert sum(len(node.tokens) for node in nodes) == sum(map(len, set(sequences)))


def test_deep_forests_do_not_recurse():
    sequences = [tuple([1] * length) for length in range(1, 1100)]
    tokens, nodes = spelled(prefix_forest(sequences, 1))
    assert len(nodes) == 1099
    assert tokens[1098] == sequences[1098]


def test_batches_keep_to_the_budget():
    lengths = [5, 100, 7, 3, 6, 0]
    batches = list(within_budget(lengths, 14))
    assert batches == [[1], [2, 4], [0, 3], [5]]
    assert list(within_budget([], 10)) == []
    assert list(within_budget([0, 0], 1)) == [[0], [1]]
