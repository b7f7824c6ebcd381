"""First-stage retrieval: the N candidates that every method may choose from."""

from __future__ import annotations

import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_rag.data.bm25_folder import BM25Folder, bm25_folder
from lightning_rag.data.cache import hash_rows, hash_texts
from lightning_rag.data.keys import Keys
from lightning_rag.data.scope import ScopedRows
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    import bm25s  # type: ignore[import-untyped]
    import Stemmer  # type: ignore[import-not-found]

log = logging.getLogger(__name__)

STOP_WORDS = (
    "english", "english_plus", "german", "dutch", "french", "spanish", "portuguese", "italian",
    "russian", "swedish", "norwegian", "danish", "turkish", "chinese", "korean",
)  # fmt: skip
LONG = 10.0  # seconds between two lines of progress


@dataclass
class SearchRequest:
    """What a first-stage retriever is asked, for Q queries over M passages.

    Args:
        queries: Q texts.
        keys: M texts; the position of a passage's text is its row.
        count: N, candidates for each query.
        exclude: for each query the rows that it must not get, ascending.
        relevant: for each query the rows known to be relevant; `Oracle` alone looks at them.
        seed: seed of everything that is drawn.
        folder: where the passages' index is to lie, on disk; None = in memory.

    Raises:
        ValueError: lists of different lengths.
        UserError: `count` below 1, or above what any query could be given. What a query's scope
            leaves out does not count: a query of a small task gets what there is.
    """

    queries: Sequence[str]
    keys: Sequence[str]
    count: int
    exclude: Sequence[NDArray[np.int64]]
    relevant: Sequence[NDArray[np.int64]]
    seed: int
    folder: Path | None = None

    def __post_init__(self) -> None:
        lengths = len(self.queries), len(self.exclude), len(self.relevant)
        if len(set(lengths)) > 1:
            raise ValueError(f"queries, exclude and relevant must be equally long, got {lengths}")
        if self.count < 1:
            raise UserError(f"{self.count} candidates for each query; legal: 1 or more")
        store = len(self.keys)
        own = self.exclude.own if isinstance(self.exclude, ScopedRows) else self.exclude
        available = store - min((len(np.unique(rows)) for rows in own), default=0)
        if self.count > available:
            raise UserError(
                f"data.num_candidates: {self.count} candidates for each query are more than the "
                f"{available} passages that a query can get (passage store: {store}, itself and "
                f"its copies excluded); legal: up to {available}"
            )

    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Return what identifies this request, for the cache."""
        found: dict[str, str | int | float | bool] = {
            "queries": hash_texts(self.queries),
            "keys": self.keys_hash(),
            "count": self.count,
            "exclude": self.exclude.hash()
            if isinstance(self.exclude, ScopedRows)
            else hash_rows(self.exclude),
            "relevant": hash_rows(self.relevant),
            "seed": self.seed,
        }
        # An approximate index on disk is another than in memory. (No key where there was none:
        # candidates of former versions stay known.)
        return found if self.folder is None else {**found, "on_disk": True}

    def keys_hash(self) -> str:
        """Return the SHA-256 over the keys."""
        return self.keys.hash if isinstance(self.keys, Keys) else hash_texts(self.keys)


@dataclass
class Candidates:
    """The candidates of Q queries, best first; equal scores in the order of the rows.

    A query that may not get `count` passages, since so many are excluded for it, is padded.
    """

    ids: NDArray[np.int64]  # (Q, N) rows of the passage store, -1 = padding
    scores: NDArray[np.float32]  # (Q, N) larger is better, -inf = padding


class FirstStage(ABC):
    """A retriever that offers the candidates of all queries at once, before any training."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Return all that the result depends on besides the request; "first_stage" is the name."""

    @abstractmethod
    def search(self, request: SearchRequest) -> Candidates:
        """Return the `request.count` best passages for each query, none of them excluded."""


