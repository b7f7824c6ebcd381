"""Encoders and generators: every method gets its models here and nowhere else."""
