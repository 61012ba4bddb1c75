"""What a component says of itself: its docstring, its parameters, what it needs and what that costs.

Everything is read from the class: docstrings of the class and below its fields, types, defaults, what `check` demands, and the
requests in `needs`. No model and no file is needed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dataflex.components.contracts import Component, Order, Selector, declared
from dataflex.components.paper import Paper
from dataflex.components.requests import as_requests
from dataflex.components.signal_request import SignalRequest, Work

_DEPARTURES = "Departures:"
_WORDS = {int: "integer", float: "number", bool: "boolean", str: "text", NoneType: "null", Any: "anything"}


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    """In words, such as `number, or null`."""
    required: bool
    default: Any
    """None where it is required."""
    expectations: tuple[str, ...]
    """What `check` demands of it, such as `in (0, 1]`."""
    meaning: str

    @property
    def of_null(self) -> str:
        """What null stands for, which `meaning` says behind "null:"; empty where it does not say."""
        _, found, rest = self.meaning.partition("null: ")
        return rest.partition("; ")[0].removesuffix(".") if found else ""


@dataclass(frozen=True)
class Description:
    family: str
    """select, mix, weight or order."""
    name: str
    summary: str
    """One sentence."""
    text: str
    """What else the docstring says, without the departures."""
    departures: str
    """How it differs from the program or the text of its authors; empty where the docstring does not say."""
    paper: Paper | None
    signals: tuple[str, ...]
    """Names of the signals that it asks for."""
    needs: tuple[str, ...]
    """What a run must have beside the data: target, held-out rows, reference model, model (that is measured), experts."""
    work: Work
    """The most that one of its signals takes."""
    cost: tuple[str, ...]
    """What each of them takes, in words."""
    component: type[Component]

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The required ones first. They are found in the source, which takes longer than all else."""
        return parameters(self.component)


def describe(family: str, name: str, cls: type[Component]) -> Description:
    """The description of a component class under a name of its family (select, mix, weight or order)."""
    summary, text, departures = _sections(cls)
    instance = unchecked(cls)
    requests = _requests(instance)
    costs = [request.work_for(family) for request in requests]
    works = get_args(Work)
    if issubclass(cls, Order) and not cls.unscored:
        costs.append(("none", "none, but for `by: loss`: a forward pass over the data per update"))
    return Description(
        family=family,
        name=name,
        summary=summary,
        text=text,
        departures=departures,
        paper=_stated(cls, "paper", Paper, None),
        signals=tuple(sorted({request.name for request in requests})),
        needs=_needs(family, requests),
        work=max((work for work, _ in costs), key=works.index, default="none"),
        cost=tuple(dict.fromkeys(words for _, words in costs)),
        component=cls,
    )


