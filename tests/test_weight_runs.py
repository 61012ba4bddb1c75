"""Weights in runs of the real command line: they reach the loss as written out, on every path, and survive a kill."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from checkpoint_files import assert_refused
from comparing import close, kill_and_resume
from harness import Result, plain, start, train, train_all
from models_and_data import load
from pictures import with_pictures

Config = dict[str, Any]
ROWS = 8  # of a global batch


def still(base: Config, ground: Path, weight: Any, *, ranks: int = 1, accumulation: int = 1, **more: Any) -> Config:
    """No dropout, a global batch of 8 rows in the order that `mix: static` gives."""
    return {
        **base,
        "model_name_or_path": str(ground / "still"),
        "max_steps": 3,
        "per_device_train_batch_size": ROWS // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "dataflex": {"mix": "static", "weight": weight},
        **more,
    }


# -- uniform weights are the plain run -------------------------------------------------------------------------------

LORA = {"finetuning_type": "lora", "lora_rank": 4}
PATHS: dict[str, Config] = {
    "pt": {"stage": "pt", "dataset": "code_text,docs_text"},
    "pt unpacked": {"stage": "pt", "dataset": "code_text,docs_text", "packing": False},
    "sft packed": {"packing": True},
    "sft neat": {"neat_packing": True},
    "dft": {"use_dft_loss": True},
    "eaft": {"use_eaft_loss": True},
    "asft": {"use_asft_loss": True},
    "asft packed": {"use_asft_loss": True, "packing": True},
    "smoothed": {"label_smoothing_factor": 0.1},
    "pt smoothed": {"stage": "pt", "dataset": "code_text,docs_text", "label_smoothing_factor": 0.1},
    "rm": {"stage": "rm", "dataset": "arithmetic_pairs", **LORA},
    "dpo": {"stage": "dpo", "dataset": "arithmetic_pairs", **LORA},
    "kto": {"stage": "kto", "dataset": "arithmetic_kto", **LORA},
}
# (ranks, accumulation) that is not slow, of the losses that test_stages.py does not have.
QUICK = {"dft": (1, 4), "eaft": (2, 1), "asft": (1, 4), "smoothed": (1, 4), "pt smoothed": (2, 4), "kto": (2, 1)}
SETTINGS = [
    pytest.param(name, *setting, marks=[] if QUICK.get(name) == setting else pytest.mark.slow)
    for name in PATHS
    for setting in ((1, 1), (1, 4), (2, 1), (2, 4))
]


@pytest.mark.parametrize(("name", "ranks", "accumulation"), SETTINGS)
def test_uniform_weights_are_the_plain_run(
    base: Config, ground: Path, tmp_path: Path, name: str, ranks: int, accumulation: int
) -> None:
    against_plain(base, ground, tmp_path, {"name": "loss", "strategy": "uniform"}, PATHS[name], ranks, accumulation)


def against_plain(
    base: Config, ground: Path, tmp_path: Path, weight: Any, path: Config, ranks: int, accumulation: int
) -> None:
    weighted = still(base, ground, weight, ranks=ranks, accumulation=accumulation, **path)
    config = {k: v for k, v in weighted.items() if k != "dataflex"}
    weighted["dataflex"] = {"weight": weight}
    ours = start(weighted, tmp_path / "uniform", ranks=ranks)
    close(*train_all(ours, plain(config, tmp_path / "plain", ranks=ranks)))


@pytest.mark.parametrize("name", ["sft neat", "smoothed"])
def test_uniform_tokens_are_the_plain_run(base: Config, ground: Path, tmp_path: Path, name: str) -> None:
    weights = [{"name": "focal", "gamma": 0}, {"name": "loss", "strategy": "uniform"}]
    against_plain(base, ground, tmp_path, weights, PATHS[name], 1, 2)


def test_scaling_can_be_fixed(base: Config, ground: Path, tmp_path: Path) -> None:
    """Plain label smoothing is as many times too large as there are micro-batches; fixed, it is that of one batch."""
    smooth = {"label_smoothing_factor": 0.1}
    uniform = {"name": "loss", "strategy": "uniform"}
    one, two, fixed = train_all(
        start(still(base, ground, uniform, **smooth), tmp_path / "one"),
        start(still(base, ground, uniform, accumulation=2, **smooth), tmp_path / "two"),
        start(still(base, ground, {**uniform, "fix_scaling": True}, accumulation=2, **smooth), tmp_path / "fixed"),
    )
    assert fixed.ok.trace()[1] == pytest.approx(one.ok.trace()[1], rel=1e-5)
    assert two.ok.trace()[1][1] > 1.5 * one.trace()[1][1]


# -- the written-out formula -----------------------------------------------------------------------------------------


def batches(run: Result, ranks: int) -> list[dict[str, torch.Tensor]]:
    found = [torch.load(run.out / f"batches-{r}.pt", weights_only=True)["batches"] for r in range(ranks)]
    return [batch for rank in found for batch in rank]


def tokens_of(model: Any, batch: dict[str, torch.Tensor], layer: int = -1) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of each row: cross entropies of the tokens learned; and the hidden states of a layer, [B, T, H]."""
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "dataflex_sample_ids")}
    outputs = model(**inputs, output_hidden_states=True)
    rows = []
    for logits, labels in zip(outputs.logits, batch["labels"], strict=True):
        each = F.cross_entropy(logits[:-1].float(), labels[1:], reduction="none", ignore_index=-100)
        rows.append(each[labels[1:] != -100])
    return rows, outputs.hidden_states[layer].detach()


