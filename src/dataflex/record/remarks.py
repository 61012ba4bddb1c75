"""What components remark on while a run decides: lines for people."""

from __future__ import annotations

from collections.abc import Mapping

from dataflex.notices import say


class Remarks:
    """Collects remarks until the decision they belong to is recorded, and shows the first under each name, from rank 0."""

    def __init__(self) -> None:
        self._pending: dict[str, str] = {}
        self._shown: set[tuple[str, str]] = set()

    def add(self, source: str, remarks: Mapping[str, str]) -> None:
        """source: the component, as the ledger calls it."""
        for name, line in remarks.items():
            self._pending[name] = line
            if (source, name) not in self._shown:
                say(f"{source}: {line}")
            self._shown.add((source, name))

    def take(self) -> dict[str, str]:
        """Those since the last call."""
        taken, self._pending = self._pending, {}
        return taken
