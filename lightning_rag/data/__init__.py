"""Data sets, passage store, first-stage candidates and the data module that joins them."""
