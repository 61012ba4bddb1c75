"""Domains that the rows of the data name (`dataflex.domains`), through the real command line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import yaml
from checkpoint_files import assert_refused
from commands import command
from comparing import kill_and_resume
from corpora import BY_COLUMN, IN_ORDER, SOURCES, STATIC, block, parts, rows_of, start_select, written
from datasets import Dataset
from harness import Result, start, train, train_all
from selecting import table

from dataflex.base.loading.domains.columns import column_of
from dataflex.base.loading.domains.conditions import rows_that_meet
from dataflex.base.loading.domains.files import labels_of_file
from dataflex.base.loading.domains.json_text import JsonTextError, of_json_text
from dataflex.base.loading.domains.labels import Labels, assign, encoded
from dataflex.base.loading.domains.lengths import characters
from dataflex.base.loading.split import take
from dataflex.cli import main
from dataflex.config import parse
from dataflex.config.domains import settled
from dataflex.config.schema import DomainsKeys, WhereKeys
from dataflex.errors import ConfigError
from dataflex.forecast.data import Sizes
from dataflex.forecast.domains import count_domains

Config = dict[str, Any]
Row = dict[str, Any]


def assert_same_run(found: Result, expected: Result) -> None:
    """Losses and gradient norms, ids served, decisions, exposure and the weights at the end: equal to the bit."""
    assert found.ok.trace() == expected.ok.trace()
    assert found.ids() == expected.ids()
    assert found.ledger() == expected.ledger()
    assert found.scalars() == expected.scalars()
    exposure = "dataflex/exposure.parquet"
    assert pq.read_table(found.out / exposure).equals(pq.read_table(expected.out / exposure))
    weights = [sorted(run.out.glob("**/model.safetensors")) for run in (found, expected)]
    assert [w.relative_to(found.out) for w in weights[0]] == [w.relative_to(expected.out) for w in weights[1]] != []
    for one, other in zip(*weights, strict=True):
        assert one.read_bytes() == other.read_bytes(), one


SAME: dict[str, tuple[Config, Config]] = {
    "mix": ({}, {"mix": {**STATIC, "max_repetition": {"docs": 1.5}}}),
    "order": ({}, {"mix": IN_ORDER}),
    "tokens": ({}, {"mix": {**STATIC, "unit": "tokens"}}),
    "odm": ({}, {"mix": {"name": "odm", "interval": 2}}),
    "packed": ({"packing": True, "cutoff_len": 128}, {}),
    "select and mix": ({}, {"select": {"name": "loss", "interval": 4}}),
    "domain weights": ({}, {"weight": {"name": "domain", "by_domain": {"code": 2, "docs": 1, "arithmetic": 0.5}}}),
    "val_size": ({"val_size": 6, "eval_strategy": "steps", "eval_steps": 6}, {"mix": {"name": "aioli", "interval": 4}}),
}
QUICK = ("packed", "val_size")


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in SAME])
def test_a_column_gives_the_run_of_a_file_for_each_domain(slim: Config, tmp_path: Path, case: str) -> None:
    more, keys = SAME[case]
    config = {**slim, "save_strategy": "steps", "save_steps": 6, **more}
    by_column, by_file = train_all(
        start({**config, **block(**keys)}, tmp_path / "column", hooks=["record_ids"]),
        start({**config, **parts(**keys)}, tmp_path / "files", hooks=["record_ids"]),
    )
    assert_same_run(by_column, by_file)
    recorded = [
        yaml.safe_load((run.out / "dataflex" / "config.yaml").read_text())["domains"] for run in (by_column, by_file)
    ]
    assert recorded[0] == recorded[1]


def test_rows_of_several_data_sets_keep_their_place(slim: Config, tmp_path: Path) -> None:
    """Two data sets, of which three domains are made: the files of selections name data set and stored row."""
    select = {"select": {"name": "loss", "interval": 6}, "mix": IN_ORDER}
    config = {**slim, "dataset": "first,second", **block(**select)}
    two, one = train_all(
        start(config, tmp_path / "two", hooks=["record_ids"]),
        start({**slim, **block(**select)}, tmp_path / "one", hooks=["record_ids"]),
    )
    assert two.ok.trace() == one.ok.trace() and two.ids() == one.ids()
    found, whole = table(two, 0), table(one, 0)
    folder = Path(slim["dataset_dir"])
    stored = {name: rows_of(folder, name) for name in ("first", "second", "slim")}
    at = [stored[name][row] for name, row in zip(found["dataset"], found["row"], strict=True)]
    assert at == [stored["slim"][row] for row in whole["row"]] and set(found["dataset"]) == {"first", "second"}
    assert [row["meta"]["source"] for row in at] == list(found["domain"])
    row = next(i for i in range(len(at)) if found["dataset"][i] == "second" and found["selected"][i])
    name = f"second:{found['row'][row]}"
    shown = command("show", str(two.out), "--row", name)
    assert shown.returncode == 0 and name in shown.stdout and str(at[row]["output"])[:10] in shown.stdout, shown.stderr
    listed = command("show", str(two.out), "--domain", "docs", "--top", "2", "--json")
    records = json.loads(listed.stdout)
    assert {r["domain"] for r in records} == {"docs"} and {r["dataset"] for r in records} <= {"first", "second"}
    report = command("report", str(two.out))
    assert report.returncode == 0 and all(name in report.stdout for name in SOURCES)


REST: dict[str, tuple[Config, list[str], dict[str, int]]] = {
    "merge": ({"keep": ["docs", "code"]}, ["docs", "code", "other"], {}),
    "drop": ({"keep": "docs,code", "other": "drop"}, ["docs", "code"], {"arithmetic": 60}),
    "missing": ({"missing": "unnamed", "keep": ["docs"]}, ["docs", "unnamed", "other"], {}),
    "missing is one": ({"missing": "docs"}, ["arithmetic", "code", "docs"], {}),
}


@pytest.mark.parametrize("case", REST)
def test_what_is_not_kept_is_merged_or_left_out(slim: Config, tmp_path: Path, case: str) -> None:
    keys, names, left_out = REST[case]
    data = "gaps" if "missing" in keys else "slim"
    config = {**slim, "dataset": data, "max_steps": 2}
    domains = {**BY_COLUMN, **keys}
    run = train({**config, "dataflex": {"domains": domains, "mix": "uniform"}}, tmp_path / "run").ok
    record = yaml.safe_load((run.out / "dataflex" / "config.yaml").read_text())
    rows = rows_of(Path(slim["dataset_dir"]), data)
    said = [row["meta"]["source"] or keys["missing"] for row in rows]
    expected = {name: said.count(name) for name in names}
    if "other" in names:
        expected["other"] = len([name for name in said if name not in names])
    assert {name: found["rows"] for name, found in record["domains"].items()} == expected
    assert list(record["domains"]) == names and record.get("left_out", {}) == left_out
    assert record["dataflex"]["domains"]["column"] == "meta.source"
    line = "dataflex.domains: 60 rows are left out (arithmetic 60)"
    assert (line in run.log) == bool(left_out)


def test_held_out_data_is_divided_too(slim: Config, tmp_path: Path) -> None:
    """By the same column, or by a data set for each domain; both are the run over files."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 6, "save_strategy": "steps", "save_steps": 6}
    each = {name: f"{name}_heldout" for name in SOURCES}
    mix = {"name": "aioli", "interval": 4}
    divided, named, files = train_all(
        start(
            {**slim, **evaluated, **block(mix={**mix, "eval_dataset": "first_heldout,second_heldout"})}, tmp_path / "a"
        ),
        start({**slim, **evaluated, **block(mix={**mix, "eval_dataset": each})}, tmp_path / "b"),
        start({**slim, **evaluated, **parts(mix={**mix, "eval_dataset": each})}, tmp_path / "c"),
    )
    assert divided.ok.ledger() == named.ok.ledger() == files.ok.ledger()
    assert divided.trace() == named.trace() == files.trace()

    def measured(run: Result) -> list[Config]:
        history = json.loads((run.out / "trainer_state.json").read_text())["log_history"]
        return [{k: v for k, v in r.items() if k.startswith("eval_dataflex/")} for r in history if "eval_loss" in r]

    assert measured(divided) == measured(files) and "eval_dataflex/loss/docs" in measured(files)[0]


