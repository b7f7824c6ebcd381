import dataclasses

import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.errors import UserError
from lightning_rag.retrieval.listwise import ListwiseSelector, instruct
from lightning_rag.retrieval.selector import Offer
from lightning_rag.types import Rendered

KINDS = {
    "concatenate": GeneratorConfig(),
    "fuse": GeneratorConfig(passages="fuse"),
    "decoder-only": GeneratorConfig(architecture="decoder-only"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def build(corpus):
    def make(kind="concatenate", k=2, size=4, dropout=0.0, checkpointing=False, std=0.4, **options):
        tiny = TinyConfig(vocab_size=300, hidden_size=16, heads=2, layers=1, dropout=dropout)
        config = dataclasses.replace(
            KINDS[kind], tiny=tiny, gradient_checkpointing=checkpointing, max_target_length=20
        )
        torch.manual_seed(0)
        selector = ListwiseSelector(config, corpus, k, size, **options)
        for weight in selector.parameters():  # larger than at the start, so that choices differ
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=std)
        return selector

    return make


def token_ids(selector, text):
    return selector.generator.tokenizer(text, add_special_tokens=False)["input_ids"]


def full_logits(selector, offer, row, answer):
    """(T, V): logits of the tokens of one answer, by a plain call without padding or cache."""
    generator, tokenizer = selector.generator, selector.generator.tokenizer
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    query = token_ids(selector, offer.queries[row].text)
    passages = [
        token_ids(selector, f"[{number}] {passage.text}")
        for number, passage in enumerate(offer.passages[row], start=1)
    ]
    if generator.config.architecture == "decoder-only":
        line = token_ids(selector, "\n")
        ids = [cls, *(token for p in passages for token in (*p, *line)), *query]
        ids += token_ids(selector, "\nAnswer:")
        logits = generator.model(input_ids=torch.tensor([[*ids, *answer[:-1]]])).logits[0]
        return logits[len(ids) - 1 :]
    groups = [[p] for p in passages] if generator.config.passages == "fuse" else [passages]
    states = []
    for group in groups:
        ids = [cls, *query, sep, *(token for p in group for token in (*p, sep))]
        states.append(generator.model.get_encoder()(torch.tensor([ids])).last_hidden_state)
    return generator.model(
        encoder_outputs=(torch.cat(states, dim=1),),
        decoder_input_ids=torch.tensor([[cls, *answer[:-1]]]),
    ).logits[0]


def chain_ids(selector, text):
    space = " " if selector.generator.config.architecture == "decoder-only" else ""
    return [*token_ids(selector, space + text), selector.generator.tokenizer.eos_token_id]


def naive_log_prob(selector, offer, row, places, temperature=1.0):
    """The definition: logits of the identifiers that are left, one list at a time."""
    names = selector.generator.tokenizer.convert_tokens_to_ids([*"123456789"])
    answer = chain_ids(selector, " > ".join(f"[{place + 1}]" for place in places))
    logits = full_logits(selector, offer, row, answer) / temperature
    steps = [step for step, token in enumerate(answer) if token in names]
    total = torch.zeros(())
    left = list(range(len(offer.passages[row])))
    for step, place in zip(steps, places, strict=True):
        among = logits[step, [names[i] for i in left]].log_softmax(-1)
        total = total + among[left.index(place)]
        left.remove(place)
    return total


def test_log_prob_and_its_gradient_equal_the_definition(build, kind, offer):
    selector = build(kind)
    positions = torch.tensor([[[2, 0], [2, 3], [1, -1]], [[0, -1]] * 3, [[1, 2], [0, 1], [-1, 2]]])
    got = selector.log_prob(offer, positions)
    expected = torch.zeros(3, 3)
    for b, s in ((b, s) for b in range(3) for s in range(3)):
        places = [place for place in positions[b, s].tolist() if place >= 0]
        expected[b, s] = naive_log_prob(selector, offer, b, places)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert got[1].tolist() == [0, 0, 0]  # one candidate: nothing to choose
    assert got[0].std() > 0.05
    weights = torch.tensor([[0.3, 0.2, 0.5], [1.0, 0.0, 0.0], [0.5, -0.5, 1.0]])
    parameters = list(selector.parameters())
    gradients = torch.autograd.grad((weights * got).sum(), parameters, allow_unused=True)
    naive = torch.autograd.grad((weights * expected).sum(), parameters, allow_unused=True)
    assert max(gradient.abs().max() for gradient in gradients if gradient is not None) > 1e-2
    for a, b in zip(gradients, naive, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_gradient_checkpointing_changes_nothing(build, kind, offer):
    positions = torch.tensor([[[2, 0]], [[0, -1]], [[1, 2]]])
    results = []
    for checkpointing in (False, True):
        selector = build(kind, checkpointing=checkpointing).train()
        selector.log_prob(offer, positions).sum().backward()
        results.append([p.grad for p in selector.parameters() if p.grad is not None])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_probabilities_sum_to_one(build, kind, offer, sums_to_one):
    for k in (1, 2, 4):
        sums_to_one(build(kind, k=k), offer)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_samples(build, kind, offer, all_lists, frequencies_agree, temperature, top_p):
    selector = build(kind, proposal_temperature=temperature, top_p=top_p)
    torch.manual_seed(1)
    sampled = selector.sample(offer, 3000)
    assert sampled.positions.shape == (3, 3000, 2)
    assert sampled.valid.all()
    assert not sampled.log_prob.requires_grad
    with torch.no_grad():
        again = selector.log_prob(offer, sampled.positions)
    torch.testing.assert_close(sampled.log_prob, again, atol=1e-4, rtol=1e-4)
    # What was drawn from, by enumeration.
    positions, real = all_lists(offer, 2)
    expected = torch.full(real.shape, -torch.inf)
    with torch.no_grad():
        for b, n in real.nonzero().tolist():
            places = [place for place in positions[b, n].tolist() if place >= 0]
            expected[b, n] = naive_proposal(selector, offer, b, places, temperature, top_p)
    total = expected.exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones(3), atol=1e-4, rtol=0)
    frequencies_agree(sampled, offer, expected.exp())
    number = (sampled.positions[:, :, None] == positions[:, None]).float().prod(-1).argmax(-1)
    torch.testing.assert_close(
        sampled.log_proposal, expected.gather(1, number), atol=1e-4, rtol=1e-4
    )


def naive_proposal(selector, offer, row, places, temperature, top_p):
    """The definition again, with the most probable candidates of each step alone."""
    if top_p == 1:
        return naive_log_prob(selector, offer, row, places, temperature)
    total = torch.zeros(())
    count = len(offer.passages[row])
    for number, place in enumerate(places):
        left = [i for i in range(count) if i not in places[:number]]
        step = torch.stack(
            [
                naive_log_prob(selector, offer, row, [*places[:number], i], temperature)
                - naive_log_prob(selector, offer, row, places[:number], temperature)
                for i in left
            ]
        ).exp()
        kept, mass = [], 0.0
        for i in step.argsort(descending=True).tolist():
            if mass < top_p:
                kept.append(left[i])
                mass += step[i].item()
        if place not in kept:
            return torch.tensor(-torch.inf)
        total = total + step[left.index(place)].log() - torch.tensor(mass).log()
    return total


def test_rank_takes_the_most_probable_step_by_step(build, kind, offer):
    for k in (1, 2, 3):
        selector = build(kind, k=k)
        ranks = selector.rank(offer)
        assert not ranks.requires_grad
        there = [[True] * 4, [True] + [False] * 3, [True] * 3 + [False]]
        assert (ranks > -torch.inf).tolist() == there
        for b, passages in enumerate(offer.passages):
            chosen = []
            while len(chosen) < min(k, len(passages)):
                left = [i for i in range(len(passages)) if i not in chosen]
                step = [naive_log_prob(selector, offer, b, [*chosen, i]).item() for i in left]
                chosen.append(left[step.index(max(step))])
            order = ranks[b].argsort(descending=True)[: len(passages)].tolist()
            assert order[: len(chosen)] == chosen
            assert ranks[b, chosen].tolist() == [float(k - i) for i in range(len(chosen))]
            # Those not chosen follow in the order of the last choice.
            rest = [i for i in range(len(passages)) if i not in chosen]
            step = {i: naive_log_prob(selector, offer, b, [*chosen[:-1], i]).item() for i in rest}
            assert order[len(chosen) :] == sorted(rest, key=lambda i: -step[i])


def test_fewer_candidates_than_k(build, kind, offer):
    selector = build(kind, k=4)
    sampled = selector.sample(offer, 3)
    assert sampled.positions[0].sort(dim=-1).values.tolist() == [[0, 1, 2, 3]] * 3
    assert sampled.positions[1].tolist() == [[0, -1, -1, -1]] * 3
    assert sampled.positions[2, :, 3].tolist() == [-1] * 3
    assert sampled.log_prob[1].tolist() == sampled.log_proposal[1].tolist() == [0] * 3
    few = Offer(offer.queries[:2], [[], offer.passages[1]], 4)
    sampled = selector.sample(few, 2)
    assert sampled.positions.tolist() == [[[-1] * 4] * 2, [[0, -1, -1, -1]] * 2]
    assert selector.rank(few)[0].tolist() == [-torch.inf] * 4
    assert selector.log_prob(few, sampled.positions).tolist() == [[0, 0], [0, 0]]
    empty = Offer(offer.queries[:1], [[]], 4)
    assert selector.sample(empty, 2).positions.tolist() == [[[-1] * 4] * 2]


def test_lists_of_another_length(build, kind, offer):
    selector = build(kind, k=2)
    positions = torch.tensor([[[2, 0, 3, 1]], [[0, -1, -1, -1]], [[1, 2, 0, -1]]])
    got = selector.log_prob(offer, positions)
    expected = [naive_log_prob(selector, offer, b, [2, 0, 3, 1][: 4 - b]) for b in (0,)]
    expected += [torch.zeros(()), naive_log_prob(selector, offer, 2, [1, 2, 0])]
    torch.testing.assert_close(got[:, 0], torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_letters(build, kind, offer, sums_to_one):
    selector = build(kind, identifiers="letters")
    assert selector.kind == "letters"
    texts = [p.text for p in selector.prompts(offer)[2].passages]
    expected = [f"[{letter}] {p.text}" for letter, p in zip("ABC", offer.passages[2], strict=True)]
    assert texts == expected
    sums_to_one(selector, offer)


def test_identifiers_by_the_number_of_candidates(build):
    assert build(size=9).kind == "numbers"
    assert build(size=20).kind == "letters"
    with pytest.raises(UserError, match="'auto' gives no names of one token each for 30 candi"):
        build(size=30)


def test_prompts_are_named_and_may_have_an_instruction(build, offer):
    plain, worded = build(), build(instruction=True, k=3)
    query = Rendered("alba borks", {"head": (0, 4)})
    offer = Offer([query, query], [offer.passages[0], []], 4)
    prompt = plain.prompts(offer)[0]
    assert prompt.query is query
    names = [passage.text.split()[0] for passage in prompt.passages]
    assert names == ["[1]", "[2]", "[3]", "[4]"]
    prompt = worded.prompts(offer)[0]
    text = prompt.query.text
    assert "4 passages" in text
    assert "3 most useful" in text
    assert "[2] > [1]" in text
    assert text.count("alba borks") == 2
    assert text.endswith("alba borks")
    start, end = prompt.query.spans["head"]
    assert (text[start:end], end - start) == ("alba", 4)
    assert start == len(text) - len("alba borks")
    assert worded.prompts(offer)[1].query is query  # nothing to rank


def test_instructions_show_letters():
    assert "[B] > [A]" in instruct(Rendered("fox"), 3, 2, "letters").text


def test_a_checkpoint_brings_tokenizer_and_identifiers(build, corpus, offer, tmp_path):
    selector = build()
    torch.save(selector.state_dict(), tmp_path / "weights.pt")
    other = ListwiseSelector(selector.generator.config, ["another corpus > [1] [2]"] * 3, 2, 4)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.chain_tokens() == selector.chain_tokens()
    assert torch.equal(other.rank(offer), selector.rank(offer))


def test_sampling_leaves_the_mode_and_has_no_dropout(build, kind, offer):
    selector = build(kind, dropout=0.5).train()
    sampled = selector.sample(offer, 2)
    assert torch.equal(selector.rank(offer), selector.rank(offer))
    assert selector.training
    selector.eval()
    again = selector.log_prob(offer, sampled.positions).detach()
    torch.testing.assert_close(sampled.log_prob, again, atol=1e-4, rtol=1e-4)


def test_prompts_are_read_once_for_all_samples(build, kind, offer):
    one, many = build(kind), build(kind)
    one.sample(offer, 1)
    many.sample(offer, 6)
    tokens = one.chain_tokens()
    # Each further sample costs the tokens that begin a chain and those up to the second choice.
    each = len(tokens.before) + 1 + len(tokens.between)
    assert many.tokens - one.tokens == 5 * 3 * each


OUTPUTS = {  # of 4 candidates K = 2; columns, and whether nothing had to be mended
    "[3] > [1]": ([2, 0], True),
    "3, 1": ([2, 0], True),
    "[3] > [3] > [1]": ([2, 0], False),  # a repeat
    "[9] > [0] > [2]": ([1, 0], False),  # out of range
    "[4]": ([3, 0], False),  # too short
    "[4] > [3] > [2]": ([3, 2], False),  # too long
    "no idea": ([0, 1], False),  # garbage
    "": ([0, 1], False),
}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9)])
def test_written_lists_are_mended(build, kind, offer, monkeypatch, temperature, top_p):
    selector = build(kind, decoding="string", proposal_temperature=temperature, top_p=top_p)
    offer = Offer(offer.queries[:2], offer.passages[:2], 4)
    asked = []

    def sample(prompts, num_samples, *, temperature, top_p):
        asked.append((num_samples, temperature, top_p))
        return [list(OUTPUTS)] * 2

    monkeypatch.setattr(selector.generator, "sample", sample)
    sampled = selector.sample(offer, len(OUTPUTS))
    assert asked == [(len(OUTPUTS), temperature, top_p)]
    assert sampled.positions[0].tolist() == [columns for columns, _ in OUTPUTS.values()]
    assert sampled.valid[0].tolist() == [valid for _, valid in OUTPUTS.values()]
    # The query with one candidate: only its own number alone is a list.
    assert sampled.positions[1].tolist() == [[0, -1]] * len(OUTPUTS)
    assert not sampled.valid[1].any()
    with torch.no_grad():
        log_prob = selector.log_prob(offer, sampled.positions)
    torch.testing.assert_close(sampled.log_prob, log_prob, atol=1e-4, rtol=1e-4)
    # However a list was written, it counts the same: weights must not follow the spelling.
    assert torch.equal(sampled.log_proposal, sampled.log_prob)
    assert sampled.log_prob[0, 0] == sampled.log_prob[0, 1] == sampled.log_prob[0, 2]


