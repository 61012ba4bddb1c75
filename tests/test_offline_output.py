"""What a selection before training writes: values as they were, nothing of others replaced, one whole set or the other."""

from __future__ import annotations

import datetime
import decimal
import errno
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflex.base.output.destination import Destination, merged
from dataflex.base.output.outcome import Outcome
from dataflex.base.output.rows import write_rows
from dataflex.base.output.sets import write_selection
from dataflex.data.origins import Origin
from dataflex.errors import ConfigError, DataflexError, WriteError
from dataflex.writing import write_atomically


def read(folder: Path, file: str) -> pa.Table:
    """As LLaMA-Factory loads it."""
    kind = {".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}[Path(file).suffix]
    found = datasets.load_dataset(kind, data_files=[str(folder / file)], split="train", cache_dir=str(folder / "cache"))
    return found.with_format("arrow")[:]


def loaded(folder: Path, text: str) -> datasets.Dataset:
    """A data set of JSON lines."""
    (folder / "source.jsonl").write_text(text)
    cache = str(folder / "source")
    return datasets.load_dataset("json", data_files=[str(folder / "source.jsonl")], split="train", cache_dir=cache)


# -- values ----------------------------------------------------------------------------------------------------------

_MOMENT = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901)
TYPES: dict[str, pa.Array] = {
    "null": pa.array([None, None]),
    "bool": pa.array([True, None]),
    "int8": pa.array([-128, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "int64": pa.array([2**53 + 1, None]),
    "float16": pa.array([1.5, None], pa.float16()),
    "float32": pa.array([0.1, float("nan")], pa.float32()),
    "float64": pa.array([0.1 + 0.2, -0.0]),
    "subnormal": pa.array([5e-324, float("-inf")]),
    "time32": pa.array([3, None], pa.time32("ms")),
    "time64": pa.array([3, None], pa.time64("ns")),
    "timestamp_ms": pa.array([3, None], pa.timestamp("ms")),
    "timestamp_us": pa.array([_MOMENT, None], pa.timestamp("us")),
    "timestamp_ns": pa.array([1, None], pa.timestamp("ns")),
    "timestamp_zone": pa.array([_MOMENT, None], pa.timestamp("us", "Europe/Berlin")),
    "date32": pa.array([3, None], pa.date32()),
    "duration": pa.array([3, None], pa.duration("ms")),
    "decimal": pa.array([decimal.Decimal("1.23"), None], pa.decimal128(9, 2)),
    "decimal256": pa.array([decimal.Decimal("1.23"), None], pa.decimal256(50, 2)),
    "binary": pa.array([b"\xff\0", None]),
    "large_binary": pa.array([b"\xff\0", None], pa.large_binary()),
    "string": pa.array(["a\u2028\0é😀\n", None]),
    "large_string": pa.array(["", None], pa.large_string()),
    "list": pa.array([[0.1, None], None]),
    "large_list": pa.array([[1], None], pa.large_list(pa.int64())),
    "fixed_list": pa.array([[0.1, 0.2], [0.3, 0.4]], pa.list_(pa.float64(), 2)),
    "struct": pa.array([{"a": 2**60, "b": None, "c": [{"d": float("nan")}]}, None]),
    "bytes_deep": pa.array([[{"a": b"\0"}], []]),
}
ODD: dict[str, pa.Array] = {
    "time32_s": pa.array([3, None], pa.time32("s")),
    "timestamp_s": pa.array([_MOMENT.replace(microsecond=0), None], pa.timestamp("s")),
    "date64": pa.array([86_400_000, None], pa.date64()),
    "struct_of_nothing": pa.array([{}, None], pa.struct([])),
}


def exact(table: pa.Table) -> tuple[list[pa.DataType], str]:
    """Types and values, of floats all digits."""
    return table.schema.types, repr(table.to_pylist())


@pytest.mark.parametrize("names", [list(TYPES), *([name] for name in ODD)], ids=lambda names: names[0])
def test_every_type_is_read_as_it_was(tmp_path: Path, names: list[str]) -> None:
    """Bit by bit, whatever JSON would make of it."""
    rows = datasets.Dataset(pa.table({name: {**TYPES, **ODD}[name] for name in names}))
    rows.info.builder_name = "parquet"
    file = write_rows(tmp_path, "rows", rows)
    assert exact(read(tmp_path, file)) == exact(rows.with_format("arrow")[:])
    assert Path(file).suffix == (".parquet" if len(names) > 1 else ".arrow")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [file]


def test_text_stays_text(tmp_path: Path) -> None:
    """Ids beyond 2^53 beside a null, every digit of a float, moments, nested values, a key that is missing in some rows."""
    lines = [
        {
            "id": 2**53 + 1,
            "x": 0.1 + 0.2,
            "when": "2020-01-02 03:04:05",
            "turns": [{"role": "user", "content": "é\u2028😀"}],
        },
        {"id": None, "x": -0.0, "when": None, "turns": []},
        {"id": 3, "x": 5e-324, "when": "2021-01-02 03:04:05", "turns": [{"role": "a"}], "more": {"deep": [[1], []]}},
    ]
    source = loaded(tmp_path, "\n".join(map(json.dumps, lines)))
    assert source.features["when"].dtype == "timestamp[s]"
    file = write_rows(tmp_path, "rows", source.select([2, 1, 0]))
    assert file == "rows.jsonl"
    found = read(tmp_path, file)
    assert exact(found) == exact(source.select([2, 1, 0]).with_format("arrow")[:])
    few = write_rows(tmp_path, "few", source.select([1]))  # a column without a value has no type in JSON
    assert (
        few == "few.jsonl" and read(tmp_path, few).to_pylist() == source.select([1]).with_format("arrow")[:].to_pylist()
    )


def test_text_that_would_be_read_as_something_else_is_parquet(tmp_path: Path) -> None:
    source = loaded(tmp_path, '{"text": "2020-01-02"}\n{"text": "two"}\n')
    assert source.features["text"].dtype == "string"
    assert write_rows(tmp_path, "all", source) == "all.jsonl"
    file = write_rows(tmp_path, "one", source.select([0]))
    assert file == "one.parquet" and read(tmp_path, file).to_pylist() == [{"text": "2020-01-02"}]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_are_read_as_they_were(tmp_path: Path, data: st.DataObject) -> None:
    """Rows made in memory, which may become JSON."""
    count = data.draw(st.integers(1, 4))
    columns = {
        "i": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "f": st.one_of(st.none(), st.floats()),
        "s": st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))),
        "n": st.lists(st.fixed_dictionaries({"a": st.floats(), "b": st.one_of(st.none(), st.text("aé\0\u2028-0:"))})),
    }
    rows = datasets.Dataset.from_dict(
        {k: data.draw(st.lists(v, min_size=count, max_size=count)) for k, v in columns.items()}
    )
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        file = write_rows(Path(folder), "rows", rows)
        assert repr(read(Path(folder), file).to_pylist()) == repr(rows.with_format("arrow")[:].to_pylist())


