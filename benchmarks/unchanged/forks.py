"""Carries out runs in processes forked from this one, which has imported what they all need: `PYTHON -P forks.py JOBS.json`.

JOBS.json: {"at once": N, "places": {TEXT: NAME}, "runs": [{"folder", "steps": [{"arguments", "ranks", "env", "out"}]}]}. A rank
runs `python -m dataflex ARGUMENTS` as torchrun would start it. The record of a run is written to FOLDER/record.json.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

_LIMIT = 600.0  # seconds of a step
_PATIENCE = 10.0  # for the other ranks once one has failed


def warm_up() -> None:
    """Import what every run imports, of the package nothing but its public name."""
    import datasets.formatting.torch_formatter
    import deepspeed
    import llamafactory.train.dpo.trainer
    import llamafactory.train.kto.trainer
    import llamafactory.train.tuner
    import scipy.io
    import torchvision
    import transformers.models.mixtral.modeling_mixtral
    import transformers.models.qwen2.modeling_qwen2
    import transformers.models.qwen2.tokenization_qwen2
    import transformers.trainer_seq2seq
    import trl

    import dataflex

    for kind in (  # LLaMA-Factory asks for all configurations of these kinds
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForTextToWaveform,
    ):
        kind._model_mapping.keys()
    print(f"runs of {Path(dataflex.__file__).parent}", flush=True)
    used = (datasets, deepspeed, llamafactory, scipy, torchvision, trl, dataflex)
    assert all(module.__name__ for module in used)
    gc.collect()
    gc.freeze()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_of(step: dict[str, Any], folder: Path, logs: Path, env: dict[str, str]) -> None:
    """What a forked process does: never returns."""
    logs.mkdir(parents=True, exist_ok=True)
    handle = os.open(logs / f"log-{env.get('RANK', '0')}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(env, UNCHANGED_FORWARDS=str(logs))
    os.chdir(folder)
    status: Any = 70
    try:
        import sitecustomize  # the one beside this file, by PYTHONPATH
        import torch

        torch.set_num_threads(1)
        sitecustomize.watch(str(logs))
        if "UNCHANGED_FSDP" in os.environ:
            sitecustomize.fsdp_on_cpu()
        sys.argv = ["dataflex", *step["arguments"]]
        runpy.run_module("dataflex", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def ranks_of(step: dict[str, Any], folder: Path, logs: Path) -> list[int]:
    """Exit status of each rank; once one has failed the others are ended."""
    port, processes = str(free_port()), {}
    world = {"WORLD_SIZE": str(step["ranks"]), "LOCAL_WORLD_SIZE": str(step["ranks"])}
    for rank in range(step["ranks"]):
        env = dict(step["env"])
        if step["ranks"] > 1:
            env |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **world,
            }
        process = os.fork()
        if process == 0:
            rank_of(step, folder, logs, env)
        processes[process] = rank
    status, deadline = [-1] * step["ranks"], time.monotonic() + _LIMIT
    while processes:
        done, how = os.waitpid(-1, os.WNOHANG)
        if done in processes:
            code = os.waitstatus_to_exitcode(how)
            status[processes.pop(done)] = code
            if code:
                deadline = min(deadline, time.monotonic() + _PATIENCE)
        elif time.monotonic() > deadline:
            for process in processes:
                os.kill(process, signal.SIGKILL)
            deadline = float("inf")
        else:
            time.sleep(0.02)
    return status


def carry_out(run: dict[str, Any], places: dict[str, str]) -> None:
    """All steps of a run, and its record."""
    import collect

    folder, begun = Path(run["folder"]), time.monotonic()
    status = []
    for number, step in enumerate(run["steps"]):
        status.append(ranks_of(step, folder, folder / f"step-{number}"))
        if any(status[-1]):
            break
    names = {str(folder): "<run>", **places}
    record = collect.record(folder, [step["out"] for step in run["steps"]], names)
    record |= {"status": status, "seconds": round(time.monotonic() - begun, 1)}
    part = folder / "record.part"
    part.write_text(json.dumps(record))
    part.rename(folder / "record.json")
    good = not any(any(s) for s in status)
    print(f"{folder.name}: {'done' if good else f'status {status}'} in {record['seconds']} s", flush=True)


def main(file: Path) -> None:
    jobs = json.loads(file.read_text())
    sys.path.append(str(Path(__file__).parent))
    warm_up()
    under_way, waiting = set[int](), list(jobs["runs"])
    while waiting or under_way:
        if waiting and len(under_way) < jobs["at once"]:
            run = waiting.pop(0)
            process = os.fork()
            if process == 0:
                try:
                    carry_out(run, jobs["places"])
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            under_way.add(process)
        else:
            under_way.discard(os.waitpid(-1, 0)[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