def check_first_step(run: Result, model: Any, loss: torch.Tensor) -> None:
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm()
    first = run.trace()[1]
    assert first[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert first[1] == pytest.approx(float(norm), rel=1e-4)


def linupper(losses: np.ndarray) -> np.ndarray:
    h = 2 * losses / np.ptp(losses) - (losses.max() + losses.min()) / np.ptp(losses)
    return np.exp(np.minimum(h + 1, 1))


SCOPES = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("ranks", "accumulation"), SCOPES)
def test_row_and_token_weights_reach_the_loss(
    base: Config, ground: Path, tmp_path: Path, ranks: int, accumulation: int
) -> None:
    """loss = sum_i w_i sum_t v_it ce_it / tokens, w by linupper and v by focal, each with mean one over the global batch."""
    weights = [{"name": "loss", "scope": "global"}, {"name": "focal", "gamma": 1.5}]
    config = still(base, ground, weights, ranks=ranks, accumulation=accumulation)
    run = train(config, tmp_path / "run", ranks=ranks, hooks=["dump_batches"]).ok
    model = load(ground / "still")
    rows = [row for batch in batches(run, ranks) for row in tokens_of(model, batch)[0]]
    assert len(rows) == ROWS
    w = linupper(np.array([float(r.detach().mean()) for r in rows]))
    v = [(1 - torch.exp(-r.detach())) ** 1.5 for r in rows]
    mean = torch.cat(v).mean()
    parts = [wi * (vi / mean * r).sum() for wi, vi, r in zip(w / w.mean(), v, rows, strict=True)]
    check_first_step(run, model, sum(parts) / sum(map(len, rows)))
    scalars = run.scalars()[1]
    assert scalars["dataflex/weight/max"] == pytest.approx(w.max() / w.mean(), rel=1e-4)
    assert scalars["dataflex/weight/token/max"] == pytest.approx(float(torch.cat(v).max() / mean), rel=1e-4)
    assert scalars["dataflex/weight/effective_share"] == pytest.approx(w.sum() ** 2 / (w**2).sum() / ROWS, rel=1e-4)