def test_what_is_read_is_compared(tmp_path: Path) -> None:
    """Anything that is not the value that was written is seen, at any depth, whatever the type."""
    from dataflex.base.output.rows import _same

    deep = lambda value, kind: pa.table({"x": pa.array([[{"a": value}], None, []], pa.list_(pa.struct([("a", kind)])))})  # noqa: E731
    number, large = pa.float64(), pa.int64()
    assert _same(deep(float("nan"), number), deep(float("nan"), number))
    assert _same(deep(None, pa.null()), deep(None, large))
    others = [(0.1, 0.1 + 2e-17 * 2), (0.0, -0.0), (1.0, None), (1.0, float("nan"))]
    assert all(not _same(deep(a, number), deep(b, number)) for a, b in others)
    assert not _same(deep(2**53, large), deep(2**53 + 1, large)) and not _same(deep(1, large), deep(1.0, number))
    assert not _same(deep(1, large), deep(1, large).rename_columns(["y"]))
    assert not _same(pa.table({"x": [[1], [2]]}), pa.table({"x": [[1, 2], []]}))


def test_rows_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.base.output.rows._same", lambda found, wanted: False)
    with pytest.raises(DataflexError, match="rows: these rows cannot be written as JSON, Parquet or Arrow"):
        write_rows(tmp_path, "rows", datasets.Dataset.from_dict({"x": [1]}))
    assert not list(tmp_path.iterdir())


# -- what is there stays ---------------------------------------------------------------------------------------------


def set_of(tag: str, names: list[str]) -> Callable[[Path], dict[str, Any]]:
    """Writes files that all say `tag`."""

    def write(folder: Path) -> dict[str, Any]:
        for file in (*(f"{name}.jsonl" for name in names), "scores.parquet", "summary.md"):
            write_atomically(folder / file, tag.encode())
        return {name: {"file_name": f"{name}.jsonl"} for name in names}

    return write


def info_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_info.json").read_text())


