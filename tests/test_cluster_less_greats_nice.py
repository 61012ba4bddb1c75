"""cluster_less, greats and nice: their decisions alone, and through the real command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import kill_and_resume
from harness import start, train, train_all
from selecting import LORA, context, table

from dataflex.components.requests import PolicyAlignment
from dataflex.components.selectors.cluster_less import ClusterLessSelector
from dataflex.components.selectors.cluster_less.clustering import METHODS, cluster
from dataflex.components.selectors.greats import GreatsSelector, greedy
from dataflex.components.tools.rewards import exact_match, resolve_reward
from dataflex.config.load import parse
from dataflex.data.rows import Rows
from dataflex.demo.model import build_model
from dataflex.errors import ConfigError, DataflexError
from dataflex.signals.asking.policy import PolicyRows, policy_rows, remarks_on
from dataflex.signals.cross_entropy import IGNORE
from dataflex.signals.generation import model_rewards, sample_responses
from dataflex.signals.gradients.passes import MERGE_WEIGHTS

Config = dict[str, Any]


@pytest.fixture
def aimed(base: Config) -> Config:
    return {**base, **LORA, "eval_dataset": "arithmetic_heldout"}


# -- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
def test_rows_that_lie_together_are_one_cluster(method: str) -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 9.0, 0]])
    rows = np.repeat(centres, 30, axis=0) + 0.1 * rng.standard_normal((90, 4))
    owner, distance = cluster(rows, 3, method, seed=1, bits=8 if METHODS[method] == "lsh" else None)
    again, _ = cluster(rows, 3, method, seed=1, bits=8 if METHODS[method] == "lsh" else None)
    assert np.array_equal(owner, again) and owner.shape == distance.shape == (90,)
    groups = [set(owner[i : i + 30].tolist()) for i in (0, 30, 60)]
    if METHODS[method] == "random":
        assert sorted(np.bincount(owner).tolist()) == [30, 30, 30]
    else:
        assert not groups[0] & groups[1] and not groups[1] & groups[2] and not groups[0] & groups[2]
        assert distance.max() < 1.0
    if METHODS[method] in ("kmeans", "spherical_kmeans", "farthest_first"):
        assert all(len(g) == 1 for g in groups)


def cluster_context(**changes: Any) -> Any:
    return context(12, changes.pop("budget", 4), **changes)


def test_cluster_less_scores_whole_clusters_by_their_representatives() -> None:
    """Three clusters of four rows, two representatives each."""
    selector = ClusterLessSelector(num_clusters=3, samples_per_cluster=2, representative_strategy="nearest")
    embedding = np.repeat(np.eye(3) * 9, 4, axis=0)
    embedding += np.tile(np.array([0.0, 0.1, 0.4, 0.9]), 3)[:, None] * np.array([[0.3, 0.5, 0.7]])
    given = cluster_context()
    short, state = selector.shortlist({}, {"embedding": embedding}, given)
    owner = state["owner"]
    assert [len(set(owner[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1] and len(short) == 6
    assert selector.needs_now({}) == selector.needs() and selector.needs_now(state) == frozenset()
    influence = np.array([[0.1, 0.0]] * 2 + [[0.0, 0.6], [np.nan, np.nan]] + [[0.2, 0.2]] * 2)
    chosen, after = selector.select(state, {"target_alignment": influence}, cluster_context(shortlist=short))
    assert sorted(chosen.chosen.tolist()) == [4, 5, 6, 7] and after is state
    assert chosen.scores is not None
    assert chosen.scores.tolist() == pytest.approx([0.1] * 4 + [0.6] * 4 + [0.2] * 4)
    more, _ = selector.select(state, {"target_alignment": influence}, cluster_context(shortlist=short, budget=6))
    assert set(more.chosen.tolist()) >= {4, 5, 6, 7} and set(more.chosen.tolist()) <= set(range(4, 12))


def test_representatives() -> None:
    embedding = np.array([[0.0], [1.0], [2.0], [10.0]])
    for strategy, expected in {"nearest": [1, 2], "farthest": [0, 3], "mixed": [2, 3]}.items():
        selector = ClusterLessSelector(num_clusters=1, samples_per_cluster=2, representative_strategy=strategy)
        short, _ = selector.shortlist({}, {"embedding": embedding}, context(4, 1))
        assert short.tolist() == expected, strategy  # the mean is 3.25
    drawn = set()
    for seed in range(20):
        selector = ClusterLessSelector(num_clusters=1, samples_per_cluster=2)
        short, _ = selector.shortlist({}, {"embedding": embedding}, context(4, 1, rng=np.random.default_rng(seed)))
        drawn.add(tuple(short.tolist()))
    assert len(drawn) > 3


def test_clusters_without_a_score_are_left_out() -> None:
    selector = ClusterLessSelector(num_clusters=2, samples_per_cluster=1)
    embedding = np.array([[0.0], [0.1], [9.0], [9.1]])
    short, state = selector.shortlist({}, {"embedding": embedding}, context(4, 1))
    influence = np.array([[0.5], [np.nan]])
    chosen, _ = selector.select(state, {"target_alignment": influence}, context(4, 2, shortlist=short))
    assert len(set(state["owner"][chosen.chosen])) == 1
    with pytest.raises(DataflexError, match="only 2 are in a cluster with a score"):
        selector.select(state, {"target_alignment": influence}, context(4, 3, shortlist=short))


def test_cluster_less_through_the_command_line(aimed: Config, tmp_path: Path) -> None:
    """A quarter of the rows measured, whole clusters taken; and exact after a kill, clusters included."""
    select = {"name": "cluster_less", "warmup": 2, "interval": 4, "cluster_size": 6, "samples_per_cluster": 2}
    config = {**aimed, "save_strategy": "steps", "save_steps": 2, "dataflex": {"select": select}}
    kill_and_resume(config, tmp_path, "kill_after:7", 6)
    whole = train(config, tmp_path / "again").ok
    found = table(whole, 6)
    assert found["selected"].sum() == 16
    assert len(np.unique(found["score"])) <= 30  # one score per cluster
    assert found["score"][found["selected"]].min() >= np.sort(found["score"])[::-1][15]


# -- greats ----------------------------------------------------------------------------------------------------------


def test_greedy_is_the_best_step_at_a_time() -> None:
    """Against the definition, gains recomputed from scratch for every candidate at every turn."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, 5))
    target, eta = rng.standard_normal(5), 0.7
    alignment, gram = features @ target, features @ features.T
    alignment[3] = np.nan
    chosen: list[int] = []
    for _ in range(6):
        gains = {
            i: eta * alignment[i] - eta**2 * sum(features[i] @ features[j] for j in chosen)
            for i in range(12)
            if i not in chosen and i != 3
        }
        chosen.append(max(gains, key=gains.__getitem__))
    picked, gains_found = greedy(alignment, gram, eta, 6)
    assert picked.tolist() == chosen and np.isfinite(gains_found).all()
    assert greedy(alignment, gram, 0.0, 2)[0].tolist() == np.argsort(-np.nan_to_num(alignment, nan=-9))[:2].tolist()


