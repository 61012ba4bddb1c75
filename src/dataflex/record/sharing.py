"""What runs of a comparison share: their first steps, and what they measure. The comparison says so by the environment.

Two runs whose blocks differ in `select` alone train equally up to their first selection. So the second may begin with a
checkpoint of the first, and a selector of its own that has not acted yet.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.errors import ConfigError
from dataflex.record.snapshot import Snapshot

BRANCHES = "DATAFLEX_BRANCHES"
"""Set: `resume_from_checkpoint` may be of a run with another selector."""
STOPS_AT = "DATAFLEX_STOPS_AT"
"""A step: the run ends once the checkpoint of this step is complete."""
SIGNALS = "DATAFLEX_SHARED_SIGNALS"
"""A folder for values that other runs can take over."""

_OF_SELECTORS = ("dataflex.select.", "content of dataflex.select.")
_OF_OTHER_MODELS = " of select"
_OF_TARGETS = "content of target "


def branches() -> bool:
    return BRANCHES in os.environ


def stops_at() -> int | None:
    step = os.environ.get(STOPS_AT)
    return None if step is None else int(step)


def signals_folder() -> Path | None:
    found = os.environ.get(SIGNALS)
    return Path(found) if found else None


def without_selector(identity: Mapping[str, Any], *, aims_elsewhere: bool) -> dict[str, Any]:
    """What two runs must share that differ in their selector. aims_elsewhere: whether a weighter has the same target."""
    return {
        key: value
        for key, value in identity.items()
        if key != "dataflex.select"
        and not key.startswith(_OF_SELECTORS)
        and not key.endswith(_OF_OTHER_MODELS)
        and (aims_elsewhere or not key.startswith(_OF_TARGETS))
    }


def before_selecting(snapshot: Snapshot, ledger: bytes, folder: Path) -> Snapshot:
    """The snapshot without its selector's state. ConfigError where the selector has acted."""
    if any(json.loads(line)["component"].startswith("select:") for line in ledger.splitlines()):
        raise ConfigError(f"{folder} was saved after a selection, so no run with another selector can begin with it")
    left = {slot: state for slot, state in snapshot.components.items() if slot != "select"}
    return dataclasses.replace(snapshot, components=left)
