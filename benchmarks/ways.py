"""Ways to the cosines of rows' gradients with the mean gradient of a target: the signal's, and loops over single rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

Way = Callable[[Any, Sequence[Any]], Any]  # a batch, and the same rows one by one -> cosines [B], or nothing


class Ways:
    """target: `ScoringRows`. optimizer: with moments, for the direction "adam" beside "sgd"."""

    def __init__(self, model: Any, optimizer: Any, target: Any) -> None:
        from dataflex.signals.gradients.directions import AdamDirection, optimizer_moments
        from dataflex.signals.gradients.passes import BatchGradients

        self.model, self.target = model, target
        self.adam = AdamDirection(optimizer_moments(optimizer))
        self.engine = BatchGradients(model)
        self.engines = {"sgd": self.engine, "adam": BatchGradients(model, direction=self.adam)}
        self.parameters = list(self.engine.names)

    @cached_property
    def targets(self) -> dict[str, Any]:
        """The target's mean gradient, by parameter."""
        from dataflex.signals.gradients.alignment import exact_targets

        return exact_targets(self.target, [np.arange(len(self.target))], self.engine)

    @cached_property
    def aim(self) -> Any:
        """The same as one vector."""
        import torch

        return torch.cat([self.targets[p] for p in self.parameters], dim=1)[0]

    def plain(self, batch: Any, _: Any = None) -> None:
        """Forward and backward of the batch as training does it, in evaluation mode."""
        self._backward(batch)
        self.model.zero_grad(set_to_none=True)

    def signal(self, kind: str) -> Way:
        targets = self.targets

        def way(batch: Any, _: Any) -> Any:
            dots, norms = self.engines[kind].dots(batch, targets)
            return dots[:, 0] / norms

        return way

    def loop(self, kind: str, together: int, project: Callable[[Any], Any] = lambda vectors: vectors) -> Way:
        """A backward pass per row; so many directions are projected at once."""
        import torch

        aim = project(self.aim[None])[0]

        def way(_: Any, rows: Sequence[Any]) -> Any:
            out = []
            for begin in range(0, len(rows), together):
                found = project(torch.stack([self._direction(row, kind) for row in rows[begin : begin + together]]))
                out.append((found @ aim) / found.norm(dim=1))
            return torch.cat(out)

        return way

    def _direction(self, row: Any, kind: str) -> Any:
        """That of one row, as one vector, float32."""
        import torch

        self._backward(row)
        flat = []
        for p in self.parameters:
            g = p.grad.flatten().float()
            flat.append(self.adam.of(p)(g[None])[0] if kind == "adam" else g)
        self.model.zero_grad(set_to_none=True)
        return torch.cat(flat)

    def _backward(self, batch: Any) -> None:
        import torch

        with torch.enable_grad():
            self.model(**batch, use_cache=False).loss.backward()


def random_signs(rows: int, columns: int, generator: Any) -> Any:
    """int8 [rows, columns] of -1 and 1."""
    import torch

    signs = torch.randint(2, (rows, columns), generator=generator, device=generator.device, dtype=torch.int8)
    return signs.mul_(2).sub_(1)
