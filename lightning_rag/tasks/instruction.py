"""Prompts that ask an instruction-following model for a relation, as RAG4RE has them.

They have the parts of RAG4RE's prompts (arXiv 2404.13397; released code, sefeoglu/RAG4RE) in our
own words: what the task is, the question, the sentence, the two entities, the list of relation
types, the form of the answer. What is not as published:

- The simple prompt and the one with an example differ by the example alone, so that a comparison
  of the two measures retrieval and nothing else; the published ones are worded differently.
- The list is sorted and complete, the same in every prompt, with commas between the types.
- The example stands where the generator puts passages: before the query in a decoder-only prompt,
  after it, behind a separator token, in an encoder-decoder's input. The published one stands
  between question and query. This way a prompt that is too long loses the example first.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rag.tasks.marking import mention_texts
from lightning_rag.types import Instance, Rendered

HEAD_AND_TAIL = ("head entity", "tail entity")
TAGGED = ("entity e1", "entity e2")  # where the sentence has the tags <e1> and <e2>
EXAMPLE = "Example sentence: "
EXAMPLE_LABEL = "\nRelation of the example: "  # before a demonstration's label


def instructed(
    sentence: Rendered, instance: Instance, relation_types: Sequence[str], roles: tuple[str, str]
) -> Rendered:
    """Return the prompt of one query.

    Args:
        sentence: the query's sentence with the ranges of its mentions.
        instance: the query.
        relation_types: what the model may answer, in the order in which it is told.
        roles: what the two entities are called, `HEAD_AND_TAIL` or `TAGGED`.

    Returns:
        The prompt with the sentence's ranges and two more, "question" and "task": all that stands
        before and after the sentence. So a cut takes words of the sentence outside its mentions.
    """
    head, tail = roles
    question = (
        "Relation extraction names the relation between two entities of a sentence.\n"
        f"Which of the relation types below links the {head} to the {tail} in the query sentence?\n"
        "Query sentence: "
    )
    named = zip(roles, mention_texts(instance), strict=True)
    entities = "".join(f"{role[0].upper()}{role[1:]}: {mention}\n" for role, mention in named)
    task = (
        f"\n{entities}Relation types: {', '.join(relation_types)}\n"
        "Answer with exactly one of these relation types and nothing else."
    )
    moved = _preceded(question, sentence)
    return Rendered(
        moved.text + task,
        {
            **moved.spans,
            "question": (0, len(question)),
            "task": (len(moved.text), len(moved.text) + len(task)),
        },
    )


def exemplified(sentence: Rendered) -> Rendered:
    """Return a retrieved sentence as the example of a prompt."""
    return _preceded(EXAMPLE, sentence)


def _preceded(lead: str, sentence: Rendered) -> Rendered:
    """Put a text before a sentence, and move the sentence's ranges."""
    spans = {name: (a + len(lead), b + len(lead)) for name, (a, b) in sentence.spans.items()}
    return Rendered(lead + sentence.text, spans)
