"""One run at a time in an output directory.

`<output_dir>/dataflex.lock` names the process that writes there: its host, id and beginning. It is made with O_EXCL, which every
network file system honours, and locked with flock where there is such a thing. A process that is killed leaves the file behind:
on the same host the next run sees that the process is gone and takes the directory over; of another host it cannot know.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dataflex.errors import ConfigError

LOCK = "dataflex.lock"
_PATIENCE = 2.0  # seconds in which a lock that has just been made gets its content
_held: dict[Path, int] = {}


@dataclass(frozen=True)
class Holder:
    """host, pid: of the process. born: what tells it from others of the same id, None where that cannot be known. since: when it
    took the directory."""

    host: str
    pid: int
    born: str | None
    since: str

    def gone(self) -> bool:
        """Whether this is a process of this machine that no longer runs."""
        if self.host != socket.gethostname():
            return False
        if self.pid == os.getpid():
            return True  # of an earlier process with the same id
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        now = born(self.pid)
        return self.born is not None and now != self.born


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold an output directory, which is made if it is not there; of several ranks the first does so for all. ConfigError if
    another run holds it, or if it cannot be written to."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    path = folder.absolute() / LOCK
    made = [f for f in (path.parent, *path.parent.parents) if not f.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take(path, folder)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written to: {error.strerror or error}") from None
    try:
        yield
    finally:
        release(path)
        for empty in made:  # a run that was refused leaves nothing behind
            with suppress(OSError):
                empty.rmdir()


def release(path: Path) -> None:
    descriptor = _held.pop(path, None)
    if descriptor is None:
        return
    with suppress(OSError):
        if _at(path, descriptor):
            path.unlink()
    os.close(descriptor)


def release_all() -> None:
    """For a process that ends without leaving its blocks."""
    for path in list(_held):
        release(path)


def born(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since the machine did; None if it has ended or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _take(path: Path, folder: Path) -> None:
    """Raises ConfigError if it is held, OSError if it cannot be written."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor, created = _open(path)
        if descriptor is None:  # removed in between
            continue
        try:
            waiting = time.monotonic() < deadline
            changing = (
                not created and waiting and _read(descriptor) is None
            )  # by one that has just made it, if it still runs
            if not changing:
                locked = _flock(descriptor)
                holder = None if created else _read(descriptor)
                if holder is not None and holder.gone():
                    holder = None
                if holder is not None or not (locked or waiting):
                    raise _refusal(folder, path, holder)
                if locked and _at(path, descriptor):  # else its holder has ended in between
                    _write(descriptor)
                    _held[path] = descriptor
                    return
        except BaseException:
            if created:
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(0.05)


def _open(path: Path) -> tuple[int | None, bool]:
    """The file, and whether it was made for this."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        try:
            return os.open(path, flags), False
        except FileNotFoundError:
            return None, False


def _flock(descriptor: int) -> bool:
    """False if another process has it. True as well where the file system has no such locks: the content decides there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except OSError:
        return False


def _read(descriptor: int) -> Holder | None:
    """None where there is no content, or none that makes sense."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (OSError, ValueError, TypeError):
        return None


def _write(descriptor: int) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    content = json.dumps(asdict(Holder(socket.gethostname(), os.getpid(), born(os.getpid()), now))).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)


def _refusal(folder: Path, path: Path, holder: Holder | None) -> ConfigError:
    if holder is None:
        return ConfigError(
            f"output_dir: {folder} is in use by another run; choose another output_dir, or wait for its end"
        )
    line = (
        f"output_dir: {folder} is in use by a run on {holder.host} (pid {holder.pid}, since {holder.since}); choose another"
        " output_dir, or wait for its end"
    )
    if holder.host != socket.gethostname():
        line += f"; if it no longer runs, remove {path}"
    return ConfigError(line)


def _forget() -> None:
    """In a forked child, such as a worker of a data loader: the lock is its parent's, and must not outlive it."""
    for descriptor in _held.values():
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def holder_of(path: Path) -> Holder | None:
    """Who wrote a lock file last; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)
