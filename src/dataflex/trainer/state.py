"""What a checkpoint holds beside LLaMA-Factory's own files, and which checkpoint is fit to resume from.

checkpoint-<n>/dataflex/
  state.json        format, step, position, global batch, identity of the run, stages, scalars of the components, and whether
                    the Trainer saved the model alone
  arrays.npz        arrays of the components, rows of chosen pools
  ledger.jsonl      the ledger up to this step
  exposure.parquet  rows touched up to this step
  COMPLETE          name and size of every file of the checkpoint; written last, so its presence means all of it is there
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dataflex.errors import ConfigError, DataflexError
from dataflex.trainer.ledger import DIRECTORY, EXPOSURE, LEDGER
from dataflex.trainer.plan import Stage
from dataflex.writing import atomically, write_atomically

FORMAT = 2
MARK = "COMPLETE"
_FOREIGN = "it holds no dataflex state"
_MODEL_ONLY = "it was saved with save_only_model, so there is no optimizer to go on with"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")


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


def mark_complete(folder: Path) -> None:
    """Write the mark, once every other file of the checkpoint is on disk."""
    files = {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MARK and not p.name.endswith(".partial")
    }
    write_atomically(folder / DIRECTORY / MARK, json.dumps(files, indent=1).encode())


def what_is_missing(folder: Path) -> str | None:
    """Why a checkpoint is not fit to resume from (one phrase), or None if it is complete."""
    if not folder.is_dir():
        return "there is no such directory"
    mark = folder / DIRECTORY / MARK
    if not mark.is_file():
        if not (folder / DIRECTORY).is_dir():
            return _FOREIGN
        return "saving it was never finished"
    try:
        files = dict(json.loads(mark.read_text()).items())
    except (OSError, ValueError, AttributeError):
        return "its completeness mark cannot be read"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return _MODEL_ONLY if _model_only(folder) else None


def _model_only(folder: Path) -> bool:
    """Of a complete checkpoint."""
    try:
        return bool(json.loads((folder / DIRECTORY / "state.json").read_text()).get("model_only"))
    except (OSError, ValueError, AttributeError):  # reading it says what is wrong with it
        return False


def complete_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a run that are marked as complete, by step, the newest first."""
    return [(step, path) for step, path in _checkpoints(output_dir) if what_is_missing(path) is None]


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    if not output_dir.is_dir():
        return []
    return sorted(
        ((int(m.group(1)), p) for p in output_dir.iterdir() if (m := _CHECKPOINT.match(p.name)) and p.is_dir()),
        reverse=True,
    )


def newest_complete(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run, and a line about each newer one that is passed over.

    ConfigError if there are checkpoints but none that a dynamic run wrote, or none but those of models alone: starting over
    would overwrite them.
    """
    passed_over: list[str] = []
    reasons: list[str] = []
    for _, path in _checkpoints(output_dir):
        reason = what_is_missing(path)
        if reason is None:
            return path, passed_over
        reasons.append(reason)
        passed_over.append(f"{path} is not complete ({reason}); an older checkpoint is used")
    if _MODEL_ONLY in reasons:
        raise ConfigError(
            f"output_dir: the checkpoints in {output_dir} were saved with save_only_model and cannot be resumed from;"
            " change output_dir, or set overwrite_output_dir to start over"
        )
    if reasons and set(reasons) == {_FOREIGN}:
        raise ConfigError(
            f"output_dir: the checkpoints in {output_dir} were not written by a run with a dataflex block;"
            " change output_dir or set overwrite_output_dir"
        )
    return None, [line.replace("an older checkpoint is used", "the run starts over") for line in passed_over]


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
