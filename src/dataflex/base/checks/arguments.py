"""Checks LLaMA-Factory's keys and data sets before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dataflex.base.checks.entries import refused_data_sets, refused_evaluated
from dataflex.base.checks.trackers import refused_trackers
from dataflex.compat.flat import FLAT_KEYS
from dataflex.config.evaluate import block_of, read_evaluate
from dataflex.config.files import read
from dataflex.config.llamafactory.known import KnownKeys
from dataflex.config.llamafactory.ranges import check_range
from dataflex.config.llamafactory.trainer_keys import refused_accelerator
from dataflex.config.llamafactory.typed import read_typed
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DataflexConfig, RunConfig
from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.values import dataset_names, truth, words
from dataflex.values.paths import is_file, is_folder

_Read = TypeVar("_Read")


def load_checked(
    load: Callable[[Sequence[str]], _Read],
    arguments: Sequence[str],
    *,
    needs_model: bool = True,
    idle: Collection[str] = (),
    known: KnownKeys | None = None,
    writes: bool = True,
) -> _Read:
    """What `load` makes of a command's arguments. Where it refuses, LLaMA-Factory's keys are checked too, so that all mistakes
    are named at once. idle: keys of which the command has its own values. known, writes: as in `check_arguments`."""
    try:
        return load(arguments)
    except ConfigError as error:
        mistakes = Mistakes()
        mistakes.note(error)
        with mistakes.noting(once=True):
            raw = read(arguments)
            keys = {k: v for k, v in raw.items() if k not in ("dataflex", *FLAT_KEYS, *idle)}
            check_keys(keys, mistakes, needs_model=needs_model, writes=writes, known=known)
            evaluated = read_evaluate(*block_of(raw), Mistakes())  # its mistakes are known
            if evaluated is not None and not {"dataset_dir", "stage"} & mistakes.keys:
                mistakes.gather(refused_evaluated(evaluated, raw), once=True)
        mistakes.settle()
        raise


def check_arguments(
    config: RunConfig, *, needs_model: bool = True, writes: bool = True, known: KnownKeys | None = None
) -> RunConfig:
    """The configuration with LLaMA-Factory's keys as the types they have there.

    ConfigError for all that is wrong with them: an unknown key, a value of another type, outside its range or its choices, a
    data set that is not defined, an output_dir that cannot be written to. writes: whether this process, or one beside it, will
    write. known: where the keys are known from; None: from the packages themselves, which are imported.
    """
    mistakes, known = Mistakes(), known or ImportedKeys()
    dataflex = config.dataflex
    orders = dataflex is not None and dataflex.plans_data
    values = check_keys(config.llamafactory, mistakes, needs_model=needs_model, writes=writes, once=orders, known=known)
    config = replace(config, llamafactory=values)
    folder, stage = values.get("dataset_dir", "data"), str(values.get("stage", "sft"))
    if config.evaluate is not None:
        mistakes.gather(refused_evaluated(config.evaluate, values))
    if dataflex is not None:
        if dataflex.mix is not None and dataflex.mix.eval_dataset:
            given = dataflex.mix.eval_dataset
            names = list(given.values()) if isinstance(given, dict) else list(given)
            mistakes.gather(refused_data_sets(dataflex.compat.held_out_key, names, folder, once=True, stage=stage))
        if known.imports:
            mistakes.gather(_refused_models(dataflex, values))
        key, target = dataflex.target
        if target:
            mistakes.gather(refused_data_sets(key, list(target), folder, once=True, stage=stage))
    mistakes.settle()
    return config


def check_keys(
    given: Mapping[str, Any],
    mistakes: Mistakes,
    *,
    needs_model: bool = True,
    writes: bool = True,
    once: bool = False,
    known: KnownKeys | None = None,
) -> dict[str, Any]:
    """LLaMA-Factory's keys as the types they have there; what is wrong is noted. once: every data set may be named only once."""
    known = known or ImportedKeys()
    hints = known.types
    values, wrong = dict(given), set()
    for key, value in given.items():
        if key not in hints:
            if os.environ.get("ALLOW_EXTRA_ARGS", "0").lower() not in ("true", "y", "1"):  # as LLaMA-Factory reads it
                near = nearest(key, [*hints, "dataflex", *FLAT_KEYS])
                mistakes.note(ConfigError(f"{_printable(key)}: unknown key{near}"))
                needs_model = False  # which may be the one that is misspelt
            continue
        wrong.add(key)
        with mistakes.noting(once=True):
            values[key] = read_typed(key, value, hints[key])
            check_range(key, values[key])
            wrong.discard(key)
    for key in wrong:
        values.pop(key)
    if writes and "save_on_each_node" not in wrong:
        mistakes.gather(_refused_output(values))
    checks = [
        _refused_template(values, known),
        refused_trackers(_trackers(values), known),
        _refused_sizes(values, known),
        _refused_paths(values, needs_model and "model_name_or_path" not in wrong, writes, known),
    ]
    for check in checks:
        mistakes.gather(check, once=True)
    if not {"dataset_dir", "stage"} & wrong:
        folder = values.get("dataset_dir", "data")
        stage = None if "stage" in mistakes.keys else str(values.get("stage", "sft"))
        with mistakes.noting(once=True):
            for key in ("dataset", "eval_dataset"):
                if values.get(key) is not None:
                    mistakes.gather(refused_data_sets(key, dataset_names(values[key]), folder, once=once, stage=stage))
    return values


