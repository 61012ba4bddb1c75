"""What has to be the same on every node for a run to be one run: data, configuration, and the checkpoint it goes on from.

Decisions travel between ranks, but rows, models and checkpoints are read by each node from its own disk.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from dataflex.distributed import collectives
from dataflex.errors import ConfigError
from dataflex.notices import say
from dataflex.record.completeness import MARK, complete_checkpoints, what_is_damaged, what_is_missing
from dataflex.record.ledger import DIRECTORY

# Numbers that may differ from node to node.
_LOCAL = ("workers", "port", "local_rank", "prefetch")
OTHER_SETTING = "{key} is {b!r} on {second} and {a!r} on {first}; every node must be given the same configuration"


def same_everywhere(make: Callable[[], Mapping[str, Any]], fault: str) -> dict[str, Any]:
    """What `make` gives on rank 0, once the first rank of every node has given the same.

    ConfigError, on every rank, for the first key that differs; fault: what it says, with `{key}`."""
    found = collectives.by_node(lambda: dict(make()))
    (first, ours), *others = found
    for where, theirs in others:
        for key in [*ours, *(k for k in theirs if k not in ours)]:
            if ours.get(key) != theirs.get(key):
                raise ConfigError(fault.format(key=key, a=ours.get(key), b=theirs.get(key), first=first, second=where))
    return ours


def same_rows(make: Callable[[], Mapping[str, Any]], key: str, hashed: str = "rows") -> dict[str, Any]:
    """Digests of data sets that the configuration names under `key`. hashed: the part of them that digests are of."""
    return same_everywhere(
        make,
        key
        + ": the "
        + hashed
        + " of {key!r} are others on {second} than on {first}; every node must have the same data",
    )


def same_run(identity: Mapping[str, Any], llamafactory: Mapping[str, Any]) -> None:
    """Raise ConfigError if another node was given another configuration, as far as it does not say where something is."""
    numbers = {
        key: value
        for key, value in llamafactory.items()
        if isinstance(value, bool | int | float) and not any(word in key for word in _LOCAL)
    }
    portable = {key: value for key, value in identity.items() if not (isinstance(value, str) and os.sep in value)}
    same_everywhere(lambda: {**numbers, **portable}, OTHER_SETTING)


def settle_checkpoint(training_args: Any, asked: Any) -> None:
    """All ranks go on from the same checkpoint, or none does: the newest that is whole on every node, or the one asked for. Its
    files are read once on every node, and compared with what was saved.

    ConfigError, on every rank, where a node has none."""
    automatic = str(asked).lower() in ("none", "true", "false")
    own, output = training_args.resume_from_checkpoint or None, Path(training_args.output_dir)
    training_args.resume_from_checkpoint = own
    record: dict[str, Any] = {"label": collectives.rank_label(), "output": str(output.absolute()), "steps": {}}
    if own and automatic:
        record["steps"] = {step: _digest(path) for step, path in complete_checkpoints(output)}
    elif own:
        record |= {"folder": str(own), "reason": what_is_missing(Path(own)), "digest": _digest(Path(own))}
    found = collectives.gather(record)
    _check_writers(training_args.should_save, output)
    if not any(r["steps"] or "folder" in r for r in found):
        return
    if automatic:
        training_args.resume_from_checkpoint = str(output / f"checkpoint-{_newest_whole(found, output)}")
        return
    for other in found:
        if "folder" not in other or other["reason"] is not None:
            raise ConfigError(
                f"resume_from_checkpoint: {other.get('folder', 'it')} is not complete"
                f"{_on(other, found)}: {other.get('reason', 'it is not set there')}{_hint(found)}"
            )
        _check_same(found[0], found[0]["folder"], found[0]["digest"], other, other["folder"], other["digest"])
    check_contents(Path(str(own)))


def check_contents(folder: Path) -> None:
    """Raise ConfigError, on every rank, if a checkpoint that is named does not hold on a node what was saved there. One without a
    mark, of another program, says nothing about that."""
    marked = (folder / DIRECTORY / MARK).is_file()
    for rank_label, reason in collectives.by_node(lambda: what_is_damaged(folder) if marked else None):
        if reason is not None:
            where = f" on {rank_label}" if collectives.ranks() > 1 else ""
            raise ConfigError(f"resume_from_checkpoint: {folder} is damaged{where} ({reason}); name another checkpoint")


def _newest_whole(found: list[dict[str, Any]], output: Path) -> int:
    """The newest step whose files hold on every node what was saved. ConfigError if there is none: the run does not start over
    on top of a checkpoint that may be whole but for a bit."""
    while True:
        step = _newest_common(found)
        folder = output / f"checkpoint-{step}"
        checked = collectives.by_node(partial(what_is_damaged, folder))
        damaged = [(rank_label, reason) for rank_label, reason in checked if reason is not None]
        if not damaged:
            for other in found:
                folders = (f"{r['output']}/checkpoint-{step}" for r in (found[0], other))
                _check_same(
                    found[0], next(folders), found[0]["steps"][step], other, next(folders), other["steps"][step]
                )
            return step
        rank_label, reason = damaged[0]
        there = next(r["output"] for r in found if r["label"] == rank_label)
        damage = f"{there}/{folder.name} is damaged{f' on {rank_label}' if len(found) > 1 else ''} ({reason})"
        for record in found:
            record["steps"] = {older: digest for older, digest in record["steps"].items() if older < step}
        if not any(record["steps"] for record in found):
            raise ConfigError(
                f"output_dir: {damage}, and there is no older checkpoint; change output_dir, or set overwrite_output_dir to start"
                " over"
            )
        say(f"{damage}; an older checkpoint is used")


def check_generators(training_args: Any, saved_ranks: int | None) -> None:
    """One line where the state of a rank's random numbers is not among the files of its node."""
    ranks, folder = collectives.ranks(), training_args.resume_from_checkpoint
    name = "rng_state.pth" if ranks == 1 else f"rng_state_{collectives.rank()}.pth"
    missing = collectives.gather(None if (Path(folder) / name).is_file() else f"{name} on {collectives.rank_label()}")
    if saved_ranks == ranks and any(missing):
        say(
            f"{Path(folder).name} lacks {', '.join(filter(None, missing))}; rows and decisions go on as they would have,"
            " dropout does not"
        )


