"""What the runs of the demonstration show, beside the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dataflex.demo.planted import AIM, WRONG_SHARE, planted_rows
from dataflex.demo.runs import PLAIN
from dataflex.demo.table import Noise, RunResult
from dataflex.reading.run import Run
from dataflex.record.ledger import DIRECTORY, EXPOSURE
from dataflex.report.rows import text_of
from dataflex.report.words import number, percent

_TEXT = 76
"""Characters of a row that are shown."""


def noise_of(results: Mapping[str, RunResult]) -> dict[str, Noise]:
    """By domain, from the plain runs."""
    plain = [results[name] for name in PLAIN]
    return {domain: Noise.of([result.losses[domain] for result in plain]) for domain in plain[0].losses}


def selection_line(run: Run, result: RunResult, random: RunResult, noise: Mapping[str, Noise]) -> str:
    counts = next(line for line in run.ledger if line["component"].startswith("select:"))["decided"]["domains"]
    others = [name for name in result.losses if name != AIM]
    paid = sum(result.losses[name] for name in others) / len(others)
    plain = sum(noise[name].mean for name in others) / len(others)
    taken, rows = sum(counts.values()), sum(number_of or 0 for number_of in run.sizes.values())
    return (
        f"select  rds took {taken:,} of {rows:,} rows for {AIM}, and {counts.get(AIM, 0):,} of them are of {AIM}."
        f" Its held-out loss: {_against(result.losses[AIM], noise[AIM])}; with as many random rows:"
        f" {number(random.losses[AIM])}. The other domains pay for it: {number(paid)} on average, plain {number(plain)}."
    )


def mixture_line(run: Run, result: RunResult, noise: Mapping[str, Noise]) -> str:
    mixture = run.mixture
    assert mixture is not None and mixture.requested is not None
    before, after = mixture.requested.values[0], mixture.requested.values[-1]
    moved = int(np.argmax(np.abs(after - before)))
    lower = [name for name, loss in result.losses.items() if noise[name].judge(loss) == "lower"]
    higher = [name for name, loss in result.losses.items() if noise[name].judge(loss) == "higher"]
    effects = [f"{word} on {', '.join(names)}" for word, names in (("lower", lower), ("higher", higher)) if names]
    return (
        f"mix     loss_gap moved {mixture.domains[moved]} from {percent(before[moved])} to {percent(after[moved])}."
        f" Held-out loss: {'; '.join(effects) or 'within noise everywhere'}."
    )


def weight_line(out: Path, domains: Sequence[str], result: RunResult, mislabelled: RunResult) -> str:
    """Rows that were never served have no weight."""
    table = pq.read_table(out / "weight" / DIRECTORY / EXPOSURE, columns=["sample_id", "last_weight"])
    ids, weights = table["sample_id"].to_numpy(), table["last_weight"].to_numpy()
    wrong = np.array(planted_rows(out / "data", domains))[ids]
    lowest = np.argsort(weights, kind="stable")[: int(wrong.sum())]
    return (
        f"weight  {percent(WRONG_SHARE)} of the rows have a wrong answer. rho1 gives them a weight of"
        f" {number(weights[wrong].mean(), 2)}, the others {number(weights[~wrong].mean(), 2)}; of the {len(lowest):,} rows of"
        f" the lowest weight {percent(wrong[lowest].mean())} are wrong. Mean held-out loss {number(result.mean)}, without"
        f" weights {number(mislabelled.mean)}."
    )


def chosen_lines(run: Run, count: int = 3) -> list[str]:
    """Of the selection: the rows taken and the rows left out with the highest scores, as many each, with their texts."""
    (selection,) = run.selections
    lines = []
    for title, taken in (("taken first, by score:", True), ("left out, but closest:", False)):
        rows = selection.rows(selection.highest(count, selected=taken))
        lines += [
            title,
            *(f"  {number(row.score)}  {row.domain}:{row.row}  {text_of(run, row)[:_TEXT]}" for row in rows),
        ]
    return lines


def _against(value: float, noise: Noise) -> str:
    return f"{number(value)}, {noise.judge(value)} (plain {number(noise.mean)} ± {number(noise.half_width, 2)})"
