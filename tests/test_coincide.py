"""COINCIDE: its states, its formulas beside the authors' program and dataflex 1.1.0, and its runs, with pictures and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import kill_and_resume
from harness import Result, start, train_all
from pictures import with_pictures
from selecting import LORA, table
from test_offline import scores, select

from dataflex.components.registry import resolve
from dataflex.components.selectors.coincide import CoincideSelector
from dataflex.components.selectors.coincide.clusters import density, normed, spherical_k_means, transferability
from dataflex.components.selectors.coincide.taking import counts_at_once, counts_in_turn, representatives
from dataflex.errors import ConfigError, DataflexError
from dataflex.signals.layers import attention_of, evenly, row_states, visual_tokens

Config = dict[str, Any]


# -- the authors' program --------------------------------------------------------------------------------------------


def authors_choice(u: np.ndarray, text: np.ndarray, owner: np.ndarray, budget: int, temperature: float) -> list[int]:
    """cluster_transferability.py and cluster_wise_prune.py, told in numpy. u, text: vectors of rows."""
    clusters = np.unique(owner)
    centroids = np.stack([text[owner == c].mean(axis=0) for c in clusters])
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    cosine = unit @ unit.T
    near = cosine > 0.9
    cosine[near] = 0
    with np.errstate(invalid="ignore"):
        s = np.nan_to_num(cosine.sum(axis=1) / (~near).sum(axis=1))
    kernels, dense = [], []
    for c in clusters:
        x = u[owner == c].astype(np.float64)
        k = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2) / 2)
        kernels.append(k)
        dense.append(k.mean())
    score = s / np.array(dense) / temperature
    order = np.argsort(-score, kind="stable")
    chosen: list[int] = []
    left = budget
    for place, c in enumerate(order):
        later = np.exp(score[order[place:]] - score[order[place:]].max())
        want = round(left * float(later[0] / later.sum()))
        rows, k = np.flatnonzero(owner == clusters[c]), kernels[c]
        if want > len(rows):
            taken = list(range(len(rows)))
        else:
            taken = []
            for _ in range(want):
                best = (np.inf, -1)
                for j in (j for j in range(len(rows)) if j not in taken):
                    some = [*taken, j]
                    mmd = k.mean() + k[np.ix_(some, some)].mean() - 2 * k[:, some].mean()
                    best = min(best, (mmd, j))
                taken.append(best[1])
        chosen += rows[taken].tolist()
        left -= len(taken)
    return chosen


def states_of(rows: int, seed: int, *, pictures: bool = True, spread: float = 0.6) -> np.ndarray:
    """Rows of some concepts: float32 [rows, 2, 24], each part of length one in each of three layers."""
    draw = np.random.default_rng(seed)
    concepts = draw.normal(size=(7, 2, 3, 8))
    raw = concepts[draw.integers(7, size=rows)] + spread * draw.normal(size=(rows, 2, 3, 8))
    raw /= np.linalg.norm(raw, axis=3, keepdims=True)
    if not pictures:
        raw[:, 0] = 0
    return raw.reshape(rows, 2, 24).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "text"])
def test_the_choice_is_the_authors(seed: int, pictures: bool) -> None:
    states = states_of(150, seed, pictures=pictures, spread=(0.3, 0.6, 1.0)[seed % 3])
    selector = CoincideSelector(num_clusters=4 + seed, temperature=(0.3, 1.0, 3.0)[seed // 4])
    rows = normed(states.reshape(150, -1))
    owner = spherical_k_means(rows, 4 + seed, seed=42, rounds=50)
    theirs = authors_choice(rows, states[:, 1], owner, 40, selector.temperature)
    chosen, clusters = selector.coreset(states, 40)
    assert clusters == len(np.unique(owner)) and len(set(chosen.tolist())) == len(chosen) == 40
    assert set(theirs) <= set(chosen.tolist())
    if len(theirs) == 40:
        assert sorted(theirs) == sorted(chosen.tolist())


# -- dataflex 1.1.0 --------------------------------------------------------------------------------------------------


def counts_of_1_1_0(s: np.ndarray, d: np.ndarray, size: np.ndarray, budget: int, temperature: float) -> list[int]:
    """`_allocate_budget`, told with fractions of numpy."""
    p = np.exp(s / (temperature * d) - (s / (temperature * d)).max())
    given = np.zeros(len(s), dtype=int)
    while given.sum() < budget and (given < size).any():
        share = np.where(given < size, p, 0)
        asked = share / share.sum() * (budget - given.sum())
        more = np.minimum(np.floor(asked).astype(int), size - given)
        still = budget - given.sum() - more.sum()
        for j in sorted(range(len(s)), key=lambda j: (-(asked[j] - np.floor(asked[j])), j)):
            if still > 0 and given[j] + more[j] < size[j]:
                more[j] += 1
                still -= 1
        given = given + more
    return given.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_the_formulas_of_the_paper(seed: int) -> None:
    states = states_of(120, seed)
    rows = normed(states.reshape(120, -1)).astype(np.float64)
    owner = spherical_k_means(rows.astype(np.float32), 9, seed=seed, rounds=20)
    names = np.unique(owner)
    members = [rows[owner == c] for c in names]
    centroids = normed(np.stack([x.mean(axis=0) for x in members]))
    s = np.array(
        [np.mean([centroids[i] @ centroids[j] for j in range(len(names)) if j != i]) for i in range(len(names))]
    )
    pairs = [
        [np.exp(-((p - q) ** 2).sum()) for i, p in enumerate(x) for j, q in enumerate(x) if i != j] for x in members
    ]
    d = np.array([np.mean(x) if x else 1.0 for x in pairs])
    assert np.allclose(transferability(centroids), s, atol=1e-12)
    assert np.allclose(density(members, 1.0, own=False, alone=1.0), d, atol=1e-12)
    size = np.array([len(x) for x in members])
    for temperature in (0.1, 1.0, 10.0):
        assert counts_at_once(s / (temperature * d), size, 50).tolist() == counts_of_1_1_0(s, d, size, 50, temperature)
    chosen, _ = CoincideSelector(num_clusters=9, variant="paper", seed=seed).coreset(states, 50)
    assert len(set(chosen.tolist())) == 50


def test_rows_are_taken_so_that_the_discrepancy_is_least() -> None:
    x = normed(np.random.default_rng(3).normal(size=(40, 6)))
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(axis=2))
    taken: list[int] = []
    for _ in range(15):
        far = [
            k[np.ix_([*taken, j], [*taken, j])].mean() - 2 * k[:, [*taken, j]].mean() if j not in taken else np.inf
            for j in range(40)
        ]
        taken.append(int(np.argmin(far)))
    assert representatives(x, 15, 1.0).tolist() == taken
    assert representatives(x, 40, 1.0).tolist() == list(range(40))


def test_every_budget_is_met_and_no_cluster_gives_more_than_it_has() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        size = draw.integers(1, 12, size=draw.integers(1, 15))
        score = draw.normal(size=len(size)) * draw.choice([0.1, 3.0, 60.0])
        budget = int(draw.integers(1, size.sum() + 1))
        for shares in (counts_in_turn, counts_at_once):
            taken = shares(score, size, budget)
            assert taken.sum() == budget and (taken <= size).all() and (taken >= 0).all()


def test_clusters_are_those_of_directions() -> None:
    states = states_of(200, 5, spread=0.05)
    rows = normed(states.reshape(200, -1))
    owner = spherical_k_means(rows, 30, seed=1, rounds=50)
    assert owner.tolist() == spherical_k_means(rows, 30, seed=1, rounds=50).tolist()
    centres = normed(np.stack([rows[owner == c].sum(axis=0) if (owner == c).any() else rows[0] * 0 for c in range(30)]))
    full = np.flatnonzero(np.bincount(owner, minlength=30))
    assert (full[(rows @ centres[full].T).argmax(axis=1)] == owner).mean() > 0.99, "the rounds have ended"


# -- states ----------------------------------------------------------------------------------------------------------


def test_states_are_those_of_a_row_by_itself(ground: Path) -> None:
    """Attention read by other hooks (of its output layer), one row at a time, without padding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ground / "still").eval()
    count = model.config.num_hidden_layers
    rows = [torch.randint(5, 90, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 9, 14)]
    assert visual_tokens(model) == [] and all(1 <= layer <= count for layer in evenly(count))
    model.config.image_token_id = int(rows[1][2])  # and a token stands for a picture
    wanted = []
    for row in rows:
        outputs: dict[int, torch.Tensor] = {}
        hooks = [
            layer.self_attn.o_proj.register_forward_hook(lambda _, __, out, i=i, to=outputs: to.update({i: out[0]}))
            for i, layer in enumerate(model.model.layers)
        ]
        with torch.no_grad():
            model(input_ids=row[None])
        for hook in hooks:
            hook.remove()
        of_kinds = []
        for mask in (row == model.config.image_token_id, row != model.config.image_token_id):
            parts = []
            for i in range(count):
                mean = outputs[i][mask].mean(dim=0) if mask.any() else torch.zeros(outputs[i].shape[1])
                found = torch.tanh(mean)
                parts.append(found / found.norm().clamp(min=1e-12))
            of_kinds.append(torch.cat(parts))
        wanted.append(torch.stack(of_kinds))
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        found = row_states(
            model, {"input_ids": padded, "attention_mask": mask}, attention_of(model, range(1, count + 1))
        )
    assert torch.allclose(found, torch.stack(wanted), atol=2e-6)
    assert not found[0, 0].any() and found[1, 0].any(), "a row without a picture has zeros there"
    with pytest.raises(DataflexError, match=f"there is no layer {count + 1}; the model has {count}, from 1 on"):
        attention_of(model, [count + 1])


