"""Secrets in a configuration: what is written down, or sent to a tracker, holds a mask in their place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dataflex.errors import ConfigError

MASK = "*****"
_ENVIRONMENT = "DATAFLEX_SECRETS"
# A word of a key that makes any value secret, and one that makes text secret: numbers of tokens are none.
_SECRET = re.compile(r"(pass(word|wd|phrase)?|pwd|secret|credential|webhook)s?|\w*(password|passwd|secret|webhook)s?")
_SECRET_TEXT = re.compile(r"\w*tokens?|(api|access|auth|private|public|secret|ssh)?keys?")
# Keys of which all values are, whatever their names: environments of workers, addresses with passwords.
_WHOLE = ("ray_init_kwargs",)
# Keys that hold such a word and no secret.
INNOCENT = frozenset(
    {
        "add_tokens", "add_special_tokens", "new_special_tokens_config", "init_special_tokens", "skip_special_tokens",
        "split_special_tokens", "special_tokens", "include_num_input_tokens_seen", "bos_token", "eos_token", "pad_token",
        "unk_token", "image_token", "video_token", "audio_token", "stop_token", "stop_tokens", "passes",
    }
)  # fmt: skip
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_IN_TEXT = (
    re.compile(r"(?<=://)(?!git@)[^/@\s]+(?=@)"),  # https://user:password@host
    re.compile(r"(?i)(?<=[?&])((?:[\w-]*(?:token|key|secret|password|signature))=)[^&\s]+"),  # ...?access_token=...
    re.compile(r"\b(?:hf_|sk-|ghp_|gho_|glpat-|github_pat_|xox[abp]-)[\w-]{16,}"),  # tokens of well-known services
)


def masked(value: Any, key: str = "") -> Any:
    """A configuration with MASK in the place of every secret: a value whose key says that it is one, at any depth, and in text
    what a URL holds of passwords and tokens."""
    if isinstance(value, Mapping):
        whole = key if _hides(key) else ""
        return {k: masked(v, whole or str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v, key) for v in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if key in _WHOLE or is_secret(key, value):
        return MASK
    return _masked_text(value) if isinstance(value, str) else value


def is_secret(key: str, value: Any = "text") -> bool:
    """Whether a key says that its value is secret."""
    if key in INNOCENT:
        return False
    words = [word.lower() for word in _WORDS.findall(key)]
    kinds = (_SECRET, _SECRET_TEXT) if isinstance(value, str) else (_SECRET,)
    return any(kind.fullmatch(word) for kind in kinds for word in words)


def _hides(key: str) -> bool:
    """Whether all that is below a key is secret."""
    return key in _WHOLE or is_secret(key)


def _masked_text(text: str) -> str:
    for pattern in _IN_TEXT:
        text = pattern.sub(lambda found: (found[1] if found.re.groups else "") + MASK, text)
    return text


def to_environment(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The secrets of a configuration, as the environment of a process that reads it masked; empty if it has none."""
    original, shown = dict(_leaves(configuration)), dict(_leaves(masked(configuration)))
    kept = {path: value for path, value in original.items() if shown[path] != value}
    return {_ENVIRONMENT: json.dumps(kept)} if kept else {}


def hiding(configuration: Mapping[str, Any]) -> Callable[[str], str]:
    """Takes the secrets of a configuration out of text, and tokens of well-known form."""
    original, shown = dict(_leaves(configuration)), dict(_leaves(masked(configuration)))
    found = {value for place, value in original.items() if isinstance(value, str) and value and shown[place] != value}
    secrets = sorted(found, key=len, reverse=True)  # one may be a part of another

    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MASK)
        return _masked_text(text)

    return hide


def filled(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration that was read masked, with the secrets of the environment in their places.

    ConfigError for one that is not there."""
    kept = json.loads(os.environ.get(_ENVIRONMENT, "{}"))

    def fill(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: fill(below, _join(path, key)) for key, below in value.items()}
        if isinstance(value, list):
            return [fill(below, _join(path, number)) for number, below in enumerate(value)]
        if not isinstance(value, str) or MASK not in value:
            return value
        if path not in kept:
            raise ConfigError(f"{path}: {value} stands for a secret that is not written down; give its value")
        return kept[path]

    return dict(fill(configuration, ""))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, _join(path, key))
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value):
            yield from _leaves(below, _join(path, number))
    else:
        yield path, value


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
