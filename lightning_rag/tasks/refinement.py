"""Rules that turn what a large language model wrote into a relation label, as RAG4RE has them.

Source: RAG4RE (Efeoglu and Paschke, arXiv 2404.13397, "result refinement"; released code,
sefeoglu/RAG4RE, src/retrieval/refinement.py). The rules know labels with a prefix, such as
`per:title`; a label without one, such as `Cause-Effect(e1,e2)`, is its own suffix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NO_RELATION = "no_relation"
_PREFIXES = ("per", "org")
# What an answer can name that is no label: in quotation marks, else up to the character before one.
_INVENTED = tuple(
    re.compile(form.format(prefix=prefix))
    for form in ('"{prefix}:(.+?)"', '{prefix}:(.+?)."')
    for prefix in _PREFIXES
)


def refine_sequence_to_sequence(output: str, labels: Sequence[str], subject_type: str = "") -> str:
    """Return the label that the last word of an encoder-decoder's output names.

    The text after the last space, and of that the text after the last colon, is looked up among the
    labels' suffixes, so that a wrong prefix is repaired: `org:religion` becomes `per:religion`. Of
    a suffix that exists with both prefixes (TACRED: alternate_names, parents) the type of the
    subject decides, whatever prefix the output has: org for an organization, else per.

    The released code gives `parents` and `alternate_names` the subject's prefix even where no such
    label exists (Re-TACRED); here the only label of that suffix is taken.

    Args:
        output: what the generator wrote.
        labels: all labels.
        subject_type: entity type of the subject (the head), such as "ORGANIZATION".

    Returns:
        A label, or the last word without its prefix, which then is no label.
    """
    word = _suffix(output)
    return _of_subject([label for label in labels if _suffix(label) == word], subject_type) or word


def refine_decoder_only(
    output: str, labels: Sequence[str], subject_type: str = "", *, by_subject: bool = True
) -> str:
    r"""Return the label that occurs in a decoder's output.

    The answer is the text after the last "Answer:", else after "[/INST]", else all of it. The first
    label of the list that occurs in it counts, whatever its prefix, case and backslashes; a label
    with a prefix has to occur with a colon before its suffix. Then "no relation" is no_relation.

    One label can begin with another (`org:founded_by`): of two such labels that occur the longer
    one counts. The released code leaves that to the order of its list, which is right by chance.

    Args:
        output: what the generator wrote, with or without its prompt.
        labels: all labels, in the order in which they are tried.
        subject_type: entity type of the subject (the head), such as "ORGANIZATION".
        by_subject: of a suffix that exists with both prefixes, the type of the subject decides, as
            in an encoder-decoder's output. False is the released code: its rule is the same, but
            never applies, because it compares a suffix that has kept its colon; so the first
            label of the list counts, for instance `per:parents` for an organization.

    Returns:
        A label; or the suffix of an invented one (`best_friend` for `"per:best_friend"`); or "".
    """
    answer = _answer(output)
    searched = answer.replace("\\", "").lower()
    found = [label for label in labels if _needle(label) in searched]
    if found:
        first = _needle(found[0])
        needle = max((n for n in map(_needle, found) if n.startswith(first)), key=len)
        same = [label for label in found if _needle(label) == needle]
        return _of_subject(same, subject_type) if by_subject else same[0]
    if NO_RELATION in labels and "no relation" in searched:
        return NO_RELATION
    for pattern in _INVENTED:
        if match := pattern.search(answer):
            return match[1].replace("\\", "").replace('"', "")
    return ""


def _suffix(text: str) -> str:
    """Return what follows the last space, and of that what follows the last colon."""
    return text.split(" ")[-1].split(":")[-1].strip()


def _needle(label: str) -> str:
    """Return what must occur in an answer, in lower case: the suffix with its colon, or all."""
    prefix, colon, suffix = label.lower().partition(":")
    return colon + suffix if prefix in _PREFIXES else label.lower()


def _of_subject(labels: Sequence[str], subject_type: str) -> str:
    """Return the label with the prefix of the subject's type, else the first one, "" if none."""
    prefix = "org:" if subject_type.upper() == "ORGANIZATION" else "per:"
    return next((label for label in labels if label.startswith(prefix)), next(iter(labels), ""))


def _answer(output: str) -> str:
    """Cut the prompt off."""
    if "Answer:" in output:
        return output.replace("\n", "").split("Answer:")[-1]
    return output.split("[/INST]")[1] if "[/INST]" in output else output
