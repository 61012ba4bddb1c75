"""What a selection before training comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Source:
    """A data set that was selected from.

    stored: its rows as they were read (a Hugging Face Dataset). attributes: how LLaMA-Factory reads it (DatasetAttr). places: of
    the rows that can be chosen, their places in `stored`, int64[n]. numbers: the numbers of those rows as they are stored.
    """

    name: str
    stored: Any
    attributes: Any
    places: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """sources: laid end to end they are the rows 0..N-1. chosen: ids, int64[budget], in the order of the selector. scores:
    float64[N], NaN: none. text: id -> what a row says. notes: lines for the summary."""

    sources: list[Source]
    selector: str
    chosen: np.ndarray
    scores: np.ndarray
    text: Callable[[int], str]
    notes: list[str]
