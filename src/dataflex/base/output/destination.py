"""The directory that selections are written into: what in it is theirs, and how one takes the place of another.

    dataset_info.json     names the files of every selection that counts; whatever else stands there stays
    <selector>-<n>/       one selection: its data sets, scores and summary, and selection.json, by which it is recognised

A selection is written into a directory of its own, which counts from the moment on that dataset_info.json names it. That
file is replaced in one step, so a process that is killed leaves the selection of before, or the new one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from dataflex.errors import ConfigError
from dataflex.writing import reported, write_atomically

INFO = "dataset_info.json"
MANIFEST = "selection.json"
# Directories that are on their way in or out.
_HIDDEN = ".dataflex-selection-"
# Bytes of a name, which a suffix and the name of a temporary file are added to.
_LONGEST = 200

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Selection:
    """A selection that is there."""

    folder: Path
    names: frozenset[str]
    """The data sets that it may have."""
    files: tuple[str, ...] | None
    """The files that it has; None if it was not completed."""

    def remove(self) -> None:
        """Not what somebody has put beside its files. What cannot be removed is left."""
        with suppress(OSError):
            if self.files is None or {path.name for path in self.folder.iterdir()} <= {*self.files, MANIFEST}:
                hidden = Path(mkdtemp(prefix=_HIDDEN, dir=self.folder.parent))
                self.folder.replace(hidden)
                shutil.rmtree(hidden)
                return
            for name in (*self.files, MANIFEST):
                (self.folder / name).unlink(missing_ok=True)


class Destination:
    """names: data set -> its name in dataset_info.json, all distinct."""

    def __init__(self, folder: Path, selector: str, datasets: Sequence[str]) -> None:
        self.folder, self.selector = folder, selector
        self.names = _names(datasets, selector)

    def check(self, reads: Collection[str] = ()) -> None:
        """Raise ConfigError if a selection cannot be written here without a loss. reads: data sets that are read from the
        dataset_info.json of this same directory."""
        if has_magic(str(self.folder)):
            raise ConfigError(
                f"output_dir: {self.folder} has one of the characters * ? [ in its name, by which no data set can be loaded"
            )
        for name in self.names.values():
            if len(name.encode()) > _LONGEST:
                raise ConfigError(
                    f"dataset: {name!r} is too long for the name of a file; {_LONGEST} bytes are the most"
                )
        info, owners = self._info(), self._owners()
        for name in self.names.values():
            if name in info and name not in owners:
                raise ConfigError(
                    f"output_dir: {self.folder / INFO} defines {name!r}, which no selection that is there wrote; choose"
                    " another output_dir, or remove the entry"
                )
        for selection in {owners[name].folder: owners[name] for name in self.names.values() if name in owners}.values():
            live = {name for name, owner in owners.items() if owner.folder == selection.folder}
            if others := sorted(live - set(self.names.values())):
                raise ConfigError(
                    f"output_dir: the selection in {selection.folder} has {', '.join(others)} too, which this one would not"
                    f" write anew; choose another output_dir, or remove {selection.folder} and its entries in {INFO}"
                )
            if read := sorted(live & set(reads)):
                raise ConfigError(
                    f"output_dir: {', '.join(read)} is read from {self.folder}, where this selection would take its place;"
                    " choose another output_dir"
                )

    def put(self, write: Callable[[Path], dict[str, dict[str, Any]]]) -> Path:
        """write(folder) writes the files of a selection, and returns the entries that name them, relative to that folder.
        Returns the folder. Whatever fails before the selection counts leaves nothing behind. One process at a time may
        write there (`locking.alone_in`)."""
        with reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.check()
        self._tidy()
        folder = self._begin()
        try:
            entries = write(folder)
            self._complete(folder, files=sorted(path.name for path in folder.iterdir() if path.name != MANIFEST))
            self._switch(folder, entries)
        except BaseException:
            if not self._counts(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for selection in self._selections():
            if selection.folder != folder and selection.names & set(self.names.values()):
                selection.remove()
        return folder

    def _tidy(self) -> None:
        """Remove what a process that was killed has left."""
        for path in self.folder.glob(f"{_HIDDEN}*/"):
            shutil.rmtree(path, ignore_errors=True)
        for selection in self._selections():
            if selection.files is None:
                selection.remove()

    def _begin(self) -> Path:
        """A directory that is recognised from its first moment on."""
        number = 1
        while os.path.lexists(folder := self.folder / f"{_clean(self.selector)}-{number}"):
            number += 1
        with reported(folder):
            hidden = Path(mkdtemp(prefix=_HIDDEN, dir=self.folder))
            try:
                hidden.chmod(0o777 & ~_umask())
                self._complete(hidden, files=None)
                return hidden.replace(folder)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise

    def _complete(self, folder: Path, files: list[str] | None) -> None:
        manifest = {"selector": self.selector, "names": self.names, "files": files}
        write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    def _switch(self, folder: Path, entries: Entries) -> None:
        named = {name: {**entry, "file_name": f"{folder.name}/{entry['file_name']}"} for name, entry in entries.items()}
        owned = {n for n, owner in self._owners().items() if owner.names & set(self.names.values())}
        write_atomically(self.folder / INFO, merged(self._text(), owned, named).encode())

    def _text(self) -> str:
        path = self.folder / INFO
        if path.is_symlink():
            raise ConfigError(f"output_dir: {path} is a link, and would no longer be one; choose another output_dir")
        try:
            return path.read_bytes().decode()
        except FileNotFoundError:
            return "{}"
        except (OSError, ValueError) as error:
            raise ConfigError(f"output_dir: {path} cannot be read, and a selection adds to it: {error}") from None

    def _info(self) -> dict[str, Any]:
        try:
            info = json.loads(self._text())
        except ValueError as error:
            info = error
        if not isinstance(info, dict):
            fault = info if isinstance(info, ValueError) else "it is no mapping"
            raise ConfigError(
                f"output_dir: {self.folder / INFO} is not valid, and a selection adds to it: {fault}; choose another output_dir"
            )
        return info

    def _selections(self) -> list[Selection]:
        found = []
        for path in sorted(self.folder.glob(f"*/{MANIFEST}")):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                manifest = json.loads(path.read_text(encoding="utf-8"))
                files = None if manifest["files"] is None else tuple(Path(name).name for name in manifest["files"])
                found.append(Selection(path.parent, frozenset(manifest["names"].values()), files))
        return found

    def _owners(self) -> dict[str, Selection]:
        """Of the entries of dataset_info.json that a selection wrote, which one."""
        folders, found = {s.folder.name: s for s in self._selections()}, {}
        for name, entry in self._info().items():
            file = entry.get("file_name") if isinstance(entry, dict) else None
            owner = folders.get(file.split("/")[0]) if isinstance(file, str) else None
            if owner is not None and name in owner.names:
                found[name] = owner
        return found

    def _counts(self, folder: str) -> bool:
        try:
            return any(owner.folder.name == folder for owner in self._owners().values())
        except ConfigError:
            return True  # it cannot be told, so it stays


def merged(text: str, without: Collection[str], entries: Entries) -> str:
    """A JSON object without some members and with others; the rest of them stay as they are written, to the letter."""
    members = [source for name, source in _members(text) if name not in without]
    for name, entry in entries.items():
        members.append(f"{json.dumps(name)}: " + json.dumps(entry, indent=2).replace("\n", "\n  "))
    return "{\n  " + ",\n  ".join(members) + "\n}\n"


def _members(text: str) -> Iterator[tuple[str, str]]:
    """(name, source text) of each member of a valid JSON object."""
    decode, between = json.JSONDecoder().raw_decode, re.compile(r"[\s,:]*")

    def skipped(offset: int) -> int:
        found = between.match(text, offset)
        assert found is not None
        return found.end()

    offset = skipped(text.index("{") + 1)
    while text[offset] != "}":
        name, stop = decode(text, offset)
        _, stop = decode(text, skipped(stop))
        yield name, text[offset:stop]
        offset = skipped(stop)


def _names(datasets: Sequence[str], selector: str) -> dict[str, str]:
    """Names that need no change come first, so they keep theirs. Some file systems do not tell A from a."""
    out: dict[str, str] = {}
    for dataset in sorted(datasets, key=lambda name: _clean(name) != name):
        base = name = f"{_clean(dataset)}_{_clean(selector)}"
        number = 2
        while name.casefold() in {other.casefold() for other in out.values()}:
            name, number = f"{base}_{number}", number + 1
        out[dataset] = name
    return {dataset: out[dataset] for dataset in datasets}


def _clean(name: str) -> str:
    """Without what means something in a path or a pattern."""
    return re.sub(r"[^\w.-]", "_", name)


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found
