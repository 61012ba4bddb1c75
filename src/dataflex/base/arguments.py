"""Checks LLaMA-Factory's keys and data sets before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from dataflex.components.requests import Embedding, PolicyAlignment, ReferenceLoss, RouterLoad
from dataflex.config.flat import FLAT_KEYS
from dataflex.config.schema import DataflexConfig, RunConfig
from dataflex.config.values import truth
from dataflex.errors import ConfigError, nearest


def check_arguments(config: RunConfig, *, needs_model: bool = True, writes: bool = True) -> None:
    """Raise ConfigError for an unknown key, a value outside its choices, a data set that is not defined, or an output_dir that
    cannot be written to. writes: whether this process, or one beside it, will write."""
    from llamafactory.extras.misc import is_env_enabled
    from llamafactory.hparams import RayArguments
    from llamafactory.hparams.parser import _TRAIN_ARGS

    values = config.llamafactory
    hints: dict[str, Any] = {}
    for kind in (*_TRAIN_ARGS, RayArguments):
        resolved = typing.get_type_hints(kind)
        hints |= {f.name: resolved[f.name] for f in fields(kind) if f.init}
    if not is_env_enabled("ALLOW_EXTRA_ARGS"):
        for key in values:
            if key not in hints:
                raise ConfigError(f"{key}: unknown key{nearest(key, [*hints, 'dataflex', *FLAT_KEYS])}")
    for key, value in values.items():
        if key in hints:
            _check_value(key, value, hints[key])
    if writes:
        _check_output(values)
    _check_template(values)
    _check_paths(values, needs_model)
    for key in ("dataset", "eval_dataset"):
        _check_datasets(key, values.get(key), values, config.dataflex is not None)
    if config.dataflex is not None and config.dataflex.mix is not None:
        given_names = config.dataflex.mix.eval_dataset
        by_domain = list(given_names.values()) if isinstance(given_names, dict) else list(given_names)
        _check_datasets(config.dataflex.held_out_key, by_domain or None, values, True)
        for request in config.dataflex.requests("mix"):
            if isinstance(request, RouterLoad):
                experts = _of_model(
                    values.get("model_name_or_path"),
                    lambda c: getattr(c.get_text_config(), "num_experts_per_tok", 0) or 0,
                )
                if experts == 0:
                    raise ConfigError(
                        f"dataflex.mix.name: {config.dataflex.mix.name} goes by the routers of a mixture of experts, and"
                        f" {values.get('model_name_or_path')} has none"
                    )
    if config.dataflex is not None:
        _check_models(config.dataflex, values)
        key, target = config.dataflex.target
        _check_datasets(key, list(target) or None, values, True)


def _check_value(key: str, value: Any, hint: Any) -> None:
    options = _members(hint)
    if value is None:
        return
    literals = [a for o in options if typing.get_origin(o) is typing.Literal for a in typing.get_args(o)]
    if literals and len(options) == 1 and value not in literals:
        raise ConfigError(f"{key}: {value!r} is not a choice{nearest(str(value), map(str, literals))}")
    if len(options) == 1 and options[0] in (int, float):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{key} must be a number, got {value!r}") from None
        if options[0] is int and number != int(number):
            raise ConfigError(f"{key} must be an integer, got {value!r}")
    if len(options) == 1 and options[0] is bool and str(value).lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigError(f"{key} must be true or false, got {value!r}")


def _members(hint: Any) -> list[Any]:
    """The types a hint admits, None aside."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [a for a in typing.get_args(hint) if a is not type(None)]
    return [hint]


def _check_output(values: dict[str, Any]) -> None:
    """Whether the rank that will write can."""
    folder = values.get("output_dir")
    everywhere = truth(values.get("save_on_each_node"), "save_on_each_node")
    if not folder or os.environ.get("LOCAL_RANK" if everywhere else "RANK", "0") != "0":
        return
    there = Path(str(folder)).expanduser().absolute()
    while not os.path.lexists(there):
        there = there.parent
    probe = there / f".dataflex-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written to: {error.strerror or error}") from None


