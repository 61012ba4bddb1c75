"""Domains that are clusters of what rows say (`dataflex.domains`, `by: cluster`)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from checkpoint_files import assert_refused
from commands import command
from comparing import kill_and_resume
from corpora import start_select
from datasets import Dataset, concatenate_datasets
from harness import start, train, train_all
from models_and_data import build_encoder

from dataflex.base.loading.domains import clusters
from dataflex.base.loading.domains.cluster_file import clusters_of_run
from dataflex.components.tools.clustering import centres_of, cluster_names, nearest_centre
from dataflex.components.tools.embeddings import unit
from dataflex.config import parse
from dataflex.config.schema import DomainsKeys
from dataflex.errors import ConfigError
from dataflex.signals.embeddings import load_encoder

Config = dict[str, Any]
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
CLUSTERS = "dataflex/clusters.parquet"


@pytest.fixture(scope="module")
def encoder(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_encoder(tmp_path_factory.mktemp("encoder"), str(ground / "model"))


@pytest.fixture
def mixed(base: Config, ground: Path, encoder: Path, tmp_path: Path) -> Config:
    """A run over one data set of rows of two kinds, in clusters. `mixed_heldout` is more of the same."""
    folder, info = tmp_path / "data", {}
    folder.mkdir()
    for ending in ("", "_heldout"):
        rows = [
            json.loads(line)
            for name in ("code", "arithmetic")
            for line in (ground / "data" / f"{name}{ending}.jsonl").read_text().splitlines()
        ]
        random.Random(1).shuffle(rows)
        rows = [{**row, "n": i % 5} for i, row in enumerate(rows)]
        (folder / f"mixed{ending}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        info[f"mixed{ending}"] = {"file_name": f"mixed{ending}.jsonl", "columns": COLUMNS}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    domains = {"by": "cluster", "k": 3, "embedding_model": str(encoder)}
    return {
        **base,
        "dataset_dir": str(folder),
        "dataset": "mixed",
        "max_steps": 6,
        "dataflex": {"domains": domains, "mix": {"name": "odm", "interval": 2}},
    }


def with_domains(config: Config, **keys: Any) -> Config:
    block = config["dataflex"]
    return {**config, "dataflex": {**block, "domains": {**block["domains"], **keys}}}


def test_clusters_are_saved_and_are_the_run_by_their_file(mixed: Config, tmp_path: Path) -> None:
    """Names and rows as the file says; a run by that file is the same to the bit, and a second one loads no encoder."""
    mixed = {**mixed, "do_eval": True, "eval_dataset": "mixed_heldout", "save_strategy": "steps", "save_steps": 6}
    made = train(mixed, tmp_path / "made", hooks=["record_ids"]).ok
    assert "3 clusters of 120 rows were made" in made.log
    saved = pq.read_table(made.out / CLUSTERS)
    assert saved["row"].to_pylist() == list(range(120)) and set(saved["dataset"].to_pylist()) == {"mixed"}
    record = yaml.safe_load((made.out / "dataflex" / "config.yaml").read_text())
    said = saved["domain"].to_pylist()
    assert {name: found["rows"] for name, found in record["domains"].items()} == {n: said.count(n) for n in set(said)}
    assert list(record["domains"]) == sorted(set(said)) and len(set(said)) == 3
    results = json.loads((made.out / "eval_results.json").read_text())
    assert any(f"eval_dataflex/loss/{name}" in results for name in said)
    assert (made.out / "checkpoint-6" / CLUSTERS).read_bytes() == (made.out / CLUSTERS).read_bytes()

    by_file = {"by": "file", "path": str(made.out / CLUSTERS)}
    other = {**mixed, "eval_dataset": None, "do_eval": False, "dataflex": {**mixed["dataflex"], "domains": by_file}}
    again, named = train_all(
        start({**mixed, "overwrite_output_dir": True}, made.out, hooks=["record_ids"]),
        start(other, tmp_path / "file", hooks=["record_ids"]),
    )
    assert named.ok.ids() == again.ok.ids() == made.ids() and named.trace() == again.trace() == made.trace()
    assert named.ledger() == [line for line in again.ledger() if line["component"] != "evaluate"]
    assert "were made" not in again.log and not (tmp_path / "file" / CLUSTERS).exists()


@pytest.mark.slow
def test_a_resumed_run_makes_no_clusters(mixed: Config, tmp_path: Path) -> None:
    """Not even where the run's own file is gone; another k is refused by its name."""
    config = {**mixed, "save_strategy": "steps", "save_steps": 2}
    kill_and_resume(config, tmp_path, "kill_after:3", 2)
    whole = tmp_path / "whole"
    (whole / CLUSTERS).unlink()
    resumed = train({**config, "resume_from_checkpoint": str(whole / "checkpoint-2")}, whole, hooks=["no_encoder"]).ok
    assert "were made" not in resumed.log and (whole / CLUSTERS).is_file()
    assert_refused(train(with_domains(config, k=2), whole), "cannot resume", "dataflex.domains.k")


