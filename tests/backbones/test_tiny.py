import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.inputs import read_layout
from lightning_rag.backbones.tiny import train_tokenizer
from lightning_rag.errors import UserError
from lightning_rag.types import Prompt, Rendered


def test_the_same_corpus_gives_the_same_tokenizer(corpus):
    config = TinyConfig(vocab_size=350)
    first = train_tokenizer(config, corpus).backend_tokenizer.to_str()
    assert train_tokenizer(config, iter(corpus)).backend_tokenizer.to_str() == first


def test_any_text_survives(corpus):
    tokenizer = train_tokenizer(TinyConfig(vocab_size=350), corpus)
    for text in ("alba zwörps Ωmega", "Cause-Effect(e1,e2)", "東京 12"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).strip() == text
    assert len(tokenizer) <= 350


def test_layout(corpus):
    tokenizer = train_tokenizer(TinyConfig(vocab_size=350), corpus)
    layout = read_layout(tokenizer)
    assert layout.prefix == (tokenizer.cls_token_id,)
    assert layout.middle == layout.suffix == (tokenizer.sep_token_id,)


@pytest.mark.parametrize(
    ("config", "texts", "message"),
    [
        (TinyConfig(vocab_size=200), ["a"], "tiny.vocab_size must be at least 262, got 200"),
        (TinyConfig(), ["", " "], "needs texts to train on, got none"),
        (TinyConfig(hidden_size=30), ["a"], "multiple of tiny.heads, got 30 and 8"),
        (TinyConfig(layers=0), ["a"], "tiny.layers must be at least 1, got 0"),
    ],
)
def test_bad_configuration(config, texts, message):
    with pytest.raises(UserError, match=message):
        build_generator(GeneratorConfig(tiny=config), texts)


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_the_same_seed_gives_the_same_weights(architecture, corpus):
    prints = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        generator = build_generator(GeneratorConfig(architecture=architecture), corpus)
        prints.append(generator.fingerprint())
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
def test_learns_to_copy(architecture):
    words = ["alba", "borks", "cimo", "delo", "fenu", "gabo"]
    texts = [f"{words[i]} {words[(i + 2) % 6]} {words[5 - i]}" for i in range(6)]
    texts += [f"{words[(i + 3) % 6]} {words[i]} {words[i - 1]}" for i in range(6)]
    texts += texts[:4]
    torch.manual_seed(0)
    generator = build_generator(
        GeneratorConfig(architecture=architecture, tiny=TinyConfig(vocab_size=300)), texts
    )
    prompts = [Prompt(Rendered(text)) for text in texts]
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = -generator.log_likelihood(prompts, texts, reduction="mean").mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
