"""The keys of the `dataflex` block: the one place of their types, ranges, defaults and meanings.

The tables of docs/configuration.md, the JSON schema and the errors are made from here. Parameters of components are fields of
the components, and the keys of `dataflex.domains` stand in `domains.py`. A meaning is Markdown, with links as from `docs/`.
CONTRIBUTING.md (A new key) says what a new one needs beside.
"""

# ruff: noqa: RUF009  (a call of `key`, of which each key has its own)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from pydantic import SkipValidation

from dataflex.components.signal_request import SignalRequest
from dataflex.config.schema.key import Count, KeyModel, Names, Share, SomeOf, SomeSteps, Steps, key


@dataclass(frozen=True, kw_only=True)
class BlockKeys(KeyModel):
    """The block itself, but for the components."""

    total_steps: SomeSteps | None = key(
        None, "optimizer steps of the run; see [The number of steps](configuration.md#the-number-of-steps)"
    )
    scoring_tokens: SomeOf | None = key(
        None,
        "tokens of a scoring batch, padding counted; a longer row is a batch by itself",
        unset="losses, embeddings: 4096 on a CPU, else 16384; gradients: 2048 on a CPU, else 8192",
    )
    freeze_gate: bool = key(
        False, "keep the routers of a mixture-of-experts model fixed: modules named `gate` or `router`"
    )
    evaluate_domains: bool = key(
        True,
        "with `select`, `mix` or `order`: whether an evaluation also measures"
        " [held-out rows by domain](configuration.md#held-out-rows-by-domain), where there are any",
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleKeys(KeyModel):
    """When a selector, a mixer or an order acts."""

    warmup: Steps = key(
        0,
        "optimizer steps before the first update ([why](components.md#gradients))",
        unset="0; with `gradient_type: adam` 10",
    )
    interval: SomeSteps | None = key(
        None,
        "optimizer steps between two updates",
        unset="required; for `mix: doremi` 1, none for an order, and for mixers that act once or bring their own steps",
    )
    updates: SomeSteps | None = key(None, "how many updates are made", unset="none: to the end")


@dataclass(frozen=True, kw_only=True)
class SelectKeys(KeyModel):
    """How a selection is used."""

    keep_ratio: Share = key(
        0.5, "with `mix`: the share of each domain's rows that is kept; without `mix` it does nothing"
    )
    target_dataset: Names = key((), "data sets that a selector aims at", unset="none: see below")
    serving_order: Literal["rows", "selection"] = key(
        "rows",
        "with `disable_shuffling`: the order in which a selection is served, that of its rows in the data, or that in which"
        " the selector gave them; otherwise it does nothing, which is said",
    )


@dataclass(frozen=True, kw_only=True)
class MixKeys(KeyModel):
    """How a mixture is served."""

    # By the names of the data sets, so read once these are known.
    proportions: SkipValidation[Sequence[float] | Mapping[str, float] | str | None] = key(
        None,
        "the mixture the run starts with, adding up to 1: one number per data set in the order of `dataset`; or"
        " `{name: number}`; or the path of a JSON or YAML file that holds such a mapping",
        kind="list, mapping or file",
    )
    initial: Literal["uniform", "stratified"] = key(
        "uniform",
        "the mixture the run starts with where `proportions` is not given: equal shares, or by size, in the `unit` of the"
        " proportions",
        unset="`uniform`; `stratified` for `ado`",
    )
    eval_dataset: Names | dict[str, str] = key(
        (),
        "data sets of [held-out rows](configuration.md#held-out-rows-by-domain): one per data set, in the order of `dataset`,"
        " or by domain, where some may have none",
        unset="none",
        kind="string with commas, list, or `{domain: data set}`",
    )
    unit: Literal["samples", "tokens"] = key("samples", "what proportions are shares of")
    max_repetition: SkipValidation[float | Sequence[float | None] | Mapping[str, float | None] | None] = key(
        None,
        "how often the rows of a domain may be served: 1.0 each once, 2.5 two and a half times; for all domains, one number"
        " each, or `{name: number}` (null, and a name left out: no limit)",
        unset="none: no limit",
        kind="number > 0, list or mapping",
    )
    when_exhausted: Literal["renormalise", "repeat", "stop"] = key(
        "renormalise", "what happens when a domain has reached `max_repetition`"
    )
    stream_block: SomeOf | None = key(
        None,
        "with `streaming: true`: raw rows that are packed and shuffled together; see [Streams](configuration.md#streams)",
        unset="LLaMA-Factory's `buffer_size` where it is set, else 2048",
    )


@dataclass(frozen=True, kw_only=True)
class OrderKeys(KeyModel):
    """By what the rows of a pool are ordered."""

    by: Literal["column", "file", "length", "loss"] | None = key(
        None,
        "the score of a row: a number of a column of its data set, or of a file about all rows; its tokens, those of the prompt"
        " included; or its loss under the model as it is at each update",
        unset="required, but for `shuffle`, which has none",
    )
    column: str | None = key(
        None,
        "with `by: column`: the column; `meta.score` is the key `score` of the blocks in the column `meta`. With `by: file`:"
        " the column of the file with the scores",
        unset="required with `by: column`; `score` with `by: file`",
    )
    path: str | None = key(
        None,
        "with `by: file`: a score for each stored row, see [Orders](configuration.md#orders)",
        unset="required with `by: file`",
        kind="path of a `.parquet`, `.jsonl`, `.csv` or `.npy` file",
    )
    polarity: Literal["higher_later", "higher_earlier"] = key(
        "higher_later",
        "at which end of the order high scores are; rows with equal scores stay in the order of their ids",
    )
    window: Count = key(
        0, "rows of a block whose rows are shuffled, block by block, once they are in order (JIT of the paper); 0: none"
    )


@dataclass(frozen=True, kw_only=True)
class PartKeys(KeyModel):
    """When one weighter acts."""

    warmup: Steps = key(0, "optimizer steps before its weights are applied")
    ramp: Steps = key(0, "steps in which its strength rises from 0 to 1, beginning at `warmup`")
    until: Steps | None = key(
        None, "the step from which its strength falls", unset="none: to the end", kind="integer > `warmup`"
    )
    fade: Steps = key(0, "steps in which it falls to 0, beginning at `until`, which it needs", unset="0: at once")


@dataclass(frozen=True, kw_only=True)
class WeightKeys(KeyModel):
    """What is about all weighters together."""

    scope: Literal["running", "global"] = key(
        "running", "with accumulation: the comparison batch of the weights of a step"
    )
    target_dataset: Names = key(
        (),
        "data sets that a weighter aims at; a run has one target, for `select` and `weight`. They may be in `dataset` where no"
        " selector aims at them; that rows are then compared with a target they are part of is said",
        unset="none: as for `select`",
    )
    fix_scaling: bool = key(
        False, "divide a loss by the tokens of the global batch where LLaMA-Factory does not; see below"
    )


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(KeyModel):
    """The block `dataflex.offline`: how much a selection before training takes, and from what."""

    budget: SomeOf | None = key(None, "rows to select", unset="one of the two")
    keep_ratio: Share | None = key(
        None, "instead: the share of the rows that can be selected, rounded up", unset="one of the two"
    )
    store: str | None = key(
        None,
        "where what is measured is kept, see [Resuming](offline.md#resuming)",
        unset="`signals` in `output_dir`",
        kind="directory",
    )
    embeddings: str | None = key(
        None,
        "float [N, d], the vectors of the rows as they are stored",
        unset="none: measured",
        kind="path of an `.npy` file",
    )
    target_embeddings: str | None = key(
        None,
        "float [M, d], the vectors of the target; no target is named then",
        unset="none: measured",
        kind="path of an `.npy` file",
    )
    examples: Count = key(10, "rows that the summary shows from each end of the scores")

    def file_of(self, request: SignalRequest) -> str | None:
        """The file that holds the values of a request, if one is named."""
        return None if request.file_key is None else getattr(self, request.file_key)


@dataclass(frozen=True, kw_only=True)
class ChoiceKeys(KeyModel):
    """A data set of `dataflex.evaluate.choice`."""

    dataset: str = key("", "the data set", unset="required")
    options: Literal["column", "letters"] = key(
        "column",
        "where the options are: a column of the rows, or the prompt, which lists them as `A. text` or `Answer1: text`",
    )
    options_column: str = key("options", "with `options: column`: the column, a list of texts")
    answer_column: str = key(
        "answer",
        "with `options: column`: the column of the answer, the index of an option (from 0) or its text. With `letters` the"
        " response of the row names the option",
    )
    prompt: Literal["whole", "question"] = key(
        "whole", "with `options: letters`: the prompt as it is, or only what stands before the first option"
    )


@dataclass(frozen=True, kw_only=True)
class GenerateKeys(KeyModel):
    """A data set of `dataflex.evaluate.generate`."""

    dataset: str = key("", "the data set", unset="required")
    match: Literal["text", "number"] = key(
        "text", "what is compared with the response of the row: the whole text, or also the final number"
    )
    max_new_tokens: SomeOf = key(256, "tokens of an answer at most")


@dataclass(frozen=True, kw_only=True)
class EvaluateKeys(KeyModel):
    """The block `dataflex.evaluate`: by what a finished model is judged."""

    heldout: Names = key((), "data sets for the loss per answer token, perplexity and bits per byte", unset="none")
    choice: SkipValidation[Sequence[ChoiceKeys | Mapping[str, Any] | str]] = key(
        (),
        "data sets for multiple choice by likelihood: a list of [blocks](#choice), or of names",
        unset="none",
        kind="list of blocks or names",
    )
    generate: SkipValidation[Sequence[GenerateKeys | Mapping[str, Any] | str]] = key(
        (),
        "data sets for exact match of generated answers: a list of [blocks](#generate), or of names",
        unset="none",
        kind="list of blocks or names",
    )
    tasks: Names = key(
        (), "[tasks of lm-eval](evaluate.md#tasks-of-lm-eval), which the extra `eval` installs", unset="none"
    )
    task_folder: str | None = key(None, "with `tasks`: tasks of your own, as lm-eval reads them", kind="directory")
    limit: SomeOf | None = key(None, "rows of each data set and each task, from the first on", unset="none: all rows")


DoremiStep = Literal["reference", "proxy", "final"]
DOREMI_STEPS: tuple[str, ...] = get_args(DoremiStep)
_STEP = "keys of LLaMA-Factory that differ in the step `{}`, and `total_steps`"


@dataclass(frozen=True, kw_only=True)
class DoremiKeys(KeyModel):
    """The block `dataflex.doremi`."""

    steps: SkipValidation[Sequence[DoremiStep] | str | None] = key(
        DOREMI_STEPS, "which steps to run", unset="all of them", kind="string with commas, or list"
    )
    reference: SkipValidation[Mapping[str, Any] | None] = key(None, _STEP.format("reference"))
    proxy: SkipValidation[Mapping[str, Any] | None] = key(None, _STEP.format("proxy"))
    final: SkipValidation[Mapping[str, Any] | None] = key(None, _STEP.format("final"))


# Blocks of the block: what each may be, in words, and what it is for.
BLOCKS: Mapping[str, tuple[str, str]] = {
    "select": ("block or name", "which rows are drawn"),
    "mix": ("block or name", "how much of each domain is drawn"),
    "weight": ("block, name, or list of them", "how hard each row or token pulls"),
    "order": ("block or name", "in which order the rows of a pool are served; see [Orders](configuration.md#orders)"),
    "domains": ("block", "what the domains are, if not the data sets; see [Domains](configuration.md#domains)"),
    "offline": (
        "block",
        "how much `dataflex-cli select` selects ([offline.md](offline.md#keys)); no effect on `train`, which is said",
    ),
    "doremi": (
        "block",
        "the runs of `dataflex-cli doremi` ([doremi.md](doremi.md#keys)); no effect on `train`, which is said",
    ),
    "evaluate": (
        "block",
        "by what the final model is judged, at the end of `train` and by `dataflex-cli evaluate` ([evaluate.md](evaluate.md))",
    ),
}
# The keys that a component's block may hold beside its name and its parameters.
SLOT_KEYS: Mapping[str, tuple[type, ...]] = {
    "select": (ScheduleKeys, SelectKeys),
    "mix": (ScheduleKeys, MixKeys),
    "weight": (PartKeys, WeightKeys),
    "order": (ScheduleKeys, OrderKeys),
}


def own_keys(*models: type) -> list[str]:
    """The keys of models, in their order."""
    return [found.name for model in models for found in fields(model)]
