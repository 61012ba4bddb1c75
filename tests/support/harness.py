"""Runs the real command line in processes forked from one warmed-up parent, so that imports are paid for once.

`start` calls `dataflex.cli.main` (or LLaMA-Factory's own entry, for plain runs) in a fresh process per rank, with the
environment torchrun would give it. *Hooks* are functions of `hooks.py` called in the process before the command.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_THREADS = "1"


def warm_up(cache: Path) -> None:
    """Start the parent process; call once, before the first run."""
    os.environ.update(
        PYTHONPATH=os.pathsep.join([str(SUPPORT), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]),
        ACCELERATE_TORCH_DEVICE="cpu",
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS=_THREADS,
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
        PYTORCH_NVML_BASED_CUDA_CHECK="1",  # looking for a GPU must not make a process unfit to be forked
        HF_DATASETS_CACHE=str(cache),
        DATAFLEX_TESTS="1",
    )
    _CONTEXT.set_forkserver_preload(["preload"])


@dataclass
class Result:
    """status: exit status of each rank. out: the directory of the run. log: what rank 0 printed, and below it the log of the
    libraries."""

    status: list[int]
    out: Path
    log: str
    served: list[list[list[int]]] = field(default_factory=list)

    @property
    def ok(self) -> Result:
        assert self.status == [0] * len(self.status), self.log[-4000:]
        return self

    def history(self, name: str = "trainer_state.json") -> list[dict[str, Any]]:
        """The records of training steps (those with a loss)."""
        records = json.loads((self.out / name).read_text())["log_history"]
        return [r for r in records if "loss" in r]

    def trace(self) -> dict[int, tuple[float, float]]:
        """step -> (loss, gradient norm)."""
        return {r["step"]: (r["loss"], r["grad_norm"]) for r in self.history()}

    def scalars(self) -> dict[int, dict[str, float]]:
        """step -> our own scalars, timings left out."""
        return {
            r["step"]: {k: v for k, v in r.items() if k.startswith("dataflex/") and "seconds" not in k}
            for r in self.history()
        }

    def ledger(self) -> list[dict[str, Any]]:
        lines = (self.out / "dataflex" / "ledger.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]

    def forwards(self) -> dict[str, int]:
        """Model forwards of rank 0 (hook count_forwards)."""
        return json.loads((self.out / "forwards.json").read_text())

    def ids(self) -> dict[int, list[int]]:
        """step (counted from 0) -> ids of its global batch, in the order of the plan: micro-step, rank, row."""
        per_rank = []
        for file in sorted(self.out.glob("served-*.jsonl")):
            per_rank.append({r["step"]: r["ids"] for r in map(json.loads, file.read_text().splitlines())})
        return {
            step: [i for micro in zip(*(rank[step] for rank in per_rank), strict=True) for ids in micro for i in ids]
            for step in sorted(per_rank[0])
        }


class Run:
    """A run under way; `wait` gives its Result."""

    def __init__(
        self, arguments: Sequence[str], out: Path, ranks: int, hooks: Sequence[str], env: dict[str, str]
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.logs, self.processes = out, [], []
        self.library_log = out / "dataflex" / "run.log"
        self.logged_before = self.library_log.stat().st_size if self.library_log.exists() else 0
        port = str(free_port())
        for rank in range(ranks):
            log = out / f"log-{rank}.txt"
            settings = dict(env)
            if ranks > 1:
                settings |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                    "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                }  # fmt: skip
            process = child(arguments, out, str(log), settings, hooks)
            process.start()
            self.logs.append(log)
            self.processes.append(process)

    def wait(self, timeout: float = 500) -> Result:
        """Once a rank has died, the others are killed: they would wait for it."""
        pending = list(self.processes)
        while pending:
            ready = multiprocessing.connection.wait([p.sentinel for p in pending], timeout=timeout)
            if not ready:
                for process in self.processes:
                    process.kill()
                raise TimeoutError(f"no end after {timeout} s:\n{self.logs[0].read_text()[-3000:]}")
            for process in [p for p in pending if p.sentinel in ready]:
                process.join()
                pending.remove(process)
                if process.exitcode != 0:
                    for other in pending:
                        other.join(10)
                        other.kill()
        log = self.logs[0].read_text(errors="replace") if self.logs[0].exists() else ""
        if self.library_log.exists():
            log += self.library_log.read_bytes()[self.logged_before :].decode(errors="replace")
        return Result([p.exitcode for p in self.processes], self.out, log)


def tiny_run(ground: Path) -> dict[str, Any]:
    """The configuration that the fixture `base` gives, on the model and data below `ground`."""
    return {
        "model_name_or_path": str(ground / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": str(ground / "data"),
        "dataset": "code,docs,arithmetic",
        "template": "qwen",
        "cutoff_len": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "max_steps": 12,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "seed": 7,
        "disable_tqdm": True,
        "log_level": "warning",
    }


def start(config: dict[str, Any], out: Path, *, ranks: int = 1, hooks: Sequence[str] = (), **env: str) -> Run:
    """`dataflex-cli train` of a configuration, with `output_dir` set to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(out)}))
    return Run(["train", str(file)], out, ranks, hooks, env)


def train(config: dict[str, Any], out: Path, **kwargs: Any) -> Result:
    return start(config, out, **kwargs).wait()


def train_all(*runs: Run) -> list[Result]:
    return [run.wait() for run in runs]


def plain(config: dict[str, Any], out: Path, *, ranks: int = 1, hooks: Sequence[str] = ()) -> Run:
    """The same configuration without our keys, through LLaMA-Factory's own entry."""
    return start(config, out, ranks=ranks, hooks=["llamafactory_itself", *hooks])


def child(arguments: Sequence[str], out: Path, log: str, env: dict[str, str], hooks: Sequence[str]) -> Any:
    """A process, not started yet, for one rank of a command. log: the file, or the terminal, that it prints to."""
    return _CONTEXT.Process(target=_child, args=(list(arguments), str(out), log, env, list(hooks)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _child(arguments: list[str], out: str, log: str, env: dict[str, str], hooks: list[str]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(env)
    import hooks as hook_module
    import torch

    from dataflex.talking.run_log import RunLog

    discard = RunLog.discard

    def shown_and_discarded(self: RunLog) -> None:
        """A refused run removes its log; what is in it tells whether a model was loaded."""
        if self.began is not None:
            os.write(1, self.path.read_bytes()[self.began :])
        discard(self)

    RunLog.discard = shown_and_discarded

    multiprocessing.set_start_method("fork", force=True)  # what a process started from a shell would use
    torch.set_num_threads(int(_THREADS))
    entry: Any = None
    try:
        for hook in hooks:
            name, _, argument = hook.partition(":")
            entry = getattr(hook_module, name)(out, argument) or entry
        if entry is None:
            from dataflex.cli import main as entry
        status = entry(arguments)
    except SystemExit as exit_:
        status = exit_.code
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
