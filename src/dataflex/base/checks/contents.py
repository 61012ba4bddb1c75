"""Whether files and folders still hold what they held: hashes of contents, never of names and sizes alone.

Paths are free: a folder that was copied elsewhere is the same folder. Names that begin with a dot are left out, as they are
where data sets are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from dataflex.values.paths import is_folder

WEIGHTS = (".safetensors", ".bin")
"""How files with the weights of a model end."""
# Files up to this many bytes are always read whole.
SMALL = 64 << 20
_BLOCK = 1 << 20
_LEAST = 64 << 10


def digest(path: Path) -> str:
    """A hash of everything in a file, or in a folder and below it, names included. About a second for a few GB."""
    found = xxhash.xxh3_128()
    for name, file in files_of(path):
        found.update(f"{name}:{file.stat().st_size}:".encode())
        add_content(found, file)
    return found.hexdigest()


def model_digest(folder: Path) -> str | None:
    """Of the files of a model in a local folder; None where there is none."""
    if not is_folder(str(folder)):
        return None
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.suffix in (*WEIGHTS, ".json", ".txt", ".model"))
    named = [(str(f.relative_to(folder)), f) for f in files]
    return " ".join(f"{name}:{digest(file)}" for name, file in named)


def sampled(file: Path, most: int = SMALL) -> str:
    """A hash of the size of a file and of about `most` bytes of it: its head, its tail, and blocks evenly spaced in between; of
    all of it where it is not larger."""
    size = file.stat().st_size
    found = xxhash.xxh3_128(str(size).encode())
    if size <= most:
        add_content(found, file)
        return found.hexdigest()
    block = min(_BLOCK, max(_LEAST, most // 64))
    count = max(2, most // block)
    with file.open("rb") as stream:
        for i in range(count):
            stream.seek((size - block) * i // (count - 1))
            found.update(stream.read(block))
    return found.hexdigest()


def sampled_all(files: Iterable[tuple[str, Path]], most: int) -> str:
    """One hash of the names and the `sampled` contents of files, in their order; about `most` bytes are read in all."""
    listed = list(files)
    each = min(SMALL, max(2 * _LEAST, most // max(1, len(listed))))
    found = xxhash.xxh3_128()
    for name, file in listed:
        found.update(f"{name}:{sampled(file, each)};".encode())
    return found.hexdigest()


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """(name below `path`, file), sorted by name; a file by itself has the name ""."""
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


def described(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What `first_change` compares with later, of every file at the paths or below them: its bytes, the time of its last change
    (ns), a hash of samples and one of all of it. paths: by the names that they go by."""
    found = {}
    for name, file in _named(paths):
        size, modified = file.stat().st_size, file.stat().st_mtime_ns
        whole = sampled(file, max(SMALL, size))
        samples = whole if size <= SMALL else sampled(file)
        found[name] = {"bytes": size, "modified": modified, "samples": samples, "whole": whole}
    return found


def first_change(paths: Mapping[str, Path], known: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is no longer as `described` found it, in a phrase; None if the contents are the same.

    A large file that has neither another size nor another time is looked at in samples, and one with another time alone, as a
    copy has it, is read whole. So only an edit that keeps size and time and misses all samples goes unnoticed."""
    now = dict(_named(paths))
    for name in known:
        if name not in now:
            return f"{name} is gone"
    for name, file in now.items():
        if name not in known:
            return f"{name} is new"
        then, size = known[name], file.stat().st_size
        if size != then["bytes"]:
            return f"{name} had {then['bytes']} bytes and has {size}"
        if size <= SMALL or file.stat().st_mtime_ns != then["modified"]:
            same = sampled(file, max(SMALL, size)) == then["whole"]
        else:
            same = sampled(file) == then["samples"]
        if not same:
            return f"{name} has as many bytes as before but other ones"
    return None


def _named(paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for given, path in paths.items():
        for name, file in files_of(path):
            yield f"{given}/{name}" if name else given, file


def add_content(found: Any, file: Path) -> None:
    """Update a hash with all of a file."""
    with file.open("rb") as stream:
        while block := stream.read(1 << 24):
            found.update(block)