class BM25Index:
    """BM25 over passages that are lists of words.

    Robertson & Zaragoza 2009, in the variants of Kamphuis et al. 2020 that `bm25s` implements
    ("Which BM25 do you mean?", Table 1); "lucene" has no factor (k1 + 1), "atire" has.

    Args:
        passages: M lists of words.
        k1: saturation of the term frequency.
        b: strength of the length normalisation, 0 to 1.
        method: variant of the inverse document frequency.
    """

    def __init__(
        self,
        passages: Sequence[Sequence[str]],
        *,
        k1: float,
        b: float,
        method: Literal["lucene", "robertson", "atire"],
    ) -> None:
        self.size = len(passages)
        words = dict.fromkeys(word for passage in passages for word in passage)
        self.vocabulary = {word: number for number, word in enumerate(words)}
        ids = [[self.vocabulary[word] for word in passage] for passage in passages]
        self.index: bm25s.BM25 | None = None
        # Here and not above: bm25s imports numba and jax where they are installed.
        import bm25s

        if self.vocabulary:  # without any word there is no mean length to divide by
            self.index = bm25s.BM25(k1=k1, b=b, method=method, dtype="float64")
            # bm25s adds an empty word to the dictionary that it is given
            self.index.index((ids, dict(self.vocabulary)), show_progress=False)

    def scores(self, query: Sequence[str]) -> NDArray[np.float64]:
        """Return the (M,) scores of a query; words that no passage has count nothing."""
        known = [self.vocabulary[word] for word in query if word in self.vocabulary]
        if self.index is None or not known:
            return np.zeros(self.size, dtype=np.float64)
        scores: NDArray[np.float64] = self.index.get_scores_from_ids(known)
        return scores


class BM25(FirstStage):
    """Ranks passages by the words that they share with the query.

    Args:
        k1: saturation of the term frequency; 1.2 and 0.75 are Lucene's.
        b: strength of the length normalisation, 0 to 1.
        method: variant of the inverse document frequency.
        stemmer: language of the Snowball stemmer; None for no stemming.
        stop_words: language of the list of words that are ignored; None keeps all words.

    Raises:
        UserError: a value outside what is legal.
    """

    def __init__(
        self,
        k1: float = 1.2,
        b: float = 0.75,
        method: Literal["lucene", "robertson", "atire"] = "lucene",
        stemmer: str | None = "english",
        stop_words: str | None = "english",
    ) -> None:
        import Stemmer

        if k1 < 0:
            raise UserError(f"BM25: k1 is {k1}; legal: 0 or more")
        if not 0 <= b <= 1:
            raise UserError(f"BM25: b is {b}; legal: 0 to 1")
        if method not in ("lucene", "robertson", "atire"):
            raise UserError(f"BM25: method is {method!r}; legal: lucene, robertson, atire")
        if stemmer is not None and stemmer not in Stemmer.algorithms():
            legal = ", ".join(Stemmer.algorithms())
            raise UserError(f"BM25: stemmer is {stemmer!r}; legal: null, {legal}")
        if stop_words is not None and stop_words not in STOP_WORDS:
            legal = ", ".join(STOP_WORDS)
            raise UserError(f"BM25: stop_words is {stop_words!r}; legal: null, {legal}")
        self.k1 = k1
        self.b = b
        self.method = method
        self.stemmer = stemmer
        self.stop_words = stop_words

    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Return the name, the arguments and the version of bm25s, whose tokeniser is used."""
        import bm25s
        import Stemmer

        return {
            "first_stage": "bm25",
            "k1": self.k1,
            "b": self.b,
            "method": self.method,
            "stemmer": self.stemmer or "",
            "stop_words": self.stop_words or "",
            "bm25s": bm25s.__version__,
            "stemmer_version": Stemmer.version(),
        }

    def search(self, request: SearchRequest) -> Candidates:
        """Return the `request.count` best passages for each query, none of them excluded."""
        index = self._index(request)
        found = _empty(request)
        shown = time.monotonic()
        for row, words in enumerate(self.words(request.queries)):
            scores = index.scores(words).astype(np.float32)
            best = best_rows(scores, request.count, request.exclude[row])
            found.ids[row, : len(best)] = best
            found.scores[row, : len(best)] = scores[best]
            if time.monotonic() - shown > LONG:
                shown = time.monotonic()
                log.info("BM25: %d of %d queries", row + 1, len(request.queries))
        return found

    def _index(self, request: SearchRequest) -> BM25Index | BM25Folder:
        if request.folder is None:
            words = self.words(request.keys)
            return BM25Index(words, k1=self.k1, b=self.b, method=self.method)
        free = ("k1", "b", "method")  # what the words of a passage do not depend on
        key = {name: value for name, value in self.fingerprint().items() if name not in free}
        key["keys"] = request.keys_hash()
        return bm25_folder(
            request.folder,
            key,
            request.keys,
            self.numbered_words,
            k1=self.k1,
            b=self.b,
            method=self.method,
        )

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """Cut texts into lower-case stemmed words of two characters or more."""
        import bm25s

        words: list[list[str]] = bm25s.tokenize(
            list(texts),
            stopwords=self.stop_words or [],
            stemmer=self._stemmer(),
            return_ids=False,
            show_progress=False,
        )
        return words

    def numbered_words(self, texts: Sequence[str]) -> tuple[list[list[int]], list[str]]:
        """Return what `words` does, as numbers of a list of words, and that list."""
        import bm25s

        cut = bm25s.tokenize(
            list(texts),
            stopwords=self.stop_words or [],
            stemmer=self._stemmer(),
            return_ids=True,
            show_progress=False,
        )
        return cut.ids, sorted(cut.vocab, key=cut.vocab.__getitem__)

    def _stemmer(self) -> Stemmer.Stemmer | None:
        import Stemmer

        return None if self.stemmer is None else Stemmer.Stemmer(self.stemmer)


class Random(FirstStage):
    """Offers random passages: what retrieval has to beat.

    Scores are 1 - rank / N, for their order only. A query's draw depends on the seed and on its
    own text, so that it stays when other queries come or go.
    """

    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Return the name; the seed is part of the request."""
        return {"first_stage": "random"}

    def search(self, request: SearchRequest) -> Candidates:
        """Return `request.count` different random passages for each query, none excluded."""
        nothing = np.empty(0, dtype=np.int64)
        return _drawn(request, [nothing] * len(request.queries))


