"""Seconds to score a pool by its gradients against a target: the signal of `select: less` beside bergson's, on one model.

Both get the same tokens and take the same layers (all linear ones but the output embedding, or the parts of a LoRA adapter), the
mean of the target's unit gradients, and the cosine of every row with it. Each side is a process; they take turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import numpy as np  # noqa: E402
from bergson import VERSION, Unavailable, interpreter  # noqa: E402
from measuring import interval, of_lengths  # noqa: E402
from runner import Command, table  # noqa: E402

_PEER = "bergson"
_DIM = 16  # of bergson's projection of each layer, on either side
_SHORT = 8192


@dataclass(frozen=True)
class Way:
    """One measurement.

    Attributes:
        side: The process that makes it.
        line: What that is asked for, with {} for the clock.
        peer: The way of bergson whose time is the unit.
        exact: The way whose scores are the exact ones.
        single: The same way in fp32, where this one is in bf16.
        most: The most that it may take: of bergson's time, in bf16 of the time in fp32.
    """

    name: str
    side: str
    line: str
    peer: str
    exact: str
    single: str | None = None
    most: str = ""


def ways_of(directions: Sequence[str], layers: int) -> list[Way]:
    """All ways. A projection has the length of bergson's, and for full gradients also that of the default."""
    found, equal = [], layers * _DIM**2
    for direction in directions:
        note = "" if direction == "sgd" else f" {direction}"
        peer, exact = f"bergson{note}, {_DIM} x {_DIM} per layer, fp32", f"less{note}, exact, fp32"
        found.append(Way(peer, _PEER, f"fp32 {{}} {direction}", peer, exact))
        for precision in ("fp32", "bf16"):
            for values in (0, equal, _SHORT):
                if values == _SHORT and direction != "sgd":
                    continue
                name = f"less{note}, {f'projected to {values:,}' if values else 'exact'}, "
                low, most = precision == "bf16", "0.6" if precision == "bf16" else "0.9" if values else "1.2"
                line = f"{precision} {{}} {values} {direction}"
                single = f"{name}fp32" if low else None
                found.append(Way(name + precision, "ours", line, peer, exact, single, most))
    return found


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
        lora={"type": int, "help": "rank of an adapter whose gradients are taken; without it those of all linear layers"},
        directions={"help": "of the rows: sgd, or adam too with moments made for it (sgd; with --lora both)"},
        rounds={"type": int, "default": 1, "help": "turns of each side (1)"},
        only={"help": "ways whose names have this word in them, and those that they are compared with"},
    )  # fmt: skip
    given = command.given
    given.directions = ",".join(command.several("directions", ("sgd", "adam") if given.lora else ("sgd",)))
    count = given.rows or 64
    given.work.mkdir(parents=True, exist_ok=True)
    pool = tokenized(given.model, given.data / f"{given.dataset}.jsonl", count)
    target = tokenized(given.model, given.data / f"{given.target}.jsonl", max(1, count // 4))
    (given.work / "rows.json").write_text(json.dumps({"pool": pool, "target": target}), encoding="utf-8")

    words = (given.model, given.work, str(given.threads))
    shared: dict[str, Any] = {"threads": given.threads}
    ours = Side(sys.executable, HERE / "gradients_ours.py", *words, log=given.work / "ours.log", **shared)
    layers = ours.ask(f"prepare {given.lora or 0} {'adam' in given.directions:d}")["layers"]
    sides = {"ours": ours}
    try:
        python = interpreter(given.work / "bergson")
        worker = (python, "-P", HERE / "gradients_bergson.py", *words, str(_DIM), str(given.lora or 0))
        sides[_PEER] = Side(*worker, log=given.work / "bergson.log", **shared)
    except Unavailable as why:
        print(f"without bergson {VERSION}, which cannot be had here: {why}", flush=True)
    ways = [way for way in ways_of(given.directions.split(","), layers) if way.side in sides]
    if given.only:
        named = {other for w in ways if given.only in w.name for other in (w.name, w.peer, w.exact, w.single)}
        ways = [way for way in ways if way.name in named]
    clock = "processor" if given.processor_time else "wall"
    found: dict[str, list[dict[str, Any]]] = {way.name: [] for way in ways}
    for turn in range(given.rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            last = sides[way.side].ask(way.line.format(clock))
            found[way.name].append(last)
            print(f"{way.name}: target {last['target']:.1f} s, pool {last['pool']:.1f} s", flush=True)
    body = report(ways, found, pool, target, given.rounds)
    title = f"Gradients of LoRA, rank {given.lora}" if given.lora else "Gradients"
    command.publish(title, body, threads=given.threads, model=Path(given.model).name)


def report(ways: Sequence[Way], found: dict[str, list[dict[str, Any]]], pool: Any, target: Any, rounds: int) -> str:
    seconds = {name: np.array([turn["target"] + turn["pool"] for turn in some]) for name, some in found.items()}
    lines = []
    for way in ways:
        some, own = found[way.name], seconds[way.name]
        cells = [f"{np.mean([t[part] for t in some]):.1f}" for part in ("target", "pool")]
        cells.append(_ratio(own, seconds[way.peer]) if way.peer in found else "-")
        cells.append(_ratio(own, seconds[way.single]) if way.single else "-")
        cells.append(f"<= {way.most} of {'fp32' if way.single else 'bergson'}" if way.most else "-")
        cells.append(f"{spearman(some[0]['scores'], found[way.exact][0]['scores']):.3f}")
        cells.append(f"{some[0]['values']:,}")
        rates = [sum(t["flop"].values()) / (t["target"] + t["pool"]) / 1e9 for t in some if "flop" in t]
        peaks = [t["peak"] for t in some]
        cells.append(f"{np.mean(rates):.0f} of {np.mean(peaks):.0f}" if rates else "-")
        lines.append([way.name, *cells])
    header = ["way", "target s", "pool s", "of bergson", "of fp32", "limit", "rank corr.", "values", "GFLOP/s of peak"]
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