def _check_template(values: dict[str, Any]) -> None:
    from llamafactory.data.template import TEMPLATES

    template = values.get("template")
    if template is not None and template not in TEMPLATES:
        raise ConfigError(f"template: unknown template {template!r}{nearest(str(template), TEMPLATES)}")


def _check_paths(values: dict[str, Any], needs_model: bool) -> None:
    model = values.get("model_name_or_path")
    if not model and not needs_model:
        return
    if not model:
        raise ConfigError("model_name_or_path is required")
    if str(model).startswith(("/", ".", "~")) and not Path(str(model)).expanduser().exists():
        raise ConfigError(f"model_name_or_path: no such directory: {model}")
    resume = values.get("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() not in ("true", "false") and not Path(resume).is_dir():
        raise ConfigError(f"resume_from_checkpoint: no such directory: {resume}")


def _check_models(config: DataflexConfig, values: dict[str, Any]) -> None:
    """What requests say about models, as far as these are on this machine."""
    from dataflex.base.reference import check_reference

    for slot, request in [(s, r) for s in config.components for r in config.requests(s)]:
        if isinstance(request, ReferenceLoss):
            key = f"dataflex.{slot}.reference_model_path"
            check_reference(request.model, str(values.get("model_name_or_path")), key)
        if isinstance(request, Embedding) and request.model is None:
            layers = _of_model(values.get("model_name_or_path"), lambda c: c.get_text_config().num_hidden_layers)
            if layers is not None and not -layers - 1 <= request.layer <= layers:
                key = "embed_layer" if hasattr(config.components[slot], "embed_layer") else "embedding_layer"
                raise ConfigError(
                    f"dataflex.{slot}.{key} must be between {-layers - 1} and {layers} (the last; 0 is the input),"
                    f" got {request.layer}"
                )
        if isinstance(request, PolicyAlignment) and request.reward_model is not None:
            path = request.reward_model
            if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
                raise ConfigError(f"dataflex.select.reward_model_path: no such directory: {path}")
            outputs = _of_model(path, lambda c: c.num_labels)
            if outputs not in (None, 1):
                raise ConfigError(f"dataflex.select.reward_model_path: {path} has {outputs} outputs; a reward has one")


def _of_model(path: Any, ask: Callable[[Any], int]) -> int | None:
    """What the configuration of a model in a local directory says; None where it says nothing."""
    from transformers import AutoConfig

    if not path or not Path(str(path)).is_dir():
        return None
    try:
        return ask(AutoConfig.from_pretrained(str(path)))
    except (OSError, ValueError, AttributeError):
        return None


def _check_datasets(key: str, given: Any, values: dict[str, Any], dynamic: bool) -> None:
    folder = values.get("dataset_dir", "data")
    if given is None or isinstance(folder, dict) or str(folder).startswith(("ONLINE", "REMOTE:")):
        return
    names = [n.strip() for n in given.split(",")] if isinstance(given, str) else list(given)
    info_path = Path(str(folder)) / "dataset_info.json"
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"dataset_dir: there is no {info_path}") from None
    except ValueError as error:
        raise ConfigError(f"dataset_dir: {info_path} is not valid JSON: {error}") from None
    for place, name in enumerate(names):
        if name not in info:
            raise ConfigError(f"{key}: {name!r} is not defined in {info_path}{nearest(name, info)}")
        if not isinstance(info[name], dict):
            raise ConfigError(f"{key}: the entry of {name!r} in {info_path} must be a mapping")
        if name in names[:place] and dynamic:
            raise ConfigError(f"{key}: {name!r} is listed twice")
        file_name = info[name].get("file_name")
        hosted = any(
            k in info[name] for k in ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
        )
        if file_name and not hosted and not os.path.exists(os.path.join(str(folder), file_name)):
            raise ConfigError(f"{key}: the file of {name!r} is missing: {os.path.join(str(folder), file_name)}")
