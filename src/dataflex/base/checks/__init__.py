"""Checks before a model is loaded."""
