"""What must hold of runs in bf16: uniform weights are no weights, a scoring pass leaves no trace, a killed run goes on as it was.

The differences are given as they are found. Where two runs of one configuration already differ, kernels that add up in no fixed
order are in use, and nothing else can be equal to the bit.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apart
import inside
import numpy as np
import settings

STEPS, SCORED, SAVED, KILLED = 8, 3, 4, 6
HEADER = ("invariant", "losses off by (relative)", "weights", "ids", "asked for", "verdict")


def trace(keys: dict[str, Any], scores: bool = False, killed: int | None = None) -> dict[str, Any]:
    """Train; the loss of every optimizer step, the ids that were served and a hash of the trainable weights at the end.

    scores: measure losses, embeddings and gradients at step SCORED and ignore them. killed: after that step."""
    import xxhash
    from transformers import Trainer

    from dataflex.components.requests import Embedding, TargetAlignment

    seen: dict[str, Any] = {"losses": {}, "ids": {}}
    trained: list[Any] = []
    step_of, ended = Trainer.training_step, Trainer._maybe_log_save_evaluate

    def training_step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trained[:] = [trainer.model]
        loss = step_of(trainer, *args, **kwargs)
        step = trainer.state.global_step
        seen["losses"][step] = seen["losses"].get(step, 0.0) + float(loss)
        return loss

    def batches(signals: Any, step: int, ids: list[list[int]]) -> None:
        seen["ids"][step] = ids
        if scores and step == SCORED:
            requests: list[Any] = ["loss", Embedding()]
            requests += [TargetAlignment(gradient_type="sgd"), TargetAlignment(gradient_type="adam")]
            seen["scored"] = [bool(np.isfinite(signals.measure(r)).any()) for r in requests]

    def after(trainer: Any, *args: Any, **kwargs: Any) -> None:
        ended(trainer, *args, **kwargs)
        if trainer.state.global_step == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.training_step, Trainer._maybe_log_save_evaluate = training_step, after  # type: ignore[method-assign]
    inside.watch_batches(batches)
    settings.train(keys)
    digest = xxhash.xxh3_128()
    for parameter in (p for p in trained[0].parameters() if p.requires_grad):
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return {**seen, "weights": digest.hexdigest()}


def _apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    both = sorted(set(a["losses"]) & set(b["losses"]))
    return max(abs(a["losses"][s] - b["losses"][s]) / abs(a["losses"][s]) for s in both)


def check(
    run_keys: Callable[[str], dict[str, Any]], work: Path, threads: int, until: float, only: str | None = None
) -> list[list[str]]:
    """Lines of the table. run_keys: the keys of a run of a name, without a block. until: the time by which to be done. only:
    one of the checks, by name."""
    lora = {"finetuning_type": "lora", "lora_rank": 8, "lora_target": "all", "lora_dropout": 0.1}
    random = {"dataflex": {"select": {"name": "less", "warmup": STEPS, "interval": STEPS, "target_dataset": "d7"}}}

    def run(name: str, keys: dict[str, Any], **how: Any) -> dict[str, Any]:
        keys = run_keys(name) | {"max_steps": STEPS, "logging_steps": 1, "seed": 0} | keys
        killed = how.get("killed") is not None
        out = apart.call(trace, keys, how.get("scores", False), how.get("killed"),
                         log=work / f"{name}.log", threads=threads, killed=killed)  # fmt: skip
        if "save_steps" not in keys:
            shutil.rmtree(keys["output_dir"], ignore_errors=True)  # the model that it saved at its end
        return out[0] if out else {}

    def line(name: str, a: dict[str, Any], b: dict[str, Any], asked: str, bits: bool, noise: bool = False) -> list[str]:
        off, same = _apart(a, b), a["weights"] == b["weights"]
        common_steps = sorted(set(a["ids"]) & set(b["ids"]))
        ids = all(a["ids"][s] == b["ids"][s] for s in common_steps) if any(a["ids"].values()) else None
        held = (same and off == 0 if bits else off <= 1e-6) and ids is not False
        verdict = (
            "holds" if held else "differs, as do two equal runs" if noise and ids is not False else "does not hold"
        )
        shown = "equal" if same else "differ"
        return [name, f"{off:.1e}", shown, "-" if ids is None else "equal" if ids else "differ", asked, verdict]

    lines: list[list[str]] = []
    exact: dict[str, bool] = {}

    def uniform(kind: str, tuning: dict[str, Any]) -> None:
        plain = run(f"plain-{kind}", tuning)
        again = run(f"again-{kind}", tuning)
        weighted = run(f"uniform-{kind}", {**tuning, "dataflex": {"weight": {"name": "loss", "strategy": "uniform"}}})
        exact[kind] = plain["weights"] == again["weights"]
        lines.append(line(f"{kind}: plain twice", plain, again, "-", True, True))
        lines[-1][-1] = "to the bit" if exact[kind] else "not to the bit"
        lines.append(line(f"{kind}: uniform weights, over plain", plain, weighted, "1e-6", False, not exact[kind]))

    def scoring(kind: str, tuning: dict[str, Any]) -> None:
        quiet = run(f"quiet-{kind}", {**tuning, **random})
        scored = run(f"scored-{kind}", {**tuning, **random}, scores=True)
        if not all(scored["scored"]) or len(scored["scored"]) != 4:
            raise RuntimeError("the scoring pass gave no values")
        name = f"{kind}: loss, embedding and gradients scored and ignored"
        lines.append(line(name, quiet, scored, "bits", True, not exact.get(kind, True)))

    def resumed() -> None:
        keys = {**lora, **random, "save_strategy": "steps", "save_steps": SAVED}
        whole = run("whole", keys)
        run("cut", keys, killed=KILLED)
        rest = run("cut", {**keys, "resume_from_checkpoint": True, "overwrite_output_dir": False})
        if min(rest["ids"]) != SAVED:
            raise RuntimeError(f"resumed at step {min(rest['ids'])} instead of {SAVED}")
        lines.append(line("LoRA: killed and resumed", whole, rest, "ids; bits", True, not exact.get("LoRA", True)))
        shutil.rmtree(run_keys("whole")["output_dir"], ignore_errors=True)

    steps: list[tuple[str, Callable[[], None]]] = [
        ("uniform weights, LoRA", lambda: uniform("LoRA", lora)),
        ("scoring, LoRA", lambda: scoring("LoRA", lora)),
        ("resume", resumed),
        ("uniform weights, full", lambda: uniform("full", {})),
        ("scoring, full", lambda: scoring("full", {})),
    ]
    steps = [(name, work_of) for name, work_of in steps if only in (None, name)]
    took = 0.0
    for name, work_of in steps:
        begin = time.time()
        if begin + took > until:
            lines.append([name, "-", "-", "-", "-", "not run: no time left"])
            continue
        work_of()
        took = time.time() - begin
        print(*lines[-1], sep=" | ", flush=True)
    return lines
