"""What cannot be combined with dynamic data or weights, decided from the configuration alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from dataflex.components.contracts import declared
from dataflex.components.requests import streamed_by
from dataflex.config.llamafactory.trainer_keys import trainer_key_refusals
from dataflex.config.schema import DataflexConfig, WeightConfig, WeightPart
from dataflex.errors import Mistakes
from dataflex.values import integer, number, truth, words

_STAGES = ("pt", "sft", "rm", "dpo", "kto")
# Losses of LLaMA-Factory made from the cross entropy.
_OTHER_LOSSES = ("use_dft_loss", "use_eaft_loss", "use_asft_loss")
# Kernels that never show the logits.
_FUSED = ("enable_liger_kernel", "use_liger_kernel", "use_unsloth")
# Optimizers of LLaMA-Factory's own, and one of transformers', whose state is not that of Adam in full precision.
_OTHER_OPTIMIZERS = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")
_OTHER_MOMENTS = ("adamw_torch_8bit", "adamw_torch_4bit")


# What works on data that is read once, from front to back.
_STREAMED_STAGES = ("pt", "sft")


def check_combinations(config: DataflexConfig, lf: dict[str, Any], notices: list[str], mistakes: Mistakes) -> None:
    """Note every combination that would be wrong or silently without effect, one for each key; a line in `notices` for one
    that is odd."""
    what = " and ".join(config.components)
    stage = lf.get("stage", "sft")
    checks = [_check_run(config, lf, what, stage), trainer_key_refusals(config, lf)]
    with mistakes.noting(once=True):
        if truth(lf.get("streaming"), "streaming"):
            checks.append(_check_streams(config, lf, stage))
    if config.plans_data:
        checks.append(_check_data(config, lf, what))
    if config.weight or any(reads_losses(config, slot) for slot in config.components):
        checks.append(_check_losses(config, lf, stage))
    if config.weight is not None:
        checks.append(_check_given(config, config.weight, lf, stage))
        checks.append(_check_weights(config, config.weight, stage))
    if config.aiming():
        checks.append(_check_target(config, lf, notices))
    if config.mix is not None:
        checks.append(_check_mixer(config, lf, stage))
    if config.select is not None:
        checks.append(_check_raw_rows(config, lf, stage))
        checks.append(_check_gradients(config, lf, stage))
    for check in checks:
        mistakes.gather(check, once=True)


def _check_run(config: DataflexConfig, lf: dict[str, Any], what: str, stage: str) -> Iterator[str]:
    if stage == "ppo":
        yield (f"stage: ppo cannot be combined with {what} (it draws its own rollouts); use {', '.join(_STAGES)}")
    for key in ("use_mca", "use_hyper_parallel", "use_kt"):
        if truth(lf.get(key), key) or (key != "use_hyper_parallel" and truth(os.getenv(key.upper()), key.upper())):
            yield f"{key} replaces the Trainer and cannot be combined with {what}"
    if config.offline is not None and truth(os.getenv("USE_RAY"), "USE_RAY"):
        yield "USE_RAY starts workers that train; leave it out for a selection before training"
    if not truth(lf.get("do_train"), "do_train"):
        yield f"do_train must be true with {what}"
    if truth(lf.get("push_to_hub"), "push_to_hub") and lf.get("hub_strategy") in ("checkpoint", "all_checkpoints"):
        yield (
            f"hub_strategy: {lf['hub_strategy']} uploads checkpoints before they are complete; use end or every_save"
        )
    if lf.get("parallelism_config"):
        yield f"parallelism_config splits rows or models over ranks and cannot be combined with {what}"


def _check_data(config: DataflexConfig, lf: dict[str, Any], what: str) -> Iterator[str]:
    if str(lf.get("mix_strategy", "concat")) != "concat":
        yield f"mix_strategy: {lf['mix_strategy']} interleaves data sets itself; leave it at concat with {what}"
    if config.select is not None and config.mix is not None and config.mix.max_repetition is not None:
        yield (
            "dataflex.mix.max_repetition counts the rows of whole domains and cannot be combined with select in this version"
        )
    proportions = config.mix.proportions if config.mix else None
    datasets = lf.get("dataset")
    if proportions is not None and isinstance(datasets, str | list):
        names = words(datasets)
        if len(names) != len(proportions):
            yield (
                f"dataflex.mix.proportions: {len(proportions)} given for {len(names)} data sets ({', '.join(names)})"
            )


def _check_streams(config: DataflexConfig, lf: dict[str, Any], stage: str) -> Iterator[str]:
    if config.select is not None:
        yield (
            f"streaming shows no rows to choose from, and select: {config.select.name} needs all of them; use mix, or mix and"
            " weight"
        )
    if config.mix is None:
        yield (
            "streaming with weight alone has an order of LLaMA-Factory's own that cannot be gone on with; add mix: static"
        )
    if config.mix is None:
        return
    if stage not in _STREAMED_STAGES:
        yield f"streaming is not supported for stage: {stage}; use {' or '.join(_STREAMED_STAGES)}"
    indexed = sorted(r.name for r in config.requests("mix") if not r.streamed)
    if indexed:
        yield (
            f"streaming shows no rows to measure ahead, and mix: {config.mix.name} needs the signal {indexed[0]!r}; mixers"
            f" that need {' or '.join(streamed_by('mix'))} or nothing work"
        )
    for slot in config.slots("weight"):
        ahead = sorted(r.name for r in config.requests(slot) if not r.streamed)
        if ahead:
            yield (
                f"streaming shows no rows to measure ahead or to compare with, and dataflex.{slot} needs {ahead[0]!r}"
            )
    if config.mix.unit == "tokens":
        yield ("dataflex.mix.unit: tokens needs the lengths of all rows, which streaming does not know; use samples")
    if config.mix.max_repetition is not None:
        yield "dataflex.mix.max_repetition needs the number of rows, which streaming does not know"
    if integer(lf.get("max_steps") or 0, "max_steps") <= 0:
        yield (
            "streaming has no epochs to count, so the length of the run is required: dataflex.total_steps or max_steps"
        )
    for key in ("save_strategy", "eval_strategy", "logging_strategy"):
        if str(lf.get(key)).rsplit(".", 1)[-1].lower() == "epoch":
            yield f"{key}: epoch never comes while streaming; use steps"
    if number(lf.get("val_size") or 0, "val_size") > 0:
        yield "val_size cannot be held out of a stream (streaming); name data sets in eval_dataset"
    if lf.get("tokenized_path"):
        yield "tokenized_path holds whole data sets, and streaming keeps none; leave one of them out"
    if truth(lf.get("include_effective_tokens_per_second"), "include_effective_tokens_per_second"):
        yield "include_effective_tokens_per_second counts all rows, and streaming has no end of them"


def _check_raw_rows(config: DataflexConfig, lf: dict[str, Any], stage: str) -> Iterator[str]:
    select = config.select
    if select is None or not declared(select.component.reads_raw_rows):
        return
    reader = f"select: {select.name} reads a file about the rows as they are stored"
    for key in ("packing", "neat_packing"):
        if truth(lf.get(key), key):
            yield f"{key} joins rows, but {reader}; leave it out"
    if stage in ("pt", "kto"):
        yield f"stage: {stage} makes rows of several stored ones, but {reader}; use sft, dpo or rm"
    if lf.get("tokenized_path"):
        yield f"tokenized_path does not say which stored row a row came from, but {reader}; leave it out"


def _check_losses(config: DataflexConfig, lf: dict[str, Any], stage: str) -> Iterator[str]:
    readers = [slot for slot in config.components if slot == "weight" or reads_losses(config, slot)]
    reader = f"{readers[0]}: {getattr(config, readers[0]).name}"
    hidden = hides_row_losses(lf)
    if hidden is not None:
        yield f"{hidden}, but {reader} needs a loss per row"
    for slot in ("select", "mix"):
        name = getattr(getattr(config, slot), "name", "")
        if stage == "kto" and any(r.stage_loss for r in config.requests(slot)):
            yield (
                f"stage: kto has a KL term that belongs to the batch, but {slot}: {name} measures rows by themselves"
            )
        changed = changed_loss(lf, stage)
        if changed and any(r.takes_gradients for r in config.requests(slot)):
            yield f"{changed} changes the loss, and {slot}: {name} takes gradients of the cross entropy"
    if stage == "dpo" and number(lf.get("pref_bco_weight") or 0, "pref_bco_weight") > 0:
        yield f"pref_bco_weight keeps running moments of the batch, but {reader} needs a loss per row"
    trained = config.weight is not None or config.needs("train_loss")
    if stage in ("dpo", "kto") and trained and number(lf.get("pref_ftx") or 0, "pref_ftx") > 0:
        yield f"pref_ftx cannot be combined with {reader} in this version"


def _check_weights(config: DataflexConfig, weight: WeightConfig, stage: str) -> Iterator[str]:
    for slot, part in weight.slots().items():
        if part.component.goes_by_domain and not config.plans_data:
            yield (
                f"dataflex.{slot}.name: {part.name} goes by the data set of a row, which weight alone does not know; add"
                " mix: proportional"
            )
        yield from _check_requests(config, slot, part)
        by_token = declared(part.component.level) == "token" or any(r.needs_tokens for r in config.requests(slot))
        if by_token and stage not in ("pt", "sft"):
            yield (f"stage: {stage} has no rows of one answer, and weight: {part.name} goes by tokens; use pt or sft")
    given = config.select.target_dataset if config.select is not None else ()
    if given and weight.target_dataset and given != weight.target_dataset:
        yield (
            "dataflex.weight.target_dataset: a run has one target, and dataflex.select.target_dataset names another one"
        )


def given_column(config: DataflexConfig) -> tuple[str, str] | None:
    """The column of the data that weights come from, and whether it is one of rows ("row") or of messages ("message"); None if
    no weighter reads any."""
    for component in _readers_of_columns(config):
        return getattr(component, "column", "weight"), getattr(component, "per", "row")
    return None


def _readers_of_columns(config: DataflexConfig) -> list[Any]:
    return [config.components[slot] for slot in config.slots("weight") if "given_weight" in config.signals(slot)]


def _check_given(config: DataflexConfig, weight: WeightConfig, lf: dict[str, Any], stage: str) -> Iterator[str]:
    """Weights that the data gives."""
    given, readers = given_column(config), _readers_of_columns(config)
    if given is None:
        return
    if len(readers) > 1:
        yield ("dataflex.weight: two weighters read a column of the data; multiply the columns in the data instead")
    if given[1] == "message" and stage != "sft":
        yield f"dataflex.weight.per: stage: {stage} does not learn messages; use per: row"
    if lf.get("tokenized_path"):
        yield (
            f"tokenized_path keeps no column of the data, and weight: {weight.name} needs {given[0]!r}; leave it out"
        )


def _check_requests(config: DataflexConfig, slot: str, part: WeightPart) -> Iterator[str]:
    """What a weighter asks for can be given."""
    needs = config.requests(slot)
    of_rows = [r for r in needs if r.per == "row"]
    targets = [r for r in needs if r.per == "target row"]
    fault = ""
    if any(r.reads() == "encoder" for r in needs):
        fault = "asks for vectors of another model, and rows are embedded by the model that trains"
    elif of_rows and declared(part.component.level) == "token":
        fault = "weighs tokens, and embeddings are those of rows"
    elif len(targets) != (declared(part.component.target_interval) is not None):
        fault = "must have a target_interval with one TargetEmbedding, and none without"
    if fault:
        yield f"dataflex.{slot}.name: {part.name} {fault}"


def _check_mixer(config: DataflexConfig, lf: dict[str, Any], stage: str) -> Iterator[str]:
    assert config.mix is not None
    by_token = any(r.needs_tokens for r in config.requests("mix"))
    if by_token and stage not in ("pt", "sft"):
        yield (f"stage: {stage} has pairs of answers, and mix: {config.mix.name} goes by tokens; use pt or sft")


def _check_gradients(config: DataflexConfig, lf: dict[str, Any], stage: str) -> Iterator[str]:
    """What a selector that takes gradients, or aims at a target, cannot do without."""
    assert config.select is not None
    if config.mix is not None and not config.select.component.per_domain:
        yield f"select: {config.select.name} chooses whole batches and cannot be combined with mix"
    name, requests = config.select.name, config.requests("select")
    reader = f"select: {name}"
    by_row = any(r.needs_tokens and r.per == "row" for r in requests)
    if by_row and stage not in ("pt", "sft"):
        yield f"stage: {stage} has pairs of answers, and {reader} takes rows of one; use pt or sft"
    if stage == "pt" and any(r.needs_prompts for r in requests):
        yield f"stage: pt has no prompts to respond to, and {reader} needs them; use sft"
    if any(r.reads_moments() for r in requests):
        optim = str(lf.get("optim") or "adamw_torch")
        if not optim.startswith(("adamw_torch", "OptimizerNames.ADAMW_TORCH")) or optim in _OTHER_MOMENTS:
            yield f"optim: {optim} keeps no moments that {reader} can read; set gradient_type: sgd"
        for key in _OTHER_OPTIMIZERS:
            if truth(lf.get(key), key):
                yield f"{key} keeps no moments that {reader} can read; set gradient_type: sgd"


def _check_target(config: DataflexConfig, lf: dict[str, Any], notices: list[str]) -> Iterator[str]:
    """There is a target, and a selector does not train on it: it would choose the target itself. A weighter may."""
    slot = config.aiming()[0]
    name = config.select.name if config.select is not None and slot == "select" else config.weight.slots()[slot].name  # type: ignore[union-attr]
    key, given = config.target
    names = list(given) or words(lf.get("eval_dataset"))
    if not names and number(lf.get("val_size") or 0, "val_size") <= 0:
        yield (
            f"dataflex.{slot.partition('[')[0]}.target_dataset: {name} needs a target; name data sets here, or set"
            " eval_dataset or val_size"
        )
    trained = words(lf.get("dataset"))
    for target in names:
        if target in trained and slot == "select":
            yield f"{key}: {target!r} is also in dataset, and {name} must not train on its target"
        elif target in trained:
            notices.append(
                f"{key}: {target!r} is also in dataset, so {name} compares rows with a target they are part of"
            )


def reads_losses(config: DataflexConfig, slot: str) -> bool:
    """Whether a signal of the component is made from the losses of rows."""
    return any(r.from_losses for r in config.requests(slot))


def hides_row_losses(lf: dict[str, Any]) -> str | None:
    """Why the loss cannot be had per row (a phrase that begins with the key), or None if it can."""
    for key in _FUSED:
        if truth(lf.get(key), key):
            return f"{key} hides the logits"
    return None


def changed_loss(lf: dict[str, Any], stage: str) -> str | None:
    """The key that makes the loss of tokens something else than their cross entropy, if there is one."""
    for key in _OTHER_LOSSES if stage == "sft" else ():  # LLaMA-Factory ignores them elsewhere
        if truth(lf.get(key), key):
            return key
    if stage in ("pt", "sft") and number(lf.get("label_smoothing_factor") or 0, "label_smoothing_factor") != 0:
        return "label_smoothing_factor"
    return None
