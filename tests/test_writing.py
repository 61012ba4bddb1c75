"""Files that are there whole or not at all, and what writers say of a disk that has no room."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests

from dataflex import writing
from dataflex.errors import DataflexError, WriteError
from dataflex.writing import clear_leftovers, failed_writes_reported, why_not_written, write_atomically, write_table

TABLE = pa.table({"a": list(range(2000))})
WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write_atomically(path, b"new" * 9000),
    "table": lambda path: write_table(path, TABLE),
}


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_gets_the_mode_that_the_umask_leaves(writer: str, tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        with umask(mask):
            WRITERS[writer](tmp_path / "file")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("writer", WRITERS)
def test_a_planted_link_is_neither_followed_nor_touched(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the name of earlier versions, and even under the one that the temporary file would get."""
    target, path = tmp_path / "target", tmp_path / "out" / "file"
    target.write_text("kept")
    path.parent.mkdir()
    links = [path.with_name("file.partial"), path.with_name(f"file.{'0' * 16}.partial")]
    for link in links:
        link.symlink_to(target)
    WRITERS[writer](path)
    content = path.read_bytes()
    monkeypatch.setattr(writing.secrets, "token_hex", lambda _: "0" * 16)
    with pytest.raises(WriteError, match="file cannot be written: File exists"):
        WRITERS[writer](path)
    assert target.read_text() == "kept" and all(os.readlink(link) == str(target) for link in links)
    assert path.read_bytes() == content and len(list(path.parent.iterdir())) == 3


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("fails", ["full", "fsync", KeyboardInterrupt, ZeroDivisionError])
def test_a_write_that_fails_leaves_nothing(
    writer: str, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    if fails == "full":  # what is written goes to a device without room
        create = writing._new_file

        def created(name: str, flags: int) -> int:
            os.close(create(name, flags))
            return os.open("/dev/full", os.O_WRONLY)

        monkeypatch.setattr(writing, "_new_file", created)
    elif fails == "fsync":
        monkeypatch.setattr(writing.os, "fsync", lambda _: os.stat(tmp_path / "none"))
    else:

        def broken(_: int) -> None:
            raise fails

        monkeypatch.setattr(writing.os, "fsync", broken)
    with pytest.raises(WriteError if isinstance(fails, str) else fails) as raised:
        WRITERS[writer](path)
    if fails == "full":
        assert str(raised.value) == f"{path} cannot be written: No space left on device{writing.UNTOUCHED}"
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_names_as_long_as_a_file_system_has_them(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127):
        write_atomically(tmp_path / name, b"new")
        assert (tmp_path / name).read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_killed_runs_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours alone, by their names; and files, not links."""
    monkeypatch.setattr(writing.os, "replace", lambda *_: os._exit(0))
    if (child := os.fork()) == 0:
        write_atomically(tmp_path / "file", b"cut off")
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in ("file", "file.partial", "download.0123.partial")]
    for other in others:
        other.touch()
    link = tmp_path / f"link.{'a' * 16}.partial"
    link.symlink_to(others[0])
    assert left.name.startswith("file.") and left.name.endswith(".partial")
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, link])


# -- what writers say --------------------------------------------------------------------------------------------------


def save_tokenizer(path: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(path)


def save_tensors(path: str) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(9000)}, path)


def save_optimizer(path: str) -> None:
    import torch

    torch.save({"a": torch.zeros(90_000), "b": torch.zeros(9)}, path)


def save_scheduler(path: str) -> None:
    import torch

    torch.save({"a": 1}, path)


def save_json(path: str) -> None:
    with Path(path).open("w") as file:
        json.dump({"a": 1}, file)


def save_arrays(path: str) -> None:
    with Path(path).open("wb") as file:
        np.savez(file, a=np.zeros(9000))


@pytest.mark.parametrize("save", [save_tokenizer, save_optimizer, save_scheduler, save_json, save_arrays])
def test_a_full_disk_is_recognised_in_every_writer(save: Callable[[str], None]) -> None:
    with (
        pytest.raises(DataflexError, match=r"^not saved: .+$") as raised,
        failed_writes_reported("not saved: {reason}"),
    ):
        save("/dev/full")
    assert "\n" not in str(raised.value) and raised.value.__cause__ is not None


def test_tensors_on_a_full_disk(tmp_path: Path) -> None:
    """Their writer renames: a limit on the size of files stands for the disk."""
    import resource
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        line = r"^not saved: File too large$"
        with pytest.raises(DataflexError, match=line), failed_writes_reported("not saved: {reason}"):
            save_tensors(str(tmp_path / "model.safetensors"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a fault"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Exception("x"),
        RuntimeError("CUDA out of memory"), TypeError("cannot pickle '_io.TextIOWrapper' object"),
        KeyError("written"), DataflexError("of ours"), KeyboardInterrupt(), SystemExit(1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("only_full", [True, False])
def test_a_fault_of_another_kind_stays_what_it_is(error: BaseException, only_full: bool) -> None:
    with pytest.raises(type(error)) as raised, failed_writes_reported("not saved: {reason}", only_full=only_full):
        raise error
    assert raised.value is error


def test_a_wrong_path_is_a_failed_write_only_where_nothing_else_is_done() -> None:
    wrong = FileNotFoundError(2, "No such file or directory", "/none/x")
    assert why_not_written(wrong) is None
    assert why_not_written(wrong, only_full=False) == "/none/x: No such file or directory"


class HubError(OSError):
    """As of a library that talks to a server."""


HubError.__module__ = "huggingface_hub.errors"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"), TimeoutError("timed out"), ConnectionError("no route"),
        HubError("503 Server Error"), socket.gaierror(-2, "Name or service not known"), ssl.SSLError(1, "handshake"),
        requests.exceptions.ConnectionError("x"), requests.exceptions.HTTPError("403"),
    ],
)  # fmt: skip
def test_a_network_that_fails_is_no_failed_save(error: OSError) -> None:
    with pytest.raises(type(error)) as raised, failed_writes_reported("not saved: {reason}", only_full=False):
        raise error
    assert raised.value is error


def test_a_file_on_a_network_that_fails_is_one() -> None:
    late = TimeoutError(110, "Connection timed out", "/net/model.safetensors")
    assert why_not_written(late, only_full=False) == "/net/model.safetensors: Connection timed out"


def test_what_was_dealt_with_before_is_no_cause() -> None:
    """A path that was tried and found missing, a disk that was full, and then a fault of another kind."""
    for before in (
        FileNotFoundError(2, "No such file or directory", "/none/x"),
        OSError(28, "No space left on device"),
    ):
        with pytest.raises(KeyError), failed_writes_reported("not saved: {reason}", only_full=False):
            try:
                raise before
            except OSError:
                raise KeyError("a fault")  # noqa: B904


def test_the_cause_is_found_behind_what_it_led_to() -> None:
    """Of an error that names its cause, and in torch's account of what each rank met."""
    full = OSError(28, "No space left on device")
    try:
        raise ValueError("not written") from full
    except ValueError as error:
        assert why_not_written(error) == "No space left on device"
    from torch.distributed.checkpoint.api import CheckpointException

    gathered = CheckpointException("write", {1: (full, None)})  # type: ignore[dict-item]
    assert why_not_written(gathered) == "No space left on device"
    assert why_not_written(CheckpointException("write", {1: (KeyError("x"), None)})) is None  # type: ignore[dict-item]
    line = r"^not saved: No space left on device$"
    with pytest.raises(DataflexError, match=line), failed_writes_reported("not saved: {reason}"):
        raise gathered