class Oracle(FirstStage):
    """Offers the passages known to be relevant, in random order, then random others.

    Scores are 1 - rank / N, for their order only.
    """

    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Return the name; seed and relevant passages are part of the request."""
        return {"first_stage": "oracle"}

    def search(self, request: SearchRequest) -> Candidates:
        """Return relevant passages, then others, `request.count` in all, none excluded."""
        return _drawn(request, request.relevant)


def best_rows(
    scores: NDArray[np.float32], count: int, exclude: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rows of the `count` largest scores, best first, equal scores by ascending row.

    Args:
        scores: (M,) finite scores.
        count: rows wanted; fewer come when M less the excluded rows is smaller.
        exclude: rows that are left out.
    """
    cost = -scores
    cost[exclude] = np.inf
    count = min(count, int(np.isfinite(cost).sum()))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # The last cost that gets in; of the rows that have exactly it, the first ones do. (numpy finds
    # the n-th smallest of many zeros fifteen times as fast as the n-th largest.)
    last = np.partition(cost, count - 1)[count - 1]
    better = np.flatnonzero(cost < last)
    equal = np.flatnonzero(cost == last)[: count - len(better)]
    better = better[np.argsort(cost[better], kind="stable")]
    return np.concatenate([better, equal])


def _empty(request: SearchRequest) -> Candidates:
    shape = len(request.queries), request.count
    return Candidates(
        ids=np.full(shape, -1, dtype=np.int64),
        scores=np.full(shape, -np.inf, dtype=np.float32),
    )


def _drawn(request: SearchRequest, first: Sequence[NDArray[np.int64]]) -> Candidates:
    """Draw candidates: of each query's `first` as many as fit, then any others."""
    found = _empty(request)
    store, count = len(request.keys), request.count
    descending = 1 - np.arange(count, dtype=np.float32) / count
    for row, query in enumerate(request.queries):
        text = hashlib.sha256(query.encode("utf-8", "surrogatepass")).digest()
        generator = np.random.default_rng([request.seed, int.from_bytes(text[:8], "little")])
        exclude = request.exclude[row]
        chosen = generator.permutation(np.setdiff1d(first[row], exclude))[:count]
        # Enough draws that `count` remain when all excluded and all chosen rows are among them.
        draws = min(store, count + len(exclude) + len(chosen))
        others = generator.choice(store, draws, replace=False)
        others = others[~np.isin(others, np.concatenate([exclude, chosen]))]
        rows = np.concatenate([chosen, others])[:count]
        found.ids[row, : len(rows)] = rows
        found.scores[row, : len(rows)] = descending[: len(rows)]
    return found
