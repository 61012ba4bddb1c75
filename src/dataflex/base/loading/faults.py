"""Which row, or line, of a data set LLaMA-Factory cannot use: looked for once reading or tokenizing has failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamafactory.data import converter, loader

from dataflex.base.refusals import is_ours
from dataflex.data.origins import stored_numbers
from dataflex.errors import ConfigError, DataflexError
from dataflex.writing import why_not_written

# Of a file read by lines: lines that are looked at.
_MOST_LINES = 10_000_000


@contextmanager
def reading(name: str, key: str, data_args: Any, read: tuple[Any, Any] | None = None) -> Iterator[None]:
    """Inside, one data set is read or, where `read` is given, brought into LLaMA-Factory's columns. What goes wrong is a
    ConfigError that names the data set and, where it can be found, the row or the line.

    read: (its rows as they are stored, its DatasetAttr).
    """
    try:
        yield
    except DataflexError:
        raise
    except Exception as error:
        if is_ours(error) or why_not_written(error) is not None:
            raise
        fault = _fault_of(name, error, read, data_args)
        if fault is None:
            raise
        raise ConfigError(f"{key}: {fault}") from error


def _fault_of(name: str, error: Exception, read: tuple[Any, Any] | None, data_args: Any) -> str | None:
    """What to say of a data set that cannot be read; None where every row of it can, so that the error is another one's."""
    cause = error.__cause__ or error
    if "at least one example" in str(cause) or isinstance(error, StopIteration):  # a file without a row
        return f"{name!r} is empty"
    if isinstance(cause, UnicodeDecodeError):
        return f"{name!r} cannot be read: {_broken_line(name, data_args) or 'it holds text that is not UTF-8'}"
    if read is not None:  # columns or formatting that do not fit the rows
        dataset, attribute = read
        columns = f"; its columns are {', '.join(dataset.column_names)}" if isinstance(error, KeyError) else ""
        convert = converter.get_dataset_converter(attribute.formatting, attribute, data_args)
        found = first_fault(dataset, convert)
        if found is None and not _is_stream(dataset):
            return None
        where, error = ("its rows", error) if found is None else (f"its rows, from row {found[0]} on", found[1])
        return f"the columns or formatting of {name!r} in dataset_info.json do not fit {where} ({_in_one_line(error)}){columns}"
    line = _broken_line(name, data_args)
    why = f"{type(cause).__name__}" if not str(cause) else " ".join(str(cause).split())
    return f"{name!r} cannot be read: {line or why}"


def first_fault(dataset: Any, use: Callable[[Any], Any]) -> tuple[int, Exception] | None:
    """The number, as stored, of the first row that `use` fails on, and how."""
    if _is_stream(dataset):
        return None
    for number, row in zip(stored_numbers(dataset), dataset, strict=True):
        try:
            use(row)
        except Exception as error:
            return int(number), error
    return None


def _is_stream(dataset: Any) -> bool:
    return getattr(dataset, "data", None) is None


def untokenized(raw: Any, name: str, key: str, preprocess: Callable[[Mapping[str, Any]], Any]) -> ConfigError | None:
    """What to say of the first row of a data set that cannot be tokenized; None if every one of them can be. preprocess: of a
    batch, as LLaMA-Factory's processors do it."""
    found = first_fault(raw, lambda row: preprocess({column: [value] for column, value in row.items()}))
    if found is None:
        return None
    number, error = found
    messages = [m for column in ("_prompt", "_response") for m in raw[_place_of(raw, number)].get(column) or []]
    empty = next((m["role"] for m in messages if not isinstance(m.get("content"), str)), None)
    why = _in_one_line(error) if empty is None else f"a message of {empty} has no text"
    return ConfigError(f"{key}: row {number} of {name!r} cannot be tokenized: {why}")


def _place_of(raw: Any, number: int) -> int:
    return int((stored_numbers(raw) == number).nonzero()[0][0])


def _in_one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _broken_line(name: str, data_args: Any) -> str | None:
    """Of the files of a data set of JSON, the first line that is none."""
    folder = Path(str(data_args.dataset_dir))
    try:
        entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
        path = folder / str(entry["file_name"])
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.suffix in (".json", ".jsonl") and (fault := _fault_in(file)):
                return fault
            if file.suffix[1:] not in loader.FILEEXT2TYPE:
                return f"{file.name} is of no known kind ({', '.join(sorted(loader.FILEEXT2TYPE))})"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _fault_in(file: Path) -> str | None:
    with file.open("rb") as lines:
        for number, line in zip(range(1, _MOST_LINES), lines, strict=False):
            text = line.decode("utf-8", errors="replace").strip("\ufeff \t\r\n")
            if number == 1 and text.startswith(("[", "{")) and not text.endswith(("]", "}")):
                return _fault_in_whole(file)
            if not text:
                continue
            try:
                if b"\x00" in line or "\ufffd" in text:
                    raise ValueError("it is not UTF-8 text")
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                return f"line {number} of {file.name} is not JSON ({error})"
            if number == 1 and isinstance(found, list) and all(isinstance(row, dict) for row in found):
                return None
            if not isinstance(found, dict):
                return f"line {number} of {file.name} holds no keys and values"
    return None


def _fault_in_whole(file: Path) -> str | None:
    """Of a file that is one value over many lines."""
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        return f"line {error.lineno} of {file.name} is not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        return f"{file.name} is not JSON ({error})"
    return None
