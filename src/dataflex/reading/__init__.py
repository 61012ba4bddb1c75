"""Reads the files of runs, finished or not, and of selections before training. Nothing is loaded but numbers and text."""

from dataflex.reading.run import Run, open_runs

__all__ = ["Run", "open_runs"]
