"""The charts of a report, as figures of plotly.js: {"data": [...], "layout": {...}}.

Plotly was chosen over altair: one script without native code that a page can hold, and charts that zoom and read out values.
Colours of text, grid and background are the page's own (`page.js`), since they follow its light or dark theme.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dataflex.reading.cost import ALL_KINDS
from dataflex.reading.exposure import MOST, DomainExposure
from dataflex.reading.log import Series
from dataflex.reading.mixture import Mixture, Shares
from dataflex.reading.run import Run
from dataflex.reading.selections import SelectionFile
from dataflex.report.words import visible

Figure = dict[str, Any]
POINTS = 1200
"""Of a line: a longer one is shown by means over equal parts of it."""
_SCATTER = 2000
_WEIGHT_BINS = 40
_COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#bb5566", "#997700",
    "#6699cc", "#994455", "#44bb99", "#bbcc33", "#ee8866", "#77aadd", "#ffaabb", "#aaaa00", "#99ddff", "#8877aa",
)  # fmt: skip


def colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def mixture_charts(mixture: Mixture, step: int) -> dict[str, Figure]:
    """Shares over steps as stacked areas: what was asked for, and what was served. step: optimizer steps done, to which what was
    asked for last holds."""
    out = {}
    if mixture.requested is not None:
        out["Asked for"] = _areas(mixture, mixture.requested.until(step), "hv")
    if mixture.served is not None:
        out["Served"] = _areas(mixture, mixture.served, "linear")
    return out


def exposure_charts(exposure: Mapping[str, DomainExposure]) -> dict[str, Figure]:
    names = [_label(name) for name in exposure]
    out = {}
    if all(found.epochs is not None for found in exposure.values()):
        epochs = [found.epochs for found in exposure.values()]
        out["Epochs"] = _figure([_bars(names, epochs, "epochs", colour(0))], y="rows served / rows", legend=False)
    bars = []
    for k in range(MOST):
        counts = [found.times[k] for found in exposure.values()]
        if any(counts):
            bars.append(_bars(names, counts, f"{k + 1} x" if k + 1 < MOST else f"{MOST} x or more", colour(k)))
    out["Rows by how often they were seen"] = _figure(bars, y="rows", barmode="stack")
    return out


def loss_charts(run: Run) -> dict[str, Figure]:
    """Of what was trained on, and of held-out rows by domain."""
    out = {}
    train = {name: series for name, series in run.train_loss().items() if len(series[0])}
    if train:
        out["Train loss"] = lines(train, "nats per token", known=run.domains)
    titles = {"loss": "nats per token", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    for measure, unit in titles.items():
        found = run.held_out(measure)
        if found is not None:
            title = f"Held-out {'loss' if measure == 'loss' else unit}"
            out[title] = lines({"mean of domains": found.macro, **found.domains}, unit, known=run.domains)
    if "Held-out loss" not in out and any(len(series[0]) for series in run.evaluated.values()):
        out["Held-out loss"] = lines({name or "all": s for name, s in run.evaluated.items()}, "nats per token")
    return out


def weight_charts(run: Run) -> dict[str, Figure]:
    out = {}
    for what, prefix in (("rows", "dataflex/weight/"), ("tokens", "dataflex/weight/token/")):
        found = {name: run.log.series(prefix + name) for name in ("min", "max")}
        shares = {name.replace("_", " "): run.log.series(prefix + name) for name in ("effective_share", "zero_share")}
        if len(found["max"][0]):
            out[f"Weights of {what}: smallest and largest"] = lines(found, "weight")
            out[f"Weights of {what}: shares"] = lines(shares, "share", share=True)
    if len(run.last_weights):
        counts, edges = np.histogram(run.last_weights, bins=_WEIGHT_BINS)
        bars = _bars((edges[1:] + edges[:-1]) / 2, counts, "rows", colour(0))
        last = _figure([{**bars, "width": float(edges[1] - edges[0])}], x="weight", y="rows")
        out["Weights of rows when last trained on"] = last
    weights = run.log.under("dataflex/loss_weight/")
    if weights:
        out["Weights of domains"] = lines(weights, "weight", known=run.domains)
    return out


def cost_chart(runs: Sequence[Run]) -> Figure:
    """Seconds by kind, a bar a run."""
    names = [_label(run.name) for run in runs]
    seconds = {kind: [run.cost.kinds.get(kind, 0.0) for run in runs] for kind in ALL_KINDS}
    bars = [
        {"type": "bar", "orientation": "h", "y": names, "x": of_runs, "name": kind, "marker": {"color": colour(k)}}
        for k, (kind, of_runs) in enumerate(seconds.items())
        if any(of_runs)
    ]
    figure = _figure(bars, x="seconds", barmode="stack")
    figure["layout"]["height"] = 150 + 34 * len(runs)
    return figure


def selections_charts(selections: Sequence[SelectionFile]) -> dict[str, Figure]:
    """All selections of a run: shares by domain, scores, overlap."""
    names = list(dict.fromkeys(name for found in selections for name in found.summary.selected))
    steps = [found.step for found in selections]
    totals = [max(sum(found.summary.selected.values()), 1) for found in selections]
    kind = "category" if len(selections) <= 30 else "linear"
    bars = [
        _bars(
            steps,
            [f.summary.selected.get(name, 0) / total for f, total in zip(selections, totals)],
            _label(name),
            colour(d),
        )
        for d, name in enumerate(names)
    ]
    out = {"Rows taken, by domain": _figure(bars, x="step", y="share", barmode="stack", share=True, x_type=kind)}
    scored = [found for found in selections if found.summary.scores is not None]
    if len(scored) > 1:
        at = np.array([found.step for found in scored])
        summaries = [found.summary.scores for found in scored]
        taken = {
            "taken, mean": (at, np.array([s.selected.mean for s in summaries if s])),
            "all rows, mean": (at, np.array([s.all.mean for s in summaries if s])),
            "all rows, 5 %": (at, np.array([s.all.quantiles[1] for s in summaries if s])),
            "all rows, 95 %": (at, np.array([s.all.quantiles[5] for s in summaries if s])),
        }
        out["Scores"] = lines(taken, "score")
    if len(selections) > 1:
        overlap = [found.overlap(before) or 0.0 for before, found in pairwise(selections)]
        at = np.array(steps[1:])
        chance = np.array([found.by_chance for found in selections[1:]])
        out["Rows that the selection before had taken"] = lines(
            {"overlap": (at, np.array(overlap)), "by chance": (at, chance)}, "share", share=True
        )
    return out


def selection_charts(selection: SelectionFile) -> dict[str, Figure]:
    """One selection: its scores with the cut, and scores against lengths."""
    scores = selection.summary.scores
    if scores is None:
        return {}
    edges = np.array(scores.edges)
    middle, width = (edges[1:] + edges[:-1]) / 2, float(edges[1] - edges[0])
    left = np.array(scores.all.counts) - np.array(scores.selected.counts)
    bars = [
        {**_bars(middle, scores.selected.counts, "taken", colour(1)), "width": width},
        {**_bars(middle, left, "left out", colour(0)), "width": width},
    ]
    histogram = _figure(bars, x="score", y="rows", barmode="stack")
    if scores.cut is not None:
        at, line = scores.cut[1], {"dash": "dot", "width": 2, "color": colour(1)}
        place = {"x": at, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        histogram["layout"]["shapes"] = [
            {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": line}
        ]
        histogram["layout"]["annotations"] = [{**place, "text": f"cut {at:.4g}"}]
    out = {"Scores": histogram}
    if "tokens" in selection.file.schema_arrow.names:
        out["Score and length"] = _score_and_length(selection)
    return out


def _score_and_length(selection: SelectionFile) -> Figure:
    """Of some of the rows, drawn at random."""
    tokens = np.asarray(selection.file.read(["tokens"]).column(0))
    rng, points = np.random.default_rng(0), []
    for name, wanted, number in (("left out", False, 0), ("taken", True, 1)):
        rows = np.flatnonzero((selection.selected == wanted) & np.isfinite(selection.scores))
        rows = rng.choice(rows, min(_SCATTER // 2, len(rows)), replace=False)
        points.append(
            {"type": "scatter", "mode": "markers", "x": _packed(tokens[rows]), "y": _packed(selection.scores[rows]), "name": name,
             "marker": {"color": colour(number), "size": 4, "opacity": 0.6}}
        )  # fmt: skip
    return _figure(points, x="tokens learned", y="score")


def compared(runs: Sequence[Run]) -> dict[str, Figure]:
    """Runs on the same axes."""
    names = [run.name for run in runs]
    train = {run.name: run.log.series("loss") for run in runs if len(run.log.series("loss")[0])}
    out = {"Train loss": lines(train, "nats per token", known=names)} if len(train) > 1 else {}
    for measure, unit in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
        found = {run.name: held_out.macro for run in runs if (held_out := run.held_out(measure)) is not None}
        if len(found) > 1 and any(len(series[0]) > 1 for series in found.values()):
            out[f"Held-out {measure.replace('_', ' ')}, mean of domains"] = lines(found, unit, known=names)
    return out


def lines(series: Mapping[str, Series], unit: str, *, share: bool = False, known: Sequence[str] = ()) -> Figure:
    """One line per series; where all have one value, one bar. known: names that have the same colours in all charts."""
    if all(len(steps) <= 1 for steps, _ in series.values()):
        single = {_label(name): float(values[0]) for name, (_, values) in series.items() if len(values)}
        return _figure([_bars(list(single), list(single.values()), unit, colour(0))], y=unit, share=share)
    data = []
    colours = [*known, *(name for name in series if name not in known)]
    for name, (steps, values) in series.items():
        number = colours.index(name)
        steps, values = thinned(steps, values)
        data.append(
            {"type": "scatter", "mode": "lines" if len(steps) > 1 else "markers", "x": _packed(steps), "y": _packed(values),
             "name": _label(name), "line": {"color": colour(number), "width": 2}, "marker": {"color": colour(number)}}
        )  # fmt: skip
    return _figure(data, x="step", y=unit, share=share)


def thinned(steps: np.ndarray, values: np.ndarray) -> Series:
    """At most POINTS points: means over equal parts, each at its last step; NaN counts for nothing."""
    if len(steps) <= POINTS:
        return steps, values
    bounds = np.linspace(0, len(steps), POINTS + 1).astype(int)
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0.0), bounds[:-1])
    count = np.add.reduceat(known, bounds[:-1])
    return steps[bounds[1:] - 1], np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _areas(mixture: Mixture, shares: Shares, shape: str) -> Figure:
    data = []
    for d, name in enumerate(mixture.domains):
        steps, values = thinned(shares.steps, shares.values[:, d])
        data.append(
            {"type": "scatter", "mode": "lines", "stackgroup": "one", "x": _packed(steps), "y": _packed(values),
             "name": _label(name), "line": {"width": 0.5, "color": colour(d), "shape": shape}, "hovertemplate": "%{y:.1%}"}
        )  # fmt: skip
    return _figure(data, x="step", y=f"share of {'tokens' if mixture.unit == 'tokens' else 'rows'}", share=True)


def _bars(x: Any, y: Any, name: str, shade: str) -> dict[str, Any]:
    values = [x if isinstance(x, list) else np.asarray(x).tolist(), np.asarray(y).tolist()]
    return {"type": "bar", "x": values[0], "y": values[1], "name": name, "marker": {"color": shade}}


def _figure(
    data: list[dict[str, Any]],
    *,
    x: str = "",
    y: str = "",
    share: bool = False,
    legend: bool = True,
    x_type: str | None = None,
    **layout: Any,
) -> Figure:
    x_axis: dict[str, Any] = {"title": {"text": x}, "automargin": True, **({"type": x_type} if x_type else {})}
    y_axis: dict[str, Any] = {"title": {"text": y}, "automargin": True, **({"tickformat": ".0%"} if share else {})}
    return {
        "data": data,
        "layout": {"xaxis": x_axis, "yaxis": y_axis, "showlegend": legend and len(data) > 1, **layout},
    }


def _packed(values: np.ndarray) -> dict[str, str]:
    """Numbers as plotly reads them in few bytes."""
    values = np.asarray(values)
    kind = "i4" if values.dtype.kind in "iu" and np.abs(values).max(initial=0) < 2**31 else "f4"
    return {"dtype": kind, "bdata": base64.b64encode(values.astype(f"<{kind}").tobytes()).decode()}


def _label(name: str) -> str:
    """Plotly reads markup in names."""
    return html.escape(visible(name))