@pytest.mark.parametrize("name", ["sft packed", "sft neat"])
def test_sequences_of_packed_rows_have_weights_of_their_own(
    base: Config, ground: Path, tmp_path: Path, name: str
) -> None:
    config = still(base, ground, {"name": "loss", "strategy": "extremes"}, **{**PATHS[name], "cutoff_len": 512})
    run = train(config, tmp_path / "run", hooks=["dump_batches"]).ok
    model, sequences = load(ground / "still"), []
    for batch in batches(run, 1):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "dataflex_sample_ids")}
        for logits, labels, positions in zip(
            model(**inputs).logits, batch["labels"], batch["position_ids"], strict=True
        ):
            each = F.cross_entropy(logits[:-1].float(), labels[1:], reduction="none", ignore_index=-100)
            begins = [*(positions == 0).nonzero().flatten().tolist(), len(labels)]
            for begin, end in pairwise(begins):
                own = torch.arange(max(begin, 1), end) - 1
                learned = own[labels[own + 1] != -100]
                if len(learned):
                    sequences.append(each[learned])
    assert len(sequences) > 2 * ROWS
    losses = np.array([float(s.detach().mean()) for s in sequences])
    h = 2 * losses / np.ptp(losses) - (losses.max() + losses.min()) / np.ptp(losses)
    w = np.exp(np.abs(h))
    total = sum(wi * s.sum() for wi, s in zip(w / w.mean(), sequences, strict=True))
    check_first_step(run, model, total / sum(map(len, sequences)))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("name", "layer"), [("adapt", -1), ("adapt", 1), ("joint_update_aware", -1)])
def test_embeddings_of_the_same_forward_pass(
    base: Config, ground: Path, tmp_path: Path, name: str, layer: int, ranks: int
) -> None:
    """Weights worked out row by row from hidden states; targets shared by the ranks, once per refresh, in eval mode."""
    key = {"adapt": "refresh_interval", "joint_update_aware": "target_update_step"}[name]
    tau = {"adapt": 0.3, "joint_update_aware": 0.02}[name]
    weight = {"name": name, "tau": tau, key: 2, "target_dataset": "arithmetic_heldout"}
    weight |= {} if layer == -1 else {"embedding_layer": layer}
    config = still(base, ground, weight, ranks=ranks)
    hooks = ["dump_batches", "count_target_rows", "count_forwards"]
    run = train(config, tmp_path / "run", ranks=ranks, hooks=hooks).ok
    model = load(ground / "still")
    target = torch.load(run.out / "batches-0.pt", weights_only=True)["target"]

    def embedded(hidden: torch.Tensor) -> np.ndarray:
        """hidden: [n, H] of one row without padding."""
        weights = torch.arange(1.0, len(hidden) + 1) if name == "adapt" else torch.eye(len(hidden))[-1]
        found = ((weights[:, None] * hidden).sum(0) / weights.sum()).numpy().astype(float)
        return found / np.linalg.norm(found)

    with torch.no_grad():
        states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0] for ids in target]
    u = np.mean([embedded(s) for s in states], axis=0)
    rows, z = [], []
    for batch in batches(run, ranks):
        found, hidden = tokens_of(model, batch, layer)
        rows += found
        z += [embedded(h[: int(m.sum())]) for h, m in zip(hidden, batch["attention_mask"], strict=True)]
    z = np.array(z)
    if name == "adapt":
        w = 1 / (1 + np.exp(-(z @ u) / tau))
    else:
        w = np.full(ROWS, 1 / ROWS)
        for _ in range(6):
            w = np.exp((z @ u - 0.1 * z @ (z.T @ w)) / tau)
            w /= w.sum()
    total = sum(wi * r.sum() for wi, r in zip(w / w.mean(), rows, strict=True))
    check_first_step(run, model, total / sum(map(len, rows)))
    assert w.max() / w.mean() > 1.0005
    seen = [json.loads((run.out / f"target-{r}.json").read_text()) for r in range(ranks)]
    assert sum(map(sum, seen)) - 2 * (ranks - 1) in range(2 * len(target) - 1, 2 * len(target) + 2)  # and a dummy
    assert [r["step"] for r in run.ledger() if r["component"] == f"weight:{name}"] == [0, 2]
    assert run.forwards()["train"] == 3  # one forward pass per step


