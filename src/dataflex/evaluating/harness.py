"""Tasks of lm-evaluation-harness (the package lm-eval), through its own Python interface."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dataflex.evaluating.figures import Figures
from dataflex.signals.isolation import isolated

_ERROR = "_stderr"


def task_manager(folder: str | None) -> Any:
    """lm-eval's own tasks, and those of a folder."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def task_figures(
    model: Any, tokenizer: Any, manager: Any, tasks: Sequence[str], *, limit: int | None, batch_rows: int
) -> list[tuple[str, Figures]]:
    """(task, figures) of the tasks, and of those that a group among them stands for, as lm-eval computes them.

    A metric is called `lm_eval/acc`, or with a filter of its answers `lm_eval/exact_match,strict-match`. Prompts are those of
    the tasks, without a chat template.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with isolated(model):
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_rows)
        found = simple_evaluate(model=wrapped, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False)
    samples = found.get("n-samples", {})
    return [(task, _figures(values, samples.get(task, {}))) for task, values in found["results"].items()]


def _figures(values: dict[str, Any], samples: dict[str, int]) -> Figures:
    metrics, errors = dict[str, float](), dict[str, float]()
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if not filtered or not isinstance(value, int | float):
            continue
        into = errors if name.endswith(_ERROR) else metrics
        suffix = "" if filtered == "none" else f",{filtered}"
        into[f"lm_eval/{name.removesuffix(_ERROR)}{suffix}"] = float(value)
    counts = {"lm_eval_rows": int(samples["effective"])} if "effective" in samples else {}
    return Figures(metrics, errors, counts, Counter())
