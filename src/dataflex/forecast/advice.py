"""What a user should look at before starting a run."""

from __future__ import annotations

from collections.abc import Iterator

from dataflex.config.schema import DomainsKeys
from dataflex.forecast.run import Forecast
from dataflex.talking.no_effect import at_the_start

_OFTEN = 4.0  # epochs from which on repeated data is worth less (Muennighoff et al., arXiv 2305.16264)
_MOST = 0.5  # of the work of training


def advice(forecast: Forecast) -> Iterator[str]:
    """One line each; nothing of it stops a run."""
    yield from _repeats(forecast)
    yield from _cut_target(forecast)
    yield from _same_reference(forecast)
    yield from _late_or_never(forecast)
    yield from _small_choice(forecast)
    yield from _held_out(forecast)
    if forecast.measuring is not None and forecast.measuring > _MOST:
        yield (
            f"measuring takes about {100 * forecast.measuring:.0f} % of the work of training; a larger interval, fewer updates"
            " or a smaller pool (max_samples) make it cheaper"
        )


def _repeats(forecast: Forecast) -> Iterator[str]:
    block = forecast.config.dataflex
    if block is None or block.mix is None:
        return
    if block.splits and forecast.domains is None:
        yield f"{_unknown(block.domains)}, so how often each domain is repeated is known once the data is read"
    often = {name: epochs for name, epochs in forecast.epochs.items() if epochs is not None and epochs > _OFTEN}
    for name, epochs in sorted(often.items(), key=lambda found: -found[1]):
        yield (
            f"{name} will be repeated about {epochs:.0f} times; dataflex.mix.max_repetition bounds that. A shorter trial repeats"
            " it less often, so what a trial says of its share need not hold here (arXiv 2606.07597)"
        )


def _unknown(domains: DomainsKeys) -> str:
    """Why the rows of domains are not counted."""
    if domains.by == "cluster":
        return f"{domains.k} clusters are made at the start, of vectors of {domains.embedding_model}"
    named = "the rows of" if domains.by == "dataset" else f"domains are named by {domains.named_by}, and the rows of"
    return f"{named} some data sets cannot be counted here"


def _cut_target(forecast: Forecast) -> Iterator[str]:
    for found in forecast.target:
        if found.rows is not None and found.stored is not None and found.rows < found.stored and forecast.sizes.most:
            yield f"max_samples also cuts the target {found.name}, to {found.rows:,} of {found.stored:,} rows"


def _same_reference(forecast: Forecast) -> Iterator[str]:
    block, model = forecast.config.dataflex, str(forecast.keys.get("model_name_or_path") or "")
    for slot in block.components if block is not None else ():
        for request in block.requests(slot) if block is not None else ():
            if request.other_models().get("reference") == model != "":
                yield f"dataflex.{slot}.reference_model_path is the model itself, so nothing exceeds the reference at first"


def _held_out(forecast: Forecast) -> Iterator[str]:
    """Whether the run will be able to say if it helped."""
    if forecast.config.dataflex is None:
        return
    if not forecast.held_out:
        yield "nothing is held out, so the run cannot say whether it helped; set eval_dataset or val_size"
    elif not forecast.evaluates:
        yield (
            "the held-out rows are never evaluated, so the run cannot say whether it helped; set do_eval: true for its end, or"
            " eval_strategy: steps and eval_steps"
        )
    for found in forecast.target:
        if found.name in forecast.held_out:
            yield (
                f"{found.name} is the target and is held out too: its loss says how well the rows fit the target, and not how"
                " well other rows of its kind are learned"
            )


def _late_or_never(forecast: Forecast) -> Iterator[str]:
    block, known = forecast.config.dataflex, forecast.steps
    if block is not None and known:
        counted = 0 if block.splits else len(forecast.data)
        domains = counted if forecast.domains is None else len(forecast.domains.rows)
        yield from at_the_start(block, forecast.schedules, known, domains, known=True)
    for act in forecast.timeline:
        if act.words == "never acts":
            yield f"{act.slot}: {act.name} never acts in {forecast.steps:,} steps"
        elif act.steps and forecast.steps and act.steps[0] > forecast.steps / 2:
            yield f"{act.slot}: {act.name} acts for the first time at step {act.steps[0]} of {forecast.steps:,}"


def _small_choice(forecast: Forecast) -> Iterator[str]:
    block = forecast.config.dataflex
    if block is None or block.select is None or forecast.samples is None:
        return
    if block.mix is not None:
        yield (
            f"select keeps {100 * block.select.keep_ratio:g} % of the rows of each domain (dataflex.select.keep_ratio); how much"
            " of each domain is served is up to mix"
        )
        return
    budget = (block.select.schedule.interval or 0) * forecast.global_batch
    if budget > 0.8 * forecast.samples:
        yield (
            f"select: each selection takes {budget:,} of {forecast.samples:,} rows, which leaves little to choose; a smaller"
            " dataflex.select.interval takes fewer"
        )
