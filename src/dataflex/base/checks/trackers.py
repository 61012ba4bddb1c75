"""Trackers that `report_to` names."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from dataflex.config.llamafactory.known import KnownKeys
from dataflex.errors import nearest
from dataflex.values import words


def refused_trackers(given: Any, known: KnownKeys) -> Iterator[str]:
    """What transformers finds out once the model is there: a tracker that it does not know, or that is not installed."""
    for name in words(given):
        if name in ("all", "none"):
            continue
        if name not in known.trackers:
            yield f"report_to: unknown tracker {name!r}{nearest(name, [*known.trackers, 'all', 'none'])}"
            continue
        if not known.imports:
            continue
        from transformers.integrations import integration_utils

        available = getattr(integration_utils, f"is_{_AVAILABLE.get(name, name)}_available")
        if not available():
            yield f"report_to: {name} is not installed; install it, or leave it out"
        elif fault := _broken(name):
            yield f"report_to: {fault}"


_AVAILABLE = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}


def _broken(name: str) -> str | None:
    """Why an installed tracker does not work with the callback of transformers."""
    if name != "swanlab":
        return None
    # From 0.8 on get_run raises where there is no run yet, which the callback asks for first; up to 0.7 it gave None.
    found = version("swanlab")
    if tuple(int(part) for part in found.split(".")[:2] if part.isdecimal()) < (0, 8):
        return None
    return f"swanlab {found} fails in the callback of transformers; install 'swanlab<0.8', or set use_swanlab instead"
