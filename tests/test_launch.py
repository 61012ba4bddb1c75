"""Refusals and faults, stops, and what the processes of a command leave open: through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import environment
from harness import start, train

from dataflex.base.launching import torchrun
from dataflex.base.processes import progress, stopping
from dataflex.base.refusals import ours, refusals, refusing, theirs
from dataflex.config.schema import RunConfig
from dataflex.errors import ConfigError, DataflexError

Config = dict[str, Any]
SELECT = {"name": "loss", "warmup": 2, "interval": 4}
TWO = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
SAVING = {"save_strategy": "steps", "save_steps": 5, "max_steps": 100_000, "save_total_limit": 2}


# -- refusals and faults ---------------------------------------------------------------------------------------------


def fail(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError])
def test_what_may_refuse_refuses_in_one_line(kind: type[Exception]) -> None:
    with pytest.raises(ConfigError, match=r"^one two$") as caught:
        refusing(fail)(kind("one\n two"))
    assert isinstance(caught.value.__cause__, kind)
    said = ConfigError("said well")
    with pytest.raises(ConfigError) as same, refusals():
        raise said
    assert same.value is said


def test_a_fault_of_ours_inside_a_call_of_theirs_stays_a_fault() -> None:
    """Whose a function is, the innermost mark says."""
    with pytest.raises(ValueError, match="a fault"), refusals():
        theirs(ours(fail))(ValueError("a fault"))
    with pytest.raises(ConfigError, match="refused"), refusals():
        ours(theirs(fail))(ValueError("refused"))


def test_a_full_disk_is_no_wrong_configuration() -> None:
    with pytest.raises(DataflexError) as caught, refusals():
        raise OSError(28, "No space left on device")
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("where", ["data", "checkpoint"])
def test_a_fault_in_our_own_loading_keeps_its_traceback(base: Config, tmp_path: Path, where: str) -> None:
    """Also where it comes from a function of ours that has a name of theirs, or that they call."""
    run = train({**base, "dataflex": {"select": SELECT}}, tmp_path / "run", hooks=[f"fault_in:{where}"])
    assert run.status == [70]  # an exception that left `main`
    assert "Traceback" in run.log and "ValueError: a fault of the test's" in run.log
    assert "dataflex: error" not in run.log


@pytest.mark.parametrize("shown", ["0", "1"])
@pytest.mark.parametrize("block", [{}, {"dataflex": {"select": SELECT}}], ids=["plain", "select"])
def test_what_they_refuse_is_one_line_with_its_cause_on_demand(
    base: Config, tmp_path: Path, shown: str, block: Config
) -> None:
    config = {**base, **block, "val_size": 0.1, "eval_dataset": "code"}
    run = start(config, tmp_path / "run", hooks=["no_model"], DATAFLEX_TRACEBACK=shown).wait()
    assert run.status == [2]
    assert len([line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]) == 1
    assert ("Traceback" in run.log) is (shown == "1")
    assert ("ValueError: " in run.log) is (shown == "1")


# -- stops -----------------------------------------------------------------------------------------------------------


@contextmanager
def command(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command line as a shell starts it: in a process group of its own, SIGINT not ignored."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "dataflex", *arguments],
        env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    said: list[str] = []
    reading = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reading.start()
    process.said = said  # type: ignore[attr-defined]
    try:
        yield process
        reading.join(10)
    finally:
        for one in [*family(process), process]:
            one.kill()
        process.wait()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(there: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < end, "".join(process.said)[-3000:]  # type: ignore[attr-defined]
        time.sleep(0.05)


def lines(process: subprocess.Popen[str]) -> list[str]:
    return [line.rstrip() for line in process.said if "dataflex: " in line]  # type: ignore[attr-defined]


def written(config: Config, path: Path, **changes: Any) -> str:
    file = path / "config.yaml"
    file.write_text(yaml.safe_dump({**config, **changes, "output_dir": str(path / "run")}))
    return str(file)


def stopped_by(
    number: signal.Signals, process: subprocess.Popen[str], there: Callable[[], Any], *, group: bool
) -> list[str]:
    """Our lines about the end, once the process has ended with the right status, with no traceback and nobody left."""
    wait_for(there, process)
    others = family(process)
    (os.killpg if group else os.kill)(process.pid, number)
    process.wait(100)
    assert not psutil.wait_procs(others, timeout=10)[1]
    time.sleep(0.2)
    assert process.returncode == 128 + number
    text = "".join(process.said)  # type: ignore[attr-defined]
    assert "Traceback" not in text and "KeyboardInterrupt" not in text and "Exception ignored" not in text
    return [
        line
        for line in lines(process)
        if line.startswith(("dataflex: stopped", "dataflex: error", "dataflex: reference: "))
    ]


def newest(out: Path) -> int:
    return max(int(p.name.split("-")[1]) for p in out.glob("checkpoint-*") if (p / "dataflex" / "COMPLETE").is_file())


def stopped_at(line: str) -> tuple[int, int]:
    words = line.split()
    assert line == f"dataflex: stopped at step {words[4][:-1]}; the same command goes on from {words[-1]}"
    return int(words[4][:-1]), int(words[-1].split("-")[1])


@pytest.mark.parametrize(
    "number, ranks",
    [
        (signal.SIGINT, 1),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_says_where(base: Config, tmp_path: Path, number: signal.Signals, ranks: int) -> None:
    """In this process, with loader workers beside it, and under our torchrun, whose ranks are in sessions of their own."""
    out, env = tmp_path / "run", TWO if ranks == 2 else {}
    config = {**base, **SAVING, "dataloader_num_workers": 2 if ranks == 1 else 0, "dataflex": {"select": SELECT}}
    with command("train", written(config, tmp_path), **env) as process:
        (line,) = stopped_by(number, process, lambda: (out / "checkpoint-10/dataflex/COMPLETE").is_file(), group=True)
    step, checkpoint = stopped_at(line)
    assert step >= checkpoint == newest(out) >= 10 and step - checkpoint <= 10


def test_before_there_is_anything_to_go_on_from(base: Config, tmp_path: Path) -> None:
    """While modules are being imported."""
    with command("train", written({**base, "dataflex": {"select": SELECT}}, tmp_path)) as process:
        mapped = Path(f"/proc/{process.pid}/maps")
        (line,) = stopped_by(signal.SIGINT, process, lambda: "libtorch_cpu" in mapped.read_text(), group=True)
    assert line == "dataflex: stopped before the first step; the same command starts over: there is no checkpoint yet"


@pytest.mark.slow
def test_a_stopped_selection(base: Config, tmp_path: Path) -> None:
    block = {"select": {"name": "loss"}, "offline": {"budget": 10}}
    with command("select", written({**base, "dataflex": block}, tmp_path)) as process:
        mapped = Path(f"/proc/{process.pid}/maps")
        said = stopped_by(signal.SIGINT, process, lambda: "libtorch_cpu" in mapped.read_text(), group=True)
    assert said == ["dataflex: " + progress.SELECTION]


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False], ids=["from a terminal", "of the parent alone"])
def test_a_stopped_doremi(base: Config, tmp_path: Path, group: bool) -> None:
    out = tmp_path / "run"
    config = {**{k: v for k, v in base.items() if k != "max_steps"}, **SAVING}
    del config["max_steps"]
    config["dataflex"] = {"total_steps": 100_000}
    with command("doremi", written(config, tmp_path)) as process:
        mark = out / "reference" / "checkpoint-10" / "dataflex" / "COMPLETE"
        begun, *said = stopped_by(signal.SIGTERM, process, mark.is_file, group=group)
    assert begun == f"dataflex: reference: {out / 'reference.yaml'}" and len(said) == 1, said
    assert stopped_at(said[0])[1] == newest(out / "reference")


@pytest.mark.parametrize(
    "keys, made, said",
    [
        ({}, (), "the same command starts over: there is no checkpoint yet"),
        ({}, (5, 20, 100), "the same command goes on from checkpoint-100"),
        (
            {"overwrite_output_dir": True},
            (5,),
            "the same command starts over; without overwrite_output_dir it goes on from checkpoint-5",
        ),
        ({"resume_from_checkpoint": "old/checkpoint-3"}, (5,), "the same command goes on from old/checkpoint-3"),
        ({"resume_from_checkpoint": True}, (5,), "the same command goes on from checkpoint-5"),
        (
            {"stage": "rm"},
            (5,),
            "a reward model cannot be gone on with (LLaMA-Factory); start over with overwrite_output_dir",
        ),
    ],
)
def test_what_the_same_command_does_next(tmp_path: Path, keys: Config, made: Sequence[int], said: str) -> None:
    """A checkpoint counts once it has its mark; without a block, once it has what the Trainer writes last."""
    for step in made:
        mark = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        mark.parent.mkdir()
        mark.write_text("{}")
    progress.reach(7)
    plain = RunConfig(dataflex=None, llamafactory={"output_dir": str(tmp_path), **keys}, notices=())
    assert progress.of_training(plain) == f"stopped at step 7; {said}"


def test_a_library_that_takes_the_signal_for_its_own(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """The line and the status come, whatever exception the signal has become on its way."""

    def run() -> int:
        stopping.on_stop(lambda: "stopped somewhere")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("a worker has ended") from None
        return 0

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert stopping.stoppable(run) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "dataflex: stopped somewhere\n"


# -- the working directory -------------------------------------------------------------------------------------------


PLANTED = "import pathlib\npathlib.Path(__file__).with_name('RUN').write_text('run')\nraise SystemExit('planted')\n"


@pytest.fixture
def mined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose files have names of modules that every command imports, and a component."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    for name in ("xxhash", "yaml", "numpy", "torch", "llamafactory"):
        (folder / f"{name}.py").write_text(PLANTED)
    own = "from dataflex.components.selectors.random import RandomSelector\n\n\nclass Mine(RandomSelector):\n    pass\n"
    (folder / "mine.py").write_text(own)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["env"], ["demo", "OUT", "--steps", "12", "--discard"]], ids=["env", "demo"])
def test_files_in_the_working_directory_are_not_run(mined: Path, tmp_path: Path, arguments: list[str]) -> None:
    with command(*(a.replace("OUT", str(tmp_path / "demo")) for a in arguments)) as process:
        process.wait(300)
    assert process.returncode == 0 and not (mined / "RUN").exists()


def listening(process: subprocess.Popen[str]) -> set[str]:
    """Addresses on which the process, or one that it has started, takes connections."""
    found: set[str] = set()
    for one in [psutil.Process(process.pid), *family(process)]:
        try:
            found |= {c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_ranks_on_one_machine_are_alone(mined: Path, base: Config, tmp_path: Path) -> None:
    """Under torchrun nothing listens to the network, no file of the working directory stands in for a module, a component there
    is found all the same, and ranks do not outlive their launcher."""
    config = {
        **base,
        **SAVING,
        "per_device_train_batch_size": 2,
        "dataflex": {"select": {"name": "mine:Mine", "interval": 4}},
    }
    out, heard = tmp_path / "run", set()
    with command("train", written(config, tmp_path), **TWO) as process:

        def saved() -> bool:
            heard.update(listening(process))
            return (out / "checkpoint-5/dataflex/COMPLETE").is_file()

        wait_for(saved, process)
        ranks = family(process)
        assert len(ranks) >= 2
        process.kill()
        assert not psutil.wait_procs(ranks, timeout=10)[1]
    assert heard and heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not (mined / "RUN").exists()


def test_the_store_of_one_machine_listens_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a free port, or the one asked for; other interfaces are left to gloo and NCCL only where they are named."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    for name in ("MASTER_PORT", "RDZV_ID", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is put back, or away
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    before = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
    address, port, options = torchrun._rendezvous("1")
    backend = options[options.index("--rdzv-backend") + 1]
    handler = get_rendezvous_handler(RendezvousParameters(backend, f"{address}:{port}", "run", 1, 1))
    info = handler.next_rendezvous()
    info.store.set("said", "once")
    assert handler.next_rendezvous().store.get("said") == b"once"  # ranks that are started anew meet in the same store
    assert (info.rank, info.world_size) == (0, 1) and handler.use_agent_store
    assert (info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port) == ("127.0.0.1", int(port))
    listening = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening - before == {("127.0.0.1", int(port))}
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo"


def test_a_port_that_is_taken_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(ConfigError, match=f"^MASTER_PORT: {port} cannot be listened on"):
            torchrun._rendezvous("1")


@pytest.mark.slow
def test_a_doremi_child_dies_with_its_parent(mined: Path, base: Config, tmp_path: Path) -> None:
    """And so do the ranks that the child has started."""
    config = {k: v for k, v in base.items() if k != "max_steps"}
    config |= {"save_strategy": "steps", "save_steps": 5, "dataflex": {"total_steps": 100_000}}
    with command("doremi", written(config, tmp_path), **TWO) as process:
        wait_for((tmp_path / "run/reference/checkpoint-5/dataflex/COMPLETE").is_file, process)
        started = family(process)
        assert len(started) >= 3
        process.kill()
        assert not psutil.wait_procs(started, timeout=10)[1]
    assert not (mined / "RUN").exists()


@pytest.mark.parametrize(
    "keys, whole, said",
    [
        ({}, (), "no run goes on from checkpoints saved with save_only_model; start over with overwrite_output_dir"),
        ({"overwrite_output_dir": True}, (), "the same command starts over"),
        ({}, (3,), "the same command goes on from checkpoint-3"),
    ],
)
def test_no_run_goes_on_from_a_model_alone(tmp_path: Path, keys: Config, whole: Sequence[int], said: str) -> None:
    for step in (3, 20, 100):
        folder = tmp_path / f"checkpoint-{step}" / "dataflex"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()
        (folder / "state.json").write_text(json.dumps({"model_only": step not in whole}))
    progress.reach(7)
    block: Any = object()
    run = RunConfig(dataflex=block, llamafactory={"output_dir": str(tmp_path), **keys}, notices=())
    assert progress.of_training(run) == f"stopped at step 7; {said}"
