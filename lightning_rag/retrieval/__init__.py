"""Retrieval by embeddings: the index and what searches it."""
