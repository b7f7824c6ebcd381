"""What holds for generators of every architecture and input mode."""

import copy
import dataclasses
import itertools
import re

import pytest
import torch

from lightning_rag.backbones.decoder_only import DecoderOnlyGenerator
from lightning_rag.backbones.scoring import ScoringPlan, plan_scoring
from lightning_rag.backbones.tiny import train_tokenizer
from lightning_rag.backbones.trie import build_trie
from lightning_rag.errors import UserError
from lightning_rag.types import Prompt, Rendered


def token_ids(generator, text):
    return generator.tokenizer(text, add_special_tokens=False)["input_ids"]


def encoder_inputs(generator, prompt):
    """The inputs of the encoder, written by hand: ids and token types."""
    tokenizer = generator.tokenizer
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    query = [cls, *token_ids(generator, prompt.query.text), sep]
    passages = [[*token_ids(generator, p.text), sep] for p in prompt.passages]
    if generator.config.passages == "fuse" and passages:
        return [(query + p, [0] * len(query) + [1] * len(p)) for p in passages]
    rest = [token for p in passages for token in p]
    return [(query + rest, [0] * len(query) + [1] * len(rest))]


def encoder_states(generator, prompt):
    """(1, L, D): every input encoded alone, and all states joined."""
    encoder = generator.model.get_encoder()
    states = []
    for ids, types in encoder_inputs(generator, prompt):
        known = {}
        if encoder.config.model_type == "bert":
            known["token_type_ids"] = torch.tensor([types])
        states.append(encoder(input_ids=torch.tensor([ids]), **known).last_hidden_state)
    return torch.cat(states, dim=1)


def full_logits(generator, prompt, answer):
    """(T, V): logits of one answer's tokens, by a plain call without padding, cache or hook."""
    if isinstance(generator, DecoderOnlyGenerator):
        text = "".join(f"{p.text}\n" for p in prompt.passages) + prompt.query.text + "\nAnswer:"
        lines = [line for line in text.split("\n") if line]
        ids = [generator.tokenizer.cls_token_id, *token_ids(generator, lines[0])]
        for line in lines[1:]:
            if line == "Answer:":
                ids += token_ids(generator, "\nAnswer:")
            else:
                ids += token_ids(generator, "\n") + token_ids(generator, line)
        logits = generator.model(input_ids=torch.tensor([[*ids, *answer[:-1]]])).logits[0]
        return logits[len(ids) - 1 :]
    start = generator.tokenizer.cls_token_id
    return generator.model(
        encoder_outputs=(encoder_states(generator, prompt),),
        decoder_input_ids=torch.tensor([[start, *answer[:-1]]]),
    ).logits[0]


def answer_ids(generator, text):
    return [*token_ids(generator, text), generator.tokenizer.eos_token_id]


def brute_force(generator, prompt, texts):
    """Log-probabilities of the answers one at a time, by the definition."""
    answers = [answer_ids(generator, text) for text in texts]
    scores = []
    for answer in answers:
        logits = full_logits(generator, prompt, answer)
        total = 0.0
        for length, token in enumerate(answer):
            follow = {a[length] for a in answers if a[:length] == answer[:length]}
            among = logits[length, sorted(follow)]
            total += (logits[length, token] - among.logsumexp(0)).item()
        scores.append(total)
    return torch.tensor(scores)


@torch.no_grad()
def test_log_likelihood_equals_a_loop_over_full_logits(generator, prompts, targets):
    expected = []
    for prompt, target in zip(prompts, targets, strict=True):
        answer = answer_ids(generator, target)
        log_p = full_logits(generator, prompt, answer).log_softmax(-1)
        expected.append(log_p[range(len(answer)), answer].sum())
    got = generator.log_likelihood(prompts, targets)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-4, rtol=1e-5)
    mean = generator.log_likelihood(prompts, targets, reduction="mean")
    lengths = torch.tensor([len(answer_ids(generator, target)) for target in targets])
    torch.testing.assert_close(mean, got / lengths)