def test_redundancy_counts() -> None:
    """Two equal rows that align best: with a large step only one of them is taken."""
    signals = {"interaction": np.array([[1.0, 1, 1, 0], [1.0, 1, 1, 0], [0.9, 0, 0, 1]])}
    given = context(3, 2, shortlist=np.array([0, 1, 2]))
    small, _ = GreatsSelector(step_size=1e-3).select({}, signals, given)
    large, _ = GreatsSelector(step_size=0.5).select({}, signals, given)
    assert sorted(small.chosen.tolist()) == [0, 1] and sorted(large.chosen.tolist()) == [0, 2]


def test_greats_needs_enough_candidates() -> None:
    signals = {"interaction": np.array([[1.0, 1, 0], [np.nan, np.nan, np.nan]])}
    with pytest.raises(DataflexError, match="only 1 of its 2 candidates"):
        GreatsSelector().select({}, signals, context(5, 2, shortlist=np.array([0, 4])))


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"proj_dim": 256, "gradient_type": "adam"}, marks=pytest.mark.slow)]
)
def test_greats_through_the_command_line(aimed: Config, tmp_path: Path, changes: Config) -> None:
    """A batch at a time, from twice as many candidates; arithmetic is what it takes; exact after a kill."""
    select = {"name": "greats", "warmup": 4, "interval": 1, "target_rows": 8, **changes}
    config = {**aimed, "max_steps": 10, "learning_rate": 5e-3, "save_strategy": "steps", "save_steps": 2}
    config = {**config, "dataflex": {"select": select}}
    kill_and_resume(config, tmp_path, "kill_after:7", 6)
    whole = train(config, tmp_path / "again").ok
    scored = [table(whole, step) for step in range(4, 10)]
    assert all(np.isfinite(found["score"]).sum() == 8 and found["selected"].sum() == 4 for found in scored)
    offered = np.concatenate([found["domain"][np.isfinite(found["score"])] for found in scored]) == "arithmetic"
    taken = np.concatenate([found["domain"][found["selected"]] for found in scored]) == "arithmetic"
    assert taken.sum() > 0.75 * offered.sum() > taken.size / 2 * 0.3


