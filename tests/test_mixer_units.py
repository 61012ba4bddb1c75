"""Shares of rows and shares of tokens are never mixed: domains that differ only in the length of their rows are treated alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import start, train_all

from dataflex.components.contexts import DomainInfo, Observations
from dataflex.components.contracts import Mixer
from dataflex.components.mixers.ado import AdoMixer
from dataflex.components.mixers.aioli import AioliMixer
from dataflex.components.mixers.doremi import DoremiMixer
from dataflex.components.mixers.loss_gap import LossGapMixer
from dataflex.components.mixers.odm import OdmMixer
from dataflex.components.registry import MIXERS
from dataflex.config import parse
from dataflex.deciding.mixing import domain_info

Config = dict[str, Any]
TOTAL, TRAINED = (
    np.array([120.0, 300.0]),
    np.array([100.0, 150.0]),
)  # tokens of a row, and those of them that carry a loss

READ_LOSSES: dict[str, Mixer] = {
    "odm": OdmMixer(),
    "odm averaged": OdmMixer(reward="averaged"),
    "odm unbiased": OdmMixer(reward="unbiased"),
    "ado": AdoMixer(fit_every=20),
    "aioli": AioliMixer(),
    "doremi": DoremiMixer(reference_model_path="x"),
    "loss_gap": LossGapMixer(reference_losses=(1.0, 1.0)),
    "loss_gap of training losses": LossGapMixer(reference_losses=(1.0, 1.0), losses="train"),
}
READ_NO_LOSSES = {
    *("static", "uniform", "proportional", "stratified", "temperature", "random", "schedule", "file", "replay"),
    *("doge", "dynamic_moe"),
}


def test_every_mixer_that_reads_losses_is_here() -> None:
    assert {case.split()[0] for case in READ_LOSSES} | READ_NO_LOSSES == set(MIXERS)


@pytest.mark.parametrize("unit", ["samples", "tokens"])
@pytest.mark.parametrize("case", READ_LOSSES)
def test_domains_that_differ_only_in_length_keep_equal_shares(case: str, unit: str) -> None:
    """Equal losses, which fall together (for aioli in a line, since it compares falls); 60 updates, each after rows of the
    shares that were asked for, in the unit."""
    mixer, pi = READ_LOSSES[case], np.array([0.5, 0.5])
    state = mixer.init(DomainInfo(("short", "long"), np.array([1000, 1000]), pi))
    found = []
    for step in range(1, 61):
        rows = 64 * pi if unit == "samples" else 64 * 200 * pi / TOTAL
        served = rows if unit == "samples" else rows * TOTAL
        loss = 6.0 - 0.02 * step if case == "aioli" else 1.5 + 6 * (64 * step) ** -0.3
        heldout = [np.full(3, loss), np.full(3, loss)]
        decision, state = mixer.update(
            state,
            Observations(
                step=step, update=step - 1, proportions=pi, rows=rows, loss=rows * loss, tokens=rows * TRAINED,
                token_loss=rows * TRAINED * loss, excess=rows * TRAINED * (loss - 1), realized=served / served.sum(),
                signals={"heldout_loss": heldout, "heldout_tokens": [np.ones(3), np.ones(3)]},
                rng=np.random.default_rng(0), learning_rate=1e-3, asked=pi,
            ),
        )  # fmt: skip
        assert decision is not None
        pi = decision.proportions
        found.append(pi if decision.loss_weights is None else decision.loss_weights)
    probes = case == "aioli"  # which draws one domain more often than the other, in turn
    kept = [p for p in found if not probes or abs(p[0] - p[1]) < 0.4]
    np.testing.assert_allclose(kept, 0.5, rtol=0, atol=1e-12 if case != "ado" else 1e-6)
    assert len(kept) > 40


class Rows:
    """Ten rows of 120 tokens and thirty of 300."""

    def __init__(self) -> None:
        from dataflex.plan.plan import Domains

        self.domains, self.sizes = Domains(("short", "long"), (10, 30)), (10, 30)

    def lengths(self) -> np.ndarray:
        return np.array([120] * 10 + [300] * 30, dtype=np.int32)


@pytest.mark.parametrize("unit, short", [("samples", 10 / 40), ("tokens", 1200 / 10200)])
def test_sizes_are_in_the_unit_of_the_proportions(unit: str, short: float) -> None:
    """So `proportional` and `initial: stratified` are the shares of plain training in either unit."""
    for mix in ({"name": "proportional"}, {"name": "odm", "interval": 5, "initial": "stratified"}):
        raw = {"stage": "sft", "do_train": True, "dataset": "short, long", "dataflex": {"mix": {**mix, "unit": unit}}}
        config = parse(raw).dataflex
        assert config is not None and config.mix is not None
        found = config.mix.component.initial(domain_info(config.mix, Rows()))
        np.testing.assert_allclose(found, [short, 1 - short], rtol=1e-12)


@pytest.mark.slow
def test_a_real_run_keeps_domains_of_the_same_sentences_equal(base: Config, ground: Path, tmp_path: Path) -> None:
    """A row of `long` is six rows of `short`, one after the other; shares of tokens, by every reward of odm and by ado."""
    rows = [json.loads(line) for line in (ground / "data" / "arithmetic.jsonl").read_text().splitlines()]
    answers = [row["output"] for row in rows]
    parts = {"short": answers, "long": ["\n".join(answers[i : i + 6]) for i in range(0, len(answers), 6)]}
    folder, info = tmp_path / "data", {}
    folder.mkdir()
    for name, texts in parts.items():
        lines = [json.dumps({"instruction": "Go on.", "output": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        columns = {"prompt": "instruction", "response": "output"}
        info[name] = {"file_name": f"{name}.jsonl", "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    config = {
        **base, "dataset_dir": str(folder), "dataset": "short,long", "cutoff_len": 512, "max_steps": 24,
        "model_name_or_path": str(ground / "still"), "per_device_train_batch_size": 8,
    }  # fmt: skip
    common = {"unit": "tokens", "warmup": 1, "interval": 1, "initial": "uniform"}
    cases = {reward: {"name": "odm", "reward": reward} for reward in ("authors", "averaged", "unbiased")}
    cases["ado"] = {"name": "ado", "fit_after": 6, "ignore": 1}
    runs = train_all(
        *(
            start({**config, "dataflex": {"mix": {**mix, **common}}}, tmp_path / name)  # type: ignore[arg-type]
            for name, mix in cases.items()
        )
    )
    for name, run in zip(cases, runs, strict=True):
        decided = [r for r in run.ok.ledger() if r["component"].startswith("mix:")]
        shares = np.array([list(r["decided"]["proportions"].values()) for r in decided])
        served = np.sum([r["from"]["rows"] for r in decided], axis=0)
        tokens = np.sum([r["from"]["realized"] for r in decided], axis=0)
        assert len(decided) == 23 and tokens[0] == pytest.approx(tokens[1], rel=0.2), name
        assert served[0] > 2.5 * served[1] and tokens.min() > 40 * served[1], name  # rows of unequal length
        assert np.abs(shares - 0.5).max() < 0.06, name
