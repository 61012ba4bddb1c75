"""A selection over texts: embeddings come from files or a text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataflex.base.checks.contents import digest
from dataflex.base.loading.texts import Texts
from dataflex.config.schema import DataflexConfig
from dataflex.data.origins import raw_rows
from dataflex.deciding.choosing import Available, Chooser, Chosen, DecisionPoint, Group
from dataflex.plan.permutation import Purpose, generator
from dataflex.plan.plan import Domains
from dataflex.record.reasons import Target
from dataflex.signals.embeddings import encode_missing
from dataflex.signals.keeping.disk import DiskCache
from dataflex.trainer.offline import given_embeddings, wanted


def choose(config: DataflexConfig, rows: Texts, target: Texts | None, output_dir: str) -> Chosen:
    """One decision of the selector over `rows`."""
    spec, offline = config.select, config.offline
    assert spec is not None and offline is not None
    signals = _signals(config, rows, target, Path(offline.store or Path(output_dir) / "signals"))
    count, aim = len(rows), None if target is None else target_of(target)
    chooser = Chooser(
        spec,
        Available(
            [Group(None, 0, count)],
            lambda: np.ones(count, dtype=bool),
            raw_rows(rows.origins, rows.stored_rows)[0],
            aim,
        ),
        lambda request: signals[request.name],
        budget=lambda candidates, _: wanted(offline, candidates),
        rng=lambda *_: generator(rows.arguments.seed, Purpose.SELECTING_TEXTS, spec.component.seed),
        lacking=lambda budget, candidates, *_: (
            f"dataflex.offline: {budget} rows are asked for, but {candidates} have an embedding"
        ),
    )
    chooser.init()
    return chooser.choose(DecisionPoint())


def target_of(texts: Texts) -> Target:
    domains = Domains(tuple(origin.name for origin in texts.origins), texts.sizes)
    return Target(domains, np.concatenate([origin.numbers for origin in texts.origins]), texts.texts)


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
            out[request.name] = given_embeddings(offline, *raw_rows(rows.origins, rows.stored_rows))
    return out


def _encoded(model: str, texts: Texts, store: Path) -> np.ndarray:
    folder = Path(model)  # what is in it counts: an encoder may be trained on in its place
    encoder = digest(folder) if folder.is_dir() else model
    key = {"signal": "text", "model": encoder, "content": texts.fingerprint()}
    return encode_missing(model, DiskCache(store, key, len(texts)), texts.__getitem__, texts.arguments.device)
