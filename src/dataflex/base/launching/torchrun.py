"""Starts the ranks of a command under torchrun, and says in one line how they ended."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex import notices
from dataflex.base.launching import failures
from dataflex.base.processes import children, progress, stopping
from dataflex.errors import ConfigError, DataflexError
from dataflex.talking.screen import clear_line

_ERROR_FILE = "DATAFLEX_ERROR_FILE"
_LOOPBACK = "127.0.0.1"
# Seconds after which torchrun kills a rank that it has asked to end (30), less a few.
_KILLED_AFTER = 25


def torchrun(command: str, arguments: Sequence[str], devices: int) -> int:
    """Exit status of `<command> <arguments>` on as many ranks as the environment asks for, else one per device."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    env = os.environ
    nodes = _nodes()
    address, port, options = _rendezvous(nodes)
    options += ["--nproc-per-node", env.get("NPROC_PER_NODE", str(max(devices, 1))), "--no-python"]
    if enabled("OPTIM_TORCH", "1"):
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        env.setdefault("TORCH_NCCL_AVOID_RECORD_STREAMS", "1")
    # A worker's own line says what went wrong; torchrun's account of how the other workers were stopped adds nothing.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="dataflex-") as scratch:
        errors, step = Path(scratch) / "errors", Path(scratch) / "step"
        errors.mkdir()
        for_ranks = {
            _ERROR_FILE: str(errors / "error"),
            progress.STEP_FILE: str(step),
            **children.parent_is(os.getpid()),
        }
        env.update(for_ranks)
        watched = nodes != "1" and env.get("MAX_RESTARTS", "0") == "0"
        others = int(nodes.split(":")[0]) - 1
        try:
            run(parse_args([*options, *children.python("-u", "-m", "dataflex", command, *arguments)]))
            return 0
        except SignalException as stop:
            clear_line(sys.stderr)
            progress.take(step)
            if watched:
                env.update(MASTER_ADDR=address, MASTER_PORT=port)
                failures.report_failure(
                    f"on {socket.gethostname()}, stopped by {stop.sigval.name}", 1, listeners=others
                )
            stopping.stop(stop.sigval)
            raise
        except ChildFailedError as error:
            clear_line(sys.stderr)
            reports = sorted(errors.iterdir())
            line = exit_line(error.failures, {int(file.suffix[2:]) for file in reports if "~" in file.name})
            if reports and ("~" not in reports[0].name or line is None):
                status, line = reports[0].read_text(encoding="utf-8").split("\n", 1)
                notices.error(line.strip())
                if watched:
                    failures.wait_for_readers()
                return int(status)
            env.update(MASTER_ADDR=address, MASTER_PORT=port)
            if watched and (failure := failures.reported_failure()) is not None:
                notices.error(failure[0])
                return failure[1]
            notices.error(str(line))
            if watched:
                failures.report_failure(f"on {socket.gethostname()}, {line}", 1, listeners=others)
            return 1
        except (RendezvousError, DistError) as error:
            raise DataflexError(
                f"the {nodes} nodes did not meet at {address}:{port}, or one of them has ended:"
                f" {notices.first_line(error)}"
            ) from error
        finally:
            for name in for_ranks:
                env.pop(name, None)


def launched_by_us() -> bool:
    """Whether this rank was started by `torchrun` of this module."""
    return _ERROR_FILE in os.environ


def report_to_launcher(line: str, status: int, *, cause: bool) -> bool:
    """Leave a rank's line for the launcher, which prints that of the lowest rank that had one; False if there is no launcher of
    ours. cause: whether it may be what ended the run."""
    target = os.getenv(_ERROR_FILE)
    if target is None:
        return False
    last = "" if cause else "~"
    Path(f"{target}.{last}{int(os.environ['RANK']):06d}").write_text(f"{status}\n{line}\n", encoding="utf-8")
    return True


