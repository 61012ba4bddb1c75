"""What makes a run the run that a checkpoint is of: block, data, model, optimizer, and the files that components read.

A resumed run must agree in all of it. Ranks, batch shape, paths, logging, saving and the hyperparameters that a Trainer
may change between two steps (learning rate, weight decay, dropout) are free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from dataflex.base.checks.contents import WEIGHTS, digest, model_digest, sampled_all
from dataflex.base.checks.domains import contents_of, elsewhere
from dataflex.base.loading_arguments import Loading
from dataflex.components.signal_request import SignalRequest
from dataflex.config import RunConfig
from dataflex.config.schema import DataflexConfig
from dataflex.distributed.collectives import decide
from dataflex.errors import ConfigError
from dataflex.masking import masked
from dataflex.values.paths import is_file, is_folder

# Keys of the block that say where something is: what is there counts.
_PATHS = ("eval_dataset", "store", "reference_store")
# Keys of LLaMA-Factory that make another function of the same weights, or other parts of the model trainable.
_OF_MODEL = (
    "rope_scaling", "shift_attn", "mixture_of_depths", "upcast_layernorm", "upcast_lmhead_output", "quantization_method",
    "quantization_bit", "quantization_type", "double_quantization",
)  # fmt: skip
_OF_FINETUNING = {
    "lora": ("lora_rank", "lora_alpha", "lora_target", "additional_target", "use_rslora", "use_dora"),
    "oft": ("oft_rank", "oft_block_size", "oft_target", "additional_target"),
    "freeze": ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "use_llama_pro"),
    "full": ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
}
# The optimizer whose state a checkpoint holds.
_OF_OPTIMIZER = (
    "use_galore", "galore_target", "galore_rank", "use_apollo", "apollo_target", "apollo_rank", "use_badam", "badam_mode",
    "use_adam_mini", "use_muon",
)  # fmt: skip
# What a model's configuration says that does not change what it computes, or is this run's own business.
_FREE_OF_MODEL = frozenset(
    (
        "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache", "output_attentions",
        "output_hidden_states", "return_dict", "id2label", "label2id", "problem_type", "auto_map", "tokenizer_class",
        "chunk_size_feed_forward", "task_specific_params",
    )
)  # fmt: skip
_MODEL, _RELEASE = "model.", "model config read by transformers"
# What earlier versions called the contents of files.
_FORMER = {
    "content of the selector's file": ("content of dataflex.select.indices_path", "content of dataflex.select.probs_path"),
    "content of the mixer's ledger": ("content of dataflex.mix.ledger",),
}  # fmt: skip
# Contents of models that components read, and the parameters that name these models.
_OF_MODELS = ("content of the reference of ", "content of the encoder of ", "content of the reward model of ")
_MODEL_PATHS = (".reference_model_path", ".embedding_model", ".embedding_model_name_or_path", ".reward_model_path")
_AT_START = 1 << 30  # bytes of a model's weights that are looked at when a run starts


def identity_of_run(config: RunConfig, loading: Loading, rows: Any) -> dict[str, Any]:
    """What a resumed run must share with the run it goes on from, as flat keys. Called on all ranks."""
    from dataflex.base.checks.nodes import same_rows
    from dataflex.base.checks.tokenized import tokenization_signature

    assert config.dataflex is not None
    training_args = loading.training_args
    out = _of_components(config.dataflex)
    out["finetuning_type"] = config.llamafactory.get("finetuning_type", "lora")
    out |= _of_model(config, loading) | _of_arguments(config, loading)
    out["seed"] = training_args.seed
    out["data_seed"] = training_args.data_seed
    out["disable_shuffling"] = bool(config.llamafactory.get("disable_shuffling", False))
    if training_args.max_steps > 0:
        out["max_steps"] = training_args.max_steps
    else:
        out["num_train_epochs"] = training_args.num_train_epochs
    out["dataset"] = ",".join(loading.data_args.dataset)
    out |= tokenization_signature(loading)
    if config.dataflex.streams:
        return out | rows.facts
    out |= {f"rows of {n}": size for n, size in zip(rows.domains.names, rows.domains.sizes, strict=True)}
    out |= {f"content of {n}": found for n, found in same_rows(rows.fingerprints, "dataset").items()}
    weights = same_rows(rows.weight_fingerprints, "dataset", "weights")
    out |= {f"weights of {n}": found for n, found in weights.items()}
    return out


def asked_of(dataflex: DataflexConfig) -> list[tuple[str, SignalRequest]]:
    """What every slot asks for, in the order that all ranks share."""
    return [(slot, request) for slot in dataflex.components for request in sorted(dataflex.requests(slot), key=str)]


# -- components ------------------------------------------------------------------------------------------------------


def _of_components(dataflex: DataflexConfig) -> dict[str, Any]:
    """The block, and the contents of what its components read. A parameter that names a file counts as what is in it."""
    from dataflex.base.checks.nodes import OTHER_SETTING, same_everywhere
    from dataflex.base.checks.reference_model import fingerprint

    out: dict[str, Any] = {}
    read = {slot: component.files() for slot, component in dataflex.components.items()}
    for key, value in masked(dataflex.to_json()).items():
        if isinstance(value, dict):
            paths = {*_PATHS, *read.get(key, ()), *(elsewhere(dataflex.domains) if key == "domains" else ())}
            paths |= {"path"} if key == "order" else set()
            out |= {f"dataflex.{key}.{k}": v for k, v in value.items() if k not in paths}
        else:
            out[f"dataflex.{key}"] = value
    for slot, files in read.items():

        def contents(slot: str = slot, files: Mapping[str, str] = files) -> dict[str, str]:
            return {f"content of dataflex.{slot}.{name}": _content(slot, name, path) for name, path in files.items()}

        # Weighters act on every rank, the others on rank 0.
        weighs = slot.partition("[")[0] == "weight"
        out |= same_everywhere(contents, OTHER_SETTING) if weighs else decide(contents)
    out |= same_everywhere(
        lambda: {f"content of dataflex.domains.{k}": v for k, v in contents_of(dataflex.domains).items()}, OTHER_SETTING
    )
    for slot, request in asked_of(dataflex):
        if request.per == "target row":  # read by the encoder that reads the candidates
            continue
        for kind, model in request.other_models().items():
            key = f"content of the {kind} of {slot}"
            if kind == "reference":
                out[key] = fingerprint(model, f"dataflex.{slot}")
            elif key not in out:
                found = decide(lambda model=model: model_digest(Path(model)))  # type: ignore[misc]
                out |= {} if found is None else {key: found}  # not one of a hub
    return _without_paths(out)


def _without_paths(identity: dict[str, Any]) -> dict[str, Any]:
    """Where a model lies does not count where what is in it does."""
    known = {key.rpartition(" of ")[2] for key in identity if key.startswith(_OF_MODELS)}
    return {
        key: value
        for key, value in identity.items()
        if not (key.endswith(_MODEL_PATHS) and key.removeprefix("dataflex.").rpartition(".")[0] in known)
    }


def _content(slot: str, parameter: str, given: str) -> str:
    path = Path(given)
    if not (is_file(given) or is_folder(given)):
        raise ConfigError(f"dataflex.{slot}.{parameter}: no such file or folder: {path}")
    return digest(path)


# -- the model and its optimizer -------------------------------------------------------------------------------------


def _of_model(config: RunConfig, loading: Loading) -> dict[str, Any]:
    """The model's configuration, and its weights where a checkpoint does not hold them all: below an adapter, and where they
    are what answers are compared with (dpo, kto)."""
    import transformers
    from llamafactory.model import load_config

    from dataflex.base.checks.nodes import same_everywhere

    model_args = loading.model_args
    found = load_config(model_args)
    plain = json.loads(json.dumps(found.to_dict(), default=str))
    out = {f"{_MODEL}{key}": value for key, value in _flat(plain)} | {_RELEASE: transformers.__version__}
    adapted = str(config.llamafactory.get("finetuning_type", "lora")) in ("lora", "oft")
    if not adapted and loading.stage not in ("dpo", "kto"):
        return out
    reference = config.llamafactory.get("ref_model")
    beside = [reference] if reference else []
    if not adapted and beside:
        models = beside
    else:
        models = [model_args.model_name_or_path, *(model_args.adapter_name_or_path or []), *beside]
    different = (
        "model_name_or_path: the {key} are others on {second} than on {first}; every node must have the same model"
    )
    commit = getattr(found, "_commit_hash", None)
    key = "weights of the model"
    return out | same_everywhere(lambda: {key: _weights_digest(models, commit)}, different)


def _weights_digest(models: list[str], commit: str | None) -> str:
    """Of the weights in local folders, and what adapters make of theirs; of models on a hub the name, and of the first one its
    commit."""
    listed, hosted = [], []
    for i, model in enumerate(map(str, models)):
        folder = Path(model)
        if folder.is_dir():
            files = [f for f in sorted(folder.iterdir()) if f.suffix in WEIGHTS or f.name == "adapter_config.json"]
            listed += [(f"{i}/{f.name}", f) for f in files if f.name != "training_args.bin"]
        else:
            hosted.append(f"{model}@{commit}" if i == 0 else model)
    return " ".join([sampled_all(listed, _AT_START), *hosted])


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, found in sorted(value.items()):
        if key.startswith("_") or key in _FREE_OF_MODEL:
            continue
        if isinstance(found, dict) and found:
            yield from _flat(found, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", found


def _of_arguments(config: RunConfig, loading: Loading) -> dict[str, Any]:
    """Keys of LLaMA-Factory that decide what the model and the optimizer are, defaults filled in."""
    given = config.llamafactory
    out = {key: _plain(getattr(loading.model_args, key)) for key in _OF_MODEL}
    kind = _OF_FINETUNING.get(str(given.get("finetuning_type", "lora")), ())
    out |= {key: _plain(given.get(key, _defaults().get(key))) for key in (*kind, *_OF_OPTIMIZER)}
    if "lora_alpha" in out and out["lora_alpha"] is None:
        out["lora_alpha"] = 2 * out["lora_rank"]
    out["optim"] = _plain(loading.training_args.optim)
    return {key: out[key] for key in sorted(out)}


@cache
def _defaults() -> dict[str, Any]:
    from llamafactory.hparams import FinetuningArguments

    return {f.name: f.default for f in fields(FinetuningArguments) if f.default is not MISSING}


def _plain(value: Any) -> Any:
    """As JSON gives it back, however it was spelled."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    value = getattr(value, "value", value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# -- comparing -------------------------------------------------------------------------------------------------------


