"""What the trainer holds to answer requests, and the hooks that evaluate held-out rows by domain."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, ClassVar

from dataflex.components.requests import HeldOutSums
from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import Rows
from dataflex.distributed.host import Host
from dataflex.record.ledger import RunFiles
from dataflex.signals.asking.ask import Caches, Signals
from dataflex.signals.asking.context import MeasureContext
from dataflex.signals.asking.heldout import HeldOutReport
from dataflex.signals.keeping.run import RunCaches


class Measuring(Host):  # type: ignore[misc]
    """Mixin over the Trainer's evaluation: the measures of every domain join those of the data set it evaluates first, so that
    they are logged, seen by callbacks and returned with them. held_out: one part per domain, None if there are no such rows."""

    config: ClassVar[DataflexConfig]
    stage_name: ClassVar[str]
    per_row: ClassVar[bool]
    identity: ClassVar[dict[str, Any]]
    held_out: Rows | None
    run_files: RunFiles
    signals: Signals
    _to_evaluate: bool = False

    def _make_signals(self) -> Signals:
        context = MeasureContext(
            self.view,
            self.rows,
            self.data_collator,
            self.processing_class,
            self._score,
            stage=self.stage_name,
            seed=self.plan.seed,
            target=self.target,
            held_out=self.held_out,
            held_out_named=self.config.routes_held_out,
            scoring_tokens=self.config.scoring_tokens,
            remark=lambda lines: self.remarks.add(f"select:{self.config.select.name}", lines),  # type: ignore[union-attr]
        )
        return Signals(context, self._make_caches())

    def _make_caches(self) -> Caches:
        return RunCaches(self.view, self.identity, str(self.args.output_dir))

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        if eval_dataset is None:  # else one set of several, or of the caller's own
            self._to_evaluate = (
                self.held_out is not None
                and self.config.evaluate_domains
                and self.per_row
                and self.stage_name in ("pt", "sft")
            )
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if self._to_evaluate:
            self._to_evaluate = False
            output.metrics.update(self._evaluate_domains())
        return output

    @cached_property
    def _held_out_report(self) -> HeldOutReport:
        return HeldOutReport(self.signals.rows_of(HeldOutSums()), self.processing_class)

    def _evaluate_domains(self) -> dict[str, float]:
        """Scalars by name, equal on every rank; a line of the ledger says the same."""
        begin, step = time.perf_counter(), self.state.global_step
        scalars, found = self._held_out_report.of(self.signals.measure(HeldOutSums()))
        self.run_files.record(
            {
                "step": step, "position": self.position(step), "component": "evaluate", "decided": {}, "from": found,
                "seconds": round(time.perf_counter() - begin, 3),
            }
        )  # fmt: skip
        return scalars