@pytest.mark.slow
def test_two_ranks_have_the_same_clusters(mixed: Config, tmp_path: Path) -> None:
    one, two = train_all(
        start(mixed, tmp_path / "one", hooks=["record_ids"]),
        start({**mixed, "per_device_train_batch_size": 2}, tmp_path / "two", ranks=2, hooks=["record_ids"]),
    )
    assert one.ok.ids()[0] == two.ok.ids()[0]  # later ones follow losses
    assert pq.read_table(one.out / CLUSTERS).equals(pq.read_table(two.out / CLUSTERS))


@pytest.mark.slow
def test_rows_that_fail_a_condition_are_in_no_cluster(mixed: Config, tmp_path: Path) -> None:
    run = train(with_domains(mixed, where={"column": "n", "min": 2}), tmp_path / "run").ok
    domains = pq.read_table(run.out / CLUSTERS)["domain"].to_pylist()
    assert [name is None for name in domains] == [i % 5 < 2 for i in range(120)]
    assert "48 rows are left out (n min 2 48)" in run.log


@pytest.mark.slow
def test_a_file_of_clusters_is_shared(mixed: Config, tmp_path: Path) -> None:
    """By runs with the same rows; for others it is refused."""
    path = str(tmp_path / "shared.parquet")
    first = train(with_domains(mixed, path=path), tmp_path / "first").ok
    second = train(with_domains(mixed, path=path), tmp_path / "second", hooks=["no_encoder"]).ok
    assert first.trace() == second.trace() and (second.out / CLUSTERS).is_file()
    refused = train(with_domains(mixed, path=path, k=2), tmp_path / "third", hooks=["no_model"])
    assert_refused(refused, "dataflex.domains.path", "has k 3, not 2")
    refused = train(with_domains(mixed, path=path, where={"column": "n", "min": 1}), tmp_path / "fourth")
    assert_refused(refused, "dataflex.domains.path", "is of other rows")


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["random", "loss"])
def test_a_selection_before_training(mixed: Config, tmp_path: Path, selector: str) -> None:
    """Without a model, and with one."""
    block = {"domains": mixed["dataflex"]["domains"], "select": {"name": selector}, "offline": {"budget": 20}}
    out = start_select({**mixed, "dataflex": block}, tmp_path / "out").wait().ok.out
    (scores,) = out.rglob("scores.parquet")
    clusters = pq.read_table(out / CLUSTERS)["domain"].to_pylist()
    assert all(clusters[row["row"]] == row["domain"] for row in pq.read_table(scores).to_pylist())


