"""bergson's side of gradients.py, run with `python -P` in its own environment: MODEL WORK THREADS DIM RANK."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    spec = importlib.util.spec_from_file_location("turns", Path(__file__).with_name("gradients_turns.py"))
    assert spec is not None and spec.loader is not None
    turns = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(turns)
    model, work, threads, dim, rank = sys.argv[1:]
    pool, target = turns.read_rows(Path(work))

    import torch

    torch.set_num_threads(int(threads))
    clocks = {"processor": time.process_time, "wall": time.perf_counter}
    loaded: dict[str, Any] = {}

    def measure(line: str) -> dict[str, Any]:
        precision, clock, direction = line.split()
        key = f"{precision} {direction}"
        if key not in loaded:
            name = str(Path(work) / turns.ADAPTER) if rank != "0" else model
            moments = torch.load(Path(work) / turns.MOMENTS) if direction == "adam" else None
            loaded[key] = Side(name, precision, int(dim), moments, turns)
            loaded[key].measure(pool[:1], target[:1], clocks[clock])  # it makes its projections when it needs them
        return loaded[key].measure(pool, target, clocks[clock])

    turns.serve(measure)


class Side:
    """The mean of the target's unit gradients in memory, then the cosine of every row with it, both projected.

    Args:
        moments: Of Adam, by layer: with them the rows' gradients are divided by sqrt(v) + eps. Only v is used.
    """

    def __init__(self, model: str, precision: str, dim: int, moments: Any, turns: Any) -> None:
        import torch
        from bergson import IndexConfig
        from bergson.utils.worker_utils import processor_for, setup_model_and_peft

        self.folder = tempfile.mkdtemp()
        self.config = IndexConfig(
            run_path=self.folder + "/index", model=model, precision=precision, projection_dim=dim, loss_reduction="mean"
        )
        self.config.partial_run_path.mkdir(parents=True, exist_ok=True)
        self.model, self.modules = setup_model_and_peft(self.config)
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.turns = turns
        self.plain = processor_for(self.config)
        self.directed = processor_for(self.config, self._normalizers(moments)) if moments else self.plain

    def measure(self, pool: Any, target: Any, clock: Any) -> dict[str, Any]:
        import torch
        from bergson import PreprocessConfig, Scorer
        from bergson.score.score_writer import InMemorySequenceScoreWriter

        shutil.rmtree(self.config.partial_run_path, ignore_errors=True)
        self.config.partial_run_path.mkdir(parents=True)
        peak, begin = self.turns.peak(self.dtype), clock()
        index = self._collect(
            target, processor=self.plain, preprocess_cfg=PreprocessConfig(unit_normalize=True, aggregation="mean")
        )
        between = clock()
        writer = InMemorySequenceScoreWriter(len(pool), 1)
        scorer = Scorer(
            index.gradients, list(index.gradients), writer, torch.device("cpu"), self.dtype, unit_normalize=True
        )
        self._collect(pool, processor=self.directed, scorer=scorer)
        values = sum(g.shape[1] for g in index.gradients.values())
        return {
            "target": between - begin, "pool": clock() - between, "scores": writer.scores[:, 0].float().tolist(),
            "values": values, "peak": peak,
        }  # fmt: skip

    def _normalizers(self, moments: Any) -> dict[str, Any]:
        from bergson.collector.collector import HookCollectorBase
        from bergson.gradients import AdamNormalizer

        targets = HookCollectorBase.discover_targets(self.model.base_model, self.modules)
        return {n: AdamNormalizer(moments[self.turns.layer_of(n)][1].view(how[1])) for n, how in targets.items()}

    def _collect(self, rows: Any, **more: Any) -> Any:
        from bergson import CollectorComputer, InMemoryCollector
        from bergson.data import allocate_batches
        from datasets import Dataset

        ids, labels = zip(*rows, strict=True)
        lengths = [len(row) for row in ids]
        data = Dataset.from_dict({"input_ids": ids, "labels": labels, "length": lengths})
        collector = InMemoryCollector(
            model=self.model.base_model, cfg=self.config, target_modules=self.modules, data=data, **more,
        )  # fmt: skip
        batches = allocate_batches(lengths, self.config.token_batch_size)
        computer = CollectorComputer(model=self.model, data=data, collector=collector, batches=batches, cfg=self.config)
        computer.run_with_collector_hooks(desc="gradients")
        return collector


if __name__ == "__main__":
    main()
