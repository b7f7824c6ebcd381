"""`export`: a trained retriever and reward model, as sentence-transformers and transformers load
them, and as the source of encoders here."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_rag import cli
from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig, TinyConfig
from lightning_rag.backbones.cross_encoder import CrossEncoder, build_cross_encoder
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.backbones.factory import build_generator
from lightning_rag.types import Rendered

TINY = TinyConfig(vocab_size=320, hidden_size=32, heads=4, layers=2, dropout=0.1)
CORPUS = ["alba borks cimo and delo borks fenu : owner, the company owns it"] * 3
TAGS = ["<Keyword>", "</Keyword>"]
RETRIEVER = EncoderConfig(
    tiny=TINY, query_prefix="query: ", passage_prefix="passage: ", extra_tokens=TAGS, max_length=40
)
REWARD = EncoderConfig(tiny=TINY, extra_tokens=TAGS, max_length=64)
TEXTS = [
    "alba <Keyword> borks </Keyword> cimo",
    "the company owns it",
    "x",
    "Ünï cödé, 12.5 %",
    "cut: " + "the company owns it and " * 30,
    "owner",
]
PAIRS = [(a, b) for a in TEXTS[:4] for b in TEXTS[:4]]


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip(
        "sentence_transformers", reason="needs the package sentence-transformers"
    )


def rendered(texts: Sequence[str]) -> list[Rendered]:
    return [Rendered(text) for text in texts]


def trained(built: Encoder | CrossEncoder) -> Encoder | CrossEncoder:
    """Weights that no build of the same configuration has, and outputs that differ."""
    torch.manual_seed(len(list(built.parameters())))
    for weight in built.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return built.eval()


def save(root: Path, groups: dict[str, Encoder | CrossEncoder], config: dict[str, object]) -> Path:
    """Write a run's checkpoint and config.yaml; the generator is a tiny one."""
    generator = build_generator(GeneratorConfig(tiny=TINY), CORPUS)
    modules = {"generator": generator, **groups}
    state = {f"{g}.{n}": w for g, m in modules.items() for n, w in m.state_dict().items()}
    settings = {"generator": dataclasses.asdict(generator.config), **config}
    (root / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state, "phase_index": 0}, root / "checkpoints" / "best.ckpt")
    OmegaConf.save(settings, root / "config.yaml")
    return root / "checkpoints" / "best.ckpt"


def export(checkpoint: Path, output: Path) -> Path:
    assert cli.main(["export", str(checkpoint), f"--output={output}"]) == 0
    return output


def embed(encoder: Encoder, role: str = "none") -> Tensor:
    return encoder.encode(rendered(TEXTS), 4, role=role)


@torch.no_grad()
def score(cross_encoder: CrossEncoder) -> Tensor:
    queries, passages = zip(*PAIRS, strict=True)
    return cross_encoder(rendered(queries), rendered(passages))


def same_direction(ours: Tensor, theirs: Tensor) -> None:
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(len(ours)), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours @ ours.T).std() > 1e-3  # the texts' vectors are not all one


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"pooling": "first"},
        {"normalize": False},
        {"query_prefix": "", "passage_prefix": ""},
    ],
    ids=["as RUIE's", "first token", "any length", "no prefixes"],
)
def test_the_retriever_in_sentence_transformers(library, tmp_path, change) -> None:
    config = dataclasses.replace(RETRIEVER, **change)
    encoder = trained(build_encoder(config, CORPUS))
    checkpoint = save(tmp_path, {"retriever": encoder}, {"encoder": dataclasses.asdict(config)})
    folder = export(checkpoint, tmp_path / "out") / "retriever"
    model = library.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 40
    assert model.similarity_fn_name == ("cosine" if config.normalize else "dot")
    for role, way in (
        ("query", model.encode_query),
        ("passage", model.encode_document),
        ("none", model.encode),
    ):
        same_direction(embed(encoder, role), torch.as_tensor(way(TEXTS)))
    assert encoder.truncated > 0  # the limit is the same too
    differs = not torch.allclose(embed(encoder, "query"), embed(encoder), atol=1e-3)
    assert differs == bool(config.query_prefix)


