import dataclasses

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.errors import UserError
from lightning_rag.retrieval.identifiers import (
    chain,
    find_chain_tokens,
    mend,
    parse,
    read_chain_tokens,
)

TINY = TinyConfig(vocab_size=300, hidden_size=16, heads=2, layers=1)


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder-only"])
def generator(request, corpus):
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(architecture=request.param, tiny=TINY), corpus)


def word_tokenizer(pattern):
    """A tokeniser whose tokens are the matches of a pattern."""
    words = [*map(str, range(200)), *map(chr, range(65, 91)), *"[]>", "] >"]
    words += [f"[{chr(letter)}" for letter in range(65, 91)]
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def with_tokenizer(generator, pattern, monkeypatch):
    monkeypatch.setattr(generator, "tokenizer", word_tokenizer(pattern))
    return generator


def test_chains():
    assert chain("numbers", [8, 19, 5]) == "[9] > [20] > [6]"
    assert chain("letters", [1, 0]) == "[B] > [A]"
    assert chain("numbers", []) == ""


@pytest.mark.parametrize(("kind", "size"), [("numbers", 9), ("letters", 26), ("numbers", 1)])
def test_a_chain_is_its_tokens(generator, kind, size):
    tokens = read_chain_tokens(generator, kind, size)
    assert tokens.kind == kind
    assert len(set(tokens.identifiers)) == len(tokens.identifiers) == size
    for places in ([0], [size - 1], [0, size - 1, size // 2], list(range(size))):
        places = list(dict.fromkeys(places))
        (piece,) = generator.answer_pieces([chain(kind, places)])
        expected = [*generator.answer_prefix, *piece.ids]
        built = [*tokens.prefix(places[:-1]), tokens.identifiers[places[-1]]]
        assert built == expected[: len(built)]
        rest = generator.tokenizer.decode(expected[len(built) :]).strip()
        assert rest == "]"


def test_every_answer_begins_with_the_answer_prefix(generator, monkeypatch):
    plain = read_chain_tokens(generator, "numbers", 3)
    monkeypatch.setattr(generator, "answer_prefix", (2, 5))
    got = read_chain_tokens(generator, "numbers", 3)
    assert got == dataclasses.replace(plain, before=(2, 5, *plain.before))


def test_the_tiny_tokenizer_has_no_numbers_of_two_digits(generator):
    assert read_chain_tokens(generator, "numbers", 10) is None
    assert find_chain_tokens(generator, "auto", 9).kind == "numbers"
    assert find_chain_tokens(generator, "auto", 10).kind == "letters"
    assert find_chain_tokens(generator, "letters", 3).kind == "letters"
    with pytest.raises(UserError) as caught:
        find_chain_tokens(generator, "numbers", 20)
    assert "'numbers' gives no names of one token each for 20 candidates" in str(caught.value)
    assert "legal with it: numbers for up to 9, letters for up to 20, or" in str(caught.value)


def test_more_candidates_than_letters(generator):
    with pytest.raises(UserError, match=r"for 27 candidates .* 'tiny'.*letters for up to 26"):
        find_chain_tokens(generator, "auto", 27)


@pytest.mark.parametrize(
    ("pattern", "numbers", "letters"),
    [
        (r"\d+|[A-Z]|\S", 20, 20),
        (r"\d+|\[[A-Z]|\S", 20, None),  # Llama 3 puts a bracket and a letter together
        (r"\d|\S", 9, 20),
        (r"\d+|[A-Z]|\] >|\S", 20, 20),  # what stands between may be one token
        (r"\[\d+\]|\S", None, 20),
        (r"\S+", None, None),
    ],
)
def test_tokens_of_their_own(generator, pattern, numbers, letters, monkeypatch):
    generator = with_tokenizer(generator, pattern, monkeypatch)
    for kind, most in (("numbers", numbers), ("letters", letters)):
        got = read_chain_tokens(generator, kind, most or 1)
        assert (got is not None) == (most is not None)
        if most and most < 20:
            assert read_chain_tokens(generator, kind, most + 1) is None


def test_identifiers_unknown_to_the_tokenizer_are_refused(generator, monkeypatch):
    generator = with_tokenizer(generator, r"\d+|[A-Z]|\S", monkeypatch)
    known = 199  # 200 and 201 are the same unknown token
    assert read_chain_tokens(generator, "numbers", known) is not None
    assert read_chain_tokens(generator, "numbers", 201) is None


def test_no_identifiers_at_all(generator, monkeypatch):
    generator = with_tokenizer(generator, r"\S+", monkeypatch)
    with pytest.raises(UserError, match="legal with it: none, or decoding: string"):
        find_chain_tokens(generator, "auto", 3)


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("numbers", "[2] > [1]", [1, 0]),
        ("numbers", "the best are 3, 1 and 10.", [2, 0, 9]),
        ("numbers", "[0] > [-1]", [-1, 0]),
        ("numbers", "9" * 5000, [-1]),  # too long for Python to read as a number
        ("numbers", "none of them", []),
        ("numbers", "", []),
        ("letters", "[B] > [A]", [1, 0]),
        ("letters", "[ b ]>[ a ]", [1, 0]),  # as tokenisers without capitals write it
        ("letters", "A passage I like: [C]", [2]),
        ("letters", "[AB] [1] [É]", []),
    ],
)
def test_parse(kind, text, found):
    assert parse(kind, text) == found


@pytest.mark.parametrize(
    ("found", "order"),
    [
        ([1, 0], [1, 0, 2, 3]),
        ([3, 3, 1, 3], [3, 1, 0, 2]),  # repeats
        ([9, 2, -1, 4], [2, 0, 1, 3]),  # out of range
        ([2], [2, 0, 1, 3]),  # too short
        ([], [0, 1, 2, 3]),  # garbage
        ([3, 2, 1, 0], [3, 2, 1, 0]),
    ],
)
def test_mend(found, order):
    assert mend(found, 4) == order
    assert mend(found, 0) == []
