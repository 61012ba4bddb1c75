"""Every component on every engine, with 2 processes: what it decides, and the losses that follow, are those under DDP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from comparing import assert_close, assert_same_continuation, close
from engines import ENGINES, KINDS, under
from harness import Result, start, tiny_run, train_all
from selecting import AIMED, LORA, table

from dataflex.base.checks.engine import check_engine
from dataflex.config import parse
from dataflex.errors import ConfigError, DataflexError
from dataflex.signals.gradients.directions import optimizer_moments

Config = dict[str, Any]

DUE = {"warmup": 2, "interval": 3}
HELD_OUT = {n: f"{n}_heldout" for n in ("code", "docs", "arithmetic")}
TARGET = {"target_dataset": "arithmetic_heldout"}


def select(name: str, **keys: Any) -> Config:
    return {"select": {"name": name, **DUE, **keys}}


def mix(name: str, **keys: Any) -> Config:
    return {"mix": {"name": name, **DUE, **keys}}


def weight(name: str, **keys: Any) -> Config:
    return {"mix": "static", "weight": {"name": name, **keys}}


# The block of each component, and what else its run needs.
CASES: dict[str, tuple[Config, Config]] = {
    "loss": (select("loss", focus="medium"), {}),
    "delta_loss": (select("delta_loss", updates=2), {}),
    "random": (select("random"), {}),
    "token_length": (select("token_length"), {}),
    "less": (select("less"), {**LORA, **AIMED}),
    "less full": (select("less"), AIMED),
    "less sgd projected": (select("less", gradient_type="sgd", proj_dim=256), {**LORA, **AIMED}),
    "icons": (select("icons"), {**LORA, "eval_dataset": "arithmetic_heldout,code_heldout"}),
    "cluster_less": (select("cluster_less", cluster_size=6, samples_per_cluster=2), {**LORA, **AIMED}),
    "greats": (select("greats", interval=1, target_rows=8), {**LORA, **AIMED}),
    "nice": (select("nice", mc_samples=2, max_new_tokens=6, reward="own_components:digits"), {**LORA, **AIMED}),
    "near": (select("near"), AIMED),
    "rds": (select("rds"), {**LORA, **AIMED}),
    "tsds": (select("tsds", max_K=10), AIMED),
    "coincide": (select("coincide", num_clusters=6), LORA),
    "static": ({"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}, {}),
    "schedule": ({"mix": {"name": "schedule", "points": [[0, [0.6, 0.2, 0.2]], [4, [0.2, 0.2, 0.6]]]}}, {}),
    "odm": (mix("odm"), {}),
    "doremi": ({"mix": {"name": "doremi", "reweight_eta": 1.0}}, {}),
    "ado": ({"mix": {"name": "ado", "warmup": 1, "interval": 1, "fit_after": 4, "ignore": 1, "fit_every": 3}}, {}),
    "aioli": ({"mix": {"name": "aioli", "interval": 4, "eval_dataset": HELD_OUT}}, {}),
    "doge": (mix("doge", rows_per_domain=5, mu=1e-4), LORA),
    "loss_gap": (mix("loss_gap", reference_losses=[6.0, 5.8, 5.0], eval_dataset=HELD_OUT), {}),
    "dynamic_moe": (mix("dynamic_moe", eval_samples=12), {}),
    "weight loss": (weight("loss", strategy="extremes"), {}),
    "weight loss global": (weight("loss", scope="global"), {"gradient_accumulation_steps": 2}),
    "weight adapt": (weight("adapt", tau=0.1, refresh_interval=2, **TARGET), {"gradient_accumulation_steps": 2}),
    "weight joint_update_aware": (weight("joint_update_aware", target_update_step=3, **TARGET), LORA),
    "weight rho1": (weight("rho1"), {}),
    "weight focal": (weight("focal"), LORA),
    "weight domain": (weight("domain", by_domain=[1, 2, 3]), {}),
    "all": ({**select("loss"), **mix("odm"), "weight": {"name": "loss"}}, {"gradient_accumulation_steps": 2}),
    "dpo": ({**select("loss"), "weight": {"name": "loss"}}, {"stage": "dpo", "dataset": "arithmetic_pairs", **LORA}),
    "kto": ({"weight": {"name": "loss"}}, {"stage": "kto", "dataset": "arithmetic_kto", **LORA}),
    "rm": (select("loss"), {"stage": "rm", "dataset": "arithmetic_pairs", **LORA}),
    "pt": (select("less"), {"stage": "pt", "dataset": "code_text,docs_text", "eval_dataset": "docs_text_heldout"}),
    "neat": (weight("loss"), {"neat_packing": True}),
}  # fmt: skip
OTHERS = [engine for engine in ENGINES if engine != "ddp"]
# What FSDP 1, whose parameters are flat, has no gradients for.
GRADIENTS = ("less", "less full", "less sgd projected", "icons", "cluster_less", "greats", "nice", "doge", "pt")


def refused(case: str, engine: str) -> bool:
    return (case == "rm" and engine.startswith("fsdp")) or (case in GRADIENTS and engine == "fsdp1")


PAIRS = [(case, engine) for case in CASES for engine in OTHERS if not refused(case, engine)]
# Each kind of measurement on one engine or more, each engine with two kinds or more.
QUICK = {
    ("less", "zero3"), ("less full", "fsdp2"), ("rds", "fsdp2"), ("loss", "fsdp1"), 
    ("aioli", "zero2"), ("weight adapt", "fsdp2"), ("weight loss global", "fsdp1"), ("weight rho1", "fsdp2"),
    ("doremi", "zero3"), ("all", "zero2"), ("dynamic_moe", "fsdp1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def configured(
    ground: Path, reference: Path, experts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Config]:
    """Six steps of four rows, dropout off: its masks belong to a rank, and engines draw them apart."""

    def of(case: str) -> Config:
        block, extra = CASES[case]
        block = json.loads(json.dumps(block))
        model = experts["mixtral"] if case == "dynamic_moe" else ground / "still"
        for slot in block.values():
            if isinstance(slot, dict) and slot["name"] in ("doremi", "rho1"):
                slot["reference_model_path"] = str(reference)
        base = {**tiny_run(ground), "model_name_or_path": str(model), "per_device_train_batch_size": 2, "max_steps": 6}
        return {**base, **extra, "lora_dropout": 0.0, "dataflex": block}

    return of


@pytest.fixture(scope="module")
def under_ddp(configured: Callable[[str], Config], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The run of a case under DDP, once."""
    folder, done = tmp_path_factory.mktemp("ddp"), dict[str, Result]()

    def of(case: str) -> Result:
        if case not in done:
            done[case] = under("ddp", configured(case), folder / case, hooks=["own_component"]).wait().ok
            assert (done[case].out / "distributed_type").read_text() == KINDS["ddp"]
        return done[case]

    return of


