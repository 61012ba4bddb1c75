"""Starts a command in this process or, on several devices, under torchrun, as LLaMA-Factory's environment asks."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dataflex.base import failures
from dataflex.base.arguments import load_checked
from dataflex.config import RunConfig, load, load_offline
from dataflex.config.doremi import load_doremi
from dataflex.errors import ConfigError, DataflexError

_ERROR_FILE = "DATAFLEX_ERROR_FILE"
# Seconds after which torchrun kills what has not ended when it was asked to, less some.
_LEFT_OVER = 25


class Bereft(DataflexError):
    """Another rank is no longer there."""


def launch(command: str, arguments: Sequence[str]) -> int:
    """Exit status of `<command> <arguments>`: 0, 2 for a configuration that cannot run, else 1."""
    stop = failures.watch(_end) if failures.several_nodes() else None
    try:
        with readable():
            return _launch(command, arguments)
    except DataflexError as error:
        return _give_up(error, stop)
    except Exception as error:
        if "LOCAL_RANK" not in os.environ:
            raise
        from dataflex.trainer.collectives import lost_contact

        if lost_contact(error):
            if stop is not None:
                failures.wait_for_word()
            return _give_up(Bereft(f"another rank is gone ({_in_short(error)})"), stop)
        if stop is None:
            raise
        _tell(f"failed: {_in_short(error)}", 1, stop)
        raise
    finally:
        if stop is not None:
            stop()


def _give_up(error: DataflexError, stop: Callable[[], None] | None) -> int:
    status = report(error)
    if stop is not None:
        _tell(str(error), status, stop)
    return status


def _tell(line: str, status: int, stop: Callable[[], None]) -> None:
    stop()  # or this process would hear itself
    failures.tell(f"{failures.place()}: {line}", status, hearers=int(os.environ["WORLD_SIZE"]) - 1)


def _end(error: DataflexError) -> None:
    """Another node has failed: this process waits for it, perhaps within a collective, and cannot be woken."""
    report(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_status)


def _in_short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _launch(command: str, arguments: Sequence[str]) -> int:
    if command == "select":
        config = load_checked(load_offline, arguments, needs_model=False)
        from dataflex.base.offline import needs_model, select

        assert config.dataflex is not None
        if needs_model(config.dataflex) and _wants_torchrun():
            return _torchrun(command, arguments)
        select(config)
        return 0
    if command == "doremi":
        from dataflex.base.doremi import doremi

        return doremi(load_checked(load_doremi, arguments))
    config = load_checked(load, arguments)
    on_ray = _wants_ray(config)
    if _wants_torchrun():
        return _torchrun(command, arguments)
    if on_ray:
        from dataflex.base.ray_workers import train_on_ray

        train_on_ray(config)
        return 0
    from dataflex.base.train import train

    train(config)
    return 0


@contextmanager
def readable() -> Iterator[None]:
    """What LLaMA-Factory refuses before a model is loaded becomes a ConfigError."""
    try:
        yield
    except DataflexError:
        raise
    except (ValueError, OSError, ImportError) as error:
        if not _before_model(error):
            raise
        raise ConfigError(" ".join(str(error).split())) from error


def report(error: DataflexError) -> int:
    """One line on stderr, from rank 0 alone; under torchrun the launcher prints it, from the files it asked for: rank 0's, or
    that of the lowest rank that had something to say."""
    line, rank = "\n".join(f"dataflex: error: {line}" for line in str(error).splitlines()), os.getenv("RANK", "0")
    if target := os.getenv(_ERROR_FILE):
        last = "~" if isinstance(error, Bereft) else ""  # it is not the cause
        Path(f"{target}.{last}{int(rank):06d}").write_text(f"{error.exit_status}\n{line}\n", encoding="utf-8")
    elif rank == "0":
        print(line, file=sys.stderr, flush=True)
    return error.exit_status


def say(lines: Sequence[str]) -> None:
    """Show lines once, from rank 0."""
    if os.getenv("RANK", "0") == "0":
        for line in lines:
            print(f"dataflex: {line}", file=sys.stderr, flush=True)


def _before_model(error: BaseException) -> bool:
    """Whether LLaMA-Factory refused the arguments (or a data set, or the template) before a model was loaded."""
    frame, names = error.__traceback__, set()
    while frame is not None:
        names.add(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    return bool(names & {"get_train_args", "get_dataset", "get_template_and_fix_tokenizer", "load_tokenizer"})


def _wants_ray(config: RunConfig) -> bool:
    """Whether we see to Ray; without our block LLaMA-Factory does. ConfigError if it cannot be used."""
    if not _enabled("USE_RAY"):
        return False
    if find_spec("ray") is None:
        raise ConfigError("USE_RAY: the package ray is not installed; it comes with the extra ray (dataflex[ray])")
    if config.dataflex is not None and (_enabled("FORCE_TORCHRUN") or "LOCAL_RANK" in os.environ):
        raise ConfigError("USE_RAY starts the ranks by Ray and FORCE_TORCHRUN by torchrun; leave one of them out")
    return config.dataflex is not None


def _wants_torchrun() -> bool:
    if "LOCAL_RANK" in os.environ:  # already a rank
        return False
    if _enabled("FORCE_TORCHRUN") or _enabled("USE_MCA"):
        return True
    if _enabled("USE_RAY") or _enabled("USE_KT"):
        return False
    return _devices() > 1


def _torchrun(command: str, arguments: Sequence[str]) -> int:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    env = os.environ
    nodes = env.get("NNODES", "1")
    if env.get("RDZV_ID") and "MIN_NNODES" in env and "MAX_NNODES" in env:
        nodes = f"{env['MIN_NNODES']}:{env['MAX_NNODES']}"
    if nodes != "1" and not env.get("MASTER_PORT"):
        raise ConfigError(
            f"MASTER_PORT: {nodes} nodes (NNODES) need MASTER_ADDR and MASTER_PORT to meet at, the same on each"
        )
    options = ["--nproc-per-node", env.get("NPROC_PER_NODE", str(max(_devices(), 1)))]
    address, port = env.get("MASTER_ADDR", "127.0.0.1"), env.get("MASTER_PORT") or str(_free_port())
    if rendezvous := env.get("RDZV_ID"):
        options += ["--nnodes", nodes, "--rdzv-id", rendezvous, "--rdzv-backend", "c10d"]
        options += ["--rdzv-endpoint", f"{address}:{port}", "--max-restarts", env.get("MAX_RESTARTS", "0")]
    else:
        options += ["--nnodes", nodes, "--node-rank", env.get("NODE_RANK", "0")]
        options += ["--master-addr", address, "--master-port", port]
    if _enabled("OPTIM_TORCH", "1"):
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        env.setdefault("TORCH_NCCL_AVOID_RECORD_STREAMS", "1")
    # A worker's own line says what went wrong; torchrun's account of how the other workers were stopped adds nothing.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="dataflex-") as scratch:
        error_file = Path(scratch) / "error"
        env[_ERROR_FILE] = str(error_file)
        try:
            run(parse_args([*options, "-m", "dataflex", command, *arguments]))
            return 0
        except ChildFailedError as error:
            watched = nodes != "1" and env.get("MAX_RESTARTS", "0") == "0"
            said = sorted(Path(scratch).iterdir())
            line = fate(error.failures, {int(file.suffix[2:]) for file in said if "~" in file.name})
            if said and ("~" not in said[0].name or line is None):
                status, line = said[0].read_text(encoding="utf-8").split("\n", 1)
                print(line.strip(), file=sys.stderr, flush=True)
                if watched:
                    failures.linger()
                return int(status)
            env.update(MASTER_ADDR=address, MASTER_PORT=port)
            if watched and (word := failures.heard()) is not None:
                print(f"dataflex: error: {word[0]}", file=sys.stderr, flush=True)
                return word[1]
            print(f"dataflex: error: {line}", file=sys.stderr, flush=True)
            if watched:
                failures.tell(f"on {socket.gethostname()}, {line}", 1, hearers=int(nodes.split(":")[0]) - 1)
            return 1
        except (RendezvousError, DistError) as error:
            raise DataflexError(
                f"the {nodes} nodes did not meet at {address}:{port}, or one of them has ended: {_in_short(error)}"
            ) from None
        finally:
            del env[_ERROR_FILE]


def fate(ended: Mapping[int, Any], bereft: Collection[int]) -> str | None:
    """What to say of the rank that ended the others: the first that a signal has ended, or that ended by itself. bereft: ranks
    that have failed for want of another one; None if there are no others."""
    first = min(how.timestamp for how in ended.values())
    for rank, how in sorted(ended.items()):
        left_over = how.exitcode == -signal.SIGTERM or how.timestamp >= first + _LEFT_OVER  # ended by torchrun itself
        if how.exitcode < 0 and not left_over:
            name = signal.Signals(-how.exitcode).name
            return f"rank {rank} was killed by {name}; the run can be resumed from its newest checkpoint"
    others = [(how.timestamp, rank, how.exitcode) for rank, how in ended.items() if rank not in bereft]
    if not others:
        return None
    _, rank, status = min(others)
    return f"rank {rank} ended with exit status {status}"


def _devices() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _enabled(name: str, default: str = "0") -> bool:
    return os.getenv(name, default).lower() in ("true", "1", "y")
