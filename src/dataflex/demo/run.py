"""Short runs side by side on a CPU: plain, with selection, with mixing, with weighting; and what they show."""

from __future__ import annotations

import contextlib
import json
import shutil
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from dataflex import notices
from dataflex.comparing.existing import over_seeds
from dataflex.demo.data import DOMAINS, HELDOUT, build_domains
from dataflex.demo.findings import chosen_lines, mixture_line, noise_of, selection_line, weight_line
from dataflex.demo.planted import plant
from dataflex.demo.runs import MIN_STEPS, PLAIN, RUNS, Setting, run_configs
from dataflex.demo.scales import TINY, Scale
from dataflex.demo.table import RunResult, format_table, read_result
from dataflex.errors import ConfigError, DataflexError
from dataflex.reading import open_runs
from dataflex.reading.run import Run
from dataflex.report.page import page
from dataflex.writing import write_atomically

_RESULTS = "dataflex-demo.json"
_LOG = "demo.log"
_REPORT = "report.html"


@contextlib.contextmanager
def _quiet(log: TextIO) -> Iterator[None]:
    """Send what the runs say to `log`, but for their bars, and hold back what transformers says outside of them."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(log), notices.into(log):
            yield
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: where cores are shared, two that wait for each other take ten times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _claim(out: Path) -> None:
    """Make `out`, or clear what an earlier demonstration left in it; ConfigError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _RESULTS).is_file():
            raise ConfigError(f"{out} is not empty and was not made by the demonstration; name another folder")
        _remove(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _RESULTS).write_text("{}\n", encoding="utf-8")


def _remove(out: Path) -> None:
    """Delete what a demonstration writes into `out`, and `out` itself if that leaves it empty."""
    for name in ("model", "data", *RUNS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (*(f"{run}.yaml" for run in RUNS), _LOG, _REPORT, _RESULTS):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _prepare(out: Path, scale: Scale, steps: int, seed: int) -> list[str]:
    """Write model, data and one YAML file per run; return the names of the domains."""
    import yaml

    sizes = build_domains(out / "data", scale.rows_per_domain, scale.heldout, seed)
    domains = [name for name in DOMAINS if name in sizes]
    if len(domains) < 2:
        raise DataflexError("this Python installation has no standard library sources to make domains from")
    plant(out / "data", domains, seed=seed)
    largest = max(sizes[domain + HELDOUT] for domain in domains)
    setting = Setting(out, scale.model(out, seed), domains, scale, steps, seed, largest)
    for name, config in run_configs(setting).items():
        with (out / f"{name}.yaml").open("w", encoding="utf-8") as file:
            for key, value in config.items():
                # One line a key, and one a block within `dataflex`, as people write it.
                style = None if isinstance(value, dict) else False
                yaml.safe_dump({key: value}, file, sort_keys=False, default_flow_style=style, width=1000)
    return domains


def run_demo(
    out: Path, scale: Scale = TINY, steps: int | None = None, keep: bool = True, seed: int = 0
) -> list[RunResult]:
    """Make data and a model under `out`, train its runs in turn, and print what they show.

    Each run is the file `out/<run>.yaml`, which `dataflex-cli train` repeats. With `keep` false everything written is
    deleted at the end. ConfigError if `steps` is below 12 or `out` holds something else.
    """
    steps = scale.steps if steps is None else steps
    if steps < MIN_STEPS:
        raise ConfigError(f"steps must be at least {MIN_STEPS}, not {steps}")
    _claim(out)
    begin = time.monotonic()
    results: dict[str, RunResult] = {}
    with (out / _LOG).open("w", encoding="utf-8") as log:
        print(f"[0/{len(RUNS)}] model and data ...", flush=True)
        with _quiet(log):
            from dataflex.base.commands.train import train_file

            domains = _prepare(out, scale, steps, seed)
        print(f"      {len(domains)} domains: {', '.join(domains)}", flush=True)
        for number, name in enumerate(RUNS, start=1):
            print(f"[{number}/{len(RUNS)}] {name}: {steps} steps ...", flush=True)
            with _quiet(log), _one_thread() if scale.one_thread else contextlib.nullcontext():
                train_file(str(out / f"{name}.yaml"))
            results[name] = read_result(name, out / name, domains)
            print(f"      mean held-out loss {results[name].mean:.3f}", flush=True)
    seconds = time.monotonic() - begin
    found = [asdict(result) for result in results.values()]
    (out / _RESULTS).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    runs = {run.name: run for run in open_runs([out / name for name in RUNS])}
    _show(out, domains, runs, results, steps)
    if keep:
        shown = page(list(runs.values()), "The demonstration", noise=over_seeds(list(runs.values())))
        write_atomically(out / _REPORT, shown.encode(errors="replace"))
        print(f"\n{seconds:.0f} s in all. Configurations, models, data and {_LOG} are in {out}.")
        print(f"Repeat a run:  {notices.program()} train {out / 'select'}.yaml")
        print(f"Its rows:      {notices.program()} show {out / 'select'} --step 0")
        print(f"The report:    {(out / _REPORT).resolve()}")
    else:
        _remove(out)
        print(f"\n{seconds:.0f} s in all. Nothing was kept.")
    return list(results.values())


def _show(
    out: Path, domains: Sequence[str], runs: Mapping[str, Run], results: Mapping[str, RunResult], steps: int
) -> None:
    """The table, a line for each paradigm, and the rows that the selector likes most."""
    noise = noise_of(results)
    print(f"\nHeld-out loss by domain after {steps} steps (lower is better); seconds are those of the training loop.\n")
    print(format_table(list(results.values()), PLAIN, noise))
    print(
        f"\nplain: the mean of {len(PLAIN)} runs with other seeds; ~ within their noise. mislabelled: plain, on the data of"
        " weight.\n"
    )
    for line in (
        selection_line(runs["select"], results["select"], results["random"], noise),
        mixture_line(runs["mix"], results["mix"], noise),
        weight_line(out, domains, results["weight"], results["mislabelled"]),
    ):
        print(textwrap.fill(line, 100, subsequent_indent=" " * 8))
    print()
    for text in chosen_lines(runs["select"]):
        print(text)
