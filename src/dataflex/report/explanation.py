"""Why a row was taken, or left out, in sentences."""

from __future__ import annotations

import json

import numpy as np

from dataflex.reading.run import Run
from dataflex.reading.selections import RowOfSelection, SelectionFile, TargetRow
from dataflex.reading.stored import stored_row
from dataflex.report.words import number, visible


def explanation(run: Run, selection: SelectionFile, row: RowOfSelection | None) -> list[str]:
    """Sentences about one row at one selection. row: None: it was not looked at."""
    when = f"Step {selection.step}" if run.trains else selection.path.parent.name
    if row is None:
        return [f"{when}: {selection.name} did not look at this row."]
    said = [f"{when}: {selection.name} {_decision(selection, row)}.", _score(selection, row)]
    return [*said, *_why_not(selection, row)]


def _decision(selection: SelectionFile, row: RowOfSelection) -> str:
    among = f" of {row.domain}" if selection.by_domain else ""
    if not row.selected:
        return f"left this row{among} out"
    words = "took this row"
    if row.rank is not None:
        words += f" as number {row.rank:,}{among}"
    if row.turn is not None:
        words += f", in turn {row.turn:,}"
    if row.chosen_for is not None:
        words += f"{',' if row.turn is None else ''} for {target_name(row.chosen_for)}"
    return words


def target_name(target: TargetRow) -> str:
    """Such as "row 17 of gsm8k_heldout"."""
    if target.dataset is None:
        return f"row {target.row} of the target's file"
    if target.row is None:
        return f"{target.dataset}"
    return f"row {target.row} of {target.dataset}"


def _score(selection: SelectionFile, row: RowOfSelection) -> str:
    found = selection.summary
    if row.score is None:
        return (
            "The selector gives no scores."
            if found.scores is None
            else "It has no score: a signal of it is not finite."
        )
    said = f"Its score is {number(row.score, 4)}, place {row.place:,} of {sum(found.scored.values()):,}"
    if row.score_from is not None:
        same = row.chosen_for is not None and target_name(row.score_from) == target_name(row.chosen_for)
        one = "the same data set" if row.score_from.row is None else "the same row"
        said += f", from {one if same else target_name(row.score_from)}"
    return f"{said}."


def _why_not(selection: SelectionFile, row: RowOfSelection) -> list[str]:
    """What lies between a row and the other decision."""
    if row.margin is not None:
        if row.margin == 0:
            return [f"Its score equals the {'highest one left out' if row.selected else 'lowest one taken'}."]
        margin = number(abs(row.margin), 4)
        side = "above the highest score left out" if row.selected else "below the lowest score taken"
        return [f"This is {margin} {side}."]
    if selection.turns is not None and not row.selected:
        places = np.flatnonzero(selection.selected & (selection.domain_numbers == selection.names.index(row.domain)))
        among = f"of {row.domain} {len(places):,} rows were taken, " if selection.by_domain else ""
        return [
            f"Rows are taken in turns: {among}{selection.turns:,} times each row of the target took the closest row left,"
            " and this row never was it."
        ]
    if row.score is not None and not row.selected:
        return ["There is no cut: the rows taken are not those of the highest scores."]
    return []


def target_text(run: Run, target: TargetRow) -> str | None:
    """What a row of the target says, as the run has kept it or as it is stored; None: not known."""
    if target.text is not None:
        return visible("\n".join(part for part in target.text if part))
    if target.dataset is None or target.row is None:
        return None
    stored = stored_row(run.record.get("llamafactory") or {}, target.dataset, target.row)
    return None if stored is None else visible(json.dumps(stored, ensure_ascii=False, indent=2))
