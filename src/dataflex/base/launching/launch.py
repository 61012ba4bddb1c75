"""Starts a command in this process or, on several devices, under torchrun, as LLaMA-Factory's environment asks."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from dataflex import notices
from dataflex.base.checks.arguments import load_checked
from dataflex.base.launching import failures
from dataflex.base.launching.torchrun import enabled, launched_by_us, report_to_launcher, torchrun
from dataflex.base.processes import progress
from dataflex.base.processes.stopping import on_stop
from dataflex.config import SET_BY_EVALUATE, SET_BY_SELECT, RunConfig, load, load_evaluate, load_offline
from dataflex.config.doremi import load_doremi
from dataflex.config.evaluate import BLOCK
from dataflex.config.refusals import loaded as refused
from dataflex.errors import ConfigError, DataflexError
from dataflex.locking import release_all
from dataflex.talking import run_log

_SHOW_CAUSE = "DATAFLEX_TRACEBACK"


class RankLost(DataflexError):
    """Another rank is no longer there."""


def launch(command: str, arguments: Sequence[str]) -> int:
    """Exit status of `<command> <arguments>`: 0, 2 for a configuration that cannot run, else 1."""
    status = _launched(command, arguments)
    if status not in (0, 2) and "LOCAL_RANK" not in os.environ:
        run_log.say_where_more_is()
    return status


def _launched(command: str, arguments: Sequence[str]) -> int:
    stop = failures.watch(_end_process) if failures.several_nodes() else None
    try:
        return _launch(command, arguments)
    except DataflexError as error:
        return _report_and_tell_nodes(error, stop)
    except Exception as error:
        if "LOCAL_RANK" not in os.environ:
            run_log.say_after_traceback()
            raise
        from dataflex.distributed.collectives import lost_contact

        if lost_contact(error):
            if stop is not None:
                failures.wait_for_report()
            lost = RankLost(f"another rank is gone ({notices.first_line(error)})")
            lost.__cause__ = error
            return _report_and_tell_nodes(lost, stop)
        if stop is None:
            raise
        _tell_nodes(f"failed: {notices.first_line(error)}", 1, stop)
        raise
    finally:
        if stop is not None:
            stop()


def _report_and_tell_nodes(error: DataflexError, stop: Callable[[], None] | None) -> int:
    status = report(error)
    if stop is not None:
        _tell_nodes(str(error), status, stop)
    return status


def _tell_nodes(line: str, status: int, stop: Callable[[], None]) -> None:
    stop()  # or this process would read its own report
    failures.report_failure(f"{notices.rank_label()}: {line}", status, listeners=int(os.environ["WORLD_SIZE"]) - 1)


def _end_process(error: DataflexError) -> None:
    """Another node has failed: this process waits for it, perhaps within a collective, and cannot be woken."""
    report(error)
    release_all()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_status)


def _launch(command: str, arguments: Sequence[str]) -> int:
    if command == "doremi":
        from dataflex.base.commands.doremi import doremi

        steps = load_checked(load_doremi, arguments)
        on_stop(lambda: "stopped; the same command goes on")
        return doremi(steps)
    if command == "select":
        config = load_checked(load_offline, arguments, needs_model=False, idle=SET_BY_SELECT)
        on_stop(lambda: progress.SELECTION)
        from dataflex.base.commands.select import needs_model, select

        assert config.dataflex is not None
        run_log.watch(Path(str(config.llamafactory["output_dir"])))
        if needs_model(config.dataflex) and _wants_torchrun():
            return torchrun(command, arguments, _devices())
        select(config)
        return 0
    if command == "evaluate":
        config = load_checked(load_evaluate, arguments, idle=(*SET_BY_EVALUATE, "evaluate"))
        on_stop(lambda: progress.EVALUATION)
        from dataflex.base.commands.evaluate import evaluate

        run_log.watch(Path(str(config.llamafactory["output_dir"])))
        if _wants_torchrun():
            return torchrun(command, arguments, _devices())
        evaluate(config)
        return 0
    config = load_checked(load, arguments)
    status = _train(config, command, arguments)
    if status or config.evaluate is None:
        return status
    if "LOCAL_RANK" in os.environ:  # the launcher of the ranks evaluates, if it is ours
        if not launched_by_us():
            notices.say(f"{BLOCK}: the ranks were not started by dataflex-cli; dataflex-cli evaluate judges the model")
        return 0
    from dataflex.base.evaluation.final import evaluate_final

    on_stop(lambda: progress.EVALUATION)
    return evaluate_final(config)


def _train(config: RunConfig, command: str, arguments: Sequence[str]) -> int:
    on_stop(lambda: progress.of_training(config))
    on_ray = _wants_ray(config)
    run_log.watch(Path(str(config.llamafactory.get("output_dir"))))
    if _wants_torchrun():
        return torchrun(command, arguments, _devices())
    if on_ray:
        from dataflex.base.launching.ray_workers import train_on_ray

        train_on_ray(config)
        return 0
    from dataflex.base.commands.train import train

    train(config)
    return 0


def report(error: DataflexError) -> int:
    """One line for every mistake on stderr, from rank 0 alone, or by way of the launcher. What it comes from is shown where it
    is asked for."""
    if enabled(_SHOW_CAUSE) or notices.verbose():
        sys.stderr.write(_full_traceback(error))
    reported = report_to_launcher(str(error), error.exit_status, cause=not isinstance(error, RankLost))
    if not reported and os.getenv("RANK", "0") == "0":
        notices.error(str(error))
    return error.exit_status


def _full_traceback(error: BaseException) -> str:
    """The traceback, with the errors that this one comes from, also where they are not shown by default."""
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = link.__cause__ is not None
        link = link.__cause__ or link.__context__
    return "".join(traceback.format_exception(error))


def _wants_ray(config: RunConfig) -> bool:
    """Whether we see to Ray; without our block LLaMA-Factory does. ConfigError if it cannot be used."""
    if not enabled("USE_RAY"):
        return False
    if find_spec("ray") is None:
        raise ConfigError("USE_RAY: the package ray is not installed; it comes with the extra ray (dataflex[ray])")
    if config.dataflex is not None and (enabled("FORCE_TORCHRUN") or "LOCAL_RANK" in os.environ):
        raise refused.RAY_AND_TORCHRUN.error()
    return config.dataflex is not None


def _wants_torchrun() -> bool:
    if "LOCAL_RANK" in os.environ:  # already a rank
        return False
    if enabled("FORCE_TORCHRUN") or enabled("USE_MCA"):
        return True
    if enabled("USE_RAY") or enabled("USE_KT"):
        return False
    return _devices() > 1


def _devices() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
