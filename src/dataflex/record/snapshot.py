"""What a checkpoint holds beside LLaMA-Factory's own files, and what a resumed run must share with it.

checkpoint-<n>/dataflex/
  state.json        what `Snapshot` holds, without arrays
  arrays.npz        its arrays, the rows of chosen pools, and those of a course
  ledger.jsonl      the ledger up to this step
  exposure.parquet  rows touched up to this step
  COMPLETE          written last, so its presence means all of it is there (`record/completeness.py`)

The state of a part of the trainer is what its `state_dict` gives:

  serving    served              rows of each domain
             streams             by stream, its position and the samples taken of its block
  ordering   scores              of all rows, as last measured
  observing  sums                of losses by domain, since the last update
  mixing     amounts             what was served since the last update
             amounts_decided     what was served since the last update with a decision
             asked               the proportions asked for
             loss_weights, trained_tokens, trained_amounts: see `weighting/domain_weights.py`
  weights    by level            losses, ids and signals of the comparison batch
             aimed <slot>        the step at which a target was last given to a weighter

Format 2 held the states of all parts in one dictionary, `extra`. It is still read (`parts_of_extra`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.stages import OF_POOLS, Stage
from dataflex.record.ledger import DIRECTORY, EXPOSURE, LEDGER
from dataflex.writing import atomically, write_atomically

FORMAT = 3


@dataclass
class Snapshot:
    """What a checkpoint holds in files of ours, but for the ledger and the exposure."""

    step: int
    """Optimizer steps done."""
    position: int
    """Samples served."""
    global_batch: int
    """Rows of an optimizer step."""
    identity: dict[str, Any]
    """The identity of the run, as flat keys."""
    stages: list[Stage]
    """The stages from `position` on; none where LLaMA-Factory orders the rows."""
    components: dict[str, dict[str, Any]]
    """State of each component, by slot."""
    parts: dict[str, dict[str, Any]]
    """State of each part of the trainer, by its name."""
    engine: str | None = None
    """The engine that saved the Trainer's own files; None in checkpoints of older versions."""
    ranks: int | None = None
    """The number of ranks that saved them; None as above."""
    model_only: bool = False
    """Whether the checkpoint holds no optimizer."""


def write_snapshot(folder: Path, snapshot: Snapshot, ledger: bytes | bytearray) -> None:
    """Write all but the exposure and the completeness mark."""
    arrays: dict[str, np.ndarray] = {}

    def split(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                arrays[f"{prefix}/{name}"] = value
            else:
                plain[name] = value.item() if isinstance(value, np.generic) else value
        return plain

    content = {
        "format": FORMAT,
        "step": snapshot.step,
        "position": snapshot.position,
        "global_batch": snapshot.global_batch,
        "engine": snapshot.engine,
        "ranks": snapshot.ranks,
        "model_only": snapshot.model_only,
        "identity": snapshot.identity,
        "stages": [stage.to_json() for stage in snapshot.stages],
        "components": {slot: split(f"components/{slot}", state) for slot, state in snapshot.components.items()},
        "parts": {name: split(f"parts/{name}", state) for name, state in snapshot.parts.items()},
    }
    for stage in snapshot.stages:
        for (what, key, d), rows in stage.arrays().items():
            arrays[f"{what}/{key}/{d}"] = _narrow(rows)
    target = folder / DIRECTORY
    with atomically(target / "arrays.npz") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    write_atomically(target / LEDGER, ledger)
    write_atomically(target / "state.json", json.dumps(content, indent=1).encode())


def read_snapshot(folder: Path) -> tuple[Snapshot, bytes]:
    """The snapshot and the ledger text of a checkpoint. Raises DataflexError if it cannot be read."""
    source = folder / DIRECTORY
    try:
        content = json.loads((source / "state.json").read_text())
        if content["format"] not in (2, FORMAT):
            raise DataflexError(f"{folder} has state format {content['format']}, this version reads {FORMAT}")
        ledger = (source / LEDGER).read_bytes()
        with np.load(source / "arrays.npz") as stored:
            arrays = dict(stored)
        # Arrays are named by their owner: <what>/<key>/<index> of a pool, components/<slot>/<name>, parts/<part>/<name>.
        of_pools: dict[tuple[str, int, int], np.ndarray] = {}
        states = {kind: {k: dict(v) for k, v in content.get(kind, {}).items()} for kind in ("components", "parts")}
        extra = dict(content.get("extra", {}))
        for name, array in arrays.items():
            kind, _, rest = name.partition("/")
            owner, _, key = rest.partition("/")
            if kind in OF_POOLS:
                of_pools[kind, int(owner), int(key)] = array.astype(np.int64, copy=False)
            elif kind == "extra":
                extra[rest] = array
            else:
                states[kind][owner][key] = array
        # Format 2 had no parts.
        parts = states["parts"] if content["format"] == FORMAT else parts_of_extra(extra)
        stages = [Stage.from_json(record, of_pools) for record in content["stages"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise DataflexError(f"the dataflex state of {folder} cannot be read: {error}") from error
    return (
        Snapshot(
            step=content["step"],
            position=content["position"],
            global_batch=content["global_batch"],
            identity=content["identity"],
            stages=stages,
            components=states["components"],
            parts=parts,
            engine=content.get("engine"),
            ranks=content.get("ranks"),
            model_only=content.get("model_only", False),
        ),
        ledger,
    )


_MIXING = ("amounts", "amounts_decided", "asked", "loss_weights", "trained_tokens", "trained_amounts")


def parts_of_extra(extra: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The states of the parts in a checkpoint of format 2."""
    left = dict(extra)
    serving: dict[str, Any] = {k: left.pop(k) for k in ("served", "streams") if k in left}
    observing = {"sums": left.pop("sums")}
    mixing: dict[str, Any] = {k: left.pop(k) for k in _MIXING if k in left}
    if "served_before" in left:  # at the last update
        mixing["rows_since_update"] = np.asarray(serving["served"]) - left.pop("served_before")
    return {"serving": serving, "observing": observing, "mixing": mixing, "weights": left}


def _narrow(ids: np.ndarray) -> np.ndarray:
    """Ids in as many bytes as they need."""
    return ids.astype(np.int32) if len(ids) and ids.max() < 1 << 31 else ids


def check_identity(saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError naming the first key on which a checkpoint and this run differ."""
    for key in [*current, *(k for k in saved if k not in current)]:
        if saved.get(key) != current.get(key):
            raise ConfigError(
                f"cannot resume from {folder}: {key} was {_shown(saved.get(key))} there and is {_shown(current.get(key))} now"
            )


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def exposure_path(folder: Path) -> Path:
    return folder / DIRECTORY / EXPOSURE