@pytest.mark.slow
def test_doremi_makes_clusters_once(mixed: Config, tmp_path: Path) -> None:
    keys = {"domains": mixed["dataflex"]["domains"], "mix": {"interval": 2}, "doremi": {}}
    file, out = tmp_path / "doremi.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({**mixed, "max_steps": 4, "output_dir": str(out), "dataflex": keys}))
    done = command("doremi", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (done.stdout + done.stderr).count("clusters of 120 rows were made") == 1
    names = set(pq.read_table(out / "clusters.parquet")["domain"].to_pylist())
    assert json.loads((out / "proxy" / "dataflex" / "proportions.json").read_text()).keys() == names


@pytest.mark.slow
def test_stored_tokens_of_clusters(mixed: Config, tmp_path: Path) -> None:
    config = {**mixed, "tokenized_path": str(tmp_path / "tokens")}
    first = train(config, tmp_path / "first").ok
    second = train(config, tmp_path / "second", hooks=["no_encoder"]).ok
    assert first.trace() == second.trace()
    assert_refused(train(with_domains(config, k=2), tmp_path / "third"), "tokenized_path", "dataflex.domains")


@pytest.mark.slow
def test_held_out_rows_are_of_the_nearest_cluster(mixed: Config, tmp_path: Path) -> None:
    """Which needs the centres: tokens that were stored by another run do not bring them, a file of clusters does."""
    mix = {"name": "odm", "interval": 2, "eval_dataset": "mixed_heldout"}
    config = {**mixed, "tokenized_path": str(tmp_path / "tokens"), "do_eval": True}
    config["dataflex"] = {**mixed["dataflex"], "mix": mix}
    first = train(config, tmp_path / "first").ok
    results = json.loads((first.out / "eval_results.json").read_text())
    assert len([key for key in results if key.startswith("eval_dataflex/loss/")]) > 1
    refused = train(config, tmp_path / "second", hooks=["no_model"])
    assert_refused(refused, "the clusters, which tokenized_path does not keep")
    shared = train(with_domains(config, path=str(first.out / CLUSTERS)), tmp_path / "third").ok
    assert shared.trace() == first.trace()


REFUSED: dict[str, tuple[Config, str]] = {
    "k": ({"embedding_model": "e"}, "dataflex.domains.k is required with by: cluster"),
    "encoder": ({"k": 3}, "dataflex.domains.embedding_model is required with by: cluster"),
    "many": ({"k": 1001, "embedding_model": "e"}, "dataflex.domains.k must be at most 1000, got 1001"),
    "path": ({"k": 3, "embedding_model": "e", "path": "a.csv"}, "dataflex.domains.path must be a .parquet file"),
    "keep": ({"k": 3, "embedding_model": "e", "keep": ["a"]}, "dataflex.domains.keep has no effect with by: cluster"),
    "seed": ({"k": 3, "embedding_model": "e", "seed": 1 << 32}, "dataflex.domains.seed must be below"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_block_cannot_say(base: Config, case: str) -> None:
    keys, line = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        parse({**base, "dataflex": {"domains": {"by": "cluster", **keys}, "mix": "uniform"}})
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.slow
def test_what_does_not_fit_the_data(mixed: Config, tmp_path: Path) -> None:
    few = train(with_domains(mixed, k=500), tmp_path / "few", hooks=["no_model"])
    assert_refused(few, "dataflex.domains.k: 500 clusters are asked for, and the data has 120 rows")
    none = train(with_domains(mixed, embedding_model=str(tmp_path / "none")), tmp_path / "none", hooks=["no_model"])
    assert_refused(none, "dataflex.domains.embedding_model: ", "cannot be loaded")


def test_centres_are_means_of_the_rows_that_are_nearest() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(40, 6)) + 9 * np.eye(6)[i] for i in (0, 2, 5)]).astype(np.float32)
    centres, codes = centres_of(vectors, 3, seed=4)
    assert np.bincount(codes).tolist() == [40, 40, 40]
    for cluster in range(3):
        np.testing.assert_allclose(centres[cluster], vectors[codes == cluster].mean(axis=0), atol=1e-5)
    by_hand = np.linalg.norm(vectors[:, None] - centres[None], axis=2).argmin(axis=1)
    assert nearest_centre(vectors, centres).tolist() == by_hand.tolist() == codes.tolist()
    assert np.array_equal(centres, centres_of(vectors, 3, seed=4)[0])
    assert len(centres_of(np.ones((5, 2), dtype=np.float32), 3, seed=0)[0]) == 1  # equal rows are one cluster