@pytest.mark.parametrize("ranks", [1, 2])
def test_rho1_trains_on_the_tokens_it_keeps(
    base: Config,
    ground: Path,
    reference: Path,
    tmp_path: Path,
    ranks: int,
) -> None:
    config = still(base, ground, {"name": "rho1", "reference_model_path": str(reference)}, ranks=ranks)
    run = train(config, tmp_path / "run", ranks=ranks, hooks=["dump_batches", "one_model_at_a_time"]).ok
    model, other = load(ground / "still"), load(reference)
    own, known = [], []
    for batch in batches(run, ranks):
        own += tokens_of(model, batch)[0]
        with torch.no_grad():
            known += tokens_of(other, batch)[0]
    own, known = torch.cat(own), torch.cat(known)
    kept = (own.detach() - known).topk(int(np.ceil(0.6 * len(own)))).indices
    check_first_step(run, model, own[kept].mean())
    assert run.scalars()[1]["dataflex/weight/token/zero_share"] == pytest.approx(1 - len(kept) / len(own), abs=1e-6)


@pytest.mark.parametrize(("stage", "accumulation"), [("rm", 1), ("rm", 2), ("dpo", 2), ("kto", 1), ("kto", 2)])
def test_pairs_and_answers_are_weighed(
    base: Config, ground: Path, tmp_path: Path, stage: str, accumulation: int
) -> None:
    """The loss of a step is the mean of w_i l_i, with the stage's own losses."""
    config = still(base, ground, {"name": "loss", "scope": "global"}, accumulation=accumulation, **PATHS[stage])
    run = train({**config, "max_steps": 2, "learning_rate": 0.05}, tmp_path / "run", hooks=["record_weights"]).ok
    seen = [json.loads(line) for line in (run.out / "weights.jsonl").read_text().splitlines()]
    for step in (1, 2):
        own = seen[(step - 1) * accumulation : step * accumulation]
        losses = np.array([v for r in own for v in r["losses"]])
        assert len(losses) == ROWS
        w = linupper(losses) if np.ptp(losses) > 0 else np.ones(ROWS)
        np.testing.assert_allclose([v for r in own for v in r["weights"]], w / w.mean(), rtol=1e-4)
        assert run.trace()[step][0] == pytest.approx(np.mean(w / w.mean() * losses), rel=1e-4)
    assert np.ptp(losses) > 0


@pytest.mark.parametrize(
    "weight", [{"name": "loss", "warmup": 2}, {"name": "focal", "warmup": 2}], ids=["rows", "tokens"]
)
def test_the_last_weight_of_a_row_is_recorded(base: Config, tmp_path: Path, weight: Config) -> None:
    """Of weights of tokens the mean over those that are learned; a row served before the weigher acts has none."""
    run = train({**base, "max_steps": 4, "dataflex": {"weight": weight}}, tmp_path, hooks=["record_weights"]).ok
    expected: dict[int, float | None] = {}
    for text in (run.out / "weights.jsonl").read_text().splitlines():
        line = json.loads(text)
        for i, number in enumerate(line["ids"]):
            given = None if line["weights"] is None else line["weights"][i]
            expected[number] = sum(given) / line["counts"][i] if isinstance(given, list) else given
    table = pq.read_table(run.out / "dataflex" / "exposure.parquet").to_pydict()
    found = dict(zip(table["sample_id"], table["last_weight"], strict=True))
    unweighed = {number for number, value in expected.items() if value is None}
    assert unweighed == {number for number, value in found.items() if value is None} != set()
    weighed = {number: value for number, value in expected.items() if value is not None}
    assert {number: found[number] for number in weighed} == pytest.approx(weighed, rel=1e-6)
    assert len(set(weighed.values())) > 4


