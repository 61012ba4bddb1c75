"""Refused where the losses of rows are read, and with weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.components.contracts import declared
from dataflex.config.refusals import loaded
from dataflex.config.refusals.record import Facts, Group, Refusal
from dataflex.config.schema.losses import (
    FUSED,
    OTHER_LOSSES,
    changed_loss,
    fused_kernel,
    given_column,
    readers_of_columns,
    reads_losses,
)


def _reader(facts: Facts) -> Mapping[str, Any]:
    """What needs the loss of every row."""
    config = facts.config
    slot = next(slot for slot in config.components if slot == "weight" or reads_losses(config, slot))
    return {"reader": f"{slot}: {getattr(config, slot).name}"}


def _reads(facts: Facts) -> bool:
    return facts.weight is not None or any(reads_losses(facts.config, slot) for slot in facts.config.components)


def _hidden_by(key: str) -> Refusal:
    return Refusal(
        key=key,
        why=f"{key} hides the logits, but {{reader}} needs a loss per row",
        when=lambda f: _reader(f) if fused_kernel(f.lf) == key else None,
    )


def _changed_by(key: str) -> Refusal:
    return Refusal(
        key=key,
        why=f"{key} changes the loss, and {{slot}}: {{name}} takes gradients of the cross entropy",
        when=lambda f: changed_loss(f.lf, f.stage) == key and any(r.takes_gradients for r in f.requests),
    )


def _trained_with_ftx(facts: Facts) -> Mapping[str, Any] | None:
    trained = facts.weight is not None or facts.config.needs("train_loss")
    refused = facts.stage in ("dpo", "kto") and trained and facts.positive("pref_ftx")
    return _reader(facts) if refused else None


LOSSES = Group(
    title="With anything that reads losses",
    applies=_reads,
    refusals=(
        *map(_hidden_by, FUSED),
        Refusal(
            key="pref_bco_weight",
            why="pref_bco_weight keeps running moments of the batch, but {reader} needs a loss per row",
            when=lambda f: _reader(f) if f.stage == "dpo" and f.positive("pref_bco_weight") else None,
        ),
        Refusal(
            key="pref_ftx",
            why="pref_ftx cannot be combined with {reader} in this version",
            when=_trained_with_ftx,
        ),
    ),
    note="That is `weight`, and a component that needs `loss`, `train_loss`, `excess_loss`, `heldout_loss` or gradients, which"
    " are those of the loss of a row. `pref_ftx` is refused with `weight` or a mixer that needs `train_loss`. Components that"
    " read no losses (`select: random`, `token_length`, `rds`, `near`, `tsds`, `mix: static`, `mix: random`) work with all of"
    " these. The loss is then LLaMA-Factory's own, and losses per domain are not reported.",
)

MEASURED = Group(
    title="With a selector, mixer or order that measures losses or takes gradients",
    applies=_reads,
    each=lambda f: f.of(slot for slot in ("select", "mix", "order") if getattr(f, slot) is not None),
    refusals=(
        Refusal(
            key="stage",
            why="stage: kto has a KL term that belongs to the batch, but {slot}: {name} measures rows by themselves",
            when=lambda f: f.stage == "kto" and any(r.stage_loss for r in f.requests),
        ),
        *map(_changed_by, (*OTHER_LOSSES, "label_smoothing_factor")),
    ),
    note="Rows of `kto` that are trained on have a loss: `weight` and `train_loss` work. The loss is changed by `use_dft_loss`,"
    " `use_eaft_loss` and `use_asft_loss` in sft, and by `label_smoothing_factor` in pt and sft.",
)


def _by_token(facts: Facts) -> bool:
    return declared(facts.part.component.level) == "token" or any(r.needs_tokens for r in facts.requests)


def _other_target(facts: Facts) -> bool:
    given = facts.select.target_dataset if facts.select is not None else ()
    return bool(given and facts.weight.target_dataset) and given != facts.weight.target_dataset


def _one_target(facts: Facts) -> bool:
    targets = [r for r in facts.requests if r.per == "target row"]
    return len(targets) == (declared(facts.part.component.target_interval) is not None)


WEIGHTERS = Group(
    title="With `weight`",
    applies=lambda f: f.weight is not None,
    each=lambda f: f.of(f.weight.slots()),
    refusals=(
        Refusal(
            key="dataflex.{slot}.name",
            why="dataflex.{slot}.name: {name} goes by the data set of a row, which weight alone does not know",
            instead="add mix: proportional, or name domains with dataflex.domains",
            when=lambda f: f.part.component.goes_by_domain and not f.config.plans_data and not f.config.splits,
        ),
        Refusal(
            key="dataflex.{slot}.name",
            why="dataflex.{slot}.name: {name} asks for vectors of another model, and rows are embedded by the model that trains",
            when=lambda f: any(r.reads() == "encoder" for r in f.requests),
        ),
        Refusal(
            key="dataflex.{slot}.name",
            why="dataflex.{slot}.name: {name} weighs tokens, and embeddings are those of rows",
            when=lambda f: declared(f.part.component.level) == "token" and any(r.per == "row" for r in f.requests),
        ),
        Refusal(
            key="dataflex.{slot}.name",
            why="dataflex.{slot}.name: {name} must have a target_interval with one TargetEmbedding, and none without",
            when=lambda f: not _one_target(f),
        ),
        Refusal(
            key="stage",
            why="stage: {stage} has no rows of one answer, and weight: {name} goes by tokens",
            instead="use pt or sft",
            when=lambda f: f.stage not in ("pt", "sft") and _by_token(f),
        ),
        *loaded.WEIGHTERS,
    ),
)

WEIGHT = Group(
    title="With `weight` and `select`",
    applies=lambda f: f.weight is not None,
    refusals=(
        Refusal(
            key="dataflex.weight.target_dataset",
            why="dataflex.weight.target_dataset: a run has one target, and dataflex.select.target_dataset names another one",
            when=_other_target,
        ),
    ),
)

COLUMNS = Group(
    title="With `weight: column`, or a weighter that needs `given_weight`",
    applies=lambda f: f.weight is not None and given_column(f.config) is not None,
    refusals=(
        Refusal(
            key="dataflex.weight",
            why="dataflex.weight: two weighters read a column of the data",
            instead="multiply the columns in the data instead",
            when=lambda f: len(readers_of_columns(f.config)) > 1,
        ),
        Refusal(
            key="dataflex.weight.per",
            why="dataflex.weight.per: stage: {stage} does not learn messages",
            instead="use per: row",
            when=lambda f: _column(f)[1] == "message" and f.stage != "sft",
        ),
        Refusal(
            key="tokenized_path",
            why="tokenized_path keeps no column of the data, and weight: {weight.name} needs {column!r}",
            instead="leave it out",
            when=lambda f: {"column": _column(f)[0]} if f.lf.get("tokenized_path") else None,
        ),
        *loaded.COLUMNS,
    ),
)


def _column(facts: Facts) -> tuple[str, str]:
    given = given_column(facts.config)
    assert given is not None
    return given
