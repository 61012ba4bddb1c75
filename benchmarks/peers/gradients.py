"""Seconds to score a pool by its gradients against a target: the signal of `select: less` beside bergson's, on one model.

Both get the same tokens and take the same layers (all linear ones but the output embedding), the mean of the target's unit
gradients, and the cosine of every row with it. Each side is a process; they take turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import numpy as np  # noqa: E402
from bergson import VERSION, Unavailable, interpreter  # noqa: E402
from measuring import interval, of_lengths  # noqa: E402
from runner import Command, table  # noqa: E402

_PEER = "bergson"
_DIM = 16
_VALUES = 8192
# The measurements: (name, side, line of the side, the most that it may take of bergson's time in fp32).
_WAYS = (
    (f"bergson, {_DIM} x {_DIM} per layer, fp32", _PEER, "fp32", ""),
    ("less, exact, fp32", "ours", "fp32 {} 0", "1.2"),
    (f"less, projected to {_VALUES}, fp32", "ours", "fp32 {} " + str(_VALUES), "0.9"),
    ("less, exact, bf16", "ours", "bf16 {} 0", ""),
    (f"less, projected to {_VALUES}, bf16", "ours", "bf16 {} " + str(_VALUES), ""),
)


class Side:
    """A process that answers a line with a line."""

    def __init__(self, *words: str | Path, threads: int, log: Path) -> None:
        import os

        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = log
        self.process = subprocess.Popen(
            list(map(str, words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=env,
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args}\n{self.log.read_text(errors='replace')[-2000:]}")
        return json.loads(answer)  # type: ignore[no-any-return]


def tokenized(model: str, file: Path, count: int) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of the first `count` rows of instruction, input and output, in the model's chat template."""
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(model), []
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            row = json.loads(line)
            asked = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
            turn = [{"role": "user", "content": asked}]
            prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
            answer = [*tokenizer(row["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            found.append((prompt + answer, [-100] * len(prompt) + answer))
    return found


def spearman(a: Any, b: Any) -> float:
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])


def main() -> None:
    command = Command(
        __file__, __doc__, ("cpu",), "data", "work", "rows", "threads", "processor_time",
        model={"required": True, "help": "folder of a pretrained model with a chat template"},
        dataset={"default": "gsm8k_train", "help": "data set of the pool (gsm8k_train)"},
        target={"default": "gsm8k_test", "help": "data set of the target, a quarter as many rows (gsm8k_test)"},
        rounds={"type": int, "default": 1, "help": "turns of each side (1)"},
    )  # fmt: skip
    given = command.given
    count = given.rows or 64
    given.work.mkdir(parents=True, exist_ok=True)
    pool = tokenized(given.model, given.data / f"{given.dataset}.jsonl", count)
    target = tokenized(given.model, given.data / f"{given.target}.jsonl", max(1, count // 4))
    rows = given.work / "rows.json"
    rows.write_text(json.dumps({"pool": pool, "target": target}), encoding="utf-8")

    threads = str(given.threads)
    shared: dict[str, Any] = {"threads": given.threads}
    own = (sys.executable, HERE / "gradients_ours.py", given.model, rows, threads)
    sides = {"ours": Side(*own, log=given.work / "ours.log", **shared)}
    try:
        python = interpreter(given.work / "bergson")
        worker = (python, "-P", HERE / "gradients_bergson.py", given.model, rows, str(_DIM), threads)
        sides[_PEER] = Side(*worker, log=given.work / "bergson.log", **shared)
    except Unavailable as why:
        print(f"without bergson {VERSION}, which cannot be had here: {why}", flush=True)
    ways = [way for way in _WAYS if way[1] in sides]
    clock = "processor" if given.processor_time else "wall"
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in ways}
    for turn in range(given.rounds):
        for name, side, line, _ in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            asked = line.format(clock) if "{}" in line else f"{line} {clock}"
            found[name].append(sides[side].ask(asked))
            last = found[name][-1]
            print(f"{name}: target {last['target']:.1f} s, pool {last['pool']:.1f} s", flush=True)
    body = report(found, pool, target, given.rounds)
    command.publish("Gradients", body, threads=given.threads, model=Path(given.model).name)


def report(found: dict[str, list[dict[str, Any]]], pool: Any, target: Any, rounds: int) -> str:
    seconds = {name: np.array([turn["target"] + turn["pool"] for turn in some]) for name, some in found.items()}
    exact = found["less, exact, fp32"][0]["scores"]
    base = next((name for name in found if name.startswith(_PEER)), None)
    lines = []
    for name, _, _, most in _WAYS:
        if name not in found:
            continue
        some, own = found[name], seconds[name]
        cells = [f"{np.mean([t[part] for t in some]):.1f}" for part in ("target", "pool")]
        cells.append(_ratio(own, seconds[base]) if base else "-")
        cells.append(f"<= {most}" if most else "-")
        single = name.replace("bf16", "fp32")
        cells.append(_ratio(own, seconds[single]) if single != name else "-")
        cells.append(f"{spearman(some[0]['scores'], exact):.3f}")
        cells.append(f"{some[0]['values']:,}")
        rates = [sum(t["flop"].values()) / (t["target"] + t["pool"]) / 1e9 for t in some if "flop" in t]
        peaks = [t["peak"] for t in some]
        cells.append(f"{np.mean(rates):.0f} of {np.mean(peaks):.0f}" if rates else "-")
        lines.append([name, *cells])
    header = ["way", "target s", "pool s", "of bergson", "limit", "of fp32", "rank corr.", "values", "GFLOP/s of peak"]
    about = f"Pool: {of_lengths([len(ids) for ids, _ in pool])}. Target: {of_lengths([len(ids) for ids, _ in target])}."
    return f"{about} Turns of each side: {rounds}.\n\n{table(header, lines)}"


def _ratio(own: Any, other: Any) -> str:
    ratio = f"{own.sum() / other.sum():.2f}"
    if len(own) < 3:
        return ratio
    low, high = interval(lambda i: float(own[i].sum() / other[i].sum()), len(own))
    return f"{ratio} ({low:.2f} .. {high:.2f})"


if __name__ == "__main__":
    main()
