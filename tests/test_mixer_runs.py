"""Mixers by name, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comparing import kill_and_resume
from harness import start, train, train_all
from models_and_data import EXPERTS

from dataflex.deciding.mixing import check_older
from dataflex.errors import ConfigError, DataflexError
from dataflex.signals.batching import ScoringRows
from dataflex.signals.routing import expert_counts

Config = dict[str, Any]
DOGE = {"mix": {"name": "doge", "warmup": 1, "interval": 3, "rows_per_domain": 5, "mu": 1e-4}}


def rows_of(lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 250, n).tolist() for n in lengths]


def scoring_rows(rows: list[list[int]], side: str) -> ScoringRows:
    def collate(some: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, some))
        gaps = [[0] * (longest - len(r)) for r in some]
        ids = [r + g if side == "right" else g + r for r, g in zip(some, gaps)]
        real = [[1] * len(r) + g if side == "right" else g + [1] * len(r) for r, g in zip(some, gaps)]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(real)}

    return ScoringRows(
        rows=rows, ids=np.arange(len(rows)), lengths=np.array([len(r) for r in rows]), batch_tokens=40, collate=collate,
        prepare=lambda batch: batch, device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_counts_are_those_of_the_router(experts: dict[str, Path], family: str, side: str) -> None:
    """Of every row alone, from what comes out of the router's weights; padding on either side counts for nothing."""
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(experts[family]).eval(), rows_of([3, 9, 17, 8, 12])
    for layer in (0, -1):
        found = expert_counts(model, scoring_rows(rows, side), layer)
        gate, seen = model.model.layers[layer].mlp.gate, []
        hook = gate.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))  # noqa: B023
        for row in rows:
            with torch.no_grad():
                model(input_ids=torch.tensor([row]))
        hook.remove()
        for i, hidden in enumerate(seen):
            chosen = (hidden @ gate.weight.T).topk(2, dim=-1).indices
            assert found[i].tolist() == torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        assert found.sum(axis=1).tolist() == [2.0 * len(r) for r in rows]
    with pytest.raises(DataflexError, match="layer 5 is asked for, and 2 layers have a router"):
        expert_counts(model, scoring_rows(rows, side), 5)


@pytest.mark.parametrize("kind", ["doge", "doge_online", "dynamic_moe"])
def test_kill_and_resume_is_exact(base: Config, experts: dict[str, Path], tmp_path: Path, kind: str) -> None:
    mix: Config = {
        "doge": DOGE,
        "doge_online": {"mix": {**DOGE["mix"], "online": True}},
        "dynamic_moe": {"mix": {"name": "dynamic_moe", "warmup": 1, "interval": 3, "eval_samples": 12}},
    }[kind]
    config = {**base, "dataflex": mix, "save_strategy": "steps", "save_steps": 3}
    if kind == "dynamic_moe":
        config["model_name_or_path"] = str(experts["mixtral"])
    whole, killed = train_all(
        start(config, tmp_path / "whole", hooks=["record_ids"]),
        start(config, tmp_path / "killed", hooks=["record_ids", "kill_after:8"]),
    )
    again = train(config, tmp_path / "killed", hooks=["record_ids"]).ok
    assert killed.status != [0]
    assert again.trace() == whole.ok.trace() and again.scalars() == whole.scalars() and again.ledger() == whole.ledger()
    decided = [r["decided"] for r in whole.ledger() if r["component"].startswith("mix:")]
    assert len({json.dumps(d) for d in decided}) == len(decided) == 4
    if kind == "doge":
        for d in decided:
            assert sum(d["loss_weights"].values()) == pytest.approx(1.0)
        found = json.loads((again.out / "dataflex" / "proportions.json").read_text())
        mean = np.mean([list(d["loss_weights"].values()) for d in decided], axis=0)
        np.testing.assert_allclose(list(found.values()), mean, rtol=1e-9)


SIZES = {"code": 60, "docs": 24, "arithmetic": 8}
HELD_OUT = {name: f"{name}_heldout" for name in SIZES}
GAP = {"name": "loss_gap", "warmup": 1, "interval": 3, "reference_losses": [6.0, 5.8, 5.0], "initial": "stratified"}
# A curve is fitted at updates 4, 7 and 10, which are steps; the run goes on from step 6.
ADO = {"name": "ado", "warmup": 1, "interval": 1, "fit_after": 4, "ignore": 1, "fit_every": 3, "initial": "stratified"}
RESUMED: dict[str, Config] = {
    "ado": ADO,
    "loss_gap": {**GAP, "eval_dataset": HELD_OUT},
    "loss_gap of training losses": {**GAP, "losses": "train"},
    "temperature": {"name": "temperature", "temperature": 2.0},
    "uniform": {"name": "uniform"},
    "proportional": {"name": "proportional"},
}
FIXED = {"temperature": np.sqrt([60, 24, 8]), "uniform": np.ones(3), "proportional": np.array([60, 24, 8])}


