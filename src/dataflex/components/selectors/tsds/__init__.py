"""TSDS: the selector, the transport problem that it solves, the density of candidates, and the scale of distances."""

from dataflex.components.selectors.tsds.scale import scale
from dataflex.components.selectors.tsds.tsds import TsdsSelector

__all__ = ["TsdsSelector", "scale"]
