"""One page of HTML about some runs: no network, nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dataflex.reading.run import Run
from dataflex.reading.selections import RowOfSelection, SelectionFile
from dataflex.report import charts
from dataflex.report.charts import Figure
from dataflex.report.explanation import target_name
from dataflex.report.rows import short_texts
from dataflex.report.tables import (
    Table,
    cost_table,
    differences,
    domains_table,
    orders_table,
    overview,
    remarks_table,
    selections_table,
    settings_table,
    weights_table,
)
from dataflex.report.words import number, visible
from dataflex.version import __version__

_SHOWN = 6
"""Selections that are shown one by one, the first and the last among them."""
_ROWS = 5
_ASKED, _ANSWERED = 90, 120  # characters of a row that is not opened


@dataclass
class Section:
    """A part of the page. charts: title -> figure; rows: title -> rows of a selection, each with question and answer in short."""

    title: str
    tables: list[Table] = field(default_factory=list)
    charts: Mapping[str, Figure] = field(default_factory=dict)
    rows: Mapping[str, list[tuple[RowOfSelection, tuple[str, str] | None]]] = field(default_factory=dict)
    folded: bool = False


def page(runs: Sequence[Run], title: str, first: Sequence[Section] = (), noise: Table | str = "") -> str:
    """The page, as text. first: sections above those about the runs. noise: as of `differences`."""
    figures: list[Figure] = []

    def place(figure: Figure) -> str:
        figures.append(figure)
        return f"chart-{len(figures) - 1}"

    environment = Environment(
        loader=PackageLoader("dataflex.report", "web"), autoescape=True, undefined=StrictUndefined
    )
    filters = (visible, number, target_name)
    environment.filters |= {each.__name__: each for each in filters}
    template = environment.get_template("page.html")
    parts = [(run, list(sections_of(run))) for run in runs]
    across = [*first, *_across(runs, noise)]
    body = template.render(
        title=title,
        made=datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=Markup(_web("page.css")),
        across=across,
        parts=parts,
        place=place,
        figures="@@FIGURES@@",
    )
    script = "\n".join((get_plotlyjs().replace("</script", "<\\/script"), _web("page.js")))
    return body.replace("@@FIGURES@@", in_script(figures)).replace("@@SCRIPT@@", script)


def _across(runs: Sequence[Run], noise: Table | str) -> Iterator[Section]:
    cost = {"Time": charts.cost_chart([run for run in runs if run.trains])} if any(run.trains for run in runs) else {}
    if len(runs) == 1:
        yield Section("Run", [overview(runs)])
        return
    yield Section("Runs", [overview(runs), *differences(runs, noise)], {**charts.compared(runs), **cost})
    settings = _tables(settings_table(runs))
    if settings:
        yield Section("Settings that differ", settings)


def sections_of(run: Run) -> Iterator[Section]:
    """The parts of the page about one run."""
    for section in (_losses(run), _mixture(run), *_selections(run), *_orders(run), _weights(run), _cost(run)):
        if section.tables or section.charts or section.rows:
            yield section


def _tables(*found: Table | None) -> list[Table]:
    return [table for table in found if table is not None and table.rows]


def _losses(run: Run) -> Section:
    return Section("Losses", _tables(domains_table(run)), charts.loss_charts(run))


def _mixture(run: Run) -> Section:
    figures = charts.mixture_charts(run.mixture, run.step) if run.mixture is not None and len(run.domains) > 1 else {}
    return Section(
        "Mixture and exposure", [], {**figures, **(charts.exposure_charts(run.exposure) if run.exposure else {})}
    )


def _orders(run: Run) -> Iterator[Section]:
    if run.orders:
        yield Section("Orders", _tables(orders_table(run)))


def _selections(run: Run) -> Iterator[Section]:
    found = run.selections
    if not found:
        return
    yield Section("Selections", _tables(selections_table(run)), charts.selections_charts(found) if run.trains else {})
    indices = np.unique(np.linspace(0, len(found) - 1, min(_SHOWN, len(found))).round().astype(int))
    for index in indices:
        yield _selection(run, found[index], folded=index != indices[-1])


def _selection(run: Run, selection: SelectionFile, *, folded: bool) -> Section:
    title = f"Selection at step {selection.step}" if run.trains else f"Selection {selection.path.parent.name}"
    shown = {
        name: [(row, short_texts(run, row, _ASKED, _ANSWERED)) for row in rows]
        for name, rows in rows_shown(selection).items()
    }
    return Section(f"{title}: {selection.name}", [], charts.selection_charts(selection), shown, folded)


def rows_shown(selection: SelectionFile) -> dict[str, list[RowOfSelection]]:
    """Rows of both ends of the scores, next to the cut, and at random, with their text where it is kept."""
    kept = np.flatnonzero(np.isin(selection.ids, list(selection.texts)))
    rng, out = np.random.default_rng(0), {}
    if np.isfinite(selection.scores).any():
        out["Highest scores"] = selection.highest(_ROWS)
        out["Lowest scores"] = selection.lowest(_ROWS)
        if selection.summary.scores is not None and selection.summary.scores.cut is not None:
            out["Just taken"] = selection.lowest(_ROWS, selected=True)
            out["Just left out"] = selection.highest(_ROWS, selected=False)
    for name, wanted in (("Taken, at random", True), ("Left out, at random", False)):
        rows = kept[selection.selected[kept] == wanted]
        out[name] = rng.permutation(rows)[:_ROWS]
    return {name: selection.rows(indices) for name, indices in out.items() if len(indices)}


def _weights(run: Run) -> Section:
    return Section("Weights", _tables(weights_table(run)), charts.weight_charts(run))


def _cost(run: Run) -> Section:
    figures = {"Time": charts.cost_chart([run])} if run.trains and run.cost.total else {}
    return Section("Time and remarks", _tables(cost_table(run), remarks_table(run)), figures)


def in_script(value: Any) -> str:
    """JSON that may stand in a script element; numbers that are none become null."""
    return json.dumps(_finite(value), separators=(",", ":")).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _web(name: str) -> str:
    return resources.files("dataflex.report").joinpath("web", name).read_text(encoding="utf-8")
