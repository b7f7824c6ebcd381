"""Trains and tests many runs from one file, and compares them."""