@pytest.fixture(scope="module")
def uneven(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset_dir whose domains differ in size: the smallest is served more than once in some of these runs."""
    folder = tmp_path_factory.mktemp("uneven")
    for file in (ground / "data").glob("*.json*"):
        lines = file.read_text().splitlines(keepends=True)
        (folder / file.name).write_text("".join(lines[: SIZES.get(file.stem)]))
    return folder


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in ("uniform", "proportional") else ()) for c in RESUMED]
)
def test_kill_and_resume_is_exact_with_domains_of_several_sizes(
    base: Config, uneven: Path, tmp_path: Path, case: str
) -> None:
    """Killed after step 8, between two updates of loss_gap; on from the checkpoint of step 6."""
    config = {**base, "dataset_dir": str(uneven), "save_strategy": "steps", "save_steps": 3}
    kill_and_resume({**config, "dataflex": {"mix": RESUMED[case]}}, tmp_path, "kill_after:8", 6)
    ledger = [json.loads(line) for line in (tmp_path / "whole" / "dataflex" / "ledger.jsonl").read_text().splitlines()]
    first, *decided = [list(r["decided"]["proportions"].values()) for r in ledger]
    wanted = FIXED.get(case, FIXED["proportional"])
    np.testing.assert_allclose(first, wanted / wanted.sum(), rtol=1e-9)
    if case in FIXED:
        assert not decided
    elif case == "ado":
        assert decided[:3] == [first] * 3 and len({tuple(d) for d in decided}) == len(decided) - 2 == 9
    else:
        assert [r["step"] for r in ledger[1:]] == [1, 4, 7, 10] and len({tuple(d) for d in decided}) == 4


@pytest.mark.parametrize("kind", ["doge", "dynamic_moe"])
def test_the_same_checkpoint_gives_the_same_decision_on_one_and_two_ranks(
    base: Config, ground: Path, experts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """From step 4 on, the decision at step 4 and what it leads to."""
    model = ground / "still" if kind == "doge" else experts["qwen2_moe"]
    mix: Config = (
        DOGE if kind == "doge" else {"mix": {"name": "dynamic_moe", "warmup": 1, "interval": 3, "eval_samples": 12}}
    )
    config = {**base, "model_name_or_path": str(model), "dataflex": mix, "max_steps": 6}
    first = train({**config, "save_strategy": "steps", "save_steps": 4}, tmp_path / "first").ok
    resumed = {**config, "resume_from_checkpoint": str(first.out / "checkpoint-4")}
    one, two = train_all(
        start(resumed, tmp_path / "one"),
        start({**resumed, "per_device_train_batch_size": 2}, tmp_path / "two", ranks=2),
    )
    key = "loss_weights" if kind == "doge" else "proportions"
    ledgers = [[r for r in run.ok.ledger() if r["step"] == 4][-1]["decided"][key] for run in (one, two)]
    np.testing.assert_allclose(list(ledgers[0].values()), list(ledgers[1].values()), rtol=1e-5)


def test_models_without_routers_are_refused(base: Config, tmp_path: Path) -> None:
    run = train({**base, "dataflex": {"mix": {"name": "dynamic_moe", "interval": 3}}}, tmp_path / "run")
    assert run.status == [2]
    assert "dataflex: error: dataflex.mix.name: dynamic_moe goes by the routers of a mixture of experts, and" in run.log


OLD = ({"turn": 3}, {"turn": 3, "step": 6})
WEIGHED = {"loss_weights": 0, "amounts": 0}
NO_STEP, BY_ROWS = "the state of mix: ado has no 'step'", "its weights of domains are those of rows"
NO_TOKENS = "it does not say how many tokens of each domain were served"


@pytest.mark.parametrize(
    "name, reads, state, extra, unit, message",
    [
        ("ado", True, OLD[0], {"amounts": 0}, "samples", NO_STEP),
        ("ado", True, OLD[1], WEIGHED, "samples", BY_ROWS),
        ("ado", True, OLD[1], {}, "tokens", NO_TOKENS),
        ("ado", True, OLD[1], {}, "samples", None),
        ("static", False, {}, {}, "tokens", None),  # it does not read what was served
        ("mine", True, {"only": "its own"}, {"amounts": 0}, "tokens", None),  # an update may return any state
        ("ado", True, {**OLD[1], "more": 1}, {**WEIGHED, "trained_tokens": 0}, "tokens", None),
    ],
)
def test_what_an_older_version_left_out_is_refused(
    name: str, reads: bool, state: Any, extra: Any, unit: str, message: str | None
) -> None:
    needs = frozenset({"train_loss"} if reads else set())
    spec: Any = SimpleNamespace(name=name, unit=unit, component=SimpleNamespace(needs=needs))
    if message is None:
        return check_older(spec, state, extra)
    with pytest.raises(ConfigError, match=f"older version of DataFlex, and this run cannot go on from it: {message}"):
        check_older(spec, state, extra)
