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
from itertools import count
from pathlib import Path
from typing import Any

import xxhash

from dataflex.errors import ConfigError
from dataflex.record.ledger import DIRECTORY
from dataflex.writing import PARTIAL, sync, sync_folder, write_atomically

MARK = "COMPLETE"
_UNFINISHED = "saving it was never finished"
_FOREIGN = "it holds no dataflex state"
_MODEL_ONLY = "it was saved with save_only_model, so there is no optimizer to go on with"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
_HASH = "xxh3_128"
_BLOCK = 1 << 24  # bytes hashed at once


def begin_checkpoint(folder: Path, *, overwrite: bool = False) -> None:
    """Make the directory of a checkpoint, with nothing in it but the sign that it is ours. What an earlier save of the same step
    has left there is removed. What another program has written there is moved to `other-<its name>` beside it, or removed where
    the output directory may be overwritten. Raises OSError."""
    ours = folder / DIRECTORY
    if ours.is_dir() and not ours.is_symlink():
        (ours / MARK).unlink(missing_ok=True)  # first of all: from here on it is not whole
        for path in (*(p for p in folder.iterdir() if p != ours), *ours.iterdir()):
            _remove(path)
    elif folder.exists() or folder.is_symlink():
        if overwrite:
            _remove(folder)
        elif folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
            folder.rename(_free_name(folder))
    ours.mkdir(parents=True, exist_ok=True)
    for parent in (folder, folder.parent):
        sync_folder(parent)


def _remove(path: Path) -> None:
    """Never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _free_name(folder: Path) -> Path:
    """Beside a checkpoint, a name that is neither taken nor that of a checkpoint, which would be rotated away."""
    names = (folder.with_name(f"other-{folder.name}{'' if not i else f'-{i}'}") for i in count())
    return next(path for path in names if not path.exists() and not path.is_symlink())


def mark_complete(folder: Path) -> None:
    """Write the mark, once every other file of the checkpoint is on disk. Raises OSError."""
    files = {str(path.relative_to(folder)): _seal(path) for path in _files(folder)}
    for directory in (*(p for p in folder.rglob("*") if p.is_dir()), folder, folder.parent):
        sync_folder(directory)
    write_atomically(folder / DIRECTORY / MARK, json.dumps(files, indent=1).encode())


def what_is_missing(folder: Path) -> str | None:
    """Why a run cannot resume from a checkpoint, in one phrase; None if it can.

    All files must have their sizes, and must not be those of a model alone.
    """
    return _what_files_lack(folder) or (_MODEL_ONLY if _model_only(folder) else None)


def _what_files_lack(folder: Path) -> str | None:
    if not folder.is_dir():
        return "there is no such directory"
    if not (folder / DIRECTORY / MARK).is_file():
        return _UNFINISHED if (folder / DIRECTORY).is_dir() else _FOREIGN
    files = _read_mark(folder)
    if files is None:
        return "its completeness mark cannot be read"
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def _model_only(folder: Path) -> bool:
    """Of a complete checkpoint."""
    try:
        return bool(json.loads((folder / DIRECTORY / "state.json").read_text()).get("model_only"))
    except (OSError, ValueError, AttributeError):  # reading it says what is wrong with it
        return False


def what_is_damaged(folder: Path) -> str | None:
    """Why the files of a checkpoint are not those that were saved (one phrase), or None; a model alone may be whole too. Reads
    all of it: seconds per 10 GB at best."""
    if (reason := _what_files_lack(folder)) is not None:
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
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def complete_checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a run that are marked as complete, by step, the newest first."""
    return [(step, path) for step, path in _checkpoints(output_dir) if what_is_missing(path) is None]


def newest_complete(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint of a run, and a line about each newer one that is passed over.

    None where saving was never finished of any. ConfigError if there are others, but none to go on from: starting over would
    overwrite what may be worth something.
    """
    passed_over: list[str] = []
    reasons: list[str] = []
    for _, path in _checkpoints(output_dir):
        reason = what_is_missing(path)
        if reason is None:
            return path, passed_over
        reasons.append(reason)
        passed_over.append(f"{path} is not complete ({reason}); an older checkpoint is used")
    if set(reasons) <= {_UNFINISHED}:
        return None, [line.replace("an older checkpoint is used", "the run starts over") for line in passed_over]
    if _MODEL_ONLY in reasons:
        raise ConfigError(
            f"output_dir: the checkpoints in {output_dir} were saved with save_only_model and cannot be resumed from;"
            " change output_dir, or set overwrite_output_dir to start over"
        )
    if set(reasons) <= {_UNFINISHED, _FOREIGN}:
        raise ConfigError(
            f"output_dir: the checkpoints in {output_dir} were not written by a run with a dataflex block;"
            " change output_dir or set overwrite_output_dir"
        )
    worst = next(i for i, reason in enumerate(reasons) if reason not in (_UNFINISHED, _FOREIGN))
    raise ConfigError(
        f"output_dir: {passed_over[worst].partition(';')[0]}, and there is no older one that is; change output_dir, or set"
        " overwrite_output_dir to start over"
    )


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
