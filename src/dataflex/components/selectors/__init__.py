"""Selectors: which rows are drawn next."""
