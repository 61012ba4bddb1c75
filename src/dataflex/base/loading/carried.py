"""Columns of ours that rows carry through LLaMA-Factory's preprocessing.

Rows are given the columns once they are read. A processor of LLaMA-Factory drops columns that it does not know, so it is
replaced by a `CarryingProcessor`, which hands them on to the rows that the processor makes:

    RAW_ROW        the index of the row in the data set as it was read; handed on as it is
    RAW_WEIGHTS    what the row weighs, or each of its messages; becomes GIVEN_WEIGHTS, one number for each token
                   (rm, dpo, kto: one for the row)

A row that carries its index makes one row or none, so packing and the stage kto are out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llamafactory.data.processor import (
    FeedbackDatasetProcessor,
    PairwiseDatasetProcessor,
    PretrainDatasetProcessor,
)

from dataflex.base.loading.marks import MarkingTemplate, MarkingTokenizer, Marks
from dataflex.base.loading.weight_column import WeightColumn
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import ours, theirs
from dataflex.config.schema import DataflexConfig
from dataflex.config.schema.losses import given_column
from dataflex.data.rows import GIVEN_WEIGHTS

RAW_ROW, RAW_WEIGHTS = "dataflex_raw_row", "dataflex_raw_weights"


@dataclass(frozen=True)
class Carried:
    """Which columns the rows that are trained on, or selected from, carry."""

    row_index: bool = False
    """Whether RAW_ROW is one of them."""
    weights: tuple[str, str] | None = None
    """The column that RAW_WEIGHTS is read from, and whether it is one of rows ("row") or of messages ("message")."""

    @classmethod
    def by(cls, config: DataflexConfig, loading: Loading) -> Carried:
        """What a training needs. Rows that are selected from, or put in order, carry their index wherever they can."""
        args = loading.data_args
        joined = args.packing or args.neat_packing or loading.stage in ("pt", "kto") or args.tokenized_path
        indexed = config.select is not None or config.order is not None
        return cls(indexed and not joined, given_column(config))

    def weight_column(self, dataset: str, attributes: Any) -> WeightColumn | None:
        return None if self.weights is None else WeightColumn(dataset, attributes, *self.weights)


NOTHING = Carried()


def carries(rows: Any) -> bool:
    return not {RAW_ROW, RAW_WEIGHTS}.isdisjoint(rows.column_names)


def without_carried(rows: Any) -> Any:
    return rows.remove_columns([c for c in (RAW_ROW, RAW_WEIGHTS) if c in rows.column_names])


def row_indices(rows: Any) -> np.ndarray:
    """The column RAW_ROW, int64[n]."""
    return np.asarray(rows.with_format("arrow")[:][RAW_ROW])


@dataclass(frozen=True)
class CarryingProcessor:
    """A processor of LLaMA-Factory that hands on what rows carry."""

    inner: Any

    @ours
    def preprocess_dataset(self, examples: Mapping[str, list[Any]]) -> dict[str, Any]:
        examples = {column: examples[column] for column in examples}
        row_index, weights = examples.pop(RAW_ROW, None), examples.pop(RAW_WEIGHTS, None)
        by_token = not isinstance(self.inner, PairwiseDatasetProcessor | FeedbackDatasetProcessor)
        marks = Marks() if weights is not None and by_token else None
        inner, kept = self._observed(examples["_prompt"], weights, marks)
        out = dict(theirs(inner.preprocess_dataset)(examples))
        if not out:  # no row is left
            return out
        if marks is not None:
            out |= marks.taken_off(out)
        elif weights is not None:
            out[GIVEN_WEIGHTS] = [weights[row][0] for row in kept]
        if row_index is not None:
            out[RAW_ROW] = [row_index[row] for row in kept]
        return out

    def _observed(
        self, prompts: Sequence[Any], weights: Sequence[list[float]] | None, marks: Marks | None
    ) -> tuple[Any, list[int]]:
        """A copy of the processor that marks the tokens it makes, and the list of the rows that it will have encoded."""
        inner = copy.copy(self.inner)
        if isinstance(inner, PretrainDatasetProcessor):  # it drops none
            if marks is not None and weights is not None:
                inner.tokenizer = MarkingTokenizer(inner.tokenizer, marks, [own[0] for own in weights])
            return inner, list(range(len(prompts)))
        encoder, template = copy.copy(inner), None
        if marks is not None:
            encoder.template = template = MarkingTemplate(inner.template, marks)
        rows, kept = {id(prompt): row for row, prompt in enumerate(prompts)}, []

        @ours
        def encode(prompt: list[dict[str, Any]], **rest: Any) -> Any:
            row = rows[id(prompt)]
            kept.append(row)
            if template is not None and weights is not None:
                template.weights = weights[row]
            return theirs(encoder._encode_data_example)(prompt=prompt, **rest)

        inner._encode_data_example = encode
        return inner, kept

    def print_data_example(self, example: dict[str, Any]) -> None:
        self.inner.print_data_example(example)
