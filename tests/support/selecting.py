"""Configurations of selectors, what a run wrote of a selection, and the context of one without a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import Result

from dataflex.components.contexts import SelectionContext

SELECT = {"select": {"name": "loss", "focus": "medium", "warmup": 2, "interval": 4}}
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "lora_dropout": 0.1}
LESS = {"name": "less", "warmup": 2, "interval": 4}
AIMED = {"eval_dataset": "arithmetic_heldout"}


def table(result: Result, step: int) -> dict[str, np.ndarray]:
    columns = pq.read_table(result.out / "dataflex" / "selections" / f"step_{step}.parquet")
    found = {name: np.asarray(columns[name].to_pylist()) for name in columns.column_names}
    return {**found, "score": found["score"].astype(float)}


def context(rows: int, budget: int, **changes: Any) -> SelectionContext:
    given: dict[str, Any] = {
        "budget": budget, "rows": rows, "step": 4, "update": 0, "updates": None, "domain": None,
        "rng": np.random.default_rng(0), "ids": np.arange(rows), "learning_rate": 0.5,
    }  # fmt: skip
    return SelectionContext(**{**given, **changes})