def example_of(cls: type[Component]) -> Mapping[str, Any]:
    """Values of an example of its block, one for each parameter that has no default among them."""
    values = dict(_stated(cls, "example", Mapping, {}))
    required = [f.name for f in _fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    lacking = [name for name in required if name not in values]
    hints = _hints(cls) if lacking else {}
    return values | {name: _placeholder(hints.get(name, str)) for name in lacking}


def unchecked(cls: type[Component]) -> Component:
    """An object with defaults and, where there are none, values of the example. `check` is left out: it may read files."""
    return _filled(object.__new__(cls), cls)


def parameters(cls: type[Component]) -> tuple[Parameter, ...]:
    """Those of a component class, the required ones first."""
    hints, meanings, demands, values = _hints(cls), field_docstrings(cls), _demands(cls), unchecked(cls)
    found = []
    for field in _fields(cls):
        expectations, choices = demands.get(field.name, ((), ()))
        required = field.default is MISSING and field.default_factory is MISSING
        default = None if required else getattr(values, field.name)
        kind = " | ".join(map(str, choices)) or type_in_words(hints.get(field.name, Any))
        found.append(Parameter(field.name, kind, required, default, expectations, meanings.get(field.name, "")))
    return tuple(sorted(found, key=lambda parameter: not parameter.required))


def field_docstrings(cls: type) -> dict[str, str]:
    """The text below each field of a class and of its bases, in one line each; nothing where there is no source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__annotations__" not in vars(base):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for statement, below in pairwise(body):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if ast.unparse(statement.annotation).startswith("ClassVar"):  # a fact of the class, and no field
                continue
            if (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                found[statement.target.id] = " ".join(below.value.value.split())
    return found


def type_in_words(hint: Any) -> str:
    """A type for people: `list of integers, or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return ", or ".join(type_in_words(a) for a in sorted(arguments, key=lambda a: a is NoneType))
    if origin in (tuple, list):
        parts = [a for a in arguments if a is not Ellipsis]
        if len(parts) == 1:
            return f"list of {_plural(type_in_words(parts[0]))}"
        return f"[{', '.join(map(type_in_words, parts))}]"
    if origin is dict:
        return f"mapping of {type_in_words(arguments[0])} to {type_in_words(arguments[1])}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _plural(words: str) -> str:
    return "lists of" + words.removeprefix("list of") if words.startswith("list of") else words + "s" * words.isalpha()


def _fields(cls: type[Component]) -> list[Any]:
    return [field for field in fields(cls) if field.init]


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except Exception:  # whatever the annotations of a user's class do
        return {}


def _stated(cls: type, name: str, kind: type, otherwise: Any) -> Any:
    """A fact that a class attribute states. A plug-in may have a parameter of that name, which is none."""
    value = getattr(cls, name, otherwise)
    return value if isinstance(value, kind) and name not in {f.name for f in fields(cls)} else otherwise


def _sections(cls: type) -> tuple[str, str, str]:
    """The first sentence of the docstring, the rest of it, and the departures."""
    text = inspect.getdoc(cls) or ""
    if text.startswith(f"{cls.__name__}("):  # what `dataclass` writes where there is no docstring
        text = ""
    text, _, departures = text.partition(f"\n{_DEPARTURES}\n")
    first, _, rest = text.partition("\n\n")
    summary, _, more = " ".join(first.split()).partition(". ")
    return summary.removesuffix("."), "\n\n".join(filter(None, (more, rest.strip()))), departures.strip()


def _requests(instance: Component) -> list[SignalRequest]:
    """What it asks for with its defaults, by name; nothing where a class cannot say it without its parameters."""
    try:
        asked = declared(instance.needs) | (
            declared(instance.refines) if isinstance(instance, Selector) else frozenset()
        )
        return sorted(as_requests(asked), key=lambda request: request.name)
    except Exception:  # whatever a user's class does
        return []


def _needs(family: str, requests: list[SignalRequest]) -> tuple[str, ...]:
    found = set()
    for request in requests:
        models = request.other_models()
        found |= {"target"} if request.aim == "target" else set()
        found |= {"held-out rows"} if request.aim == "held out" else set()
        found |= {"reference model"} if "reference" in models else set()
        found |= {"experts"} if request.needs_experts else set()
        if request.work_for(family)[0] not in ("none", "text encoder") and not models:
            found.add("model")
    order = ("target", "held-out rows", "reference model", "experts", "model")
    return tuple(need for need in order if need in found)


def _demands(cls: type[Component]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What `check` demands of each parameter, in its own words, and the values that it allows.

    `check` runs on an object whose `require` writes down instead of refusing. What it would read files for is not reached."""
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def require(self: Component, parameter: str, holds: bool, expectation: str) -> None:
        before, choices = found.get(parameter, ((), ()))
        found[parameter] = (tuple(dict.fromkeys((*before, expectation))), choices)

    def require_choice(self: Component, parameter: str, choices: Any) -> None:
        found[parameter] = (found.get(parameter, ((), ()))[0], tuple(choices))

    noting = type(cls.__name__, (cls,), {"require": require, "require_choice": require_choice})
    instance = _filled(object.__new__(noting), cls)
    with suppress(Exception):  # a file that is not there, or whatever a user's class does
        instance.check()
    return found


def _filled(instance: Component, cls: type[Component]) -> Component:
    """The object, with the values of `unchecked`. A field that is computed while an object is made stays without."""
    example = example_of(cls)
    for field in fields(cls):
        value = field.default if field.default_factory is MISSING else field.default_factory()
        value = example.get(field.name, MISSING) if value is MISSING else value
        if value is not MISSING:
            object.__setattr__(instance, field.name, value)
    return instance


def _placeholder(hint: Any) -> Any:
    """A value of a type, where a class gives none for its example."""
    if get_origin(hint) in (Union, UnionType):
        return _placeholder(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    return {int: 1, float: 1.0, bool: False}.get(hint, "value" if hint is str else [])
