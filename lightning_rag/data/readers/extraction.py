"""What the readers of information extraction share: the instance of a record, words of labels."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import linearize
from lightning_rag.types import Extraction, Instance

log = logging.getLogger(__name__)

_SEAM = re.compile(r"(?<=[a-z])(?=[A-Z0-9])")  # of words that are glued together


def extraction_instance(
    task: str, split: str, number: int, text: str, extraction: Extraction
) -> Instance:
    """Return the instance of a record, with the id "<task>/<split>/<number>".

    Equal texts form a group, so that a cut never puts them into two splits.

    Args:
        task: "<NER, RE, EET or EEA>_<data set>", as RUIE names its tasks.
        split: "train", "validation" or "test".
        number: place in the split, from 0.
        text: the text that facts are extracted from.
        extraction: what is asked, and the gold facts; the answer is their linearisation.
    """
    return Instance(
        id=f"{task}/{split}/{number}",
        text=text,
        answers=(linearize(extraction),),
        group=normalise(text),
        task=task,
        extraction=extraction,
    )


def without_repeats(
    name: str, train: Iterable[Instance], *held_out: Iterable[Instance]
) -> tuple[Instance, ...]:
    """Return the training instances whose text is in no other split, up to case and white space.

    Such a sentence would be a demonstration of itself. The official validation and test splits stay
    as they are, and ids do not change. What was left out is logged.

    Args:
        name: the data set, for the log.
        train: the official training split.
        held_out: the other splits.
    """
    texts = {normalise(instance.text) for part in held_out for instance in part}
    official = tuple(train)
    kept = tuple(i for i in official if normalise(i.text) not in texts)
    if len(kept) < len(official):
        gone = len(official) - len(kept)
        log.info(
            "%s: %d of %d training records left out: their text is in validation or test",
            *(name, gone, len(official)),
        )
    return kept


def spaced(label: str) -> str:
    """Return a label's name as words: "GetReady" gives "get ready", "Theme_1" "theme 1"."""
    return " ".join(re.sub(r"[_-]+", " ", _SEAM.sub(" ", label)).lower().split())


def check_words(where: str, words: Mapping[str, str]) -> None:
    """Check the words of the labels of one schema: not blank, and each label its own.

    Case is no difference: the scorers ignore it.

    Raises:
        UserError: if the words of a label are blank or another label's.
    """
    seen = Counter(" ".join(text.casefold().split()) for text in words.values())
    for label, text in words.items():
        same = seen[" ".join(text.casefold().split())]
        if not text.strip() or same > 1:
            raise UserError(
                f"{where}: the words of label {label!r} are {text!r}, those of {same} label(s); "
                "legal: words that are not blank and no other label's, whatever the case"
            )


def check_unique(where: str, labels: Iterable[str]) -> None:
    """Check that no label stands twice in a list.

    Raises:
        DataError: if one does.
    """
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        raise DataError(f"{where}: label {twice[0]!r} stands there twice; legal: every label once")
