"""What a checkpoint holds beside LLaMA-Factory's own files, and what a run must share to go on from it.

checkpoint-<n>/dataflex/
  state.json        format, step, position, global batch, identity of the run, stages, scalars of the components, and whether
                    the Trainer saved the model alone
  arrays.npz        arrays of the components, rows of chosen pools
  ledger.jsonl      the ledger up to this step
  exposure.parquet  rows touched up to this step
  COMPLETE          written last, so its presence means all of it is there (`record/completeness.py`)
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
from dataflex.plan.plan import Stage
from dataflex.record.ledger import DIRECTORY, EXPOSURE, LEDGER
from dataflex.writing import atomically, write_atomically

FORMAT = 2


@dataclass
class Snapshot:
    """step: optimizer steps done. position: samples served. identity: what must not change on resume (flat keys).

    stages: those that serve `position` or a later one; none where LLaMA-Factory orders the rows. components: state by slot.
    extra: the trainer's own scalars and arrays (open sums, last losses). engine, ranks: what the Trainer's own files were saved
    by; None where an older version did not say. model_only: they hold no optimizer.
    """

    step: int
    position: int
    global_batch: int
    identity: dict[str, Any]
    stages: list[Stage]
    components: dict[str, dict[str, Any]]
    extra: dict[str, Any]
    engine: str | None = None
    ranks: int | None = None
    model_only: bool = False


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
        "extra": split("extra", snapshot.extra),
    }
    for stage in snapshot.stages:
        for d, pool in enumerate(stage.pools):
            if pool.ids is not None:
                arrays[f"pools/{pool.key}/{d}"] = _narrow(pool.ids)
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
        if content["format"] != FORMAT:
            raise DataflexError(f"{folder} has state format {content['format']}, this version reads {FORMAT}")
        ledger = (source / LEDGER).read_bytes()
        with np.load(source / "arrays.npz") as stored:
            arrays = dict(stored)
        chosen, components, extra = {}, {k: dict(v) for k, v in content["components"].items()}, dict(content["extra"])
        for name, array in arrays.items():
            kind, *rest = name.split("/", 1 if name.startswith("extra/") else 2)
            if kind == "pools":
                chosen[(int(rest[0]), int(rest[1]))] = array.astype(np.int64, copy=False)
            elif kind == "components":
                components[rest[0]][rest[1]] = array
            else:
                extra[rest[0]] = array
        stages = [Stage.from_json(record, chosen) for record in content["stages"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise DataflexError(f"the dataflex state of {folder} cannot be read: {error}") from error
    return (
        Snapshot(
            step=content["step"],
            position=content["position"],
            global_batch=content["global_batch"],
            identity=content["identity"],
            stages=stages,
            components=components,
            extra=extra,
            engine=content.get("engine"),
            ranks=content.get("ranks"),
            model_only=content.get("model_only", False),
        ),
        ledger,
    )


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
