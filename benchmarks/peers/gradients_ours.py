"""The side of the signal behind `select: less` in gradients.py: MODEL ROWS THREADS."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from gradients_turns import Rows, peak, read_rows, serve


def main() -> None:
    model, rows, threads = sys.argv[1:]
    pool, target = read_rows(rows)

    import torch

    torch.set_num_threads(int(threads))
    serve(Side(model, pool, target).measure)


class Side:
    def __init__(self, model: str, pool: Rows, target: Rows) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.pool, self.target = pool, target

    def measure(self, line: str) -> dict[str, Any]:
        """line: precision (fp32, bf16, or bf16-fp32 for `gradient_precision: fp32`), clock, and values (0: exact)."""
        import numpy as np
        import torch

        from dataflex import events
        from dataflex.signals.gradients.alignment import alignment
        from dataflex.signals.gradients.passes import BatchGradients

        precision, clock_name, values = line.split()
        clock = time.process_time if clock_name == "processor" else time.perf_counter
        found = peak(torch.float32 if precision == "fp32" else torch.bfloat16)
        engine = BatchGradients(self.model, fast_bf16=precision == "bf16")
        passed: list[float] = []
        low = torch.autocast("cpu", dtype=torch.bfloat16) if precision != "fp32" else contextlib.nullcontext()
        begin = clock()
        with low, events.listening((events.Passed, lambda _: passed.append(clock()))):
            out = alignment(
                self._rows(self.pool), self._rows(self.target), [np.arange(len(self.target))], engine, engine,
                proj_dim=int(values) or None,
            )  # fmt: skip
        return {
            "target": passed[0] - begin, "pool": clock() - passed[0], "scores": out[:, 0].tolist(),
            "values": int(values) or engine.sites.values, "peak": found, "flop": self._operations(engine, not int(values)),
        }  # fmt: skip

    def _operations(self, engine: Any, exact: bool) -> dict[str, float]:
        """Of the target and the pool: 4 per token and covered value for the passes, 2 for exact products; 4 per labelled token
        and value of the output embedding. Padding, attention and norms count as nothing."""
        head = self.model.get_output_embeddings().weight.numel()
        per = engine.sites.values * (6 if exact else 4)
        return {
            name: float(sum(len(ids) * per + 4 * head * sum(label >= 0 for label in labels) for ids, labels in rows))
            for name, rows in (("target", self.target), ("pool", self.pool))
        }

    def _rows(self, rows: Rows) -> Any:
        import numpy as np
        import torch

        from dataflex.signals.batching import ScoringRows, default_batch_tokens

        device = torch.device("cpu")
        return ScoringRows(
            rows=rows, ids=np.arange(len(rows)), lengths=np.array([len(ids) for ids, _ in rows]), device=device,
            batch_tokens=default_batch_tokens(device, gradients=True), collate=_collate, prepare=lambda batch: batch,
        )  # fmt: skip


def _collate(rows: Rows) -> dict[str, Any]:
    import torch

    length = max(len(ids) for ids, _ in rows)

    def filled(values: list[int], padding: int) -> list[int]:
        return values + [padding] * (length - len(values))

    return {
        "input_ids": torch.tensor([filled(ids, 0) for ids, _ in rows]),
        "attention_mask": torch.tensor([filled([1] * len(ids), 0) for ids, _ in rows]),
        "labels": torch.tensor([filled(labels, -100) for _, labels in rows]),
    }


if __name__ == "__main__":
    main()
