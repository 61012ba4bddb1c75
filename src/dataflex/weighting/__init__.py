"""Losses and weights of rows, sequences and tokens."""
