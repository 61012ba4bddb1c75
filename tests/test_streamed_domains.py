"""`streaming: true` with `dataflex.domains`: a stream for each domain that rows name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from checkpoint_files import assert_refused
from corpora import BY_COLUMN, SOURCES, STATIC, rows_of, written
from harness import Result, start, train, train_all

from dataflex.base.loading import stream_sources
from dataflex.base.loading.stream_sources import FilteredStream, StreamedDomain
from dataflex.config import parse
from dataflex.errors import ConfigError

Config = dict[str, Any]
HOOKS = ["record_samples"]
ODM = {"name": "odm", "interval": 2}


@pytest.fixture
def streamed(slim: Config) -> Config:
    """A stream of the one data set, in blocks of 16 rows, packed: a block is several samples, and a domain four blocks."""
    return {**slim, "streaming": True, "packing": True, "cutoff_len": 48}


def with_domains(domains: Config | None = BY_COLUMN, mix: Config = STATIC, **more: Any) -> Config:
    split = {} if domains is None else {"domains": domains}
    return {"dataflex": {**split, "mix": {**mix, "stream_block": 16}, **more}}


def served(run: Result) -> dict[int, list[Any]]:
    found = map(json.loads, (run.ok.out / "samples-0.jsonl").read_text().splitlines())
    return {record["step"]: record["rows"] for record in found}


@pytest.mark.parametrize("stage", ["sft", pytest.param("pt", marks=pytest.mark.slow)])
def test_a_column_gives_the_stream_of_a_file_for_each_domain(streamed: Config, tmp_path: Path, stage: str) -> None:
    """Tokens and order, losses, decisions and weights, over more than one epoch of every domain."""
    config = {**streamed, "stage": stage, "max_steps": 24, "save_strategy": "steps", "save_steps": 24}
    files = {**config, "dataset": "arithmetic,code,docs"}
    column, file = train_all(
        start({**config, **with_domains(mix=ODM)}, tmp_path / "column", hooks=["record_samples"]),
        start({**files, **with_domains(None, ODM)}, tmp_path / "file", hooks=["record_samples"]),
    )
    assert served(column) == served(file) and column.trace() == file.trace() and column.ledger() == file.ledger()
    assert column.scalars() == file.scalars()
    weights = [run.out / "checkpoint-24" / "model.safetensors" for run in (column, file)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    record = yaml.safe_load((column.out / "dataflex" / "config.yaml").read_text())
    assert {name: found["rows"] for name, found in record["domains"].items()} == dict.fromkeys(sorted(SOURCES), 60)


def by_file(slim: Config, folder: Path, names: tuple[str, ...]) -> Config:
    said = [row["meta"]["source"] for name in names for row in rows_of(Path(slim["dataset_dir"]), name)]
    path = folder / "names.parquet"
    pq.write_table(pa.table({"domain": said}), path)
    return {"by": "file", "path": str(path)}


@pytest.mark.slow
def test_a_file_gives_the_stream_of_the_column(streamed: Config, tmp_path: Path) -> None:
    """Over two data sets; so does the one data set, since its rows have the same order."""
    both = {**streamed, "dataset": "first,second", **with_domains(by_file(streamed, tmp_path, ("first", "second")))}
    file, column = train_all(
        start(both, tmp_path / "file", hooks=["record_samples"]),
        start({**streamed, **with_domains()}, tmp_path / "column", hooks=["record_samples"]),
    )
    assert served(file) == served(column) and file.trace() == column.trace()


@pytest.mark.slow
def test_a_mixture_by_size_and_conditions(streamed: Config, tmp_path: Path) -> None:
    """Sizes are known, since the rows are counted; conditions leave rows out, also where data sets are the domains."""
    where = {"column": "meta.n", "min": 2}
    merged = {**BY_COLUMN, "where": where, "keep": ["docs"]}
    column, alone = train_all(
        start({**streamed, **with_domains(merged, {"name": "stratified"})}, tmp_path / "a"),
        start({**streamed, **with_domains({"where": where}, {"name": "stratified"})}, tmp_path / "b"),
    )
    rows = rows_of(Path(streamed["dataset_dir"]), "slim")
    met = [row["meta"]["source"] for row in rows if row["meta"]["n"] >= 2]
    docs = met.count("docs")
    for run, said in ((column, {"docs": docs, "other": len(met) - docs}), (alone, {"slim": len(met)})):
        record = yaml.safe_load((run.ok.out / "dataflex" / "config.yaml").read_text())
        assert {name: found["rows"] for name, found in record["domains"].items()} == said
        assert record["left_out"] == {"meta.n min 2": len(rows) - len(met)}
    proportions = column.ledger()[0]["decided"]["proportions"]
    assert proportions == pytest.approx({"docs": docs / len(met), "other": 1 - docs / len(met)})


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_and_resume(streamed: Config, tmp_path: Path, workers: int) -> None:
    config = {**streamed, "dataloader_num_workers": workers, "save_strategy": "steps", "save_steps": 3}
    config |= with_domains(mix=ODM)
    whole, killed = train_all(
        start(config, tmp_path / "whole", hooks=["record_samples"]),
        start(config, tmp_path / "killed", hooks=["kill_after:7"]),
    )
    assert killed.status == [-9]
    resumed = train(config, tmp_path / "killed", hooks=["record_samples"])
    assert served(resumed) == {step: rows for step, rows in served(whole).items() if step >= 6}
    assert resumed.trace() == whole.trace() and resumed.ledger() == whole.ledger()
    other = {**config, **with_domains({**BY_COLUMN, "keep": ["docs"]}, ODM)}
    assert_refused(train(other, tmp_path / "killed"), "cannot resume", "dataflex.domains.keep")


@pytest.mark.slow
def test_ranks_serve_the_same(streamed: Config, tmp_path: Path) -> None:
    config = {**streamed, **with_domains(), "dataloader_num_workers": 2}
    one, two = train_all(
        start(config, tmp_path / "one", hooks=["record_samples"]),
        start({**config, "per_device_train_batch_size": 2}, tmp_path / "two", ranks=2, hooks=["record_samples"]),
    )
    second = [json.loads(line) for line in (two.ok.out / "samples-1.jsonl").read_text().splitlines()]
    first = served(two)
    assert served(one) == {record["step"]: first[record["step"]] + record["rows"] for record in second}


def test_a_stream_of_a_domain_crosses_data_sets_and_goes_on_from_its_state() -> None:
    from datasets import Dataset

    def convert(row: Config) -> Config:
        return {"_prompt": [row["n"]], "_response": []}

    parts = [
        (Dataset.from_dict({"n": list(range(first, first + 10))}), np.array(rows, dtype=np.int8), convert, None)
        for first, rows in ((0, [1, 4, 7]), (10, [0, 9]))
    ]
    source = StreamedDomain(parts, None)
    source.seek(None)
    assert len(source) == 5
    assert [row["_prompt"] for row in source.read(2)] == [[1], [4]]
    state = source.state()
    assert [row["_prompt"] for row in source.read(2)] == [[7], [10]]
    assert [row["_prompt"] for row in source.read(9)] == [[19]] and source.read(1) == []
    source.seek(json.loads(json.dumps(state)))
    assert [row["_prompt"] for row in source.read(9)] == [[7], [10], [19]]


@pytest.mark.parametrize("domains", [{"by": "length", "edges": [9]}, {"by": "cluster", "k": 2, "embedding_model": "e"}])
def test_what_needs_every_text_first_is_refused(base: Config, domains: Config) -> None:
    with pytest.raises(ConfigError, match=r"^dataflex\.domains\.by: \w+ reads what all rows say first"):
        parse({**base, "streaming": True, "buffer_size": 8, "dataflex": {"domains": domains, "mix": "uniform"}})


# -- data that is read from elsewhere than a file --------------------------------------------------------------------


@pytest.fixture
def elsewhere(streamed: Config, tmp_path: Path) -> Config:
    """The same rows as a folder that is read as the Hub's are, in two files; `meta` is JSON text in it, as in some copies."""
    folder = tmp_path / "data"
    (folder / "hub").mkdir(parents=True)
    rows = [{**row, "meta": json.dumps(row["meta"])} for row in rows_of(Path(streamed["dataset_dir"]), "slim")]
    entry = written(folder / "hub", "0", rows[:70])
    written(folder / "hub", "1", rows[70:])
    info = {"rows": {"hf_hub_url": str(folder / "hub"), "columns": entry["columns"]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return {**streamed, "dataset_dir": str(folder), "dataset": "rows"}


KEPT = {**BY_COLUMN, "keep": sorted(SOURCES), "other": "drop"}


def test_a_stream_from_elsewhere_gives_the_stream_of_a_file(
    streamed: Config, elsewhere: Config, tmp_path: Path
) -> None:
    """With a condition; over more than one epoch."""
    where = {"where": {"column": "meta.n", "min": 2}}
    there, here = train_all(
        start({**elsewhere, **with_domains({**KEPT, **where}), "max_steps": 18}, tmp_path / "there", hooks=HOOKS),
        start({**streamed, **with_domains({**KEPT, **where}), "max_steps": 18}, tmp_path / "here", hooks=HOOKS),
    )
    assert served(there) == served(here) and there.trace() == here.trace()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_from_elsewhere_is_killed_and_resumed(elsewhere: Config, tmp_path: Path, workers: int) -> None:
    domains = {**BY_COLUMN, "keep": ["docs"]}
    config = {**elsewhere, "dataloader_num_workers": workers, "save_strategy": "steps", "save_steps": 3}
    config |= with_domains(domains, {**ODM, "initial": "uniform"})
    whole, killed = train_all(
        start(config, tmp_path / "whole", hooks=HOOKS), start(config, tmp_path / "killed", hooks=["kill_after:7"])
    )
    assert killed.status == [-9]
    resumed = train(config, tmp_path / "killed", hooks=HOOKS)
    assert served(resumed) == {step: rows for step, rows in served(whole).items() if step >= 6}
    assert resumed.trace() == whole.trace() and resumed.ledger() == whole.ledger()


def test_a_filtered_stream_goes_on_from_each_of_its_states(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.setattr(stream_sources, "_CHUNK", 4)

    def source() -> FilteredStream:
        data = Dataset.from_dict({"n": list(range(30))}).to_iterable_dataset()
        return FilteredStream(
            data, lambda row: {"_prompt": row["n"]}, None, None, lambda rows: np.array([r["n"] % 5 < 2 for r in rows])
        )

    def read(found: FilteredStream, count: int) -> list[int]:
        return [row["_prompt"] for row in found.read(count)]

    expected = [n for n in range(30) if n % 5 < 2]
    whole = source()
    whole.seek(None)
    assert read(whole, 99) == expected and read(whole, 1) == []
    for first in range(len(expected) + 1):
        one, other = source(), source()
        one.seek(None)
        assert read(one, first) == expected[:first]
        other.seek(json.loads(json.dumps(one.state())))
        assert read(other, 2) == expected[first : first + 2] and read(other, 99) == expected[first + 2 :]


ELSEWHERE: dict[str, tuple[Config, Config, str]] = {
    "names": (BY_COLUMN, STATIC, "set dataflex.domains.keep"),
    "file": ({"by": "file", "path": "names.csv"}, STATIC, "by: file needs a number for each row"),
    "sizes": (KEPT, {"name": "stratified"}, "goes by the number of rows"),
    "column": ({**KEPT, "column": "meto.source"}, STATIC, "the rows of 'rows' have no 'meto.source'"),
    "missing": ({**KEPT, "column": "meta.sorce"}, STATIC, "dataflex.domains.missing is required"),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c == "names" else [pytest.mark.slow]) for c in ELSEWHERE])
def test_what_a_stream_from_elsewhere_cannot_do(elsewhere: Config, tmp_path: Path, case: str) -> None:
    domains, mix, words = ELSEWHERE[case]
    if "path" in domains:
        domains = {**domains, "path": str(tmp_path / domains["path"])}
        Path(domains["path"]).write_text("domain\na\n")
    run = train({**elsewhere, **with_domains(domains, mix)}, tmp_path / "run", hooks=["no_model"])
    assert_refused(run, words)