def test_other_entries_stay_to_the_letter(tmp_path: Path) -> None:
    """A dataset_info.json of 24 entries, and a summary.md of the user's own."""
    entries = [f'"set{i}":   {{ "file_name": "a{i}.json", "note": "\\u00e9é", "x": 1.0E+02 }}' for i in range(24)]
    (tmp_path / "dataset_info.json").write_text("{" + ",\n\n".join(entries) + "}")
    (tmp_path / "summary.md").write_text("mine")
    for tag in ("one", "two"):
        Destination(tmp_path, "random", ["set0"]).put(set_of(tag, ["set0_random"]))
        text = (tmp_path / "dataset_info.json").read_text()
        assert all(entry in text for entry in entries) and len(info_of(tmp_path)) == 25
        assert (tmp_path / info_of(tmp_path)["set0_random"]["file_name"]).read_text() == tag
    assert (tmp_path / "summary.md").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset_info.json", "random-2", "summary.md"]


def test_members_are_taken_out_and_added() -> None:
    assert json.loads(merged("{}", [], {"a": {"b": [1]}})) == {"a": {"b": [1]}}
    text = '{"a, }": {"x": "}, {"}, "b": [1, {"c": ":"}], "é": null}'
    assert json.loads(merged(text, ["b"], {"ü": {}})) == {"a, }": {"x": "}, {"}, "é": None, "ü": {}}
    assert '"a, }": {"x": "}, {"}' in merged(text, [], {}) and merged(text, [], {}).isascii() is False


def test_names_are_distinct() -> None:
    names = Destination(Path("x"), "own.module:Class", ["org/chat", "org_chat", "ORG_chat", "a b*"]).names
    assert names == {
        "org/chat": "org_chat_own.module_Class_3",
        "org_chat": "org_chat_own.module_Class",
        "ORG_chat": "ORG_chat_own.module_Class_2",
        "a b*": "a_b__own.module_Class",
    }


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"a_random": {"file_name": "mine.json"}}, "defines 'a_random', which no selection that is there wrote"),
        ({"a_random": {"file_name": "random-1/a_random.jsonl"}}, "defines 'a_random', which no selection"),
        ("[1]", "dataset_info.json is not valid, and a selection adds to it: it is no mapping"),
        ("{", "dataset_info.json is not valid, and a selection adds to it: Expecting"),
        (b"\xff", "dataset_info.json cannot be read, and a selection adds to it: 'utf-8'"),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, info: Any, message: str) -> None:
    text = info if isinstance(info, bytes) else (info if isinstance(info, str) else json.dumps(info)).encode()
    (tmp_path / "dataset_info.json").write_bytes(text)
    destination = Destination(tmp_path, "random", ["a"])
    for act in (destination.check, lambda: destination.put(set_of("new", ["a_random"]))):
        with pytest.raises(ConfigError) as error:
            act()
        assert message in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset_info.json"]
    assert (tmp_path / "dataset_info.json").read_bytes() == text


