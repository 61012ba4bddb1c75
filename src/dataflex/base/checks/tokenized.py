"""`tokenized_path`: data sets tokenized once, and a note of what they were made from, by which later edits are noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from datasets import load_from_disk

from dataflex.base.checks.contents import described, first_change
from dataflex.base.checks.domains import contents_of, elsewhere
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import refusals, refusing
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DATA_SETS, DomainsKeys
from dataflex.errors import ConfigError
from dataflex.notices import say
from dataflex.writing import write_atomically

# Of rows by domain (select, mix), and of LLaMA-Factory's own rows (weight alone).
MANIFEST, _NOTE = "dataflex_tokenized.json", "dataflex_sources.json"
# The format before noted how many bytes the file of a data set has, and nothing of folders.
_FORMAT, _FORMAT_BEFORE = "dataflex-domains-4", "dataflex-domains-3"
# What decides how a raw row becomes token ids, beside the data and the tokenizer.
TOKENIZATION = (
    "template", "cutoff_len", "train_on_prompt", "mask_history", "packing", "neat_packing", "tool_format",
    "default_system", "enable_thinking", "preserve_thinking", "max_samples", "val_size", "preprocessing_batch_size",
    "ignore_pad_token_for_loss",
)  # fmt: skip


class TokenizedStore:
    """The directory `tokenized_path` of a run with select, mix or order. What is read from it must have been made by the same
    tokenization from data sets of the same contents; a ConfigError names what differs."""

    def __init__(self, loading: Loading, domains: DomainsKeys) -> None:
        data_args, training_args = loading.data_args, loading.training_args
        self.folder = Path(data_args.tokenized_path)
        self.names = list(data_args.dataset) if domains == DATA_SETS else None
        """The domains; None: the rows of the data name them."""
        self._domains = domains.record()
        if self._domains is not None:
            self._domains |= dict.fromkeys(elsewhere(domains)) | contents_of(domains)
        self._sources = _Sources(data_args)
        self._signature = tokenization_signature(loading) | self._sources.definitions
        self._writes, self._reads = training_args.should_save, training_args.local_process_index == 0
        self._files: Mapping[str, Any] = {}

    @property
    def exists(self) -> bool:
        if (self.folder / MANIFEST).is_file():
            return True
        if self.folder.exists() and any(self.folder.iterdir()):
            raise refused.NOT_BY_DOMAIN.error(folder=self.folder)
        return False

    def describe_sources(self) -> None:
        """To be called before the data is read: what is edited from then on is noticed."""
        self._files = self._sources.described() if self._writes else {}

    def write(self, names: list[str], parts: list[Any], held_out: list[Any], evaluation: Any) -> None:
        for kind, rows in (("domains", parts), ("held_out", held_out)):
            for d, part in enumerate(rows):
                refusing(part.save_to_disk)(str(self.folder / kind / str(d)))
        sets = {} if evaluation is None else evaluation if isinstance(evaluation, dict) else {"": evaluation}
        for e, part in enumerate(sets.values()):
            refusing(part.save_to_disk)(str(self.folder / "eval" / str(e)))
        manifest = {
            "format": _FORMAT, "domains": names, "named_by": self._domains, "held_out": len(held_out), "eval": list(sets),
            "signature": self._signature, "sources": self._files,
        }  # fmt: skip
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    def read(self) -> tuple[list[str], list[Any], list[Any], Any]:
        """The names of the domains, their parts, their held-out rows, and the evaluation data."""
        with refusals():
            manifest = json.loads((self.folder / MANIFEST).read_text())
        before = manifest.get("format") == _FORMAT_BEFORE
        if manifest.get("format") != _FORMAT and not before:
            raise refused.OTHER_VERSION.error(folder=self.folder)
        stored = manifest.get("signature", {})
        _check_signature(self.folder, _of_format_before(stored) if before else stored, self._signature)
        named_by = manifest.get("named_by")
        if named_by != self._domains:
            raise refused.OTHER_TOKENS.error(
                folder=self.folder, setting="dataflex.domains", stored=named_by, asked=self._domains
            )
        names: list[str] = manifest["domains"]
        if self.names is not None and names != self.names:
            stored, asked = ", ".join(names), ", ".join(self.names)
            raise refused.OTHER_DOMAINS.error(folder=self.folder, stored=stored, asked=asked)
        if self._reads and before:
            self._sources.check_before(self.folder, stored)
        elif self._reads:
            self._sources.check(self.folder, manifest["sources"])
        load = refusing(load_from_disk)
        parts = [load(str(self.folder / "domains" / str(d))) for d in range(len(names))]
        held_out = [load(str(self.folder / "held_out" / str(d))) for d in range(manifest["held_out"])]
        sets = {name: load(str(self.folder / "eval" / str(e))) for e, name in enumerate(manifest["eval"])}
        return names, parts, held_out, (sets[""] if list(sets) == [""] else sets) if sets else None


@contextmanager
def noted(loading: Loading) -> Iterator[None]:
    """Around LLaMA-Factory's own loading (weight alone), which goes by no more than whether `tokenized_path` is there: checks
    what was noted when it was made, and notes it where it is made now."""
    data_args, training_args = loading.data_args, loading.training_args
    folder = Path(data_args.tokenized_path) if data_args.tokenized_path else None
    if folder is None:
        yield
        return
    if (folder / MANIFEST).is_file():
        raise refused.BY_DOMAIN.error(folder=folder)
    sources = _Sources(data_args)
    signature = tokenization_signature(loading) | sources.definitions
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _NOTE).is_file():
            say(f"tokenized_path: {folder} does not say what it was made from, so edited data would not be noticed")
        elif training_args.local_process_index == 0:
            try:
                note = json.loads((folder / _NOTE).read_text())
                made_by, made_from = dict(note["signature"]), dict(note["sources"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"tokenized_path: {folder / _NOTE} cannot be read ({error!r}); remove {folder}"
                ) from error
            _check_signature(folder, made_by, signature)
            sources.check(folder, made_from)
        yield
        return
    files = sources.described() if training_args.should_save else {}
    yield
    if training_args.should_save:
        note = {"signature": signature, "sources": files}
        write_atomically(folder / _NOTE, json.dumps(note, indent=1).encode())


class _Sources:
    """The data sets that rows are tokenized from: how they are defined, and their files where these are on this machine."""

    def __init__(self, data_args: Any) -> None:
        self._dir = Path(str(data_args.dataset_dir))
        info_file = self._dir / "dataset_info.json"
        if isinstance(data_args.dataset_dir, dict):
            info = data_args.dataset_dir
        else:
            info = json.loads(info_file.read_text(encoding="utf-8")) if info_file.is_file() else {}
        names = [*data_args.dataset, *(data_args.eval_dataset or [])]
        self._entries = {name: dict(info.get(name, {})) for name in names}
        self.definitions: dict[str, Any] = {
            key: getattr(data_args, key) for key in ("eval_dataset", "eval_on_each_dataset")
        }
        self.definitions |= {f"source of {name}": entry for name, entry in self._entries.items()}

    @cached_property
    def _paths(self) -> dict[str, dict[str, Path]]:
        return {name: self._local(entry) for name, entry in self._entries.items()}

    def _local(self, entry: Mapping[str, Any]) -> dict[str, Path]:
        """Files and folders by the names that the entry gives them."""
        hub = next((str(entry[k]) for k in ("hf_hub_url", "ms_hub_url", "om_hub_url") if k in entry), None)
        if hub is not None:  # may be a folder on this machine; on a hub there is nothing to look at
            found = {hub: Path(hub)}
        else:
            given = entry.get("script_url") or ([] if "cloud_file_name" in entry else entry.get("file_name")) or []
            found = {str(name): self._dir / name for name in ([given] if isinstance(given, str) else given)}
        return {name: path for name, path in found.items() if path.exists()}

    def described(self) -> dict[str, Any]:
        return {name: described(paths) for name, paths in self._paths.items()}

    def check(self, folder: Path, known: Mapping[str, Any]) -> None:
        for name, paths in self._paths.items():
            changed = first_change(paths, known.get(name, {}))
            if changed is not None:
                raise refused.OTHER_ROWS.error(folder=folder, name=name, change=changed)

    def check_before(self, folder: Path, signature: Mapping[str, Any]) -> None:
        """Of a directory that notes no contents: as many bytes, and nothing that is newer than the directory."""
        made = (folder / MANIFEST).stat().st_mtime_ns
        for name, paths in self._paths.items():
            for file, now in described(paths).items():
                bytes_then = signature[f"source of {name}"].get("bytes")
                if bytes_then not in (None, now["bytes"]) or now["modified"] > made:
                    raise refused.EDITED.error(folder=folder, file=file, name=name)
        say(
            f"tokenized_path: {folder} was made by an earlier version, which noted no contents of data sets; sizes and"
            " times say that they are the same. A new directory makes sure of it"
        )


def _of_format_before(signature: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value["entry"] if key.startswith("source of ") else value for key, value in signature.items()}


def _check_signature(folder: Path, stored: Mapping[str, Any], signature: Mapping[str, Any]) -> None:
    for key, value in signature.items():
        if stored.get(key) != value:
            raise refused.OTHER_TOKENS.error(folder=folder, setting=key, stored=stored.get(key), asked=value)


def tokenization_signature(loading: Loading) -> dict[str, Any]:
    """What must be equal for token ids to be equal, the raw data aside."""
    tokenizer = loading.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # set by the last call, not by who made it
            content.pop(state, None)
        vocabulary = json.dumps(content, sort_keys=True)
    else:
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    record = {name: getattr(loading.data_args, name) for name in TOKENIZATION}
    if record["val_size"]:
        record["split_seed"] = loading.training_args.seed
    special = sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())
    digest = xxhash.xxh3_128((vocabulary + repr(special)).encode()).hexdigest()
    return {"stage": loading.stage, **record, "tokenizer": digest}
