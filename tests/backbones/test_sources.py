import pytest

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.backbones.factory import build_generator
from lightning_rag.errors import UserError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Hub ids fail at once: no test needs the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "there is no folder './nowhere'; legal are 'tiny', a local folder"),
        ("a b c", "there is no folder 'a b c'"),
        ("nobody/nothing", "no tokeniser can be loaded from 'nobody/nothing'.*legal are"),
        ("package:not_there/model", "'not_there', which is not installed: pip install not-there"),
        ("package:json/model", "the package 'json' has no folder 'model'"),
        ("package:", "not installed"),
    ],
)
def test_sources_that_cannot_be_had(source, message):
    for build in (
        lambda: build_encoder(EncoderConfig(source=source), []),
        lambda: build_generator(GeneratorConfig(source=source), []),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_folder_without_safetensors(tmp_path, corpus):
    encoder = build_encoder(EncoderConfig(), corpus)
    encoder.tokenizer.save_pretrained(tmp_path)
    encoder.model.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never to be read")
    with pytest.raises(UserError, match="no encoder model can be loaded from"):
        build_encoder(EncoderConfig(source=str(tmp_path)), [])


def test_a_saved_model_comes_back(tmp_path, corpus, prompts, targets):
    generator = build_generator(GeneratorConfig(), corpus).eval()
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    again = build_generator(GeneratorConfig(source=str(tmp_path)), []).eval()
    expected = generator.log_likelihood(prompts, targets)
    assert again.log_likelihood(prompts, targets).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GeneratorConfig(architecture="decoder"), "architecture must be 'encoder-decoder' or"),
        (GeneratorConfig(decoder_layers=2), "must be null for source 'tiny'"),
        (GeneratorConfig(passages="both"), "passages must be 'concatenate' or 'fuse', got 'both'"),
        (
            GeneratorConfig(architecture="decoder-only", passages="fuse"),
            "passages must be 'concatenate' for a decoder-only generator, got 'fuse'",
        ),
        (
            GeneratorConfig(architecture="decoder-only", chat_template=True),
            "has no chat template; set it to false",
        ),
        (GeneratorConfig(num_beams=0), "num_beams must be at least 1, got 0"),
        (GeneratorConfig(max_target_length=1), "max_target_length must be at least 2, got 1"),
        (GeneratorConfig(max_source_length=1), "max_source_length must be at least 3"),
    ],
)
def test_bad_settings(config, message, corpus):
    with pytest.raises(UserError, match=message):
        build_generator(config, corpus)


def test_an_encoder_checkpoint_is_no_generator(minilm):
    with pytest.raises(UserError, match="for an encoder checkpoint set decoder_layers"):
        build_generator(GeneratorConfig(source=minilm), [])
    with pytest.raises(UserError, match="max_source_length must be 3 to 512"):
        build_generator(GeneratorConfig(source=minilm, decoder_layers=1, max_source_length=600), [])
    with pytest.raises(UserError, match="decoder_layers must be at least 1, got 0"):
        build_generator(GeneratorConfig(source=minilm, decoder_layers=0), [])
