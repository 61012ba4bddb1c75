"""`show`"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataflex import notices
from dataflex.cli.parsing import examples
from dataflex.errors import ConfigError, nearest

if TYPE_CHECKING:
    from dataflex.reading import Run
    from dataflex.reading.selections import SelectionFile


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Rows of a selection: which were taken, with which score, and by what margin. Or one row: why it was taken or left out,"
        " its score at every selection, and how often it was trained on. Of a run with an order alone: rows by rank."
    )
    parser.add_argument("out", metavar="OUT", help="an output_dir of train or select")
    parser.add_argument("--step", metavar="N", help="the selection at this step (the last one)")
    parser.add_argument("--domain", metavar="NAME", help="rows of this data set only")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", metavar="K", type=int, help="the K rows with the highest scores (10)")
    which.add_argument("--bottom", metavar="K", type=int, help="the K rows with the lowest scores")
    which.add_argument("--first", metavar="K", type=int, help="the first K rows in the order of the selector")
    which.add_argument("--row", metavar="NAME:ROW", help="one row, by its data set and its number in the file, from 0")
    parser.add_argument("--text", action="store_true", help="whole texts")
    parser.add_argument("--json", action="store_true", help="the same as a JSON list")
    parser.epilog = examples(
        "dataflex-cli show runs/rds --step 100 --top 20",
        "dataflex-cli show runs/rds --row gsm8k:17",
        "dataflex-cli show runs/rds --step 100 --row gsm8k:17",
        "dataflex-cli show runs/selected --domain alpaca --bottom 5 --text",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    from dataflex.reading import open_runs

    runs = open_runs([options.out])
    found = next((each for each in runs if each.selections), None)
    if found is None and any(run.orders for run in runs):
        _show_ranks(next(run for run in runs if run.orders), options)
        return 0
    if found is None:
        raise ConfigError(f"{options.out}: this run has no selection to show; `dataflex-cli report` shows what it has")
    if options.row is not None:
        _show_life(found, _selection(found, options.step), options)
    else:
        _show_rows(found, _selection(found, options.step), options)
    return 0


def _selection(run: Run, step: str | None) -> SelectionFile:
    known = {str(found.step): found for found in run.selections}
    if step is not None and step not in known:
        raise ConfigError(f"--step: there is no selection at step {step}; there are {', '.join(known)}")
    return run.selections[-1] if step is None else known[step]


def _show_rows(run: Run, selection: SelectionFile, options: Namespace) -> None:
    from dataflex.report.rows import record_of, rows_table

    asked = {by: getattr(options, by) for by in ("top", "bottom", "first") if getattr(options, by) is not None}
    by, count = next(iter(asked.items()), ("top", 10))
    if count < 1:
        raise ConfigError(f"--{by} must be at least 1, not {count}")
    if options.domain is not None:
        _check_name(options.domain, selection.names, "--domain")
    if by != "first" and selection.summary.scores is None:
        if asked:
            raise ConfigError(f"--{by}: {selection.name} gives no scores; --first K shows rows in its own order")
        by = "first"
    find = {"top": selection.highest, "bottom": selection.lowest, "first": selection.first}[by]
    rows = selection.rows(find(count, domain=options.domain))
    if options.json:
        notices.show(json.dumps([record_of(run, row) for row in rows], indent=2, ensure_ascii=False))
        return
    if not rows:
        of = "" if options.domain is None else f" of {options.domain}"
        wanted = "was taken" if by == "first" else "has a score"
        notices.show(f"Step {selection.step}: no row{of} {wanted}.")
        return
    from rich.console import Console

    from dataflex.report.terminal import show_table

    show_table(rows_table(run, selection, rows, whole=options.text), Console(highlight=False))


def _show_ranks(run: Run, options: Namespace) -> None:
    """Of a run without selections: rows by the rank that its order gave them."""
    from rich.console import Console

    from dataflex.report.rows import ranks_table
    from dataflex.report.terminal import show_table

    for option in ("first", "row"):
        if getattr(options, option) is not None:
            raise ConfigError(
                f"--{option}: this run has no selection; --top K and --bottom K show rows by the rank of its order"
            )
    known = {str(order.step): order for order in run.orders}
    if options.step is not None and options.step not in known:
        raise ConfigError(f"--step: no order was made at step {options.step}; there are {', '.join(known)}")
    order = run.orders[-1] if options.step is None else known[options.step]
    if options.domain is not None:
        _check_name(options.domain, order.data_sets, "--domain")
    count = options.bottom if options.bottom is not None else options.top if options.top is not None else 10
    if count < 1:
        raise ConfigError(f"--{'top' if options.bottom is None else 'bottom'} must be at least 1, not {count}")
    rows = order.ranked(count, highest=options.bottom is None, data_set=options.domain)
    if options.json:
        notices.show(json.dumps([vars(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        show_table(ranks_table(run, order, rows, whole=options.text), Console(highlight=False))


def _show_life(run: Run, selection: SelectionFile, options: Namespace) -> None:
    data_set, _, number = options.row.rpartition(":")
    if not data_set or not number.isdigit():
        raise ConfigError(f"--row: {options.row!r} is not of the form NAME:ROW, such as gsm8k:17")
    _check_name(data_set, selection.data_sets[1], "--row")
    sample_id = run.id_of(data_set, int(number))
    if sample_id is None:
        raise ConfigError(
            f"--row: the selections of this run do not know row {number} of {data_set}: it is not in the file, was dropped"
            " before, or the run joins rows (packing)"
        )
    from dataflex.report.explanation import explanation, target_name, target_text
    from dataflex.report.rows import life_of, life_table, losses_table, record_of, text_of

    life = life_of(run, sample_id)
    of_step = next(row for found, row in life if found is selection)
    said = explanation(run, selection, of_step)
    if options.json:
        steps = [{"step": s.step, **(record_of(run, row) if row is not None else {})} for s, row in life]
        exposure, losses = run.life_of(sample_id), run.losses_of(sample_id)
        record = {"why": said, "selections": steps, "exposure": exposure, "losses": losses}
        notices.show(json.dumps(record, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from dataflex.report.terminal import show_table
    from dataflex.report.words import visible

    known = [row for _, row in life if row is not None]
    text = next((row for row in known if row.text is not None), known[0])
    notices.show(f"{options.row}\n\n{text_of(run, text, whole=True)}\n")
    for sentence in said:
        notices.show(visible(sentence))
    target = None if of_step is None else of_step.chosen_for or of_step.score_from
    if target is not None and (words := target_text(run, target)) is not None:
        notices.show(visible(f"\nTarget, {target_name(target)}:\n\n") + words)
    notices.show("")
    console = Console(highlight=False)
    for table in (life_table(run, sample_id), losses_table(run, sample_id)):
        if table.rows:
            show_table(table, console)


def _check_name(name: str, known: Sequence[str], option: str) -> None:
    if name not in known:
        raise ConfigError(f"{option}: unknown data set {name!r}{nearest(name, known)}")
