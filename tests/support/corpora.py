"""One data set whose rows name their source, and the same rows in a data set for each source."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Run

Config = dict[str, Any]
Row = dict[str, Any]
SOURCES = ("code", "docs", "arithmetic")
BY_COLUMN = {"by": "column", "column": "meta.source"}
STATIC = {"name": "static", "proportions": {"code": 0.5, "docs": 0.3, "arithmetic": 0.2}}
IN_ORDER = {"name": "static", "proportions": [0.2, 0.5, 0.3]}  # of the names in their order: arithmetic, code, docs
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


def written(folder: Path, name: str, rows: list[Row]) -> dict[str, Any]:
    """The entry of a data set whose rows are written into a folder."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"file_name": f"{name}.jsonl", "columns": COLUMNS}


def rows_of(folder: Path, name: str) -> list[Row]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def corpus(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset_dir. `slim` is one data set whose rows name their source; `first` and `second` are the same rows in two. `code`,
    `docs` and `arithmetic` are the rows of each source in the order of `slim`. `slim_heldout` and the like are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    info: dict[str, Any] = {}
    for ending in ("", "_heldout"):
        rows = [
            {**{k: row[k] for k in ("instruction", "input", "output")}, "meta": {"source": name, "n": i % 7}}
            for name in SOURCES
            for i, row in enumerate(rows_of(ground / "data", f"{name}{ending}"))
        ]
        random.Random(3).shuffle(rows)
        cut = len(rows) // 3
        for name, some in (("slim", rows), ("first", rows[:cut]), ("second", rows[cut:])):
            info[f"{name}{ending}"] = written(folder, f"{name}{ending}", some)
        for name in SOURCES:
            own = [row for row in rows if row["meta"]["source"] == name]
            info[f"{name}{ending}"] = written(folder, f"{name}{ending}", own)
    info["bare"] = written(folder, "bare", rows_of(ground / "data", "docs_heldout"))
    info["gaps"] = written(folder, "gaps", gaps(rows_of(folder, "slim")))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def gaps(rows: list[Row]) -> list[Row]:
    """The rows, without a source where `n` is 3."""
    return [
        {**row, "meta": {**row["meta"], "source": None if row["meta"]["n"] == 3 else row["meta"]["source"]}}
        for row in rows
    ]


@pytest.fixture
def slim(base: Config, corpus: Path) -> Config:
    """A run over the one data set."""
    return {**base, "dataset_dir": str(corpus), "dataset": "slim"}


def block(**keys: Any) -> Config:
    return {"dataflex": {"domains": BY_COLUMN, "mix": STATIC, **keys}}


def parts(**keys: Any) -> Config:
    """The same over a data set for each source."""
    return {"dataset": "arithmetic,code,docs", "dataflex": {"mix": STATIC, **keys}}


def start_select(config: Config, out: Path) -> Run:
    """`dataflex-cli select` of a configuration, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(out)}))
    return Run(["select", str(file)], out, 1, [], {})
