"""PubMedQA (Jin et al. 2019): does the abstract of a study answer its question yes, no or maybe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import check_label
from lightning_rag.data.readers.jsonl import Record, json_document
from lightning_rag.data.readers.questions import check_fractions
from lightning_rag.data.splits import Splits, hold_out
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Passage

DECISIONS = ("yes", "no", "maybe")


class PubMedQA(Reader):
    """The 1,000 questions with experts' answers: `ori_pqal.json` and `test_ground_truth.json`.

    A question's passages are made of its abstract without the conclusion (`CONTEXTS`), its gold
    passages those of its own PMID. The conclusion (`LONG_ANSWER`) and the annotators' votes
    (`reasoning_*_pred`) give the answer away and are never read. The test split is the official
    one, the 500 PMIDs of `test_ground_truth.json`; the validation split is cut from the other 500.
    Answers are text: yes, no or maybe. Always "yes" has an accuracy of 55.2 %.

    Args:
        folder: holds the files; absolute or relative to the data root.
        passages: `abstracts`: one passage for each PMID, with the PMID as id; `sections`: one for
            each section of the abstract, "<PMID>#<number from 0>".
        validation_fraction: share of the 500 other questions that becomes the validation split.
    """

    def __init__(
        self,
        folder: str = "pubmedqa",
        passages: Literal["abstracts", "sections"] = "abstracts",
        validation_fraction: float = 0.1,
    ) -> None:
        check_fractions(validation_fraction, 0.0)
        if passages not in ("abstracts", "sections"):
            raise UserError(f"passages is {passages!r}; legal: abstracts, sections")
        self.folder = folder
        self.passages = passages
        self.validation_fraction = validation_fraction

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the files and cut the validation split by seed."""
        path = locate(root, f"{self.folder}/ori_pqal.json")
        official = _decisions(locate(root, f"{self.folder}/test_ground_truth.json"))
        instances: list[Instance] = []
        passages: list[Passage] = []
        for identity, record in _records(path):
            own = list(self._passages(identity, record))
            passages += own
            instances.append(_instance(identity, record, own))
        decided = {instance.id: instance.answers[0] for instance in instances}
        for identity, decision in official.items():
            if decided.get(identity) != decision:
                raise DataError(
                    f"{self.folder}/test_ground_truth.json: {identity!r} is {decision!r}, in {path}"
                    f" it is {decided.get(identity, 'missing')!r}; legal: the same"
                )
        rest = [instance for instance in instances if instance.id not in official]
        train, validation = hold_out(rest, self.validation_fraction, seed)
        test = tuple(instance for instance in instances if instance.id in official)
        return Splits(train, validation, test, passages=tuple(passages))

    def _passages(self, identity: str, record: Record) -> Iterator[Passage]:
        sections = record.strings("CONTEXTS")
        if not all(section.strip() for section in sections):
            raise record.error("field 'CONTEXTS' has a blank section; legal: none is blank")
        if self.passages == "abstracts":
            yield Passage(identity, "\n".join(sections))
            return
        for number, section in enumerate(sections):
            yield Passage(f"{identity}#{number}", section)


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    document = json_document(path)
    if not isinstance(document, dict) or not document:
        raise DataError(f"{path}: legal: a JSON object of PMID: record, not empty")
    records = Record(str(path), document)
    for identity in document:
        yield identity, records.nested(identity)


def _instance(identity: str, record: Record, passages: list[Passage]) -> Instance:
    decision = check_label(record.where, record.string("final_decision"), DECISIONS)
    return Instance(
        id=identity,
        text=record.string("QUESTION"),
        answers=(decision,),
        relevant=tuple(passage.id for passage in passages),
        group=identity,
    )


def _decisions(path: Path) -> dict[str, str]:
    document = json_document(path)
    if not isinstance(document, dict) or not document:
        raise DataError(f"{path}: legal: a JSON object of PMID: yes, no or maybe, not empty")
    record = Record(str(path), document)
    return {
        identity: check_label(f"{path}: {identity!r}", record.string(identity), DECISIONS)
        for identity in document
    }
