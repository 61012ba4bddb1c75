"""LESS on representatives of clusters: the selector, and the ways to make clusters."""

from dataflex.components.selectors.cluster_less.cluster_less import ClusterLessSelector

__all__ = ["ClusterLessSelector"]
