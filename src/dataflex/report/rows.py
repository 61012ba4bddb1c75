"""Rows of a selection, and the life of one row, as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dataflex.reading.orders import OrderFile, RankedRow
from dataflex.reading.run import Run
from dataflex.reading.selections import RowOfSelection, SelectionFile
from dataflex.reading.stored import stored_row, stored_texts
from dataflex.report.questions import end_of, question, shortened
from dataflex.report.tables import Table
from dataflex.report.words import NONE, number, visible

_PROMPT, _ANSWER = 80, 80  # characters of a text that stand in a table
_NOT_KEPT = "(text not kept)"


def rows_table(run: Run, selection: SelectionFile, rows: Sequence[RowOfSelection], *, whole: bool = False) -> Table:
    """whole: with all of their texts."""
    divided = any(row.dataset is not None for row in rows)
    columns = (
        "row",
        *(("domain",) if divided else ()),
        "score",
        "by score",
        "taken as",
        *_reason_columns(rows),
        "margin",
        "tokens",
        "text",
    )
    cells = [
        (
            f"{row.data_set}:{_count(row.row)}",
            *((row.domain,) if divided else ()),
            number(row.score, 4),
            _count(row.place),
            _taken(row),
            *_reasons(row, rows),
            number(row.margin, 4),
            _count(row.tokens),
            text_of(run, row, whole=whole),
        )
        for row in rows
    ]
    found = selection.summary
    title = f"Step {selection.step}: {selection.name}, {found.rows_taken:,} of {found.rows_looked_at:,} rows taken"
    note = ""
    if found.scores is not None and found.scores.cut is not None:
        left, taken = found.scores.cut
        note = f"Cut between {number(left, 4)} (left out) and {number(taken, 4)} (taken); margin: how far a row is from it."
    return Table(title, columns, cells, note, frozenset({"text", "for"}))


def ranks_table(run: Run, order: OrderFile, rows: Sequence[RankedRow], *, whole: bool = False) -> Table:
    """Rows by the rank that an order gave them. whole: with all of their texts."""
    keys = run.record.get("llamafactory") or {}

    def text(row: RankedRow) -> str:
        texts = None if row.row is None else stored_texts(keys, row.data_set, row.row)
        if texts is None:
            return _NOT_KEPT
        return visible("\n".join(texts) if whole else shortened(" ".join(texts), _PROMPT + _ANSWER))

    cells = [
        (f"{row.data_set}:{_count(row.row)}", row.domain, f"{row.rank:,}", number(row.score, 4), text(row))
        for row in rows
    ]
    by = order.line["from"]["by"]
    title = f"Step {order.step}: {order.name}" + (f" by {by}" if by else "")
    note = "Rank: the place of a row in its pool by score, from 0."
    return Table(title, ("row", "domain", "rank", "score", "text"), cells, note, frozenset({"text"}))


def life_table(run: Run, sample_id: int) -> Table:
    """A row at every selection of a run."""
    life = life_of(run, sample_id)
    known = [row for _, row in life if row is not None]
    more = _reason_columns(known)
    cells = []
    for selection, row in life:
        if row is None:
            facts = (NONE, NONE, "not looked at", *[NONE] * len(more), NONE)
        else:
            facts = (number(row.score, 4), _count(row.place), _taken(row), *_reasons(row, known), number(row.margin, 4))
        cells.append((str(selection.step), selection.name, *facts))
    columns = ("step", "selector", "score", "by score", "taken as", *more, "margin")
    return Table("At every selection", columns, cells, served_line(run, sample_id), frozenset({"selector", "for"}))


def losses_table(run: Run, sample_id: int) -> Table:
    """The loss that a row was last trained on with, and its weight if rows are weighed, at every checkpoint that is kept and
    now."""
    life = run.losses_of(sample_id)
    weighed = any(seen.get("last_weight") is not None for seen in life)
    cells = [
        (str(seen["last_step"]), str(seen["times_seen"]), number(seen["last_loss"]))
        + ((number(seen.get("last_weight")),) if weighed else ())
        for seen in life
    ]
    columns = ("step", "times by then", "loss", *(("weight",) if weighed else ()))
    return Table("When last trained on, at every checkpoint", columns, cells)


def _reason_columns(rows: Sequence[RowOfSelection]) -> tuple[str, ...]:
    """Those that a file has which says why rows were taken."""
    turn = any(row.turn is not None for row in rows)
    target = any(row.chosen_for is not None for row in rows)
    return (*(("turn",) if turn else ()), *(("for",) if target else ()))


def _reasons(row: RowOfSelection, rows: Sequence[RowOfSelection]) -> tuple[str, ...]:
    """The cells of these columns."""
    target = row.chosen_for
    place = NONE if target is None else ":".join(str(part) for part in (target.dataset, target.row) if part is not None)
    cells = {"turn": _count(row.turn), "for": place}
    return tuple(cells[name] for name in _reason_columns(rows))


def life_of(run: Run, sample_id: int) -> list[tuple[SelectionFile, RowOfSelection | None]]:
    """At every selection of a run; None: the row was not looked at."""
    found = [(selection, selection.index_of(sample_id)) for selection in run.selections]
    return [(selection, None if index is None else selection.rows([index])[0]) for selection, index in found]


def served_line(run: Run, sample_id: int) -> str:
    seen = run.life_of(sample_id)
    if seen is not None:
        times = "once" if seen["times_seen"] == 1 else f"{seen['times_seen']} times"
        weight = f" and weight {number(seen['last_weight'])}" if seen.get("last_weight") is not None else ""
        return f"Trained on {times}, last in step {seen['last_step']}, with loss {number(seen['last_loss'])}{weight}."
    return "Not trained on." if run.exposure else "How often it was trained on is not known."


def record_of(run: Run, row: RowOfSelection) -> dict[str, Any]:
    """All that is known of a row."""
    known = {name: value for name, value in asdict(row).items() if name != "dataset" or value is not None}
    return {**known, "stored": _stored(run, row) if row.text is None else None}


def text_of(run: Run, row: RowOfSelection, *, whole: bool = False) -> str:
    """As the run has kept it, or as it is stored; in short what it asks, and its answer."""
    if not whole:
        parts = short_texts(run, row, _PROMPT, _ANSWER)
        return _NOT_KEPT if parts is None else visible(" > ".join(part for part in parts if part))
    if row.text is not None:
        return visible("\n".join(row.text))
    stored = _stored(run, row)
    return _NOT_KEPT if stored is None else visible(json.dumps(stored, ensure_ascii=False, indent=2))


def short_texts(run: Run, row: RowOfSelection, asked: int, answered: int) -> tuple[str, str] | None:
    """The question of a row and its answer, each in one line of so many characters at most. None: not known.

    What is stored is read where the text that was kept does not show where its question begins."""
    found = None if row.text is None else question(row.text[0])
    if row.text is not None and found is not None:
        return shortened(found, asked), shortened(row.text[1], answered)
    stored = _stored_texts(run, row)
    if stored is not None:
        return shortened(stored[0], asked), shortened(stored[1], answered)
    return None if row.text is None else (end_of(row.text[0], asked), shortened(row.text[1], answered))


def _stored_texts(run: Run, row: RowOfSelection) -> tuple[str, str] | None:
    return None if row.row is None else stored_texts(run.record.get("llamafactory") or {}, row.domain, row.row)


def _stored(run: Run, row: RowOfSelection) -> dict[str, Any] | None:
    return None if row.row is None else stored_row(run.record.get("llamafactory") or {}, row.data_set, row.row)


def _taken(row: RowOfSelection) -> str:
    if not row.selected:
        return "left out"
    return "taken" if row.rank is None else str(row.rank)


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"
