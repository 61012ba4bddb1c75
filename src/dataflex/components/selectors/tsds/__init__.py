"""TSDS: the selector, the transport problem that it solves, and the density of candidates."""

from dataflex.components.selectors.tsds.tsds import TsdsSelector, scale

__all__ = ["TsdsSelector", "scale"]
