"""When components act, and what is measured for them."""

from __future__ import annotations

from dataclasses import dataclass

FORWARD, BOTH = 1.0, 3.0
"""The work of a token: a forward pass, and one with a backward pass."""
_WORK = {"none": 0.0, "text encoder": 0.0, "forward": FORWARD, "forward and backward": BOTH, "generation": FORWARD}


@dataclass(frozen=True)
class Acts:
    """When a component acts."""

    slot: str
    name: str
    steps: tuple[int, ...]
    """The first of the steps before which it acts, at most five."""
    times: int
    """How often in all; of a weighter the steps it weighs."""
    words: str


@dataclass(frozen=True)
class Pass:
    """Something that is measured for a component."""

    slot: str
    component: str
    signal: str
    work: str
    """none, text encoder, forward, forward and backward, generation."""
    times: int
    rows: int | None
    """Of one pass."""
    tokens: float | None
    """Of one pass."""
    disk: int | None
    """Bytes that are kept while a pass is made."""

    @property
    def effort(self) -> float | None:
        """In tokens of a forward pass, over the run."""
        return None if self.tokens is None else self.times * self.tokens * _WORK[self.work]