def key_classes() -> tuple[type, ...]:
    """The dataclasses whose fields are LLaMA-Factory's keys."""
    from llamafactory.hparams import RayArguments
    from llamafactory.hparams.parser import _TRAIN_ARGS

    return (*_TRAIN_ARGS, RayArguments)


class ImportedKeys:
    """What the installed packages say, once they are imported."""

    imports: ClassVar[bool] = True

    @cached_property
    def types(self) -> Mapping[str, Any]:
        hints: dict[str, Any] = {}
        for kind in key_classes():
            resolved = typing.get_type_hints(kind)
            hints |= {f.name: resolved[f.name] for f in fields(kind) if f.init}
        return hints

    @cached_property
    def templates(self) -> Collection[str]:
        from llamafactory.data.template import TEMPLATES

        return TEMPLATES

    @cached_property
    def log_levels(self) -> Collection[str]:
        from transformers.training_args import trainer_log_levels

        return list(trainer_log_levels)

    @cached_property
    def trackers(self) -> Collection[str]:
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        return list(INTEGRATION_TO_CALLBACK)

    @cached_property
    def accelerator(self) -> Collection[str]:
        from transformers.trainer_pt_utils import AcceleratorConfig

        return [f.name for f in fields(AcceleratorConfig)]


def _printable(key: str) -> str:
    """A key as it can be told from its neighbours on a terminal."""
    return key if key.isprintable() else ascii(key)[1:-1]


def _trackers(values: Mapping[str, Any]) -> Any:
    """Those of transformers: with use_swanlab LLaMA-Factory has a callback of its own."""
    own = values.get("use_swanlab")
    return [name for name in words(values.get("report_to")) if not (own and name == "swanlab")]


def _refused_output(values: dict[str, Any]) -> Iterator[str]:
    """Whether the rank that will write can."""
    folder = values.get("output_dir")
    everywhere = truth(values.get("save_on_each_node"), "save_on_each_node")
    if not folder or os.environ.get("LOCAL_RANK" if everywhere else "RANK", "0") != "0":
        return
    there = Path(str(folder)).absolute()
    try:
        if "\0" in str(there) or any(len(os.fsencode(part)) > 255 for part in there.parts):
            raise OSError("a name in it is longer than 255 bytes, or has a byte of zero")
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise OSError(f"{there} is not a directory")
        probe = there / f".dataflex-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield f"output_dir: {_clipped(folder)} cannot be written to: {error.strerror or error}"


def _clipped(path: Any) -> str:
    text = _printable(str(path))
    return text if len(text) <= 120 else f"{text[:117]}..."


def _refused_template(values: dict[str, Any], known: KnownKeys) -> Iterator[str]:
    template = values.get("template")
    if template is not None and template not in known.templates:
        yield f"template: unknown template {template!r}{nearest(str(template), known.templates)}"


def _refused_sizes(values: dict[str, Any], known: KnownKeys) -> Iterator[str]:
    size = values.get("val_size") or 0.0
    if size == 1:
        yield f"val_size must be a share of the rows below 1, or a number of rows above 1, got {size:g}"
    if values.get("quantization_method", "bnb") == "bnb" and values.get("quantization_bit") not in (None, 4, 8):
        yield f"quantization_bit must be 4 or 8 with quantization_method: bnb, got {values['quantization_bit']}"
    if values.get("logging_steps") == 0 and str(values.get("logging_strategy", "steps")) == "steps":
        yield "logging_steps must be above 0, got 0; logging_strategy: no turns logging off"
    if values.get("dataloader_prefetch_factor") and not values.get("dataloader_num_workers"):
        yield "dataloader_prefetch_factor has no effect without dataloader_num_workers, and transformers refuses it"
    level = values.get("log_level")
    if level is not None and level not in known.log_levels:
        yield f"log_level: {level!r} is not a choice{nearest(str(level), known.log_levels)}"


