"""From a mention's characters to its columns in a padded batch, for each kind of tokeniser.

The encoder's model is put in place of one whose hidden states are the columns themselves, so the
embedding of a span tells which tokens it is the mean of.
"""

import unicodedata
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.backbones.tiny import tiny_encoder
from lightning_rag.errors import UserError
from lightning_rag.tasks.labels import TACRED
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Instance, Passage, Rendered, Span

TINY = TinyConfig(vocab_size=400, hidden_size=32, heads=2)
WIDTH = 512  # more than any text has tokens
TEXTS = [
    "The subject is Bill . The object is Hawaii . Bill is of type person .",
    "Bill Gates lives in Hawaii, and Bill met Bill at Acme Inc. in Leeds.",
] * 4


class Columns(nn.Module):
    """A model whose hidden state at column i is the i-th unit vector, then the row's number.

    The rows of all calls are kept, with their numbers, because a batch goes through in groups.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(1))  # tells the device
        self.rows: list[list[int]] = []

    def forward(self, input_ids, attention_mask):
        size, length = input_ids.shape
        numbers = len(self.rows) + torch.arange(size)[:, None, None].expand(-1, length, 1)
        self.rows += input_ids.tolist()
        states = torch.eye(length, WIDTH).expand(size, -1, -1)
        return SimpleNamespace(last_hidden_state=torch.cat([states, numbers], dim=-1))


def roberta():
    """A byte-level tokeniser with RoBERTa's special tokens: two separators between two texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    ends = [(token, made.token_to_id(token)) for token in ("</s>", "<s>")]
    made.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
    )


@pytest.fixture(params=["tiny", "roberta", "minilm"])
def encoder(request):
    config = EncoderConfig(tiny=TINY, normalize=False, max_length=256)
    if request.param == "minilm":
        config.source = request.getfixturevalue("minilm")
        built = build_encoder(config, ())
    elif request.param == "roberta":
        tokenizer = roberta()
        built = Encoder(tiny_encoder(TINY, tokenizer), tokenizer, config)
    else:
        built = build_encoder(config, TEXTS)
    built.model = Columns(built.model.config)
    return built


def task_of(**arguments):
    task = RelationExtraction(wording="tacred", **arguments)
    task.prepare(tuple(TACRED))
    return task


def passage(text, head, tail, types=("", ""), label="per:cities_of_residence"):
    spans = Span(*head, types[0]), Span(*tail, types[1])
    return Passage("p", text, instance=Instance("p", text, (label,), *spans))


def squeezed(text):
    """A text by its signs alone: MiniLM drops case and accents, and decoding moves spaces."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not c.isspace() and not unicodedata.combining(c))


def columns(encoder, texts, names):
    """[text][name]: the columns whose states the embedding averages, and the rows of tokens."""
    vectors = encoder.spans(texts, names)  # (B, V, WIDTH + 1)
    weights, numbers = vectors[..., :-1], vectors[:, 0, -1].round().int().tolist()
    found = [[row.nonzero().flatten().tolist() for row in text] for text in weights]
    for text, chosen in zip(weights, found, strict=True):
        for row, places in zip(text, chosen, strict=True):  # a mean
            assert torch.allclose(row[places], torch.full((len(places),), 1 / len(places)))
    return found, [encoder.model.rows[number] for number in numbers]


def words(encoder, ids):
    return squeezed(encoder.tokenizer.decode(ids, skip_special_tokens=True))


def check(encoder, rendered):
    """Each span's tokens are its words, and what stands beside them stands beside its words."""
    for text in rendered:
        assert set(text.spans) == {"head", "tail", "label"}
    found, ids = columns(encoder, rendered, ["head", "tail", "label"])
    special = set(encoder.tokenizer.all_special_ids)
    for text, chosen, row in zip(rendered, found, ids, strict=True):
        for name, places in zip(("head", "tail", "label"), chosen, strict=True):
            start, end = text.spans[name]
            tokens = [row[place] for place in places]
            assert not special.intersection(tokens), "no separator, no padding"
            whole = row[places[0] : places[-1] + 1]  # with tokens of a space alone, if any
            assert words(encoder, tokens) == words(encoder, whole) == squeezed(text.text[start:end])
            left = squeezed(text.text[:start].replace(encoder.tokenizer.sep_token, " "))
            right = squeezed(text.text[end:].replace(encoder.tokenizer.sep_token, " "))
            before, after = words(encoder, row[: places[0]]), words(encoder, row[places[-1] + 1 :])
            if encoder.truncated:  # from the neighbouring word on, as far as it was left
                assert before[-2:] == left[-2:]
                assert after[:2] == right[:2]
            else:
                assert (before, after) == (left, right)


