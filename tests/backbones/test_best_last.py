"""Prompts whose best passage is written last, beside the query of a decoder-only generator."""

import dataclasses

import torch

from lightning_rag.types import Prompt


@torch.no_grad()
def test_it_is_the_reverse_order(generator, prompts, targets):
    turned = [dataclasses.replace(prompt, best_last=True) for prompt in prompts]
    by_hand = [Prompt(prompt.query, prompt.passages[::-1]) for prompt in prompts]
    for score in (generator.log_likelihood, generator.score):
        torch.testing.assert_close(score(turned, targets), score(by_hand, targets))
    assert generator.generate(turned) == generator.generate(by_hand)


@torch.no_grad()
def test_equal_passages_in_two_orders_are_two_prompts(generator, prompts, targets):
    both = [prompts[0], dataclasses.replace(prompts[0], best_last=True)]
    first, second = generator.score(both, targets[:1] * 2).tolist()
    fused = generator.config.passages == "fuse"
    assert (first == second) == fused  # fused passages are encoded one by one: no order


def test_the_best_passage_is_the_last_to_be_cut(generator, prompts):
    turned = dataclasses.replace(prompts[0], best_last=True)
    texts = [turned.query.text, *(passage.text for passage in turned.passages)]
    query, best, second, third = (len(generator.tokenizer.tokenize(text)) for text in texts)
    for limit, kept in (
        (query + best + second + third + 3, [third, second, best]),
        (query + best + second + 2, [second, best]),
        (query + best + 3, [1, best]),
        (query + best + 1, [best]),
        (query + best, [best - 1]),
    ):
        ((fitted,),) = generator._fit([turned], limit, 1, split=False)
        assert [len(piece.ids) for piece in fitted.passages] == kept, limit
