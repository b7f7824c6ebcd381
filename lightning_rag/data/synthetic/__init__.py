"""Synthetic data sets with known truth, in which retrieval is necessary and measurable.

Everything is made from the seed alone, with words that no pre-trained model knows. Random numbers
come from `random.Random` seeded by a text, which depends on no platform and no other library.
"""

from lightning_rag.data.synthetic.extraction import ExtractionSizes, extraction_splits
from lightning_rag.data.synthetic.questions import QuestionSizes, question_splits
from lightning_rag.data.synthetic.relations import RelationSizes, relation_splits

__all__ = [
    "ExtractionSizes",
    "QuestionSizes",
    "RelationSizes",
    "extraction_splits",
    "question_splits",
    "relation_splits",
]
