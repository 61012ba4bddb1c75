"""A forecast as tables."""

from __future__ import annotations

from collections.abc import Iterator

from dataflex.components.description import parameters
from dataflex.forecast.domains import DomainRows
from dataflex.forecast.run import Forecast
from dataflex.report.tables import Table
from dataflex.report.words import NONE, count, number, percent
from dataflex.values.as_yaml import written


def tables_of(forecast: Forecast) -> Iterator[Table]:
    yield _length(forecast)
    yield _data(forecast)
    if forecast.domains is not None:
        yield _domains(forecast, forecast.domains)
    for table in (_timeline(forecast), _passes(forecast), _defaults(forecast)):
        if table.rows:
            yield table


def _length(forecast: Forecast) -> Table:
    ranks = f" on {forecast.ranks} ranks" if forecast.ranks > 1 else ""
    rows = [
        ("optimizer steps", count(forecast.steps)),
        ("rows of a step", f"{forecast.global_batch:,}{ranks}"),
        ("tokens", about(forecast.tokens)),
        ("held out", ", ".join(forecast.held_out) or "nothing"),
    ]
    return Table("Run", ("", "value"), rows, texts=frozenset({"value"}))


def _data(forecast: Forecast) -> Table:
    block = forecast.config.dataflex
    planned = block is None or block.mix is not None or block.select is None
    rows = []
    for found in (*forecast.data, *forecast.target):
        epochs = forecast.epochs.get(found.name) if planned else None
        role = "" if found in forecast.data else "target"
        tokens = (about(found.tokens), about(found.learned))
        rows.append((found.name, role, count(found.rows), *tokens, number(epochs, 2)))
    note = "Tokens are estimated from a sample of rows, without the template."
    if forecast.sizes.counts_tokens is None:
        note = "Tokens are estimated as characters / 4: the model's tokenizer is not on this machine."
    columns = ("data set", "as", "rows", "tokens a row", "of answers", "epochs")
    return Table("Data", columns, rows, note, frozenset({"as"}))


def _domains(forecast: Forecast, counted: DomainRows) -> Table:
    block = forecast.config.dataflex
    planned = block is not None and (block.mix is not None or block.select is None)
    shown = about if counted.estimated else count
    rows = [
        (name, shown(found), number(forecast.epochs.get(name) if planned else None, 2))
        for name, found in counted.rows.items()
    ]
    if counted.left_out:
        each = ", ".join(f"{name} {found:,}" for name, found in counted.left_out.items())
        note = f"{sum(counted.left_out.values()):,} rows are left out ({each})."
    else:
        note = "Rows are estimated from a sample of rows." if counted.estimated else ""
    return Table("Domains", ("domain", "rows", "epochs"), rows, note)


def _timeline(forecast: Forecast) -> Table:
    rows = [(f"{act.slot} {act.name}", act.words) for act in forecast.timeline]
    return Table("What acts when", ("component", "acts"), rows, texts=frozenset({"acts"}))


def _passes(forecast: Forecast) -> Table:
    rows = []
    for each in forecast.passes:
        share = None
        if each.effort is not None and forecast.tokens:
            share = each.effort / (3 * forecast.tokens)
        name = f"{each.component}: {each.signal}"
        rows.append(
            (
                name,
                each.work,
                count(each.times),
                count(each.rows),
                about(each.tokens),
                percent(share),
                _bytes(each.disk),
            )
        )
    note = "Work: of measuring over that of training; a backward pass counts as two forward passes."
    if forecast.measuring is not None:
        note += f" In all about {percent(forecast.measuring)}."
    columns = ("what is measured", "by", "times", "rows", "tokens", "work", "disk")
    return Table("What is measured", columns, rows, note, frozenset({"by"}))


def _defaults(forecast: Forecast) -> Table:
    block = forecast.config.dataflex
    of_null = {
        f"dataflex.{slot}.{parameter.name}": parameter.of_null
        for slot, component in (block.components if block is not None else {}).items()
        for parameter in parameters(type(component))
    }
    rows = [
        (name, written(value) if value is not None else of_null[name] or "not set")
        for name, value in forecast.defaults.items()
    ]
    return Table("Left at defaults", ("parameter", "value"), rows, texts=frozenset({"value"}))


def about(value: float | None) -> str:
    """An estimate."""
    if value is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"~{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"~{value:.0f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return NONE
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"