def comparable(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both as far as they can be compared: a checkpoint of an earlier version says less, and another release of transformers
    may know more about a model's configuration than the one that saved it."""
    saved, current = dict(saved), dict(current)
    for former, names in _FORMER.items():
        if former in saved:
            name = next((n for n in names if n in current), names[0])
            saved[name] = saved.pop(former)
    for name in [key for key in current if key.startswith("content of dataflex.")]:
        saved.pop(name.removeprefix("content of "), None)  # the path, which counted in earlier versions
    contents = {key: value for key, value in current.items() if key.startswith(_OF_MODELS)}
    saved = {key: value for key, value in _without_paths({**contents, **saved}).items() if key in saved}
    if _RELEASE not in saved:
        unsaid = {"weights of the model", "optim", *_OF_MODEL, *sum(_OF_FINETUNING.values(), ()), *_OF_OPTIMIZER}
        later = (
            _MODEL,
            "content of the encoder",
            "content of the reward model",
            "content of dataflex.",
            "contents of ",
        )
        current = {k: v for k, v in current.items() if k in saved or not (k in unsaid or k.startswith(later))}
    elif saved[_RELEASE] != current[_RELEASE]:
        one_sided = {k for k in {*saved} ^ {*current} if k.startswith(_MODEL)}
        saved, current = ({k: v for k, v in side.items() if k not in one_sided} for side in (saved, current))
    for side in (saved, current):
        side.pop(_RELEASE, None)
    return saved, current
