"""TACRED (Zhang et al. 2017) and its relabelled versions TACREV and Re-TACRED."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds, check_label, token_span
from lightning_rag.data.readers.jsonl import Record, json_document, json_records
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance

log = logging.getLogger(__name__)

NO_RELATION = "no_relation"

TACRED_LABELS = (
    NO_RELATION,
    *(
        f"org:{name}"
        for name in (
            "alternate_names",
            "city_of_headquarters",
            "country_of_headquarters",
            "dissolved",
            "founded",
            "founded_by",
            "member_of",
            "members",
            "number_of_employees/members",
            "parents",
            "political/religious_affiliation",
            "shareholders",
            "stateorprovince_of_headquarters",
            "subsidiaries",
            "top_members/employees",
            "website",
        )
    ),
    *(
        f"per:{name}"
        for name in (
            "age",
            "alternate_names",
            "cause_of_death",
            "charges",
            "children",
            "cities_of_residence",
            "city_of_birth",
            "city_of_death",
            "countries_of_residence",
            "country_of_birth",
            "country_of_death",
            "date_of_birth",
            "date_of_death",
            "employee_of",
            "origin",
            "other_family",
            "parents",
            "religion",
            "schools_attended",
            "siblings",
            "spouse",
            "stateorprovince_of_birth",
            "stateorprovince_of_death",
            "stateorprovinces_of_residence",
            "title",
        )
    ),
)
"""The 42 labels of TACRED and TACREV."""

_DROPPED = {"per:alternate_names", "org:parents", "org:subsidiaries"}
RETACRED_LABELS = (
    NO_RELATION,
    *sorted(
        {label.replace("_of_headquarters", "_of_branch") for label in TACRED_LABELS[1:]} - _DROPPED
        | {"per:identity"}
    ),
)
"""The 40 labels of Re-TACRED: a space of their own, not to be mixed with TACRED's."""

BRACKETS = {
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
}
"""Penn Treebank escapes that occur as tokens."""

_PATCH_FOLDERS = {"tacrev": "tacred_patches/tacrev", "retacred": "tacred_patches/Re-TACRED"}

# MD5 of the complete patched files as TACREV's own script writes them (its README).
_TACREV_MD5 = {
    "dev": "ce23ba10ca15bde94a3f733679bf1b05",
    "test": "dbcce82f5ab67fbfd1062db6cc6b66cd",
}


class Tacred(Reader):
    """The JSON files of TACRED, which users bring (LDC2018T24), as they are or with newer labels.

    The sentence is the tokens joined by a space, with the Penn Treebank's escapes turned into
    brackets; the head is the subject, the tail the object, each with its entity type.

    Args:
        folder: holds `train.json`, `dev.json`, `test.json`; absolute or relative to the data root.
        patches: `none`: the labels of LDC. `tacrev` (Alt et al. 2020): `dev_patch.json` and
            `test_patch.json`, lists of {"id", "relation"}, replace the labels of the listed ids;
            train stays as it is. `retacred` (Stoica et al. 2021):
            `{train,dev,test}_id2label.json`, objects {id: label}; only listed ids are kept, with
            40 labels of their own.
        patch_folder: holds the patch files; default `tacred_patches/tacrev` or
            `tacred_patches/Re-TACRED`.
    """

    def __init__(
        self,
        folder: str = "tacred/data/json",
        patches: Literal["none", "tacrev", "retacred"] = "none",
        patch_folder: str | None = None,
    ) -> None:
        if patches not in ("none", "tacrev", "retacred"):
            raise UserError(f"patches is {patches!r}; legal: none, tacrev, retacred")
        self.folder = folder
        self.patches = patches
        self.patch_folder = patch_folder or _PATCH_FOLDERS.get(patches, "")

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the three official splits; the seed changes nothing."""
        ids = UniqueIds()
        return Splits(
            train=self._split(root, "train", ids),
            validation=self._split(root, "dev", ids),
            test=self._split(root, "test", ids),
            labels=RETACRED_LABELS if self.patches == "retacred" else TACRED_LABELS,
        )

    def _split(
        self, root: Path | None, split: Literal["train", "dev", "test"], ids: UniqueIds
    ) -> tuple[Instance, ...]:
        path = locate(root, f"{self.folder}/{split}.json")
        records = list(json_records(path))
        for record in records:
            ids.add(record.identity(), record.where)
        if self.patches == "retacred":
            patch = locate(root, f"{self.patch_folder}/{split}_id2label.json")
            relations = _retacred(patch)
            _check_known(patch, relations, path, records)
            records = [record for record in records if record.identity() in relations]
            labelled = [(record, relations[record.identity()]) for record in records]
            return tuple(_instance(record, label) for record, label in labelled)
        if self.patches == "tacrev" and split != "train":
            patch = locate(root, f"{self.patch_folder}/{split}_patch.json")
            relations = dict(_tacrev(patch))
            _check_known(patch, relations, path, records)
            records = [
                Record(r.where, r.fields | {"relation": relations[r.identity()]})
                if r.identity() in relations
                else r
                for r in records
            ]
            _check_published(path, split, records)
        return tuple(
            _instance(record, check_label(record.where, record.string("relation"), TACRED_LABELS))
            for record in records
        )


def _instance(record: Record, label: str) -> Instance:
    tokens = [BRACKETS.get(token, token) for token in record.strings("token")]
    text = " ".join(tokens)
    head, tail = (
        token_span(
            record.where,
            f"{name}_start, {name}_end",
            tokens,
            record.integer(f"{name}_start"),
            record.integer(f"{name}_end"),
            record.string(f"{name}_type"),
        )
        for name in ("subj", "obj")
    )
    return Instance(
        id=record.identity(),
        text=text,
        answers=(label,),
        head=head,
        tail=tail,
        group=record.string_or_empty("docid"),
    )


def _tacrev(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, label) of a TACREV patch."""
    ids = UniqueIds()
    for record in json_records(path):
        ids.add(record.identity(), record.where)
        label = check_label(record.where, record.string("relation"), TACRED_LABELS)
        yield record.identity(), label


def _retacred(path: Path) -> dict[str, str]:
    """Return the id -> label of a Re-TACRED file."""
    value = json_document(path)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path}: legal: a JSON object of id: label, not empty")
    record = Record(str(path), value)
    return {
        identity: check_label(f"{path}: id {identity!r}", record.string(identity), RETACRED_LABELS)
        for identity in value
    }


def _check_known(
    patch: Path, relations: Mapping[str, str], path: Path, records: Sequence[Record]
) -> None:
    unknown = sorted(relations.keys() - {record.identity() for record in records})
    if unknown:
        raise DataError(
            f"{patch}: {len(unknown)} of {len(relations)} ids are not in {path}, first "
            f"{unknown[0]!r}; legal: ids of the complete split of TACRED"
        )


def _check_published(path: Path, split: str, records: Sequence[Record]) -> None:
    """Warn if the patched split is not the published one; an excerpt or a copy may be meant."""
    written = json.dumps([record.fields for record in records])
    found = hashlib.md5(written.encode(), usedforsecurity=False).hexdigest()
    if found != _TACREV_MD5[split]:
        log.warning(
            "%s with TACREV's labels has MD5 %s, the published %s split has %s: "
            "results are not comparable with published ones",
            path,
            found,
            split,
            _TACREV_MD5[split],
        )
