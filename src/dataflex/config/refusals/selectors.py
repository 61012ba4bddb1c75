"""Refused with what aims at a target, takes gradients or embeddings, or reads files about rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.components.contracts import declared
from dataflex.config.refusals import loaded
from dataflex.config.refusals.record import Facts, Group, Refusal
from dataflex.values import words

# Optimizers of LLaMA-Factory's own, and one of transformers', whose state is not that of Adam in full precision.
_OTHER_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")
_OTHER_MOMENTS = ("adamw_torch_8bit", "adamw_torch_4bit")


def target_names(facts: Facts) -> list[str]:
    """The data sets that are aimed at."""
    return list(facts.config.target[1]) or words(facts.lf.get("eval_dataset"))


def _no_target(facts: Facts) -> bool:
    return not target_names(facts) and not facts.positive("val_size")


def _trains_on_target(facts: Facts) -> Mapping[str, Any] | None:
    """A selector would choose the target itself. A weighter may."""
    trained = words(facts.lf.get("dataset"))
    shared = [name for name in target_names(facts) if name in trained]
    return {"key": facts.config.target[0], "target": shared[0]} if shared and facts.slot == "select" else None


def _optimizer(facts: Facts) -> str:
    return str(facts.lf.get("optim") or "adamw_torch")


def _reads_moments(facts: Facts) -> bool:
    return any(r.reads_moments() for r in facts.requests)


def _no_moments(facts: Facts) -> Mapping[str, Any] | None:
    optim = _optimizer(facts)
    adam = optim.startswith(("adamw_torch", "OptimizerNames.ADAMW_TORCH")) and optim not in _OTHER_MOMENTS
    return {"optim": optim} if _reads_moments(facts) and not adam else None


def _other_optimizer(key: str) -> Refusal:
    return Refusal(
        key=key,
        why=f"{key} keeps no moments that select: {{name}} can read",
        instead="set gradient_type: sgd",
        when=lambda f: _reads_moments(f) and f.on(key),
    )


def _reader(facts: Facts) -> Mapping[str, Any] | None:
    """What goes by stored rows."""
    if facts.select is not None and declared(facts.select.component.reads_raw_rows):
        return {"reader": f"select: {facts.select.name} reads a file about the rows as they are stored"}
    if facts.order is not None and facts.order.given:
        return {"reader": f"order: {facts.order.name} by {facts.order.by} reads scores of the rows as they are stored"}
    return None


def _joins_rows(key: str) -> Refusal:
    return Refusal(
        key=key,
        why=f"{key} joins rows, but {{reader}}",
        instead="leave it out",
        when=lambda f: _reader(f) if f.on(key) else None,
    )


TARGET = Group(
    title="With what aims at a target",
    applies=lambda f: bool(f.config.aiming()),
    each=lambda f: f.of(f.config.aiming()[:1]),
    refusals=(
        Refusal(
            key="dataflex.{family}.target_dataset",
            why="dataflex.{family}.target_dataset: {name} needs a target",
            instead="name data sets here, or set eval_dataset or val_size",
            when=lambda f: {"family": f.slot.partition("[")[0]} if _no_target(f) else None,
        ),
        Refusal(
            key="dataflex.select.target_dataset",
            why="{key}: {target!r} is also in dataset, and {name} must not train on its target",
            when=_trains_on_target,
        ),
        *loaded.TARGET,
    ),
    note="Where only weighters aim at a data set that is also in `dataset`, a line says so and the run goes on. A target with"
    " images, videos or audio is refused with `nice`: responses are drawn from text alone. `embedding_model` is refused without"
    " the package sentence-transformers, which the extra `offline` brings.",
)

MIXER = Group(
    title="With `mix`",
    applies=lambda f: f.mix is not None,
    each=lambda f: f.of(("mix",)),
    refusals=(
        Refusal(
            key="stage",
            why="stage: {stage} has pairs of answers, and mix: {mix.name} goes by tokens",
            instead="use pt or sft",
            when=lambda f: f.stage not in ("pt", "sft") and any(r.needs_tokens for r in f.requests),
        ),
        *loaded.MIX,
    ),
)

STORED_ROWS = Group(
    title="With a selector, or an order, that goes by stored rows",
    applies=lambda f: _reader(f) is not None,
    refusals=(
        *map(_joins_rows, ("packing", "neat_packing")),
        Refusal(
            key="stage",
            why="stage: {stage} makes rows of several stored ones, but {reader}",
            instead="use sft, dpo or rm",
            when=lambda f: _reader(f) if f.stage in ("pt", "kto") else None,
        ),
        Refusal(
            key="tokenized_path",
            why="tokenized_path does not say which stored row a row came from, but {reader}",
            instead="leave it out",
            when=lambda f: _reader(f) if f.lf.get("tokenized_path") else None,
        ),
        *loaded.STORED_ROWS,
    ),
    note="These are `near` with `indices_path` and `tsds` with `probs_path`, which measure nothing and need no target, and orders"
    " by `column` or `file`. A file"
    " that does not fit the rows of `dataset` as they are stored is refused too.",
)

SELECTOR = Group(
    title="With a selector that takes gradients or embeddings",
    applies=lambda f: f.select is not None,
    each=lambda f: f.of(("select",)),
    refusals=(
        Refusal(
            key="select",
            why="select: {name} chooses whole batches and cannot be combined with mix",
            when=lambda f: f.mix is not None and not f.select.component.per_domain,
        ),
        Refusal(
            key="stage",
            why="stage: {stage} has pairs of answers, and select: {name} takes rows of one",
            instead="use pt or sft",
            when=lambda f: f.stage not in ("pt", "sft") and any(r.needs_tokens and r.per == "row" for r in f.requests),
        ),
        Refusal(
            key="stage",
            why="stage: pt has no prompts to respond to, and select: {name} needs them",
            instead="use sft",
            when=lambda f: f.stage == "pt" and any(r.needs_prompts for r in f.requests),
        ),
        Refusal(
            key="optim",
            why="optim: {optim} keeps no moments that select: {name} can read",
            instead="set gradient_type: sgd",
            when=_no_moments,
        ),
        *map(_other_optimizer, _OTHER_OPTIMIZERS),
        *loaded.SELECTOR,
    ),
    note="These are `less`, `icons`, `cluster_less`, `nice`, `greats`, `rds`, `near` and `tsds`.",
)
