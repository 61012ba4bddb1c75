"""A run goes on with other ranks, rows per device or accumulation: exactly, as long as the global batch is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import assert_close
from engines import under
from harness import Result, tiny_run
from selecting import AIMED, table

Config = dict[str, Any]

# ranks, rows per device, accumulation: eight rows a step.
FIRST = (2, 2, 2)
SHAPES = [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 1, 4), (4, 2, 1)]
QUICK = [(1, 8, 1), (4, 2, 1)]
BLOCK: Config = {
    "select": {"name": "less", "warmup": 2, "interval": 3},
    "mix": {"name": "odm", "warmup": 1, "interval": 2},
    # Over the whole step, whatever it is divided into; with `running`, accumulation is part of what is asked for.
    "weight": {"name": "loss", "strategy": "extremes", "scope": "global"},
}


@pytest.fixture(scope="module")
def shaped(ground: Path) -> Callable[..., Config]:
    """Nine steps, a checkpoint every fourth; no dropout, whose masks belong to a rank."""

    def of(per_device: int, accumulation: int) -> Config:
        return {
            **tiny_run(ground), **AIMED,
            "model_name_or_path": str(ground / "still"), "max_steps": 9, "save_strategy": "steps", "save_steps": 4,
            "per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation, "dataflex": BLOCK,
        }  # fmt: skip

    return of


@pytest.fixture(scope="module")
def begun(shaped: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The run that stays as it was, under an engine; its checkpoint of step 4 is what others go on from."""
    folder, done = tmp_path_factory.mktemp("begun"), dict[str, Result]()

    def of(engine: str) -> Result:
        if engine not in done:
            done[engine] = under(engine, shaped(*FIRST[1:]), folder / engine).wait().ok
        return done[engine]

    return of


def go_on(whole: Result, out: Path, config: Config, engine: str, ranks: int, **keys: Any) -> Result:
    """From the checkpoint of step 4, elsewhere."""
    shutil.copytree(whole.out / "checkpoint-4", out / "checkpoint-4")
    return under(engine, {**config, **keys}, out, ranks=ranks).wait()


def assert_same(found: Result, whole: Result) -> None:
    """Ids and choices to the letter; losses, scores and proportions up to the order of additions."""
    assert found.ok.ids() == {s: i for s, i in whole.ids().items() if s >= 4}
    a, b = table(found, 5), table(whole, 5)
    assert (a["selected"] == b["selected"]).all() and abs(a["score"] - b["score"]).max() <= 2e-5
    for one, other in zip(found.ledger(), whole.ledger(), strict=True):
        for line in (one, other):
            line.get("stage", {}).pop("carry", None)
        assert_close(one, other, 1e-4, f"ledger at step {other['step']}")
    assert len(whole.trace()) == 9
    for step, (loss, norm) in whole.trace().items():
        assert found.trace()[step][0] == pytest.approx(loss, rel=1e-5), f"loss at step {step}"
        assert found.trace()[step][1] == pytest.approx(norm, rel=1e-4), f"gradient norm at step {step}"


@pytest.mark.parametrize("shape", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in SHAPES])
def test_it_goes_on_exactly(
    shaped: Callable[..., Config], begun: Callable[[str], Result], tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    ranks, per_device, accumulation = shape
    found = go_on(begun("ddp"), tmp_path / "run", shaped(per_device, accumulation), "ddp", ranks)
    assert_same(found, begun("ddp"))
    assert "global batch" not in found.log


@pytest.mark.parametrize(
    "shape",
    [pytest.param((2, 4, 1), marks=pytest.mark.slow), (1, 4, 2), pytest.param((4, 2, 1), marks=pytest.mark.slow)],
)
def test_fsdp_2_goes_on_exactly(
    shaped: Callable[..., Config], begun: Callable[[str], Result], tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    """Its checkpoints hold whole parameters and moments."""
    ranks, per_device, accumulation = shape
    assert_same(
        go_on(begun("fsdp2"), tmp_path / "run", shaped(per_device, accumulation), "fsdp2", ranks), begun("fsdp2")
    )


def test_another_global_batch_is_stated(
    shaped: Callable[..., Config], begun: Callable[[str], Result], tmp_path: Path
) -> None:
    """Half of it on one rank: the order of rows goes on where it was, and the line says so."""
    whole = begun("ddp")
    found = go_on(whole, tmp_path / "run", shaped(4, 1), "ddp", 1).ok
    assert "the global batch was 8 rows up to step 4 and is 4 from here on" in found.log
    assert "the order of rows goes on from row 32" in found.log
    assert found.ids()[4] == whole.ids()[4][:4]  # select is due before step 5
    assert [r["position"] for r in found.ledger() if r["step"] == 5] == [36, 36]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "ranks", "said"),
    [
        (
            "zero3",
            1,
            "it was saved by 2 ranks and there are 1 now; DeepSpeed can go on with others once ds_to_universal",
        ),
        ("fsdp2", 2, "it was saved under ZeRO-3 and this run is under FSDP 2"),
    ],
)
def test_what_an_engine_cannot_load_is_refused(
    shaped: Callable[..., Config], begun: Callable[[str], Result], tmp_path: Path, engine: str, ranks: int, said: str
) -> None:
    found = go_on(begun("zero3"), tmp_path / "run", shaped(4 // ranks, 2), engine, ranks)
    assert found.status == [2] * ranks and "Traceback" not in found.log
    assert f"dataflex: error: cannot resume from {tmp_path / 'run' / 'checkpoint-4'}: {said}" in found.log
