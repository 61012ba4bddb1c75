"""The block `dataflex.evaluate`, and the configuration of the command that reads nothing else of the `dataflex` block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from dataflex.compat.flat import FLAT_KEYS
from dataflex.config.files import read
from dataflex.config.schema import ChoiceKeys, EvaluateConfig, EvaluateKeys, GenerateKeys, RunConfig, own_keys
from dataflex.errors import ConfigError, Mistakes
from dataflex.values import shown, truth, words
from dataflex.values.paths import is_folder
from dataflex.values.validated import read_keys

Entry = TypeVar("Entry", ChoiceKeys, GenerateKeys)

BLOCK = "dataflex.evaluate"
# So that nothing is trained, packed, resumed or reported.
SET_BY_EVALUATE: Mapping[str, Any] = {
    "do_train": False, "do_eval": False, "do_predict": False, "predict_with_generate": False, "packing": False,
    "neat_packing": False, "streaming": False, "tokenized_path": None, "train_on_prompt": False, "dataset": None,
    "eval_dataset": None, "val_size": 0.0, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
    "resume_from_checkpoint": None, "report_to": "none", "plot_loss": False, "early_stopping_steps": None,
    "compute_accuracy": False, "use_swanlab": False, "push_to_hub": False,
}  # fmt: skip
# Stages whose models answer prompts, and whose data is read as that of sft.
_ANSWERING = ("sft", "dpo", "kto")


def block_of(raw: Mapping[str, Any]) -> tuple[Any, str]:
    """The block of a configuration as it is written, None without one, and how it is spelled."""
    dataflex = raw.get("dataflex")
    inner = dataflex.get("evaluate") if isinstance(dataflex, Mapping) else None
    return (inner, BLOCK) if inner is not None else (raw.get("evaluate"), "evaluate")


def read_evaluate(given: Any, path: str, mistakes: Mistakes) -> EvaluateConfig | None:
    """The typed block; None where it cannot be read. path: how the user spelled it. What is wrong is noted."""
    if not isinstance(given, Mapping):
        mistakes.note(ConfigError(f"{path} must be a block of keys, got {shown(given)}"))
        return None
    given = dict(given)
    for key in ("heldout", "tasks"):
        if isinstance(given.get(key), str):
            given[key] = words(given[key])
    values = read_keys(EvaluateKeys, given, path, str, mistakes)
    entries: dict[str, Any] = {
        "choice": _entries(ChoiceKeys, values.pop("choice", ()), f"{path}.choice", mistakes),
        "generate": _entries(GenerateKeys, values.pop("generate", ()), f"{path}.generate", mistakes),
    }
    named = any(given.get(key) for key in ("heldout", "choice", "generate", "tasks"))
    if not named and set(given) <= set(own_keys(EvaluateKeys)):
        mistakes.note(ConfigError(f"{path} names no data set; add heldout, choice, generate or tasks"), once=True)
    mistakes.gather(_refused_tasks(values, path))
    for key, keys in (("heldout", ()), *entries.items()):
        names = values.get(key, ()) if key == "heldout" else [entry.dataset for entry in keys]
        for name in dict.fromkeys(n for i, n in enumerate(names) if n in names[:i]):
            mistakes.note(ConfigError(f"{path}.{key}: {name!r} is listed twice"))
    return EvaluateConfig(**values, **entries, path=path)


def _entries(kind: type[Entry], given: Any, path: str, mistakes: Mistakes) -> tuple[Entry, ...]:
    """The entries of a list of blocks or names. A single block, or a name, is a list of one."""
    if isinstance(given, Mapping | str):
        given = [given]
    if not isinstance(given, Sequence):
        mistakes.note(ConfigError(f"{path} must be a list of blocks or names, got {shown(given)}"))
        return ()
    found = []
    for index, entry in enumerate(given):
        at = f"{path}[{index}]"
        if isinstance(entry, str):
            entry = {"dataset": entry}
        if not isinstance(entry, Mapping):
            mistakes.note(ConfigError(f"{at} must be a block of keys, or the name of a data set, got {shown(entry)}"))
            continue
        values = read_keys(kind, entry, at, str, mistakes)
        if not entry.get("dataset"):
            mistakes.note(ConfigError(f"{at}.dataset is required: the data set to judge by"), once=True)
        if kind is ChoiceKeys:
            mistakes.gather(_refused_choice(entry, at))
        found.append(kind(**values))
    return tuple(found)


def _refused_tasks(values: Mapping[str, Any], path: str) -> Iterator[str]:
    """What is wrong with tasks of lm-eval, as far as it is known without them."""
    folder = values.get("task_folder")
    if values.get("tasks") and find_spec("lm_eval") is None:
        yield f"{path}.tasks: the package lm-eval is not installed; it comes with the extra eval (dataflex[eval])"
    if folder is not None and not values.get("tasks"):
        yield f"{path}.task_folder has no effect without tasks"
    elif folder is not None and not is_folder(folder):
        yield f"{path}.task_folder: no such directory: {folder}"


def _refused_choice(entry: Mapping[str, Any], path: str) -> Iterator[str]:
    """Keys that have no effect with the other kind of options."""
    letters = entry.get("options") == "letters"
    for key in ("options_column", "answer_column") if letters else ("prompt",):
        if entry.get(key) is not None:
            yield f"{path}.{key} has no effect with options: {'letters' if letters else 'column'}; leave it out"


def load_evaluate(arguments: Sequence[str]) -> RunConfig:
    """As `load`, for the command `evaluate`: the block, alone or as `dataflex.evaluate`, and LLaMA-Factory's keys, set so that
    nothing is trained. ConfigError with all that is wrong."""
    raw, mistakes, found = read(arguments), Mistakes(), None
    block, path = block_of(raw)
    if path == BLOCK and raw.get("evaluate") is not None:
        mistakes.note(ConfigError(f"evaluate and {BLOCK} are two spellings of one block; keep one of them"))
    raw = {key: value for key, value in raw.items() if key not in ("dataflex", "evaluate", *FLAT_KEYS)}
    if block is None:
        mistakes.note(
            ConfigError("evaluate is required: by what the model is judged; see dataflex-cli evaluate --help")
        )
    else:
        found = read_evaluate(block, path, mistakes)
    mistakes.gather(_refused(raw))
    stage = "pt" if raw.get("stage") == "pt" else "sft"
    keys = {**raw, **SET_BY_EVALUATE, "stage": stage}
    mistakes.settle()
    return RunConfig(dataflex=None, llamafactory=keys, evaluate=found)


def _refused(raw: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be evaluated."""
    stage = str(raw.get("stage", "sft"))
    if stage in ("rm", "ppo"):
        yield f"stage: {stage} has no answers to judge; use {', '.join(_ANSWERING)} or pt with evaluate"
    for key in ("deepspeed", "fsdp"):
        if raw.get(key):
            yield f"{key} splits the model over ranks, which evaluate does not need; leave it out"
    if not raw.get("output_dir"):
        yield "output_dir is required: where to write dataflex/evaluation.json"


def refused_at_the_end(raw: Mapping[str, Any]) -> Iterator[str]:
    """Why the final model of a training cannot be evaluated at its end."""
    stage = str(raw.get("stage", "sft"))
    if stage in ("rm", "ppo"):
        yield f"{BLOCK}: stage: {stage} makes a model that has no answers to judge; leave the block out"
    if raw.get("finetuning_type") == "oft":
        yield f"{BLOCK}: LLaMA-Factory loads no adapter of finetuning_type: oft; leave the block out"
    if truth(raw.get("pissa_init"), "pissa_init") and not truth(raw.get("pissa_convert"), "pissa_convert"):
        yield f"{BLOCK}: pissa_init changes the model below the adapter; add pissa_convert: true"
    if not raw.get("output_dir"):
        yield f"{BLOCK}: output_dir is required: where the final model is, and its figures go"
