"""The tables of a comparison, for a terminal, a page and a Markdown file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dataflex.comparing.results.comparison import Comparison, Row, mean_of
from dataflex.report.tables import Table
from dataflex.report.words import NONE, count, duration, number

_NOTE = (
    "sd: standard deviation over seeds. Minus baseline: mean difference of runs with the same seed, with its 95 % interval"
    " (t). p: paired t test, corrected for the number of methods (Holm)."
)


def tables_of(comparison: Comparison) -> Iterator[Table]:
    """One of each metric, and what the runs have cost."""
    for metric, rows in comparison.tables.items():
        yield _metric_table(comparison, metric, rows)
    yield cost_table(comparison)


def _metric_table(comparison: Comparison, metric: str, rows: Sequence[Row]) -> Table:
    baselines = {row.method.baseline for row in rows}
    minus = f"minus {next(iter(baselines))}" if len(baselines) == 1 else "minus baseline"
    columns = ("method", "seeds", "mean", "sd", minus, "95 % interval", "p", "so")
    lines = []
    for row in rows:
        d = row.difference
        lines.append(
            (
                row.method.name,
                str(len(row.sample.values)),
                number(row.sample.mean, 4),
                number(row.sample.spread, 4),
                NONE if d is None or d.mean != d.mean else f"{d.mean:+.4g}",
                NONE if d is None or d.interval is None else f"{d.interval[0]:+.3g} to {d.interval[1]:+.3g}",
                NONE if d is None or d.adjusted is None else f"{d.adjusted:.2g}",
                row.verdict,
            )
        )
    first = metric == next(iter(comparison.tables))
    return Table(
        f"Held-out {metric}" if metric.startswith("loss") else metric,
        columns,
        lines,
        _NOTE if first else "",
        frozenset({"so"}),
    )


def cost_table(comparison: Comparison) -> Table:
    """Means over the runs of each method."""
    rows = []
    for method in comparison.methods:
        steps, tokens, seconds, deciding = (
            mean_of(method, what) for what in ("steps", "tokens", "seconds", "deciding")
        )
        share = NONE if not seconds or deciding is None else f"{100 * deciding / seconds:.0f} %"
        done = f"{len(method.runs)} of {len(method.seeds)}"
        rows.append((method.name, done, count(steps), count(tokens), duration(seconds), share))
    columns = ("method", "runs", "steps", "tokens", "time", "of which deciding")
    note = f"Means over seeds. Equal: {comparison.equal}." if comparison.equal else "Means over seeds."
    return Table(
        "Cost",
        columns,
        rows,
        f"{note} Time is that of the training loop, with selecting, mixing, weighing and ordering.",
    )


def markdown(table: Table) -> str:
    """A Markdown table: names and texts to the left, figures to the right."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    left = [not i or name in table.texts for i, name in enumerate(table.columns)]
    rule = "|" + "|".join("---" if text else "---:" for text in left) + "|"
    lines = [f"## {table.title}", "", row(table.columns), rule, *map(row, table.rows)]
    return "\n".join([*lines, *(["", table.note] if table.note else [])])
