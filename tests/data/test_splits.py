"""Cuts by group and seed, low-resource regimes, and the hash that names a split."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from lightning_rag.data.splits import hold_out, ids_hash, normalise, read_ids, subset
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Span


def relation(identity, label="a", group=""):
    span = Span(0, 1)
    return Instance(identity, "x y", (label,), head=span, tail=span, group=group)


def question(identity, answer="a", group=""):
    return Instance(identity, "why?", (answer,), group=group)


@pytest.fixture
def skewed():
    counts = {"big": 600, "middle": 300, "small": 90, "tiny": 9, "single": 1}
    found = [relation(f"{label}{i}", label) for label, n in counts.items() for i in range(n)]
    random.Random(0).shuffle(found)
    return tuple(found)


def labels_of(instances):
    return Counter(instance.answers[0] for instance in instances)


def test_normalise_folds_case_and_white_space():
    assert normalise("  The\tSTRASSE \n is") == normalise("the straße is") == "the strasse is"


def test_ids_hash_is_the_sha256_of_the_sorted_ids():
    expected = hashlib.sha256(b"10\n9\nb").hexdigest()[:16]
    assert ids_hash([relation("b"), relation("9"), relation("10")]) == expected
    assert ids_hash([relation("10"), relation("b"), relation("9")]) == expected
    assert ids_hash([relation("10"), relation("b")]) != expected


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.37, 0.9])
def test_hold_out_is_a_partition_stratified_to_one(skewed, fraction):
    kept, held = hold_out(skewed, fraction, seed=3)
    assert {i.id for i in kept} | {i.id for i in held} == {i.id for i in skewed}
    assert len(kept) + len(held) == len(skewed)
    assert len(held) == round(fraction * len(skewed))
    for label, count in labels_of(skewed).items():
        assert abs(labels_of(held)[label] - fraction * count) < 1
    places = {instance.id: place for place, instance in enumerate(skewed)}
    for part in (kept, held):
        assert [places[i.id] for i in part] == sorted(places[i.id] for i in part)


def test_hold_out_depends_on_the_seed_and_not_on_the_order(skewed):
    _, held = hold_out(skewed, 0.2, seed=0)
    assert hold_out(skewed, 0.2, seed=0)[1] == held
    assert ids_hash(hold_out(skewed[::-1], 0.2, seed=0)[1]) == ids_hash(held)
    assert ids_hash(hold_out(skewed, 0.2, seed=1)[1]) != ids_hash(held)


def test_hold_out_draws_evenly():
    instances = [relation(str(i)) for i in range(20)]
    drawn = Counter(i.id for seed in range(500) for i in hold_out(instances, 0.25, seed)[1])
    # 125 expected, standard deviation of the binomial below 10
    assert min(drawn.values()) > 75
    assert max(drawn.values()) < 175


@pytest.mark.parametrize("seed", range(5))
def test_hold_out_never_cuts_a_group(seed):
    rng = random.Random(seed)
    instances = [
        relation(str(i), rng.choice("abc"), group=f"g{rng.randrange(60)}") for i in range(300)
    ]
    kept, held = hold_out(instances, 0.2, seed)
    assert not {i.group for i in kept} & {i.group for i in held}
    assert abs(len(held) - 60) <= 6


def test_hold_out_of_few_large_groups_takes_the_smallest():
    instances = [question(f"{g}{i}", group=g) for g, n in (("p", 50), ("q", 40)) for i in range(n)]
    kept, held = hold_out(instances, 0.1, seed=0)
    assert {i.group for i in held} == {"q"}
    assert {i.group for i in kept} == {"p"}


def test_hold_out_leaves_something(skewed):
    instances = [question(f"{g}{i}", group=g) for g in "pq" for i in range(10)]
    for seed in range(5):
        kept, held = hold_out(instances, 0.95, seed)
        assert len(kept) == len(held) == 10


def test_hold_out_takes_a_group_name_and_an_id_apart():
    instances = [relation("g", "a"), *(relation(str(i), "a", group="g") for i in range(3))]
    kept, held = hold_out(instances, 0.3, seed=0)
    assert [i.id for i in held] == ["g"]
    assert len(kept) == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_hold_out_refuses_a_fraction_that_leaves_nothing(skewed, fraction):
    with pytest.raises(UserError, match=r"fraction to hold out is .*; legal: more than 0"):
        hold_out(skewed, fraction, seed=0)


@pytest.mark.parametrize("instances", [[], [relation("1", group="g"), relation("2", group="g")]])
def test_hold_out_needs_two_groups(instances):
    with pytest.raises(DataError, match="legal: at least 2"):
        hold_out(instances, 0.5, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_subsets_are_nested_stratified_and_of_the_size_asked(skewed, seed):
    previous: set[str] = set()
    for fraction in (0.005, 0.01, 0.05, 0.1, 0.5, 1.0):
        chosen = subset(skewed, fraction=fraction, seed=seed)
        ids = {i.id for i in chosen}
        assert len(chosen) == len(ids) == round(fraction * len(skewed))
        assert previous <= ids
        previous = ids
        counts = labels_of(chosen)
        assert set(counts) == set(labels_of(skewed))  # 5 labels, at least 5 places
        for label, count in labels_of(skewed).items():
            assert abs(counts[label] - max(1, fraction * count)) <= 2
    assert subset(skewed, fraction=1.0, seed=seed) == skewed


def test_subset_with_fewer_places_than_labels_takes_frequent_labels(skewed):
    assert set(labels_of(subset(skewed, fraction=0.003, seed=0))) == {"big", "middle", "small"}
    assert len(subset(skewed, fraction=1e-9, seed=0)) == 1


def test_subset_depends_on_the_seed_and_not_on_the_order(skewed):
    chosen = subset(skewed, fraction=0.1, seed=0)
    assert subset(skewed, fraction=0.1, seed=0) == chosen
    assert ids_hash(subset(skewed[::-1], fraction=0.1, seed=0)) == ids_hash(chosen)
    assert ids_hash(subset(skewed, fraction=0.1, seed=1)) != ids_hash(chosen)


def test_subset_of_questions_is_not_stratified_by_answer():
    instances = [question(str(i), answer=str(i % 50)) for i in range(100)]
    answers = {i.answers for i in subset(instances, fraction=0.5, seed=0)}
    assert 25 < len(answers) < 50  # 50 draws of 50 answers that occur twice: 37.6 expected


def test_subset_is_drawn_independently_of_hold_out():
    instances = [relation(str(i)) for i in range(1000)]
    held = {i.id for i in hold_out(instances, 0.5, seed=0)[1]}
    chosen = {i.id for i in subset(instances, fraction=0.5, seed=0)}
    assert 180 < len(held & chosen) < 320  # 250 expected


def test_subset_by_ids_keeps_the_order_of_the_data(skewed):
    wanted = [skewed[70].id, skewed[3].id]
    assert subset(skewed, ids=wanted) == (skewed[3], skewed[70])


def test_subset_by_unknown_ids_is_refused(skewed):
    with pytest.raises(DataError, match=r"1 of 2 listed ids are not in the split, first 'nobody'"):
        subset(skewed, ids=["big1", "nobody"])


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.01, float("nan")])
def test_subset_refuses_other_fractions(skewed, fraction):
    with pytest.raises(UserError, match=r"fraction is .*; legal: more than 0 and at most 1"):
        subset(skewed, fraction=fraction)


def test_subset_wants_a_fraction_or_ids(skewed):
    with pytest.raises(ValueError, match="exactly one"):
        subset(skewed)
    with pytest.raises(ValueError, match="exactly one"):
        subset(skewed, fraction=0.5, ids=["big1"])


def test_read_ids(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xef\xbb\xbfa1\r\n\r\n 7 \nb")
    assert read_ids(path) == ("a1", "7", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", r"ids.txt:3: id 'a' is already in line 1"),
        (b"\n\n", r"ids.txt: no ids; legal: one id a line"),
        (b"a\nb\xff\n", r"ids.txt:2: byte 3 of the file \(0xff\) is not UTF-8"),
    ],
)
def test_read_ids_refuses(tmp_path, content, message):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_ids(path)


def test_read_ids_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.txt: cannot be read: No such file"):
        read_ids(tmp_path / "nothing.txt")
