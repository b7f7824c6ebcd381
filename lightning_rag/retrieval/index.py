"""The passage index: nearest neighbours by inner product, over FAISS."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_rag.errors import UserError

log = logging.getLogger(__name__)


class MissingFaissError(UserError, ImportError):
    """FAISS is not installed, or cannot be loaded."""


try:
    import faiss
except ImportError as error:
    raise MissingFaissError(
        "dense retrieval needs FAISS, which comes with one of two extras, never both: "
        "pip install 'lightning_rag[cpu]' (faiss-cpu) or "
        f"pip install 'lightning_rag[gpu]' (faiss-gpu, CUDA 12); the import said: {error}"
    ) from error

BLOCK = 1024  # queries searched at once: a block fetches as many rows as its worst query needs


class PassageIndex:
    """The embeddings of M passages, searched by inner product.

    With embeddings of unit length this is the cosine. On a GPU where FAISS has one.

    Args:
        dimension: D, the width of the embeddings.
        factory: FAISS index factory string; "Flat" is exact search. An index of another kind
            (such as "IVF64,Flat") may miss neighbours and may find fewer than asked for.
        search_parameters: FAISS search-time parameters, such as "nprobe=16"; "" for the defaults.

    Raises:
        UserError: FAISS does not understand one of the two strings.
    """

    def __init__(self, dimension: int, factory: str = "Flat", search_parameters: str = "") -> None:
        self.dimension = dimension
        self.factory = factory
        self.search_parameters = search_parameters
        self._index = self._create()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def build(self, vectors: Tensor) -> None:
        """Replace what is in the index by new embeddings, training it if its kind needs that.

        Args:
            vectors: (M, D) embeddings; their order gives the rows.

        Raises:
            ValueError: another shape, or a value that is not finite.
            UserError: too few embeddings to train this kind of index.
        """
        array = self._checked("vectors", vectors)
        self._index = self._create()
        try:
            if not self._index.is_trained:
                self._index.train(array)
            self._index.add(array)
        except RuntimeError as error:
            raise UserError(
                f"FAISS cannot build an index {self.factory!r} from {len(array)} embeddings "
                f"({faiss_reason(error)}); 'Flat' works for any number"
            ) from error

    def search(
        self, queries: Tensor, k: int, *, exclude: Sequence[NDArray[np.int64]] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the k nearest passages of each query, best first.

        Equal scores stand in the order of the rows; which of several passages with the score of
        the last place gets it is up to FAISS.

        Args:
            queries: (B, D) embeddings.
            k: passages for each query.
            exclude: for each query the rows that it must not get; None for none. It has to be
                written out, because a training query must never retrieve itself.

        Returns:
            Scores (B, k) float32, padded with -inf, and rows (B, k) long, padded with -1, both on
            the CPU. There is padding where fewer than k passages are allowed, or were found.

        Raises:
            UserError: k below 1 or above the number of passages.
            ValueError: another shape, a value that is not finite, or not one `exclude` per query.
        """
        if not 1 <= k <= len(self):
            raise UserError(f"{k} neighbours from an index of {len(self)} passages; legal: 1 to M")
        array = self._checked("queries", queries)
        if exclude is not None and len(exclude) != len(array):
            raise ValueError(f"{len(exclude)} lists of excluded rows for {len(array)} queries")
        scores = np.full((len(array), k), -np.inf, dtype=np.float32)
        rows = np.full((len(array), k), -1, dtype=np.int64)
        for start in range(0, len(array), BLOCK):
            block = slice(start, start + BLOCK)
            gone = None if exclude is None else exclude[block]
            scores[block], rows[block] = self._search_block(array[block], k, gone)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def _search_block(
        self, queries: NDArray[np.float32], k: int, exclude: Sequence[NDArray[np.int64]] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Fetch so many more rows than k that k remain when all excluded ones are dropped."""
        most = max((len(gone) for gone in exclude), default=0) if exclude is not None else 0
        fetched = min(k + most, len(self))
        scores, rows = self._index.search(queries, fetched)  # both (b, k + most)
        dropped = rows < 0
        for query, gone in enumerate(exclude or ()):
            if len(gone):
                dropped[query] |= np.isin(rows[query], gone)
        scores[dropped] = -np.inf
        rows[dropped] = -1
        order = np.lexsort((rows, -scores))[:, :k]  # last key first: by score, then by row
        padding = ((0, 0), (0, k - order.shape[1]))
        return (
            np.pad(np.take_along_axis(scores, order, axis=1), padding, constant_values=-np.inf),
            np.pad(np.take_along_axis(rows, order, axis=1), padding, constant_values=-1),
        )

    def _create(self) -> faiss.Index:
        """Return an empty index."""
        index = new_index(self.dimension, self.factory)
        set_parameters(index, self.factory, self.search_parameters)
        return _on_gpu(index) if faiss.get_num_gpus() > 0 else index

    def _checked(self, name: str, vectors: Tensor) -> NDArray[np.float32]:
        """Return embeddings as FAISS reads them."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(
                f"{name} must have shape (n, {self.dimension}), got {tuple(vectors.shape)}"
            )
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        array: NDArray[np.float32] = vectors.detach().to("cpu", torch.float32).contiguous().numpy()
        return array


def new_index(dimension: int, factory: str) -> faiss.Index:
    """Return an empty index for inner products.

    Args:
        dimension: D, the width of the embeddings.
        factory: FAISS index factory string.

    Raises:
        UserError: FAISS does not understand the string.
    """
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"FAISS cannot make an index {factory!r} for inner products in {dimension} dimensions "
            f"({faiss_reason(error)}); legal are the index factory strings of FAISS, such as "
            "'Flat', 'IVF64,Flat' or 'HNSW32'"
        ) from error


def set_parameters(index: faiss.Index, factory: str, parameters: str) -> None:
    """Set search-time parameters of an index.

    Args:
        index: on the CPU.
        factory: the string that it was made of, for messages.
        parameters: such as "nprobe=16"; "" for the defaults.

    Raises:
        UserError: FAISS does not understand the parameters.
    """
    if not parameters:
        return
    try:
        # FAISS's own annotation knows the C variant only.
        faiss.ParameterSpace().set_index_parameters(index, parameters)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise UserError(
            f"FAISS cannot set {parameters!r} on an index {factory!r} ({faiss_reason(error)}); "
            "legal is <name>=<number>, such as 'nprobe=16' for IVF"
        ) from error


def _on_gpu(index: faiss.Index) -> faiss.Index:
    """Move an empty index to the first GPU; the kinds without a GPU form (HNSW) stay here."""
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError as error:
        log.info("this kind of index stays on the CPU: %s", faiss_reason(error))
        return index


def faiss_reason(error: RuntimeError) -> str:
    """Return what FAISS says, without the place in its source."""
    return str(error).rsplit(": ", maxsplit=1)[-1].strip()
