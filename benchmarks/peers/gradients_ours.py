"""The side of the signal behind `select: less` in gradients.py: MODEL WORK THREADS.

The line `prepare RANK ADAM` comes first. It writes what both sides need: an adapter of that rank (0: none), and moments.
"""

from __future__ import annotations

import contextlib
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from gradients_turns import ADAPTER, MOMENTS, Rows, layer_of, peak, read_rows, serve

_STEP, _EPS = 100, 1e-8  # of the moments that are made


def main() -> None:
    model, work, threads = sys.argv[1:]

    import torch

    torch.set_num_threads(int(threads))
    serve(Side(model, Path(work)).answer)


class Side:
    def __init__(self, model: str, work: Path) -> None:
        self.name, self.work, self.lora, self.warm = model, work, False, set[str]()
        self.pool, self.target = read_rows(work)
        self.model = cache(self._load)

    def answer(self, line: str) -> dict[str, Any]:
        if line.startswith("prepare"):
            return self._prepare(*line.split()[1:])
        if line not in self.warm:
            self.warm.add(line)
            self.measure(self.pool[:1], self.target[:1], *line.split())
        return self.measure(self.pool, self.target, *line.split())

    def _prepare(self, rank: str, adam: str) -> dict[str, Any]:
        import torch

        from dataflex.signals.gradients.passes import BatchGradients

        self.lora = rank != "0"
        if self.lora:
            self._write_adapter(int(rank))
        engine = BatchGradients(self.model("fp32"))
        if adam == "1":
            torch.save(self._moments(engine), self.work / MOMENTS)
        return {"layers": len(engine.names)}

    def _write_adapter(self, rank: int) -> None:
        """For every linear layer but the output embedding. Neither part is zero, as they are not after some training."""
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(_pretrained(self.name, torch.float32), config).save_pretrained(self.work / ADAPTER)

    def _moments(self, engine: Any) -> dict[str, Any]:
        """Of the gradients of four rows of the target: their mean, and the mean of their squares, by layer."""

        from dataflex.signals.gradients.projection import Concatenation

        some, whole = self.target[:4], Concatenation(engine.sizes)
        m: Any = 0.0
        v: Any = 0.0
        for row in some:
            gradient = engine.features(_collate([row]), whole)[0]
            m, v = m + gradient / len(some), v + gradient.square() / len(some)
        sizes, names = list(engine.sizes.values()), map(layer_of, engine.names.values())
        return dict(zip(names, zip(m.split(sizes), v.split(sizes), strict=True), strict=True))

    def _load(self, precision: str) -> Any:
        """As a run has it. All layers are trained in fp32, with autocast in bf16; below an adapter they are in bf16."""
        import torch
        from peft import PeftModel

        low = self.lora and precision != "fp32"
        model = _pretrained(self.name, torch.bfloat16 if low else torch.float32)
        return PeftModel.from_pretrained(model, self.work / ADAPTER, is_trainable=True).eval() if self.lora else model

    def measure(
        self, pool: Rows, target: Rows, precision: str, clock_name: str, values: str, direction: str
    ) -> dict[str, Any]:
        """precision: fp32, bf16, or bf16-fp32 for `gradient_precision: fp32`; values: 0 for exact scores."""
        import numpy as np
        import torch

        from dataflex import events
        from dataflex.signals.gradients.alignment import alignment
        from dataflex.signals.gradients.passes import BatchGradients

        clock = time.process_time if clock_name == "processor" else time.perf_counter
        found = peak(torch.float32 if precision == "fp32" else torch.bfloat16)
        model, fast = self.model("fp32" if precision == "fp32" or not self.lora else "bf16"), precision == "bf16"
        aims = BatchGradients(model, fast_bf16=fast)
        engine = BatchGradients(model, direction=self._adam(aims), fast_bf16=fast) if direction == "adam" else aims
        passed: list[float] = []
        low = torch.autocast("cpu", dtype=torch.bfloat16) if precision != "fp32" else contextlib.nullcontext()
        begin = clock()
        with low, events.listening((events.Passed, lambda _: passed.append(clock()))):
            out = alignment(
                self.rows(pool), self.rows(target), [np.arange(len(target))], engine, aims,
                proj_dim=int(values) or None,
            )  # fmt: skip
        return {
            "target": passed[0] - begin, "pool": clock() - passed[0], "scores": out[:, 0].tolist(),
            "values": int(values) or aims.sites.values, "peak": found, "flop": self._operations(aims, not int(values)),
        }  # fmt: skip

    def _adam(self, engine: Any) -> Any:
        import torch

        from dataflex.signals.gradients.directions import AdamDirection, Moments

        known = torch.load(self.work / MOMENTS)
        found = {p: Moments(*known[layer_of(name)], _STEP, 0.9, 0.999, _EPS) for p, name in engine.names.items()}
        return AdamDirection(found.__getitem__)

    def _operations(self, engine: Any, exact: bool) -> dict[str, float]:
        """Of the target and the pool: 4 per token and value of a linear layer for the passes, 2 per covered value for exact
        products; 4 per labelled token and value of the output embedding. Padding, attention and norms count as nothing."""
        import torch

        head = engine.model.get_output_embeddings()
        passed = sum(m.weight.numel() for m in engine.model.modules() if type(m) is torch.nn.Linear and m is not head)
        per = 4 * passed + (2 * engine.sites.values if exact else 0)
        labelled = 4 * head.weight.numel()
        return {
            name: float(sum(len(ids) * per + labelled * sum(label >= 0 for label in labels) for ids, labels in rows))
            for name, rows in (("target", self.target), ("pool", self.pool))
        }

    def rows(self, rows: Rows) -> Any:
        import numpy as np
        import torch

        from dataflex.signals.batching import ScoringRows, default_batch_tokens

        device = torch.device("cpu")
        return ScoringRows(
            rows=rows, ids=np.arange(len(rows)), lengths=np.array([len(ids) for ids, _ in rows]), device=device,
            batch_tokens=default_batch_tokens(device, gradients=True), collate=_collate, prepare=lambda batch: batch,
        )  # fmt: skip


def _pretrained(name: str, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).eval()


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