def test_greats_beside_a_mixer_is_refused(aimed: Config, tmp_path: Path) -> None:
    block = {"select": {"name": "greats", "interval": 1}, "mix": {"name": "static"}}
    run = train({**aimed, "dataflex": block}, tmp_path / "run")
    assert run.status == [2] and "cannot be combined with mix" in run.log


# -- nice ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"hidden_size": 24, "heads": 2, "kv_heads": 1, "intermediate_size": 40, "vocab_size": 300}
    return build_model(tmp_path_factory.mktemp("policy"), ["a few words to learn from"], **sizes)


def test_responses_do_not_depend_on_padding_and_leave_no_trace(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    prompts = [[5, 6, 7, 8], [9, 10], [11] * 9]
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1e-4, "seed": 3, "device": torch.device("cpu")}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    together = sample_responses(model, tokenizer, prompts, count=2, batch_tokens=10**6, **settings)
    assert torch.equal(before, torch.random.get_rng_state())
    alone = sample_responses(model, tokenizer, prompts, count=2, batch_tokens=1, **settings)
    assert together == alone  # so cold that it takes the likeliest token
    assert [len(own) for own in together] == [2, 2, 2] and all(0 < len(a) <= 6 for own in together for a in own)
    for prompt, own in zip(prompts, together, strict=True):
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert own[0][0] == int(logits.argmax())
    warm = {**settings, "temperature": 1.0}
    first, again = (sample_responses(model, tokenizer, prompts, count=3, batch_tokens=64, **warm) for _ in range(2))
    assert first == again and first != sample_responses(
        model, tokenizer, prompts, count=3, batch_tokens=64, **{**warm, "seed": 4}
    )
    assert len({tuple(a) for a in first[0]}) == 3
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):  # the likeliest token, however warm
        assert sample_responses(model, tokenizer, prompts, count=2, batch_tokens=64, **warm, **narrow) == together


