"""Answer metrics against the results of the official scripts."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import multiclass_f1_score

from lightning_rag.metrics import text
from lightning_rag.types import Instance, Predictions, RagBatch

VARIANTS = {
    "squad_v1_1": {"em": text.exact_match, "f1": text.token_f1},
    "squad_v2_0": {"em": text.squad2_exact_match, "f1": text.squad2_token_f1},
    "kilt": {
        "em": text.kilt_exact_match,
        "f1": text.kilt_token_f1,
        "accuracy": text.kilt_accuracy,
    },
    "dro_code": {"em": text.dro_exact_match, "f1": text.dro_token_f1, "acc": text.dro_accuracy},
}


@pytest.fixture(scope="module")
def pairs(golden):
    pairs = {case["id"]: case for case in golden("qa_metrics")["cases"] if case["kind"] == "pair"}
    assert len(pairs) == 66
    return pairs


@pytest.fixture(scope="module")
def aggregate(golden):
    [case] = [case for case in golden("qa_metrics")["cases"] if case["kind"] == "aggregate"]
    return case


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_equal_official(pairs, variant):
    for case in pairs.values():
        prediction, answers = case["inputs"]["prediction"], case["inputs"]["golds"]
        for name, function in VARIANTS[variant].items():
            expected = case["outputs"][variant].get(name)
            if case["outputs"][variant]["em"] is None:
                with pytest.raises(ValueError, match="KILT needs one that is not empty"):
                    function(prediction, answers)
            elif isinstance(expected, int | float):
                assert function(prediction, answers) == pytest.approx(expected, abs=1e-9), case[
                    "id"
                ]


def test_normalised_texts_equal_official(pairs):
    for case in pairs.values():
        prediction = case["inputs"]["prediction"]
        expected = case["outputs"]["normalised_prediction"]
        assert text.normalise(prediction) == expected["squad"], case["id"]
        assert text.normalise_dro(prediction) == expected["dro_code"], case["id"]


def mean(pairs, ids, function, missing=()):
    """Mean over the pairs; a missing prediction scores 0, as in the SQuAD script."""
    inputs = {id_: pairs[id_]["inputs"] for id_ in ids}
    return fmean(
        0.0 if id_ in missing else function(each["prediction"], each["golds"])
        for id_, each in inputs.items()
    )


def test_aggregates_equal_official(pairs, aggregate):
    inputs, outputs = aggregate["inputs"], aggregate["outputs"]
    ids, missing = inputs["pair_ids"], inputs["missing_predictions"]

    def percent(function, missing=()):
        return 100 * mean(pairs, ids, function, missing)

    close = {"abs": 1e-9}
    v1, partly = outputs["squad_v1_1"], outputs["squad_v1_1_with_missing"]
    assert percent(text.exact_match) == pytest.approx(v1["exact_match"], **close)
    assert percent(text.token_f1) == pytest.approx(v1["f1"], **close)
    assert percent(text.exact_match, missing) == pytest.approx(partly["exact_match"], **close)
    assert percent(text.token_f1, missing) == pytest.approx(partly["f1"], **close)
    v2, dro = outputs["squad_v2_0"], outputs["dro_code"]
    assert percent(text.squad2_exact_match) == pytest.approx(v2["exact"], **close)
    assert percent(text.squad2_token_f1) == pytest.approx(v2["f1"], **close)
    assert percent(text.dro_exact_match) == pytest.approx(dro["EM"], abs=5e-4)
    assert percent(text.dro_token_f1) == pytest.approx(dro["F1"], abs=5e-4)
    for name, function in VARIANTS["kilt"].items():
        ours = mean(pairs, inputs["kilt_pair_ids"], function)
        assert ours == pytest.approx(outputs["kilt_downstream"][name], **close), name


def update_of(cases):
    empty = torch.zeros(len(cases), 0)
    instances = [
        Instance(id=case["id"], text="", answers=tuple(case["inputs"]["golds"])) for case in cases
    ]
    batch = RagBatch(
        rows=torch.arange(len(cases)),
        instances=instances,
        candidate_ids=empty.long(),
        candidate_scores=empty,
        relevance=empty,
        relevant_rows=[torch.tensor([])] * len(cases),
        answer_rows=[torch.tensor([])] * len(cases),
        excluded_rows=[torch.tensor([])] * len(cases),
    )
    return Predictions([case["inputs"]["prediction"] for case in cases], empty), batch


def test_classes_equal_official_over_split_updates(pairs, aggregate):
    metrics = MetricCollection([text.ExactMatch(), text.TokenF1()])
    cases = list(pairs.values())
    for start in range(0, len(cases), 8):
        metrics.update(*update_of(cases[start : start + 8]))
    ours = {name: 100 * float(value) for name, value in metrics.compute().items()}
    assert ours == pytest.approx(aggregate["outputs"]["squad_v1_1"], abs=1e-4)


def test_classes_of_other_scorers_equal_official(pairs, aggregate):
    """KILT's over the pairs that it can score, DRO's over all of the aggregate."""
    kilt = MetricCollection([text.ExactMatch("kilt"), text.TokenF1("kilt")])
    dro = MetricCollection([text.ExactMatch("dro"), text.TokenF1("dro")])
    for metrics, ids in ((kilt, "kilt_pair_ids"), (dro, "pair_ids")):
        cases = [pairs[id_] for id_ in aggregate["inputs"][ids]]
        for start in range(0, len(cases), 8):
            metrics.update(*update_of(cases[start : start + 8]))
    official = aggregate["outputs"]["kilt_downstream"]
    assert {name: float(value) for name, value in kilt.compute().items()} == pytest.approx(
        {"kilt_exact_match": official["em"], "kilt_f1": official["f1"]}, abs=1e-6
    )
    official = aggregate["outputs"]["dro_code"]  # percent with three digits
    ours = {name: 100 * float(value) for name, value in dro.compute().items()}
    wanted = {"dro_exact_match": official["EM"], "dro_f1": official["F1"]}
    assert ours == pytest.approx(wanted, abs=6e-4)


def judged(gold, predictions):
    """Return predictions and a batch of queries with one gold answer each."""
    cases = [
        {"id": str(row), "inputs": {"golds": [answer], "prediction": prediction}}
        for row, (answer, prediction) in enumerate(zip(gold, predictions, strict=True))
    ]
    return update_of(cases)


@pytest.mark.parametrize("answers", [("yes", "no"), ("yes", "no", "maybe"), tuple("abcdefg")])
def test_macro_f1_equals_torchmetrics(answers):
    generator = torch.Generator().manual_seed(len(answers))
    for _ in range(20):
        gold = torch.randint(len(answers), (12,), generator=generator)
        drawn = torch.randint(len(answers), (12,), generator=generator)
        theirs = multiclass_f1_score(drawn, gold, num_classes=len(answers), average="macro")
        words = [[answers[i] for i in rows.tolist()] for rows in (drawn, gold)]
        assert text.macro_f1(*words, answers) == pytest.approx(float(theirs), abs=1e-6)
        metric = text.MacroF1(answers)
        for part in (slice(0, 5), slice(5, 12)):
            metric.update(*judged(words[1][part], words[0][part]))
        assert float(metric.compute()["macro_f1"]) == pytest.approx(float(theirs), abs=1e-6)


def test_macro_f1_by_hand():
    answers = ("yes", "no", "maybe")
    # yes: 1 correct of 2 predicted and 2 gold; no: the one gold is missed; maybe: never seen
    assert text.macro_f1(["yes", "yes", "perhaps"], ["yes", "no", "yes"], answers) == 0.25
    assert text.macro_f1([], [], answers) == 0.0
    with pytest.raises(ValueError, match="predictions: expected 1, as many as targets, got 0"):
        text.macro_f1([], ["yes"], answers)
    with pytest.raises(ValueError, match=r"expected one of \['yes', 'no', 'maybe'\], got 'of'"):
        text.macro_f1(["yes"], ["of"], answers)


def test_bad_input():
    for functions in VARIANTS.values():
        for function in functions.values():
            with pytest.raises(
                ValueError, match=r"expected a sequence of one or more texts, got \(\)"
            ):
                function("Paris", ())
            with pytest.raises(ValueError, match="got 'Paris'"):
                function("Paris", "Paris")
    unlabelled = {"id": "q3", "inputs": {"golds": [], "prediction": "x"}}
    with pytest.raises(ValueError, match="'q3' has no answer"):
        text.ExactMatch().update(*update_of([unlabelled]))
