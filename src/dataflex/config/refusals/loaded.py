"""Refusals that data, models, ranks or a checkpoint decide. The place that sees these raises them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dataflex.config.refusals.record import Refusal


def _of(key: str, why: str, instead: str = "") -> Refusal:
    """why: what follows the key in the line."""
    return Refusal(key=key, why=f"{key}{why}", instead=instead)


def _spelled(key: str, why: str, instead: str = "") -> Refusal:
    """As `_of`, where the user may have written the key otherwise: `error` is given how, as `key`."""
    return Refusal(key=key, why=f"{{key}}{why}", instead=instead)


_NEW_DIRECTORY = "point it to a new directory"

RAY_AND_TORCHRUN = _of("USE_RAY", " starts the ranks by Ray and FORCE_TORCHRUN by torchrun", "leave one of them out")
PARALLELISM = _of("parallelism_config", " splits rows or models over ranks and cannot be combined with dataflex")
TENSOR_PARALLEL = _of(
    "deepspeed", ": tensor_parallel gives several ranks the same rows and cannot be combined with dataflex"
)
REWARD_MODEL = _of("stage", ": rm does not work under {engine} in LLaMA-Factory itself", "use deepspeed")
OTHER_ENGINE = _of("cannot resume", " from {folder}: it was saved under {saved} and this run is under {engine}")
OTHER_RANKS = _of(
    "cannot resume",
    " from {folder}: it was saved by {saved} ranks and there are {ranks} now",
    "DeepSpeed can go on with others once ds_to_universal has converted the checkpoint and its configuration has"
    " checkpoint.load_universal",
)
LOST_OPTIMIZER = _of(
    "cannot resume",
    " from {folder}: {reason}",
    "train from its weights in another output_dir, or start over with overwrite_output_dir",
)
NOT_BY_DOMAIN = _of("tokenized_path", ": {folder} holds data that was not tokenized per domain", _NEW_DIRECTORY)
BY_DOMAIN = _of(
    "tokenized_path", ": {folder} holds data tokenized per domain, for select, mix or order", _NEW_DIRECTORY
)
OTHER_VERSION = _of("tokenized_path", ": {folder} was written by another version", _NEW_DIRECTORY)
OTHER_DOMAINS = _of("tokenized_path", ": {folder} holds {stored}, this run asks for {asked}")
OTHER_TOKENS = _of(
    "tokenized_path", ": {folder} was made with {setting} {stored!r}, this run has {asked!r}", _NEW_DIRECTORY
)
OTHER_ROWS = _of("tokenized_path", ": {folder} was made from other rows of {name!r}: {change}", _NEW_DIRECTORY)
EDITED = _of(
    "tokenized_path",
    ": {folder} was made by an earlier version, and {file} of {name!r} has changed since",
    _NEW_DIRECTORY,
)
RUN = (
    *(RAY_AND_TORCHRUN, PARALLELISM, TENSOR_PARALLEL, REWARD_MODEL, OTHER_ENGINE, OTHER_RANKS, LOST_OPTIMIZER),
    *(NOT_BY_DOMAIN, BY_DOMAIN, OTHER_VERSION, OTHER_DOMAINS, OTHER_TOKENS, OTHER_ROWS, EDITED),
)

OTHER_COUNT = _of("dataflex.mix.proportions", ": {given} given for {count} data sets ({names})")
NOTHING_TO_LEARN = _spelled("dataset", ": no row of {name!r} has a token to learn within cutoff_len")
LONG_INTERVAL = _of(
    "dataflex.select.interval",
    ": {interval} steps of {batch} rows ask for {budget} rows, but the data has {rows}",
    "use at most {most}",
)
NOT_HELD_OUT = _of(
    "dataflex.mix.eval_dataset", ": {mixer} needs held-out rows of every domain, and there are none of {domains}"
)
HELD_OUT_TRAINED = _spelled(
    "dataflex.mix.eval_dataset", ": {name!r} is also in dataset, and what is held out must not be trained on"
)
HELD_OUT_SAME_ROWS = _spelled(
    "dataflex.mix.eval_dataset", ": what is held out of {name!r} has the rows of {trained!r}, which is trained on"
)
NO_HELD_OUT_TOKEN = _spelled(
    "dataflex.mix.eval_dataset", ": no held-out row of {name!r} has a token to learn within cutoff_len"
)
DATA = (NOTHING_TO_LEARN, LONG_INTERVAL, NOT_HELD_OUT, HELD_OUT_TRAINED, HELD_OUT_SAME_ROWS, NO_HELD_OUT_TOKEN)


def count_of(proportions: Collection[float], names: Collection[str]) -> Mapping[str, Any]:
    """The values of OTHER_COUNT."""
    return {"given": len(proportions), "count": len(names), "names": ", ".join(names)}


NO_SIZE = _spelled(
    "dataflex.mix",
    " goes by the number of rows, which a stream does not have: give num_samples of {name!r} in dataset_info.json, or"
    " {other}",
)
STREAMS = (NO_SIZE,)

NO_SCORE = _of("dataflex.order.{parameter}", ": row {row} of {name!r} has no {column!r}", "give every row a number")
NOT_A_SCORE = _of(
    "dataflex.order.{parameter}", ": row {row} of {name!r} has {column} {value!r}, which is not a finite number"
)
NO_SCORES = _of("dataflex.order.path", ": {path} {why}")
STORED_ROWS = (NO_SCORE, NOT_A_SCORE, NO_SCORES)

OTHER_UNIT = _of("dataflex.mix.unit", ": {name} takes shares of {own}, and unit is {unit}")
NO_LIMIT = _of("dataflex.mix.max_repetition", " is required: in the run that {name} takes up, domains were exhausted")
NO_EXPERTS = _of("dataflex.mix.name", ": {name} goes by the routers of a mixture of experts, and {model} has none")
MIX = (OTHER_UNIT, NO_LIMIT, NO_EXPERTS)

NO_WEIGHTER = _spelled("dataflex.weight", " is an empty list", "name a weighter, or leave it out")
OTHER_SHARED = _spelled(
    "dataflex.weight", " is {given!r}, but it is about all weighters, and another one says {shared!r}"
)
NO_UNTIL = _spelled("dataflex.weight.fade", " needs until, the step from which the weights fall")
EARLY_UNTIL = _spelled(
    "dataflex.weight.until", " must be above warmup ({warmup}), got {until}: nothing would be weighed"
)
WEIGHTERS = (NO_WEIGHTER, OTHER_SHARED, NO_UNTIL, EARLY_UNTIL)

NO_MESSAGES = _of(
    "dataflex.weight.per", ": {name!r} has no messages to weigh (formatting: {formatting})", "use per: row"
)
NO_WEIGHT = _of("dataflex.weight.column", ": {row} of {name!r} has no {column!r}")
NO_NUMBER = _of(
    "dataflex.weight.column",
    ": {row} of {name!r} has {column} {value!r}, which is not a finite non-negative number",
)
NO_COLUMN = _of("dataflex.weight.column", ": the {parts} of {name!r} have no {column!r}{near}")
ALL_ZERO = _of("dataflex.weight.column", ": {column!r} is zero wherever there is something to learn")
COLUMNS = (NO_MESSAGES, NO_WEIGHT, NO_NUMBER, NO_COLUMN, ALL_ZERO)

TARGET_SAME_ROWS = _spelled(
    "dataflex.select.target_dataset",
    ": {name!r} has the rows of {trained!r}, and what is aimed at must not be trained on",
)
OTHER_SUM = _of("dataflex.select.task_boundaries", " add up to {sum} rows, but the target has {rows}")
TARGET = (TARGET_SAME_ROWS, OTHER_SUM)

FLATTENED = _of(
    "dataflex.{slot}.name",
    ": {name} takes the gradients of parameters, which FSDP 1 flattens",
    "set fsdp_version: 2, or use deepspeed",
)
SHARDED = _of(
    "dataflex.{slot}.parameters", ": all needs parameters that are whole, and {engine} shards them", "use linear"
)
NO_LAYER = _of(
    "dataflex.{slot}.{parameter}", " must be between {least} and {most} (the last; 0 is the input), got {layer}"
)
NOT_A_REWARD = _of("dataflex.select.reward_model_path", ": {path} has {outputs} outputs; a reward has one")
NO_MODEL = _spelled("reference_model_path", ": {path} holds no model (neither config.json nor adapter_config.json)")
OTHER_TOKENIZER = _spelled(
    "reference_model_path", ": the tokenizer of {path} is not that of {own}", "both models must read the same tokens"
)
FEWER_TOKENS = _spelled(
    "reference_model_path",
    ": {path} knows {entries} tokens and the run's tokenizer has {tokens}",
    "both models must read the same tokens",
)
SELECTOR = (FLATTENED, SHARDED, NO_LAYER, NOT_A_REWARD, NO_MODEL, OTHER_TOKENIZER, FEWER_TOKENS)