def _refused_paths(values: dict[str, Any], needs_model: bool, writes: bool, known: KnownKeys) -> Iterator[str]:
    """writes: whether checkpoints are on this machine."""
    model = values.get("model_name_or_path")
    if not model and needs_model:
        yield "model_name_or_path is required"
    elif model and needs_model:
        yield from _refused_model(str(model), known)
    resume = values.get("resume_from_checkpoint")
    named = isinstance(resume, str) and resume.lower() not in ("true", "false")
    if named and writes and not is_folder(str(resume)):
        yield f"resume_from_checkpoint: no such directory: {_clipped(resume)}"
    for path in words(values.get("adapter_name_or_path")):
        if writes and _is_local(path) and not is_folder(path):
            yield f"adapter_name_or_path: no such directory: {_clipped(path)}"
    for key in (
        "deepspeed",
        "fsdp_config",
        "lr_scheduler_kwargs",
        "accelerator_config",
        "gradient_checkpointing_kwargs",
    ):
        yield from _refused_mapping(key, values.get(key))
    if isinstance(values.get("accelerator_config"), dict):
        yield from refused_accelerator(values["accelerator_config"], known.accelerator)


def _refused_model(model: str, known: KnownKeys) -> Iterator[str]:
    if not is_folder(model):
        if _is_local(model):
            yield f"model_name_or_path: no such directory: {_clipped(model)}"
        return
    folder = Path(model)
    if not (folder / "config.json").is_file():
        yield f"model_name_or_path: {_clipped(model)} has no config.json"
        return
    if not known.imports:
        return
    from transformers import AutoConfig

    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if "auto_map" not in content:  # which may need trust_remote_code
            AutoConfig.from_pretrained(str(folder))
    except Exception as error:  # of whatever kind of model
        why = " ".join(str(error).split())
        yield f"model_name_or_path: the config.json of {_clipped(model)} cannot be used: {_shortened(why)}"


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _refused_mapping(key: str, given: Any) -> Iterator[str]:
    """A text that stands for a mapping is JSON, or names a file."""
    if not isinstance(given, str) or not given.strip():
        return
    if given.lstrip().startswith("{"):
        try:
            json.loads(given)
        except ValueError as error:
            yield f"{key} is not valid JSON: {error}"
    elif given.endswith((".json", ".yaml", ".yml")) and not is_file(given):
        yield f"{key}: no such file: {_clipped(given)}"


def _is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _refused_models(config: DataflexConfig, values: dict[str, Any]) -> Iterator[str]:
    """What requests say about models, as far as these are on this machine."""
    from dataflex.base.checks.reference_model import check_reference

    for slot, request in [(s, r) for s in config.components for r in config.requests(s)]:
        others, states = request.other_models(), request.hidden_states()
        if "reference" in others:
            key = f"dataflex.{slot}.reference_model_path"
            check_reference(others["reference"], str(values.get("model_name_or_path")), key)
        if states is not None:
            layers = _of_model(values.get("model_name_or_path"), lambda c: c.get_text_config().num_hidden_layers)
            if layers is not None and not -layers - 1 <= states[0] <= layers:
                key = "embed_layer" if hasattr(config.components[slot], "embed_layer") else "embedding_layer"
                yield refused.NO_LAYER.line(slot=slot, parameter=key, least=-layers - 1, most=layers, layer=states[0])
        if "reward model" in others:
            path = others["reward model"]
            if _is_local(path) and not is_folder(path):
                yield f"dataflex.select.reward_model_path: no such directory: {path}"
                continue
            outputs = _of_model(path, lambda c: c.num_labels)
            if outputs not in (None, 1):
                yield refused.NOT_A_REWARD.line(path=path, outputs=outputs)
        if request.needs_experts:
            experts = _of_model(
                values.get("model_name_or_path"), lambda c: getattr(c.get_text_config(), "num_experts_per_tok", 0) or 0
            )
            if experts == 0:
                name = config.mix.name if config.mix else slot
                yield refused.NO_EXPERTS.line(name=name, model=values.get("model_name_or_path"))


def _of_model(path: Any, ask: Callable[[Any], int]) -> int | None:
    """What the configuration of a model in a local directory says; None where it says nothing."""
    from transformers import AutoConfig

    if not path or not is_folder(str(path)):
        return None
    try:
        return ask(AutoConfig.from_pretrained(str(Path(str(path)))))
    except (OSError, ValueError, AttributeError):
        return None
