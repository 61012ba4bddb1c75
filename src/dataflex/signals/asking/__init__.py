"""Requests of components, answered with measurements."""
