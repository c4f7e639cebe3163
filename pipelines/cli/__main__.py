"""`python -m pipelines.cli` is `sdjax`."""

from pipelines.cli import program

program()
