"""RUIE's record: a text and what is to be extracted from it, in four lines (arXiv 2409.11673).

    Task: Named entity recognition
    Schema: [person, location]
    Input: "Ann Lee left Lima."
    Output: person: Ann Lee; location: Lima

A query is a record whose output is missing, so it ends in `Output:`; a demonstration has it. The
layout is the published one (spec section 2, after the released code), the instructions are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from lightning_rag.tasks.keywords import Tags, locate, tag
from lightning_rag.types import Extraction, ExtractionKind, Fact, Mention, Rendered

TASK_NAMES: Mapping[ExtractionKind, str] = {
    "entities": "Named entity recognition",
    "relations": "Relation extraction",
    "events": "Event detection",
    "arguments": "Event argument extraction",
}
# facts of each kind: how their labels are called, and what stands behind the label
_FORMS: Mapping[ExtractionKind, tuple[str, str, str]] = {
    "entities": ("all entities", "entity type", "entity"),
    "relations": ("all relations between entities", "relation", "first entity, second entity"),
    "events": ("all events", "event type", "trigger word"),
    "arguments": ("the arguments of the given event", "role", "argument"),
}
SCHEMAS_KEPT = 4096  # distinct schemas whose patterns stay in memory
CUE = "Output:"
NOTHING = "None"


def instruction(kind: ExtractionKind) -> str:
    """Return what stands before everything else in a prompt for models that follow instructions.

    It holds with and without demonstrations, so that runs that differ in their number compare the
    demonstrations alone. The released code words the prompt of its preference scores and that of
    its evaluation differently; ours is one for both.
    """
    what, label, content = _FORMS[kind]
    return (
        f"{TASK_NAMES[kind]}: extract {what} from the input text. Use the {label}s of the schema "
        f'only, and words of the input only. Write each as "{label}: {content}", with "; " '
        f'between them, or "{NOTHING}" if there is nothing to extract.\n\n'
        "Complete records may come first: they are examples to learn from. Follow the instruction "
        f"for the record that ends without an output, and write nothing but its output.\n\n"
    )


def fact_text(fact: Fact) -> str:
    """Return what is written of a fact behind its label, on one line: `head, tail` or one text."""
    return ", ".join(" ".join(mention.text.split()) for mention in fact.mentions)


def schema_text(extraction: Extraction) -> str:
    """Return the schema's line, without its name."""
    labels = f"[{', '.join(extraction.schema)}]"
    if extraction.trigger is None:
        return labels
    trigger = f"{extraction.trigger.type}: {fact_text(extraction.trigger)}"
    return f'Given event trigger: "{trigger}"; Candidate arguments: {labels}'


def record(
    text: str, extraction: Extraction, tags: Tags = "none", *, parity: bool = False
) -> Rendered:
    """Return the record of a text without its output, which `join` puts behind it.

    Untagged the text stands in quotation marks; tagged it does not, as in the released code. Line
    breaks within the text become spaces.

    Args:
        text: the sentence.
        extraction: what is asked, and the facts whose mentions are tagged.
        tags: how keywords are tagged.
        parity: place them as the released code does (`keywords.locate`).

    Returns:
        The record, with the range "cue" of `Output:`.
    """
    if tags == "none":
        sentence = f'"{_one_line(text)}"'
    else:
        spans = locate(text, keywords(extraction), parity=parity)
        sentence = _one_line(tag(text, spans, tags))
    lines = (
        f"Task: {TASK_NAMES[extraction.kind]}\nSchema: {schema_text(extraction)}\n"
        f"Input: {sentence}\n"
    )
    return Rendered(lines + CUE, {"cue": (len(lines), len(lines) + len(CUE))})


def join(query: Rendered, answer: str, separator: str = " ") -> Rendered:
    """Put an answer behind a record without output, with the range "label" of the answer."""
    start = len(query.text) + len(separator)
    spans = {**query.spans, "label": (start, start + len(answer))}
    return Rendered(query.text + separator + answer, spans)


def keywords(extraction: Extraction) -> list[Mention]:
    """Return the mentions that tags mark, with what "typed" tags write as their types.

    An entity has its label, an event trigger its event type, an argument its role, and the head and
    tail of a relation their entity types, "" where the data set has none. Of an event with
    arguments the trigger comes first.
    """
    facts = (() if extraction.trigger is None else (extraction.trigger,)) + extraction.facts
    if extraction.kind == "relations":
        # one entity of several relations is one mention
        return list(dict.fromkeys(mention for fact in facts for mention in fact.mentions))
    return [Mention(m.text, m.start, m.end, fact.type) for fact in facts for m in fact.mentions]


def spell_labels(output: str, schema: tuple[str, ...]) -> str:
    """Write the labels of a generated answer as the schema does, each with its colon.

    An uncased WordPiece tokeniser gives `per : title : boss` where `per:title: boss` was learned.
    The words behind a label stay as they are.

    Args:
        output: the answer; facts begin its lines or follow a ";".
        schema: the labels.
    """
    labels, pattern = _spellings(schema)

    def spelled(match: re.Match[str]) -> str:
        # some letters are equal up to case without a common lower case, such as the long s
        label = labels.get(_joined(match[2].lower(), " ", ""), match[2])
        return f"{match[1]}{' ' if match[1] == ';' else ''}{label}: "

    return pattern.sub(spelled, output)


@lru_cache(maxsize=SCHEMAS_KEPT)
def _spellings(schema: tuple[str, ...]) -> tuple[Mapping[str, str], re.Pattern[str]]:
    """Return what stands for each label, and the pattern of one at the beginning of a fact."""
    labels: dict[str, str] = {}
    for label in sorted(schema, key=len, reverse=True):
        labels.setdefault(_joined(label.lower(), " ", ""), label)
    spaced = "|".join(_joined(label, r"\s+", r"\s*", escape=True) for label in labels)
    return labels, re.compile(rf"(^|[;\n])\s*({spaced})\s*:\s*", re.IGNORECASE)


def _joined(label: str, words: str, marks: str, *, escape: bool = False) -> str:
    """Return a label with `words` between two words and `marks` beside punctuation."""
    parts = re.findall(r"[^\W_]+|\S", label)
    joined = ""
    for before, part in zip(["", *parts], parts, strict=False):
        if before:
            joined += words if before[-1].isalnum() and part[0].isalnum() else marks
        joined += re.escape(part) if escape else part
    return joined


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
