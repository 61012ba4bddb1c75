"""A weight for every domain: what DoReMi's proxy or DoGE found, or one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.tools.proportions import check_names, read_proportions
from dataflex.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DomainWeighter(Weighter):
    """A weight for every domain: what a proxy of DoReMi or DoGE found, or one's own.

    A row of domain d weighs by_domain[d], whatever its loss. A file may be the proportions.json of a proxy. To train on a
    domain as if it were drawn with weight alpha_d although it is drawn with p_d, give alpha_d / p_d.

    Departures:

    Nowhere known, compared with the written-out loss. It has no authors.
    """

    by_domain: tuple[float, ...] | dict[str, float] | str
    """Non-negative numbers, not all zero: in the order of `dataset`, by name, or the path of a JSON or YAML file of such a
    mapping."""

    example: ClassVar[Mapping[str, Any]] = {"by_domain": [0.5, 0.3, 0.2]}
    goes_by_domain: ClassVar[bool] = True

    def files(self) -> Mapping[str, str]:
        return {"by_domain": self.by_domain} if isinstance(self.by_domain, str) else {}

    def check(self) -> None:
        if isinstance(self.by_domain, tuple):
            self._in_order(tuple(map(str, range(len(self.by_domain)))))

    def check_domains(self, names: tuple[str, ...]) -> None:
        self._in_order(names)

    def _in_order(self, names: tuple[str, ...]) -> list[float]:
        given = self._given
        if isinstance(given, dict):
            check_names("by_domain", given, names)
            missing = [n for n in names if n not in given]
            if missing:
                raise ConfigError(f"by_domain must name every data set of dataset, and {missing[0]!r} is missing")
            given = tuple(given[n] for n in names)
        if len(given) != len(names):
            raise ConfigError(f"by_domain: {len(given)} given for {len(names)} data sets ({', '.join(names)})")
        usable = all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in given)
        if not usable or not any(given):
            raise ConfigError(f"by_domain must be non-negative numbers, not all zero, got {list(given)}")
        return [float(v) for v in given]

    @cached_property
    def _given(self) -> Any:
        """A file is read once: it may change while the run goes on."""
        return (
            dict(read_proportions("by_domain", self.by_domain)) if isinstance(self.by_domain, str) else self.by_domain
        )

    def without_effect(self) -> str | None:
        given = list(self._given.values() if isinstance(self._given, dict) else self._given)
        return "all domains have the same weight" if len(set(given)) == 1 else None

    def weights(
        self, state: State, losses: Float32[Tensor, " losses"], context: WeightContext
    ) -> Float32[Tensor, " losses"]:
        values = losses.new_tensor(self._in_order(context.names))
        return values[context.domains]
