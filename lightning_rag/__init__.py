"""Train and fairly compare the ways of training a retriever and a generator together."""

__version__ = "0.1.0"
