"""A selection for people to read: counts, quantiles, and the rows at both ends of the scores."""

from __future__ import annotations

import numpy as np

from dataflex.base.output.outcome import Outcome

# Characters of a row that are shown.
_SHOWN = 600


def summary(outcome: Outcome, times: np.ndarray, lines: list[str], examples: int) -> str:
    """Markdown. times: how often each row was selected, int64[N]. lines: about each data set. examples: rows of each end."""
    scored = np.flatnonzero(np.isfinite(outcome.scores))
    stored = {origin.name: len(origin.stored) for origin in outcome.origins}
    total, left = sum(stored.values()), len(outcome.scores)
    out = [f"# Selection by {outcome.selector}", ""]
    out += [f"- {line}" for line in (*lines, *outcome.notes)]
    out.append(
        f"- {total - left} rows could not be prepared and were left out" if total > left else f"- {total} rows in all"
    )
    if (times > 1).any():
        out.append(
            f"- drawn with replacement: {int((times > 0).sum())} different rows, one of them {int(times.max())} times"
        )
    if not len(scored):
        return "\n".join([*out, "- the selector gives no scores", ""])
    quantiles = np.quantile(outcome.scores[scored], [0, 0.25, 0.5, 0.75, 1])
    out += ["", "| score | lowest | 25 % | 50 % | 75 % | highest |", "|---|---|---|---|---|---|"]
    for name, rows in (("all rows", scored), ("selected", scored[times[scored] > 0])):
        if len(rows):
            quantiles = np.quantile(outcome.scores[rows], [0, 0.25, 0.5, 0.75, 1])
            out.append(f"| {name} | " + " | ".join(f"{q:.4g}" for q in quantiles) + " |")
    order = scored[np.argsort(-outcome.scores[scored], kind="stable")]
    count = min(examples, len(order))
    for title, some in (("Highest scores", order[:count]), ("Lowest scores", order[::-1][:count])):
        out += ["", f"## {title}"]
        for row in some:
            out += ["", _heading(outcome, int(row), bool(times[row])), "", *_quoted(outcome.texts([int(row)])[0].whole)]
    return "\n".join([*out, ""])


def _heading(outcome: Outcome, row: int, selected: bool) -> str:
    index = row
    for origin in outcome.origins:
        if index < len(origin.indices):
            break
        index -= len(origin.indices)
    mark = ", selected" if selected else ""
    return f"**{origin.name}, row {origin.numbers[index]}**: {outcome.scores[row]:.6g}{mark}"


def _quoted(text: str) -> list[str]:
    cut = text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + " ..."
    return [f"> {line}" for line in cut.splitlines() or [""]]
