"""The relation labels of public data sets, in words.

Every label has a short phrase and a clause with the places {head} and {tail}. The clause form is
SuRE's (Lu et al. 2022, arXiv 2205.09837); the words are ours. A phrase names the role of the tail
(TACRED) or both roles from head to tail (SemEval), so that the direction is clear. First words
differ wherever they can, because then the trie of the allowed answers is shallow; only the level of
a place (city, state, country) comes late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning_rag.tasks.constraints import RETACRED_NAMES


class Wording(NamedTuple):
    """A label in words."""

    phrase: str  # without the entities
    clause: str  # with {head} and {tail}


SEMEVAL2010: Mapping[str, Wording] = {
    "Other": Wording("other relation", "{head} has no listed link with {tail}"),
    "Cause-Effect(e1,e2)": Wording("cause of effect", "{head} causes {tail}"),
    "Cause-Effect(e2,e1)": Wording("effect of cause", "{head} results from {tail}"),
    "Component-Whole(e1,e2)": Wording("component of whole", "{head} forms part of {tail}"),
    "Component-Whole(e2,e1)": Wording("whole with component", "{head} consists partly of {tail}"),
    "Content-Container(e1,e2)": Wording("content in container", "{head} lies inside {tail}"),
    "Content-Container(e2,e1)": Wording("container with content", "{head} holds within it {tail}"),
    "Entity-Destination(e1,e2)": Wording("traveller to destination", "{head} moves into {tail}"),
    "Entity-Destination(e2,e1)": Wording("destination of traveller", "{head} receives {tail}"),
    "Entity-Origin(e1,e2)": Wording("derivative from origin", "{head} comes from {tail}"),
    "Entity-Origin(e2,e1)": Wording("origin of derivative", "{head} yields {tail}"),
    "Instrument-Agency(e1,e2)": Wording("instrument of agent", "{head} serves as tool of {tail}"),
    "Instrument-Agency(e2,e1)": Wording("agent with instrument", "{head} uses {tail}"),
    "Member-Collection(e1,e2)": Wording("member of collection", "{head} belongs among {tail}"),
    "Member-Collection(e2,e1)": Wording("collection of member", "{head} gathers {tail}"),
    "Message-Topic(e1,e2)": Wording("message about topic", "{head} discusses {tail}"),
    "Message-Topic(e2,e1)": Wording("topic of message", "{head} appears as topic of {tail}"),
    "Product-Producer(e1,e2)": Wording("product of producer", "{head} was made by {tail}"),
    "Product-Producer(e2,e1)": Wording("producer of product", "{head} makes {tail}"),
}


def _places(kind: str, verb: str, labels: tuple[str, str, str]) -> dict[str, Wording]:
    """The wordings of one relation at the levels city, state or province, country."""
    levels = ("city", "state or province", "country")
    return {
        label: Wording(f"{kind} in {level}", f"{{head}} {verb} in the {level} {{tail}}")
        for label, level in zip(labels, levels, strict=True)
    }


TACRED: Mapping[str, Wording] = {
    "no_relation": Wording("no stated link", "{head} has no stated link with {tail}"),
    "per:title": Wording("job title", "{head} holds the job {tail}"),
    "per:employee_of": Wording("employer", "{head} works for {tail}"),
    "per:schools_attended": Wording("school", "{head} studied at {tail}"),
    "per:spouse": Wording("spouse", "{head} married {tail}"),
    "per:children": Wording("child", "{head} became a parent of {tail}"),
    "per:parents": Wording("parent", "{head} descends directly from {tail}"),
    "per:siblings": Wording("sibling", "{head} shares parents with {tail}"),
    "per:other_family": Wording("relative", "{head} counts as a relative of {tail}"),
    "per:alternate_names": Wording("alias", "{head} also goes by the name {tail}"),
    "per:age": Wording("age", "{head} reached the age {tail}"),
    "per:origin": Wording("nationality", "{head} originates as {tail}"),
    "per:religion": Wording("faith", "{head} follows the faith {tail}"),
    "per:charges": Wording("criminal charge", "{head} faced the charge {tail}"),
    "per:date_of_birth": Wording("birth on date", "{head} was born on {tail}"),
    **_places(
        "birth",
        "was born",
        ("per:city_of_birth", "per:stateorprovince_of_birth", "per:country_of_birth"),
    ),
    "per:cause_of_death": Wording("death from cause", "{head} died from {tail}"),
    "per:date_of_death": Wording("death on date", "{head} died on {tail}"),
    **_places(
        "death",
        "died",
        ("per:city_of_death", "per:stateorprovince_of_death", "per:country_of_death"),
    ),
    **_places(
        "residence",
        "resides",
        (
            "per:cities_of_residence",
            "per:stateorprovinces_of_residence",
            "per:countries_of_residence",
        ),
    ),
    "org:top_members/employees": Wording("leader", "{head} answers to the leader {tail}"),
    "org:founded_by": Wording("founder", "{head} owes its foundation to {tail}"),
    "org:shareholders": Wording("shareholder", "{head} sold shares to {tail}"),
    "org:alternate_names": Wording("trade name", "{head} operates under the name {tail}"),
    "org:member_of": Wording("umbrella organization", "{head} belongs to {tail}"),
    "org:members": Wording("affiliated member", "{head} includes as member {tail}"),
    "org:parents": Wording("owner", "{head} is owned by {tail}"),
    "org:subsidiaries": Wording("subsidiary", "{head} owns {tail}"),
    **_places(
        "headquarters",
        "sits",
        (
            "org:city_of_headquarters",
            "org:stateorprovince_of_headquarters",
            "org:country_of_headquarters",
        ),
    ),
    "org:founded": Wording("starting date", "{head} started in {tail}"),
    "org:dissolved": Wording("closing date", "{head} ceased to exist in {tail}"),
    "org:website": Wording("website", "{head} runs the website {tail}"),
    "org:number_of_employees/members": Wording("headcount", "{head} numbers {tail}"),
    "org:political/religious_affiliation": Wording(
        "political or religious affiliation", "{head} adheres to {tail}"
    ),
}

RETACRED: Mapping[str, Wording] = {
    **{label: wording for label, wording in TACRED.items() if label not in RETACRED_NAMES},
    "per:identity": Wording("same person", "{head} denotes the same person as {tail}"),
    **_places(
        "branch",
        "keeps a branch",
        ("org:city_of_branch", "org:stateorprovince_of_branch", "org:country_of_branch"),
    ),
}

TABLES: Mapping[str, Mapping[str, Wording]] = {
    "semeval2010": SEMEVAL2010,
    "tacred": TACRED,
    "retacred": RETACRED,
}
