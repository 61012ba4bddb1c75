"""The runs: name -> steps of a run. `{ground}` and `{run}` in a configuration stand for these folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A command on a configuration, in as many processes as `ranks`. out: the output_dir, below the folder of the run.
    resumes: whether another process may go on from its checkpoint in the middle."""

    config: Config
    command: str = "train"
    ranks: int = 1
    out: str = "out"
    env: dict[str, str] = field(default_factory=dict)
    resumes: bool = True


BASE: Config = {
    "model_name_or_path": "{ground}/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "dataset_dir": "{ground}/data",
    "dataset": "code,docs,arithmetic",
    "template": "qwen",
    "cutoff_len": 64,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "max_steps": 8,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 4,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "seed": 7,
    "disable_tqdm": True,
    "log_level": "warning",
}
LORA: Config = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "lora_dropout": 0.1}
STILL: Config = {"model_name_or_path": "{ground}/still"}
TWO: Config = {"per_device_train_batch_size": 2}
ACCUMULATED: Config = {**TWO, "gradient_accumulation_steps": 2}
AIMED: Config = {"eval_dataset": "arithmetic_heldout,code_heldout"}
HELD_OUT = {n: f"{n}_heldout" for n in ("code", "docs", "arithmetic")}
EVALUATED: Config = {"eval_dataset": ",".join(HELD_OUT.values()), "eval_strategy": "steps", "eval_steps": 4}
TARGET = {"target_dataset": "arithmetic_heldout"}
REFERENCE = {"reference_model_path": "{ground}/reference"}
DUE = {"warmup": 2, "interval": 3}
MOE: Config = {"model_name_or_path": "{ground}/moe"}
TEXT: Config = {"stage": "pt", "dataset": "code_text,docs_text"}
PAIRS: Config = {"stage": "dpo", "dataset": "pairs", **LORA}
JUDGED: Config = {"stage": "kto", "dataset": "judged", **LORA}
REWARDS: Config = {"stage": "rm", "dataset": "pairs", **LORA}


def select(name: str, **keys: Any) -> Config:
    return {"select": {"name": name, **DUE, **keys}}


def mix(name: str, **keys: Any) -> Config:
    return {"mix": {"name": name, **DUE, **keys}}


def weight(name: str, **keys: Any) -> Config:
    return {"mix": "static", "weight": {"name": name, **keys}}


ALL = {**select("loss", focus="medium"), **mix("odm"), "weight": {"name": "loss", "warmup": 2}}
SCHEDULE = {"name": "schedule", "points": [[0, [0.5, 0.3, 0.2]], [3, [0.2, 0.2, 0.6]], [6, [0.0, 0.5, 0.5]]]}
EXHAUSTED = {"interval": 3, "proportions": [0.6, 0.2, 0.2], "max_repetition": {"code": 0.2, "docs": 0.5}}
ADO = {"warmup": 1, "interval": 1, "fit_after": 4, "ignore": 1, "fit_every": 2}
NICE = {"mc_samples": 2, "max_new_tokens": 6, "reward": "user_parts:digits"}