def test_eval_dataset_of_llamafactory_is_divided(slim: Config, tmp_path: Path) -> None:
    """Where its rows name domains; else that is said, and nothing is evaluated by domain."""
    config = {**slim, "max_steps": 2, "do_eval": True, **block()}
    found, other = train_all(
        start({**config, "eval_dataset": "slim_heldout"}, tmp_path / "a"),
        start({**config, "eval_dataset": "bare"}, tmp_path / "b"),
    )
    results = [json.loads((run.ok.out / "eval_results.json").read_text()) for run in (found, other)]
    assert {f"eval_dataflex/loss/{name}" for name in SOURCES} < results[0].keys()
    assert not any("dataflex" in key for key in results[1])
    assert "nothing is evaluated by domain: eval_dataset" in other.log


def test_kill_and_resume(slim: Config, tmp_path: Path) -> None:
    config = {**slim, "save_strategy": "steps", "save_steps": 4, **block(mix={"name": "odm", "interval": 2})}
    kill_and_resume(config, tmp_path, "kill_after:6", 4)
    changed = {"column": "instruction", "missing": "code", "keep": ["docs", "code", "arithmetic"]}
    for key, value in changed.items():
        domains = {**BY_COLUMN, key: value, **({"keep": [], "other": None} if key == "column" else {})}
        other = train({**config, **block(domains=domains, mix={"name": "odm", "interval": 2})}, tmp_path / "killed")
        assert_refused(other, "cannot resume", f"dataflex.domains.{key}")


@pytest.mark.slow
def test_one_and_two_ranks_serve_the_same(slim: Config, tmp_path: Path) -> None:
    config = {**slim, "dataset": "first,second", **block()}
    one, two = train_all(
        start(config, tmp_path / "one", hooks=["record_ids"]),
        start({**config, "per_device_train_batch_size": 2}, tmp_path / "two", ranks=2, hooks=["record_ids"]),
    )
    assert one.ok.ids() == two.ok.ids()


@pytest.mark.slow
def test_stored_tokens_are_those_of_the_same_domains(slim: Config, tmp_path: Path) -> None:
    config = {**slim, "tokenized_path": str(tmp_path / "tokens"), **block()}
    first = train(config, tmp_path / "first", hooks=["record_ids"]).ok
    second = train(config, tmp_path / "second", hooks=["record_ids"]).ok
    assert first.ids() == second.ids() and first.trace() == second.trace()
    other = {**config, **block(domains={**BY_COLUMN, "keep": ["code", "docs", "arithmetic"]})}
    assert_refused(train(other, tmp_path / "third"), "tokenized_path", "dataflex.domains")
    assert_refused(train({**config, "dataflex": {"mix": "uniform"}}, tmp_path / "fourth"), "tokenized_path", "domains")


