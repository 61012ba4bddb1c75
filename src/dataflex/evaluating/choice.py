"""Multiple choice by the likelihood of the text of each option."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dataflex.evaluating.figures import Figures, figures_of, mean_and_error
from dataflex.evaluating.likelihood import LabelledRow

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Scores that differ by less than this share of the best are equal: so much comes from rounding in fp32.
TIE = 1e-5


@dataclass(frozen=True)
class ChoiceRow:
    """A question."""

    options: Sequence[LabelledRow]
    """Prompt and text of each option; the text is labelled."""
    option_bytes: Int[np.ndarray, " options"]
    """Bytes of the UTF-8 text of each option, above 0."""
    answer: int
    """Index of the right option."""


@dataclass(frozen=True)
class ChoiceRows:
    """Questions of a data set."""

    rows: Sequence[ChoiceRow]
    cut: int = 0
    """Questions whose prompt is cut by cutoff_len."""
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Chosen:
    """What a model chooses in one question."""

    right: bool
    tied: bool
    """Whether several options have the best score; the first of them is chosen."""
    margin: float
    """Probability of the right option less that of the likeliest other one, in [-1, 1]."""


def choose(scores: Float[np.ndarray, " options"], answer: int) -> Chosen:
    """The option with the highest score, the first of several. The probability of an option is the softmax of the scores.

    A model that gives no finite score chooses nothing: the question is not right, and its margin is NaN."""
    if not np.isfinite(scores).all():
        return Chosen(False, False, float("nan"))
    best = np.flatnonzero(scores >= scores.max() - TIE * max(1.0, abs(float(scores.max()))))
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    others = np.delete(probabilities, answer)
    return Chosen(int(best[0]) == answer, len(best) > 1, float(probabilities[answer] - others.max()))


def choice_figures(data: ChoiceRows, measure: Callable[[Sequence[LabelledRow]], Float[np.ndarray, " rows"]]) -> Figures:
    """Accuracy and mean margin, with log p of an option divided by its bytes (`choice_accuracy`, `choice_margin`) and with log p
    itself (`..._raw`).

    Division by bytes keeps long options from losing for their length alone, and does not depend on the tokenizer. Options
    with equal tokens are measured once, so they are equal whatever the batches are.

    Args:
        measure: log p of rows in nats.
    """
    distinct: dict[tuple[int, tuple[int, ...]], int] = {}
    sequences: list[LabelledRow] = []
    for number, row in enumerate(data.rows):
        for option in row.options:
            if distinct.setdefault((number, tuple(option.ids)), len(sequences)) == len(sequences):
                sequences.append(option)
    values = measure(sequences)
    raw, normalised = list[Chosen](), list[Chosen]()
    for number, row in enumerate(data.rows):
        scores = np.array([values[distinct[number, tuple(option.ids)]] for option in row.options])
        raw.append(choose(scores, row.answer))
        normalised.append(choose(scores / row.option_bytes, row.answer))
    found = {}
    for suffix, chosen in (("", normalised), ("_raw", raw)):
        found[f"choice_accuracy{suffix}"] = mean_and_error(np.array([float(c.right) for c in chosen]))
        found[f"choice_margin{suffix}"] = mean_and_error(np.array([c.margin for c in chosen]))
    counts = {
        "choice_rows": len(data.rows),
        "choice_correct": sum(c.right for c in normalised),
        "choice_correct_raw": sum(c.right for c in raw),
        "choice_tied_rows": sum(c.tied for c in normalised),
        "choice_tied_rows_raw": sum(c.tied for c in raw),
        "choice_cut_rows": data.cut,
        "choice_left_out": data.left_out.total(),
    }
    return figures_of(found, counts, data.left_out)
