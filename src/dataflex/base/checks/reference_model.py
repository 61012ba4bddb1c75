"""The files of a reference model: whether they can be used, and a hash of their contents."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import xxhash

from dataflex.base.checks.contents import add_content
from dataflex.base.checks.nodes import same_everywhere
from dataflex.config.refusals import loaded as refused
from dataflex.errors import ConfigError
from dataflex.values.paths import is_folder

_WEIGHTS = ("*.safetensors", "*.bin", "*.json")


def check_reference(path: str, tokenizer_of_run: str, key: str) -> None:
    """Raise ConfigError, naming `key`, if there is no such model, or it plainly reads other tokens, as far as its files are
    here."""
    folder = Path(path)
    if (path.startswith(("/", ".", "~")) or path.count("/") > 1) and not is_folder(path):
        raise ConfigError(f"{key}: no such directory: {path}")
    if not is_folder(path):
        return
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise refused.NO_MODEL.error(key=key, path=path)
    theirs, ours = folder / "tokenizer.json", Path(tokenizer_of_run) / "tokenizer.json"
    if theirs.is_file() and ours.is_file() and _vocabulary(theirs) != _vocabulary(ours):
        raise refused.OTHER_TOKENIZER.error(key=key, path=path, own=tokenizer_of_run)


def _vocabulary(file: Path) -> object:
    return json.loads(file.read_text(encoding="utf-8")).get("model", {}).get("vocab")


@lru_cache
def fingerprint(path: str, key: str) -> str:
    """A hash of the model's files; of a model of the hub, its commit. Equal on every rank; ConfigError if a node has another
    model there."""
    other = f"{key}: the model in {path} is another one on {{second}} than on {{first}}; every node must have the same"
    return str(same_everywhere(lambda: {"model": _hash_model(path, key)}, other)["model"])


def _hash_model(path: str, key: str) -> str:
    from transformers import AutoConfig

    folder = Path(path)
    if not folder.is_dir():
        try:
            return f"{path}@{getattr(AutoConfig.from_pretrained(path), '_commit_hash', None)}"
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key}: {path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    digest = xxhash.xxh3_128()
    for file in sorted({f for pattern in _WEIGHTS for f in folder.glob(pattern)}):
        if file.suffix == ".json" and file.name not in ("config.json", "adapter_config.json"):
            continue
        digest.update(file.name.encode())
        add_content(digest, file)
    return digest.hexdigest()