@pytest.mark.parametrize("selector", ["loss", "random"])
def test_a_selection_before_training_names_data_set_and_row(slim: Config, tmp_path: Path, selector: str) -> None:
    """With the model, and without."""
    domains = {**BY_COLUMN, "keep": ["docs", "code"], "other": "drop"}
    keys = {"select": {"name": selector}, "offline": {"budget": 30}, "domains": domains}
    config = {**slim, "dataset": "first,second", "dataflex": keys}
    run = start_select(config, tmp_path / "out").wait()
    assert run.status == [0], run.log[-3000:]
    entries = json.loads((run.out / "dataset_info.json").read_text())
    folder = (run.out / next(iter(entries.values()))["file_name"]).parent
    found = pq.read_table(folder / "scores.parquet").to_pylist()
    stored = {name: rows_of(Path(slim["dataset_dir"]), name) for name in ("first", "second")}
    assert [stored[r["dataset"]][r["row"]]["meta"]["source"] for r in found] == [r["domain"] for r in found]
    assert {r["domain"] for r in found} == {"docs", "code"}
    for name, rows in stored.items():
        taken = sorted((r for r in found if r["dataset"] == name and r["times"]), key=lambda r: r["rank"])
        assert rows_of(folder, f"{name}_{selector}") == [rows[r["row"]] for r in taken] != []
    summary = (folder / "summary.md").read_text()
    assert "60 rows are left out (arithmetic 60)" in summary and "domain docs: " in summary


@pytest.mark.slow
def test_doremi_finds_proportions_of_domains(slim: Config, tmp_path: Path) -> None:
    keys = {"domains": BY_COLUMN, "mix": {"interval": 2}, "doremi": {}}
    file, out = tmp_path / "doremi.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({**slim, "max_steps": 4, "output_dir": str(out), "dataflex": keys}))
    done = command("doremi", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "proxy" / "dataflex" / "proportions.json").read_text())
    final = yaml.safe_load((out / "final" / "dataflex" / "config.yaml").read_text())
    assert list(found) == sorted(SOURCES)
    assert final["dataflex"]["mix"]["proportions"] == pytest.approx(list(found.values()))


