"""First-stage retrieval by the embeddings of a frozen encoder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from lightning_rag.backbones.config import EncoderConfig, Role
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.data.cache import cached, hash_texts
from lightning_rag.data.candidates import Candidates, FirstStage, SearchRequest
from lightning_rag.data.keys import sampled
from lightning_rag.errors import UserError
from lightning_rag.retrieval.index import PassageIndex
from lightning_rag.retrieval.index_folder import index_folder
from lightning_rag.retrieval.vector_folder import VectorFolder, VectorType, nearest, vector_folder
from lightning_rag.types import Rendered

log = logging.getLogger(__name__)


class Dense(FirstStage):
    """Ranks passages by the inner product of embeddings; the cosine if the encoder normalises.

    The encoder is never trained here. One of source "tiny" has random weights drawn from the
    request's seed, and a tokeniser trained on the passages.

    Args:
        encoder: what the encoder is made of.
        factory: FAISS index factory string; "Flat" is exact search.
        search_parameters: FAISS search-time parameters, such as "nprobe=16" for an IVF index.
        batch_size: texts encoded at once.
        cache_dir: folder that keeps the embeddings of the passages between runs; None keeps them
            in this process only. The data module keeps the candidates in either case. A store on
            disk keeps its embeddings there, whatever is given.
        vector_type: how numbers are kept for a store on disk: "float32" (None), or "float16", which
            takes half the room; of no effect on one in memory.

    Raises:
        UserError: `batch_size` below 1, or an unknown `vector_type`.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        factory: str = "Flat",
        search_parameters: str = "",
        batch_size: int = 64,
        cache_dir: str | None = None,
        vector_type: VectorType | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"Dense: batch_size is {batch_size}; legal: 1 or more")
        if vector_type is not None and vector_type not in get_args(VectorType):
            legal = ", ".join(get_args(VectorType))
            raise UserError(f"Dense: vector_type is {vector_type!r}; legal: {legal}")
        self.vector_type: VectorType = vector_type or "float32"
        self.encoder = encoder
        self.factory = factory
        self.search_parameters = search_parameters
        self.batch_size = batch_size
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._pretrained: Encoder | None = None
        self._keys: tuple[str, Tensor] | None = None  # hash of encoder and keys; embeddings

    def fingerprint(self) -> dict[str, str | int | float | bool]:
        """Return the name, the index and the encoder: its weights, where they come from a file."""
        if self.encoder.source == "tiny":  # its weights follow from the request
            model = json.dumps(self.encoder.identity(), sort_keys=True)
        else:
            model = self._loaded().fingerprint()
        found: dict[str, str | int | float | bool] = {
            "first_stage": "dense",
            "encoder": model,
            "factory": self.factory,
            "search_parameters": self.search_parameters,
        }
        # Not where it is the default: candidates of former versions stay known.
        return found if self.vector_type == "float32" else {**found, "vectors": self.vector_type}

    def search(self, request: SearchRequest) -> Candidates:
        """Return the `request.count` nearest passages of each query, none of them excluded."""
        encoder = self._for(request)
        cut = encoder.truncated
        encoder.to("cuda" if torch.cuda.is_available() else "cpu")
        try:
            if request.folder is None:
                keys = self._embed_keys(encoder, request.keys)  # (M, D)
                queries = self._embed_queries(encoder, request, keys)  # (Q, D)
            else:
                stored = self._store_keys(encoder, request, request.folder)
                queries = self._embed(encoder, request.queries, "query")
        finally:
            encoder.to("cpu")  # the device is for training
        if encoder.truncated > cut:
            log.warning(
                "%d texts are longer than the encoder's %d tokens and were cut",
                encoder.truncated - cut,
                self.encoder.max_length,
            )
        if request.folder is None:
            index = PassageIndex(keys.shape[1], self.factory, self.search_parameters)
            index.build(keys)
            scores, rows = index.search(queries, request.count, exclude=request.exclude)
        elif self.factory == "Flat":
            blocks = stored.blocks()
            scores, rows = nearest(blocks, queries, request.count, exclude=request.exclude)
        else:
            key = self._key(encoder, request)
            sharded = index_folder(
                request.folder, key, stored, self.factory, self.search_parameters
            )
            scores, rows = sharded.search(queries, request.count, exclude=request.exclude)
        return Candidates(ids=rows.numpy(), scores=scores.numpy())

    def _for(self, request: SearchRequest) -> Encoder:
        if self.encoder.source != "tiny":
            return self._loaded()
        # The tiny encoder's weights come from torch's global generator, which is put back after.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            known = request.keys if request.folder is None else sampled(request.keys)
            return build_encoder(self.encoder, known).eval()

    def _loaded(self) -> Encoder:
        if self._pretrained is None:
            # Rows of extra tokens are drawn. They are part of the fingerprint, so they must not
            # hang on what was drawn before.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self._pretrained = build_encoder(self.encoder, ()).eval()
        return self._pretrained

    def _embed_keys(self, encoder: Encoder, keys: Sequence[str]) -> Tensor:
        """Embed the passages, unless that was done before: every split asks the same store."""
        key: dict[str, str | int | float | bool] = {
            "embeddings": "dense",
            "encoder": encoder.fingerprint(),
            "texts": hash_texts(keys),
        }
        name = json.dumps(key)
        if self._keys is None or self._keys[0] != name:
            if self.cache_dir is None:
                vectors = self._embed(encoder, keys, "passage")
            else:
                arrays = cached(
                    self.cache_dir / "embeddings",
                    key,
                    lambda: {"vectors": self._embed(encoder, keys, "passage").numpy()},
                )
                vectors = torch.from_numpy(arrays["vectors"])
            self._keys = name, vectors
        return self._keys[1]

    def _key(self, encoder: Encoder, request: SearchRequest) -> dict[str, str | int | float | bool]:
        """Return what embeddings on disk depend on."""
        identity = {"embeddings": "dense", "encoder": encoder.fingerprint()}
        return {**identity, "texts": request.keys_hash(), "vectors": self.vector_type}

    def _store_keys(self, encoder: Encoder, request: SearchRequest, folder: Path) -> VectorFolder:
        """Embed the passages onto the disk, unless that was done before."""
        return vector_folder(
            folder,
            self._key(encoder, request),
            request.keys,
            encoder.dimension,
            lambda texts: self._embed(encoder, texts, "passage"),
            kind=self.vector_type,
        )

    def _embed_queries(self, encoder: Encoder, request: SearchRequest, keys: Tensor) -> Tensor:
        """Embed the queries; a training query is often a passage's text, and embedded already."""
        rows = {}
        if encoder.config.query_prefix == encoder.config.passage_prefix:
            rows = {text: row for row, text in enumerate(request.keys)}
        fresh = [text for text in dict.fromkeys(request.queries) if text not in rows]
        rows.update({text: len(keys) + number for number, text in enumerate(fresh)})
        if fresh:
            keys = torch.cat([keys, self._embed(encoder, fresh, "query")])
        return keys[[rows[text] for text in request.queries]]

    def _embed(self, encoder: Encoder, texts: Sequence[str], role: Role) -> Tensor:
        """Embed texts, each distinct one once.

        Returns:
            (len(texts), D) float32.
        """
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        log.info("encoding %d texts (%d distinct)", len(texts), len(numbers))
        distinct = encoder.encode([Rendered(text) for text in numbers], self.batch_size, role=role)
        return distinct[[numbers[text] for text in texts]]