@pytest.mark.parametrize("soft", [False, True])
def test_groups_of_similar_length_change_nothing(generator, prompts, targets, soft, monkeypatch):
    """Neither values nor gradients, of the weights and of the soft prompt; and there are groups."""
    calls = []
    hook = generator.model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    weights = {name: one for name, one in generator.named_parameters() if one.requires_grad}
    vectors = torch.randn(len(prompts), 2, generator.hidden_size) if soft else None
    found = []
    for size in (1, 2, 100):
        monkeypatch.setattr("lightning_rag.backbones.inputs.CPU_GROUP", size)
        calls.clear()
        place = vectors.clone().requires_grad_() if soft else None
        loss = generator.log_likelihood(prompts, targets, soft_prompt=place)
        (loss * torch.arange(1, len(prompts) + 1)).sum().backward()
        gradients = {name: one.grad for name, one in weights.items() if one.grad is not None}
        if soft:
            gradients["soft"] = place.grad
        found.append((len(calls), loss.detach(), gradients))
        generator.zero_grad()
    hook.remove()
    assert found[0][0] > found[1][0] > found[2][0]
    for _, loss, gradients in found[:2]:
        torch.testing.assert_close(loss, found[2][1], atol=1e-4, rtol=1e-5)
        assert gradients.keys() == found[2][2].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[2][2][name], atol=2e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_choose_equals_brute_force(generator, prompts, options):
    got = generator.choose(prompts, options)
    for prompt, texts, scores in zip(prompts, options, got, strict=True):
        torch.testing.assert_close(
            scores, brute_force(generator, prompt, texts), atol=1e-5, rtol=1e-5
        )
        assert scores.logsumexp(0).item() == pytest.approx(0, abs=1e-5)


