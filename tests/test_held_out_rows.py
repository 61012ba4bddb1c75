"""Held-out rows by domain: where they come from, what an evaluation says of them, and the mixers that read them."""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import assert_refused
from comparing import kill_and_resume
from harness import Result, start, train, train_all
from models_and_data import renamed
from own_components import HeldOutRecorder

from dataflex.components.contexts import DomainInfo, Observations
from dataflex.components.mixers.aioli import AioliMixer
from dataflex.config import parse
from dataflex.errors import ConfigError
from dataflex.signals.asking.heldout import Totals, macro, micro

Config = dict[str, Any]
Row = dict[str, list[int]]
DOMAINS = ("code", "docs", "arithmetic")
HELDOUT = "code_heldout,docs_heldout,arithmetic_heldout"
STATIC = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}


def held_out(run: Result) -> dict[str, list[Row]]:
    return json.loads((run.ok.out / "held_out.json").read_text())


def evaluations(run: Result) -> dict[int, dict[str, float]]:
    """step -> our own scalars of the evaluation after it; that at the end of the run is not among them."""
    out: dict[int, dict[str, float]] = {}
    for record in json.loads((run.ok.out / "trainer_state.json").read_text())["log_history"]:
        if any(k.startswith("eval_") for k in record):
            ours = {k: v for k, v in record.items() if k.startswith("eval_dataflex/")}
            assert not out.get(record["step"]) or not ours, "said twice"
            out[record["step"]] = out.get(record["step"], {}) | ours
    return out


