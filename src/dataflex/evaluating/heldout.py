"""Held-out loss, perplexity and bits per byte of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dataflex.errors import DataflexError
from dataflex.evaluating.figures import Figures, figures_of, ratio_and_error
from dataflex.evaluating.likelihood import LabelledRow

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class HeldOutRows:
    """Rows of a data set, N in all, as training would read them."""

    rows: Sequence[LabelledRow]
    answer_bytes: Int[np.ndarray, " rows"]
    """Bytes of the UTF-8 text of each answer."""
    whole_answer: Bool[np.ndarray, " rows"]
    """Whether no token of the answer is cut off by cutoff_len."""
    cut: int = 0
    """Rows of which something is cut off."""
    left_out: Counter[str] = field(default_factory=Counter)


def heldout_figures(
    data: HeldOutRows, measure: Callable[[Sequence[LabelledRow]], Float[np.ndarray, " rows"]]
) -> Figures:
    """Loss in nats per answer token, perplexity (its exponential), and bits per byte of the answers' text.

    Sums over all rows are divided, so a token counts the same in a short and in a long row. The end token of an answer is an
    answer token without a byte. Bits per byte leave out rows whose answer is cut, since their text is not whole.

    Args:
        measure: log p of rows in nats.
    """
    nats = -measure(data.rows)
    tokens = np.array([row.answer_tokens for row in data.rows], dtype=np.int64)
    if not tokens.sum():
        raise DataflexError("no row has an answer token within cutoff_len")
    loss, error = ratio_and_error(nats, tokens)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss))
    found = {
        "heldout_loss": (loss, error),
        "perplexity": (perplexity, None if error is None else perplexity * error),
    }
    whole = data.whole_answer & (data.answer_bytes > 0)
    if whole.any():
        found["bits_per_byte"] = ratio_and_error(nats[whole] / np.log(2), data.answer_bytes[whole])
    counts = {
        "heldout_rows": len(data.rows),
        "heldout_tokens": int(tokens.sum()),
        "heldout_bytes": int(data.answer_bytes[whole].sum()),
        "heldout_cut_rows": data.cut,
        "heldout_left_out": data.left_out.total(),
    }
    return figures_of(found, counts, data.left_out)
