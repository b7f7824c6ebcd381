"""Adapters on generators of every architecture, and the checkpoints that hold only them."""

import copy
import io
import sys

import jsonargparse
import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig, LoraConfig, TinyConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.tiny import train_tokenizer
from lightning_rag.errors import UserError

TINY = TinyConfig(vocab_size=400, hidden_size=32, heads=2)
LORA = LoraConfig(rank=4, dropout=0.5)
KINDS = ["t5", "llama", "warm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, save_models, corpus):
    """Local folders with a model each, and one with another T5's weights."""
    root = tmp_path_factory.mktemp("models")
    save_models(root, TINY)
    other = build_generator(GeneratorConfig(tiny=TINY), corpus)
    other.model.save_pretrained(root / "other")
    other.tokenizer.save_pretrained(root / "other")
    return root


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(folders):
    """Build a generator of some kind from its folder."""

    def build(kind, lora=LORA, source=None, seed=0, **settings):
        config = GeneratorConfig(
            source=str(folders / (source or kind)),
            architecture="decoder-only" if kind == "llama" else "encoder-decoder",
            decoder_layers=1 if kind == "warm" else None,
            lora=lora,
            **settings,
        )
        torch.manual_seed(seed)
        return build_generator(config, []).eval()

    return build


@pytest.fixture
def soft_prompt():
    torch.manual_seed(3)
    return torch.randn(3, 4, TINY.hidden_size)


def learning(generator):
    return {name: p for name, p in generator.named_parameters() if p.requires_grad}


def adapted_layers(generator):
    ends = ".lora_A.default.weight"
    return [n.removesuffix(ends) for n in learning(generator) if n.endswith(ends)]


def move(generator):
    """Change what learns, as training would, so that the adapters count for something."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in learning(generator).values():
            weight.add_(torch.randn_like(weight), alpha=0.1)


def written(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file


def read(file):
    file.seek(0)
    return torch.load(file, weights_only=True)


class TestAdapters:
    def test_the_model_stays_what_it_is(self, make, kind):
        plain, adapted = make(kind, LoraConfig()), make(kind)
        assert type(adapted.model) is type(plain.model)
        embeddings = adapted.model.get_input_embeddings().weight
        assert torch.equal(embeddings, plain.model.get_input_embeddings().weight)
        if kind != "warm":  # its decoder's words are tied to its output layer
            assert adapted.model.get_output_embeddings().weight is embeddings

    @torch.no_grad()
    def test_the_start_is_the_model_without_them(
        self, make, kind, prompts, targets, options, soft_prompt
    ):
        plain, adapted = make(kind, LoraConfig()), make(kind)
        for soft in (None, soft_prompt):
            ours = adapted.log_likelihood(prompts, targets, soft_prompt=soft)
            assert torch.equal(ours, plain.log_likelihood(prompts, targets, soft_prompt=soft))
            pairs = zip(
                adapted.choose(prompts, options, soft_prompt=soft),
                plain.choose(prompts, options, soft_prompt=soft),
                strict=True,
            )
            assert all(torch.equal(a, b) for a, b in pairs)
            texts = adapted.generate(prompts, soft_prompt=soft)
            assert texts == plain.generate(prompts, soft_prompt=soft)

    @torch.no_grad()
    def test_an_adapted_layer_is_the_papers_formula(self, make, kind):
        adapted = make(kind, LoraConfig(rank=4, alpha=6, dropout=0.5))
        move(adapted)
        names = adapted_layers(adapted)
        assert names
        for layer in map(adapted.get_submodule, names):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            x = torch.randn(3, a.shape[1])
            expected = layer.base_layer(x) + 6 / 4 * x @ a.T @ b.T
            torch.testing.assert_close(layer(x), expected)
            assert a.shape[0] == 4

    def test_only_adapters_and_fresh_parts_learn(self, make, kind):
        names = set(learning(make(kind)))
        fresh = {name for name in names if "lora_" not in name}
        if kind == "warm":
            decoder = {n for n, _ in make(kind).named_parameters() if n.startswith("model.decoder")}
            assert fresh == decoder
            assert names - fresh
            assert all(name.startswith("model.encoder.") for name in names - fresh)
        else:
            assert not fresh

    def test_all_linear_layers_but_the_output_have_adapters(self, make, kind):
        adapted = make(kind)
        part = adapted.model.encoder if kind == "warm" else adapted.model
        head = adapted.model.get_output_embeddings()
        plain = {
            name
            for name, module in part.named_modules()
            if isinstance(module, torch.nn.Linear)
            and module is not head
            and not {"lora_A", "lora_B", "base_layer"} & set(name.split("."))
        }
        assert plain == set()
        assert isinstance(head, torch.nn.Linear)

    def test_the_fresh_decoder_starts_as_without_adapters(self, make):
        plain, adapted = make("warm", LoraConfig()), make("warm")
        state = plain.model.decoder.state_dict()
        for name, weight in adapted.model.decoder.state_dict().items():
            assert torch.equal(weight, state[name])

    def test_the_gradient_reaches_adapters_and_soft_prompt(
        self, make, kind, prompts, targets, soft_prompt
    ):
        adapted = make(kind)
        move(adapted)  # where B is 0, A has no gradient
        soft = soft_prompt.requires_grad_()
        adapted.log_likelihood(prompts, targets, soft_prompt=soft).sum().backward()
        for name, weight in adapted.named_parameters():
            assert (weight.grad is not None) == weight.requires_grad, name
        # Of the fresh decoder, the bias of keys moves no attention; adapters all do something.
        assert all(p.grad.any() for n, p in learning(adapted).items() if "lora_" in n)
        assert soft.grad.any(dim=-1).all()

    def test_learns_and_leaves_the_base_alone(self, make, kind, prompts, targets):
        adapted = make(kind, LoraConfig(rank=4, dropout=0.0)).train()
        before = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
        optimizer = torch.optim.AdamW(learning(adapted).values(), lr=2e-2)
        losses = []
        for _ in range(15):
            loss = -adapted.log_likelihood(prompts, targets, reduction="mean").mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1  # not far: llama's output layer is random and small
        weights = dict(adapted.named_parameters())
        assert before
        assert all(torch.equal(weights[name], value) for name, value in before.items())

    @torch.no_grad()
    def test_dropout_works_in_training_only(self, make, kind, prompts, targets):
        adapted = make(kind)
        move(adapted)
        for module in adapted.modules():  # that of the model itself is not at issue
            if isinstance(module, torch.nn.Dropout) and module.p != LORA.dropout:
                module.p = 0.0
        first, again = (adapted.log_likelihood(prompts, targets) for _ in range(2))
        assert torch.equal(first, again)
        adapted.train()
        first, again = (adapted.log_likelihood(prompts, targets) for _ in range(2))
        assert not torch.equal(first, again)

    def test_the_fingerprint_covers_adapters_and_base(self, make, kind):
        adapted = make(kind)
        start = adapted.fingerprint()
        assert make(kind).fingerprint() == start
        weights = learning(adapted)
        adapter = next(weight for name, weight in weights.items() if "lora_" in name)
        base = next(p for p in adapted.parameters() if not p.requires_grad)
        for weight in (adapter, base):
            with torch.no_grad():
                weight.view(-1)[0] += 1
            assert adapted.fingerprint() != start
            with torch.no_grad():
                weight.view(-1)[0] -= 1

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["t5", "llama"])
    def test_lower_precision_of_the_base(self, make, kind, prompts, targets):
        adapted = make(kind, dtype="bfloat16")
        plain = make(kind, LoraConfig(), dtype="bfloat16")
        kinds = {p.dtype for n, p in adapted.named_parameters() if "lora_" in n}
        assert kinds == {torch.float32}  # small steps of training would vanish in bfloat16
        ours = adapted.log_likelihood(prompts, targets)
        assert torch.equal(ours, plain.log_likelihood(prompts, targets))


class TestTargets:
    def test_etrags_published_settings(self, make):
        names = ["q", "k", "v", "o", "wi", "wo", "wi_0", "wi_1"]  # of T5 and of its version 1.1
        adapted = make("t5", LoraConfig(rank=32, alpha=16, dropout=0.1, targets=names))
        layers = adapted_layers(adapted)
        # per layer four projections of each attention and two of the feed-forward network
        assert len(layers) == 2 * (4 + 2) + 2 * (8 + 2)
        assert not any("bias" in name for name in learning(adapted))

    def test_names_match_whole_parts(self, make):
        layers = adapted_layers(make("llama", LoraConfig(rank=2, targets=["q_proj"])))
        assert layers == [f"model.model.layers.{i}.self_attn.q_proj" for i in range(2)]
        with pytest.raises(UserError, match="none of them is a linear layer"):
            make("llama", LoraConfig(rank=2, targets=["proj"]))

    def test_a_name_can_be_a_path(self, make):
        one = LoraConfig(rank=2, targets=["layer.0.attention.self.query"])
        layers = adapted_layers(make("warm", one))
        assert layers == ["model.encoder.encoder.layer.0.attention.self.query"]

    @pytest.mark.parametrize("targets", [["nope", "shared"], ["lm_head"]])
    def test_none_that_matches(self, make, targets):
        with pytest.raises(UserError, match=r"targets is \[.*legal: k, o, q, v, wi, wo, or null"):
            make("t5", LoraConfig(rank=2, targets=targets))

    def test_transposed_layers(self, tmp_path, corpus, prompts, targets):
        """GPT-2 has linear layers of a class of its own."""
        from transformers import GPT2Config, GPT2LMHeadModel

        tokenizer = train_tokenizer(TINY, corpus)
        shape = GPT2Config(
            vocab_size=400,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        GPT2LMHeadModel(shape).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        config = GeneratorConfig(source=str(tmp_path), architecture="decoder-only", lora=LORA)
        adapted = build_generator(config, []).eval()
        assert {name.split(".")[-4] for name in learning(adapted)} == {"c_attn", "c_proj", "c_fc"}
        start = adapted.log_likelihood(prompts, targets)
        move(adapted)
        assert not torch.equal(adapted.log_likelihood(prompts, targets), start)


class TestCheckpoints:
    @torch.no_grad()
    def test_they_hold_what_learns_and_restore_it(self, make, kind, prompts, targets, options):
        adapted = make(kind)
        move(adapted)
        state = adapted.state_dict()
        tied = {n for n, p in adapted.named_parameters(remove_duplicate=False) if p.requires_grad}
        buffers = {name for name in state if name.startswith("model.decoder") and kind == "warm"}
        assert state.keys() - buffers - {"_extra_state"} == tied - buffers
        assert set(learning(adapted)) <= state.keys()

        again = make(kind, seed=1)
        start = again.log_likelihood(prompts, targets)
        assert again.load_state_dict(read(written(state)), strict=True) == ([], [])
        ours = again.log_likelihood(prompts, targets)
        assert not torch.equal(ours, start)
        assert torch.equal(ours, adapted.log_likelihood(prompts, targets))
        for a, b in zip(
            adapted.choose(prompts, options), again.choose(prompts, options), strict=True
        ):
            assert torch.equal(a, b)
        assert adapted.generate(prompts) == again.generate(prompts)
        assert adapted.fingerprint() != make(kind, seed=1).fingerprint()

    def test_their_size_is_that_of_what_learns(self, make, kind):
        adapted = make(kind)
        state = adapted.state_dict()
        learned = sum(p.numel() * p.element_size() for p in learning(adapted).values())
        numbers = written({name: torch.zeros(1) for name in state}).getbuffer().nbytes
        size = written(dict(state)).getbuffer().nbytes
        # Apart from names, headers and torch's notes on every module, there are the numbers
        # alone; every tensor begins at a multiple of 64 bytes.
        assert abs(size - numbers - learned) <= 200 + 64 * len(state)
        whole = sum(p.numel() * p.element_size() for p in adapted.parameters())
        assert written(state).getbuffer().nbytes < 0.7 * whole

    def test_as_part_of_something_larger(self, make, kind):
        """Names have a prefix there, and neighbours of the same kind are still missed."""
        pair = torch.nn.ModuleDict({"a": make(kind), "b": make(kind, LoraConfig())})
        move(pair["a"])
        state = pair.state_dict()
        frozen = {n for n, p in pair["a"].named_parameters() if not p.requires_grad}
        assert frozen
        assert not {f"a.{name}" for name in frozen} & state.keys()
        other = torch.nn.ModuleDict({"a": make(kind, seed=1), "b": make(kind, LoraConfig())})
        assert other.load_state_dict(state, strict=True) == ([], [])
        assert other["a"].fingerprint() == pair["a"].fingerprint()
        missing = next(name for name in state if name.startswith("b.model."))
        del state[missing]
        with pytest.raises(RuntimeError, match=f'Missing key.*"{missing}"'):
            other.load_state_dict(state, strict=True)

    def test_a_missing_adapter_is_missed(self, make, kind):
        adapted = make(kind)
        state = adapted.state_dict()
        name = next(name for name in state if "lora_B" in name)
        del state[name]
        with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
            adapted.load_state_dict(state, strict=True)

    def test_frozen_by_a_phase_they_are_still_there(self, make, kind):
        adapted = make(kind)
        names = list(adapted.state_dict())
        adapted.requires_grad_(False)
        assert list(adapted.state_dict()) == names

    def test_a_copy_has_its_own(self, make, kind):
        adapted = make(kind)
        twin = copy.deepcopy(adapted)
        move(twin)
        assert twin.state_dict().keys() == adapted.state_dict().keys()
        again = torch.nn.ModuleDict({"twin": copy.deepcopy(adapted)})
        state = {f"twin.{name}": value for name, value in twin.state_dict().items()}
        again.load_state_dict(state, strict=True)
        assert again["twin"].fingerprint() == twin.fingerprint() != adapted.fingerprint()

    def test_another_base_is_refused(self, make):
        state = make("t5").state_dict()
        with pytest.raises(UserError, match=r"generator.source is '.*other', whose weights"):
            make("t5", source="other").load_state_dict(state)

    def test_the_precision_of_the_base_may_change(self, make, kind):
        state = make(kind, dtype="bfloat16").state_dict()
        assert make(kind).load_state_dict(state, strict=True) == ([], [])

    def test_adapters_and_whole_models_do_not_mix(self, make):
        adapted, plain = make("t5"), make("t5", LoraConfig())
        with pytest.raises(RuntimeError, match="Missing key"):
            plain.load_state_dict(adapted.state_dict(), strict=True)
        with pytest.raises(RuntimeError, match=r"Missing key.*lora_A"):
            adapted.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
@torch.no_grad()
def test_a_tiny_models_checkpoint_is_whole(architecture, corpus, prompts, targets):
    """Its frozen weights are random, and its tokeniser was trained on the data."""
    config = GeneratorConfig(architecture=architecture, tiny=TINY, lora=LORA)
    adapted = build_generator(config, corpus).eval()
    assert all("lora_" in name for name in learning(adapted))
    move(adapted)
    again = build_generator(config, ["quite another text"]).eval()
    assert again.load_state_dict(read(written(adapted.state_dict())), strict=True) == ([], [])
    ours = again.log_likelihood(prompts, targets)
    assert torch.equal(ours, adapted.log_likelihood(prompts, targets))
    assert again.fingerprint() == adapted.fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, r"lora.rank is -1; legal: 0 or more"),
        ({"alpha": 0}, r"lora.alpha is 0; legal: above 0"),
        ({"alpha": float("inf")}, r"lora.alpha is inf"),
        ({"alpha": float("nan")}, r"lora.alpha is nan"),
        ({"dropout": 1.0}, r"lora.dropout is 1.0; legal: 0 to less than 1"),
        ({"dropout": -0.1}, r"lora.dropout is -0.1"),
        ({"targets": []}, r"lora.targets is \[\]; legal: names of linear layers"),
        ({"targets": ["q", ""]}, r"lora.targets is \['q', ''\]"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**settings)


def test_without_peft(monkeypatch, corpus):
    monkeypatch.setitem(sys.modules, "peft", None)
    config = GeneratorConfig(tiny=TINY, lora=LORA)
    with pytest.raises(UserError, match=r"pip install 'lightning_rag\[lora\]'"):
        build_generator(config, corpus)
    build_generator(GeneratorConfig(tiny=TINY), corpus)


class TestConfiguration:
    """YAML and flags, read as the command line reads them."""

    @pytest.fixture
    def parser(self):
        parser = jsonargparse.ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_argument("--generator", type=GeneratorConfig, default=GeneratorConfig())
        return parser

    def built(self, parser, *words):
        return parser.instantiate(parser.parse_args(list(words))).generator

    def test_default_is_none(self, parser):
        assert self.built(parser).lora == LoraConfig() == LoraConfig(0, 16, 0.1, None)

    def test_flags(self, parser):
        lora = self.built(
            parser,
            "--generator.lora.rank=32",
            "--generator.lora.alpha=16",
            "--generator.lora.targets=[q,v]",
        ).lora
        assert lora == LoraConfig(rank=32, targets=["q", "v"])

    def test_a_file_and_a_flag_over_it(self, parser, tmp_path):
        file = tmp_path / "lora.yaml"
        file.write_text(
            "generator:\n"
            "  source: tiny\n"
            "  lora: {rank: 32, alpha: 64, dropout: 0.05, targets: [q, wi_0]}\n"
        )
        words = (f"--config={file}", "--generator.lora.rank=8")
        assert self.built(parser, *words).lora == LoraConfig(8, 64, 0.05, ["q", "wi_0"])
        words = (*words, "--generator.lora.targets=null")
        assert self.built(parser, *words).lora == LoraConfig(8, 64, 0.05, None)

    def test_what_is_written_can_be_read(self, parser, tmp_path):
        config = parser.parse_args(["--generator.lora.rank=2", "--generator.lora.targets=[q]"])
        parser.save(config, tmp_path / "config.yaml")
        again = self.built(parser, f"--config={tmp_path / 'config.yaml'}")
        assert again.lora == LoraConfig(rank=2, targets=["q"])

    @pytest.mark.parametrize(
        "word",
        ["--generator.lora.rank=x", "--generator.lora.targets=[1, 2]", "--generator.lora.rang=2"],
    )
    def test_bad_values(self, parser, word):
        with pytest.raises(jsonargparse.ArgumentError):
            parser.parse_args([word])
