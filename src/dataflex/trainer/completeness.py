"""Which checkpoints are whole: the mark that is written last, and what is checked against it before a run goes on.

The mark, `checkpoint-<n>/dataflex/COMPLETE`, holds the size and the xxh3_128 hash of every other file of the checkpoint. Marks of
earlier versions hold sizes alone, and are checked by these. `dataflex/` itself is made before anything else of a checkpoint: one
without it was written by another program.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from dataflex.errors import ConfigError
from dataflex.trainer.ledger import DIRECTORY
from dataflex.writing import PARTIAL, sync, sync_folder, write_atomically

MARK = "COMPLETE"
_FOREIGN = "it holds no dataflex state"
_MODEL_ONLY = "it was saved with save_only_model, so there is no optimizer to go on with"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_HASH = "xxh3_128"
_BLOCK = 1 << 24  # bytes hashed at once


def begin_checkpoint(folder: Path) -> None:
    """Make the directory of a checkpoint, with nothing in it but the sign that it is ours. What an earlier save of the same step
    has left there is removed. Raises OSError."""
    ours = folder / DIRECTORY
    if ours.is_dir() and not ours.is_symlink():
        (ours / MARK).unlink(missing_ok=True)  # first of all: from here on it is not whole
        for path in (*(p for p in folder.iterdir() if p != ours), *ours.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    ours.mkdir(parents=True, exist_ok=True)
    for parent in (folder, folder.parent):
        sync_folder(parent)


def mark_complete(folder: Path) -> None:
    """Write the mark, once every other file of the checkpoint is on disk. Raises OSError."""
    files = {str(path.relative_to(folder)): _seal(path) for path in _files(folder)}
    for directory in (*(p for p in folder.rglob("*") if p.is_dir()), folder, folder.parent):
        sync_folder(directory)
    write_atomically(folder / DIRECTORY / MARK, json.dumps(files, indent=1).encode())


def what_is_missing(folder: Path) -> str | None:
    """Why a checkpoint is not fit to resume from (one phrase), or None if all its files are there in their sizes."""
    if not folder.is_dir():
        return "there is no such directory"
    if not (folder / DIRECTORY / MARK).is_file():
        if not (folder / DIRECTORY).is_dir():
            return _FOREIGN
        return "saving it was never finished"
    files = _read_mark(folder)
    if files is None:
        return "its completeness mark cannot be read"
    for name, (size, _) in files.items():
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


def what_is_damaged(folder: Path) -> str | None:
    """As `what_is_missing`, and whether every file holds what was saved. Reads all of it: seconds per 10 GB at best."""
    if (reason := what_is_missing(folder)) is not None:
        return reason
    for name, (_, digest) in (_read_mark(folder) or {}).items():
        try:
            if digest is not None and hash_file(folder / name) != digest:
                return f"{name} does not hold what was saved"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def hash_file(path: Path) -> str:
    """xxh3_128 of a file's content. Raises OSError."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def complete_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a run that are marked as complete, by step, the newest first."""
    return [(step, path) for step, path in _checkpoints(output_dir) if what_is_missing(path) is None]


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


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    if not output_dir.is_dir():
        return []
    return sorted(
        ((int(m.group(1)), p) for p in output_dir.iterdir() if (m := _CHECKPOINT.match(p.name)) and p.is_dir()),
        reverse=True,
    )


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / DIRECTORY / MARK and not path.name.endswith(PARTIAL):
            yield path


def _seal(path: Path) -> dict[str, Any]:
    """Put a file on disk, and say what it holds."""
    sync(path)
    return {"size": path.stat().st_size, _HASH: hash_file(path)}


def _read_mark(folder: Path) -> dict[str, tuple[int, str | None]] | None:
    """Size and hash of every file; None where the mark makes no sense."""
    try:
        found = json.loads((folder / DIRECTORY / MARK).read_text())
        return {
            name: (said, None) if isinstance(said, int) else (int(said["size"]), str(said[_HASH]))
            for name, said in found.items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