def test_names_are_typical_words_and_differ() -> None:
    texts = ["the cat sat", "the cat ran", "the dog sat", "the sum of two", "the sum of ten"]
    assert cluster_names(texts, np.array([0, 0, 1, 2, 2]), 3) == ("cat-ran-sat", "dog-sat", "sum-ten-two")
    same = cluster_names(["one two three"] * 4, np.array([0, 1, 0, 1]), 2)
    assert same == ("one-three-two", "one-three-two-2")
    assert cluster_names(["1", "2 3", ""], np.array([0, 1, 1]), 2) == ("cluster-2", "cluster")


@pytest.mark.slow
def test_centres_of_some_rows_and_pieces_of_texts(
    mixed: Config, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are many rows, centres are made from some that are drawn, and then every row is compared with them. The
    random generators stay as they are, and clusters are found again however the rows are cut into chunks."""
    rows = [json.loads(line) for line in (Path(mixed["dataset_dir"]) / "mixed.jsonl").read_text().splitlines()]
    aligned = {
        "mixed": Dataset.from_list(
            [{"_prompt": said(row["instruction"]), "_response": said(row["output"])} for row in rows]
        )
    }
    met = {"mixed": np.arange(len(rows)) % 6 > 0}
    spec = DomainsKeys(by="cluster", k=3, embedding_model=str(encoder), seed=5)
    monkeypatch.setattr(clusters, "_LEAST", 30)
    monkeypatch.setattr(clusters, "_FOR_EACH", 10)
    found = []
    for number, pieces in enumerate((7, 1000)):
        monkeypatch.setattr(clusters, "_AT_ONCE", pieces)
        torch.manual_seed(3)
        loading = loading_into(tmp_path / str(number))
        labels = clusters.labels_of_clusters(aligned, aligned, met, spec, loading)["mixed"]
        drawn = torch.rand(1)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(1))
        found.append(labels)
    assert found[0].names == found[1].names and found[0].codes.tolist() == found[1].codes.tolist()
    assert (found[0].codes == -1).tolist() == (~met["mixed"]).tolist()
    saved = clusters_of_run(loading, spec)
    assert saved is not None and len(saved.centres) == 3
    texts = [f"{row['instruction']}\n{row['output']}" for row in rows]
    vectors = unit(load_encoder(str(encoder), torch.device("cpu")).encode(texts))
    nearest = np.linalg.norm(vectors[:, None] - saved.centres[None], axis=2).argmin(axis=1)
    assert found[0].codes[met["mixed"]].tolist() == nearest[met["mixed"]].tolist()

    monkeypatch.setattr(clusters, "load_encoder", None)  # what is saved is used
    chunked = {
        "mixed": concatenate_datasets([aligned["mixed"].select(range(50)), aligned["mixed"].select(range(50, 120))])
    }
    again = clusters.labels_of_clusters(chunked, chunked, met, spec, loading)["mixed"]
    assert again.codes.tolist() == found[0].codes.tolist()
    with pytest.raises(TypeError):  # other rows are other clusters, and would need the encoder
        clusters.labels_of_clusters(aligned, aligned, {"mixed": np.arange(len(rows)) % 5 > 0}, spec, loading)


def said(text: str) -> list[dict[str, str]]:
    return [{"content": text, "role": "user"}]


def loading_into(out: Path) -> Any:
    args = SimpleNamespace(
        output_dir=str(out), should_save=True, resume_from_checkpoint=None, device=torch.device("cpu")
    )
    return SimpleNamespace(training_args=args)
