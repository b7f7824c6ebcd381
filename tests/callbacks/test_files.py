"""What a run leaves: metrics, summary, predictions, and TensorBoard's scalars, text and hparams."""

from __future__ import annotations

import json
import re
import sys
import warnings
from html import unescape
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_rag import cli
from lightning_rag.callbacks.cost_ledger import CostLedger, _parameters
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.callbacks.predictions import PredictionWriter, _markdown
from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.methods.phase import Phase
from lightning_rag.metrics.counts import METRICS_VERSION

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
RETRIEVAL = {"recall@1", "success@1", "mrr", "ndcg@1"}
FITS = ["fit_1", "fit_2", "fit_3", "fit_4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of the method with two phases."""
    folder = tmp_path_factory.mktemp("runs")
    configs = ("data/synthetic_relations.yaml", "backbone/tiny.yaml")
    files = [CONFIGS / name for name in configs]
    files += [HERE.parent / "methods" / "two_phases.yaml", HERE.parent / "small.yaml"]
    sizes = (("train", 24), ("validation", 8), ("test", 8))
    command = [
        "fit",
        *[part for file in files for part in ("--config", str(file))],
        *[f"--data.reader.init_args.{split}={size}" for split, size in sizes],
        "--optimizer.learning_rates={generator: 1e-3, retriever: 1e-3}",
        "--model.init_args.steps=3",
        f"--runs={folder}",
        f"--data.cache_dir={folder / 'cache'}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE.parent / "methods"))
        patch.setattr(sys, "argv", ["lightning_rag"])
        assert cli.main(command) == 0
    (config,) = folder.rglob("config.yaml")
    return config.parent


def load(path: Path) -> dict:
    content: dict = json.loads(path.read_text(encoding="utf-8"))
    return content


def events(run: Path) -> list[EventAccumulator]:
    """The event files of a run; fit and test write one each."""
    found = []
    for path in sorted(run.glob("events.*")):
        accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
        accumulator.Reload()
        found.append(accumulator)
    return found


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for accumulator in events(run):
        for tag in accumulator.Tags()["scalars"]:
            points = [(event.step, event.value) for event in accumulator.Scalars(tag)]
            found.setdefault(tag, []).extend(points)
    return found


def test_metrics_json(run: Path) -> None:
    metrics = load(run / "metrics.json")
    assert set(metrics) == {"validation", "test"}
    assert set(metrics["test"]) == RETRIEVAL | {"accuracy", "invalid_rate"}
    phases = [point["phase"] for point in metrics["validation"]]
    assert phases == ["distil", "fit_1", "fit_3", "fit_4"]
    assert [point["step"] for point in metrics["validation"]] == [2, 5, 8, 11]
    for point in metrics["validation"]:
        assert set(point) == {"step", "phase", "score"} | set(metrics["test"])


def test_predictions_agree_with_the_metrics(run: Path) -> None:
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 8
    right = sum(row["prediction"] in row["target"] for row in rows) / 8
    assert load(run / "metrics.json")["test"]["accuracy"] == pytest.approx(right)
    for row in rows:
        assert len(row["retrieved"]) == len(row["scores"]) == 1
        assert row["id"] not in row["retrieved"]
        assert row["counts"]["accuracy"] == (row["prediction"] in row["target"])


def test_rankings_and_passages(run: Path) -> None:
    """The method takes the first stage's best passage; the rankings break ties as metrics do."""
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    lines = (run / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = {passage["id"]: passage for passage in map(json.loads, lines)}
    assert len(passages) == len(lines)
    assert passages.keys() == {id_ for row in rows for id_ in row["retrieved"]}
    for row in rows:
        assert "task" not in row
        assert row["target"][0] not in row["text"].split()
        assert row["ranked"] == row["first_stage"]
        assert row["ranked_relevant"] == row["first_stage_relevant"]
        assert len(set(row["ranked"])) == len(row["ranked"]) > 1
        relevant = dict(zip(row["ranked"], row["ranked_relevant"], strict=True))
        assert sum(relevant.values()) <= row["relevant"]
        (best,) = row["retrieved"]
        passage = passages[best]
        assert passage["text"].endswith(passage["label"])
        assert relevant[best] == (passage["label"] == row["target"][0])


def test_summary_json(run: Path) -> None:
    summary = load(run / "summary.json")
    assert summary["method"] == "TwoPhases"
    assert summary["task"] == "RelationExtraction"
    assert summary["seed"] == 0
    assert summary["trained"] == ["generator", "retriever"]
    assert summary["metrics"]["version"] == METRICS_VERSION
    assert summary["metrics"]["monitor"] == "accuracy"
    mean = {"kind": "mean"}
    figures = {"accuracy", "invalid_rate"} | RETRIEVAL
    assert summary["metrics"]["aggregations"] == dict.fromkeys(figures, mean)
    # The index is refreshed every two steps and read by no ranking.
    assert {point["overlap@1"] for point in summary["staleness"]} == {1}
    assert summary["staleness"][0]["step"] == 2
    assert summary["phases"] == ["distil", *FITS, "fit_5"]  # which the series skipped
    assert summary["fit"]["versions"]["torch"] == torch.__version__
    assert summary["data"]["train"]["size"] == 24
    assert re.fullmatch(r"[0-9a-f]{16}", summary["data"]["test"]["ids"])
    assert summary["data"]["first_stage"]["first_stage"] == "bm25"
    assert set(summary["parameters"]) == {"generator", "retriever"}
    assert summary["test"]["truncated_texts"] == {"generator": 0, "retriever": 0}
    assert set(summary["cost"]) == {"distil", *FITS, "test"}
    assert re.fullmatch(r"([0-9a-f]{40}(\+changes)?)?", summary["fit"]["commit"])


def test_cost_of_a_run(run: Path) -> None:
    cost = load(run / "summary.json")["cost"]
    assert {"seconds/estimate", "seconds/train"} <= set(cost["distil"])
    assert cost["distil"]["tokens/retriever/train"] > 0
    assert "tokens/generator/train" not in cost["distil"]
    for fit in FITS:
        assert cost[fit]["tokens/generator/estimate"] > 0
        assert cost[fit]["tokens/generator/train"] > 0
    assert cost["fit_1"]["tokens/generator/evaluate"] > 0
    assert cost["test"]["tokens/generator/evaluate"] > 0
    assert "tokens/generator/train" not in cost["test"]
    assert all(book["flops"] > 0 and book["memory/process"] > 1e6 for book in cost.values())


def test_estimates_of_a_run(run: Path) -> None:
    """What the summaries said, in the summary and as scalars at the steps where phases begin."""
    estimates = load(run / "summary.json")["estimates"]
    assert list(estimates) == ["distil", *FITS]
    assert set(estimates["distil"]) == {"teacher"}
    weights = [estimates[fit]["weight"] for fit in FITS]
    assert all(0 < weight < 1 for weight in weights)
    assert len(set(weights)) > 1
    found = scalars(run)
    assert [step for step, _ in found["estimate/teacher"]] == [0]
    assert [step for step, _ in found["estimate/weight"]] == [3, 5, 7, 9]
    assert [value for _, value in found["estimate/weight"]] == pytest.approx(weights)


def test_estimates_outlive_the_test_run(fit, tmp_path: Path) -> None:
    """A later `test` knows of no estimate; what is no number is null."""

    def make(method) -> Phase:
        def summarize(rows) -> dict[str, float]:
            return {"mean": float(rows["doubled"].float().mean()), "none": float("nan")}

        return Phase(
            "one", ("first",), method.loss, estimate=method.estimate, summarize=summarize, steps=1
        )

    folder = tmp_path / "run"
    method, _ = fit(make, callbacks=[RunFiles(folder, {})])
    expected = {"one": {"mean": 39.0, "none": None}}
    assert load(folder / "summary.json")["estimates"] == expected
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[PhaseSchedule(folder / "checkpoints"), Evaluator(), RunFiles(folder, {})],
    )
    trainer.test(method, datamodule=method.data, verbose=False)
    summary = load(folder / "summary.json")
    assert "test" in summary
    assert summary["estimates"] == expected


def test_scalars(run: Path) -> None:
    found = scalars(run)
    metrics = load(run / "metrics.json")
    assert [step for step, _ in found["train/loss"]] == list(range(11))
    assert {"train/teacher", "cost/flops", "cost/seconds/train"} <= set(found)
    for name, value in metrics["test"].items():
        assert found[f"test/{name}"][0][1] == pytest.approx(value)
        curve = [point[name] for point in metrics["validation"]]
        assert [point for _, point in found[f"val/{name}"]] == pytest.approx(curve)
    assert "hp_metric" not in found


def test_hyper_parameters(run: Path) -> None:
    """One line, whose metrics are the run's scalars: those of the test are among them."""
    sessions: dict[str, HParamsPluginData] = {}
    for accumulator in events(run):
        if "hparams" not in accumulator._plugin_to_tag_to_content:
            continue
        for tag, content in accumulator.PluginTagToContent("hparams").items():
            assert tag not in sessions
            sessions[tag] = HParamsPluginData.FromString(content)
    # A list of columns, "_hparams_/experiment", would hide those of other methods.
    assert sessions.keys() == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    start = sessions["_hparams_/session_start_info"].session_start_info.hparams
    assert start["model"].string_value == "TwoPhases"
    assert start["data.batch_size"].number_value == 8
    assert start["generator.tiny.hidden_size"].number_value == 16
    assert "model.generator.tiny.hidden_size" not in start  # a copy


def test_text_page(run: Path) -> None:
    pages = [
        accumulator.Tensors("test/retrieved/text_summary")[0].tensor_proto.string_val[0].decode()
        for accumulator in events(run)
        if "test/retrieved/text_summary" in accumulator.Tags()["tensors"]
    ]
    (page,) = pages
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert page.count("**query**") == len(rows)
    for row in rows:
        assert row["retrieved"][0] in page


def test_text_page_shows_data_as_they_are() -> None:
    """Read as TensorBoard shows it: no markup comes out of a query, an answer, an id or a text."""
    with warnings.catch_warnings():
        # TensorBoard's copy of bleach warns of its own copy of html5lib.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.plugin_util import markdown_to_safe_html
    nasty = r"<b>a</b> & *b* _c_ `d` [e](f) ![g](h) \* <script>"
    html = markdown_to_safe_html(_markdown(nasty, (nasty, "c"), nasty, [(nasty, f"{nasty}\n# i")]))
    assert set(re.findall(r"</?(\w+)", html)) == {"p", "strong", "ol", "li", "hr"}
    read = unescape(re.sub("<[^>]*>", "", html)).split("\n")
    assert [line for line in read if line] == [
        f"query {nasty}",
        f"target {nasty} | c",
        f"prediction {nasty}",
        f"{nasty} {nasty} # i",
    ]


def test_predictions_of_predict(fit, data, tmp_path: Path) -> None:
    """Rows come in the order of the split, with all that was retrieved, best first."""
    method, _ = fit(lambda m: Phase("one", ("first",), m.loss, steps=1))
    writer = PredictionWriter(tmp_path, shown=2)
    data.predict_split = "validation"
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[writer],
    )
    trainer.predict(method, datamodule=data)
    lines = (tmp_path / "predictions-validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [i.id for i in data.splits.validation]
    queries = data.queries("validation")
    for number, row in enumerate(rows):
        first = int(queries.candidates.ids[number, 0])
        assert row["retrieved"] == [data.store[first].id]
        assert row["scores"] == pytest.approx([float(queries.candidates.scores[number, 0])])
        assert (row["prediction"] == "<b>no label</b>") == bool(number % 2)
        assert row["ranked"] == row["first_stage"]
        assert "counts" not in row
    assert len(writer.page) == 2


def test_evaluator_names_and_values(fit) -> None:
    _, trainer = fit(lambda m: Phase("one", ("first",), m.loss, epochs=1))
    values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    assert set(values) == {f"val/{name}" for name in RETRIEVAL | {"accuracy", "invalid_rate"}}
    assert values["val/accuracy"] == values["val/invalid_rate"] == 0.5


def test_cost_ledger_by_hand(fit) -> None:
    """40 training and 8 validation queries, 10 tokens each; 3 weights and a bias a model."""
    ledger = CostLedger()
    method, _ = fit(
        lambda m: Phase("one", ("first",), m.loss, estimate=m.estimate, epochs=2),
        lambda m: Phase("two", ("first", "second"), m.loss, steps=2),
        callbacks=[ledger],
    )
    one, two = ledger.phases["one"], ledger.phases["two"]
    assert _parameters(method.first) == 4  # the embedding's 21 weights are looked up
    assert one["tokens/first/estimate"] == 400
    assert one["tokens/first/train"] == one["tokens/second/train"] == 800
    assert one["tokens/second/evaluate"] == 2 * 80
    assert "tokens/first/evaluate" not in one
    # forward 2, forward and backward 6 FLOPs for each weight and token
    assert one["flops"] == 4 * (2 * 400 + 6 * 800 + 2 * 800 + 2 * 160)
    assert two["tokens/first/train"] == 2 * 80
    assert two["flops"] == 4 * (6 * 160 + 6 * 160 + 2 * 80)  # the epoch ends with a validation
    assert all(one[f"seconds/{what}"] > 0 for what in ("estimate", "train", "evaluate"))

    totals = ledger.totals()
    assert totals["flops"] == one["flops"] + two["flops"]
    assert totals["tokens/first/train"] == 960
    assert totals["memory/process"] == max(one["memory/process"], two["memory/process"])
    again = CostLedger()
    again.load_state_dict(ledger.state_dict())
    assert again.totals() == totals


def test_damaged_metrics_are_written_anew(
    fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"test": {"f1')
    fit(
        lambda m: Phase("one", ("first",), m.loss, epochs=1),
        callbacks=[RunFiles(tmp_path / "run", {})],
    )
    assert set(load(folder / "metrics.json")) == {"validation"}
    assert "was damaged" in caplog.text


def test_counts_of_cut_texts(fit, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def cutting(method) -> Phase:
        def loss(batch):
            method.second.truncated += 1
            return method.loss(batch)

        return Phase("one", ("first",), loss, steps=4)

    fit(cutting, callbacks=[RunFiles(tmp_path / "run", {})])
    summary = load(tmp_path / "run" / "summary.json")
    assert summary["fit"]["truncated_texts"] == {"first": 0, "second": 4}
    (warning,) = [r.getMessage() for r in caplog.records if "were cut" in r.getMessage()]
    assert "second: 4" in warning
    assert "first" not in warning
