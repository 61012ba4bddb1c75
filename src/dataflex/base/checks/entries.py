"""What dataset_info.json says of a data set, checked before LLaMA-Factory reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.evaluate import EvaluateConfig
from dataflex.errors import ConfigError, nearest
from dataflex.values import shown

_HOSTED = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_FORMATS = ("alpaca", "sharegpt", "openai")
_TEXTS = ("subset", "split", "folder")


def refused_data_sets(key: str, names: list[str], folder: Any, *, once: bool, stage: str | None) -> Iterator[str]:
    """Whatever is wrong with the data sets that `key` names, as far as dataset_info.json of `folder` tells. once: each may be
    named only once. stage: None where it is itself in question."""
    if not names:
        yield f"{key} names no data set"
    info: Any = folder
    where = "dataset_dir"
    if not isinstance(folder, Mapping):
        if str(folder).startswith(("ONLINE", "REMOTE:")):
            return
        where = str(Path(str(folder)) / "dataset_info.json")
        info = read_info(folder)
    for index, name in enumerate(names):
        if name in names[:index]:
            if once:
                yield f"{key}: {name!r} is listed twice{_MORE_OFTEN if key == 'dataset' else ''}"
        elif name not in info:
            yield f"{key}: {name!r} is not defined in {where}{nearest(name, info)}"
        elif not isinstance(info[name], dict):
            yield f"{key}: the entry of {name!r} in {where} must be a mapping, got {shown(info[name])}"
        else:
            for fault in _faults(info[name], stage):
                yield f"{key}: the entry of {name!r} in {where}: {fault}"
            yield from _missing(key, name, info[name], folder)


_MORE_OFTEN = (
    "; list it once, and to see it more often give it a larger share with mix (dataflex.mix.proportions), or a num_samples"
    " above its size in dataset_info.json"
)


def read_info(folder: Any) -> dict[str, Any]:
    """dataset_info.json of a dataset_dir; ConfigError if there is none, or it is not what it should be."""
    path = Path(str(folder)) / "dataset_info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"dataset_dir: there is no {path}") from None
    except OSError as error:
        raise ConfigError(f"dataset_dir: {path} cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise ConfigError(f"dataset_dir: {path} is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"dataset_dir: {path} is not valid JSON: {error}") from None
    if not isinstance(info, dict):
        raise ConfigError(f"dataset_dir: {path} must hold an entry for each data set, by its name")
    return info


def _faults(entry: dict[str, Any], stage: str | None) -> Iterator[str]:
    """What in an entry LLaMA-Factory cannot use."""
    sources = [k for k in ("file_name", *_HOSTED) if k in entry]
    if not sources:
        yield "file_name is missing (or a hub's url)"
    for source in sources:
        if not isinstance(entry[source], str) or not entry[source]:
            yield f"{source} must be text, got {shown(entry[source])}"
    formatting = entry.get("formatting", "alpaca")
    if formatting not in _FORMATS:
        yield f"formatting {shown(formatting)} is not a choice{nearest(str(formatting), _FORMATS)}"
    ranking = entry.get("ranking", False)
    if not isinstance(ranking, bool):
        yield f"ranking must be true or false, got {shown(ranking)}"
    elif stage is not None and ranking != (stage in ("rm", "dpo")):
        needs = "pairs of answers (ranking: true)" if stage in ("rm", "dpo") else "no pairs of answers (ranking: false)"
        yield f"ranking is {str(ranking).lower()}, not applicable with stage: {stage}, which takes {needs}"
    rows = entry.get("num_samples")
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        yield f"num_samples must be at least 1, got {shown(rows)}"
    for name in _TEXTS:
        if entry.get(name) is not None and not isinstance(entry[name], str):
            yield f"{name} must be text, got {shown(entry[name])}"
    for part in ("columns", "tags"):
        names = entry.get(part, {})
        if not isinstance(names, dict):
            yield f"{part} must be a mapping, got {shown(names)}"
            continue
        for role, name in names.items():
            if name is not None and not isinstance(name, str):
                yield f"{part}.{role} must be text, got {shown(name)}"


def _missing(key: str, name: str, entry: dict[str, Any], folder: Any) -> Iterator[str]:
    """A file that is not there."""
    file = entry.get("file_name")
    if not isinstance(file, str) or isinstance(folder, Mapping) or any(k in entry for k in _HOSTED):
        return
    path = os.path.join(str(folder), file)
    try:
        if not os.path.exists(path):
            yield f"{key}: the file of {name!r} is missing: {path}"
        elif os.path.isdir(path) and not os.listdir(path):
            yield f"{key}: the folder of {name!r} is empty: {path}"
        elif not os.access(path, os.R_OK):
            yield f"{key}: the file of {name!r} may not be read: {path}"
    except (OSError, ValueError) as error:
        yield f"{key}: the file of {name!r} cannot be read: {getattr(error, 'strerror', None) or error}"


def refused_evaluated(config: EvaluateConfig, values: Mapping[str, Any]) -> Iterator[str]:
    """Data sets of an evaluation that are not defined, or not as prompts and responses; `stage: pt` reads texts."""
    stage = "pt" if values.get("stage") == "pt" else "sft"
    for key, names in config.data_sets().items():
        yield from refused_data_sets(key, list(names), values.get("dataset_dir", "data"), once=False, stage=stage)
