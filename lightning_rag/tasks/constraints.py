"""Which relations of TACRED two entity types allow."""

from __future__ import annotations

from collections.abc import Mapping

_LEVELS = ("city", "stateorprovince", "country")
_RESIDENCE = {
    "city": "per:cities_of_residence",
    "stateorprovince": "per:stateorprovinces_of_residence",
    "country": "per:countries_of_residence",
}


def _places(level: str) -> frozenset[str]:
    """Birth, residence and death at one level of place."""
    return frozenset({f"per:{level}_of_birth", _RESIDENCE[level], f"per:{level}_of_death"})


_CITY, _STATE, _COUNTRY = (_places(level) for level in _LEVELS)
_HEADQUARTERS = frozenset(f"org:{level}_of_headquarters" for level in _LEVELS)
_AFFILIATION = frozenset({"org:political/religious_affiliation"})

# The 27 pairs of types that have a relation, as SuRE and ETRAG use them (arXiv 2205.09837, released
# code); a pair that is not here is not constrained.
TACRED: Mapping[tuple[str, str], frozenset[str]] = {
    ("PERSON", "ORGANIZATION"): frozenset({"per:employee_of", "per:schools_attended"}),
    ("PERSON", "PERSON"): frozenset(
        f"per:{name}"
        for name in ("other_family", "alternate_names", "parents", "children", "spouse", "siblings")
    ),
    ("PERSON", "TITLE"): frozenset({"per:title"}),
    ("PERSON", "RELIGION"): frozenset({"per:religion"}),
    ("PERSON", "NUMBER"): frozenset({"per:age"}),
    ("PERSON", "DURATION"): frozenset({"per:age"}),
    ("PERSON", "DATE"): frozenset({"per:date_of_birth", "per:date_of_death"}),
    ("PERSON", "CITY"): _CITY,
    ("PERSON", "STATE_OR_PROVINCE"): _STATE,
    ("PERSON", "COUNTRY"): _COUNTRY | {"per:origin"},
    ("PERSON", "NATIONALITY"): _COUNTRY | {"per:origin"},
    ("PERSON", "LOCATION"): ((_CITY | _STATE | _COUNTRY) - {"per:stateorprovince_of_birth"})
    | {"per:origin", "per:employee_of"},
    ("PERSON", "CAUSE_OF_DEATH"): frozenset({"per:cause_of_death"}),
    ("PERSON", "CRIMINAL_CHARGE"): frozenset({"per:charges"}),
    ("PERSON", "MISC"): frozenset({"per:alternate_names"}),
    ("ORGANIZATION", "PERSON"): frozenset(
        {"org:top_members/employees", "org:shareholders", "org:founded_by"}
    ),
    ("ORGANIZATION", "ORGANIZATION"): frozenset(
        f"org:{name}"
        for name in (
            "parents",
            "shareholders",
            "alternate_names",
            "member_of",
            "members",
            "subsidiaries",
        )
    ),
    ("ORGANIZATION", "CITY"): frozenset({"org:city_of_headquarters"}),
    ("ORGANIZATION", "COUNTRY"): frozenset(
        {
            "org:country_of_headquarters",
            "org:parents",
            "org:member_of",
            "org:members",
            "org:subsidiaries",
        }
    ),
    ("ORGANIZATION", "STATE_OR_PROVINCE"): frozenset(
        {"org:stateorprovince_of_headquarters", "org:parents", "org:member_of"}
    ),
    ("ORGANIZATION", "LOCATION"): _HEADQUARTERS
    | {"org:parents", "org:member_of", "org:subsidiaries"},
    ("ORGANIZATION", "URL"): frozenset({"org:website"}),
    ("ORGANIZATION", "NUMBER"): frozenset({"org:number_of_employees/members"}),
    ("ORGANIZATION", "DATE"): frozenset({"org:founded", "org:dissolved"}),
    ("ORGANIZATION", "RELIGION"): _AFFILIATION,
    ("ORGANIZATION", "IDEOLOGY"): _AFFILIATION,
    ("ORGANIZATION", "MISC"): frozenset({"org:alternate_names"}),
}

# Re-TACRED renamed or merged these (Stoica et al. 2021, arXiv 2104.08398): a headquarters became
# any branch, an owner a body that one is member of, another name of a person the same person.
RETACRED_NAMES: Mapping[str, str] = {
    "per:alternate_names": "per:identity",
    "org:parents": "org:member_of",
    "org:subsidiaries": "org:members",
    **{f"org:{level}_of_headquarters": f"org:{level}_of_branch" for level in _LEVELS},
}

RETACRED: Mapping[tuple[str, str], frozenset[str]] = {
    pair: frozenset(RETACRED_NAMES.get(label, label) for label in labels)
    for pair, labels in TACRED.items()
}
