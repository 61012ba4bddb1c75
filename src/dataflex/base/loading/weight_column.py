"""The weights that a column of the data gives to rows or messages, read from the rows as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DataflexConfig
from dataflex.config.schema.losses import given_column
from dataflex.data.origins import stored_numbers
from dataflex.data.rows import Rows
from dataflex.errors import ConfigError, nearest

_LARGEST = float(np.finfo(np.float32).max)
_WITH_MESSAGES = ("sharegpt", "openai")


@dataclass(frozen=True)
class WeightColumn:
    """The column of one data set."""

    dataset: str
    attributes: Any
    """How LLaMA-Factory reads the data set (DatasetAttr)."""
    column: str
    per: str
    """row or message."""

    def weights(self, stored: Any) -> pa.Array:
        """`weights_of` every row of the data set, list<float64>[rows].

        Raises ConfigError for the first row without a usable weight, named by its number in the file.
        """
        if self.per == "message" and self.attributes.formatting not in _WITH_MESSAGES:
            raise refused.NO_MESSAGES.error(name=self.dataset, formatting=self.attributes.formatting)
        column = self.column if self.per == "row" else self.attributes.messages
        if column in stored.column_names:
            rows = zip(stored_numbers(stored), stored.select_columns([column]), strict=True)
            return pa.array([self.weights_of(row, f"row {i}") for i, row in rows], pa.list_(pa.float64()))
        if self.per == "row":
            raise self._missing(stored.column_names)
        return pa.nulls(len(stored))  # LLaMA-Factory cannot read these rows, and says so

    def weights_of(self, row: Mapping[str, Any], called: str = "a row") -> list[float]:
        """One number for the row, or one for each message that LLaMA-Factory makes of its messages."""
        if self.per == "row":
            if self.column not in row:
                raise self._missing(row)
            if row[self.column] is None:
                raise refused.NO_WEIGHT.error(row=called, name=self.dataset, column=self.column)
            return [self._number(row[self.column], called)]
        messages = row[self.attributes.messages]
        if messages and not any(self.column in message for message in messages):
            raise self._missing({key for message in messages for key in message}, "messages")
        roles = [message[self.attributes.role_tag] for message in messages]
        values = [message.get(self.column) for message in messages]
        numbers = [1.0 if value is None else self._number(value, called) for value in values]
        start = 1 if self.attributes.system_tag and roles[:1] == [self.attributes.system_tag] else 0
        if self.attributes.formatting != "openai":
            return numbers[start:]
        out: list[float] = []
        tools: list[float] = []  # what tools say one after the other becomes one message, if another follows
        for role, number in zip(roles[start:], numbers[start:], strict=True):
            if role == self.attributes.observation_tag:
                tools.append(number)
                continue
            out += [*tools[:1], number]
            tools = []
        return out

    def _number(self, value: Any, called: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
            raise refused.NO_NUMBER.error(row=called, name=self.dataset, column=self.column, value=value)
        return abs(float(value))  # -0.0 has a sign

    def _missing(self, keys: Any, parts: str = "rows") -> ConfigError:
        near = nearest(self.column, keys)
        return refused.NO_COLUMN.error(parts=parts, name=self.dataset, column=self.column, near=near)


def check_weights(config: DataflexConfig, rows: Any) -> None:
    """Raise ConfigError if nothing that is learned weighs anything."""
    asked = given_column(config)
    if asked is not None and isinstance(rows, Rows) and not rows.weigh_something():
        raise refused.ALL_ZERO.error(column=asked[0])
