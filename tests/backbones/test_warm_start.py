import pytest
import torch

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.backbones.factory import build_generator
from lightning_rag.types import Prompt, Rendered


@pytest.fixture(scope="module")
def generator(minilm):
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(source=minilm, decoder_layers=2), []).eval()


def test_the_encoder_is_the_checkpoint(generator, minilm):
    encoder = build_encoder(EncoderConfig(source=minilm), [])
    loaded = encoder.model.state_dict()
    warm = generator.model.encoder.state_dict()
    assert loaded.keys() == warm.keys()
    assert all(torch.equal(loaded[name], warm[name]) for name in loaded)


def test_the_decoder_reads_and_writes_the_encoders_words(generator):
    words = generator.model.encoder.get_input_embeddings().weight
    decoder = generator.model.decoder
    assert torch.equal(decoder.get_input_embeddings().weight, words)
    assert decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight
    assert decoder.get_input_embeddings().weight is not words
    assert sum("crossattention" in name for name, _ in decoder.named_parameters()) > 0


def test_parameter_names_part_encoder_and_decoder(generator):
    names = [name for name, _ in generator.named_parameters()]
    assert all(name.startswith(("model.encoder.", "model.decoder.")) for name in names)


@torch.no_grad()
def test_choose_equals_one_likelihood_after_another(generator):
    # With a common first token and two ends the trie decides once, after that token.
    prompt = Prompt(Rendered("the <e1> company </e1> built a house"), (Rendered("a house"),))
    options = ["product - producer", "cause of effect", "effect of cause", "product"]
    chosen = generator.choose([prompt], [options])[0]
    assert chosen.logsumexp(0).item() == pytest.approx(0, abs=1e-5)
    # P(product) / P(product - producer) is decided between the end and "-" alone.
    ids = [generator.tokenizer(text, add_special_tokens=False)["input_ids"] for text in options]
    states = generator.model.encoder(
        **generator.tokenizer(prompt.query.text, "a house", return_tensors="pt")
    ).last_hidden_state
    start = generator.tokenizer.cls_token_id
    logits = generator.model(
        encoder_outputs=(states,), decoder_input_ids=torch.tensor([[start, ids[3][0]]])
    ).logits[0, 1]
    expected = logits[generator.tokenizer.sep_token_id] - logits[ids[0][1]]
    torch.testing.assert_close(chosen[3] - chosen[0], expected, atol=1e-4, rtol=1e-4)


def test_learns(generator):
    texts = ["cause then effect", "product of producer", "member of collection"]
    prompts = [Prompt(Rendered(f"the {text.split()[0]} is here")) for text in texts]
    decoder = generator.model.decoder
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, fused=True)
    losses = []
    for _ in range(12):
        loss = -generator.log_likelihood(prompts, texts, reduction="mean").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