def assert_same_run(found: Result, expected: Result) -> None:
    """Rows, decisions and selections; scores, losses and scalars up to the order of additions."""
    assert found.ids() == expected.ids() and expected.ids()
    for name in sorted(f.name for f in (expected.out / "dataflex").glob("selections/*.parquet")):
        step = int(name.removesuffix(".parquet").removeprefix("step_"))
        a, b = table(found, step), table(expected, step)
        assert np.array_equal(a["sample_id"], b["sample_id"]) and np.array_equal(a["selected"], b["selected"])
        np.testing.assert_allclose(a["score"], b["score"], rtol=1e-4, atol=2e-5)
    for a, b in zip(found.ledger(), expected.ledger(), strict=True):
        for line in (a, b):
            line.get("stage", {}).pop("carry", None)  # integers as fine as the proportions they come from
        assert_close(a, b, 1e-4, f"ledger at step {b['step']}")
    assert_close(found.scalars(), expected.scalars(), 1e-4, "scalars")
    first, second = found.trace(), expected.trace()
    assert first.keys() == second.keys() and len(second) == 6
    for step, (loss, norm) in second.items():
        assert first[step][0] == pytest.approx(loss, rel=1e-5), f"loss at step {step}"
        assert first[step][1] == pytest.approx(norm, rel=1e-4), f"gradient norm at step {step}"


@pytest.mark.parametrize(
    ("case", "engine"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in PAIRS],
)
def test_as_under_ddp(
    configured: Callable[[str], Config],
    under_ddp: Callable[[str], Result],
    tmp_path: Path,
    case: str,
    engine: str,
) -> None:
    run = under(engine, configured(case), tmp_path / "run", hooks=["own_component"]).wait().ok
    assert (run.out / "distributed_type").read_text() == KINDS[engine]
    assert_same_run(run, under_ddp(case))


