"""COINCIDE: the selector, its clusters, and how rows are taken from them."""

from dataflex.components.selectors.coincide.coincide import CoincideSelector

__all__ = ["CoincideSelector"]
