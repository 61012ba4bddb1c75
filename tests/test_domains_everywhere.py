"""`dataflex.domains` and `where` in every training stage, with ranks, kills, stored tokens, selections and DoReMi."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from checkpoint_files import assert_refused
from commands import command
from comparing import kill_and_resume
from corpora import BY_COLUMN, SOURCES, block, rows_of, start_select, written
from harness import start, train, train_all

Config = dict[str, Any]
WHERE = {"column": "meta.n", "min": 2}
LORA = {"finetuning_type": "lora", "lora_rank": 4}
STAGES: dict[str, tuple[Config, tuple[str, ...], Config]] = {
    "pt": ({"stage": "pt", "cutoff_len": 32}, ("code_text", "docs_text"), {"select": {"name": "loss", "interval": 3}}),
    "sft neat": ({"neat_packing": True}, ("code", "docs"), {"weight": {"name": "loss", "strategy": "linupper"}}),
    "rm": ({"stage": "rm", **LORA}, ("arithmetic_pairs",), {"select": {"name": "loss", "interval": 3}}),
    "dpo": ({"stage": "dpo", **LORA}, ("arithmetic_pairs",), {"weight": {"name": "loss", "strategy": "linupper"}}),
    "kto": ({"stage": "kto", **LORA}, ("arithmetic_kto",), {}),
}


@pytest.mark.parametrize("stage", [pytest.param(s, marks=[] if s == "dpo" else [pytest.mark.slow]) for s in STAGES])
def test_every_stage_has_the_run_of_files(base: Config, ground: Path, tmp_path: Path, stage: str) -> None:
    """One data set with a condition and a column, and a file of each domain with the rows that meet the condition."""
    keys, names, more = STAGES[stage]
    folder, stored = tmp_path / "data", json.loads((ground / "data" / "dataset_info.json").read_text())
    folder.mkdir()
    rows = [row for name in names for row in rows_of(ground / "data", name)]
    rows = [{**row, "meta": {"n": i % 5}, "half": "ab"[i // 2 % 2]} for i, row in enumerate(rows)]
    info = {}
    for name, some in {
        "whole": rows,
        **{half: [row for row in rows if row["half"] == half and row["meta"]["n"] >= 2] for half in "ab"},
    }.items():
        info[name] = {**stored[names[0]], **{"file_name": written(folder, name, some)["file_name"]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    config = {**base, **keys, "dataset_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 2}
    mix = {"name": "static", "proportions": [0.6, 0.4]}
    domains = {"by": "column", "column": "half", "where": WHERE}
    column, files = train_all(
        start(
            {**config, "dataset": "whole", "dataflex": {"domains": domains, "mix": mix, **more}},
            tmp_path / "column",
            hooks=["record_ids"],
        ),
        start({**config, "dataset": "a,b", "dataflex": {"mix": mix, **more}}, tmp_path / "files", hooks=["record_ids"]),
    )
    assert column.ok.trace() == files.ok.trace() and column.ids() == files.ids() and column.ledger() == files.ledger()
    assert f"{sum(row['meta']['n'] < 2 for row in rows)} rows are left out" in column.log


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pt unpacked", "rm", "dpo"])
def test_weight_alone_in_every_stage(base: Config, ground: Path, tmp_path: Path, stage: str) -> None:
    """The run without domains to the bit."""
    keys, names, _ = STAGES[stage.partition(" ")[0]]
    folder, stored = tmp_path / "data", json.loads((ground / "data" / "dataset_info.json").read_text())
    folder.mkdir()
    rows = [{**row, "half": "ab"[i // 2 % 2]} for i, row in enumerate(rows_of(ground / "data", names[0]))]
    entry = {**stored[names[0]], "file_name": written(folder, "whole", rows)["file_name"]}
    (folder / "dataset_info.json").write_text(json.dumps({"whole": entry}))
    config = {**base, **keys, "packing": False, "dataset_dir": str(folder), "dataset": "whole", "max_steps": 6}
    weight = {"weight": {"name": "loss", "strategy": "linupper"}}
    split, whole = train_all(
        start({**config, "dataflex": {"domains": {"by": "column", "column": "half"}, **weight}}, tmp_path / "split"),
        start({**config, "dataflex": weight}, tmp_path / "whole"),
    )
    assert split.ok.trace() == whole.ok.trace()
    seen = pq.read_table(split.out / "dataflex" / "exposure.parquet")
    assert [rows[i]["half"] for i in seen["sample_id"].to_pylist()] == seen["domain"].to_pylist()


def ways(slim: Config, folder: Path) -> dict[str, Config]:
    """Domains of each kind, with a condition."""
    said = [row["meta"]["source"] for row in rows_of(Path(slim["dataset_dir"]), "slim")]
    path = folder / "names.parquet"
    pq.write_table(pa.table({"domain": said}), path)
    return {
        "column": {**BY_COLUMN, "where": WHERE},
        "file": {"by": "file", "path": str(path), "where": WHERE},
        "length": {"by": "length", "edges": [150, 300], "where": WHERE},
        "dataset": {"where": WHERE},
    }


WAYS = ("column", "file", "length", "dataset")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_kill_and_resume(slim: Config, tmp_path: Path, way: str) -> None:
    """With a selector and a mixer, to the bit; another condition is refused by its key."""
    keys = {"domains": ways(slim, tmp_path)[way], "select": {"name": "loss", "interval": 4}}
    mix = {"name": "odm", "interval": 2}
    config = {**slim, "save_strategy": "steps", "save_steps": 4, **block(mix=mix, **keys)}
    kill_and_resume(config, tmp_path, "kill_after:6", 4)
    other = {**keys, "domains": {**keys["domains"], "where": {**WHERE, "min": 1}}}
    assert_refused(train({**config, **block(mix=mix, **other)}, tmp_path / "killed"), "dataflex.domains.where")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_serve_what_one_serves(slim: Config, tmp_path: Path, way: str) -> None:
    config = {**slim, **block(domains=ways(slim, tmp_path)[way], mix="stratified")}
    one, two = train_all(
        start(config, tmp_path / "one", hooks=["record_ids"]),
        start({**config, "per_device_train_batch_size": 2}, tmp_path / "two", ranks=2, hooks=["record_ids"]),
    )
    assert one.ok.ids() == two.ok.ids()


@pytest.mark.slow
def test_two_ranks_with_weight_alone(slim: Config, tmp_path: Path) -> None:
    keys = {"dataflex": {"domains": {**BY_COLUMN, "where": WHERE}, "weight": "loss"}}
    runs = train_all(
        start({**slim, **keys, "per_device_train_batch_size": 2}, tmp_path / "split", ranks=2, hooks=["record_ids"]),
        start({**slim, **keys}, tmp_path / "one", hooks=["record_ids"]),
    )
    sources = [row["meta"]["source"] for row in rows_of(Path(slim["dataset_dir"]), "slim") if row["meta"]["n"] >= 2]
    for run in runs:
        seen = pq.read_table(run.ok.out / "dataflex" / "exposure.parquet")
        assert [sources[i] for i in seen["sample_id"].to_pylist()] == seen["domain"].to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_stored_tokens(slim: Config, tmp_path: Path, way: str) -> None:
    """Used again by the same domains alone."""
    domains = ways(slim, tmp_path)[way]
    config = {**slim, "max_steps": 4, "tokenized_path": str(tmp_path / "tokens")}
    first = train({**config, **block(domains=domains, mix="uniform")}, tmp_path / "first").ok
    second = train({**config, **block(domains=domains, mix="uniform")}, tmp_path / "second").ok
    assert first.trace() == second.trace()
    other = {**domains, "where": {**WHERE, "min": 3}}
    third = train({**config, **block(domains=other, mix="uniform")}, tmp_path / "third")
    assert_refused(third, "tokenized_path", "dataflex.domains")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("selector", ["loss", "random"])
def test_a_selection_before_training(slim: Config, tmp_path: Path, way: str, selector: str) -> None:
    """No row that fails the condition is scored, with the model and without."""
    keys = {"domains": ways(slim, tmp_path)[way], "select": {"name": selector}, "offline": {"budget": 20}}
    out = start_select({**slim, "dataflex": keys}, tmp_path / "out").wait().ok.out
    (scores,) = out.rglob("scores.parquet")
    rows = rows_of(Path(slim["dataset_dir"]), "slim")
    met = [i for i, row in enumerate(rows) if row["meta"]["n"] >= 2]
    found = pq.read_table(scores).to_pylist()
    assert sorted(row["row"] for row in found) == met
    if way in ("column", "file"):
        assert all(row["domain"] == rows[row["row"]]["meta"]["source"] for row in found)


@pytest.mark.slow
def test_doremi(slim: Config, tmp_path: Path) -> None:
    keys = {"domains": ways(slim, tmp_path)["length"], "mix": {"interval": 2}, "doremi": {}}
    file, out = tmp_path / "doremi.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({**slim, "max_steps": 4, "output_dir": str(out), "dataflex": keys}))
    done = command("doremi", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "proxy" / "dataflex" / "proportions.json").read_text())
    assert list(found) == ["0-149", "150-299", "300+"]
    for step in ("reference", "proxy", "final"):
        record = yaml.safe_load((out / step / "dataflex" / "config.yaml").read_text())
        assert list(record["domains"]) == list(found) and record["left_out"] == {"meta.n min 2": 54}


@pytest.mark.slow
def test_a_mixture_is_replayed_by_name(slim: Config, tmp_path: Path) -> None:
    first = train({**slim, **block(mix={"name": "odm", "interval": 2})}, tmp_path / "first", hooks=["record_ids"]).ok
    mix = {"name": "replay", "ledger": str(first.out / "dataflex" / "ledger.jsonl")}
    again = train({**slim, **block(mix=mix)}, tmp_path / "again", hooks=["record_ids"]).ok
    assert again.ids() == first.ids()
    assert sorted(SOURCES) == list(again.ledger()[0]["decided"]["proportions"])