def test_the_library_trains_on(library, tmp_path) -> None:
    """What it saves again is a source here, its own form of the files included."""
    encoder = trained(build_encoder(RETRIEVER, CORPUS))
    checkpoint = save(tmp_path, {"retriever": encoder}, {"encoder": dataclasses.asdict(RETRIEVER)})
    folder = export(checkpoint, tmp_path / "out") / "retriever"
    model = library.SentenceTransformer(str(folder), device="cpu")
    for weight in model.parameters():
        weight.data += 0.01
    model.save_pretrained(str(tmp_path / "theirs"), create_model_card=False)
    again = build_encoder(EncoderConfig(source=str(tmp_path / "theirs"), max_length=40), [])
    assert again.config.passage_prefix == "passage: "
    got = again.eval().encode(rendered(TEXTS), 4, role="passage")
    same_direction(got, torch.as_tensor(model.encode_document(TEXTS)))
    assert not torch.allclose(got, embed(encoder, "passage"), atol=1e-3)


def test_a_retriever_is_a_source(tmp_path) -> None:
    encoder = trained(build_encoder(RETRIEVER, CORPUS))
    checkpoint = save(tmp_path, {"retriever": encoder}, {"encoder": dataclasses.asdict(RETRIEVER)})
    folder = export(checkpoint, tmp_path / "out") / "retriever"
    for extra in ([], TAGS):
        config = EncoderConfig(source=str(folder), max_length=40, extra_tokens=extra)
        again = build_encoder(config, []).eval()
        for role in ("query", "passage", "none"):
            assert torch.equal(embed(again, role), embed(encoder, role))
    # And it can be trained and exported from there on.
    config = EncoderConfig(source=str(folder), max_length=40)
    further = trained(build_encoder(config, []))
    checkpoint = save(
        tmp_path / "second", {"retriever": further}, {"encoder": dataclasses.asdict(config)}
    )
    second = export(checkpoint, tmp_path / "second" / "out") / "retriever"
    last = build_encoder(EncoderConfig(source=str(second), max_length=40), []).eval()
    assert torch.equal(embed(last, "query"), embed(further, "query"))


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize("own", [True, False], ids=["its own settings", "the shared ones"])
def test_the_reward_model_in_transformers(tmp_path, token_types, own) -> None:
    config = dataclasses.replace(REWARD, token_types=token_types)
    reward = trained(build_cross_encoder(config, CORPUS))
    settings = dataclasses.asdict(config)
    other = dataclasses.asdict(EncoderConfig(tiny=TinyConfig(hidden_size=16)))
    model = {"class_path": "a.Method", "init_args": {"reward_encoder": settings if own else None}}
    run = {"encoder": other if own else settings, "model": model}
    folder = export(save(tmp_path, {"reward": reward}, run), tmp_path / "out") / "reward"
    assert not (folder / "modules.json").exists()

    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert loaded.config.num_labels == 1
    assert tokenizer.model_max_length == 64
    inputs = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    assert ("token_type_ids" in inputs) == token_types
    with torch.no_grad():
        theirs = loaded(**inputs).logits[:, 0]
    torch.testing.assert_close(score(reward), theirs, atol=1e-5, rtol=1e-5)
    assert theirs.std() > 0.01

    again = build_cross_encoder(EncoderConfig(source=str(folder), max_length=64), []).eval()
    assert torch.equal(score(again), score(reward))


@pytest.mark.parametrize("token_types", [True, False])
def test_the_reward_model_in_sentence_transformers(library, tmp_path, token_types) -> None:
    """Its CrossEncoder gives the logits, not probabilities."""
    config = dataclasses.replace(REWARD, token_types=token_types)
    reward = trained(build_cross_encoder(config, CORPUS))
    run = {"encoder": dataclasses.asdict(config)}
    folder = export(save(tmp_path, {"reward": reward}, run), tmp_path / "out") / "reward"
    model = library.CrossEncoder(str(folder), device="cpu")
    theirs = torch.as_tensor(model.predict(PAIRS))
    torch.testing.assert_close(score(reward), theirs, atol=1e-5, rtol=1e-5)


