"""How numbers are written for people."""

from __future__ import annotations

from collections.abc import Sequence


def amount(count: float) -> str:
    """12,000; from a million on 5.1 M, 494 M, 1.2 B, 3.0 T."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {letter}" if count < 1000 * size else f"{count / size:,.0f} {letter}"
    return f"{count:,.0f}"


def percent(share: float) -> str:
    """94 %, and `<1 %` for what is more than nothing."""
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def fraction(value: float, digits: int = 2) -> str:
    """.24 or 1.00."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def duration(seconds: float) -> str:
    """0.4 s, 48 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counted(count: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str], *, apart: str = "  ", most: int = 6, room: int | None = None) -> str:
    """Up to `most` items, and how many more there are. room: characters that the text may take, if one item leaves as many."""
    shown = min(most, len(items))
    while True:
        rest = len(items) - shown
        text = apart.join([*items[:shown], *([f"and {rest} more"] if rest else [])])
        if room is None or len(text) <= room or shown <= 1:
            return text
        shown -= 1
