"""Refused where the order of rows is ours (select, mix, order), and where data is streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dataflex.components.requests import streamed_by
from dataflex.config.refusals import loaded
from dataflex.config.refusals.record import Facts, Group, Refusal
from dataflex.values import integer, words

# What works on data that is read once, from front to back.
_STREAMED_STAGES = ("pt", "sft")


def _other_count(facts: Facts) -> Mapping[str, Any] | None:
    proportions = facts.mix.proportions if facts.mix else None
    datasets = facts.lf.get("dataset")
    if proportions is None or facts.config.splits or not isinstance(datasets, str | list):
        return None
    names = words(datasets)
    return None if len(names) == len(proportions) else loaded.count_of(proportions, names)


def _indexed(facts: Facts) -> Mapping[str, Any] | None:
    needed = sorted(r.name for r in facts.config.requests("mix") if not r.streamed)
    return {"signal": needed[0], "streamed": " or ".join(streamed_by("mix"))} if needed else None


def _measured_ahead(facts: Facts) -> Mapping[str, Any] | None:
    for slot in facts.config.slots("weight"):
        ahead = sorted(r.name for r in facts.config.requests(slot) if not r.streamed)
        if ahead:
            return {"slot": slot, "signal": ahead[0]}
    return None


def _by_epoch(key: str) -> Refusal:
    return Refusal(
        key=key,
        why=f"{key}: epoch never comes while streaming",
        instead="use steps",
        when=lambda f: f.word(key) == "epoch",
    )


DATA = Group(
    title="With `select`, `mix` or `order`",
    applies=lambda f: f.config.plans_data,
    refusals=(
        Refusal(
            key="mix_strategy",
            why="mix_strategy: {lf[mix_strategy]} interleaves data sets itself",
            instead="leave it at concat with {components}",
            when=lambda f: str(f.lf.get("mix_strategy", "concat")) != "concat",
        ),
        Refusal(
            key="dataflex.mix.max_repetition",
            why="dataflex.mix.max_repetition counts the rows of whole domains and cannot be combined with select in this version",
            when=lambda f: bool(f.select and f.mix) and f.mix.limits,
        ),
        replace(loaded.OTHER_COUNT, when=_other_count),
        *loaded.DATA,
    ),
    note="`replay` is also refused if its run changed the mixture inside a global batch of this run: a decision falls between"
    " two steps.",
)

STREAMS = Group(
    title="With `streaming: true`",
    applies=lambda f: f.on("streaming"),
    refusals=(
        Refusal(
            key="streaming",
            why="streaming shows no rows to choose from, and select: {select.name} needs all of them",
            instead="use mix, or mix and weight",
            when=lambda f: f.select is not None,
        ),
        Refusal(
            key="streaming",
            why="streaming shows no rows to put in order, and order: {order.name} needs all of them",
            instead="leave order out, or sort the files",
            when=lambda f: f.order is not None,
        ),
        Refusal(
            key="streaming",
            why="streaming with only weight cannot be resumed",
            instead="add mix: static",
            when=lambda f: f.mix is None and f.select is None and f.order is None,
        ),
    ),
    note="`mix`, and `mix` with `weight`, work for pt and sft.",
)

STREAMED_MIX = Group(
    title="With `streaming: true` and `mix`",
    applies=lambda f: f.mix is not None and f.on("streaming"),
    refusals=(
        Refusal(
            key="streaming",
            why="streaming is not supported for stage: {stage}",
            instead="use pt or sft",
            when=lambda f: f.stage not in _STREAMED_STAGES,
        ),
        Refusal(
            key="streaming",
            why="streaming shows no rows to measure ahead, and mix: {mix.name} needs the signal {signal!r}",
            instead="mixers that need {streamed} or nothing work",
            when=_indexed,
        ),
        Refusal(
            key="streaming",
            why="streaming shows no rows to measure ahead or to compare with, and dataflex.{slot} needs {signal!r}",
            when=_measured_ahead,
        ),
        Refusal(
            key="dataflex.mix.unit",
            why="dataflex.mix.unit: tokens needs the lengths of all rows, which streaming does not know",
            instead="use samples",
            when=lambda f: f.mix.unit == "tokens",
        ),
        Refusal(
            key="dataflex.mix.max_repetition",
            why="dataflex.mix.max_repetition needs the number of rows, which streaming does not know",
            when=lambda f: f.mix.limits,
        ),
        Refusal(
            key="streaming",
            why="streaming has no epochs to count, so the length of the run is required: dataflex.total_steps or max_steps",
            when=lambda f: integer(f.lf.get("max_steps") or 0, "max_steps") <= 0,
        ),
        *(_by_epoch(key) for key in ("save_strategy", "eval_strategy", "logging_strategy")),
        Refusal(
            key="val_size",
            why="val_size cannot be held out of a stream (streaming)",
            instead="name data sets in eval_dataset",
            when=lambda f: f.positive("val_size"),
        ),
        Refusal(
            key="tokenized_path",
            why="tokenized_path holds whole data sets, and streaming keeps none",
            instead="leave one of them out",
            when=lambda f: bool(f.lf.get("tokenized_path")),
        ),
        Refusal(
            key="include_effective_tokens_per_second",
            why="include_effective_tokens_per_second counts all rows, and streaming has no end of them",
            when=lambda f: f.on("include_effective_tokens_per_second"),
        ),
        *loaded.STREAMS,
    ),
    note="LLaMA-Factory itself refuses `max_samples`. Data that makes no sample in a whole epoch is refused when it is read.",
)
