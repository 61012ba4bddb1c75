"""Runs of several commands, other commands than `train`, files of dataflex 1.1.0, and engines."""

from __future__ import annotations

from typing import Any

from matrix import (
    ACCUMULATED,
    AIMED,
    ALL,
    BASE,
    HELD_OUT,
    LORA,
    MOE,
    NICE,
    PAIRS,
    REFERENCE,
    STILL,
    TARGET,
    TWO,
    Config,
    Step,
    cases,
    mix,
    select,
    weight,
)

OFFLINE = {k: v for k, v in BASE.items() if k not in ("max_steps", "logging_steps", "save_strategy", "save_steps")}
_ZERO: dict[str, Config] = {
    "zero2": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1e5},
    "zero3": {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 1e5,
        "stage3_prefetch_bucket_size": 1e4,
        "stage3_param_persistence_threshold": 64,
        "stage3_max_live_parameters": 1e5,
        "stage3_max_reuse_distance": 1e5,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
_AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
_FSDP = {
    "UNCHANGED_FSDP": "1",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_SYNC_MODULE_STATES": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
}
_VERSIONS = {
    "fsdp2": {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true"},
    "fsdp1": {
        "FSDP_VERSION": "1",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD",
    },
}
ENGINE_CASES: dict[str, tuple[Config, Config, tuple[str, ...]]] = {
    "all": (ALL, ACCUMULATED, ("zero2", "zero3", "fsdp2", "fsdp1")),
    "less": (select("less"), {**LORA, **AIMED}, ("zero2", "zero3", "fsdp2")),
    "less-full": (select("less"), AIMED, ("zero3",)),
    "nice": (select("nice", **NICE), {**LORA, **AIMED}, ("zero3",)),
    "rds": (select("rds"), {**LORA, **AIMED}, ("zero3",)),
    "doremi": ({"mix": {"name": "doremi", "reweight_eta": 1.0, **REFERENCE}}, {}, ("zero3",)),
    "doge": (mix("doge", rows_per_domain=5, mu=1e-4), LORA, ("zero2",)),
    "aioli": ({"mix": {"name": "aioli", "interval": 4, "eval_dataset": HELD_OUT}}, {}, ("zero2",)),
    "adapt": (weight("adapt", tau=0.1, refresh_interval=2, **TARGET), ACCUMULATED, ("zero3", "fsdp2")),
    "global": (weight("loss", scope="global"), ACCUMULATED, ("zero3",)),
    "rho1": (weight("rho1", **REFERENCE), {}, ("fsdp2",)),
    "moe": (mix("dynamic_moe", eval_samples=12), MOE, ("fsdp1",)),
    "dpo": ({**select("loss"), "weight": {"name": "loss"}}, PAIRS, ("zero2",)),
}


def engines() -> dict[str, list[Step]]:
    found = {}
    for case, (block, more, names) in ENGINE_CASES.items():
        for engine in names:
            config: Config = {**BASE, **TWO, **more, "max_steps": 6, "save_steps": 3, "dataflex": block}
            del config["use_cpu"]
            if engine in _ZERO:
                zero = {**dict.fromkeys(_AUTO, "auto"), "zero_allow_untested_optimizer": True}
                config["deepspeed"] = {**zero, "zero_optimization": _ZERO[engine]}
                found[f"{engine}-{case}"] = [Step(config, ranks=2)]
            else:
                found[f"{engine}-{case}"] = [Step(config, ranks=2, env={**_FSDP, **_VERSIONS[engine]})]
    return found


def offline(select: Config, **more: Any) -> Step:
    block = {"select": select, "offline": {"budget": 20, "examples": 3}}
    return Step({**OFFLINE, **more, "dataflex": block}, command="select", out="selection", resumes=False)


def chains() -> dict[str, list[Step]]:
    odm = {**BASE, "dataflex": mix("odm", interval=1)}
    replay = {"name": "replay", "ledger": "{run}/first/dataflex/ledger.jsonl"}
    stored = {**odm, "tokenized_path": "{run}/tokens", "val_size": 0.1}
    chosen = {**BASE, "dataset_dir": "{run}/selection", "dataset": "arithmetic_rds", "max_steps": 4}
    three = {
        "total_steps": 6,
        "mix": {"reweight_eta": 2.0},
        "doremi": {"reference": {"total_steps": 4}, "final": {"learning_rate": 2e-3}},
    }
    flat = {"update_step": 3, "warmup_step": 2, "update_times": 2, **AIMED}
    old = {"select": {"train_type": "dynamic_select", "component_name": "loss", **flat}}
    old["less"] = {**old["select"], "component_name": "less", **LORA}
    old["tsds"] = {**old["select"], "component_name": "tsds"}
    old["mix"] = {
        "train_type": "dynamic_mix", "component_name": "random", "mixture_sample_rule": "mixture",
        "init_mixture_proportions": [0.3, 0.5, 0.2], **flat,
    }  # fmt: skip
    old["weight"] = {"train_type": "dynamic_weight", "component_name": "loss", "warmup_step": 2, "train_step": 6}
    steps_of_old = {k: v for k, v in BASE.items() if k != "max_steps"}
    found = {
        "mix-replay": [Step(odm, out="first", resumes=False), Step({**BASE, "dataflex": {"mix": replay}})],
        "tokenized": [Step(stored, out="first", resumes=False), Step(stored)],
        "offline-rds": [offline({"name": "rds", **TARGET})],
        "offline-length": [offline({"name": "token_length"})],
        "offline-less": [offline({"name": "less", "gradient_type": "sgd", **TARGET}, **LORA)],
        "offline-near": [offline({"name": "near", "indices_path": "{ground}/near.npy"})],
        "doremi": [Step({**OFFLINE, **STILL, "dataflex": three}, command="doremi", resumes=False)],
    }
    found["offline-rds"].append(Step(chosen, resumes=False))
    found |= {f"old-{name}": [Step({**steps_of_old, **keys})] for name, keys in old.items()}
    return found


def runs() -> dict[str, list[Step]]:
    return {**cases(), **chains(), **engines()}
