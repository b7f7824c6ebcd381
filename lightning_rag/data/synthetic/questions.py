"""Synthetic questions over made-up facts: of one hop, and of two hops in a known order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_rag.data.splits import Splits
from lightning_rag.data.synthetic.words import (
    SPLITS,
    check_range,
    city_name,
    company_name,
    distinct,
    first_name,
    last_name,
    trade,
)
from lightning_rag.errors import UserError
from lightning_rag.types import Instance, Passage

MAX_COMPANIES = 2_000
_KINDS = ("Works", "Guild", "Bank")  # the second word of a company's name
_WORDINGS = {  # attribute -> sentences about {1}, whose trade is {2}, with the answer {0}
    "founder": ("{0} founded the {1}.", "The {1} was founded by {0}."),
    "director": ("{0} directs the {1}.", "The {1} is directed by {0}."),
    "seat": ("The {1} is based in {0}.", "The {1} has its seat in {0}."),
    "born": ("The {2} {1} was born in {0}.", "{0} is the city where the {2} {1} was born."),
    "lives": ("The {2} {1} lives in {0}.", "{0} is the city where the {2} {1} lives."),
}
# A question is the keys of its gold facts in the order of the hops, and its words about {0}; {1} is
# the trade of the person in the middle.
_Question = tuple[tuple[str, ...], str]
_ONE_HOP: tuple[_Question, ...] = (
    (("founder",), "Who founded the {0}?"),
    (("director",), "Who directs the {0}?"),
    (("seat",), "In which city is the {0} based?"),
    (("founder born",), "In which city was {0} born?"),
    (("founder lives",), "In which city does {0} live?"),
    (("director born",), "In which city was {0} born?"),
    (("director lives",), "In which city does {0} live?"),
)
_TWO_HOP: tuple[_Question, ...] = (
    (("founder", "founder born"), "In which city was the {1} who founded the {0} born?"),
    (("founder", "founder lives"), "In which city does the {1} who founded the {0} live?"),
    (("director", "director born"), "In which city was the {1} who directs the {0} born?"),
    (("director", "director lives"), "In which city does the {1} who directs the {0} live?"),
)
FACTS = len(_ONE_HOP)  # passages for each company


@dataclass(frozen=True)
class QuestionSizes:
    """The size of the question answering data.

    A split of n questions is about ceil(n / questions_per_company) companies, each with a founder
    and a director; the corpus has seven passages for each company.

    Args:
        train: training questions.
        validation: validation questions.
        test: test questions.
        two_hop: share of the questions that need two passages.
        questions_per_company: different questions asked about a company and its people.
        cities: cities to be born, to live and to be based in; one over the chance to guess one.
        same_trade: about how many people share a trade. A two-hop question names the trade of the
            person in the middle, so that a retriever by words finds the second passage among those
            about these people; one over the chance to answer without the first passage.

    Raises:
        UserError: if a value is not legal.
    """

    train: int = 800
    validation: int = 200
    test: int = 400
    two_hop: float = 0.5
    questions_per_company: int = 4
    cities: int = 40
    same_trade: int = 5

    def __post_init__(self) -> None:
        for name in SPLITS:
            check_range(name, getattr(self, name), 1, MAX_COMPANIES * len(_TWO_HOP))
        check_range("two_hop", self.two_hop, 0.0, 1.0)
        check_range("questions_per_company", self.questions_per_company, 1, len(_TWO_HOP))
        check_range("cities", self.cities, 5, 400)
        check_range("same_trade", self.same_trade, 2, MAX_COMPANIES)
        companies = sum(self.companies(getattr(self, name)) for name in SPLITS)
        if companies > MAX_COMPANIES:
            raise UserError(
                f"train, validation and test need {companies} companies at "
                f"{self.questions_per_company} question(s) each; legal: at most {MAX_COMPANIES}"
            )

    def companies(self, questions: int) -> int:
        """Return the number of companies that so many questions are about."""
        return -(-questions // self.questions_per_company)


def question_splits(sizes: QuestionSizes, seed: int) -> Splits:
    """Make the question answering data.

    Every company has a founder, a director and a seat; each of the two was born in one city and
    lives in another. Each of these seven facts is one passage. A one-hop question asks for a fact.
    A two-hop question asks where "the loksmith who founded the Flapic Guild" was born or lives: the
    first passage names the person (the bridge), the second the city, and only together, in this
    order, do they answer; the trade alone leaves `same_trade` people. The five cities around a
    company differ, so that among the passages that name the company or its people the answer
    stands in the gold passage alone.

    Args:
        sizes: how much of what.
        seed: what everything is drawn from.

    Returns:
        Questions whose companies and people are in no other split, with the ids of the gold
        passages in the order of the hops; the corpus has the facts of all splits.
    """
    rng = random.Random(f"questions {seed}")
    counts = {split: getattr(sizes, split) for split in SPLITS}
    total = sum(sizes.companies(count) for count in counts.values())
    worlds = _worlds(rng, total, sizes)
    numbers = list(range(total * FACTS))
    rng.shuffle(numbers)
    ids = (f"passage-{number:06d}" for number in numbers)
    questions: dict[str, list[Instance]] = {}
    corpus: list[Passage] = []
    for split, count in counts.items():
        questions[split] = []
        two_hops = round(count * sizes.two_hop)
        hops = [2] * two_hops + [1] * (count - two_hops)
        rng.shuffle(hops)
        for first in range(0, count, sizes.questions_per_company):
            world = next(worlds)
            facts = _facts(rng, world, ids)
            corpus += [fact.passage for fact in facts.values()]
            asked = _asked(rng, hops[first : first + sizes.questions_per_company])
            for row, (keys, words) in enumerate(asked, start=first):
                gold = [facts[key] for key in keys]
                question = Instance(
                    id=f"{split}-{row:06d}",
                    text=words.format(gold[0].passage.title, gold[-1].trade),
                    answers=(gold[-1].answer,),
                    relevant=tuple(fact.passage.id for fact in gold),
                    group=world.company,
                )
                questions[split].append(question)
    return Splits(
        train=tuple(questions["train"]),
        validation=tuple(questions["validation"]),
        test=tuple(questions["test"]),
        passages=tuple(sorted(corpus, key=lambda passage: passage.id)),
    )


class _Subject(NamedTuple):
    name: str
    trade: str  # "" for a company


class _World(NamedTuple):
    company: str
    founder: _Subject
    director: _Subject
    cities: list[str]  # five different ones


class _Fact(NamedTuple):
    answer: str
    trade: str  # of the subject
    passage: Passage


def _worlds(rng: random.Random, count: int, sizes: QuestionSizes) -> Iterator[_World]:
    """Yield companies and people whose names occur once, with the cities of their facts."""
    cities = distinct(rng, sizes.cities, city_name)
    first, last = distinct(rng, 200, first_name), distinct(rng, 200, last_name)
    made_up = distinct(rng, MAX_COMPANIES, company_name)
    companies = distinct(rng, count, lambda r: f"{r.choice(made_up)} {r.choice(_KINDS)}")
    names = distinct(rng, 2 * count, lambda r: f"{r.choice(first)} {r.choice(last)}")
    trades = distinct(rng, max(1, len(names) // sizes.same_trade), trade)
    people = [_Subject(name, trades[row % len(trades)]) for row, name in enumerate(names)]
    rng.shuffle(people)
    for row, company in enumerate(companies):
        yield _World(company, people[2 * row], people[2 * row + 1], rng.sample(cities, 5))


def _facts(rng: random.Random, world: _World, ids: Iterator[str]) -> dict[str, _Fact]:
    """Write the seven facts of a company, each a passage with its subject as the title."""
    founder, director, (seat, *homes) = world.founder, world.director, world.cities
    company = _Subject(world.company, "")
    answers = {
        "founder": (company, founder.name),
        "director": (company, director.name),
        "seat": (company, seat),
        "founder born": (founder, homes[0]),
        "founder lives": (founder, homes[1]),
        "director born": (director, homes[2]),
        "director lives": (director, homes[3]),
    }
    facts = {}
    for key, (subject, answer) in answers.items():
        wording = rng.choice(_WORDINGS[key.split()[-1]])
        text = wording.format(answer, subject.name, subject.trade)
        passage = Passage(id=next(ids), text=text, title=subject.name)
        facts[key] = _Fact(answer, subject.trade, passage)
    return facts


def _asked(rng: random.Random, hops: Sequence[int]) -> Iterator[_Question]:
    """Yield a question for each number of hops; none comes twice."""
    ask = {
        1: iter(rng.sample(_ONE_HOP, len(_ONE_HOP))),
        2: iter(rng.sample(_TWO_HOP, len(_TWO_HOP))),
    }
    for count in hops:
        yield next(ask[count])
