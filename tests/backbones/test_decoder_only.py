import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.decoder_only import DecoderOnlyGenerator
from lightning_rag.backbones.factory import build_generator
from lightning_rag.types import Prompt, Rendered

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPT = Prompt(Rendered("the fox"), (Rendered("lazy dog"), Rendered("quick brown")))


@pytest.fixture
def plain(corpus):
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(architecture="decoder-only"), corpus).eval()


def read(generator, prompt):
    (row,) = generator._fit([prompt], 200, 1, split=False)
    return generator.tokenizer.decode(generator._row(row[0]))


def test_the_prompt_ends_with_the_query_and_the_cue(plain):
    lines = [line.strip() for line in read(plain, PROMPT).split("\n")]
    assert lines == ["[CLS] lazy dog", "quick brown", "the fox", "Answer:"]


def test_chat_template(plain):
    plain.tokenizer.chat_template = TEMPLATE
    config = GeneratorConfig(architecture="decoder-only", chat_template=True)
    chat = DecoderOnlyGenerator(plain.model, plain.tokenizer, config).eval()
    text = read(chat, PROMPT).replace(" ", "")
    assert text == "<user>lazydog\nquickbrown\nthefox</s><assistant>"
    whole = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "lazy dog\nquick brown\nthe fox"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == whole.replace(" ", "")
    assert torch.isfinite(chat.log_likelihood([PROMPT], ["dog"])).all()
    assert len(chat.generate([PROMPT])) == 1


def test_the_prompt_alone_has_no_loss(plain):
    # The log-likelihood of the answer is that of prompt and answer without that of the prompt.
    torch.manual_seed(1)
    rows = plain._embed([PROMPT], None).ids
    answer = torch.tensor([plain._answers(["lazy dog"])[0]])
    whole = torch.cat([rows, answer], dim=1)
    with torch.no_grad():
        log_p = plain.model(input_ids=whole).logits[0, :-1].log_softmax(-1)
        each = log_p.gather(1, whole[0, 1:, None])[:, 0]
        got = plain.log_likelihood([PROMPT], ["lazy dog"])
    torch.testing.assert_close(got[0], each[rows.shape[1] - 1 :].sum(), atol=1e-4, rtol=1e-5)


def test_a_query_s_lead_comes_first_and_its_cue_last(plain):
    query = Rendered("jumps over the fox: effect", {"lead": (0, 10), "cue": (20, 26)})
    prompt = Prompt(query, PROMPT.passages)
    lines = [line.strip() for line in read(plain, prompt).split("\n")]
    assert lines == ["[CLS] jumps over lazy dog", "quick brown", "the fox: effect"]
    no_passages = read(plain, Prompt(query))
    assert no_passages == "[CLS] jumps over the fox: effect"
    plain.tokenizer.chat_template = TEMPLATE
    config = GeneratorConfig(architecture="decoder-only", chat_template=True)
    chat = DecoderOnlyGenerator(plain.model, plain.tokenizer, config).eval()
    assert read(chat, prompt).replace(" ", "").endswith("effect</s><assistant>")


def test_a_long_prompt_keeps_lead_and_cue(plain):
    query = Rendered("jumps over the fox the fox effect", {"lead": (0, 10), "cue": (27, 33)})
    (row,) = plain._fit([Prompt(query, PROMPT.passages)], 4, 1, split=False)
    text = plain.tokenizer.decode(plain._row(row[0]))
    assert text.startswith("[CLS] jumps over")
    assert text.endswith("effect")
    assert row[0].truncated == 3  # two passages and the query
