"""The keys that a command is given: a file with overrides, or LLaMA-Factory's flags."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, UnsupportedValueType
from yaml import YAMLError

from dataflex.errors import ConfigError
from dataflex.masking import filled
from dataflex.values.paths import at_home

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def read(arguments: Sequence[str]) -> dict[str, Any]:
    """The keys that a command is given: `<file.yaml|.yml|.json> [key=value ...]`, or LLaMA-Factory's `--key value ...`."""
    if arguments and arguments[0].endswith(CONFIG_SUFFIXES):
        return read_file(Path(arguments[0]), list(arguments[1:]))
    return _read_flags(arguments)


def read_file(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The keys of a .yaml or .json file, with `key=value` overrides."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no such configuration file: {path}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no UTF-8 text ({_one_line(error)})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{ascii(str(path))[1:-1]}: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = json.loads(text, object_pairs_hook=_once_each) if path.suffix == ".json" else text
        if not isinstance(content, str | dict) and content is not None:
            raise TypeError
        # OmegaConf takes a text that is one word for a key
        base = OmegaConf.create({} if content is None or not str(content).strip() else content)
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    except (TypeError, UnsupportedValueType):
        raise ConfigError(f"{path} must hold keys and values") from None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from None
    if not isinstance(base, DictConfig) or (path.suffix != ".json" and _is_word(text)):
        raise ConfigError(f"{path} must hold keys and values")
    if not base:
        raise ConfigError(f"{path} holds no key")
    merged = OmegaConf.to_container(base)
    for override in overrides:
        merged = _overridden(merged, override, path)
    assert isinstance(merged, dict)
    return filled({str(k): v for k, v in at_home(merged).items()})


def _overridden(base: Any, override: str, path: Path) -> Any:
    key, equals, _ = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form key=value")
    return _set(base, override, f"{path}: override {override!r} cannot be read")


def _set(base: Any, pair: str, fault: str) -> Any:
    """`base` with the key and the value of `key=value`; ConfigError that begins with `fault` if that is none."""
    parts = [part for part in re.split(r"[.\[\]]", pair.partition("=")[0]) if part]
    try:
        return _merged(base, OmegaConf.to_container(OmegaConf.from_dotlist([pair])), parts, f"{fault[:200]}:")
    except RecursionError:
        raise ConfigError(f"{fault[:200]}: it is nested too deeply") from None
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"{fault[:200]}: {_one_line(error)}") from None


def _merged(old: Any, new: Any, parts: Sequence[str], fault: str, depth: int = 0) -> Any:
    """Mappings are merged key by key; anything else is replaced. parts: of the key that names the value."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value, parts, fault, depth + 1) for key, value in new.items()}}
    if isinstance(old, list) and depth < len(parts):
        raise ConfigError(f"{fault} {'.'.join(parts[:depth])} is a list there; write the list whole")
    return new


def _is_word(text: str) -> bool:
    """Whether a YAML text is one value, without a key."""
    return not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return out


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--key a b` (a list) and `--key` (true), values typed as YAML does."""
    content: dict[Any, Any] = {}
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if not word.startswith("--"):
            raise ConfigError(f"expected a .yaml, .yml or .json file or --key value, got {word!r}")
        key, equals, value = word[2:].partition("=")
        if not key:
            raise ConfigError(f"{word!r} has no key; expected --key value")
        index += 1
        values = [value] if equals else []
        while not equals and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(arguments[index])
            index += 1
        joined = "true" if not values else values[0] if len(values) == 1 else "[" + ",".join(values) + "]"
        content = _set(content, f"{key}={joined}", f"--{key} cannot be read")
    return {str(k): v for k, v in at_home(content).items()}
