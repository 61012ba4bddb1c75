"""Computations that several components share."""