def _nodes() -> str:
    env = os.environ
    nodes = env.get("NNODES", "1")
    if env.get("RDZV_ID") and "MIN_NNODES" in env and "MAX_NNODES" in env:
        nodes = f"{env['MIN_NNODES']}:{env['MAX_NNODES']}"
    if not all(part.isdigit() and int(part) > 0 for part in nodes.split(":")):
        raise ConfigError(f"NNODES must be a number of nodes, got {nodes!r}")
    if nodes != "1" and not env.get("MASTER_PORT"):
        raise ConfigError(
            f"MASTER_PORT: {nodes} nodes (NNODES) need MASTER_ADDR and MASTER_PORT to meet at, the same on each"
        )
    return nodes


def _rendezvous(nodes: str) -> tuple[str, str, list[str]]:
    """Address and port at which the ranks meet, and torchrun's options for it. On one node nothing listens to the network."""
    env = os.environ
    options = ["--nnodes", nodes]
    if rendezvous := env.get("RDZV_ID"):
        options += ["--rdzv-id", rendezvous, "--max-restarts", env.get("MAX_RESTARTS", "0")]
    if nodes == "1":
        backend, port = _rendezvous_on_loopback(env.get("MASTER_PORT") or "0")
        _collectives_on_loopback()
        return _LOOPBACK, port, [*options, "--rdzv-backend", backend, "--rdzv-endpoint", f"{_LOOPBACK}:{port}"]
    address, port = env.get("MASTER_ADDR", _LOOPBACK), env["MASTER_PORT"]
    if rendezvous:
        return address, port, [*options, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}"]
    options += ["--node-rank", env.get("NODE_RANK", "0"), "--master-addr", address, "--master-port", port]
    return address, port, options


def _rendezvous_on_loopback(asked: str) -> tuple[str, str]:
    """A rendezvous of torchrun's whose store listens on the loopback interface alone; torch's own listen on all of them. Returns
    the name it is registered under, and its port: the one asked for, or a free one for 0."""
    from torch.distributed import TCPStore
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    try:
        listener = socket.create_server((_LOOPBACK, int(asked)), backlog=1024)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"MASTER_PORT: {asked} cannot be listened on ({error})") from error
    port = int(listener.getsockname()[1])
    backend = f"dataflex-loopback-{port}"

    class Loopback(StaticTCPRendezvous):
        def __init__(self, parameters: Any) -> None:
            super().__init__(_LOOPBACK, port, 0, 1, parameters.run_id, parameters.get_as_int("timeout", 600))
            self._store = TCPStore(
                _LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
            )

        def get_backend(self) -> str:
            return backend

    rendezvous_handler_registry.register(backend, Loopback)
    return backend, str(port)


def _collectives_on_loopback() -> None:
    """Let gloo and NCCL, too, listen on the loopback interface, unless they are told otherwise."""
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def exit_line(ended: Mapping[int, Any], lost: Collection[int]) -> str | None:
    """How the rank ended that ended the others: the first that a signal has ended, or that ended by itself. None if all ranks
    are in `lost`: those that failed because they lost contact to another one."""
    first = min(end.timestamp for end in ended.values())
    for rank, end in sorted(ended.items()):
        by_torchrun = end.exitcode == -signal.SIGTERM or end.timestamp >= first + _KILLED_AFTER
        if end.exitcode < 0 and not by_torchrun:
            name = signal.Signals(-end.exitcode).name
            return f"rank {rank} was killed by {name}; the run can be resumed from its newest checkpoint"
    others = [(end.timestamp, rank, end.exitcode) for rank, end in ended.items() if rank not in lost]
    if not others:
        return None
    _, rank, status = min(others)
    return f"rank {rank} ended with exit status {status}"


def enabled(name: str, default: str = "0") -> bool:
    """Whether an environment variable is switched on, as LLaMA-Factory reads its own."""
    return os.getenv(name, default).lower() in ("true", "1", "y")
