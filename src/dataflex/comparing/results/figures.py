"""The figures of a finished run: what is compared, and what it cost. They are read from files in its directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.errors import ConfigError
from dataflex.reading.run import Run

RESULTS = "all_results.json"
"""LLaMA-Factory's: the losses of held-out rows, by data set."""
EVALUATION = "evaluation.json"
"""Below `dataflex/`: metrics of the finished model, {metric: {data set: number}}."""
LOSS = "loss"
_LOWER_IS_BETTER = (LOSS, "heldout_loss", "perplexity", "bits_per_byte")
_HIGHER_IS_BETTER = (
    "choice_accuracy", "choice_accuracy_raw", "choice_margin", "choice_margin_raw", "exact_match", "number_match",
    "accuracy", "f1",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Of one run."""

    metrics: Mapping[str, float]
    """By `metric/data set`, or `metric` alone where there is one data set without a name. Over several, `metric/mean`."""
    steps: int
    seconds: float
    """Of the training loop: with selecting, mixing, evaluating and saving, without loading."""
    deciding: float
    """Seconds of these for selectors, mixers, weighters and orders."""
    tokens: int | None
    """That the training has read, padding aside; None: they were not counted."""


def read_figures(folder: Path) -> Figures | None:
    """None where there are no results: the run is not finished."""
    return figures_of(Run(folder, folder.name))


def figures_of(run: Run) -> Figures | None:
    """The same of a run that is opened."""
    results = _json(run.path / RESULTS)
    if results is None:
        return None
    cost = run.cost
    # The first is exact, and of the last process of a run that was resumed; the log knows whole seconds, of all of them.
    seconds = max(float(results.get("train_runtime") or 0.0), run.log.seconds)
    deciding = sum(cost.kinds.get(kind, 0.0) for kind in ("selecting", "mixing", "weighing", "ordering"))
    seen = int(run.state.get("num_input_tokens_seen") or 0)
    by_metric: dict[str, dict[str, float]] = {LOSS: dict(_losses(results))}
    for metric, values in (_json(run.folder / EVALUATION) or {}).items():
        by_metric.setdefault(str(metric), {}).update(_numbers(values))
    return Figures(
        dict(_named(by_metric)), int(run.state.get("global_step") or run.step), seconds, deciding, seen or None
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else None


def _losses(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`eval_loss`, or `eval_<data set>_loss`. Names with a slash are measures that components report."""
    for name, value in results.items():
        if name.startswith("eval_") and name.endswith("_loss") and "/" not in name and _is_number(value):
            yield name.removeprefix("eval").removesuffix("loss").strip("_"), float(value)


def _numbers(values: Any) -> dict[str, float]:
    """Of a metric, by data set; a single number has no data set."""
    given = values if isinstance(values, Mapping) else {"": values}
    return {str(name): float(value) for name, value in given.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(by_metric: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    for metric, values in by_metric.items():
        for name, value in values.items():
            yield (f"{metric}/{name}" if name else metric), value
        if len(values) > 1:
            yield f"{metric}/mean", sum(values.values()) / len(values)


def chosen(names: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The names that are asked for: `loss/code` one, `loss` all of this metric. Nothing asked for: all held-out losses."""
    wanted = asked or (LOSS,)
    return [name for name in names if any(name == one or name.startswith(f"{one}/") for one in wanted)]


def lower_is_better(metric: str) -> bool | None:
    """None: not known of a metric of this name."""
    kind = metric.partition("/")[0]
    if kind in _LOWER_IS_BETTER:
        return True
    return False if kind in _HIGHER_IS_BETTER else None