def test_selections_beside_each_other(tmp_path: Path) -> None:
    """Of another selector, or of other data sets, one is added; of the same it takes the place of the old one, whole."""
    put = lambda selector, *names: Destination(tmp_path, selector, names).put(  # noqa: E731
        set_of(selector, [f"{name}_{selector}" for name in names])
    )
    put("random", "a", "b")
    put("loss", "a", "b")
    put("random", "c")
    assert sorted(info_of(tmp_path)) == ["a_loss", "a_random", "b_loss", "b_random", "c_random"]
    with pytest.raises(ConfigError, match="random-1 has b_random too, which this one would not write anew"):
        put("random", "a")
    with pytest.raises(ConfigError, match=r"a_random is read from .*, where this selection would take its place"):
        Destination(tmp_path, "random", ["a", "b"]).check(["a_random"])
    notes = tmp_path / "random-1" / "notes.txt"
    notes.write_text("mine")
    Destination(tmp_path, "random", ["a", "b"]).put(set_of("again", ["a_random"]))  # nothing was selected of b
    assert sorted(info_of(tmp_path)) == ["a_loss", "a_random", "b_loss", "c_random"]
    assert notes.read_text() == "mine" and list(notes.parent.iterdir()) == [notes]
    Destination(tmp_path, "random", ["a", "b", "d"]).put(set_of("more", ["d_random"]))
    assert sorted(info_of(tmp_path)) == ["a_loss", "b_loss", "c_random", "d_random"]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is too long for the name of a file"):
        Destination(tmp_path, "random", ["é" * 150]).check()
    with pytest.raises(ConfigError, match=r"has one of the characters \* \? \[ in its name"):
        Destination(tmp_path / "a[1]", "random", ["a"]).check()
    (tmp_path / "elsewhere.json").write_text("{}")
    (tmp_path / "dataset_info.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigError, match="is a link, and would no longer be one"):
        Destination(tmp_path, "random", ["a"]).check()


# -- one whole set or the other --------------------------------------------------------------------------------------

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def in_child(act: Callable[[], Any], folder: Path, at: int, fault: Callable[[], None]) -> int:
    """Exit status of a process in which the `at`-th change below `folder` is a fault: 0 done, 1 a WriteError, -9 killed; 4 if
    there are fewer changes."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [at]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in _CHANGES or writes) and str(arguments[0]).startswith(str(folder)):
            left[0] -= 1
            if left[0] == 0:
                fault()

    try:
        sys.addaudithook(hook)
        act()
        status = 4 if left[0] > 0 else 0
    except WriteError:
        status = 1
    except BaseException:
        status = 3
    os._exit(status)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_whole(folder: Path) -> str:
    """What the files of the one selection say, all the same."""
    info = info_of(folder)
    assert info.pop("mine") == {"file_name": "mine.json"}
    (where,) = {(folder / entry["file_name"]).parent for entry in info.values()}
    said = {(folder / entry["file_name"]).read_text() for entry in info.values()}
    said |= {(where / file).read_text() for file in ("scores.parquet", "summary.md")}
    (tag,) = said
    assert sorted(info) == (["a_random", "b_random"] if tag == "old" else ["b_random"])
    return tag


@pytest.mark.parametrize("fault", [kill, full_disk], ids=["killed", "full"])
def test_a_set_is_switched_whole(tmp_path: Path, fault: Callable[[], None]) -> None:
    """Whatever change of the directory is the last, the old set is there or the new one; a full disk leaves nothing else, and the
    same command cleans up after a process that was killed."""
    found, at = [], 0
    while 4 not in found:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
        destination = Destination(folder, "random", ["a", "b"])
        destination.put(set_of("old", ["a_random", "b_random"]))
        before = sorted(p.name for p in folder.rglob("*"))
        found.append(in_child(lambda d=destination: d.put(set_of("new", ["b_random"])), folder, at, fault))
        tag = check_whole(folder)
        if fault is full_disk and tag == "old":
            assert found[-1] == 1 and sorted(p.name for p in folder.rglob("*")) == before
        destination.put(set_of("new", ["b_random"]))
        assert check_whole(folder) == "new"
        (where,) = [p for p in folder.iterdir() if p.is_dir()]
        assert sorted(p.name for p in where.iterdir()) == [
            "b_random.jsonl",
            "scores.parquet",
            "selection.json",
            "summary.md",
        ]
    assert set(found[:-1]) <= ({-9} if fault is kill else {0, 1}) and at > 20


def outcome(rows: int = 4000) -> Outcome:
    stored = datasets.Dataset.from_dict(
        {"instruction": [os.urandom(40).hex() for _ in range(rows)], "output": ["x"] * rows}
    )
    origin = Origin("a", None, stored, np.arange(rows))
    return Outcome([origin], "random", np.arange(rows), np.random.default_rng(0).random(rows), str, [])


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While rows are written: no part of them is left."""
    monkeypatch.setattr("dataflex.base.output.rows._TEXT_LOADERS", (None,) if kind == "json" else ())
    selection, destination = outcome(), Destination(tmp_path, "random", ["a"])
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(WriteError) as error:
            destination.put(lambda folder: write_selection(folder, selection, destination.names, 3)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "cannot be written: File too large; what was saved before is untouched" in str(error.value)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_llamafactory_reads_is_kept(tmp_path: Path) -> None:
    """Formatting, columns and tags of the data set that was selected from."""
    from llamafactory.data.parser import DatasetAttr, get_dataset_list

    entries = {
        "alpaca": {"file_name": "x.json"},
        "columns": {"file_name": "x.json", "columns": {"prompt": "q", "response": "a", "images": "i"}},
        "none": {"file_name": "x.json", "columns": {}},
        "openai": {
            "file_name": "x.json",
            "formatting": "openai",
            "ranking": True,
            "tags": {"role_tag": "r", "user_tag": "u"},
        },
        "sharegpt": {"file_name": "x.json", "formatting": "sharegpt", "split": "test", "num_samples": 3},
    }
    from dataflex.base.output.sets import _entry

    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    sources: list[DatasetAttr] = get_dataset_list(list(entries), str(tmp_path))
    new = {name: _entry("y.parquet", how) for name, how in zip(entries, sources, strict=True)}
    (tmp_path / "dataset_info.json").write_text(json.dumps(new))
    for before, after in zip(sources, get_dataset_list(list(entries), str(tmp_path)), strict=True):
        expected = {**vars(before), "dataset_name": "y.parquet", "split": "train", "num_samples": None}
        assert vars(after) == vars(SimpleNamespace(**expected))