@torch.no_grad()
def test_choose_in_several_calls_of_the_decoder(generator, prompts, options, monkeypatch):
    expected = generator.choose(prompts, options)
    monkeypatch.setattr("lightning_rag.backbones.generator.ROWS_PER_CALL", 1)
    for a, b in zip(generator.choose(prompts, options), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_options_that_differ_only_at_the_first_token(generator, prompts):
    got = generator.choose(prompts[:1], [["dog", "owner", "fox"]])[0]
    expected = brute_force(generator, prompts[0], ["dog", "owner", "fox"])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_choose_with_a_soft_prompt_agrees_with_the_likelihood(generator, prompts, soft_prompt):
    # Two answers that differ at the first token only in what the model thinks of them:
    # log P(a) - log P(b) over the trie = difference of their logits there.
    got = generator.choose(prompts, [["dog", "owner"]] * 3, soft_prompt=soft_prompt)
    plain = generator.choose(prompts, [["dog", "owner"]] * 3)
    assert all(not torch.allclose(a, b) for a, b in zip(got, plain, strict=True))
    for i in range(3):
        alone = generator.choose([prompts[i]], [["dog", "owner"]], soft_prompt=soft_prompt[[i]])
        torch.testing.assert_close(alone[0], got[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_batch_changes_nothing(generator, prompts, targets, soft_prompt):
    for soft in (None, soft_prompt):
        parts = [None if soft is None else soft[[i]] for i in range(3)]
        one_by_one = [
            generator.log_likelihood([p], [t], soft_prompt=s)
            for p, t, s in zip(prompts, targets, parts, strict=True)
        ]
        got = generator.log_likelihood(prompts, targets, soft_prompt=soft)
        torch.testing.assert_close(got, torch.cat(one_by_one), atol=1e-4, rtol=1e-5)
        texts = [
            generator.generate([p], soft_prompt=s)[0] for p, s in zip(prompts, parts, strict=True)
        ]
        assert generator.generate(prompts, soft_prompt=soft) == texts


@torch.no_grad()
def test_generate_writes_what_is_likeliest_at_each_step(generator, prompts):
    generator.config.max_target_length = 6
    for prompt, text in zip(prompts, generator.generate(prompts), strict=True):
        tokens = []
        while len(tokens) < 6 and generator.end_id not in tokens:
            tokens.append(int(full_logits(generator, prompt, [*tokens, -1])[-1].argmax()))
        decoded = generator.tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == decoded.strip()


@torch.no_grad()
def test_an_empty_soft_prompt_is_none(generator, prompts, targets, options, soft_prompt):
    empty = soft_prompt[:, :0]
    plain = generator.log_likelihood(prompts, targets)
    assert torch.equal(generator.log_likelihood(prompts, targets, soft_prompt=empty), plain)
    chosen = generator.choose(prompts, options, soft_prompt=empty)
    for a, b in zip(chosen, generator.choose(prompts, options), strict=True):
        assert torch.equal(a, b)
    assert generator.generate(prompts, soft_prompt=empty) == generator.generate(prompts)


@pytest.mark.parametrize("position", ["insert", "prepend"])
@torch.no_grad()
def test_a_soft_prompt_of_word_embeddings_is_those_words(generator, targets, position):
    # The embeddings of "brown" after the first token, or before it, are the text with that word.
    generator.config.soft_prompt_position = position
    words = torch.tensor([token_ids(generator, "brown fox")])
    soft = generator.model.get_input_embeddings()(words)
    with_words, without = ("brown fox the dog", "the dog")
    if position == "insert":
        expected = generator.log_likelihood([Prompt(Rendered(with_words))], targets[:1])
        got = generator.log_likelihood([Prompt(Rendered(without))], targets[:1], soft_prompt=soft)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    else:
        prefix = generator.layout.prefix
        frame = dataclasses.replace(generator.layout, prefix=(*words[0].tolist(), *prefix))
        got = generator.log_likelihood([Prompt(Rendered(without))], targets[:1], soft_prompt=soft)
        generator.layout = frame
        if isinstance(generator, DecoderOnlyGenerator):
            generator._before = list(frame.prefix)
        expected = generator.log_likelihood([Prompt(Rendered(without))], targets[:1])
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


def test_gradient_reaches_every_weight_and_the_soft_prompt(generator, prompts, targets):
    soft = torch.randn(3, 2, generator.hidden_size, requires_grad=True)
    generator.train()
    (-generator.log_likelihood(prompts, targets, soft_prompt=soft).mean()).backward()
    assert soft.grad is not None
    assert (soft.grad.abs().sum(dim=(1, 2)) > 0).all()
    idle = [name for name, p in generator.named_parameters() if p.grad is None]
    assert idle == []


def test_choose_is_differentiable(generator, prompts, options):
    generator.choose(prompts, options)[0][0].backward()
    grads = [p.grad for p in generator.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)


@torch.no_grad()
def test_a_checkpoint_brings_the_tokenizer_of_a_tiny_model(generator, prompts, targets, options):
    tokenizer = train_tokenizer(generator.config.tiny, ["other words, and so other pieces"])
    other = type(generator)(copy.deepcopy(generator.model), tokenizer, generator.config).eval()
    other.choose(prompts, options)
    assert other.fingerprint() != generator.fingerprint()
    other.load_state_dict(generator.state_dict())
    assert other.fingerprint() == generator.fingerprint()
    expected = generator.log_likelihood(prompts, targets)
    assert torch.equal(other.log_likelihood(prompts, targets), expected)
    for a, b in zip(
        other.choose(prompts, options), generator.choose(prompts, options), strict=True
    ):
        assert torch.equal(a, b)


def training(generator, checkpointing):
    """Switch to training, with or without recomputed activations."""
    generator.config.gradient_checkpointing = checkpointing
    generator.recompute_activations(checkpointing)
    return generator.train()


def list_plan(generator, counts, remaining=("a", "b", "d", "f")):
    """A plan of lists of identifiers, "( a", "( a ( d" and so on, and its parts per list.

    Returns:
        the plan; per prompt the lists; the tokens of the identifiers.
    """
    names = [token_ids(generator, name)[-1] for name in remaining]
    (opening,) = token_ids(generator, "(")[-1:]
    orders = list(itertools.permutations(range(len(names)), 2))
    lists = [orders[3 * b : 3 * b + count] for b, count in enumerate(counts)]
    plan = ScoringPlan([], [], [], [], [], [], [], [], [], counts)
    for b, chosen in enumerate(lists):
        for i, j in chosen:
            plan.inner_nodes += [len(plan.children), len(plan.children) + 1]
            plan.inner_rows += [len(plan.row_tokens)] * 2
            plan.inner_columns += [0, 2]
            rest = tuple(name for name in names if name != names[i])
            plan.paths.append(
                ((len(plan.children), i), (len(plan.children) + 1, rest.index(names[j])))
            )
            plan.children += [tuple(names), rest]
            plan.row_prompts.append(b)
            plan.row_tokens.append((opening, names[i], opening))
    return plan, lists, names


def scores_of_lists(generator, prompts, plan, lists, names):
    """The same, each list on its own: softmax over its children out of all logits."""
    scores = []
    rows = iter(plan.row_tokens)
    for prompt, chosen in zip(prompts, lists, strict=True):
        for i, j in chosen:
            logits = full_logits(generator, prompt, [*next(rows), -1])  # (4, V)
            rest = [name for name in names if name != names[i]]
            first = logits[1, names].log_softmax(-1)[i]
            scores.append(first + logits[3, rest].log_softmax(-1)[rest.index(names[j])])
    return torch.stack(scores)


def gradients(generator, scores):
    generator.zero_grad(set_to_none=True)
    (scores * torch.arange(1.0, 1 + len(scores))).sum().backward()
    return {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_plan_of_lists_and_its_gradients(generator, prompts, checkpointing):
    plan, lists, names = list_plan(generator, [3, 0, 2])
    expected = scores_of_lists(generator, prompts, plan, lists, names)
    expected_gradients = gradients(generator, expected)
    training(generator, checkpointing)
    before = generator.tokens
    scores = generator.score_plan(prompts, plan)
    assert [len(part) for part in scores] == [3, 0, 2]
    torch.testing.assert_close(torch.cat(scores), expected, atol=1e-4, rtol=1e-5)
    got = gradients(generator, torch.cat(scores))
    assert got.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(got[name], gradient, atol=1e-4 * scale, rtol=1e-3, msg=name)
    with torch.no_grad():  # without gradients each prompt is read once in any case
        read = generator.tokens - before
        torch.testing.assert_close(
            torch.cat(generator.score_plan(prompts, plan)), expected, atol=1e-4, rtol=1e-5
        )
        repeated = checkpointing and isinstance(generator, DecoderOnlyGenerator)
        assert (generator.tokens - before - read < read) == repeated


def test_recomputed_activations_are_not_kept(generator, prompts):
    plan, *_ = list_plan(generator, [3, 3, 3])
    kept = []
    for checkpointing in (False, True):
        training(generator, checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            generator.score_plan(prompts[:1] * 3, plan)
        kept.append(sum(sizes))
    assert kept[1] < kept[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_plans_decided_at_the_root_or_not_at_all(generator, prompts, soft_prompt, checkpointing):
    tries = [[(7, 9), (8, 9)], [(7, 9)], [(7, 5), (7, 6), (8, 9)]]
    plan = plan_scoring([build_trie(trie) for trie in tries])
    scores = training(generator, checkpointing).score_plan(prompts, plan, soft_prompt=soft_prompt)
    assert scores[1].tolist() == [0.0]
    for part in scores:
        assert part.logsumexp(0).item() == pytest.approx(0, abs=1e-5)
    for b in range(3):
        alone = plan_scoring([build_trie(tries[b])])
        (part,) = generator.score_plan(prompts[b : b + 1], alone, soft_prompt=soft_prompt[[b]])
        torch.testing.assert_close(part, scores[b], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_continuation_equals_plain_calls(generator, prompts):
    training(generator, checkpointing=True)  # which has no caches
    rows = [[[7, 9, 30], [7, 9, 31]], [[8, 9, 8], [40, 41, 42]], [[7, 7, 7], [9, 9, 9]]]
    tokens = torch.tensor(rows).flatten(0, 1)  # (6, 3)
    expected = torch.stack(
        [
            full_logits(generator, prompt, [*row, -1])
            for prompt, both in zip(prompts, rows, strict=True)
            for row in both
        ]
    )  # (6, 4, V)
    continuation = generator.begin(prompts, 2)
    torch.testing.assert_close(continuation.logits, expected[:, 0], atol=1e-4, rtol=1e-4)
    for start, stop in ((0, 1), (1, 3)):
        got = continuation.append(tokens[:, start:stop])
        torch.testing.assert_close(got, expected[:, stop], atol=1e-4, rtol=1e-4)
        assert got is continuation.logits


@torch.no_grad()
def test_a_continuation_reads_each_prompt_once(generator, prompts):
    counts = []
    for copies in (1, 5):
        before = generator.tokens
        generator.begin(prompts, copies)
        counts.append(generator.tokens - before)
    assert counts[0] == counts[1]
    before = generator.tokens
    generator.begin(prompts, 5).append(torch.full((15, 2), 7))
    assert generator.tokens - before == counts[0] + 30


def test_bad_continuations(generator, prompts):
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        generator.begin(prompts, 0)
    with pytest.raises(ValueError, match="at least one prompt"):
        generator.begin([], 2)
    continuation = generator.begin(prompts, 2)
    for shape in ((5, 1), (6,), (6, 0)):
        message = rf"tokens must be \(R=6, T\).*got {re.escape(str(tuple(shape)))}"
        with pytest.raises(ValueError, match=message):
            continuation.append(torch.zeros(shape, dtype=torch.long))
    plan, *_ = list_plan(generator, [1, 1])
    with pytest.raises(ValueError, match="3 prompts need a plan for as many, got one for 2"):
        generator.score_plan(prompts, plan)


def test_pieces_of_answers(generator):
    (piece,) = generator.answer_pieces(["cause of"])
    words = "".join(piece.rendered.text[start:end] for start, end in piece.offsets)
    assert words.replace(" ", "") == "causeof"
    answer = [*generator.answer_prefix, *piece.ids, generator.end_id]
    assert generator._answers(["cause of"]) == [tuple(answer)]


def test_equal_lists_of_options_share_one_trie(generator, prompts, options):
    generator.choose(prompts, [options[0]] * 3)
    assert len(generator._tries) == 1


def test_counters(generator, prompts, targets):
    lengths = [len(answer_ids(generator, target)) for target in targets]
    generator.log_likelihood(prompts, targets)
    if isinstance(generator, DecoderOnlyGenerator):
        assert generator.tokens > sum(lengths)
    else:
        read = sum(len(ids) for p in prompts for ids, _ in encoder_inputs(generator, p))
        assert generator.tokens == read + sum(lengths)
    assert generator.truncated == 0
    generator.config.max_source_length = 16
    generator.config.max_target_length = 3
    generator.log_likelihood(prompts, targets)
    assert generator.truncated > 0


def test_a_protected_label_survives_truncation(generator):
    text = "the quick brown fox jumps over the lazy dog : owner"
    passage = Rendered(text, {"label": (46, 51)})
    prompt = Prompt(Rendered("the fox"), (passage,))
    (fitted,) = generator._fit([prompt], 12, 1, split=False)
    kept = generator.tokenizer.decode(fitted[0].passages[0].ids)
    assert "owner" in kept
    assert "quick" not in kept
    assert generator.truncated == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", "a"], r"must differ, got more than once: \['a'\]"),
        ([], "at least one allowed answer"),
    ],
)
def test_bad_options(generator, prompts, given, message):
    with pytest.raises(ValueError, match=message):
        generator.choose(prompts[:1], [given])


def test_bad_input(generator, prompts, targets):
    with pytest.raises(ValueError, match="3 prompts need as many targets, got 2"):
        generator.log_likelihood(prompts, targets[:2])
    with pytest.raises(ValueError, match="3 prompts need as many lists of options, got 1"):
        generator.choose(prompts, [["a", "b"]])
    with pytest.raises(ValueError, match="at least one prompt"):
        generator.generate([])
    with pytest.raises(ValueError, match=r"soft_prompt must be \(B=3, P, D=32\), got \(2, 4, 32\)"):
        generator.log_likelihood(prompts, targets, soft_prompt=torch.zeros(2, 4, 32))
    generator.config.max_target_length = 3
    with pytest.raises(UserError, match="max_target_length must be at least"):
        generator.choose(prompts[:1], [["component of whole", "cause"]])


def test_spans_longer_than_the_limit(generator):
    text = "the quick brown fox jumps over the lazy dog"
    generator.config.max_source_length = 8
    with pytest.raises(UserError, match="mentions and labels of a text need"):
        generator.generate([Prompt(Rendered(text, {"head": (0, len(text))}))])


@torch.no_grad()
def test_beam_search_does_not_depend_on_the_batch(generator, prompts):
    generator.config.max_target_length = 4
    generator.config.num_beams = 4
    together = generator.generate(prompts)
    assert together == [generator.generate([prompt])[0] for prompt in prompts]
