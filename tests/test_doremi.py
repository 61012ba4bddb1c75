"""DoReMi through the real command line: weights that reach the loss, stored reference losses, and the three steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from harness import Result, Run, start, train, train_all
from models_and_data import load

from dataflex.cli import main

Config = dict[str, Any]
PI = [0.5, 0.3, 0.2]
K = len(PI)


def doremi(base: Config, reference: Path, **mix: Any) -> Config:
    return {**base, "dataflex": {"mix": {"name": "doremi", "reference_model_path": str(reference), **mix}}}


def token_losses(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """Cross entropies of the trainable tokens of one row."""
    ids = torch.tensor(row["input_ids"])
    targets = torch.tensor(row.get("labels", row["input_ids"]))[1:]
    losses = F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1].float(), targets, reduction="none")
    return losses[targets != -100]


def alphas(run: Result) -> dict[int, np.ndarray]:
    """step -> alpha, from the loss weights in the ledger."""
    return {
        r["step"]: np.array(list(r["decided"]["loss_weights"].values()))
        for r in run.ledger()
        if r["component"] == "mix:doremi"
    }


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_reach_the_loss(
    base: Config, ground: Path, reference: Path, tmp_path: Path, ranks: int, accumulation: int
) -> None:
    """Loss and gradient norm of the first step are those of sum_i alpha_i l_i, l_i the mean over the tokens of domain i in the
    global batch, although domains differ in the number and the length of their rows; and alpha follows from the losses. 20
    rows are drawn by pi to the row. The model stays as it is, so the second step is known too: there, a domain's tokens weigh
    by the lengths of both steps."""
    config = {
        **doremi(base, reference, proportions=PI, reweight_eta=1.0),
        "model_name_or_path": str(ground / "still"),
        "max_steps": 2,
        "learning_rate": 1e-12,
        "per_device_train_batch_size": 20 // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    run = train(config, tmp_path / "run", ranks=ranks, hooks=["record_ids", "dump_labels"]).ok
    rows = json.loads((run.out / "labels.json").read_text())
    model, other = load(ground / "still"), load(reference)
    assert [Counter(i // 60 for i in ids) for ids in run.ids().values()] == [{0: 10, 1: 6, 2: 4}] * 2
    means, counts = [], []
    excess = np.zeros(K)
    for step, served in run.ids().items():
        losses = [torch.cat([token_losses(model, rows[i]) for i in served if i // 60 == d]) for d in range(K)]
        means.append(torch.stack([own.mean() for own in losses]))
        counts.append(np.array([len(own) for own in losses]))
        if step == 0:
            with torch.no_grad():
                known = [torch.cat([token_losses(other, rows[i]) for i in served if i // 60 == d]) for d in range(K)]
            excess = np.array([float((a - b).detach().clamp(min=0).mean()) for a, b in zip(losses, known, strict=True)])
    loss = means[0].mean()  # alpha is 1 / 3 of each
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm()
    trace = run.trace()
    assert trace[1][0] == pytest.approx(loss.item(), rel=1e-5)
    assert trace[1][1] == pytest.approx(float(norm), rel=1e-4)
    assert len(set(counts[0])) == K and counts[0][0] / counts[0].sum() != pytest.approx(1 / 3, abs=0.05)
    raised = np.exp(excess) / K
    alpha = 0.999 * raised / raised.sum() + 0.001 / K
    np.testing.assert_allclose(alphas(run)[1], alpha, rtol=1e-5)
    say = alpha * counts[1] / (counts[0] + counts[1])  # tau is as the tokens of both steps
    expected = float((torch.tensor(say / say.sum()) * means[1]).sum())
    assert trace[2][0] == pytest.approx(expected, rel=1e-5)


def test_eta_zero_is_uniform_mixing_to_the_bit(base: Config, reference: Path, tmp_path: Path) -> None:
    """Where all rows have the same length, as packed text has."""
    names = ("code", "docs", "arithmetic")
    packed = {**base, "stage": "pt", "packing": True, "dataset": ",".join(f"{name}_text" for name in names)}
    config = doremi(packed, reference, reweight_eta=0.0)
    ours, static = train_all(
        start(config, tmp_path / "doremi"), start({**packed, "dataflex": {"mix": "uniform"}}, tmp_path / "uniform")
    )
    assert ours.ok.trace() == static.ok.trace() and len(ours.trace()) == 12
    found = json.loads((ours.out / "dataflex" / "proportions.json").read_text())
    np.testing.assert_allclose(list(found.values()), [1 / 3] * 3, rtol=1e-12)


def test_it_is_exact_when_killed_and_on_two_ranks(base: Config, reference: Path, tmp_path: Path) -> None:
    """Reference losses that are there are not measured again; alpha goes on where it was, with its mean; two ranks agree with
    one. No second model is in memory when the proxy is loaded."""
    config = {**doremi(base, reference, proportions=PI), "save_strategy": "steps", "save_steps": 5}
    hooks = ["record_ids", "one_model_at_a_time", "count_measured"]
    half = {**config, "per_device_train_batch_size": 2}
    whole, killed, two = train_all(
        start(config, tmp_path / "whole", hooks=hooks),
        start(config, tmp_path / "killed", hooks=[*hooks, "kill_after:8"]),
        start(half, tmp_path / "two", hooks=hooks, ranks=2),
    )
    assert killed.status != [0] and (killed.out / "checkpoint-5").is_dir()
    again = train(config, tmp_path / "killed", hooks=hooks).ok
    assert json.loads((whole.ok.out / "measured.json").read_text())[0] > 1000
    assert json.loads((again.out / "measured.json").read_text()) == [0]
    assert again.trace() == whole.trace() and again.scalars() == whole.scalars() and again.ledger() == whole.ledger()
    results = [(r.out / "dataflex" / "proportions.json").read_text() for r in (whole, again)]
    assert results[0] == results[1]
    assert two.ok.ids() == whole.ids()
    one, other = alphas(whole), alphas(two)
    assert list(one) == list(range(12)) and one.keys() == other.keys()
    for step, alpha in one.items():  # dropout differs between ranks, so the losses do
        assert alpha.sum() == pytest.approx(1.0, abs=1e-6) == other[step].sum()
    mean = np.mean([a for s, a in one.items() if s], axis=0)
    np.testing.assert_allclose(list(json.loads(results[0]).values()), mean, rtol=1e-5)
    assert len({tuple(a) for a in one.values()}) == 12


def test_one_and_two_ranks_decide_the_same(base: Config, ground: Path, reference: Path, tmp_path: Path) -> None:
    """Without dropout the whole course of alpha is the same up to rounding."""
    config = {**doremi(base, reference, proportions=PI), "model_name_or_path": str(ground / "still"), "max_steps": 6}
    one, two = train_all(
        start(config, tmp_path / "one"),
        start({**config, "per_device_train_batch_size": 2}, tmp_path / "two", ranks=2),
    )
    for step, alpha in alphas(one.ok).items():
        np.testing.assert_allclose(alphas(two.ok)[step], alpha, rtol=1e-4)


def test_weights_by_domain_reach_the_loss(base: Config, ground: Path, tmp_path: Path) -> None:
    """A first step of equal tokens per row is not needed: the loss is that of the formula, weights with mean one."""
    found = tmp_path / "proportions.json"
    found.write_text(json.dumps({"docs": 0.2, "code": 0.5, "arithmetic": 0.3}))
    block = {"mix": {"name": "uniform"}, "weight": {"name": "domain", "by_domain": str(found)}}
    config = {**base, "model_name_or_path": str(ground / "still"), "max_steps": 1, "per_device_train_batch_size": 8}
    run = train({**config, "dataflex": block}, tmp_path / "run", hooks=["record_ids", "dump_labels"]).ok
    rows, model = json.loads((run.out / "labels.json").read_text()), load(ground / "still")
    served = run.ids()[0]
    raw = np.array([[0.5, 0.2, 0.3][i // 60] for i in served])
    weights = raw / raw.mean()
    with torch.no_grad():
        losses = [token_losses(model, rows[i]) for i in served]
    total = sum(w * float(own.sum()) for w, own in zip(weights, losses, strict=True))
    assert run.trace()[1][0] == pytest.approx(total / sum(map(len, losses)), rel=1e-5)
    alone = train({**config, "dataflex": {"weight": block["weight"]}}, tmp_path / "alone")
    assert alone.status == [2] and "dataflex.weight.name: domain goes by the data set of a row" in alone.log


@pytest.mark.parametrize(
    "changes",
    [{"stage": "pt"}, {"packing": True}, {"neat_packing": True, "packing": True}, {"finetuning_type": "lora"}],
    ids=["pt", "packing", "neat", "lora"],
)
def test_stored_losses_are_those_of_the_reference(
    base: Config, reference: Path, tmp_path: Path, changes: Config
) -> None:
    """Token by token, however rows are made; and the training pass finds as many tokens in every row (it would fail)."""
    config = {**doremi(base, reference), **changes, "max_steps": 3, "cutoff_len": 96}
    run = train(config, tmp_path / "run", hooks=["dump_labels"]).ok
    rows = json.loads((run.out / "labels.json").read_text())
    (file,) = (run.out / "dataflex" / "reference").glob("*/values.npy")
    values, model, start_at = np.load(file), load(reference), 0
    neat = changes.get("neat_packing", False)
    with torch.no_grad():
        for row in rows:
            own = token_losses(model, row).numpy()
            found = values[start_at : start_at + len(own)]
            if not neat:  # there, a sequence does not see the ones before it
                np.testing.assert_allclose(found, own, rtol=2e-4, atol=2e-5)
            start_at += len(own)
    assert start_at == len(values) and np.isfinite(values).all() and (values > 0).all()
    assert len({r["step"] for r in run.history()}) == 3


def test_references_are_told_apart(base: Config, ground: Path, reference: Path, tmp_path: Path) -> None:
    """A store that runs share keeps the losses of each model and each data set."""
    store = str(tmp_path / "store")
    config = {**doremi(base, reference, reference_store=store), "max_steps": 1}
    first = train(config, tmp_path / "a", hooks=["count_measured"])
    same = train({**config, "seed": 7}, tmp_path / "b", hooks=["count_measured"]).ok
    other = train(
        {**doremi(base, ground / "still", reference_store=store), "max_steps": 1},
        tmp_path / "c",
        hooks=["count_measured"],
    ).ok
    fewer = train({**config, "max_samples": 20}, tmp_path / "d", hooks=["count_measured"]).ok
    measured = [sum(json.loads((r.out / "measured.json").read_text())) for r in (first.ok, same, other, fewer)]
    assert measured[1] == 0 and measured[0] == measured[2] > measured[3] > 0
    assert len(list(Path(store).iterdir())) == 3


@pytest.mark.parametrize(
    "mix, changes, message",
    [
        ({}, {}, "dataflex.mix.reference_model_path is required by doremi"),
        ({"reference_model_path": "/no/such"}, {}, "dataflex.mix.reference_model_path: no such directory: /no/such"),
        ({"reference_model_path": "GROUND/data"}, {}, "dataflex.mix.reference_model_path: GROUND/data holds no model"),
        (
            {"reference_model_path": "REFERENCE", "reweight_eps": 2},
            {},
            "dataflex.mix.reweight_eps must be in [0, 1], got 2.0",
        ),
        ({"reference_model_path": "REFERENCE"}, {"stage": "dpo"}, "stage: dpo has pairs of answers"),
        ({"reference_model_path": "REFERENCE"}, {"enable_liger_kernel": True}, "enable_liger_kernel hides the logits"),
        ({"reference_model_path": "REFERENCE", "reweight_ets": 1}, {}, "dataflex.mix.reweight_ets: doremi has no such"),
    ],
)
def test_bad_input_is_one_line(
    base: Config, ground: Path, reference: Path, tmp_path: Path, mix: Config, changes: Config, message: str
) -> None:
    def filled(text: Any) -> Any:
        return (
            text.replace("GROUND", str(ground)).replace("REFERENCE", str(reference)) if isinstance(text, str) else text
        )

    block = {"mix": {"name": "doremi", **{k: filled(v) for k, v in mix.items()}}}
    run = train({**base, **changes, "dataflex": block}, tmp_path / "run")
    assert run.status == [2]
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"dataflex: error: {filled(message)}"), run.log
    assert "Traceback" not in run.log


# -- the three steps in one command ----------------------------------------------------------------------------------


def three_steps(base: Config, out: Path) -> Config:
    keys = {k: v for k, v in base.items() if k != "max_steps"}
    return {
        **keys, "output_dir": str(out), "save_strategy": "steps", "save_steps": 3,
        "dataflex": {
            "total_steps": 8,
            "mix": {"reweight_eta": 2.0},
            "doremi": {"reference": {"total_steps": 5}, "final": {"learning_rate": 2e-3}},
        },
    }  # fmt: skip


def test_one_command_runs_all_three(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Reference, proxy and final run; each is a plain file, what is done is not done again, and a later step can be run by
    itself."""
    out, file = tmp_path / "out", tmp_path / "doremi.yaml"
    file.write_text(yaml.safe_dump(three_steps(base, out)))
    started: list[str] = []

    def in_a_fork(arguments: list[str], env: dict[str, str]) -> int:
        assert arguments[:2] == ["-m", "dataflex"] and env == {
            "DATAFLEX_PARENT": str(os.getpid()),
            "DATAFLEX_GOES_ON": "1",
        }
        started.append(Path(arguments[3]).stem)
        return Run(arguments[2:], tmp_path / "logs" / started[-1], 1, [], {}).wait().ok.status[0]

    monkeypatch.setattr("dataflex.base.processes.children.run", in_a_fork)
    assert main(["doremi", str(file), "dataflex.doremi.steps=[reference,proxy]"]) == 0
    assert started == ["reference", "proxy"] == list(json.loads((out / "doremi.json").read_text()))
    assert not (out / "final").exists()
    capfd.readouterr()
    assert main(["doremi", str(file)]) == 0
    said = capfd.readouterr().err
    assert "reference: done before" in said and "proxy: done before" in said
    assert started == ["reference", "proxy", "final"]
    found = json.loads((out / "proxy" / "dataflex" / "proportions.json").read_text())
    ledger = [json.loads(line) for line in (out / "final" / "dataflex" / "ledger.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(ledger[0]["stage"]["proportions"], list(found.values()), atol=1e-9)
    assert sum(found.values()) == pytest.approx(1.0) and len({round(p, 6) for p in found.values()}) == 3
    states = {s: json.loads((out / s / "trainer_state.json").read_text()) for s in ("reference", "proxy", "final")}
    assert [s["max_steps"] for s in states.values()] == [5, 8, 8]
    again = train_again(out / "final.yaml", tmp_path / "plain")
    assert again == [r["loss"] for r in states["final"]["log_history"] if "loss" in r]


@pytest.mark.slow
def test_the_command_starts_its_steps_by_itself(base: Config, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "doremi.yaml"
    file.write_text(yaml.safe_dump(three_steps(base, out)))
    command = [sys.executable, "-m", "dataflex", "doremi", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert list(json.loads((out / "doremi.json").read_text())) == ["reference", "proxy", "final"]
    assert json.loads((out / "final" / "trainer_state.json").read_text())["global_step"] == 8


def train_again(file: Path, out: Path) -> list[float]:
    """The losses of a step's own file, run with `train`."""
    run = train({**yaml.safe_load(file.read_text()), "output_dir": str(out)}, out).ok
    return [loss for loss, _ in run.trace().values()]


def test_a_bad_step_is_one_line(base: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Before any of the runs begins."""
    config = three_steps(base, tmp_path / "out")
    file = tmp_path / "doremi.yaml"
    file.write_text(yaml.safe_dump(config))
    for changes, message in [
        (["dataflex.doremi.steps=[final]"], "dataflex.doremi.steps: there is no"),
        (["dataflex.doremi.steps=[proxi]"], "dataflex.doremi.steps: unknown step 'proxi'; did you mean 'proxy'?"),
        (["dataflex.doremi.steps=[proxy]"], "dataflex.doremi.steps: there is no reference in"),
        (["dataflex.doremi.finall={}"], "dataflex.doremi.finall: unknown key; did you mean 'final'?"),
        (["dataflex.mix.name=odm"], "dataflex.mix.name: doremi trains its proxy with the mixer doremi, got 'odm'"),
        (["dataflex.weight.name=loss"], "dataflex.weight cannot be part of doremi"),
        (["dataflex.order.name=saw"], "dataflex.order cannot be part of doremi"),
        (["dataflex.doremi.final.learning_rat=1"], "learning_rat: unknown key; did you mean 'learning_rate'?"),
        (["dataflex.mix.reweight_eta=-1"], "dataflex.mix.reweight_eta must be at least 0 and finite, got -1.0"),
    ]:
        assert main(["doremi", str(file), *changes]) == 2
        said = capfd.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("dataflex: error: ")]
        assert len(lines) == 1 and lines[0].startswith(f"dataflex: error: {message}"), said[-2000:]
    assert not (tmp_path / "out").exists()


def test_flat_files_of_1_1_0_run_unchanged(base: Config, tmp_path: Path) -> None:
    """Pre-training on two sets of text, as three files with a components file: reference, proxy, and the final mixture."""
    data = tmp_path / "data"
    data.mkdir()
    info = {}
    for name, word in (("wiki_demo", "river"), ("c4_demo", "offer")):
        rows = [{"text": " ".join(f"The {word} {i * j} is {j}." for j in range(20))} for i in range(30)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}}
    (data / "dataset_info.json").write_text(json.dumps(info))
    params = {"reference_model_path": str(tmp_path / "step1"), "reweight_eta": 0.1, "reweight_eps": 0.01}
    presets = {"mixers": {"doremi": {"name": "doremi", "params": params}, "static": {"name": "static", "params": {}}}}
    (tmp_path / "components.yaml").write_text(yaml.safe_dump(presets))
    keys = {k: v for k, v in base.items() if k not in ("max_steps", "template")}
    common = {
        **keys, "stage": "pt", "dataset_dir": str(data), "dataset": "wiki_demo,c4_demo", "train_type": "dynamic_mix",
        "components_cfg_file": str(tmp_path / "components.yaml"), "mixture_sample_rule": "mixture",
        "warmup_step": 2, "update_step": 4, "update_times": 2, "static_mix": False,
    }  # fmt: skip
    fixed = {"component_name": "static", "static_mix": True, "train_step": 6}
    first = train({**common, **fixed, "init_mixture_proportions": [0.5, 0.5]}, tmp_path / "step1").ok
    proxy = train({**common, "component_name": "doremi", "init_mixture_proportions": [0.5, 0.5]}, tmp_path / "step2").ok
    found = json.loads((proxy.out / "dataflex" / "proportions.json").read_text())
    shares = [found["wiki_demo"], found["c4_demo"]]
    final = train({**common, **fixed, "init_mixture_proportions": shares}, tmp_path / "step3").ok
    assert [len(run.trace()) for run in (first, proxy, final)] == [6, 10, 6]
    updates = [r for r in proxy.ledger() if r["component"] == "mix:doremi"]
    assert [r["step"] for r in updates] == list(range(2, 10))  # at every step from the warmup on
    assert sum(shares) == pytest.approx(1.0) and shares[0] != 0.5
    np.testing.assert_allclose(final.ledger()[0]["stage"]["proportions"], shares, atol=1e-9)
    assert "doremi updates its weights at every one of them" in proxy.log


def test_a_reference_without_finite_losses_is_refused(base: Config, reference: Path, tmp_path: Path) -> None:
    """In one line, before the proxy is loaded; nothing of it would be a loss to compare with."""
    from transformers import AutoTokenizer

    model = load(reference)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(reference).save_pretrained(tmp_path / "broken")
    run = train(doremi(base, tmp_path / "broken"), tmp_path / "run")
    assert run.status == [1]
    assert "dataflex: error: the reference model has no finite loss on some rows" in run.log