def one_by_one(folder: Path, rows: list[Row]) -> tuple[list[float], list[int], list[str]]:
    """Of the model in `folder`, a row at a time: sums of cross entropies, trainable tokens, and the text of these tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sums, counts, texts = [], [], []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor(row.get("labels", row["input_ids"]))[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        learned = labels != -100
        picked = logits.log_softmax(dim=-1)[learned].gather(1, labels[learned][:, None])
        sums.append(-picked.double().sum().item())
        counts.append(int(learned.sum()))
        texts.append(tokenizer.decode(labels[learned].tolist(), skip_special_tokens=True))
    return sums, counts, texts


CASES: dict[str, Config] = {
    "sft": {"eval_dataset": "docs_heldout,arithmetic_heldout,code_heldout"},
    "sft packed": {"val_size": 8, "packing": True, "cutoff_len": 128},
    "pt": {
        "stage": "pt",
        "dataset": "code_text,docs_text",
        "eval_dataset": "code_text_heldout,docs_text_heldout",
        "dataflex": {"mix": {"name": "static", "eval_dataset": "docs_text_heldout,code_text_heldout"}},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_measures_are_those_of_one_row_at_a_time(base: Config, tmp_path: Path, case: str) -> None:
    """Loss, perplexity and bits per byte of every domain, and both averages, for the model that the run ends with."""
    config = {**base, "dataflex": STATIC, "eval_strategy": "steps", "eval_steps": 6, **CASES[case]}
    run = train(config, tmp_path / "run", hooks=["dump_held_out"])
    rows = held_out(run)
    assert len(rows) == len(config["dataset"].split(",")) and all(rows.values())
    wanted: Config = {}
    everything = (0.0, 0, 0)
    for name, own in rows.items():
        sums, counts, texts = one_by_one(run.out, own)
        totals = (sum(sums), sum(counts), sum(len(text.encode()) for text in texts))
        everything = tuple(a + b for a, b in zip(everything, totals, strict=True))  # type: ignore[assignment]
        wanted |= {f"{m}/{name}": v for m, v in by_hand(*totals).items()}
    wanted |= {f"micro/{m}": v for m, v in by_hand(*everything).items()}
    means = {m: sum(wanted[f"{m}/{n}"] for n in rows) / len(rows) for m in ("loss", "bits_per_byte")}
    wanted |= {"macro/perplexity": exp(means["loss"]), **{f"macro/{m}": v for m, v in means.items()}}

    found = evaluations(run)
    assert list(found) == [6, 12]
    assert found[12] == pytest.approx({f"eval_dataflex/{k}": v for k, v in wanted.items()}, rel=1e-6)
    assert found[6].keys() == found[12].keys() and found[6] != found[12]
    results = json.loads((run.out / "eval_results.json").read_text())
    assert found[12].items() <= results.items()
    lines = [json.loads(line) for line in (run.out / "trainer_log.jsonl").read_text().splitlines()]
    assert next(found[6].items() <= line.items() for line in lines if "eval_loss" in line)
    last = run.ledger()[-1]
    assert "stage" not in last
    assert (last["step"], last["position"], last["component"], last["decided"]) == (12, 48, "evaluate", {})
    assert last["from"]["loss"] == {n: found[12][f"eval_dataflex/loss/{n}"] for n in rows}
    assert last["from"]["macro"] == {m: found[12][f"eval_dataflex/macro/{m}"] for m in by_hand(*everything)}
    assert sum(last["from"]["tokens"].values()) == everything[1]
    assert sum(last["from"]["bytes"].values()) == everything[2]


def by_hand(loss: float, tokens: int, size: int) -> dict[str, float]:
    return {"loss": loss / tokens, "perplexity": exp(loss / tokens), "bits_per_byte": loss / log(2) / size}


def test_averages_leave_out_what_there_is_not() -> None:
    """A domain without held-out rows counts in neither average; without a byte there is no number of bits per byte."""
    totals = [Totals(6.0, 3, 4), Totals(0.0, 0, 0), Totals(1.0, 2, 0)]
    assert [t.measures() for t in totals] == [by_hand(6.0, 3, 4), {}, {"loss": 0.5, "perplexity": exp(0.5)}]
    assert macro([t.measures() for t in totals]) == {
        "loss": 1.25, "perplexity": exp(1.25), "bits_per_byte": 1.5 / log(2),
    }  # fmt: skip
    assert micro(totals) == Totals(7.0, 5, 4)


def test_one_and_two_ranks_measure_the_same(base: Config, tmp_path: Path) -> None:
    """Of the same weights, to the bit: batches do not depend on the number of ranks."""
    config = {
        **base, "eval_dataset": HELDOUT, "eval_strategy": "steps", "eval_steps": 100, "eval_on_start": True, "max_steps": 1,
        "dataflex": {**STATIC, "scoring_tokens": 256},
    }  # fmt: skip
    one, two = train_all(
        start(config, tmp_path / "1"),
        start({**config, "per_device_train_batch_size": 2}, tmp_path / "2", ranks=2),
    )
    first, second = evaluations(one)[0], evaluations(two)[0]
    assert len(first) == 15 and first == second
    assert one.ledger()[1] == two.ledger()[1]


def test_evaluating_domains_leaves_no_trace(base: Config, tmp_path: Path) -> None:
    """With dropout: against the same run with `evaluate_domains: false`, which says nothing of domains."""
    config = {**base, "eval_dataset": HELDOUT, "eval_strategy": "steps", "eval_steps": 2}
    block = {"mix": {"name": "odm", "warmup": 1, "interval": 3}}
    off, on = train_all(
        start({**config, "dataflex": {**block, "evaluate_domains": False}}, tmp_path / "off"),
        start({**config, "dataflex": block}, tmp_path / "on"),
    )
    assert on.ok.trace() == off.ok.trace()
    assert on.scalars() == off.scalars()
    losses = [
        [
            r["eval_loss"]
            for r in json.loads((run.out / "trainer_state.json").read_text())["log_history"]
            if "eval_loss" in r
        ]
        for run in (off, on)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert all(len(found) == 15 for found in evaluations(on).values())
    assert not any(evaluations(off).values())
    assert [r for r in on.ledger() if r["component"] != "evaluate"] == off.ledger()
    assert [r["step"] for r in on.ledger() if r["component"] == "evaluate"] == [2, 4, 6, 8, 10, 12, 12]


def test_the_best_model_is_found_and_measured(base: Config, tmp_path: Path) -> None:
    """metric_for_best_model takes a measure, and what is evaluated at the end is the model that was loaded again: here, as the
    higher loss is called better, an early one."""
    config = {
        **base, "eval_dataset": HELDOUT, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6,
        "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_dataflex/macro/loss", "greater_is_better": True, "dataflex": STATIC,
    }  # fmt: skip
    run = train(config, tmp_path / "run")
    state = json.loads((run.ok.out / "trainer_state.json").read_text())
    found = {step: e["eval_dataflex/macro/loss"] for step, e in evaluations(run).items()}
    best = max(found, key=lambda step: found[step])
    assert best < 6, "the case is no case: the last model is the best"
    assert (state["best_global_step"], state["best_metric"]) == (best, found[best])
    final = json.loads((run.out / "eval_results.json").read_text())
    assert {k: v for k, v in final.items() if k.startswith("eval_dataflex/")} == evaluations(run)[best]


# -- sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """Token ids of the held-out data set of every domain, from a run that trains on them."""
    from harness import tiny_run

    config = {**tiny_run(ground), "dataset": HELDOUT, "max_steps": 1, "dataflex": {"mix": {"name": "static"}}}
    run = train(config, tmp_path_factory.mktemp("tokens"), hooks=["dump_rows"])
    rows = json.loads((run.ok.out / "rows.json").read_text())
    edges = np.cumsum([0, *rows["domains"]])
    return {name: rows["train"][a:b] for name, a, b in zip(DOMAINS, edges[:-1], edges[1:], strict=True)}


def static(**keys: Any) -> Config:
    return {"dataflex": {"mix": {"name": "static", **keys}}}


FLAT = {"train_type": "dynamic_mix", "component_name": "random", "update_step": 5, "train_step": 1}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}
SOURCES: dict[str, tuple[Config, tuple[str, ...]]] = {
    "list": (static(eval_dataset=HELDOUT.split(",")), DOMAINS),
    "string": (static(eval_dataset=HELDOUT), DOMAINS),
    "mapping": (static(eval_dataset={"arithmetic": "arithmetic_heldout", "code": "code_heldout"}), ("code", "arithmetic")),
    "before eval_dataset": (
        {"eval_dataset": HELDOUT, **static(eval_dataset={"docs": "docs_heldout"})}, ("docs",)
    ),
    "eval_dataset": ({"eval_dataset": "docs_heldout,code_heldout,arithmetic_heldout", **static()}, DOMAINS),
    "eval_dataset by data set": ({"eval_dataset": HELDOUT, "eval_on_each_dataset": True, **static()}, DOMAINS),
    "eval_dataset of some": ({"eval_dataset": "code_heldout,docs_heldout", **static()}, ()),
    "eval_dataset of others": ({"eval_dataset": HELDOUT.replace("docs_held", "topics_held"), **static()}, ()),
    "a selector": ({"eval_dataset": HELDOUT, "dataflex": {"select": {"name": "random", "interval": 1}}}, DOMAINS),
    "nobody asks": ({"eval_dataset": HELDOUT, **static(), "eval_strategy": "no"}, ()),
    "switched off": (
        {"eval_dataset": HELDOUT, "dataflex": {"evaluate_domains": False, "mix": {"name": "static"}}}, ()
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_where_held_out_rows_come_from(
    base: Config, tmp_path: Path, tokens: dict[str, list[list[int]]], case: str
) -> None:
    """Domain by domain, in the order of `dataset`, and nothing where a domain has none."""
    changes, having = SOURCES[case]
    run = train({**base, "max_steps": 1, **EVALUATES, **changes}, tmp_path / "run", hooks=["dump_held_out"])
    found = {name: [row["input_ids"] for row in rows] for name, rows in held_out(run).items()}
    assert found == ({name: tokens[name] if name in having else [] for name in DOMAINS} if having else {})
    assert list(evaluations(run)) == ([] if case == "nobody asks" else [1])
    for measured in evaluations(run).values():
        assert {k.rpartition("/")[2] for k in measured if k.startswith("eval_dataflex/loss/")} == set(having)


def test_the_flat_key_names_held_out_rows(base: Config, ground: Path, tmp_path: Path) -> None:
    """mixer_eval_dataset: "_eval" is taken out of each name; some domains may have none."""
    data = renamed(ground, tmp_path, {"code_eval": "code_heldout", "arith_evalmetic": "arithmetic_heldout"})
    config = {**base, "dataset_dir": data, **FLAT, **EVALUATES, "mixer_eval_dataset": "arith_evalmetic, code_eval"}
    run = train(config, tmp_path / "run", hooks=["dump_held_out"])
    assert {name: len(rows) for name, rows in held_out(run).items()} == {"code": 10, "docs": 0, "arithmetic": 10}
    assert "has no effect" not in run.log


@pytest.mark.parametrize("each", [False, True])
def test_val_size_is_known_by_domain(base: Config, tmp_path: Path, each: bool) -> None:
    """Joined, one set per domain, packed, and read back from tokenized_path: the same rows, and those that do not train."""
    base = {**base, "cutoff_len": 63}
    config = {**base, "max_steps": 1, **EVALUATES, "val_size": 12, "eval_on_each_dataset": each, **static()}
    stored = {**config, "tokenized_path": str(tmp_path / "tokens")}
    whole, plain, packed, first = train_all(
        start({**base, "max_steps": 1, **static()}, tmp_path / "whole", hooks=["dump_rows"]),
        start(config, tmp_path / "plain", hooks=["dump_rows", "dump_held_out"] if not each else ["dump_held_out"]),
        # LLaMA-Factory keeps one token less where it packs
        start({**config, "packing": True, "cutoff_len": 64}, tmp_path / "packed", hooks=["dump_held_out"]),
        start(stored, tmp_path / "first", hooks=["dump_held_out"]),
    )
    again = train(stored, tmp_path / "again", hooks=["no_tokenization", "dump_held_out"])
    rows = held_out(plain)
    assert rows == held_out(packed) == held_out(first) == held_out(again)
    assert {name: len(own) for name, own in rows.items()} == dict.fromkeys(DOMAINS, 12)
    if each:
        return
    dumped = json.loads((plain.out / "rows.json").read_text())
    assert dumped["eval"] == [row["input_ids"] for own in rows.values() for row in own]
    everything = json.loads((whole.ok.out / "rows.json").read_text())["train"]
    for d, own in enumerate(rows.values()):
        both = dumped["train"][48 * d : 48 * (d + 1)] + [row["input_ids"] for row in own]
        assert sorted(both) == sorted(everything[60 * d : 60 * (d + 1)])


def loss_gap(**keys: Any) -> Config:
    return {"mix": {"name": "loss_gap", "interval": 4, "reference_losses": [1.0, 1.0, 1.0], **keys}}


REFUSED: dict[str, tuple[Config, tuple[str, ...]]] = {
    "too few": (static(eval_dataset="code_heldout"), ("dataflex.mix.eval_dataset: 1 given for 3 data sets",)),
    "no such domain": (static(eval_dataset={"cod": "code_heldout"}), ("eval_dataset: 'cod' is not", "mean 'code'?")),
    "no such data set": (static(eval_dataset={"code": "code_held"}), ("eval_dataset: 'code_held' is not defined",)),
    "twice": (static(eval_dataset=["code_heldout"] * 3), ("dataflex.mix.eval_dataset: 'code_heldout' is listed twice",)),
    "no name": (static(eval_dataset=","), ("dataflex.mix.eval_dataset names no data set",)),
    "trained on": (static(eval_dataset={"code": "docs"}), ("dataflex.mix.eval_dataset: 'docs' is also in dataset",)),
    "trained on, flat": ({**FLAT, "mixer_eval_dataset": "docs"}, ("mixer_eval_dataset: 'docs' is also in dataset",)),
    "flat, unknown": (
        {**FLAT, "mixer_eval_dataset": "coda_eval"}, ("mixer_eval_dataset: 'coda_eval' belongs to no", "'code_eval'?"),
    ),
    "flat, twice": (
        {**FLAT, "mixer_eval_dataset": "code_eval,_evalcode"}, ("mixer_eval_dataset: 'code_eval' and '_evalcode' both",),
    ),
    "loss_gap without": (
        {"dataflex": loss_gap()}, ("dataflex.mix.eval_dataset: loss_gap needs", "none of code, docs, arithmetic"),
    ),
    "loss_gap with eval_dataset of some": (
        {"dataflex": loss_gap(), "eval_dataset": "code_heldout,docs_heldout"}, ("dataflex.mix.eval_dataset: loss_gap",),
    ),
    "aioli with some": (
        {"dataflex": {"mix": {"name": "aioli", "interval": 1, "eval_dataset": {"docs": "docs_heldout"}}}},
        ("dataflex.mix.eval_dataset: aioli needs", "none of code, arithmetic"),
    ),
    "nothing to learn": (
        {"dataflex": loss_gap(eval_dataset=HELDOUT), "cutoff_len": 1},
        ("dataflex.mix.eval_dataset: no held-out row of 'code' has",),
    ),
    "too few references": (
        {"dataflex": loss_gap(reference_losses=[1.0], eval_dataset=HELDOUT)},
        ("dataflex.mix.reference_losses: 1 given for 3 data sets",),
    ),
    "probes all alike": (
        {"dataflex": {"mix": {"name": "aioli", "interval": 1, "one_hot": 1 / 3, "eval_dataset": HELDOUT}}},
        ("dataflex.mix.one_hot must not be 1 / 3",),
    ),
    "not a switch": ({"dataflex": {**STATIC, "evaluate_domains": "perhaps"}}, ("dataflex.evaluate_domains",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_held_out_is_one_clear_line(base: Config, tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    assert_refused(train({**base, **changes}, tmp_path / "run", hooks=["no_model"]), *words)


@pytest.mark.parametrize("key", ["dataflex.mix.eval_dataset", "mixer_eval_dataset", "eval_dataset"])
def test_rows_that_are_trained_on_are_no_held_out_rows(base: Config, ground: Path, tmp_path: Path, key: str) -> None:
    """Under another name, from each source."""
    data = renamed(
        ground, tmp_path, {"code_eval": "code_heldout", "docs_eval": "arithmetic", "arithmetic_eval": "docs_heldout"}
    )
    names = "code_eval,docs_eval,arithmetic_eval"
    changes: Config = {
        "dataflex.mix.eval_dataset": static(eval_dataset=names),
        "mixer_eval_dataset": {**FLAT, "mixer_eval_dataset": names},
        "eval_dataset": {**static(), "eval_dataset": names},
    }[key]
    run = train({**base, **EVALUATES, "dataset_dir": data, **changes}, tmp_path / "run", hooks=["no_model"])
    assert_refused(run, f"{key}: what is held out of 'docs' has the rows of 'arithmetic'")


def test_a_key_without_effect_is_said() -> None:
    run = {"stage": "sft", "do_train": True, "dataset": "code", **static(eval_dataset="code_x")}
    line = "dataflex.mix.eval_dataset has no effect: static reads no held-out rows, and nothing is evaluated by domain"
    assert parse(run).notices == (line,)
    assert parse({**run, **EVALUATES}).notices == ()
    assert parse({**run, "do_eval": True}).llamafactory["eval_dataset"] == "code_x"
    assert parse({**run, **EVALUATES, "eval_dataset": "y"}).llamafactory["eval_dataset"] == "y"
    assert "eval_dataset" not in parse({**run, **EVALUATES, "val_size": 0.1}).llamafactory
    with pytest.raises(ConfigError, match=r"^dataflex\.mix\.eval_dataset: 'code' is also in dataset"):
        parse({**run, **static(eval_dataset="code")})


# -- the signal ------------------------------------------------------------------------------------------------------

RECORDER = {"mix": {"name": "own_components:HeldOutRecorder", "interval": 100, "eval_dataset": HELDOUT}}


def recorded(run: Result, step: int) -> dict[str, np.ndarray]:
    with np.load(run.ok.out / f"checkpoint-{step}" / "dataflex" / "arrays.npz") as arrays:
        return {name: arrays[f"components/mix/{name}"] for name in HeldOutRecorder().init(None)}  # type: ignore[arg-type]


def test_the_signal_is_the_loss_of_each_held_out_row(base: Config, ground: Path, tmp_path: Path) -> None:
    """At step 0, so of the model as it is loaded; a row without a trainable token has none."""
    config = {**base, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "dataflex": RECORDER}
    run = train(config, tmp_path / "run", hooks=["own_component", "dump_held_out", "mask_rows:12"])
    found = recorded(run, 1)
    rows = [row for own in held_out(run).values() for row in own]
    assert found["sizes"].tolist() == [10, 10, 10]
    assert np.flatnonzero(np.isnan(found["values"])).tolist() == [12]
    del rows[12]
    sums, counts, _ = one_by_one(ground / "model", rows)
    assert np.delete(found["values"], 12) == pytest.approx(np.array(sums) / counts, rel=1e-6)


def test_pairs_have_the_loss_of_the_stage(base: Config, tmp_path: Path) -> None:
    """dpo before the first step: log 2 for every held-out pair. An evaluation says nothing of domains."""
    config = {
        **base, "stage": "dpo", "dataset": "arithmetic_pairs", "finetuning_type": "lora", "lora_rank": 4, "max_steps": 1,
        "val_size": 0.2, **EVALUATES, "save_strategy": "steps", "save_steps": 1,
        "dataflex": {"mix": {"name": "own_components:HeldOutRecorder", "interval": 100}},
    }  # fmt: skip
    run = train(config, tmp_path / "run", hooks=["own_component"])
    assert recorded(run, 1)["values"] == pytest.approx(np.full(12, log(2)), rel=1e-6)
    assert list(evaluations(run).values()) == [{}]


def test_a_mixer_and_an_evaluation_share_a_measurement(base: Config, tmp_path: Path) -> None:
    """Evaluations after steps 2 and 4 and at the end, an update before the third step: three passes of one batch each."""
    block = {"scoring_tokens": 8192, "mix": {**RECORDER["mix"], "warmup": 2}}
    config = {**base, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": HELDOUT}
    hooks = ["own_component", "count_forwards"]
    on, off = train_all(
        start({**config, "dataflex": block}, tmp_path / "on", hooks=hooks),
        start({**config, "dataflex": {**block, "evaluate_domains": False}}, tmp_path / "off", hooks=hooks),
    )
    assert on.ok.forwards()["eval"] == off.ok.forwards()["eval"] + 2
    assert [r["component"] for r in on.ledger()][1:] == [
        "evaluate", "mix:own_components:HeldOutRecorder", "evaluate", "evaluate",
    ]  # fmt: skip


def test_held_out_rows_that_decide_are_part_of_the_run(base: Config, ground: Path, tmp_path: Path) -> None:
    """Other ones are refused on resuming where a mixer reads them, and are free where they are only evaluated."""
    data = renamed(ground, tmp_path, {"other": "topics_heldout"})
    other = {"code": "other", "docs": "docs_heldout", "arithmetic": "arithmetic_heldout"}
    saves = {**base, "dataset_dir": data, "save_strategy": "steps", "save_steps": 6}
    for name, block in (("gap", loss_gap(eval_dataset=HELDOUT)), ("static", STATIC)):
        train({**saves, **EVALUATES, "dataflex": block}, tmp_path / name, hooks=["kill_after:7"])
    changed = {**saves, **EVALUATES, "dataflex": loss_gap(eval_dataset=other)}
    assert_refused(train(changed, tmp_path / "gap"), "content held out of code was", "now")
    free = {**STATIC, "mix": {**STATIC["mix"], "eval_dataset": other}}
    assert max(train({**saves, **EVALUATES, "dataflex": free}, tmp_path / "static").ok.trace()) == 12


# -- mixers ----------------------------------------------------------------------------------------------------------


def test_loss_gap_follows_held_out_losses(base: Config, ground: Path, tmp_path: Path) -> None:
    """The first decision by hand: rows of the domain whose loss is farthest above its reference are wanted more."""
    block = loss_gap(reference_losses=[9.0, 6.0, 4.0], eval_dataset=HELDOUT, proportions=[0.5, 0.3, 0.2])
    config = {**base, "max_steps": 5, "dataflex": block, "eval_strategy": "steps", "eval_steps": 4}
    run = train(config, tmp_path / "run", hooks=["dump_held_out"])

    def moved(shares: list[float], losses: list[float]) -> list[float]:
        raised = [p * exp(l - r) for p, l, r in zip(shares, losses, (9.0, 6.0, 4.0), strict=True)]
        return [(1 - 1e-4) * w / sum(raised) + 1e-4 / 3 for w in raised]

    means = []
    for rows in held_out(run).values():
        sums, counts, _ = one_by_one(ground / "model", rows)
        assert len(set(counts)) > 1, "rows of one length would not tell token means from means of rows"
        means.append(sum(sums) / sum(counts))
    assert means[0] < 9.0 and means[2] > 4.0  # below its reference, and above
    wanted = dict(zip(DOMAINS, moved([0.5, 0.3, 0.2], means), strict=True))
    decisions = [r for r in run.ledger() if r["component"] == "mix:loss_gap"]
    assert [r["step"] for r in decisions] == [0, 4]
    assert decisions[0]["decided"]["proportions"] == pytest.approx(wanted, rel=1e-6)
    assert decisions[0]["from"]["signals"] == ["heldout_loss", "heldout_tokens"]
    losses = [evaluations(run)[4][f"eval_dataflex/loss/{name}"] for name in DOMAINS]  # between the two decisions
    after = moved(list(wanted.values()), losses)
    assert list(decisions[1]["decided"]["proportions"].values()) == pytest.approx(after, rel=1e-6)


def test_aioli_learns_the_law_that_losses_follow() -> None:
    """Losses that fall by A p in every interval: A is found, the mixture is the softmax of its column sums."""
    law = np.array([[3.0, 1.0, 0.0], [0.5, 2.0, 0.5], [0.0, 0.5, 1.5]]) / 9
    mixer = AioliMixer(one_hot=0.6, sweeps=2, probe_share=0.6, eta=0.7, ema=None)
    state = mixer.init(DomainInfo(DOMAINS, np.array([60, 60, 60]), np.array([0.5, 0.3, 0.2])))
    losses, p, measured, mixtures = np.array([8.0, 7.0, 6.0]), np.array([0.5, 0.3, 0.2]), [], []
    for turn in range(12):
        measured.append(bool(mixer.needs_now(state)))
        signals = {"heldout_loss": [np.array([value, np.nan, value]) for value in losses]}
        zero = np.zeros(3)
        decision, state = mixer.update(
            state, Observations(turn, turn, p, zero, zero, zero, zero, signals, np.random.default_rng(0))
        )
        p = decision.proportions
        mixtures.append(p)
        losses = losses - law @ p
    probes = [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]
    assert np.allclose(mixtures[:6], probes * 2, rtol=0, atol=1e-15)  # the round: six probes, four intervals of rest
    assert np.allclose(state["law"], law / law.sum(), rtol=0, atol=1e-12)
    weights = np.array([0.5, 0.3, 0.2]) * np.exp(0.7 * law.sum(axis=0) / law.sum())
    assert np.allclose(mixtures[6:10], weights / weights.sum(), rtol=0, atol=1e-12)
    assert np.allclose(mixtures[10:], probes[:2], rtol=0, atol=1e-15)
    assert measured == [True] * 7 + [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("loss_gap", "losses", "held"), ("loss_gap", "reference_losses", []),
        ("loss_gap", "reference_losses", [1.0, float("nan")]),
        ("aioli", "eta", -1), ("aioli", "ema", 1.0), ("aioli", "one_hot", 0), ("aioli", "sweeps", 0),
        ("aioli", "probe_share", 1.0),
    ],
)  # fmt: skip
def test_a_parameter_outside_its_range_is_named(name: str, parameter: str, value: Any) -> None:
    needed = {"reference_losses": [1.0, 1.0]} if name == "loss_gap" else {}
    block = {"mix": {"name": name, "interval": 2, **needed, parameter: value}}
    with pytest.raises(ConfigError, match=rf"^dataflex\.mix\.{parameter} must be "):
        parse({"stage": "sft", "do_train": True, "dataset": "a,b", "val_size": 0.1, "dataflex": block})


@pytest.mark.parametrize(("kill", "resumes_at"), [("kill_after:4", 3), ("kill_after:11", 9)])
def test_aioli_killed_and_resumed_is_not_killed(base: Config, tmp_path: Path, kill: str, resumes_at: int) -> None:
    """In the middle of a round of probes, and in the second round; it evaluates on the way."""
    aioli = {"name": "aioli", "interval": 1, "probe_share": 0.5, "eval_dataset": HELDOUT}
    config = {
        **base, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2,
        "dataflex": {"mix": aioli},
    }  # fmt: skip
    kill_and_resume(config, tmp_path, kill, resumes_at)
    ledger = [json.loads(line) for line in (tmp_path / "whole" / "dataflex" / "ledger.jsonl").read_text().splitlines()]
    decided = [list(r["decided"]["proportions"].values()) for r in ledger if r["component"] == "mix:aioli"]
    assert len(decided) == 12
    assert decided[0] == decided[6] == [0.75, 0.125, 0.125]
    assert decided[3] == decided[4] == decided[5] != decided[9]


# -- what a mixture says of itself -----------------------------------------------------------------------------------


def test_epochs_and_realized_rows(base: Config, tmp_path: Path) -> None:
    """From the ids served: epochs at every log, and rows served between decisions, a sample from those requested."""
    small = {"mix": {"name": "random", "warmup": 2, "interval": 5, "proportions": [0.8, 0.1, 0.1]}}
    config = {**base, "max_steps": 40, "logging_steps": 3, "dataflex": small}
    run = train(config, tmp_path / "run", hooks=["record_ids"])
    order = [i // 60 for ids in run.ok.ids().values() for i in ids]

    def served(begin: int, end: int) -> list[int]:
        return np.bincount(order[begin:end], minlength=3).tolist()

    scalars = run.scalars()
    assert len(scalars) == 13
    for step, found in scalars.items():
        assert [found[f"dataflex/epochs/{n}"] for n in DOMAINS] == [c / 60 for c in served(0, 4 * step)]
    assert max(scalars[39][f"dataflex/epochs/{n}"] for n in DOMAINS) > 1, "the case is no case: no domain starts over"
    before, shares = 0, [0.8, 0.1, 0.1]
    decisions = [r for r in run.ledger() if r["component"] == "mix:random"]
    assert len(decisions) == 8
    for record in decisions:
        assert record["from"]["realized"] == served(before, record["position"])
        assert record["from"]["requested"] == pytest.approx(shares, rel=1e-9)
        before, shares = record["position"], list(record["decided"]["proportions"].values())