EFFICIENT = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_SYNC_MODULE_STATES": "true"}
WAYS: dict[str, tuple[str, str, Config, str]] = {
    # case, engine, changes of its settings, what it is then
    "a reference beside a model that one rank reads": ("weight rho1", "fsdp2", EFFICIENT, "FSDP 2"),
    "a model that one rank reads": ("less", "fsdp2", EFFICIENT, "FSDP 2"),
    "stage 1": ("less full", "zero2", {"stage": 1}, "DEEPSPEED 1"),
    "moments offloaded": ("less full", "zero2", {"offload_optimizer": {"device": "cpu"}}, "DEEPSPEED 2"),
    "all offloaded": (
        "less full", "zero3", {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}, "DEEPSPEED 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(w, marks=() if w == "a reference beside a model that one rank reads" else pytest.mark.slow)
        for w in WAYS
    ],
)
def test_other_settings_of_an_engine(
    configured: Callable[[str], Config], under_ddp: Callable[[str], Result], tmp_path: Path, way: str
) -> None:
    case, engine, settings, kind = WAYS[way]
    run = under(engine, configured(case), tmp_path / "run", settings=settings).wait().ok
    assert (run.out / "distributed_type").read_text() == kind
    assert_same_run(run, under_ddp(case))


@pytest.mark.slow
def test_fsdp_by_the_keys_of_the_run(
    configured: Callable[[str], Config], under_ddp: Callable[[str], Result], tmp_path: Path
) -> None:
    """Not by accelerate's launcher."""
    config = {k: v for k, v in configured("less").items() if k != "use_cpu"} | {"fsdp": "full_shard auto_wrap"}
    config["fsdp_config"] = {
        "version": 2,
        "transformer_layer_cls_to_wrap": "Qwen2DecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
    }
    hooks = ["fsdp_on_cpu", "distributed_type", "record_ids"]
    run = start(config, tmp_path / "run", ranks=2, hooks=hooks).wait().ok
    assert (run.out / "distributed_type").read_text() == KINDS["fsdp2"]
    assert_same_run(run, under_ddp("less"))
    config["fsdp_config"]["version"] = 1
    run = start(config, tmp_path / "flat", ranks=2, hooks=[*hooks, "no_model"]).wait()
    assert run.status == [2, 2] and "less takes the gradients of parameters, which FSDP 1 flattens" in run.log


@pytest.mark.parametrize("engine", ["zero3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_one_and_two_ranks_decide_the_same(configured: Callable[[str], Config], tmp_path: Path, engine: str) -> None:
    """Invariant 5, both from the start."""
    config = configured("less full")
    one, two = train_all(
        under(engine, {**config, "per_device_train_batch_size": 4}, tmp_path / "one", ranks=1),
        under(engine, config, tmp_path / "two"),
    )
    assert_same_run(one.ok, two.ok)


@pytest.mark.parametrize(("case", "engine"), [("less", "fsdp1"), ("doge", "fsdp1"), ("rm", "fsdp1"), ("rm", "fsdp2")])
def test_what_an_engine_cannot_give_is_refused_before_a_model_is_loaded(
    configured: Callable[[str], Config], tmp_path: Path, case: str, engine: str
) -> None:
    run = under(engine, configured(case), tmp_path / "run", hooks=["no_model"]).wait()
    assert run.status == [2, 2] and "Traceback" not in run.log
    version = f"FSDP {engine[-1]}"
    said = f"stage: rm does not work under {version}" if case == "rm" else f"{case} takes the gradients of parameters"
    assert run.log.count("dataflex: error: ") == 1 and said in run.log


def test_ranks_that_share_rows_are_refused() -> None:
    """DeepSpeed's tensor parallelism, by name; `auto` and 1 are none."""
    config = parse(
        {"stage": "sft", "output_dir": "x", "do_train": True, "dataset": "a", "dataflex": {"mix": "static"}}
    ).dataflex
    assert config is not None
    for size in (2, 1, "auto"):
        settings = {"tensor_parallel": {"autotp_size": size}}
        arguments = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=1, deepspeed_config=settings))
        if size == 2:
            with pytest.raises(ConfigError, match="deepspeed: tensor_parallel gives several ranks the same rows"):
                check_engine(config, arguments, "sft")
        else:
            check_engine(config, arguments, "sft")


