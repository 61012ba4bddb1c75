"""What components say of themselves, in each of the ways in which one may write it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

import dataflex
from dataflex.components import requests
from dataflex.components.contexts import OwnPlan
from dataflex.components.contracts import Component, Mixer, Selector, Weighter, declared
from dataflex.config import parse
from dataflex.config.schema import MixConfig, Schedule
from dataflex.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Choosing(Selector):
    def select(self, state: Any, signals: Any, context: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Mixing(Mixer):
    def update(self, state: Any, observations: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Weighing(Weighter):
    def weights(self, state: Any, losses: Any, context: Any) -> Any:
        raise NotImplementedError


# What each fact is where a component says nothing, and another value that it may have.
FACTS: list[tuple[type[Component], str, Any, Any]] = [
    (Choosing, "needs", frozenset(), frozenset({"loss"})),
    (Choosing, "default_warmup", 0, 7),
    (Choosing, "with_replacement", False, True),
    (Choosing, "refines", frozenset(), frozenset({"tokens"})),
    (Choosing, "reads_raw_rows", False, True),
    (Mixing, "moves_proportions", True, False),
    (Weighing, "level", "row", "token"),
    (Weighing, "target_interval", None, 5),
]


@pytest.mark.parametrize(("base", "fact", "usual", "other"), FACTS)
def test_a_fact_may_be_a_method_an_attribute_a_property_or_a_parameter(
    base: type[Component], fact: str, usual: Any, other: Any
) -> None:
    written = {
        "method": {fact: lambda self: other},
        "attribute": {fact: other},
        "property": {fact: property(lambda self: self.mine), "mine": other},
        "parameter": {"__annotations__": {fact: Any}, fact: other},
    }
    assert declared(getattr(base(), fact)) == usual
    for way, body in written.items():
        own = dataclass(frozen=True, kw_only=True)(type("Own", (base,), {"__module__": __name__, **body}))
        assert declared(getattr(own(), fact)) == other, way
        if way == "parameter":
            assert declared(getattr(own(**{fact: usual}), fact)) == usual


@dataclass(frozen=True, kw_only=True)
class Attributes(Choosing):
    """Written as the contract was before."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})  # type: ignore[assignment]
    default_warmup: ClassVar[int] = 3  # type: ignore[assignment]

    def needs_now(self, state: Any) -> Any:
        return frozenset() if state else self.needs


@dataclass(frozen=True, kw_only=True)
class Properties(Choosing):
    aims: bool = True

    @property
    def needs(self) -> frozenset[Any]:  # type: ignore[override]
        return frozenset({requests.TargetAlignment()} if self.aims else {"tokens"})

    @property
    def reads_raw_rows(self) -> bool:  # type: ignore[override]
        return not self.aims


@dataclass(frozen=True, kw_only=True)
class Tokens(Weighing):
    per: Literal["row", "token"] = "row"

    @property
    def level(self) -> str:  # type: ignore[override]
        return self.per


def config(**block: Any) -> Any:
    keys = {"do_train": True, "dataset": "a,b", "eval_dataset": "e", "dataflex": block}
    return parse(keys).dataflex


def test_a_configuration_reads_components_of_either_style() -> None:
    selected = config(select={"name": "test_contract:Attributes", "interval": 2})
    assert selected.select.schedule == Schedule(warmup=3, interval=2) and selected.needs("loss")
    component = selected.select.component
    assert component.needs_now({}) == {"loss"} and component.needs_now({"seen": 1}) == frozenset()
    aimed = config(select={"name": "test_contract:Properties", "interval": 2})
    assert aimed.aiming() == ["select"] and aimed.signals("select") == ["target_alignment"]
    with pytest.raises(ConfigError, match="reads a file about the rows as they are stored"):
        parse(
            {
                "do_train": True, "dataset": "a", "packing": True,
                "dataflex": {"select": {"name": "test_contract:Properties", "interval": 2, "aims": False}},
            }
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"stage: rm has no rows of one answer"):
        parse(
            {
                "do_train": True, "dataset": "a", "stage": "rm",
                "dataflex": {"weight": {"name": "test_contract:Tokens", "per": "token"}},
            }
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ByStep(Mixing):
    steps: ClassVar[tuple[int, ...]] = (4, 9)


@dataclass(frozen=True, kw_only=True)
class ByRow(Mixing):
    first: int = 16
    needs_limit: ClassVar[bool] = True
    unit: ClassVar[str] = "tokens"

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.first, 2 * self.first)


def test_a_mixer_of_before_brings_a_plan_of_its_own() -> None:
    assert Mixing().own_plan() == OwnPlan() and not OwnPlan().timed
    assert config(mix="test_contract:ByStep").mix.schedule == Schedule(at=(4, 9))
    mixer = ByRow(first=8)
    assert mixer.own_plan() == OwnPlan(positions=(8, 16), unit="tokens", limited=True)
    assert MixConfig(name="m", component=mixer, schedule=Schedule()).settled(4).at == (2, 4)
    with pytest.raises(ConfigError) as error:
        config(mix="test_contract:ByRow")
    assert "takes shares of tokens, and unit is samples" in str(error.value)
    assert "max_repetition is required" in str(error.value)


def test_what_a_component_imports_is_in_dataflex() -> None:
    for name in (
        "Embedding",
        "TargetAlignment",
        "RouterLoad",
        "DomainGradients",
        "ReferenceLoss",
        "Request",
        "OwnPlan",
    ):
        assert name in dataflex.__all__ and hasattr(dataflex, name)
    assert dataflex.Features is requests.Features
    without = "import sys, dataflex; dataflex.Embedding(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", without]).returncode == 0


def test_a_seed_and_files_are_part_of_the_contract() -> None:
    for base in (Choosing, Mixing, Weighing):
        assert base().seed == 0 and base().files() == {}