# -- weights that the data gives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sft", "sft neat", "pt unpacked", "dpo", "kto"])
def test_a_column_reaches_the_loss(base: Config, ground: Path, tmp_path: Path, path: str) -> None:
    """Rows whose weight is zero train nothing, and the others have a mean of one together; of packed rows, each sequence."""
    more = {"sft": {"dataset": "code"}, "sft neat": {"dataset": "code", "neat_packing": True, "cutoff_len": 512}}
    source = {**PATHS, **more}[path]
    name = str(source["dataset"]).split(",")[0]
    folder = tmp_path / "data"
    folder.mkdir()
    entry = json.loads((ground / "data" / "dataset_info.json").read_text())[name]
    rows = [json.loads(line) for line in (ground / "data" / entry["file_name"]).read_text().splitlines()]
    lines = [json.dumps({**row, "quality": float(i % 4)}) for i, row in enumerate(rows)]
    (folder / entry["file_name"]).write_text("\n".join(lines))
    (folder / "dataset_info.json").write_text(json.dumps({name: entry}))
    given = {"name": "column", "column": "quality"}
    config = still(base, ground, given, **{**source, "dataset": name, "dataset_dir": str(folder)})
    run = train(config, tmp_path / "run", hooks=["record_weights", "dump_batches", "record_ids"]).ok
    found = json.loads((run.out / "weights.jsonl").read_text().splitlines()[0])["weights"]
    if path in ("dpo", "kto"):
        stored = batches(run, 1)[0]["dataflex_weights"].numpy()
        assert len(set(stored.tolist())) > 1
        np.testing.assert_allclose(found, stored / stored.mean(), rtol=1e-5)
        return
    model, batch = load(ground / "still"), batches(run, 1)[0]
    given = batch.pop("dataflex_weights")
    losses, units = tokens_of(model, batch)[0], []  # a unit: its losses, and the weight of its tokens
    for row, (own, weights, labels) in enumerate(zip(losses, given, batch["labels"], strict=True)):
        learned = labels[1:] != -100
        number = torch.zeros(len(own))
        if path == "sft neat":
            number = (batch["position_ids"][row] == 0).cumsum(0)[1:][learned]
        units += [(own[number == n], weights[1:][learned][number == n]) for n in number.unique()]
    assert all(len(set(w.tolist())) == 1 for _, w in units)
    w = np.array([float(values[0]) for _, values in units])
    assert len(set(w)) > 2
    total = sum(wi * own.sum() for wi, (own, _) in zip(w / w.mean(), units, strict=True))
    check_first_step(
        run, model, total / int((batch["labels"] != -100).sum())
    )  # as the Trainer counts: pt, first token too


def test_messages_have_weights_of_their_own(base: Config, ground: Path, tmp_path: Path) -> None:
    """A token weighs what its message says, with a mean of one over all tokens that are learned."""
    folder, rows = tmp_path / "data", []
    folder.mkdir()
    for i in range(12):
        turns = []
        for turn, weight in enumerate((i % 3, None, 2.5)):
            turns.append({"role": "user", "content": f"def f{i + turn}"})
            turns.append({"role": "assistant", "content": "return " * (2 + turn), "weight": weight})
        rows.append({"messages": turns})
    (folder / "chats.json").write_text(json.dumps(rows))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "chats.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"chats": entry}))
    more = {"dataset": "chats", "dataset_dir": str(folder), "cutoff_len": 256}
    config = still(base, ground, {"name": "column", "per": "message"}, **more)
    run = train(config, tmp_path / "run", hooks=["dump_batches"]).ok
    model, batch = load(ground / "still"), batches(run, 1)[0]
    given = batch.pop("dataflex_weights")
    losses = torch.cat(tokens_of(model, batch)[0])
    v = given[:, 1:][batch["labels"][:, 1:] != -100]
    assert set(v.tolist()) == {0.0, 1.0, 2.0, 2.5}
    check_first_step(run, model, (v / v.mean() * losses).mean())


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(ground: Path) -> Config:
    return with_pictures(ground)


