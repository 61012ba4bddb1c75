"""Carries the weight that a data set gives its rows or messages through LLaMA-Factory's preprocessing to every token.

LLaMA-Factory only concatenates, cuts and pads lists of token ids. So the ids carry it: while rows are prepared, an id holds the
float32 of its weight in the upper half of an int64, whatever becomes of the lists.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from llamafactory.data import converter, loader, parser
from llamafactory.data.processor import (
    FeedbackDatasetProcessor,
    PairwiseDatasetProcessor,
    PretrainDatasetProcessor,
)

from dataflex.base import seams
from dataflex.base.loading.raw import stored_numbers
from dataflex.base.refusals import ours, refusals, theirs
from dataflex.config.combinations import given_column
from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import GIVEN_WEIGHTS, Rows
from dataflex.errors import ConfigError, nearest
from dataflex.signals.cross_entropy import IGNORE

# What a message weighs, beside its role and its content, once LLaMA-Factory has converted it.
_WEIGHT = "dataflex_weight"
_KEY = "dataflex.weight.column"
_LARGEST = float(np.finfo(np.float32).max)
_WITH_MESSAGES = ("sharegpt", "openai")


@contextmanager
def given_weights(config: DataflexConfig, data_args: Any) -> Iterator[None]:
    """Inside, the rows that LLaMA-Factory prepares of the data sets in `dataset` have a column GIVEN_WEIGHTS, if a weighter needs
    it: float32, one number for each of `input_ids`, 1 where there is padding; for rm, dpo and kto, one number.

    Held-out rows have none, since nothing is weighed there.
    """
    asked = given_column(config)
    if asked is None:
        yield
        return
    names = list(data_args.dataset)
    with refusals():
        attributes = parser.get_dataset_list(names, data_args.dataset_dir)
    given = [_Given(name, *asked, attribute) for name, attribute in zip(names, attributes, strict=True)]
    align, convert = loader.align_dataset, converter.get_dataset_converter
    prepare, choose = loader._get_preprocessed_dataset, loader._get_dataset_processor
    held_out = False

    def of(attribute: Any) -> _Given | None:
        return next((g for g in given if g.attribute == attribute), None)

    def align_dataset(dataset: Any, dataset_attr: Any, *args: Any) -> Any:
        found = of(dataset_attr)
        if found is not None:
            found.check(dataset)
        return align(dataset, dataset_attr, *args)

    def get_converter(name: str, dataset_attr: Any, data_args: Any) -> Any:
        made, found = convert(name, dataset_attr, data_args), of(dataset_attr)
        return made if found is None else _WeighingConverter(made, found)

    def get_processor(*args: Any, **kwargs: Any) -> Any:
        made = choose(*args, **kwargs)
        return made if held_out else _WeighingProcessor(made)

    def get_preprocessed(*args: Any, is_eval: bool = False, **kwargs: Any) -> Any:
        nonlocal held_out
        held_out = is_eval
        try:
            return prepare(*args, is_eval=is_eval, **kwargs)
        finally:
            held_out = False

    with seams.replaced(
        (loader.__name__, "align_dataset", align_dataset),
        (converter.__name__, "get_dataset_converter", get_converter),
        (loader.__name__, "_get_dataset_processor", get_processor),
        (loader.__name__, "_get_preprocessed_dataset", get_preprocessed),
    ):
        yield


def check_weights(config: DataflexConfig, rows: Any) -> None:
    """Raise ConfigError if nothing that is learned weighs anything."""
    asked = given_column(config)
    if asked is not None and isinstance(rows, Rows) and not rows.weigh_something():
        raise ConfigError(f"{_KEY}: {asked[0]!r} is zero wherever there is something to learn")


@dataclass(frozen=True)
class _Given:
    """What a data set says about its rows. per: row or message."""

    name: str
    column: str
    per: str
    attribute: Any

    def check(self, dataset: Any) -> None:
        """Raise ConfigError for the first row, as it is stored, that gives no usable weight."""
        if self.per == "message" and self.attribute.formatting not in _WITH_MESSAGES:
            raise ConfigError(
                f"dataflex.weight.per: {self.name!r} has no messages to weigh (formatting: {self.attribute.formatting});"
                " use per: row"
            )
        column = self.column if self.per == "row" else self.attribute.messages
        if column not in dataset.column_names:
            if self.per == "message":
                return  # LLaMA-Factory cannot read these rows, and says so
            raise self._missing(dataset.column_names)
        for row, example in zip(stored_numbers(dataset), dataset.select_columns([column]), strict=True):
            self.weights(example, f"row {row}")

    def weights(self, example: Mapping[str, Any], row: str = "a row") -> list[float]:
        """Of a row as it is stored: one number; or one for each message that LLaMA-Factory makes of its messages."""
        if self.per == "row":
            if self.column not in example:
                raise self._missing(example)
            if example[self.column] is None:
                raise ConfigError(f"{_KEY}: {row} of {self.name!r} has no {self.column!r}")
            return [self._number(example[self.column], row)]
        messages = example[self.attribute.messages]
        if messages and not any(self.column in message for message in messages):
            raise self._missing({key for message in messages for key in message}, "messages")
        roles = [message[self.attribute.role_tag] for message in messages]
        values = [message.get(self.column) for message in messages]
        numbers = [1.0 if value is None else self._number(value, row) for value in values]
        start = 1 if self.attribute.system_tag and roles[:1] == [self.attribute.system_tag] else 0
        if self.attribute.formatting != "openai":
            return numbers[start:]
        out: list[float] = []
        tools: list[float] = []  # what tools say one after the other becomes one message, if another follows
        for role, number in zip(roles[start:], numbers[start:], strict=True):
            if role == self.attribute.observation_tag:
                tools.append(number)
                continue
            out += [*tools[:1], number]
            tools = []
        return out

    def _number(self, value: Any, row: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
            raise ConfigError(
                f"{_KEY}: {row} of {self.name!r} has {self.column} {value!r}, which is not a finite non-negative number"
            )
        return abs(float(value))  # of -0.0, too

    def _missing(self, keys: Any, what: str = "rows") -> ConfigError:
        return ConfigError(f"{_KEY}: the {what} of {self.name!r} have no {self.column!r}{nearest(self.column, keys)}")


@dataclass(frozen=True)
class _WeighingConverter:
    """A converter of LLaMA-Factory, whose messages say what they weigh."""

    inner: Any
    given: _Given

    @ours
    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        out = theirs(self.inner)(example)
        messages = [*out["_prompt"], *out["_response"]]
        weights = self.given.weights(example)
        if self.given.per == "row":
            weights = weights * len(messages)
        # A row that it skips has no messages, and one of two answers is not for sft, which drops it.
        for message, weight in zip(messages, weights, strict=len(out["_response"]) == 1):
            message[_WEIGHT] = weight
        return out


@dataclass(frozen=True)
class _WeighingProcessor:
    """A processor of LLaMA-Factory, whose rows have the column GIVEN_WEIGHTS."""

    inner: Any

    @ours
    def preprocess_dataset(self, examples: Mapping[str, list[Any]]) -> dict[str, Any]:
        inner = copy.copy(self.inner)
        if isinstance(inner, PairwiseDatasetProcessor | FeedbackDatasetProcessor):
            return self._whole_rows(inner, examples)
        if isinstance(inner, PretrainDatasetProcessor):
            inner.tokenizer = _MarkingTokenizer(inner.tokenizer, [texts[0][_WEIGHT] for texts in examples["_prompt"]])
        else:
            inner.template = _MarkingTemplate(inner.template)
        out = dict(theirs(inner.preprocess_dataset)(examples))
        marked = {key: out[key] for key in ("input_ids", "labels") if key in out}
        if not marked:  # no row is left
            return out
        arrays = {key: [np.fromiter(row, np.int64, len(row)) for row in rows] for key, rows in marked.items()}
        labels = arrays.get("labels", [None] * len(arrays["input_ids"]))
        out |= {key: [row.astype(np.int32).tolist() for row in rows] for key, rows in arrays.items()}
        out[GIVEN_WEIGHTS] = [_weights_of(ids, own) for ids, own in zip(arrays["input_ids"], labels, strict=True)]
        return out

    def _whole_rows(self, inner: Any, examples: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Of processors that make one row of each that they encode."""
        weights: list[float] = []

        def encode(prompt: list[dict[str, Any]], **rest: Any) -> Any:
            weights.append(prompt[0][_WEIGHT])
            return self.inner._encode_data_example(prompt=prompt, **rest)

        inner._encode_data_example = encode
        out = dict(theirs(inner.preprocess_dataset)(examples))
        return {**out, GIVEN_WEIGHTS: weights} if out else out

    def print_data_example(self, example: dict[str, Any]) -> None:
        self.inner.print_data_example(example)


