"""A refusal as a record, and the facts of a configuration that decide about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dataflex.config.llamafactory.trainer_keys import accelerator_fields
from dataflex.errors import ConfigError
from dataflex.values import number, truth

if TYPE_CHECKING:
    from dataflex.components.signal_request import SignalRequest
    from dataflex.config.schema import DataflexConfig


@dataclass(frozen=True)
class Facts:
    """A configuration as refusals ask about it. lf: LLaMA-Factory's keys as given. slot: of the component that is looked at."""

    config: DataflexConfig
    lf: Mapping[str, Any]
    slot: str = ""

    def of(self, slots: Iterable[str]) -> Iterator[Facts]:
        """The facts of one component after the other."""
        return (replace(self, slot=slot) for slot in slots)

    def on(self, key: str) -> bool:
        """Whether a switch of LLaMA-Factory's is on; ConfigError where it is no switch."""
        return truth(self.lf.get(key), key)

    def positive(self, key: str) -> bool:
        """Whether a number of LLaMA-Factory's is above 0; ConfigError where it is no number."""
        return number(self.lf.get(key) or 0, key) > 0

    def word(self, key: str) -> str:
        """A choice of LLaMA-Factory's in lower case, which a program may have given as a member of an enum."""
        return str(self.lf.get(key)).rsplit(".", 1)[-1].lower()

    @property
    def components(self) -> str:
        """The components that act."""
        return " and ".join(self.config.components)

    @property
    def stage(self) -> str:
        return self.lf.get("stage", "sft")  # type: ignore[no-any-return]

    @property
    def select(self) -> Any:
        return self.config.select

    @property
    def mix(self) -> Any:
        return self.config.mix

    @property
    def weight(self) -> Any:
        return self.config.weight

    @property
    def order(self) -> Any:
        return self.config.order

    @property
    def part(self) -> Any:
        """The selector, mixer, weighter or order in `slot`, with its keys."""
        return self.weight.slots()[self.slot] if self.slot.startswith("weight") else getattr(self.config, self.slot)

    @property
    def name(self) -> str:
        """The name of the component in `slot`."""
        return self.part.name  # type: ignore[no-any-return]

    @property
    def requests(self) -> frozenset[SignalRequest]:
        """What the component in `slot` asks for."""
        return self.config.requests(self.slot)

    @cached_property
    def accelerator(self) -> dict[str, Any]:
        """`accelerator_config` as fields; ConfigError where it has none."""
        return accelerator_fields(self.lf.get("accelerator_config"))


class _Values(dict[str, Any]):
    """What a template names: values of its own, else facts."""

    def __init__(self, values: Mapping[str, Any], facts: Facts | None) -> None:
        super().__init__(values)
        self.facts = facts

    def __missing__(self, name: str) -> Any:
        return getattr(self.facts, name)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """key: what the line begins with, a key as a rule. why, instead: templates of the line, before and after its semicolon. They
    name facts, or values that `when` gives, in braces, and say {key} where the user may have spelled the key otherwise.

    when: whether it applies, or the values of the templates where it does. None: decided by data, models or ranks. The place
    that sees these raises `error`.
    """

    key: str
    why: str
    instead: str = ""
    when: Callable[[Facts], bool | Mapping[str, Any] | None] | None = None

    @property
    def template(self) -> str:
        return f"{self.why}; {self.instead}" if self.instead else self.why

    def line(self, facts: Facts | None = None, **values: Any) -> str:
        return self.template.format_map(_Values(values, facts))

    def error(self, **values: Any) -> ConfigError:
        return ConfigError(self.line(**values))


def _once(facts: Facts) -> Iterable[Facts]:
    return (facts,)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Refusals of one kind of run. title, note: Markdown for docs/refused.md. applies: whether a run is of this kind. each: the
    facts to ask about, one after the other."""

    title: str
    refusals: tuple[Refusal, ...]
    note: str = ""
    applies: Callable[[Facts], bool] = lambda facts: True
    each: Callable[[Facts], Iterable[Facts]] = _once

    def lines(self, facts: Facts) -> Iterator[str]:
        """What is refused, as far as the configuration decides it. A ConfigError of a value that cannot be read ends it."""
        if not self.applies(facts):
            return
        for found in self.each(facts):
            for refusal in self.refusals:
                applies = refusal.when(found) if refusal.when is not None else None
                if applies:
                    yield refusal.line(found, **(applies if isinstance(applies, Mapping) else {}))