@pytest.mark.parametrize("packed", [False, True])
def test_uniform_rows_with_pictures_are_the_plain_run(
    base: Config, ground: Path, pictures: Config, tmp_path: Path, packed: bool
) -> None:
    weights = [{"name": "loss", "strategy": "uniform"}, {"name": "focal", "gamma": 0}]
    against_plain(base, ground, tmp_path, weights, {**pictures, "neat_packing": packed}, 1, 2)


def test_rows_with_pictures_are_weighed(base: Config, ground: Path, pictures: Config, tmp_path: Path) -> None:
    """The model sees the pictures in the pass that weighs, and those of the target."""
    config = still(base, ground, {"name": "loss"}, **pictures)
    run = train(config, tmp_path / "run", hooks=["record_weights"]).ok
    seen = json.loads((run.out / "weights.jsonl").read_text().splitlines()[0])
    w, losses = linupper(np.array(seen["losses"])), np.array(seen["losses"])
    np.testing.assert_allclose(seen["weights"], w / w.mean(), rtol=1e-5)
    aimed = still(base, ground, {"name": "adapt", "target_dataset": "more"}, **pictures)
    other = train(aimed, tmp_path / "aimed", hooks=["record_weights"]).ok
    found = json.loads((other.out / "weights.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-6)
    assert np.mean(found["weights"]) == pytest.approx(1, rel=1e-5) and np.ptp(found["weights"]) > 0


# -- scopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["running", "global"])
@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (1, 4)])
def test_one_row_at_a_time_is_still_weighed(
    base: Config, ground: Path, tmp_path: Path, scope: str, ranks: int, accumulation: int
) -> None:
    config = still(base, ground, {"name": "loss", "scope": scope}, ranks=ranks, accumulation=accumulation)
    config["per_device_train_batch_size"] = 1
    run = train(config, tmp_path / "run", ranks=ranks).ok
    found = [s.get("dataflex/weight/max", 1.0) for s in run.scalars().values()]
    assert all(m > 1.01 for m in found[1:])
    assert (found[0] > 1.01) == (scope == "global" or accumulation == 1)


