"""Tasks: how an instance becomes text, how an output becomes an answer, and what is measured."""
