"""What LLaMA-Factory's keys may be, read from the source of the installed packages: importing them takes seconds, and torch."""

from __future__ import annotations

import ast
import os
import typing
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

_KEYS = (
    ("llamafactory.hparams.model_args", "ModelArguments"),
    ("llamafactory.hparams.data_args", "DataArguments"),
    ("llamafactory.hparams.training_args", "TrainingArguments"),
    ("llamafactory.hparams.finetuning_args", "FinetuningArguments"),
    ("llamafactory.hparams.generating_args", "GeneratingArguments"),
    ("llamafactory.hparams.training_args", "RayArguments"),
)
# Packages that hand on names of their modules.
_HOMES = {("transformers", "Seq2SeqTrainingArguments"): "transformers.training_args_seq2seq"}
_PLAIN: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, dict, list, Path)},
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")},
}


class SourceError(LookupError):
    """The source of a package is not what it was, or is not there."""


class SourceKeys:
    """What the source says. A type that cannot be read may be anything. SourceError where that is true of a whole module."""

    imports: ClassVar[bool] = False

    @cached_property
    def types(self) -> Mapping[str, Any]:
        if os.environ.get("USE_MCA", "0").lower() in ("true", "y", "1"):
            raise SourceError("with USE_MCA the keys are those of mcore_adapter")
        found: dict[str, Any] = {}
        for module, name in _KEYS:
            found |= _types_of(module, name)
        return found

    @cached_property
    def templates(self) -> Collection[str]:
        return tuple(_templates("llamafactory.data.template"))

    @cached_property
    def log_levels(self) -> Collection[str]:
        return (*_dictionary("transformers.utils.logging", "log_levels"), "passive")

    @cached_property
    def trackers(self) -> Collection[str]:
        return tuple(_dictionary("transformers.integrations.integration_utils", "INTEGRATION_TO_CALLBACK"))

    @cached_property
    def accelerator(self) -> Collection[str]:
        return tuple(_types_of("transformers.trainer_pt_utils", "AcceleratorConfig"))


@cache
def _statements(module: str) -> tuple[ast.stmt, ...]:
    """Those of a module that are run when it is imported, the last one first; of an `if` all branches."""
    root, *rest = module.split(".")
    spec = find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"{root} is not installed")
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise SourceError(f"{module} cannot be read: {error}") from None

    def within(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for statement in body:
            if isinstance(statement, ast.If | ast.Try):
                yield from within(statement.body)
                yield from within(statement.orelse)
            yield statement

    return tuple(within(tree.body))[::-1]


def _definition(module: str, name: str) -> tuple[str, ast.expr | ast.ClassDef]:
    """What a name stands for in a module, and the module that says so; SourceError if it is not to be found."""
    for statement in _statements(module):
        match statement:
            case ast.ClassDef(name=found) if found == name:
                return module, statement
            case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
                return (
                    _definition(module, statement.value.id)
                    if isinstance(statement.value, ast.Name)
                    else (
                        module,
                        statement.value,
                    )
                )
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return module, value
            case ast.ImportFrom():
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return _definition(_imported(module, statement, alias.name), alias.name)
    raise SourceError(f"{module} has no {name}")


def _imported(module: str, statement: ast.ImportFrom, name: str) -> str:
    """The module that a name is imported from."""
    parent = module.split(".")[: -statement.level] if statement.level else []
    found = ".".join([*parent, *([statement.module] if statement.module else [])])
    return _HOMES.get((found, name), found)


def _types_of(module: str, name: str) -> dict[str, Any]:
    """The type of every parameter of a dataclass, those of its bases first."""
    module, found = _definition(module, name)
    if not isinstance(found, ast.ClassDef):
        raise SourceError(f"{module}: {name} is no class")
    types: dict[str, Any] = {}
    for base in reversed(found.bases):
        if isinstance(base, ast.Name):
            types |= _types_of(module, base.id)
    for statement in found.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=key), annotation=annotation, value=value):
                if "ClassVar" not in ast.unparse(annotation) and not _is_set_later(value):
                    types[key] = _type(module, annotation)
    return types


def _is_set_later(value: ast.expr | None) -> bool:
    """Whether a field is none of the parameters: field(init=False)."""
    given = value.keywords if isinstance(value, ast.Call) else []
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in given)


def _type(module: str, annotation: ast.expr) -> Any:
    """Any where it cannot be read."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    try:
        return eval(compile(ast.Expression(annotation), module, "eval"), {"__builtins__": {}}, _Names(module))
    except (AttributeError, LookupError, NameError, SyntaxError, TypeError):
        return Any


class _Names(dict[str, Any]):
    """The types that names in the annotations of a module stand for."""

    def __init__(self, module: str) -> None:
        super().__init__(_PLAIN)
        self.module = module

    def __missing__(self, name: str) -> Any:
        try:
            _, found = _definition(self.module, name)
        except SourceError:
            found = None
        if isinstance(found, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in found.bases):
            return Enum(name, _members(found), type=str)
        return type(name, (), {})  # whose values only a program can make


def _members(found: ast.ClassDef) -> dict[str, str]:
    members = {}
    for statement in found.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))):
                members[name] = value
    return members


def _dictionary(module: str, name: str) -> list[str]:
    """The keys of a dictionary that a module defines."""
    _, found = _definition(module, name)
    keys = found.keys if isinstance(found, ast.Dict) else []
    return [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]


def _templates(module: str) -> Iterator[str]:
    """Names that `register_template` is called with."""
    for statement in _statements(module):
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id="register_template"), keywords=given)):
                yield from (
                    k.value.value
                    for k in given
                    if k.arg == "name" and isinstance(k.value, ast.Constant) and isinstance(k.value.value, str)
                )
