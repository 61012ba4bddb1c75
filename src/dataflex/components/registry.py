"""Names to classes: explicit tables, entry points of other packages, and `module:Class`.

docs/extending.md (Built into the package) says what else a new built-in name takes.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from importlib.metadata import EntryPoint, entry_points

from dataflex.components.contracts import Component, Mixer, Order, Selector, Weighter
from dataflex.errors import ConfigError, nearest

_HERE = "dataflex.components"

SELECTORS = {
    "random": f"{_HERE}.selectors.random:RandomSelector",
    "loss": f"{_HERE}.selectors.loss:LossSelector",
    "less": f"{_HERE}.selectors.less:LessSelector",
    "cluster_less": f"{_HERE}.selectors.cluster_less:ClusterLessSelector",
    "icons": f"{_HERE}.selectors.icons:IconsSelector",
    "nice": f"{_HERE}.selectors.nice:NiceSelector",
    "greats": f"{_HERE}.selectors.greats:GreatsSelector",
    "rds": f"{_HERE}.selectors.rds:RdsSelector",
    "near": f"{_HERE}.selectors.near:NearSelector",
    "tsds": f"{_HERE}.selectors.tsds:TsdsSelector",
    "delta_loss": f"{_HERE}.selectors.delta_loss:DeltaLossSelector",
    "coincide": f"{_HERE}.selectors.coincide:CoincideSelector",
    "token_length": f"{_HERE}.selectors.token_length:TokenLengthSelector",
}
MIXERS = {
    "static": f"{_HERE}.mixers.fixed:StaticMixer",
    "uniform": f"{_HERE}.mixers.fixed:UniformMixer",
    "proportional": f"{_HERE}.mixers.fixed:ProportionalMixer",
    "stratified": f"{_HERE}.mixers.fixed:ProportionalMixer",
    "temperature": f"{_HERE}.mixers.fixed:TemperatureMixer",
    "random": f"{_HERE}.mixers.random:RandomMixer",
    "schedule": f"{_HERE}.mixers.schedule:ScheduleMixer",
    "file": f"{_HERE}.mixers.file:FileMixer",
    "replay": f"{_HERE}.mixers.replay:ReplayMixer",
    "odm": f"{_HERE}.mixers.odm:OdmMixer",
    "doremi": f"{_HERE}.mixers.doremi:DoremiMixer",
    "doge": f"{_HERE}.mixers.doge:DogeMixer",
    "ado": f"{_HERE}.mixers.ado:AdoMixer",
    "aioli": f"{_HERE}.mixers.aioli:AioliMixer",
    "loss_gap": f"{_HERE}.mixers.loss_gap:LossGapMixer",
    "dynamic_moe": f"{_HERE}.mixers.dynamic_moe:DynamicMoeMixer",
}
WEIGHTERS = {
    "loss": f"{_HERE}.weighters.loss:LossWeighter",
    "domain": f"{_HERE}.weighters.domain:DomainWeighter",
    "adapt": f"{_HERE}.weighters.adapt:AdaptWeighter",
    "joint_update_aware": f"{_HERE}.weighters.joint_update_aware:JointUpdateAwareWeighter",
    "rho1": f"{_HERE}.weighters.rho1:Rho1Weighter",
    "focal": f"{_HERE}.weighters.focal:FocalWeighter",
    "column": f"{_HERE}.weighters.column:ColumnWeighter",
}
ORDERS = {
    "sorting": f"{_HERE}.orders.sorting:SortingOrder",
    "folding": f"{_HERE}.orders.layers:FoldingOrder",
    "zigzag": f"{_HERE}.orders.layers:ZigzagOrder",
    "segment": f"{_HERE}.orders.segment:SegmentOrder",
    "stair": f"{_HERE}.orders.sections:StairOrder",
    "saw": f"{_HERE}.orders.sections:SawOrder",
    "shuffle": f"{_HERE}.orders.sorting:ShuffleOrder",
}

FAMILIES: dict[str, tuple[dict[str, str], type[Component], str]] = {
    "select": (SELECTORS, Selector, "selectors"),
    "mix": (MIXERS, Mixer, "mixers"),
    "weight": (WEIGHTERS, Weighter, "weighters"),
    "order": (ORDERS, Order, "orders"),
}

# Packages of dataflex 1.1.0 that component files import from.
_OLD_PACKAGES = ("dataflex.core.", "dataflex.train.", "dataflex.utils.")


def plug_ins(slot: str) -> list[EntryPoint]:
    """Entry points of installed packages that a slot offers; a built-in name comes before one of theirs."""
    table, _, family = FAMILIES[slot]
    return [entry for entry in entry_points(group=f"dataflex.{family}") if entry.name not in table]


def package_of(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value.partition(":")[0]


def names(slot: str) -> list[str]:
    """Every name that a slot accepts, `module:Class` aside; `custom` stands for the class that the key `class` names."""
    return sorted({"custom", *FAMILIES[slot][0], *(entry.name for entry in plug_ins(slot))})


def first_name(slot: str, name: str) -> str:
    """The name under which a built-in component of several names is described; of any other, `name` itself."""
    table = FAMILIES[slot][0]
    return next((other for other, path in table.items() if path == table.get(name)), name)


def resolve(slot: str, name: str, key: str) -> type[Component]:
    """The component class called `name` in family `slot` (select, mix, weight, order); `key` names the setting in errors."""
    table, base, family = FAMILIES[slot]
    if ":" in name:
        target = load_path(name, key)
    elif name in table:
        target = load_path(table[name], key)
    else:
        found = [entry for entry in plug_ins(slot) if entry.name == name]
        if not found:
            raise ConfigError(f"{key}: unknown {family[:-1]} {name!r}{nearest(name, names(slot))}")
        try:
            target = found[0].load()
        except (Exception, SystemExit) as error:  # whatever a plug-in raises while it is imported
            raise ConfigError(f"{key}: entry point {name!r} does not load: {type(error).__name__}: {error}") from error
    if not (inspect.isclass(target) and issubclass(target, base)):
        raise ConfigError(f"{key}: {name} is not a dataflex {base.__name__}{_porting_hint(target, base)}")
    if inspect.isabstract(target):
        missing = ", ".join(sorted(getattr(target, "__abstractmethods__", ())))
        raise ConfigError(f"{key}: {name} does not implement {missing}")
    if "files" in getattr(target, "__dataclass_fields__", {}):
        raise ConfigError(f"{key}: {name} has a parameter called files, which is what a component reads; rename it")
    return target


def load_path(path: str, key: str) -> object:
    """What `module:attribute` names; ConfigError that begins with `key` if there is no such thing."""
    module_name, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not have the working directory on its path
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        hint = ""
        if isinstance(error, ModuleNotFoundError) and f"{error.name}.".startswith(_OLD_PACKAGES):
            hint = " (it is written for dataflex 1.1.0, which had this module; docs/migration.md shows how to port it)"
        raise ConfigError(f"{key}: cannot import {path!r}: {type(error).__name__}: {error}{hint}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"{key}: module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)


def _porting_hint(target: object, base: type[Component]) -> str:
    names_of_1_1 = {"Selector": "select", "Mixer": "mix", "Weighter": "get_weighted_loss", "Order": "reorder"}
    old_style = names_of_1_1[base.__name__]
    if inspect.isclass(target) and hasattr(target, old_style):
        return (
            f" (it looks like a component of dataflex 1.1.0: make it a frozen dataclass that extends dataflex.{base.__name__},"
            " with its parameters as fields; see docs/migration.md)"
        )
    return f" (it must extend dataflex.{base.__name__})"