class _Stand:
    """In the place of `inner`, all of whose attributes it has."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _MarkingTokenizer(_Stand):
    """weights: of the texts it will be called with."""

    def __init__(self, inner: Any, weights: list[float]) -> None:
        super().__init__(inner)
        self.weights = weights

    def __call__(self, texts: list[str], **kwargs: Any) -> Any:
        out = self.inner(texts, **kwargs)
        pairs = zip(out["input_ids"], self.weights, strict=True)
        out["input_ids"] = [_marked(ids, _mark(weight)) for ids, weight in pairs]
        return out


class _MarkingTemplate(_Stand):
    def encode_multiturn(self, tokenizer: Any, messages: list[dict[str, Any]], *args: Any) -> Any:
        marks = [_mark(message[_WEIGHT]) for message in messages]
        out = []
        for turn, (prompt, answer) in enumerate(self.inner.encode_multiturn(tokenizer, messages, *args)):
            asked, answered = marks[2 * turn : 2 * turn + 2]
            # Of such templates, what is learned in the place of a prompt's first token is the end of the answer before it.
            first = marks[2 * turn - 1] if turn and self.inner.efficient_eos else asked
            out.append(([*_marked(prompt[:1], first), *_marked(prompt[1:], asked)], _marked(answer, answered)))
        return out


def _mark(weight: float) -> int:
    """To be added to a token id. More than zero for a weight of zero, and never negative, as weights are not."""
    return (int(np.float32(weight).view(np.int32)) + 1) << 32


def _marked(ids: list[int], mark: int) -> list[int]:
    return [i + mark for i in ids]


def _weights_of(ids: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """float32 [T]: what marked ids say, 1 where there is no mark. ids, labels: int64 [T]."""
    marks = ids >> 32
    out = np.where(marks > 0, (marks - 1).astype(np.int32).view(np.float32), np.float32(1))
    if labels is not None:  # the end of the last answer, which some templates leave to the processor
        ends = np.flatnonzero((marks == 0) & (labels[: len(ids)] != IGNORE))
        out[ends] = out[np.maximum(ends - 1, 0)]
    return out
