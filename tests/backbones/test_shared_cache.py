import torch
from transformers import DynamicCache

from lightning_rag.backbones.shared_cache import settle, share


def filled(prompts, length, layers=2):
    """A cache of random keys and values (prompts, 2 heads, length, 3)."""
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(*torch.randn(2, prompts, 2, length, 3).unbind(), layer)
    return cache


def test_shared_rows_are_selected_rows():
    torch.manual_seed(0)
    rows = torch.tensor([2, 0, 0, 1])
    cache, plain = filled(3, 4), DynamicCache()
    for number, layer in enumerate(cache.layers):
        plain.update(layer.keys[rows], layer.values[rows], number)
    shared = share(cache, rows)
    assert shared.get_seq_length() == 4
    for length in (1, 3):
        for layer in range(2):
            new = torch.randn(2, 4, 2, length, 3).unbind()
            got, expected = shared.update(*new, layer), plain.update(*new, layer)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert shared.get_seq_length() == 8
    assert cache.get_seq_length() == 4
    again = share(shared, torch.tensor([3, 3]))  # rows that go on from rows
    for layer, kept in zip(again.layers, plain.layers, strict=True):
        assert torch.equal(layer.keys, kept.keys[[3, 3]])
        assert torch.equal(layer.values, kept.values[[3, 3]])


def test_the_prompt_is_not_copied():
    cache = filled(1, 5)
    shared = share(cache, torch.zeros(7, dtype=torch.long))
    for layer, kept in zip(shared.layers, cache.layers, strict=True):
        assert layer.keys.shape == (7, 2, 5, 3)
        assert layer.keys.data_ptr() == kept.keys.data_ptr()
        assert layer.values.data_ptr() == kept.values.data_ptr()


def test_the_gradient_reaches_the_prompts():
    keys = torch.randn(2, 1, 3, 2, requires_grad=True)
    cache = DynamicCache()
    cache.update(keys, keys, 0)
    shared = share(cache, torch.tensor([1, 1, 0]))
    got, _ = shared.update(torch.randn(3, 1, 1, 2), torch.randn(3, 1, 1, 2), 0)
    got.sum().backward()
    assert keys.grad is not None
    assert torch.equal(keys.grad[0], torch.ones(1, 3, 2))
    assert torch.equal(keys.grad[1], torch.full((1, 3, 2), 2.0))


def test_rows_that_nothing_follows_keep_nothing():
    torch.manual_seed(0)
    rows = torch.tensor([1, 0, 1])
    cache = filled(2, 4)
    kept, once = share(cache, rows), share(cache, rows, once=True)
    for layer in range(2):
        new = torch.randn(2, 3, 2, 5, 3).unbind()
        for got, expected in zip(once.update(*new, layer), kept.update(*new, layer), strict=True):
            assert torch.equal(got, expected)
    assert (kept.get_seq_length(), once.get_seq_length()) == (9, 4)
    assert all(layer.keys.shape == (3, 2, 4, 3) for layer in once.layers)


def test_settled_rows_are_put_together_once():
    torch.manual_seed(0)
    shared = share(filled(2, 4), torch.tensor([1, 0, 1]))
    for layer in range(2):
        shared.update(*torch.randn(2, 3, 2, 5, 3).unbind(), layer)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in shared.layers]
    settle(shared)
    assert shared.get_seq_length() == 9
    for layer, (keys, values) in zip(shared.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert layer.keys.data_ptr() == layer.keys.data_ptr()  # stored, not made when asked for
    further = share(shared, torch.tensor([2, 2, 0]))
    new = torch.randn(2, 3, 2, 1, 3).unbind()
    got, _ = further.update(*new, 1)
    assert torch.equal(got, torch.cat([before[1][0][[2, 2, 0]], new[0]], dim=-2))
