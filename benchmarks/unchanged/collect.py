"""What a run has left, as text that two runs can be compared by: every file of its output directories by content."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Names = dict[str, str]
_TIMES = re.compile(r"seconds|runtime|per_second|elapsed|remaining|(^|/)(time|since|date|pid|host|born)$")
_DURATION = re.compile(r"\b\d+(\.\d+)? s\b")  # in what is written for people
_STORE = re.compile(r"(?<=/proxy/dataflex/reference/)[0-9a-f]+")  # of doremi: named after a model below the run
_LEFT_OUT = ("training_args.bin",)  # a pickle of paths
_LOG = re.compile(r"run(\.rank\d+)?\.log$")  # what libraries print
_TEXT = (".txt", ".md", ".yaml", ".yml", ".jinja", "")
_LONG = 3000  # values of a JSON file, above which it is told by its hash


def read_again(out: Path, places: Names, outs: dict[str, list[str]]) -> None:
    """Make the records of runs anew from what they have left. outs: name of a run -> its output directories."""
    for name, own in outs.items():
        folder, file = out / name, out / name / "record.json"
        if file.is_file():
            old = json.loads(file.read_text())
            new = record(folder, own, {str(folder): "<run>", **places})
            file.write_text(json.dumps(new | {key: old[key] for key in ("status", "seconds")}))


def record(folder: Path, outs: list[str], names: Names) -> dict[str, Any]:
    """names: pieces of paths, and what stands for them."""
    forwards = {}
    for file in sorted(folder.glob("step-*/forwards-*.jsonl")):
        forwards[str(file.relative_to(folder))] = file.read_text().splitlines()
    files = {}
    for out in dict.fromkeys(outs):
        for file in sorted(p for p in (folder / out).rglob("*") if p.is_file()):
            if file.name not in _LEFT_OUT and not _LOG.match(file.name):
                files[_STORE.sub("<hash>", str(file.relative_to(folder)))] = content(file, names)
    return {"forwards": forwards, "files": files}


def content(file: Path, names: Names) -> dict[str, str]:
    """Parts of a file by name; times are left out, and paths replaced."""
    kind = file.suffix
    if file.name == "COMPLETE":  # sizes and hashes of files whose contents are compared, one with paths among them
        return dict.fromkeys(sorted(json.loads(file.read_text() or "{}")), "")
    if kind == ".json":
        found = values(json.loads(file.read_text()), names)
        return {where: "" if hashes_paths(file, where) else text for where, text in found.items()}
    if kind == ".jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines() if line]
        return values(lines, names)
    if kind == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(file)
        return {
            name: f"{table.schema.field(name).type} {digest(json.dumps(table[name].to_pylist(), default=str))}"
            for name in table.column_names
        }
    if kind == ".npz":
        import numpy as np

        with np.load(file) as arrays:
            return {name: array_of(arrays[name]) for name in sorted(arrays.files)}
    if kind == ".npy":
        import numpy as np

        return {"": array_of(np.load(file))}
    if kind == ".safetensors":
        from safetensors.torch import load_file

        return leaves(load_file(file))
    if kind in (".pt", ".pth", ".bin"):
        return pickled(file)
    if file.name == ".metadata":
        return sharded(file.parent)
    if kind in (".png", ".arrow", ".distcp"):  # the last is part of what .metadata leads to
        return {"": "there is one"}
    if kind in _TEXT:
        text = (
            _DURATION.sub("<time>", file.read_text(errors="replace"))
            if kind == ".md"
            else file.read_text(errors="replace")
        )
        lines = renamed(text, names).splitlines()
        return {f"line {number}": line for number, line in enumerate(lines, 1) if not _TIMES.search(line)}
    return {"": digest(file.read_bytes())}


def hashes_paths(file: Path, where: str) -> bool:
    """Whether a value is a hash of files with paths of the run in them: of the steps of `doremi`, of what the first leaves."""
    stored = file.name == "key.json" and where == "/model"
    reference = stored or where.startswith("/identity/content of the reference")
    return file.name == "doremi.json" or ("/proxy/" in str(file) and reference)


def sharded(folder: Path) -> dict[str, str]:
    """A checkpoint of torch.distributed, whole."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict[str, Any] = {}
    reader, planner = FileSystemReader(folder), _EmptyStateDictLoadPlanner()
    _load_state_dict(found, storage_reader=reader, planner=planner, no_dist=True)
    return leaves(found)


def pickled(file: Path) -> dict[str, str]:
    import torch

    try:
        return leaves(torch.load(file, map_location="cpu", weights_only=False))
    except Exception as error:
        return {"": f"{type(error).__name__}"}


def leaves(value: Any) -> dict[str, str]:
    return dict(walk("", value))


def walk(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Tensors, arrays and plain values below `value`, in the order of their names."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        yield where, f"{plain.dtype}{list(plain.shape)} {digest(plain.flatten().view(torch.uint8).numpy().tobytes())}"
    elif isinstance(value, np.ndarray):
        yield where, array_of(value)
    elif isinstance(value, Mapping | list | tuple) and not value:
        yield where, repr(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from walk(f"{where}/{key}", value[key])
    elif isinstance(value, list | tuple):
        if len(value) > 50 and all(isinstance(v, int | float) for v in value):
            yield where, digest(repr(value))
        else:
            for number, own in enumerate(value):
                yield from walk(f"{where}/{number}", own)
    elif isinstance(value, int | float | str | bytes | bool | None.__class__):
        yield where, repr(value)
    else:
        yield where, type(value).__name__


def array_of(array: Any) -> str:
    data = array.tobytes() if array.dtype.kind not in "OU" else repr(array.tolist()).encode()
    return f"{array.dtype}{list(array.shape)} {digest(data)}"


def values(value: Any, names: Names) -> dict[str, str]:
    """Leaves of a JSON value, floats as they are written."""
    found = {where: renamed(text, names) for where, text in walk("", value) if not _TIMES.search(where)}
    return found if len(found) <= _LONG else {"": digest(json.dumps(found))}


def renamed(text: str, names: Names) -> str:
    for place, name in sorted(names.items(), key=lambda item: -len(item[0])):
        text = text.replace(place, name)
    return text


def digest(data: str | bytes) -> str:
    return hashlib.blake2b(data.encode() if isinstance(data, str) else data, digest_size=12).hexdigest()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    read_again(Path(given["out"]), given["places"], given["outs"])