def reward_of_length(prompts: Any, responses: Any, references: Any) -> list[float]:
    return [float(len(r)) if p != prompts[0] else 1.0 for p, r in zip(prompts, responses, strict=True)]


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_the_policy_gradient_of_a_prompt(policy: tuple[Any, Any], baseline: Any) -> None:
    """The weighted loss of an item is that whose gradient is REINFORCE's; prompts whose rewards agree stand for themselves."""
    from datasets import Dataset

    model, tokenizer = policy
    data = {
        "input_ids": [[5, 6, 7, 20, 21], [8, 9, 30, 31, 32], [40, 41]],
        "labels": [[IGNORE] * 3 + [20, 21], [IGNORE] * 2 + [30, 31, 32], [IGNORE] * 2],
        "attention_mask": [[1] * 5, [1] * 5, [1] * 2],
    }
    target = Rows([Dataset.from_dict(data)], ["aim"])
    request = PolicyAlignment(
        samples=3, max_new_tokens=5, temperature=1.0, reward=f"{__name__}:reward_of_length", baseline=baseline
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(r["input_ids"]) for r in rows)
        fills = {"input_ids": 0, "labels": IGNORE, "attention_mask": 0}
        return {k: torch.tensor([r[k] + [f] * (width - len(r[k])) for r in rows]) for k, f in fills.items()}

    items, report = policy_rows(
        request,
        target,
        model=model,
        tokenizer=tokenizer,
        collate=collate,
        step=2,
        batch_tokens=64,
        device=torch.device("cpu"),
    )
    assert isinstance(items, PolicyRows) and len(items) == 3
    agreeing, rewarded, silent = items.items
    assert [r["input_ids"] for r in agreeing[0]] == [data["input_ids"][0]] * 3 and agreeing[1] == [1.0, 0.0, 0.0]
    assert silent[1] == [1.0, 0.0, 0.0] and report["dataflex/reward/agreed"] == 0.5
    batch = items.collate(items.__getitems__([1]))
    weights = batch[MERGE_WEIGHTS][0]
    texts = [tokenizer.decode(r["input_ids"][2:], skip_special_tokens=True) for r in rewarded[0]]
    rewards = torch.tensor([float(len(t)) for t in texts])
    advantage = rewards - rewards.mean() if baseline == "mean" else rewards
    total, wanted, size = 0.0, 0.0, 0.0
    for row, weight, a in zip(rewarded[0], weights, advantage, strict=True):
        ids = torch.tensor([row["input_ids"]])
        logs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
        chosen = logs[torch.arange(ids.shape[1] - 1), ids[0, 1:]][1:]  # the response begins at place 2
        chosen = chosen.detach()
        total += float(weight) * float(-chosen.mean())
        size += abs(float(a * chosen.sum() / 3))
        wanted += float(-a * chosen.sum() / 3)
    assert abs(total - wanted) <= 1e-6 * size


def test_nice_says_which_reward_it_goes_by_and_when_it_is_less(aimed: Config, tmp_path: Path) -> None:
    """With an exact match and a model that knows nothing, no response is rewarded: the rows are those of less with sgd."""
    nice = {"name": "nice", "warmup": 0, "interval": 4, "mc_samples": 2, "max_new_tokens": 4, "gradient_type": "sgd"}
    less = {"name": "less", "warmup": 0, "interval": 4, "gradient_type": "sgd"}
    one, other = (
        start({**aimed, "max_steps": 1, "dataflex": {"select": select}}, tmp_path / str(select["name"]))
        for select in (nice, less)
    )
    found, base = one.wait().ok, other.wait().ok
    remarks = next(r for r in found.ledger() if r["component"] == "select:nice")["remarks"]
    assert set(remarks) == {"reward", "agreed"}
    assert remarks["reward"] == "rewards by exact_match: 0 on average, alike for 100% of the prompts"
    assert found.log.count(f"dataflex: select:nice: {remarks['agreed']}") == 1
    assert np.array_equal(table(found, 0)["selected"], table(base, 0)["selected"])


def test_a_remark_on_rewards_that_differ() -> None:
    report = {"dataflex/reward/mean": 0.25, "dataflex/reward/agreed": 0.5}
    by_judge = remarks_on(PolicyAlignment(reward_model="judges/one"), report)
    assert by_judge == {"reward": "rewards by judges/one: 0.25 on average, alike for 50% of the prompts"}


def test_how_responses_are_drawn_is_as_in_the_authors_scripts_and_in_files_of_1_1_as_there() -> None:
    rest = {"do_train": True, "eval_dataset": "e", "dataset": "d"}
    runs = (
        parse({**rest, "dataflex": {"select": {"name": "nice", "interval": 4}}}),
        parse({**rest, "train_type": "dynamic_select", "component_name": "nice", "update_step": 4}),
    )
    (ours,), (flat,) = (run.dataflex.requests("select") for run in runs)  # type: ignore[union-attr]
    assert isinstance(ours, PolicyAlignment) and isinstance(flat, PolicyAlignment)
    assert (ours.samples, ours.temperature, ours.top_k, ours.top_p) == (20, 1.2, 50, 0.95)
    assert (flat.samples, flat.temperature, flat.top_k, flat.top_p) == (4, 0.7, 0, 1.0)