def test_both_of_one_run_and_what_lies_deeper(tmp_path) -> None:
    """An encoder inside of something else embeds in a way that only its method knows."""
    retriever = trained(build_encoder(RETRIEVER, CORPUS))
    reward = trained(build_cross_encoder(REWARD, CORPUS))
    groups = {"retriever": retriever, "reward": reward, "selector.scorer": reward}
    groups["other.encoder"] = retriever
    run = {
        "encoder": dataclasses.asdict(RETRIEVER),
        "model": {"init_args": {"reward_encoder": dataclasses.asdict(REWARD), "k": 8}},
    }
    out = export(save(tmp_path, groups, run), tmp_path / "out")
    assert (out / "retriever" / "modules.json").exists()
    assert not (out / "other" / "encoder" / "modules.json").exists()
    for folder in (out / "other" / "encoder", out / "retriever"):
        config = EncoderConfig(source=str(folder), max_length=40)
        assert torch.equal(embed(build_encoder(config, []).eval()), embed(retriever))
    for folder in (out / "selector" / "scorer", out / "reward"):
        assert json.loads((folder / "config.json").read_text())["architectures"] == [
            "BertForSequenceClassification"
        ]
    # What was not there before is not there now: no name of a folder of ours.
    assert (out / "model.safetensors").exists()


def test_a_run_of_ruie(library, tmp_path, monkeypatch) -> None:
    """By the command line; the reward model has settings of its own."""
    here = Path(__file__).resolve().parent
    names = ("base", "data/synthetic_relations", "backbone/tiny", "method/ruie")
    files = [str(here.parent / "configs" / f"{name}.yaml") for name in names]
    words = [word for file in (*files, str(here / "small.yaml")) for word in ("--config", file)]
    made: list[cli.RagCLI] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    monkeypatch.setattr(cli.RagCLI, "after_fit", lambda self: made.append(self))
    words += [f"--data.reader.init_args.{split}=8" for split in ("train", "validation", "test")]
    words += ["--model.reward_epochs=1", "--model.distil_epochs=1", "--runs=runs", "--model.k=1"]
    words += ["--encoder.query_prefix=query: ", "--encoder.passage_prefix=passage: "]
    tiny = "{vocab_size: 400, hidden_size: 24, heads: 2, layers: 1}"
    own = f"{{tiny: {tiny}, token_types: false, extra_tokens: {TAGS}, max_length: 96}}"
    assert cli.main(["fit", *words, f"--model.reward_encoder={own}"]) == 0
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    method = made[0].model.eval()
    # What is exported is the checkpoint, which need not be the last step.
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    method.load_state_dict(state)
    out = export(checkpoint, tmp_path / "out")

    retriever = method.get_submodule("retriever")
    model = library.SentenceTransformer(str(out / "retriever"), device="cpu")
    same_direction(embed(retriever, "query"), torch.as_tensor(model.encode_query(TEXTS)))
    same_direction(embed(retriever, "passage"), torch.as_tensor(model.encode_document(TEXTS)))
    reward = method.get_submodule("reward")
    assert reward.config.tiny.hidden_size == 24
    scores = library.CrossEncoder(str(out / "reward"), device="cpu").predict(PAIRS)
    torch.testing.assert_close(score(reward), torch.as_tensor(scores), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["encoder", "reward_encoder"])
def test_settings_of_other_models(tmp_path, part, capsys) -> None:
    other = dataclasses.replace(REWARD, tiny=TinyConfig(vocab_size=320, hidden_size=16, heads=4))
    reward = trained(build_cross_encoder(REWARD, CORPUS))
    run: dict[str, object] = {"encoder": dataclasses.asdict(other)}
    if part == "reward_encoder":
        run = {"model": {"init_args": {part: dataclasses.asdict(other)}}}
    checkpoint = save(tmp_path, {"reward": reward}, run)
    assert cli.main(["export", str(checkpoint), f"--output={tmp_path / 'out'}"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "weights reward.* do not fit the models that config.yaml describes" in message
    assert not (tmp_path / "out").exists()


def test_a_wrong_setting_is_named(tmp_path, capsys) -> None:
    reward = trained(build_cross_encoder(REWARD, CORPUS))
    for settings, expected in (
        ({"sauce": "tiny"}, "sauce"),
        ({"encode_chunk": 0}, "encode_chunk is 0; legal: 1 or more"),
        ({"source": "${nothing.there}"}, "nothing.there"),
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        run = {"model": {"init_args": {"reward_encoder": settings}}}
        checkpoint = save(root, {"reward": reward}, run)
        assert cli.main(["export", str(checkpoint), f"--output={root / 'out'}"]) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert expected in message
        assert "config.yaml" in message or "encode_chunk" in message