CASES = {
    "plain": ("Bill Gates lives in Hawaii.", (0, 10), (20, 26)),
    "tail first": ("In Hawaii, Bill rests", (11, 15), (3, 9)),
    "repeated": ("Bill met Bill and Bill.", (9, 13), (18, 22)),
    "equal": ("Leeds won", (0, 5), (0, 5)),
    "within": ("University of Leeds won", (0, 19), (14, 19)),
    "crossing": ("University of Leeds won", (0, 13), (11, 19)),
    "first and last": ("Bill is in Hawaii", (0, 4), (11, 17)),
    "before a stop": ("Bill runs Acme Inc.", (0, 4), (10, 19)),
    "not ascii": ("In 東京, Zoë Müller rests", (7, 17), (3, 5)),
    "signs": ("C++ (v1.*) is [a-z]+ and $", (0, 10), (14, 20)),
}


@pytest.mark.parametrize("target", ["label", "clause"])
@pytest.mark.parametrize("form", ["sentence", "clauses", "punctuation"])
@pytest.mark.parametrize("spaces", [True, False])
def test_all_cases_in_one_padded_batch(encoder, form, target, spaces):
    """Rows of several lengths, so that all but one are padded; special tokens around and within."""
    task = (
        task_of(target=target)
        if form == "sentence"
        else task_of(target=target, markers=form, retrieval_text="marked")
    )
    separator = encoder.tokenizer.sep_token
    if spaces:
        separator = f" {separator} "
    passages = [
        passage(*case, types=types)
        for case in CASES.values()
        for types in (("", ""), ("PERSON", "STATE_OR_PROVINCE"))
    ]
    check(encoder, [task.labelled_key(one, separator) for one in passages])
    assert not encoder.truncated


def test_the_tokens_are_those_between_the_special_ones(encoder):
    """A plain call of the tokeniser, special tokens and all, puts them into the same columns."""
    rendered = Rendered("Bill met Bill", {"head": (9, 13)})
    ((places,),), ids = columns(encoder, [rendered], ["head"])
    encoded = encoder.tokenizer(rendered.text, return_offsets_mapping=True)
    assert ids == [encoded["input_ids"]]
    inner = [
        place
        for place, (start, end) in enumerate(encoded["offset_mapping"])
        if start < end and end > 9
    ]
    assert places == inner
    assert places[-1] == len(ids[0]) - 2  # the last but the closing special token


LONG = "While rain fell on the old town for days , " * 12


@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [
        # the first "Bill" and "Hawaii" are other mentions, far from those that are meant
        ("Bill saw Hawaii . {}there Bill lived in Hawaii . {}", "there Bill", "in Hawaii"),
        ("Bill saw Hawaii . {}there Bill lived . {}far from Hawaii .", "there Bill", "from Hawaii"),
        ("{}Bill and Hawaii and Bill", "and Bill", "and Hawaii"),
    ],
)
@pytest.mark.parametrize("form", ["sentence", "clauses"])
def test_truncation_keeps_the_mentions_that_are_meant(encoder, form, text, head, tail):
    text = text.replace("{}", LONG)

    def place(mention):  # its last word
        end = text.index(mention) + len(mention)
        return end - len(mention.split()[-1]), end

    one = passage(text, place(head), place(tail), types=("PERSON", "CITY"))
    task = task_of(
        target="clause",
        **({} if form == "sentence" else {"markers": form, "retrieval_text": "marked"}),
    )
    rendered = task.labelled_key(one, f" {encoder.tokenizer.sep_token} ")
    short = passage("Bill lives in Hawaii", (0, 4), (14, 20))
    encoder.config.max_length = 110
    check(encoder, [rendered, task.labelled_key(short, f" {encoder.tokenizer.sep_token} ")])
    assert encoder.truncated == 1
    assert {len(row) for row in encoder.model.rows} == {110}


def test_a_limit_that_would_cut_into_a_mention_or_label(encoder):
    task = task_of(target="clause")
    encoder.config.max_length = 6
    rendered = task.labelled_key(passage(*CASES["plain"]), encoder.tokenizer.sep_token)
    with pytest.raises(UserError, match="raise the limit"):
        encoder.spans([rendered], task.slots)


def test_columns_that_are_shifted_are_noticed(encoder, monkeypatch):
    """The released code's error, two tokens to the right, fails the check of these tests."""
    right = Encoder._span_tokens

    def shifted(self, piece, name):
        columns = right(self, piece, name)
        return columns if name == "label" else [column + 2 for column in columns]

    monkeypatch.setattr(Encoder, "_span_tokens", shifted)
    rendered = task_of().labelled_key(passage(*CASES["plain"]), encoder.tokenizer.sep_token)
    longer = task_of().labelled_key(passage(*CASES["signs"]), encoder.tokenizer.sep_token)
    with pytest.raises(AssertionError):
        check(encoder, [rendered, longer])