def test_log_prob_of_a_written_list_is_that_of_its_chain(build, kind, offer):
    selector = build(kind, decoding="string")
    positions = torch.tensor([[[2, 0], [2, 0], [1, -1]], [[0, -1], [-1, -1], [0, -1]]])
    offer = Offer(offer.queries[:2], offer.passages[:2], 4)
    got = selector.log_prob(offer, positions)
    expected = torch.zeros(2, 3)
    chains = [["[3] > [1]", "[3] > [1]", "[2]"], ["[1]", "", "[1]"]]
    for b, s in ((b, s) for b in range(2) for s in range(3)):
        answer = chain_ids(selector, chains[b][s])
        log_p = full_logits(selector, offer, b, answer).log_softmax(-1)
        if chains[b][s]:  # of no candidate nothing has to be written
            expected[b, s] = log_p[range(len(answer)), answer].sum()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    parameters = list(selector.parameters())
    gradients = torch.autograd.grad(got.sum(), parameters, allow_unused=True)
    naive = torch.autograd.grad(expected.sum(), parameters, allow_unused=True)
    for a, b in zip(gradients, naive, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_trained_selector_writes_what_it_says(build, kind, offer, all_lists):
    selector = build(kind, decoding="string", std=0.1)
    offer = Offer(offer.queries[:1], offer.passages[:1], 4)
    taught = torch.tensor([[[2, 0], [2, 0], [2, 0], [1, 3]]])
    optimizer = torch.optim.AdamW(selector.parameters(), lr=2e-2)
    for _ in range(80):
        loss = -selector.log_prob(offer, taught).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.manual_seed(0)
    sampled = selector.sample(offer, 1000)
    assert sampled.valid.float().mean() > 0.5
    first = (sampled.positions == taught[:, :1]).all(dim=-1)
    share = first.float().mean().item()
    positions, _ = all_lists(offer, 2)
    probability = selector.log_prob(offer, positions).exp()[0]
    assert probability.sum() < 1
    best = (positions[0] == taught[0, 0]).all(dim=-1)
    assert share > probability[best].item() - 0.06  # other texts mean it too
    assert selector.rank(offer).argsort(descending=True)[0, :2].tolist() == [2, 0]


def test_rank_by_what_is_written(build, offer, monkeypatch):
    selector = build(decoding="string")
    outputs = ["[3] > [3] > [7] > [1]", "nothing", "[2]"]
    monkeypatch.setattr(selector.generator, "generate", lambda prompts: outputs)
    ranks = selector.rank(offer)
    none = -torch.inf
    assert ranks.tolist() == [[3, 2, 4, 1], [1, none, none, none], [2, 3, 1, none]]


def test_strings_need_no_single_tokens(build, offer):
    assert build(decoding="string", size=12, k=1).kind == "numbers"
    assert build(decoding="string", identifiers="letters").kind == "letters"
    assert build(decoding="string", identifiers="numbers", size=100, k=1).kind == "numbers"


def test_strings_of_queries_without_candidates(build, offer):
    selector = build(decoding="string")
    few = Offer(offer.queries[:2], [[], offer.passages[0]], 4)
    sampled = selector.sample(few, 2)
    assert sampled.positions[0].tolist() == [[-1, -1]] * 2
    assert sampled.log_prob[0].tolist() == sampled.log_proposal[0].tolist() == [0, 0]
    assert sampled.valid[0].all()
    assert selector.rank(few)[0].tolist() == [-torch.inf] * 4


def test_more_candidates_than_names(build, offer):
    with pytest.raises(ValueError, match="names for 3 candidates, not 4"):
        build(size=3).rank(offer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 5}, "a selector needs at least k=5 candidates to choose from, got 4"),
        ({"decoding": "free"}, "decoding must be 'identifiers' or 'string', got 'free'"),
        ({"identifiers": "roman"}, "must be 'auto', 'numbers' or 'letters', got 'roman'"),
        ({"top_p": 2.0}, "top_p must be above 0 and at most 1, got 2.0"),
        (
            {"decoding": "string", "identifiers": "letters", "size": 27},
            "'letters' has names for 26 candidates, got 27; legal: 'numbers'",
        ),
        (
            {"decoding": "string", "size": 20, "k": 5},
            r"max_target_length must be at least \d+ for chains of 5 identifiers, got 20",
        ),
    ],
)
def test_bad_settings(build, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)
