"""Files of the project that come with the package, though they do not lie in it: `examples` and `constraints.txt`.

In a checkout they are at its root. `setup.py` copies them into the package when a wheel is built.
"""

from __future__ import annotations

from pathlib import Path

from dataflex.errors import DataflexError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "shipped_files", _PACKAGE.parent.parent)


def shipped(name: str) -> Path:
    """The file or folder of that name. DataflexError if this installation lacks it."""
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    raise DataflexError(f"{name} is not part of this installation of dataflex; install it again")