def test_one_and_two_ranks_weigh_the_same(base: Config, ground: Path, reference: Path, tmp_path: Path) -> None:
    weights = [
        {"name": "adapt", "tau": 0.02, "refresh_interval": 2, "target_dataset": "arithmetic_heldout"},
        {"name": "rho1", "reference_model_path": str(reference)},
    ]
    one, two = train_all(
        start(still(base, ground, weights), tmp_path / "one"),
        start(still(base, ground, weights, ranks=2), tmp_path / "two", ranks=2),
    )
    for step, values in one.ok.trace().items():
        assert two.ok.trace()[step] == pytest.approx(values, rel=1e-5)
    for step, scalars in one.scalars().items():
        for name, value in scalars.items():
            assert two.scalars()[step][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_weights_rise_and_fall(base: Config, ground: Path, tmp_path: Path) -> None:
    weight = {"name": "loss", "strategy": "extremes", "warmup": 1, "ramp": 2, "until": 4, "fade": 2}
    config = {**still(base, ground, weight), "max_steps": 7}
    spread = [s.get("dataflex/weight/max", 1.0) for s in train(config, tmp_path / "run").ok.scalars().values()]
    assert spread[:2] == [1.0, 1.0] and spread[6] == 1.0  # step 1 has strength 0, and so has step 6
    assert spread[3] > spread[2] > 1.0 and spread[5] > 1.0


# -- rows that do not count ------------------------------------------------------------------------------------------


def test_broken_and_masked_rows_weigh_nothing(base: Config, ground: Path, tmp_path: Path) -> None:
    """Their gradients are those of the other rows, and they are counted."""
    config = {**still(base, ground, {"name": "loss"}), "disable_shuffling": True, "dataset": "code"}
    bad = "1,4"
    hooks = ["mask_rows:6", "record_ids", "dump_batches"]
    run = train(config, tmp_path / "run", hooks=[*hooks, f"nan_logits:{bad}"]).ok
    assert run.ids()[0] == list(range(8))
    model = load(ground / "still")
    rows = [r for batch in batches(run, 1) for r in tokens_of(model, batch)[0]]
    assert [len(r) == 0 for r in rows] == [i == 6 for i in range(8)]
    kept = [r for i, r in enumerate(rows) if i not in (1, 4, 6)]
    w = linupper(np.array([float(r.detach().mean()) for r in kept]))
    total = sum(wi * r.sum() for wi, r in zip(w / w.mean(), kept, strict=True))
    check_first_step(run, model, total / sum(map(len, rows)))
    assert run.scalars()[1]["dataflex/weight/left_out"] == 3


# -- killed ----------------------------------------------------------------------------------------------------------

WEIGHTERS: dict[str, Any] = {
    "adapt": {"name": "adapt", "tau": 0.05, "refresh_interval": 3, "target_dataset": "arithmetic_heldout"},
    "joint": {"name": "joint_update_aware", "target_update_step": 3, "target_dataset": "arithmetic_heldout"},
    "rho1": {"name": "rho1"},
    "focal": {"name": "focal"},
    "domain": {"name": "domain", "by_domain": [1, 2, 3]},
    "annealed": {"name": "loss", "r_schedule": [[2, 4.0], [8, 0.5]], "ramp": 4, "until": 9, "fade": 3},
    "product": [
        {"name": "loss", "warmup": 1},
        {"name": "adapt", "refresh_interval": 4, "warmup": 2, "target_dataset": "arithmetic_heldout"},
        {"name": "focal"},
    ],
}
QUICK_KILLS = {
    ("adapt", True, "running"), ("joint", False, "running"), ("rho1", False, "running"), ("annealed", False, "running"),
    ("product", True, "global"),
}  # fmt: skip
KILLS = [
    pytest.param(name, packed, scope, marks=[] if (name, packed, scope) in QUICK_KILLS else pytest.mark.slow)
    for name in WEIGHTERS
    for packed in (False, True)
    for scope in ("running", "global")
]


@pytest.mark.parametrize(("name", "packed", "scope"), KILLS)
def test_kill_and_resume(
    base: Config,
    reference: Path,
    tmp_path: Path,
    name: str,
    packed: bool,
    scope: str,
) -> None:
    """Exact, dropout on, with accumulation, off a refresh: what weights refer to and what targets gave is in the checkpoint."""
    given = WEIGHTERS[name] if isinstance(WEIGHTERS[name], list) else [WEIGHTERS[name]]
    blocks = [{**w, **({"reference_model_path": str(reference)} if w["name"] == "rho1" else {})} for w in given]
    blocks[0]["scope"] = scope
    config = {
        **base,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "neat_packing": packed,
        "save_strategy": "steps",
        "save_steps": 5,
        "dataflex": {"mix": "static", "weight": blocks},
    }
    kill_and_resume(config, tmp_path, "kill_after:7", 5)


@pytest.mark.parametrize("name", [pytest.param("adapt", marks=pytest.mark.slow), "product"])
def test_kill_and_resume_on_two_ranks(base: Config, tmp_path: Path, name: str) -> None:
    config = {
        **base,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "dataflex": {"weight": WEIGHTERS[name]},
    }
    kill_and_resume(config, tmp_path, "kill_after:7", 5, ranks=2)


def test_what_weights_are_made_from_must_not_change(base: Config, reference: Path, tmp_path: Path) -> None:
    """Another reference model at the same place, or another file of weights, is refused; where losses are kept is free."""
    model, file = tmp_path / "reference", tmp_path / "weights.json"
    shutil.copytree(reference, model)
    file.write_text('{"code": 1, "docs": 2, "arithmetic": 3}')
    rho1 = {"name": "rho1", "reference_model_path": str(model), "store": str(tmp_path / "one")}
    config = {
        **base,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "dataflex": {"mix": "static", "weight": [rho1, {"name": "domain", "by_domain": str(file)}]},
    }
    assert train(config, tmp_path / "run", hooks=["kill_after:3"]).status == [-9]
    settings = model / "config.json"
    kept = settings.read_text()
    settings.write_text(kept + " ")
    refused = train(config, tmp_path / "run", hooks=["no_model"])
    assert_refused(refused, "cannot resume", "content of the reference of weight")
    settings.write_text(kept)
    file.write_text('{"code": 1, "docs": 2, "arithmetic": 4}')
    refused = train(config, tmp_path / "run", hooks=["no_model"])
    assert_refused(refused, "cannot resume", "content of dataflex.weight[1].by_domain")
    file.write_text('{"code": 1, "docs": 2, "arithmetic": 3}')
    rho1["store"] = str(tmp_path / "two")
    assert len(train(config, tmp_path / "run").ok.history()) == 4


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "more", "message"),
    [
        ({"name": "adapt"}, {}, ["dataflex.weight.target_dataset", "adapt needs a target"]),
        ({"name": "adapt", "target_dataset": "cod"}, {}, ["dataflex.weight.target_dataset", "'cod' is not defined"]),
        ({"name": "adapt", "embedding_layer": 9, "target_dataset": "arithmetic_heldout"}, {}, ["embedding_layer"]),
        ({"name": "rho1"}, {}, ["reference_model_path", "is required by rho1"]),
        ({"name": "rho1", "reference_model_path": "/no/such"}, {}, ["dataflex.weight.reference_model_path", "no such"]),
        ({"name": "rho1", "reference_model_path": "x", "keep_ratio": 0}, {}, ["dataflex.weight.keep_ratio", "(0, 1]"]),
        ({"name": "loss", "until": 3, "warmup": 3}, {}, ["dataflex.weight.until", "above warmup (3)"]),
        ({"name": "loss", "fade": 3}, {}, ["dataflex.weight.fade", "needs until"]),
        ({"name": "loss", "ramp": -1}, {}, ["dataflex.weight.ramp", "at least 0"]),
        ({"name": "loss", "r_schedule": [[3, 1.0], [1, 2.0]]}, {}, ["dataflex.weight.r_schedule", "ascending"]),
        ([], {}, ["dataflex.weight", "empty list"]),
        ([{"name": "loss"}, {"name": "focul"}], {}, ["dataflex.weight[1].name", "did you mean 'focal'"]),
        ([{"name": "loss"}, {"name": "focal", "gama": 1}], {}, ["dataflex.weight[1].gama", "did you mean 'gamma'"]),
        (
            [{"name": "loss", "scope": "global"}, {"name": "focal", "scope": "running"}], {},
            ["dataflex.weight[1].scope", "about all weighters"],
        ),
        ({"name": "focal"}, PATHS["dpo"], ["stage: dpo", "focal goes by tokens"]),
        ({"name": "adapt", "target_dataset": "code_heldout"}, PATHS["kto"], ["stage: kto", "goes by tokens"]),
        ({"name": "loss"}, {**PATHS["kto"], "pref_ftx": 0.1}, ["pref_ftx", "weight: loss"]),
        ({"name": "loss", "r": 2.0, "r_schedule": [[0, 1.0]]}, {}, ["dataflex.weight.r", "r_schedule"]),
        ({"name": "loss"}, {"enable_liger_kernel": True}, ["enable_liger_kernel", "hides the logits"]),
        ({"name": "domain", "by_domain": [1, 2, 3]}, {"no_mix": True}, ["dataflex.weight.name", "add mix: proportional"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    base: Config, ground: Path, tmp_path: Path, weight: Any, more: Config, message: list[str]
) -> None:
    config = still(base, ground, weight, **{k: v for k, v in more.items() if k != "no_mix"})
    if more.get("no_mix"):
        config["dataflex"].pop("mix")
    assert_refused(train(config, tmp_path / "run", hooks=["no_model"]), *message)