def _newest_common(found: list[dict[str, Any]]) -> int:
    for other in found:
        if not other["steps"]:
            having = next(r for r in found if r["steps"])
            raise ConfigError(
                f"output_dir: {other['output']} on {other['label']} has no complete checkpoint, and {having['label']} would"
                f" go on from {having['output']}/checkpoint-{max(having['steps'])}{_hint(found)}"
            )
    common = set.intersection(*(set(r["steps"]) for r in found))
    if not common:
        raise ConfigError(
            "output_dir: no checkpoint is complete on every node: "
            + ", ".join(f"{r['label']} has step {max(r['steps'])}" for r in found)
            + _hint(found)
        )
    step = max(common)
    newest = max(found, key=lambda r: max(r["steps"]))
    if max(newest["steps"]) > step:
        say(
            f"checkpoint-{max(newest['steps'])} is complete on {newest['label']} but not on every node;"
            f" checkpoint-{step} is used"
        )
    return step


def _check_same(
    one: dict[str, Any], folder: str, digest: str, other: dict[str, Any], its: str, its_digest: str
) -> None:
    if its_digest != digest:
        raise ConfigError(
            f"resume_from_checkpoint: {its} on {other['label']} is not the checkpoint that {folder} is on {one['label']}; copy"
            " one of them to every node"
        )


def _check_writers(writes: bool, output: Path) -> None:
    """Two ranks that save to one directory would write the same files at the same time. Whether it is one, on whatever file
    systems, shows in whether a rank sees what another one has put there."""
    if sum(collectives.gather(writes)) < 2:
        return
    mark = output / f".dataflex-{uuid4().hex}"
    if writes:
        output.mkdir(parents=True, exist_ok=True)
        mark.touch()
    marks = collectives.gather((collectives.rank_label(), mark.name if writes else ""))
    shared = [where for where, name in marks if writes and name not in ("", mark.name) and (output / name).exists()]
    found = collectives.gather((shared, str(output.absolute())))
    mark.unlink(missing_ok=True)
    for (where, _), (others, folder) in zip(marks, found, strict=True):
        if others:
            raise ConfigError(
                f"save_on_each_node: {where} and {others[0]} would both save to {folder}; leave it out, or give each an"
                " output_dir of its own"
            )


def _digest(folder: Path) -> str:
    file = folder / DIRECTORY / "state.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _on(other: dict[str, Any], found: list[dict[str, Any]]) -> str:
    return f" on {other['label']}" if len(found) > 1 else ""


def _hint(found: list[dict[str, Any]]) -> str:
    if len(found) == 1:
        return ""
    return "; a resumed run reads it on every node: copy it there, or train with save_on_each_node: true"
