"""What the values of a signal depend on, as far as it may change while a run stays the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from dataflex.components.signal_request import SignalRequest
from dataflex.distributed.trainer_view import TrainerView
from dataflex.signals.batching import ScoringRows, order_of
from dataflex.signals.embeddings import load_encoder
from dataflex.signals.keeping.fingerprint import model_fingerprint, moments_fingerprint


class Dependencies:
    def __init__(self, view: TrainerView) -> None:
        self.view = view
        self._of_step: tuple[int, dict[str, str | None]] = (-1, {})

    def of(self, request: SignalRequest, rows: ScoringRows) -> dict[str, Any] | None:
        """As a key, equal on every rank; None where that cannot be told."""
        hashes = {"model": self._model(request), "moments": self._moments() if request.reads_moments() else ""}
        if None in hashes.values():
            return None
        ids = xxhash.xxh3_64_hexdigest(rows.ids.tobytes())
        return {**request.key(), **hashes, "settings": self._settings, "ids": ids}

    def _model(self, request: SignalRequest) -> str | None:
        """A hash of the model that a request reads."""
        reads, model, reference = request.reads(), self.view.model, self.view.reference_model
        if reads == "encoder":
            return model_fingerprint(load_encoder(request.other_models()["encoder"], self.view.device))
        if reads == "model and reference" and reference is not None:
            return self._once("both", lambda: model_fingerprint(model, reference))
        return self._once("model", lambda: model_fingerprint(model))

    def _moments(self) -> str | None:
        return self._once("moments", lambda: moments_fingerprint(self.view.optimizer))

    def _once(self, name: str, make: Callable[[], str | None]) -> str | None:
        """What `make` gives, made once per step."""
        if self._of_step[0] != self.view.step:
            self._of_step = (self.view.step, {})
        known = self._of_step[1]
        if name not in known:
            known[name] = make()
        return known[name]

    @cached_property
    def _settings(self) -> str:
        """A hash of what makes a function of parameters: the configurations of model, adapter and loss, and the precision."""
        view = self.view
        adapters = getattr(view.model, "peft_config", {})
        found = [
            {k: v for k, v in settings.items() if not k.endswith("name_or_path")}
            for settings in (
                view.model.config.to_dict(),
                *(adapters[name].to_dict() for name in sorted(adapters)),
                vars(view.finetuning_args),
                {"smoothing": view.args.label_smoothing_factor, "precision": view.accelerator.mixed_precision},
            )
        ]
        text = json.dumps(
            found, sort_keys=True, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v)
        )
        return xxhash.xxh3_64_hexdigest(text.encode())


def order_in(request: SignalRequest, rows: ScoringRows) -> np.ndarray | None:
    """In which rows are measured: longest first, as `over_rows` does it; None: as they come, which texts do."""
    return None if request.reads() == "encoder" else order_of(rows.lengths)