def test_rewards_are_resolved_by_name() -> None:
    assert exact_match(["p", "p"], [" a ", "b"], ["a", "a"]) == [1.0, 0.0]
    assert resolve_reward("exact_match") is exact_match
    assert resolve_reward(f"{__name__}:reward_of_length") is reward_of_length
    for name, message in {
        "exactmatch": "reward must be exact_match or module:function",
        "no_such_module:f": "reward: cannot import",
        "json:no_such": "reward: module 'json' has no 'no_such'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            resolve_reward(name)


def test_a_reward_model(policy: tuple[Any, Any], tmp_path: Path) -> None:
    """A classifier with one output, loaded for the occasion: its value of each text alone."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model, tokenizer = policy
    settings = {k: v for k, v in model.config.to_dict().items() if k != "model_type"}
    config = AutoConfig.for_model("qwen2", **{**settings, "num_labels": 1})
    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_config(config).eval()
    judge.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = model_rewards(str(tmp_path), torch.device("cpu"), 64)
    prompts, answers = ["one", "a longer one"], ["yes", "no, not at all"]
    found = reward(prompts, answers, answers)
    for value, p, a in zip(found, prompts, answers, strict=True):
        ids = torch.tensor([tokenizer(f"{p}\n{a}")["input_ids"]])
        assert value == pytest.approx(float(judge(input_ids=ids).logits[0, 0]), abs=1e-5)
    with pytest.raises(DataflexError, match="cannot be loaded"):
        model_rewards(str(tmp_path / "none"), torch.device("cpu"), 64)(prompts, answers, answers)


def test_nice_through_the_command_line(aimed: Config, tmp_path: Path) -> None:
    """One and two ranks decide alike; killed and resumed is not killed; and the reward matters."""
    select = {"name": "nice", "warmup": 4, "interval": 8, "mc_samples": 2, "max_new_tokens": 8}
    select |= {"reward": "own_components:digits", "generation_temperature": 1.0}
    config = {**aimed, "per_device_train_batch_size": 2, "dataflex": {"select": select}}
    first = {**config, "save_strategy": "steps", "save_steps": 4}
    train(first, tmp_path / "start", ranks=2, hooks=["own_component", "kill_after:4"])
    resume = {**config, "resume_from_checkpoint": str(tmp_path / "start" / "checkpoint-4")}
    one, two = train_all(
        start({**resume, "per_device_train_batch_size": 4}, tmp_path / "1", hooks=["own_component", "record_ids"]),
        start(resume, tmp_path / "2", ranks=2, hooks=["own_component", "record_ids"]),
    )
    assert two.ok.ids() == one.ok.ids() and two.ledger() == one.ledger()
    scalars = one.history()[4]
    assert 0 < scalars["dataflex/reward/agreed"] < 1 and scalars["dataflex/reward/mean"] > 0


@pytest.mark.parametrize("name", ["nice", "cluster_less"])
def test_it_chooses_by_more_than_its_base(aimed: Config, tmp_path: Path, name: str) -> None:
    """Invariant 10: other rows than LESS would take from the same model, and than chance would."""
    own = {"nice": {"reward": "own_components:digits", "max_new_tokens": 8, "generation_temperature": 1.0}}
    blocks: list[Config] = [{"name": name, **own.get(name, {})}, {"name": "less"}, {"name": "random"}]
    runs = [
        start(
            {**aimed, "max_steps": 5, "dataflex": {"select": {**block, "warmup": 4, "interval": 8}}},
            tmp_path / str(place),
            hooks=["own_component"],
        )
        for place, block in enumerate(blocks)
    ]
    chosen = [set(t["sample_id"][t["selected"]].tolist()) for t in (table(run.wait().ok, 4) for run in runs)]
    assert all(len(c) == 32 for c in chosen)
    assert chosen[0] != chosen[1] and chosen[0] != chosen[2]


def test_a_layer_that_is_not_there(aimed: Config, tmp_path: Path) -> None:
    select = {"name": "cluster_less", "interval": 4, "embedding_layer": 99}
    run = train({**aimed, "dataflex": {"select": select}}, tmp_path / "run")
    assert run.status == [2] and "Traceback" not in run.log
    assert "dataflex.select.embedding_layer must be between -3 and 2 (the last; 0 is the input), got 99" in run.log
