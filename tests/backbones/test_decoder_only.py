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
