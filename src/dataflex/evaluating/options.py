"""The options of a multiple-choice question and the right one, from columns or from a prompt that lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Unusable(Exception):
    """A row that is no question that can be judged; the message says why, without naming the row."""


@dataclass(frozen=True)
class Question:
    """text: the question alone, what stands before the first option. options: their texts. answer: the index of the right one."""

    text: str
    options: tuple[str, ...]
    answer: int


# A label at the beginning of a line, such as `A. `, `(A) ` or `A: `; or one with its word, such as `Answer1: `, anywhere.
_LETTER = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*", re.MULTILINE)
_WORD = re.compile(r"\b(?:answer|option|choice)[ \t]?([A-Z]|\d+)[ \t]*[:.)][ \t]*", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:answer|option|choice)[ \t]?([A-Z]|\d+)\b", re.IGNORECASE)
_ALONE = re.compile(r"^\W*([A-Z]|\d+)\W*$|^\(?([A-Z])[.):]\s|\b(?:answer is|answer:)\s*\(?([A-Z])\b")


def from_columns(options: Any, answer: Any) -> tuple[tuple[str, ...], int]:
    """Texts of the options, and the index of the right one, which `answer` gives as an index from 0 or as the text."""
    if not isinstance(options, Sequence) or isinstance(options, str) or not all(isinstance(o, str) for o in options):
        raise Unusable("its options are no list of texts")
    texts = checked(options)
    if isinstance(answer, float) and answer.is_integer():  # a column of integers with a gap
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return texts, answer
    if isinstance(answer, str) and answer.strip() in texts:
        return texts, texts.index(answer.strip())
    raise Unusable("its answer is neither the index of an option nor its text")


def checked(options: Sequence[str]) -> tuple[str, ...]:
    """The texts without white space around them; Unusable if there are fewer than two, or one is empty."""
    texts = tuple(option.strip() for option in options)
    if len(texts) < 2:
        raise Unusable("it has fewer than two options")
    if "" in texts:
        raise Unusable("one of its options is empty")
    return texts


def from_prompt(prompt: str, response: str) -> Question:
    """A question whose prompt lists the options, and whose response names the right one by its label or its text.

    An option ends where the next begins. The last one ends with its line or, with labels such as `Answer1`, at an empty line.
    """
    end, found = "\n", _listed(list(_LETTER.finditer(prompt)))
    if len(found) < 2:
        end, found = "\n\n", _listed(list(_WORD.finditer(prompt)))
    if len(found) < 2:
        raise Unusable("its prompt lists no options")
    ends = [mark.start() for mark in found[1:]]
    last = prompt.find(end, found[-1].end())
    ends.append(len(prompt) if last < 0 else last)
    options = checked([prompt[mark.end() : stop] for mark, stop in zip(found, ends, strict=True)])
    labels = [mark[1].upper() for mark in found]
    return Question(prompt[: found[0].start()].rstrip(), options, _answer(response, options, labels))


def _listed(marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """The last run of labels that begins with the first one and goes on without a gap: A, B, C or 1, 2, 3."""
    run: list[re.Match[str]] = []
    for mark in marks:
        label = mark[1].upper()
        if label in ("A", "1"):
            run = [mark]
        elif run and label == _next(run[-1][1].upper()):
            run.append(mark)
    return run


def _next(label: str) -> str:
    return str(int(label) + 1) if label.isdigit() else chr(ord(label) + 1)


def _answer(response: str, options: Sequence[str], labels: Sequence[str]) -> int:
    """The index of the option that a response names; Unusable where it names none, or several."""
    text = response.strip()
    if text in options:
        return options.index(text)
    named = {label.upper() for label in _NAMED.findall(text)} & set(labels)
    if not named and (alone := _ALONE.search(text)) is not None:
        named = {next(group for group in alone.groups() if group)} & set(labels)
    if len(named) != 1:
        raise Unusable("its response names no option")
    return labels.index(named.pop())
