"""Lines for the user that are no errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def say(lines: Sequence[str]) -> None:
    """Show lines once, from rank 0."""
    if os.getenv("RANK", "0") == "0":
        for line in lines:
            print(f"dataflex: {line}", file=sys.stderr, flush=True)
