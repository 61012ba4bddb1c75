"""A data set of an evaluation, as it is stored and in LLaMA-Factory's columns, and the template around prompt and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dataflex.base.loading.carried import Carried
from dataflex.base.loading.reading import read_data
from dataflex.base.loading_arguments import Loading
from dataflex.errors import ConfigError, nearest
from dataflex.values import shown

_MEDIA = ("_images", "_videos", "_audios")


@dataclass(frozen=True)
class ReadRows:
    """The first rows of a data set. key: the key that names it."""

    name: str
    key: str
    stored: Any
    aligned: Any

    def __len__(self) -> int:
        return len(self.aligned)


def read_rows(loading: Loading, name: str, key: str, limit: int | None) -> ReadRows:
    """ConfigError for a data set that cannot be read, is empty, or has more than text."""
    read = read_data(loading, name, key, Carried(row_index=True))
    count = len(read.aligned) if limit is None else min(limit, len(read.aligned))
    if not count:
        raise ConfigError(f"{key}: {name!r} is empty")
    stored, aligned = read.stored.select(range(count)), read.aligned.select(range(count))
    for column in _MEDIA:
        if column in aligned.column_names and any(value for value in aligned[column]):
            raise ConfigError(f"{key}: {name!r} has {column.removeprefix('_')}, and evaluate reads text alone")
    return ReadRows(name, key, stored, aligned)


@dataclass(frozen=True)
class AnswerTemplate:
    """LLaMA-Factory's template and tokenizer, as far as prompts and the text of answers go."""

    template: Any
    tokenizer: Any

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of a row's prompt, up to where the answer begins."""
        return self._encoded(row, "")[0]

    def question(self, row: Mapping[str, Any], options: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Token ids of a row's prompt, and of the text of each option as its answer, without what the template puts around it.
        The empty thought that a reasoning template puts before an answer belongs to the prompt."""
        prompt, _ = self._encoded(row, options[0])
        answers = [self._encoded(row, option)[1] for option in options]
        thought = self._thought
        if thought and all(answer[: len(thought)] == thought for answer in answers):
            prompt, answers = prompt + thought, [answer[len(thought) :] for answer in answers]
        return prompt, [answer[: len(answer) - _common_end(answer, self._end)] for answer in answers]

    @cached_property
    def _end(self) -> list[int]:
        """What the template puts after an answer, as token ids: the end that the encodings of different answers have in
        common."""
        row = {"_prompt": [{"role": "user", "content": "a"}], "_system": "", "_tools": ""}
        first, *others = (self._encoded(row, text)[1] for text in ("0", "a", ".", "b c"))
        return first[len(first) - min(_common_end(first, other) for other in others) :]

    @cached_property
    def _thought(self) -> list[int]:
        return list(self.template.get_thought_word_ids(self.tokenizer))

    def _encoded(self, row: Mapping[str, Any], answer: str) -> tuple[list[int], list[int]]:
        messages = [*row["_prompt"], {"role": "assistant", "content": answer}]
        prompt, ids = self.template.encode_oneturn(
            self.tokenizer, messages, row["_system"] or None, row["_tools"] or None
        )
        return list(prompt), list(ids)


def _common_end(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at their ends are equal."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def cut_prompt(ids: list[int], room: int) -> list[int]:
    """The last `room` tokens: the question, and where the answer begins, stand at the end."""
    return ids if len(ids) <= room else ids[-room:]


def column_of(read: ReadRows, column: str, key: str) -> list[Any]:
    """The values of a stored column; ConfigError where there is none."""
    names = read.stored.column_names
    if column not in names:
        raise ConfigError(f"{key}: {read.name!r} has no column {shown(column)}{nearest(column, names)}")
    return list(read.stored[column])