def test_the_layers_of_the_paper() -> None:
    assert evenly(24) == [4, 8, 12, 16, 20] and evenly(2) == [1, 2] and evenly(1) == [1]


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(ground: Path) -> Config:
    return with_pictures(ground)


BLOCK = {"name": "coincide", "warmup": 2, "interval": 4, "num_clusters": 5}


def ledger(out: Path) -> list[Config]:
    return [json.loads(line) for line in (out / "dataflex" / "ledger.jsonl").read_text().splitlines()]


def chosen(run: Result, step: int) -> list[int]:
    return np.flatnonzero(table(run, step)["selected"]).tolist()


@pytest.fixture(params=["text", pytest.param("pictures", marks=pytest.mark.slow)])
def config(request: pytest.FixtureRequest, base: Config, pictures: Config) -> Config:
    given = {**base, **LORA, "max_steps": 10, "save_strategy": "steps", "save_steps": 2, "dataflex": {"select": BLOCK}}
    return {**given, **pictures} if request.param == "pictures" else given


def test_killed_and_resumed(config: Config, tmp_path: Path) -> None:
    kill_and_resume(config, tmp_path, "kill_after:7", 6)
    found = [line for line in ledger(tmp_path / "whole") if line["component"] == "select:coincide"]
    assert [line["step"] for line in found] == [2, 6]
    assert all(" clusters of " in line["remarks"]["clusters"] for line in found)


