"""Imported once by the parent of all test runs: everything a run would import on its way."""