# name: the dataflex block, what else the configuration has, and how many processes
Case = tuple[Config, Config, int]
SELECTORS: dict[str, Case] = {
    "random": (select("random"), {}, 1),
    "random-replacement": (select("random", replacement=True), {}, 1),
    "loss": (select("loss", focus="medium"), {}, 1),
    "loss-keep": (select("loss", focus="high", keep_ratio=0.5), TWO, 2),
    "delta_loss": (select("delta_loss", updates=2), {}, 1),
    "token_length": (select("token_length"), {}, 1),
    "less": (select("less"), {**LORA, **AIMED}, 1),
    "less-full": (select("less", parameters="all", accumulate=True), AIMED, 1),
    "less-projected": (select("less", gradient_type="sgd", proj_dim=256), {**LORA, **AIMED, **TWO}, 2),
    "icons": (select("icons"), {**LORA, **AIMED}, 1),
    "cluster_less": (select("cluster_less", cluster_size=6, samples_per_cluster=2), {**LORA, **AIMED}, 1),
    "greats": (select("greats", interval=1, target_rows=8), {**LORA, **AIMED}, 1),
    "nice": (select("nice", **NICE), {**LORA, **AIMED}, 1),
    "rds": (select("rds"), {**LORA, **AIMED, **TWO}, 2),
    "near": (select("near"), AIMED, 1),
    "near-file": (select("near", indices_path="{ground}/near.npy", warmup=0, interval=8), {}, 1),
    "tsds": (select("tsds", max_K=10), AIMED, 1),
    "tsds-file": (select("tsds", probs_path="{ground}/probabilities.npy"), {}, 1),
    "own": (select("custom", **{"class": "user_parts:Easiest"}, skip=3), {}, 1),
}
MIXERS: dict[str, Case] = {
    "static": ({"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}, {}, 1),
    "uniform": ({"mix": "uniform"}, ACCUMULATED, 1),
    "proportional": ({"mix": "proportional"}, {"dataset_dir": "{ground}/uneven"}, 1),
    "stratified": ({"mix": "stratified"}, {"dataset_dir": "{ground}/uneven", **TWO}, 2),
    "temperature": ({"mix": {"name": "temperature", "temperature": 2.0}}, {"dataset_dir": "{ground}/uneven"}, 1),
    "random": (mix("random"), TWO, 2),
    "random-tokens": (mix("random", unit="tokens"), {"dataloader_num_workers": 2}, 1),
    "schedule": ({"mix": SCHEDULE}, {}, 1),
    "schedule-line": ({"mix": {**SCHEDULE, "interpolate": True, "interval": 2, "unit": "tokens"}}, ACCUMULATED, 1),
    "file": ({"mix": {"name": "file", "path": "{ground}/shares.json", "interval": 3}}, {}, 1),
    "odm": (mix("odm"), {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3}, 1),
    "odm-exhausted": (mix("odm", **EXHAUSTED), TWO, 2),
    "odm-exhausted-tokens": (mix("odm", **EXHAUSTED, unit="tokens"), {}, 1),
    "doremi": ({"mix": {"name": "doremi", "reweight_eta": 1.0, **REFERENCE}}, {}, 1),
    "doremi-two": ({"mix": {"name": "doremi", "reweight_eta": 1.0, **REFERENCE}}, ACCUMULATED, 2),
    "doge": (mix("doge", rows_per_domain=5, mu=1e-4), {}, 1),
    "doge-online": (mix("doge", rows_per_domain=5, mu=1e-4, online=True), LORA, 1),
    "ado": (mix("ado", **{**ADO, "initial": "stratified"}), {"dataset_dir": "{ground}/uneven"}, 1),
    "aioli": ({"mix": {"name": "aioli", "interval": 4, "eval_dataset": HELD_OUT}}, {}, 1),
    "loss_gap": (mix("loss_gap", reference_losses=[6.0, 5.8, 5.0], eval_dataset=HELD_OUT), TWO, 2),
    "loss_gap-train": (mix("loss_gap", reference_losses=[6.0, 5.8, 5.0], losses="train"), {}, 1),
    "dynamic_moe": (mix("dynamic_moe", eval_samples=12), MOE, 1),
}
WEIGHTERS: dict[str, Case] = {
    "loss": ({"weight": {"name": "loss", "strategy": "linupper", "warmup": 2}}, {}, 1),
    "loss-global": (weight("loss", scope="global", strategy="extremes"), ACCUMULATED, 2),
    "loss-ramp": (weight("loss", strategy="extremes", warmup=1, ramp=2, until=5, fade=2), TWO, 2),
    "domain": (weight("domain", by_domain=[1, 2, 3]), {}, 1),
    "domain-file": (weight("domain", by_domain="{ground}/shares.json"), ACCUMULATED, 1),
    "adapt": (weight("adapt", tau=0.1, refresh_interval=2, **TARGET), ACCUMULATED, 1),
    "joint_update_aware": (weight("joint_update_aware", target_update_step=3, **TARGET), {**LORA, **TWO}, 2),
    "rho1": (weight("rho1", **REFERENCE), {}, 1),
    "focal": (weight("focal", gamma=1.5), LORA, 1),
    "column": (weight("column", column="quality"), {}, 1),
    "column-message": ({"weight": {"name": "column", "per": "message"}}, {"dataset": "chats", "cutoff_len": 256}, 1),
    "two": (
        {"mix": "static", "weight": [{"name": "loss", "scope": "global"}, {"name": "focal", "gamma": 1.5}]},
        ACCUMULATED,
        1,
    ),
}
STAGES: dict[str, Case] = {
    "all": (ALL, {}, 1),
    "all-two-workers": (ALL, {**ACCUMULATED, "dataloader_num_workers": 2}, 2),
    "all-global": ({**ALL, "weight": {"name": "loss", "scope": "global"}}, ACCUMULATED, 1),
    "select-mix-tokens": ({**select("random"), "mix": {**SCHEDULE, "unit": "tokens"}}, ACCUMULATED, 2),
    "pt": (ALL, TEXT, 1),
    "pt-unpacked": (ALL, {**TEXT, "packing": False, **ACCUMULATED}, 1),
    "pt-less": (select("less"), {**TEXT, "eval_dataset": "docs_text_heldout"}, 1),
    "packing": (ALL, {"packing": True, "cutoff_len": 128, "max_steps": 6, "save_steps": 3}, 1),
    "neat": (ALL, {"neat_packing": True, "cutoff_len": 128, "max_steps": 6, "save_steps": 3, **TWO}, 2),
    "rm": ({**select("loss"), "weight": {"name": "loss"}}, REWARDS, 1),
    "dpo": ({**select("loss"), "weight": {"name": "loss"}}, PAIRS, 1),
    "dpo-orpo": (ALL, {**PAIRS, "pref_loss": "orpo", **ACCUMULATED}, 1),
    "kto": ({**select("random"), **mix("random"), "weight": {"name": "loss"}}, JUDGED, 1),
    "smoothed": ({"weight": {"name": "loss"}}, {"label_smoothing_factor": 0.1, **ACCUMULATED}, 1),
    "dft": ({"weight": {"name": "loss"}}, {"use_dft_loss": True}, 1),
    "bf16": (ALL, {"bf16": True}, 1),
    "evaluated": (mix("odm"), {**EVALUATED, "eval_on_start": True}, 1),
    "evaluated-two": (mix("static", warmup=0, interval=None), {**EVALUATED, **TWO}, 2),
    "best": (mix("odm"), {**EVALUATED, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}, 1),
    "val-size": (mix("random"), {"val_size": 0.2, "eval_strategy": "steps", "eval_steps": 4}, 1),
    "val-each": (ALL, {"val_size": 5, "eval_on_each_dataset": True, "eval_strategy": "steps", "eval_steps": 8}, 1),
    "unshuffled": (select("random", serving_order="selection"), {"disable_shuffling": True}, 1),
    "epochs": ({"mix": "static"}, {"max_steps": -1, "num_train_epochs": 1, "max_samples": 12}, 1),
    "plain": ({}, {}, 1),
}
STREAM = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2], "stream_block": 4}}
STREAMS: dict[str, Case] = {
    "static": (STREAM, {}, 1),
    "odm-workers": (mix("odm", stream_block=4), {"dataloader_num_workers": 2}, 1),
    "random-two": (mix("random", stream_block=4), {**TWO, "packing": False}, 2),
    "temperature": ({"mix": {"name": "temperature", "temperature": 2.0, "stream_block": 4}}, {}, 1),
    "ado": (mix("ado", **{**ADO, "initial": "uniform"}, stream_block=4), {}, 1),
    "sft": (
        {**mix("odm", stream_block=4), "weight": {"name": "loss", "warmup": 2}},
        {"packing": True, **ACCUMULATED},
        1,
    ),
    "sft-neat": (mix("odm", stream_block=4), {"neat_packing": True, "dataloader_num_workers": 1, **TWO}, 2),
}


def cases() -> dict[str, list[Step]]:
    """Every run that is a single `train` in processes of its own."""
    found: dict[str, list[Step]] = {}
    groups = {"select": SELECTORS, "mix": MIXERS, "weight": WEIGHTERS, "run": STAGES, "stream": STREAMS}
    for group, own in groups.items():
        for name, (block, more, ranks) in own.items():
            config = {**BASE, **more}
            if group == "stream":
                names = ["lists", "notes", "sums"]
                sft = name.startswith("sft")
                config |= {"dataset_dir": "{ground}/streams", "streaming": True, "stage": "sft" if sft else "pt"}
                config |= {
                    "dataset": ",".join(f"{n}_sft" if sft else n for n in names),
                    "cutoff_len": 48 if sft else 24,
                }
            if config["stage"] == "pt":
                del config["template"]
            if block:
                config["dataflex"] = block
            # a reward model is refused, and `eval_on_start` evaluates once more
            resumes = config["stage"] != "rm" and name != "plain" and "eval_on_start" not in config
            found[f"{group}-{name}"] = [Step(config, ranks=ranks, resumes=resumes)]
    return found
