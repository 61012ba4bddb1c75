"""Writes the selection of `select`."""