def test_moments_out_of_reach_are_refused_at_once() -> None:
    """Of DeepSpeed's optimizers around Adam, those of no ZeRO stage."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    optimizer = SimpleNamespace(optimizer=BF16_Optimizer.__new__(BF16_Optimizer))
    with pytest.raises(DataflexError, match="cannot read the moments of DeepSpeed's BF16_Optimizer"):
        optimizer_moments(optimizer)


@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_sharded_parameters_are_not_whole(configured: Callable[[str], Config], tmp_path: Path, engine: str) -> None:
    config = configured("less full")
    config["dataflex"]["select"]["parameters"] = "all"
    run = under(engine, config, tmp_path / "run", hooks=["no_model"]).wait()
    assert run.status == [2, 2]
    assert "dataflex: error: dataflex.select.parameters: all needs parameters that are whole" in run.log


@pytest.mark.parametrize(
    "engine", [*(pytest.param(e, marks=pytest.mark.slow) for e in ("zero2", "fsdp2")), "zero3", "fsdp1"]
)
def test_uniform_weights_are_the_plain_run(base: Config, ground: Path, tmp_path: Path, engine: str) -> None:
    """Invariant 2, against LLaMA-Factory itself on the same engine; gradients accumulated."""
    config = {**base, "model_name_or_path": str(ground / "still"), "per_device_train_batch_size": 2, "max_steps": 6}
    config["gradient_accumulation_steps"] = 2
    uniform = {**config, "dataflex": {"weight": {"name": "loss", "strategy": "uniform", "scope": "global"}}}
    ours, plain = train_all(
        under(engine, uniform, tmp_path / "uniform"),
        under(engine, config, tmp_path / "plain", hooks=["llamafactory_itself"]),
    )
    close(ours, plain)


@pytest.mark.parametrize("engine", [e if e == "ddp" else pytest.param(e, marks=pytest.mark.slow) for e in ENGINES])
@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_measuring_leaves_no_trace(base: Config, tmp_path: Path, engine: str, kind: str) -> None:
    """Invariant 3, dropout on: losses, embeddings, responses, and gradients with the optimizer's moments, of the whole pool
    before every second step, and ignored. Losses and gradient norms to the bit."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    name = "WithoutGradients" if engine == "fsdp1" else "Everything"
    measured = {**block, "select": {"name": f"own_components:{name}", "warmup": 1, "interval": 2}}
    config = {**base, **LORA, **AIMED, "finetuning_type": kind, "per_device_train_batch_size": 2}
    config |= {"gradient_accumulation_steps": 2, "max_steps": 7}
    hooks = ["own_component", "count_forwards"]
    without, ignored = train_all(
        under(engine, {**config, "dataflex": block}, tmp_path / "without", hooks=hooks),
        under(engine, {**config, "dataflex": measured}, tmp_path / "with", hooks=["ignore_scores", *hooks]),
    )
    assert ignored.ok.trace() == without.ok.trace() and len(without.trace()) == 7
    assert without.forwards()["eval"] == 0 and ignored.forwards()["eval"] >= 3 * 2
    assert (ignored.out / "distributed_type").read_text() == KINDS[engine]


# engine, what is trained, whether each rank saves its own shards
RESUMED = [("fsdp2", "lora", False)]
RESUMED_TOO = [
    ("zero3", "lora", False),
    ("zero2", "lora", False),
    *((e, "full", False) for e in ("zero2", "zero3", "fsdp2")),
]
RESUMED_TOO += [(e, kind, True) for e in ("fsdp1", "fsdp2") for kind in ("lora", "full")]


@pytest.mark.parametrize(
    ("engine", "kind", "sharded"), [*RESUMED, *(pytest.param(*r, marks=pytest.mark.slow) for r in RESUMED_TOO)]
)
def test_kill_and_resume_is_exact(base: Config, tmp_path: Path, engine: str, kind: str, sharded: bool) -> None:
    """Invariant 4, dropout on, for all three at once; killed off a boundary, on from the checkpoint of step 4."""
    changes = {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"} if sharded else None
    block: Config = {
        "select": {"name": "loss" if engine == "fsdp1" else "less", "warmup": 2, "interval": 3},
        "mix": {"name": "odm", "warmup": 1, "interval": 2},
        "weight": {"name": "loss", "strategy": "extremes"},
    }
    config = {**base, **LORA, **AIMED, "finetuning_type": kind, "per_device_train_batch_size": 2, "dataflex": block}
    config |= {"gradient_accumulation_steps": 2, "max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    whole, killed = train_all(
        under(engine, config, tmp_path / "whole", settings=changes),
        under(engine, config, tmp_path / "killed", hooks=["kill_after:5"], settings=changes),
    )
    assert killed.status == [-9, -9]
    for file in (tmp_path / "killed").glob("served-*.jsonl"):
        file.unlink()
    resumed = under(engine, config, tmp_path / "killed", settings=changes).wait()
    assert_same_continuation(resumed, whole.ok, 4)