def planned(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Config:
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(tmp_path / "out")}))
    assert main(["plan", str(file), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


COUNTED: dict[str, tuple[Config, dict[str, int], dict[str, int]]] = {
    "column": ({**BY_COLUMN, "keep": ["docs"]}, {"docs": 60, "other": 120}, {}),
    "drop": ({**BY_COLUMN, "keep": ["docs", "code"], "other": "drop"}, {"docs": 60, "code": 60}, {"arithmetic": 60}),
    "where": ({"where": {"column": "meta.n", "max": 0}}, {"slim": 27}, {"meta.n max 0": 153}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_a_plan_counts_the_rows_of_domains(
    slim: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Epochs are those of the mixture that the run begins with."""
    domains, rows, left_out = COUNTED[case]
    mix = {"name": "static", "proportions": {name: 1 / len(rows) for name in rows}}
    config = {**slim, **block(domains=domains, mix=mix)}
    found = planned(config, tmp_path, capsys)
    assert found["domains"] == {"rows": rows, "left_out": left_out, "estimated": False}
    assert found["epochs"] == pytest.approx({name: 48 / len(rows) / count for name, count in rows.items()})
    assert not any("once the data is read" in line for line in found["advice"])


def test_a_plan_counts_in_every_kind_of_file(slim: Config, tmp_path: Path) -> None:
    rows = rows_of(Path(slim["dataset_dir"]), "slim")
    flat = [{"instruction": r["instruction"], "output": r["output"], "source": r["meta"]["source"]} for r in rows]
    pq.write_table(pa.Table.from_pylist(flat), tmp_path / "a.parquet")
    csv.write_csv(pa.Table.from_pylist(flat), tmp_path / "a.csv")
    (tmp_path / "a.json").write_text(json.dumps(flat))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat))
    keys = {"by": "column", "column": "source"}
    for kind in ("parquet", "csv", "json", "jsonl"):
        info = {"a": {"file_name": f"a.{kind}"}, "b": {"file_name": f"a.{kind}", "num_samples": 9}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        config = {**slim, "dataset_dir": str(tmp_path), "dataset": "a"}
        found = count_domains(DomainsKeys(**keys), Sizes(config), ("a",))
        assert found is not None and found.rows == dict.fromkeys(sorted(SOURCES), 60), kind
        some = count_domains(DomainsKeys(**keys), Sizes({**config, "max_samples": 50}), ("a",))
        said = [row["source"] for row in flat[:50]]
        assert some is not None and some.rows == {name: said.count(name) for name in sorted(SOURCES)}, kind
        assert count_domains(DomainsKeys(**keys), Sizes(config), ("a", "b")) is None
    lengths = count_domains(DomainsKeys(by="length", edges=(150, 300)), Sizes(config), ("a",))
    assert lengths is not None and lengths.estimated and sum(lengths.rows.values()) == pytest.approx(180, abs=2)


def test_a_plan_says_what_it_cannot_count(slim: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clusters, which no plan makes, and what the data does not have."""
    domains = {"by": "cluster", "k": 4, "embedding_model": "encoder"}
    found = planned({**slim, **block(domains=domains, mix="uniform")}, tmp_path, capsys)
    assert any("4 clusters are made at the start" in line for line in found["advice"]) and found["domains"] is None
    (encoding,) = found["passes"]
    assert (encoding["work"], encoding["times"], encoding["rows"]) == ("text encoder", 1, 180)
    file = tmp_path / "wrong.yaml"
    keys = block(domains={"by": "column", "column": "meta.sorce"}, mix="uniform")
    file.write_text(yaml.safe_dump({**slim, "output_dir": str(tmp_path / "out"), **keys}))
    assert main(["plan", str(file)]) == 2
    assert "'meta.sorce'; did you mean 'meta.source'" in capsys.readouterr().err


# -- by a file, by length --------------------------------------------------------------------------------------------


def named_file(folder: Path, names: list[str], kind: str, **columns: list[Any]) -> str:
    path, table = folder / f"names.{kind}", pa.table({**columns, "domain": names})
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return str(path)


@pytest.mark.parametrize("case", [pytest.param("parquet", marks=pytest.mark.slow), "csv", "jsonl"])
def test_a_file_gives_the_run_of_the_column(slim: Config, tmp_path: Path, case: str) -> None:
    """In order, by number over all data sets, and by number in each of them."""
    folder = Path(slim["dataset_dir"])
    names = {name: [row["meta"]["source"] for row in rows_of(folder, name)] for name in ("first", "second")}
    listed, first = [*names["first"], *names["second"]], len(names["first"])
    columns: dict[str, list[Any]] = {}
    order = list(range(len(listed)))
    random.Random(0).shuffle(order)
    if case != "parquet":
        columns["row"] = order
        listed = [listed[i] for i in order]
    if case == "jsonl":
        columns = {"row": [i - first if i >= first else i for i in order]}
        columns["dataset"] = ["second" if i >= first else "first" for i in order]
    path = named_file(tmp_path, listed, case, **columns)
    config = {**slim, "dataset": "first,second", "max_steps": 6}
    by_file, by_column = train_all(
        start({**config, **block(domains={"by": "file", "path": path})}, tmp_path / "file", hooks=["record_ids"]),
        start({**config, **block()}, tmp_path / "column", hooks=["record_ids"]),
    )
    assert by_file.ok.ids() == by_column.ok.ids() and by_file.trace() == by_column.trace()


def test_another_file_is_refused_and_a_copy_is_not(slim: Config, tmp_path: Path) -> None:
    names = [row["meta"]["source"] for row in rows_of(Path(slim["dataset_dir"]), "slim")]
    for where in ("a", "b"):
        (tmp_path / where).mkdir()
    paths = [named_file(tmp_path / "a", names, "csv"), named_file(tmp_path / "b", names, "csv")]
    config = {**slim, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}

    def run(path: str, *hooks: str) -> Result:
        return train({**config, **block(domains={"by": "file", "path": path})}, tmp_path / "run", hooks=hooks)

    run(paths[0], "kill_after:3")
    other = next(i for i, name in enumerate(names) if name != names[0])
    named_file(tmp_path / "a", [names[other], *names[1:other], names[0], *names[other + 1 :]], "csv")
    assert_refused(run(paths[0]), "content of dataflex.domains.path")
    assert max(run(paths[1]).ok.trace()) == 4


FILES: dict[str, tuple[list[str], dict[str, list[Any]], str]] = {
    "short": (["a"] * 3, {}, "names 3 rows in order, and the data sets have 4"),
    "outside": (["a"], {"row": [4]}, "names row 4, and there are 4"),
    "outside of one": (["a"], {"row": [2], "dataset": ["y"]}, "names row 2, and there are 1"),
    "twice": (["a", "b"], {"row": [1, 1]}, "names a row twice"),
    "no number": (["a"], {"row": ["1"]}, "does not hold whole numbers"),
}


@pytest.mark.parametrize("case", FILES)
def test_what_a_file_may_not_say(tmp_path: Path, case: str) -> None:
    names, columns, message = FILES[case]
    stored = {"x": Dataset.from_dict({"n": [0, 1, 2]}), "y": Dataset.from_dict({"n": [3]})}
    spec = DomainsKeys(by="file", path=named_file(tmp_path, names, "parquet", **columns))
    with pytest.raises(ConfigError, match=rf"^dataflex\.domains\.path: .*{message}"):
        labels_of_file(stored, spec)
    with pytest.raises(ConfigError, match="no column 'domian'; did you mean 'domain'"):
        labels_of_file(stored, replace(spec, column="domian"))


def test_a_file_is_about_stored_rows(tmp_path: Path) -> None:
    """Not about those that were drawn; a row that is not listed has no name, and other data sets are passed over."""
    stored = {"x": Dataset.from_dict({"n": [0, 1, 2]}).select([2, 0]), "y": Dataset.from_dict({"n": [3, 4]})}
    columns = {"row": [2, 0, 1, 9], "dataset": ["x", "x", "y", "z"]}
    spec = DomainsKeys(by="file", path=named_file(tmp_path, ["a", "b", "a", "c"], "parquet", **columns))
    found = {
        name: [labels.names[code] if code >= 0 else None for code in labels.codes]
        for name, labels in labels_of_file(stored, spec).items()
    }
    assert found == {"x": ["a", "b"], "y": [None, "a"]}


def test_domains_by_length(slim: Config, tmp_path: Path) -> None:
    """The run over a file for each range; held-out rows are divided by their own lengths."""
    folder = tmp_path / "data"
    folder.mkdir()
    info: dict[str, Any] = {}
    edges, names = [150, 300], ("0-149", "150-299", "300+")
    mix = {"name": "static", "proportions": dict(zip(names, (0.5, 0.3, 0.2), strict=True))}
    for ending in ("", "_heldout"):
        rows = rows_of(Path(slim["dataset_dir"]), f"slim{ending}")
        info[f"slim{ending}"] = written(folder, f"slim{ending}", rows)
        for i, name in enumerate(names):
            own = [row for row in rows if np.searchsorted(edges, length(row), side="right") == i]
            assert own, name
            info[f"{name}{ending}"] = written(folder, f"{name}{ending}", own)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    config = {**slim, "dataset_dir": str(folder), "do_eval": True, "eval_dataset": "slim_heldout"}
    files = {
        "dataset": ",".join(names),
        "eval_dataset": ",".join(f"{n}_heldout" for n in names),
        "dataflex": {"mix": mix},
    }
    domains = {"by": "length", "edges": edges}
    runs = train_all(
        start({**config, "dataflex": {"mix": mix, "domains": domains}}, tmp_path / "a", hooks=["record_ids"]),
        start({**config, **files}, tmp_path / "b", hooks=["record_ids"]),
    )
    assert runs[0].ok.ids() == runs[1].ok.ids() and runs[0].trace() == runs[1].trace()
    results = [json.loads((run.out / "eval_results.json").read_text()) for run in runs]
    ours = [{k: v for k, v in result.items() if "dataflex" in k} for result in results]
    assert ours[0] == ours[1] and ours[0]["eval_dataflex/loss/300+"] > 0


def length(row: Row) -> int:
    """Of the prompt, which LLaMA-Factory joins from two columns, and of the answer."""
    return len("\n".join(filter(None, (row["instruction"], row["input"])))) + len(row["output"])


def test_characters_of_messages() -> None:
    said = [["ä", "bc"], [], ["x" * 9]]
    rows = [
        {
            "_prompt": [{"content": t, "role": "user"} for t in texts],
            "_response": [{"content": "no", "role": "assistant"}],
        }
        for texts in said
    ]
    data = Dataset.from_list([{**row, "_system": system} for row, system in zip(rows, ("sys", None, ""), strict=True)])
    assert characters(data).tolist() == [3 + 2 + 3, 2, 11]
    assert characters(data.select([2, 0])).tolist() == [11, 8]
    assert DomainsKeys(by="length", edges=(5, 9)).ranges == ("0-4", "5-8", "9+")


# -- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["dataset", "column"])
def test_rows_that_meet_conditions_are_those_of_a_file_with_them_alone(slim: Config, tmp_path: Path, by: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    names = ("slim",) if by == "column" else SOURCES
    where = [{"column": "meta.n", "min": 2}, {"column": "meta.n", "equals": [2, 3, 4, 6]}]
    info, count = {}, {"meta.n min 2": 0, "meta.n equals [2, 3, 4, 6]": 0}
    for name in names:
        rows = rows_of(Path(slim["dataset_dir"]), name)
        info[name] = written(folder, name, [row for row in rows if row["meta"]["n"] in (2, 3, 4, 6)])
        for row in rows:
            count["meta.n min 2"] += row["meta"]["n"] < 2
            count["meta.n equals [2, 3, 4, 6]"] += row["meta"]["n"] == 5
    (folder / "dataset_info.json").write_text(json.dumps(info))
    config = {**slim, "dataset": ",".join(names), "max_steps": 6}
    domains = BY_COLUMN if by == "column" else {"by": "dataset"}
    keys = {"select": {"name": "loss", "interval": 3}}
    some, alone = train_all(
        start(
            {**config, **block(domains={**domains, "where": where}, **keys)}, tmp_path / "some", hooks=["record_ids"]
        ),
        start(
            {**config, "dataset_dir": str(folder), **block(domains=domains, **keys)},
            tmp_path / "alone",
            hooks=["record_ids"],
        ),
    )
    assert some.ok.ids() == alone.ok.ids() and some.trace() == alone.trace() and some.ledger() == alone.ledger()
    record = yaml.safe_load((some.out / "dataflex" / "config.yaml").read_text())
    assert record["left_out"] == count and all(count.values())
    assert f"{sum(count.values())} rows are left out" in some.log
    found = table(some, 0)
    stored = rows_of(Path(slim["dataset_dir"]), names[0])
    mine = found["row"] if by == "column" else found["row"][found["domain"] == names[0]]
    assert list(mine) == sorted(mine) or by == "column"
    assert {stored[row]["meta"]["n"] for row in mine} <= {2, 3, 4, 6}


def test_conditions_on_values() -> None:
    data = Dataset.from_dict({"n": [1, None, 3, 5], "t": ["a", "b", None, "c"], "on": [True, False, None, True]})

    def met(**condition: Any) -> list[bool]:
        spec = DomainsKeys(where=(WhereKeys(**condition),))
        return rows_that_meet({"d": data}, spec)[0]["d"].tolist()

    assert met(column="n", min=3) == [False, False, True, True]
    assert met(column="n", min=1, max=3.5) == [True, False, True, False]
    assert met(column="t", equals=["a", "c"]) == [True, False, False, True]
    assert met(column="on", equals=True) == [True, False, False, True]
    for condition, message in (
        ({"column": "t", "min": 1}, "'t' of 'd' holds string"),
        ({"column": "n", "equals": "x"}, "'n' of 'd' holds int64"),
        ({"column": "m", "min": 1}, "no 'm'"),
        ({"column": "n", "min": 9}, "leaves no row of 'd'"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            met(**condition)
        assert str(error.value).startswith("dataflex.domains.where")


# -- weight alone ----------------------------------------------------------------------------------------------------


def alone(weight: Any, domains: Config | None = BY_COLUMN) -> Config:
    return {"dataflex": {**({} if domains is None else {"domains": domains}), "weight": weight}}


def test_weight_alone_keeps_the_order_and_knows_the_domains(slim: Config, tmp_path: Path) -> None:
    """The run without domains to the bit; losses and exposure are those of each row's own domain."""
    config = {**slim, "dataset": "first,second", "save_strategy": "steps", "save_steps": 6}
    weight = {"name": "loss", "strategy": "linupper"}
    split, whole = train_all(
        start({**config, **alone(weight)}, tmp_path / "split", hooks=["record_ids"]),
        start({**config, **alone(weight, None)}, tmp_path / "whole", hooks=["record_ids"]),
    )
    assert split.ok.trace() == whole.ok.trace() and split.ids() == whole.ids()
    weights = [run.out / "checkpoint-12" / "model.safetensors" for run in (split, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    folder = Path(slim["dataset_dir"])
    sources = [row["meta"]["source"] for name in ("first", "second") for row in rows_of(folder, name)]
    seen = pq.read_table(split.out / "dataflex" / "exposure.parquet")
    assert [sources[i] for i in seen["sample_id"].to_pylist()] == seen["domain"].to_pylist()
    assert any(f"dataflex/loss/{name}" in record for record in split.history() for name in SOURCES)
    record = yaml.safe_load((split.out / "dataflex" / "config.yaml").read_text())
    assert {name: found["rows"] for name, found in record["domains"].items()} == dict.fromkeys(sorted(SOURCES), 60)
    report = command("report", str(split.out))
    assert report.returncode == 0 and all(name in report.stdout for name in SOURCES)


def test_weights_by_domain_without_a_mixer(slim: Config, tmp_path: Path) -> None:
    """Domains that weigh nothing are not learned: the run in which a column of the data weighs them zero."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{**r, "w": float(r["meta"]["source"] == "docs")} for r in rows_of(Path(slim["dataset_dir"]), "slim")]
    entry = written(folder, "slim", rows)
    (folder / "dataset_info.json").write_text(json.dumps({"slim": entry}))
    config = {**slim, "dataset_dir": str(folder), "max_steps": 6}
    by_domain = {"name": "domain", "by_domain": {"docs": 1, "code": 0, "arithmetic": 0}}
    named, given = train_all(
        start({**config, **alone(by_domain)}, tmp_path / "named", hooks=["record_ids"]),
        start({**config, **alone({"name": "column", "column": "w"}, None)}, tmp_path / "given", hooks=["record_ids"]),
    )
    assert named.ok.ids() == given.ok.ids()
    for step, (loss, _) in named.trace().items():
        assert loss == pytest.approx(given.trace()[step][0], rel=1e-5), step


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"where": {"column": "meta.n", "min": 3}}], ids=["all", "where"])
def test_weight_alone_is_killed_and_resumed(slim: Config, tmp_path: Path, keys: Config) -> None:
    config = {**slim, "save_strategy": "steps", "save_steps": 4, **alone("loss", {**BY_COLUMN, **keys})}
    kill_and_resume(config, tmp_path, "kill_after:6", 4)


@pytest.mark.slow
def test_conditions_with_weight_alone(slim: Config, tmp_path: Path) -> None:
    """The run over a file with the rows that meet them, also where the names of domains leave rows out."""
    rows = rows_of(Path(slim["dataset_dir"]), "slim")
    kept = [row for row in rows if row["meta"]["n"] >= 3 and row["meta"]["source"] != "code"]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps({"slim": written(folder, "slim", kept)}))
    where = {"where": {"column": "meta.n", "min": 3}, "keep": ["docs", "arithmetic"], "other": "drop"}
    some, file = train_all(
        start({**slim, **alone("loss", {**BY_COLUMN, **where})}, tmp_path / "some", hooks=["record_ids"]),
        start({**slim, "dataset_dir": str(folder), **alone("loss", None)}, tmp_path / "file", hooks=["record_ids"]),
    )
    assert some.ok.ids() == file.ok.ids() and some.trace() == file.trace()
    assert f"{len(rows) - len(kept)} rows are left out" in some.log


# -- what is refused -------------------------------------------------------------------------------------------------

LATER: dict[str, tuple[Config, list[str]]] = {
    "column": ({"domains": {"by": "column", "column": "meta.sorce"}}, ["dataflex.domains.column", "'meta.source'"]),
    "block": ({"domains": {"by": "column", "column": "meta"}}, ["dataflex.domains.column", "'meta.source'"]),
    "no block": (
        {"domains": {"by": "column", "column": "output.source"}},
        ["dataflex.domains.column", "'output.source'"],
    ),
    "keep": ({"domains": {**BY_COLUMN, "keep": ["code", "dosc"]}}, ["dataflex.domains.keep", "'dosc'", "'docs'"]),
    "missing": ({"domains": BY_COLUMN, "data": "gaps"}, ["dataflex.domains.missing", "row ", "'gaps'"]),
    "name": (
        {"mix": {"name": "static", "proportions": {"code": 0.5, "dosc": 0.5}}},
        ["dataflex.mix.proportions", "'docs'"],
    ),
    "count": ({"mix": {"name": "static", "proportions": [0.5, 0.5]}}, ["dataflex.mix.proportions", "3 domains"]),
    "repetition": ({"mix": {**STATIC, "max_repetition": {"cod": 2}}}, ["dataflex.mix.max_repetition", "'code'"]),
    "length": ({"domains": {"by": "length", "edges": [9999]}, "mix": "uniform"}, ["dataflex.domains.edges", "'9999+'"]),
    "held out": (
        {"mix": {"name": "aioli", "interval": 2, "eval_dataset": {"cod": "docs_heldout"}}},
        ["dataflex.mix.eval_dataset", "'code'"],
    ),
    "weights": ({"weight": {"name": "domain", "by_domain": {"cod": 1}}}, ["dataflex.weight.by_domain", "'code'"]),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in ("column", "name") else [pytest.mark.slow]) for c in LATER]
)
def test_what_does_not_fit_the_data_is_one_line_before_a_model_loads(slim: Config, tmp_path: Path, case: str) -> None:
    keys, words = LATER[case]
    keys = dict(keys)
    config = {**slim, "dataset": keys.pop("data", "slim"), **block(**keys)}
    run = train(config, tmp_path / "run", hooks=["no_model"])
    assert run.status == [2], run.log[-3000:]
    lines = [line for line in run.log.splitlines() if "error: " in line]
    assert "Traceback" not in run.log and all(any(word in line for line in lines) for word in words), lines


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "no block": ("column", ["dataflex.domains must be a block"]),
    "by": ({"by": "colum"}, ["dataflex.domains.by", "'column'"]),
    "key": ({**BY_COLUMN, "kep": ["a"]}, ["dataflex.domains.kep", "'keep'"]),
    "required": ({"by": "column"}, ["dataflex.domains.column is required"]),
    "idle": ({"column": "a"}, ["dataflex.domains.column has no effect with by: dataset", "by: column"]),
    "twice": ({**BY_COLUMN, "keep": ["a", "b", "a"]}, ["dataflex.domains.keep: 'a' is listed twice"]),
    "other": ({**BY_COLUMN, "other": "drop"}, ["dataflex.domains.other has no effect without keep"]),
    "path": ({"by": "file"}, ["dataflex.domains.path is required with by: file"]),
    "no file": ({"by": "file", "path": "there.csv"}, ["dataflex.domains.path: no such file: there.csv"]),
    "edges": ({"by": "length", "edges": [5, 5]}, ["dataflex.domains.edges must ascend, got [5, 5]"]),
    "no edges": ({"by": "length", "edges": []}, ["dataflex.domains.edges is required"]),
    "where": (
        {"where": [{"column": "n"}, {"min": 3}, {"column": "n", "min": "x"}, {"column": "n", "mix": 1}, 3]},
        [
            "where[0] needs",
            "where[1].column is required",
            "where[2].min",
            "where[3].mix: unknown key",
            "where[4] must be",
        ],
    ),
    "several": (
        {**BY_COLUMN, "kep": 1, "other": "mrge", "missing": ""},
        ["dataflex.domains.kep", "dataflex.domains.other: 'mrge'", "dataflex.domains.missing must be a name"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_block_cannot_say(base: Config, case: str) -> None:
    given, lines = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        parse({**base, "dataflex": {"domains": given, "mix": "uniform"}})
    found = str(error.value).splitlines()
    assert len(found) == len(lines if case in ("several", "where") else [0]), found
    assert all(any(line in one for one in found) for line in lines), found


REFUSED_WITH: dict[str, tuple[Config, Config, str]] = {
    "packs": ({"weight": "loss"}, {"packing": True}, "with weight alone follows each row"),
    "packs of pt": ({"weight": "loss"}, {"stage": "pt"}, "with weight alone follows each row"),
    "tokens": ({"weight": "loss"}, {"tokenized_path": "tokens"}, "with weight alone is not kept in tokenized_path"),
}


@pytest.mark.parametrize("case", REFUSED_WITH)
def test_what_it_cannot_be_combined_with(base: Config, case: str) -> None:
    keys, more, words = REFUSED_WITH[case]
    with pytest.raises(ConfigError, match=rf"^dataflex\.domains {words}") as error:
        parse({**base, **more, "dataflex": {"domains": BY_COLUMN, **keys}})
    assert "\n" not in str(error.value)


def test_names_that_are_known_are_checked_at_once(base: Config) -> None:
    """As with `keep` and `other: drop`."""
    domains = {**BY_COLUMN, "keep": ["code", "docs"], "other": "drop"}
    with pytest.raises(ConfigError, match="'cod' is not in dataset; did you mean 'code'"):
        parse({**base, "dataflex": {"domains": domains, "mix": {"name": "static", "proportions": {"cod": 1}}}})


def test_a_block_of_data_sets_changes_nothing(base: Config) -> None:
    plain, said = (
        parse({**base, "dataflex": {"mix": "uniform", **more}}) for more in ({}, {"domains": {"by": "dataset"}})
    )
    assert said == plain and "domains" not in said.dataflex.to_json()
    assert settled(said.dataflex, ("a",)) is said.dataflex


# -- names of rows ---------------------------------------------------------------------------------------------------


def test_values_are_names_whatever_they_are_stored_as() -> None:
    """Numbers, switches, dictionaries over chunks; null and an empty text are no name."""
    chunks = pa.chunked_array([["b", None, "a"], ["a", " ", "b"], [None]])
    for values in (chunks, chunks.dictionary_encode(), chunks.cast(pa.large_string())):
        found = encoded(values)
        assert found.names == ("b", "a") and found.codes.tolist() == [0, -1, 1, 1, -1, 0, -1]
    assert encoded(pa.chunked_array([[3, None, 10]])).names == ("3", "10")
    assert encoded(pa.chunked_array([[True, False]])).names == ("true", "false")


def test_a_column_is_found_in_blocks_and_drawn_rows() -> None:
    data = Dataset.from_list([{"meta": {"a": {"b": str(i)}}, "x.y": i} for i in range(6)])
    assert column_of(data, "d", "meta.a.b", "key").to_pylist() == list("012345")
    assert column_of(data, "d", "x.y", "key").to_pylist() == list(range(6))
    empty = Dataset.from_list([{"meta": {"a": None if i else {"b": "z"}}} for i in range(2)])
    assert column_of(empty, "d", "meta.a.b", "key").to_pylist() == ["z", None]


def test_a_key_of_json_text_is_that_of_blocks() -> None:
    """Over chunks, with line breaks, nulls and empty text; numbers stay numbers, for conditions."""
    said = [
        '{"s": "a", "n": 1, "d": {"e": "x"}}',
        None,
        " ",
        '{\n "s": "b\\nc",\r\n "n": 2.5, "z": [1]}',
        '{"o": true}',
    ]
    blocks = [json.loads(text) if text and text.strip() else {} for text in said]
    chunks = pa.chunked_array([said[:2], said[2:]])
    for keys in (["s"], ["n"], ["d", "e"], ["o"]):
        expected = []
        for found in blocks:
            for key in keys:
                found = (found or {}).get(key)
            expected.append(found)
        values = of_json_text(chunks, keys)
        assert values is not None and values.to_pylist() == expected, keys
    assert of_json_text(chunks, ["z"]) is None and of_json_text(chunks, ["q"]) is None
    for wrong in ("{s}", "[1]", '{"s": "a"} {"s": "b"}', "3"):
        with pytest.raises(JsonTextError, match=r"^row 1 holds"):
            of_json_text(pa.chunked_array([['{"s": "a"}', wrong, "{}"]]), ["s"])
    data = Dataset.from_dict({"meta": said})
    assert column_of(data, "d", "meta.d.e", "key").to_pylist() == ["x", None, None, None, None]


@pytest.mark.slow
def test_json_text_gives_the_run_of_blocks(slim: Config, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{**row, "meta": json.dumps(row["meta"])} for row in rows_of(Path(slim["dataset_dir"]), "slim")]
    (folder / "dataset_info.json").write_text(json.dumps({"slim": written(folder, "slim", rows)}))
    keys = block(domains={**BY_COLUMN, "where": {"column": "meta.n", "min": 2}})
    text, blocks = train_all(
        start({**slim, "dataset_dir": str(folder), **keys}, tmp_path / "text", hooks=["record_ids"]),
        start({**slim, **keys}, tmp_path / "blocks", hooks=["record_ids"]),
    )
    assert text.ok.ids() == blocks.ok.ids() and text.trace() == blocks.trace()


def test_rows_are_taken_as_select_takes_them() -> None:
    data = Dataset.from_dict({"n": list(range(20))})
    for rows in (data, data.select([5, 3, 4, 11, 12, 2, 8])):
        for indices in ([0, 1, 2], [1, 3, 6], list(range(len(rows)))):
            assert take(rows, np.array(indices))["n"] == rows.select(indices)["n"]
    assert take(data, np.array([1, 3]))._fingerprint == take(data, np.array([1, 3]))._fingerprint
    assert take(data, np.array([1, 3]))._fingerprint != take(data, np.array([1, 4]))._fingerprint


def test_the_order_of_domains() -> None:
    labels = {"a": Labels(np.array([0, 1, -1, 2]), ("x", "b", "other"))}
    stored = {"a": Dataset.from_dict({"n": [0, 1, 2, 3]})}

    def order(**keys: Any) -> tuple[list[str], list[int]]:
        found = assign(labels, stored, DomainsKeys(by="column", column="c", **keys))
        return list(found.names), found.codes["a"].tolist()

    assert order(missing="m") == (["b", "m", "other", "x"], [3, 0, 1, 2])
    assert order(missing="m", keep=("x",)) == (["x", "m", "other"], [0, 2, 1, 2])
    assert order(missing="m", keep=("x", "m")) == (["x", "m", "other"], [0, 2, 1, 2])
    assert order(missing="x", keep=("b",), other="drop") == (["b", "x"], [1, 0, 1, -1])
