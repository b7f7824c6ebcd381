"""Compares finished runs: reads their files alone, and writes one report."""
