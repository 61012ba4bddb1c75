"""A selection over texts: embeddings come from files or a text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataflex.base.checks.contents import digest
from dataflex.base.loading.texts import Texts
from dataflex.components.contracts import SelectionContext, declared
from dataflex.components.requests import TargetEmbedding
from dataflex.config.schema import DataflexConfig
from dataflex.data.origins import raw_rows
from dataflex.errors import DataflexError
from dataflex.plan.permutation import generator
from dataflex.signals.embeddings import encode_missing
from dataflex.signals.keeping.disk import DiskCache
from dataflex.trainer.offline import Chosen, given_embeddings, wanted
from dataflex.trainer.select import check_choice, finite

_PURPOSE = 0x0FF11E  # keeps these random numbers apart from those of training


def choose(config: DataflexConfig, rows: Texts, target: Texts | None, output_dir: str) -> Chosen:
    """One decision of the selector over `rows`."""
    spec, offline = config.select, config.offline
    assert spec is not None and offline is not None
    selector = spec.component
    signals = _signals(config, rows, target, Path(offline.store or Path(output_dir) / "signals"))
    own = {name: values for name, values in signals.items() if name != TargetEmbedding.name}
    measured = np.ones(len(rows), dtype=bool)
    for values in own.values():
        measured &= finite(values)
    candidates = np.flatnonzero(measured)
    if not measured.all():
        signals |= {name: values[candidates] for name, values in own.items()}
    budget = wanted(offline, len(candidates))
    context = SelectionContext(
        budget=budget, rows=len(candidates), step=0, update=0, updates=1, domain=None, ids=candidates,
        rng=generator(rows.arguments.seed, _PURPOSE, selector.seed),
        target_sizes=() if target is None else target.sizes, raw_rows=raw_rows(rows.origins)[0][candidates],
    )  # fmt: skip
    if budget > len(candidates) and not declared(selector.with_replacement):
        raise DataflexError(f"dataflex.offline: {budget} rows are asked for, but {len(candidates)} have an embedding")
    selection, _ = selector.select(selector.init(), signals, context)
    check_choice(spec.name, selection.chosen, budget, len(candidates), declared(selector.with_replacement))
    scores = np.full(len(rows), np.nan)
    if selection.scores is not None:
        scores[candidates] = selection.scores
    return Chosen(candidates[selection.chosen], scores, measured, tuple(selection.remarks.values()))


def _signals(config: DataflexConfig, rows: Texts, target: Texts | None, store: Path) -> dict[str, np.ndarray]:
    offline, out = config.offline, {}
    assert offline is not None
    for request in config.requests("select"):
        of_target, given = request.per == "target row", offline.file_of(request)
        if given is None:
            texts = target if of_target else rows
            assert texts is not None
            out[request.name] = _encoded(request.other_models()["encoder"], texts, store)
        elif of_target:
            out[request.name] = np.load(given, mmap_mode="r")
        else:
            out[request.name] = given_embeddings(offline, *raw_rows(rows.origins))
    return out


def _encoded(model: str, texts: Texts, store: Path) -> np.ndarray:
    folder = Path(model)  # what is in it counts: an encoder may be trained on in its place
    encoder = digest(folder) if folder.is_dir() else model
    key = {"signal": "text", "model": encoder, "content": texts.fingerprint()}
    return encode_missing(model, DiskCache(store, key, len(texts)), texts.__getitem__, texts.arguments.device)
