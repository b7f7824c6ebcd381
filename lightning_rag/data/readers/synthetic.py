"""The synthetic data sets as readers: they make their records and read no file."""

from __future__ import annotations

from pathlib import Path

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.splits import Splits
from lightning_rag.data.synthetic import (
    ExtractionSizes,
    QuestionSizes,
    RelationSizes,
    extraction_splits,
    question_splits,
    relation_splits,
)


class SyntheticRelations(Reader):
    """Relation extraction in which only the demonstration with the query's verb tells the label.

    Args:
        train: training queries.
        validation: validation queries.
        test: test queries.
        relations: labels, R.
        demonstrations: relevant demonstrations of each query in the store.
        distractors: demonstrations of each query that share its entities, not its verb and label.
        both_entities: probability that a distractor shares both entities and not one: the larger,
            the harder for a retriever by words.

    Raises:
        UserError: if a value is not legal.
    """

    def __init__(
        self,
        train: int = 800,
        validation: int = 200,
        test: int = 400,
        relations: int = 8,
        demonstrations: int = 1,
        distractors: int = 3,
        both_entities: float = 0.15,
    ) -> None:
        self.sizes = RelationSizes(
            train=train,
            validation=validation,
            test=test,
            relations=relations,
            demonstrations=demonstrations,
            distractors=distractors,
            both_entities=both_entities,
        )

    def read(self, root: Path | None, seed: int) -> Splits:
        """Make the data from the seed; there is nothing to read below `root`."""
        return relation_splits(self.sizes, seed)


class SyntheticQuestions(Reader):
    """Questions about made-up companies and people, of one hop and of two.

    Args:
        train: training questions.
        validation: validation questions.
        test: test questions.
        two_hop: share of the questions that need two passages.
        questions_per_company: different questions asked about a company and its people.
        cities: cities to be born, to live and to be based in; one over the chance to guess one.
        same_trade: about how many people share a trade, by which a retriever by words can find the
            second passage; one over the chance to answer without the first.

    Raises:
        UserError: if a value is not legal.
    """

    def __init__(
        self,
        train: int = 800,
        validation: int = 200,
        test: int = 400,
        two_hop: float = 0.5,
        questions_per_company: int = 4,
        cities: int = 40,
        same_trade: int = 5,
    ) -> None:
        self.sizes = QuestionSizes(
            train=train,
            validation=validation,
            test=test,
            two_hop=two_hop,
            questions_per_company=questions_per_company,
            cities=cities,
            same_trade=same_trade,
        )

    def read(self, root: Path | None, seed: int) -> Splits:
        """Make the data from the seed; there is nothing to read below `root`."""
        return question_splits(self.sizes, seed)


class SyntheticExtraction(Reader):
    """Five small extraction tasks, one held out, whose answers only a demonstration tells.

    Args:
        train: training queries, of the four held-in tasks.
        validation: validation queries, of the same.
        test: test queries, of all tasks.
        demonstrations: relevant demonstrations of each query in the store.
        distractors: demonstrations of each query with its town and other key words.
        copies: probability that a distractor shares all but the key word: the larger, the harder
            for a retriever by words.
        nothing: share of the key words which mean that there is nothing to extract.

    Raises:
        UserError: if a value is not legal.
    """

    def __init__(
        self,
        train: int = 1600,
        validation: int = 200,
        test: int = 400,
        demonstrations: int = 1,
        distractors: int = 3,
        copies: float = 0.15,
        nothing: float = 0.1,
    ) -> None:
        self.sizes = ExtractionSizes(
            train=train,
            validation=validation,
            test=test,
            demonstrations=demonstrations,
            distractors=distractors,
            copies=copies,
            nothing=nothing,
        )

    def read(self, root: Path | None, seed: int) -> Splits:
        """Make the data from the seed; there is nothing to read below `root`."""
        return extraction_splits(self.sizes, seed)
