"""The tables of a report, whatever they are shown in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dataflex.reading.log import Series
from dataflex.reading.run import Run
from dataflex.report.words import NONE, count, duration, number, percent, shares
from dataflex.values.nested import flat


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    """The first one holds names, the others figures, but for those named in `texts`."""
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    texts: frozenset[str] = field(default_factory=frozenset)


def tables_of(run: Run) -> Iterator[Table]:
    """All tables of a run that have something to show."""
    for make in (domains_table, selections_table, orders_table, weights_table, cost_table, remarks_table):
        table = make(run)
        if table is not None and table.rows:
            yield table


def overview(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        steps = f"{run.step:,} of {run.total_steps:,}" if run.trains else NONE
        seconds = duration(run.cost.total) if run.trains else NONE
        rows.append((run.name, run.status, does(run), steps, seconds, model_of(run)))
    return Table(
        "Runs",
        ("run", "status", "DataFlex", "steps", "time", "model"),
        rows,
        texts=frozenset({"status", "DataFlex", "model"}),
    )


def does(run: Run) -> str:
    """The components of a run, such as "select rds, mix odm"."""
    if not run.trains:
        return ", ".join(dict.fromkeys(f"select {s.name}" for s in run.selections))
    found = []
    for slot in ("select", "mix", "weight", "order"):
        spec = run.block.get(slot)
        for one in spec if isinstance(spec, list) else [spec]:
            if isinstance(one, Mapping) and one.get("name"):
                found.append(f"{slot} {one['name']}")
    return ", ".join(found) or "nothing"


def model_of(run: Run) -> str:
    path = str((run.record.get("llamafactory") or {}).get("model_name_or_path") or NONE)
    return path.rstrip("/").rsplit("/", 1)[-1]


def domains_table(run: Run) -> Table | None:
    mixture, exposure, held_out = run.mixture, run.exposure, run.held_out("loss")
    losses = run.log.under("dataflex/loss/")
    if mixture is None:
        return None
    total = mixture.total
    columns = ["domain", "rows"]
    if mixture.requested is not None:
        columns += ["asked for at first", "asked for last"]
    if total is not None:
        columns.append("served")
    if exposure:
        columns += ["rows seen", "epochs", "most repeated"]
    columns += ["train loss"] if losses else []
    columns += ["held-out loss"] if held_out is not None else []
    rows = []
    for d, name in enumerate(mixture.domains):
        row = [name, count(run.sizes.get(name))]
        if mixture.requested is not None:
            row += [percent(float(mixture.requested.values[i, d])) for i in (0, -1)]
        if total is not None:
            row.append(percent(float(total[d])))
        if exposure:
            own = exposure.get(name)
            row += [count(own.seen), number(own.epochs, 2), f"{own.most} x"] if own else [NONE] * 3
        if losses:
            row.append(change(losses.get(name)))
        if held_out is not None:
            row.append(change(held_out.domains.get(name)))
        rows.append(tuple(row))
    if held_out is not None:
        for name, series in (("mean of domains", held_out.macro), ("all rows", held_out.micro)):
            rows.append((name, *[""] * (len(columns) - 2), change(series)))
    unit = "tokens" if mixture.unit == "tokens" else "rows"
    note = f"Shares are of {unit}. Losses: at first > last, nats per token of the answers."
    return Table("Domains", tuple(columns), rows, note)


def change(series: Series | None) -> str:
    """The first value and the last one."""
    if series is None or not len(series[1]):
        return NONE
    first, last = float(series[1][0]), float(series[1][-1])
    return number(last) if len(series[1]) == 1 else f"{number(first)} > {number(last)}"


def selections_table(run: Run, most: int = 12) -> Table | None:
    found = run.selections
    if not found:
        return None
    rows, before = [], None
    for number_of, selection in enumerate(found):
        overlap = selection.overlap(before) if run.trains else None
        before = selection
        if len(found) > most and most // 2 <= number_of < len(found) - most // 2:
            continue
        summary, scores = selection.summary, selection.summary.scores
        rows.append(
            (
                str(selection.step) if run.trains else selection.path.parent.name,
                selection.name,
                f"{summary.rows_taken:,} of {summary.rows_looked_at:,}",
                shares(summary.selected),
                NONE if overlap is None else f"{percent(overlap)} ({percent(selection.by_chance)})",
                f"{number(scores.selected.mean)} ({number(scores.all.mean)})" if scores else NONE,
                number(scores.cut[1]) if scores and scores.cut else NONE,
                duration(selection.seconds) if run.trains else NONE,
            )
        )
    columns = ("step", "selector", "rows taken", "of which", "as last time", "mean score", "cut", "time")
    note = "In brackets: overlap by chance, and the mean score of all rows."
    if len(found) > most:
        note += f" {len(found)} selections, {len(rows)} of them shown."
    return Table("Selections", columns, rows, note, frozenset({"selector", "of which"}))


def orders_table(run: Run, most: int = 12) -> Table | None:
    found = run.orders
    if not found:
        return None
    shown = found if len(found) <= most else [*found[: most // 2], *found[len(found) - most // 2 :]]
    rows = [
        (
            str(order.step),
            order.name,
            str(order.line["from"]["by"] or NONE),
            count(sum(order.line["decided"]["rows"])),
            count(sum(order.line["decided"]["draws"])),
            count(order.line["from"]["without_score"]),
            duration(float(order.line.get("seconds", 0.0))),
        )
        for order in shown
    ]
    columns = ("step", "order", "by", "rows", "draws", "without a score", "time")
    note = "Draws: those that the shape is laid over, of all pools together."
    if len(shown) < len(found):
        note += f" {len(found)} orders, {len(shown)} of them shown."
    return Table("Orders", columns, rows, note, frozenset({"order", "by"}))


def weights_table(run: Run) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for what, prefix in (("rows", "dataflex/weight/"), ("tokens", "dataflex/weight/token/")):
        effective = run.log.series(f"{prefix}effective_share")
        if not len(effective[1]):
            continue
        low, high, zero = (run.log.series(prefix + name)[1] for name in ("min", "max", "zero_share"))
        rows.append(
            (
                what,
                number(float(low.min())),
                number(float(high.max())),
                percent(float(effective[1].mean())),
                percent(float(effective[1].min())),
                percent(float(zero.mean())) if len(zero) else NONE,
            )
        )
    columns = ("weights of", "smallest", "largest", "effective share, mean", "at least", "with weight zero")
    note = "Effective share: (sum w)^2 / (n sum w^2), 100 % for equal weights."
    return Table("Weights", columns, rows, note)


def cost_table(run: Run) -> Table | None:
    if not run.trains:
        return None
    cost, rows = run.cost, list[tuple[str, ...]]()
    for name, spent in cost.components.items():
        if name != "evaluate":
            share = percent(spent.seconds / cost.total if cost.total else None)
            rows.append((name, str(spent.decisions), duration(spent.seconds), share))
    for kind in ("loading", "evaluating", "saving", "training"):
        if cost.kinds.get(kind):
            rows.append((kind, "", duration(cost.kinds[kind]), percent(cost.share(kind))))
    note = "Up to the last log of a loss, with the evaluations after it, but not saving. Training: all that is left."
    return Table("Time", ("spent on", "decisions", "time", "share"), rows, note)


def remarks_table(run: Run) -> Table | None:
    rows = list(run.remarks().items())
    return Table("Remarks", ("by", "remark"), rows, texts=frozenset({"remark"}))


def differences(runs: Sequence[Run], noise: Table | str = "") -> list[Table]:
    """Held-out losses of several runs, and what of their differences is noise. noise: what several seeds say of it, or a sentence
    that no seeds can."""
    table = _held_out_of(runs)
    if table is None:
        return []
    if isinstance(noise, Table):
        return [table, noise]
    return [replace(table, note=f"{table.note} {noise}".strip())]


def _held_out_of(runs: Sequence[Run]) -> Table | None:
    found = final_losses(runs)
    if len(found) < 2:
        return None
    domains = list(dict.fromkeys(domain for losses in found.values() for domain in losses))
    means = {name: sum(losses.values()) / len(losses) for name, losses in found.items()}
    baseline, rows = next(iter(found)), []
    for name, losses in found.items():
        less = NONE if name == baseline else f"{means[name] - means[baseline]:+.3f}"
        rows.append((name, *(number(losses.get(domain)) for domain in domains), number(means[name]), less))
    return Table("Held-out loss at the end", ("run", *domains, "mean", f"minus {baseline}"), rows, "Lower is better.")


def final_losses(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Held-out loss as last measured, by run and domain: by data sets as LLaMA-Factory evaluates them where all runs have the
    same ones, else by domain."""
    evaluated = {run.name: {n or "all": float(v[-1]) for n, (_, v) in run.evaluated.items()} for run in runs}
    if len({tuple(losses) for losses in evaluated.values()}) == 1 and all(evaluated.values()):
        return evaluated
    found = {run.name: run.held_out("loss") for run in runs}
    return {
        name: {domain: float(values[-1]) for domain, (_, values) in held_out.domains.items()}
        for name, held_out in found.items()
        if held_out is not None
    }


def settings_table(runs: Sequence[Run]) -> Table | None:
    """Keys of the file that differ between runs. Of a run without a block they are not known."""
    runs = [run for run in runs if run.record]
    settings = [flat({**(run.record.get("llamafactory") or {}), "dataflex": run.block}) for run in runs]
    keys = [
        key for key in dict.fromkeys(key for found in settings for key in found)
        if key != "output_dir" and len({str(found.get(key)) for found in settings}) > 1
    ]  # fmt: skip
    rows = [(key, *(str(found.get(key, NONE)) for found in settings)) for key in keys]
    return Table(
        "Settings that differ", ("key", *(run.name for run in runs)), rows, texts=frozenset(r.name for r in runs)
    )
