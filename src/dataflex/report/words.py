"""Numbers and texts as people read them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

NONE = "-"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """With `digits` behind the point; very large and very small ones in powers of ten."""
    if value is None or value != value:
        return NONE
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    return f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    if share is None or share != share:
        return NONE
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m" if hours else f"{minutes} m {rest:02d} s"


def shares(counts: Mapping[str, float], most: int = 6) -> str:
    """ "a 90 % b 10 %", the largest first."""
    total = sum(counts.values())
    ranked = sorted(((n, name) for name, n in counts.items() if n), reverse=True)
    shown = [f"{name} {100 * n / total:.0f} %" for n, name in ranked[:most]]
    more = len(ranked) - len(shown)
    return " ".join(shown) + (f" and {more} more" if more else "") if shown else NONE


def visible(text: str) -> str:
    """A text in which nothing is hidden: control and format characters stand as their codes. Lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else f"\\u{ord(c):04x}" for c in text)


_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn")
