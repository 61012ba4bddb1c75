"""The paper that a component follows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A reference, as it is printed."""

    authors: str
    """The first author and `et al.`"""
    title: str
    arxiv: str = ""
    """Its number there, such as 2402.04333."""
    venue: str = ""
    """Conference and year."""

    def __str__(self) -> str:
        places = [f"arXiv {self.arxiv}" if self.arxiv else "", self.venue]
        return f'{self.authors}, "{self.title}" ({", ".join(place for place in places if place)})'