@pytest.mark.slow
def test_two_ranks_choose_as_one(config: Config, tmp_path: Path) -> None:
    halved = {**config, "per_device_train_batch_size": config["per_device_train_batch_size"] // 2}
    one, two = train_all(start(config, tmp_path / "one"), start(halved, tmp_path / "two", ranks=2))
    assert chosen(one.ok, 2) == chosen(two.ok, 2)


def test_pixels_decide(base: Config, pictures: Config, tmp_path: Path) -> None:
    """The same rows with their pictures exchanged: other rows are chosen of the same texts."""
    folder = tmp_path / "exchanged"
    shutil.copytree(pictures["dataset_dir"], folder)
    rows = json.loads((folder / "pictures.json").read_text())
    images = [row["images"] for row in rows]
    (folder / "pictures.json").write_text(
        json.dumps([{**row, "images": image} for row, image in zip(rows, images[7:] + images[:7], strict=True)])
    )
    block = {"dataflex": {"select": {**BLOCK, "warmup": 0, "interval": 2, "updates": 1}}}
    first = {**base, **pictures, "max_steps": 2, **block}
    one, two = train_all(start(first, tmp_path / "one"), start({**first, "dataset_dir": str(folder)}, tmp_path / "two"))
    assert len(chosen(one.ok, 0)) == len(chosen(two.ok, 0)) == 8
    assert chosen(one, 0) != chosen(two, 0)


def test_offline(base: Config, tmp_path: Path) -> None:
    keys = {k: v for k, v in base.items() if k not in ("max_steps", "logging_steps", "save_strategy")}
    block = {"select": {"name": "coincide", "num_clusters": 6}, "offline": {"budget": 20}}
    run = select({**keys, "dataflex": block}, tmp_path / "out").ok
    assert scores(run.out)["times"].sum() == 20


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_clusters": 0}, "num_clusters"),
        ({"temperature": 0}, "temperature"),
        ({"embedding_layers": (2, 2)}, "embedding_layers"),
        ({"embedding_layers": ()}, "embedding_layers"),
        ({"clustering_max_iter": 0}, "clustering_max_iter"),
        ({"single_member_density": -1.0}, "single_member_density"),
    ],
)
def test_bad_values(changes: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("select", "coincide", "name")(**changes).check()
