"""Metrics: plain functions, equal to the official scorers, and torchmetrics classes over them.

Every class is updated with a method's `Predictions` and the `RagBatch` that they answer, and
computes a dictionary of scalars under their logged names, which a `MetricCollection` flattens.
"""
