"""`dataflex-cli select`: selections before training, through the real command line."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from checkpoint_files import flip
from harness import Result, Run, train, train_all
from models_and_data import build_encoder
from selecting import LORA, table

from dataflex.components.requests import Embedding
from dataflex.signals.asking.ask import Signals
from dataflex.signals.asking.context import MeasureContext
from dataflex.signals.keeping.disk import kept_values

Config = dict[str, Any]


def start_select(config: Config, out: Path, *, ranks: int = 1, hooks: tuple[str, ...] = ()) -> Run:
    out.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(out)}))
    return Run(["select", str(file)], out, ranks, list(hooks), {})


def select(config: Config, out: Path, **kwargs: Any) -> Result:
    return start_select(config, out, **kwargs).wait()


def info_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_info.json").read_text())


def written(out: Path) -> Path:
    """The directory of the one selection that dataset_info.json names."""
    (folder,) = {(out / entry["file_name"]).parent for entry in info_of(out).values()}
    return folder


def scores(out: Path) -> dict[str, np.ndarray]:
    found = pq.read_table(written(out) / "scores.parquet")
    return {name: np.array(found[name].to_pylist()) for name in found.column_names}


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def offline(base: Config) -> Config:
    config = {k: v for k, v in base.items() if k not in ("max_steps", "logging_steps", "save_strategy")}
    block = {
        "select": {"name": "rds", "target_dataset": ["arithmetic_heldout"]},
        "offline": {"budget": 20, "examples": 3},
    }
    return {**config, "dataflex": block}


def with_block(config: Config, select: Config, **offline: Any) -> Config:
    return {**config, "dataflex": {"select": select, "offline": {"budget": 20, **offline}}}


# -- what is written -------------------------------------------------------------------------------------------------


def test_a_selection_trains(offline: Config, base: Config, tmp_path: Path) -> None:
    """The rows written are raw rows, under the numbers that scores.parquet gives; LLaMA-Factory trains on them."""
    run = select(offline, tmp_path / "out").ok
    found, info = scores(run.out), json.loads((run.out / "dataset_info.json").read_text())
    assert found["times"].sum() == 20 and np.isfinite(found["score"]).all()
    assert (found["dataset"][found["times"] > 0] == "arithmetic").mean() > 0.9
    original = json.loads((Path(base["dataset_dir"]) / "dataset_info.json").read_text())
    for name, entry in info.items():
        source = name.removesuffix("_rds")
        stored = lines(Path(base["dataset_dir"]) / original[source]["file_name"])
        mine = (found["dataset"] == source) & (found["times"] > 0)
        expected = [stored[i] for i in found["row"][mine]]
        assert sorted(map(str, lines(run.out / entry["file_name"]))) == sorted(map(str, expected))
    summary = (written(run.out) / "summary.md").read_text()
    assert summary.count("**arithmetic, row") >= 3 and summary.count(", selected") >= 3
    assert "## Highest scores" in summary and "| selected |" in summary
    again = train({**base, "dataset_dir": str(run.out), "dataset": ",".join(info), "max_steps": 2}, tmp_path / "train")
    assert len(again.ok.history()) == 2


def test_the_whole_order_is_kept(offline: Config, tmp_path: Path) -> None:
    """Everything selected, keep_ratio 1: as many rows as there are."""
    run = select(with_block(offline, offline["dataflex"]["select"], budget=None, keep_ratio=1.0), tmp_path / "out").ok
    assert scores(run.out)["times"].tolist() == [1] * 180


FORMATS: dict[str, tuple[Config, list[Any]]] = {
    "alpaca": ({}, [{"instruction": f"add {i}", "input": "", "output": f"{i + 1}"} for i in range(30)]),
    "sharegpt": (
        {
            "formatting": "sharegpt", "columns": {"messages": "messages"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
        [
            {"messages": [{"role": role, "content": f"{role} {i}"} for role in ("user", "assistant")[: 1 + (i % 7 > 0)]]}
            for i in range(30)
        ],
    ),
    "text": ({"columns": {"prompt": "text"}}, [{"text": f"one line {i} " * 3} for i in range(30)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*FORMATS, "parquet", "json"])
def test_formats(offline: Config, tmp_path: Path, kind: str) -> None:
    """Rows that the processor drops (no answer) are left out, and the numbers are those of the rows as stored."""
    import pyarrow as pa

    entry, rows = FORMATS.get(kind, FORMATS["alpaca"])
    file = f"pool.{'parquet' if kind == 'parquet' else 'json' if kind == 'json' else 'jsonl'}"
    (tmp_path / "data").mkdir()
    if kind == "parquet":  # values that text does not hold
        moment = datetime.datetime(2020, 1, 2, 3, 4, 5, 678901)
        more = [
            {"id": None if i % 3 else 2**53 + i, "when": moment, "raw": bytes([i]), "x": 0.1 * i} for i in range(30)
        ]
        rows = [row | other for row, other in zip(rows, more, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / file)
    else:
        (tmp_path / "data" / file).write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"pool": {"file_name": file, **entry}}))
    config = with_block(offline, {"name": "token_length"}, budget=5)
    config |= {"dataset_dir": str(tmp_path / "data"), "dataset": "pool", "stage": "pt" if kind == "text" else "sft"}
    run = select(config, tmp_path / "out").ok
    found, info = scores(run.out), json.loads((run.out / "dataset_info.json").read_text())
    kept = [i for i in range(30) if kind != "sharegpt" or i % 7]
    assert found["row"].tolist() == kept
    file = run.out / info["pool_token_length"]["file_name"]
    assert file.suffix == (".parquet" if kind == "parquet" else ".jsonl")
    chosen = pq.read_table(file).to_pylist() if kind == "parquet" else lines(file)
    assert sorted(map(str, chosen)) == sorted(str(rows[i]) for i in found["row"][found["times"] > 0])
    again = select({**config, "dataset_dir": str(run.out), "dataset": "pool_token_length"}, tmp_path / "again").ok
    assert scores(again.out)["times"].tolist() == [1] * 5


def test_into_the_directory_that_is_selected_from(offline: Config, base: Config, tmp_path: Path) -> None:
    """Twice: its own entries and files stay, and the second selection takes the place of the first. A name that is taken is
    refused before anything is read."""
    folder = tmp_path / "data"
    shutil.copytree(base["dataset_dir"], folder)
    before = info_of(folder)
    (folder / "summary.md").write_text("mine")
    config = {k: v for k, v in offline.items() if k != "model_name_or_path"} | {"dataset_dir": str(folder)}
    for budget in (20, 30):
        run = select(with_block(config, {"name": "random"}, budget=budget), folder, hooks=("no_model",)).ok
        info = info_of(folder)
        made = {name: entry["file_name"] for name, entry in info.items() if name not in before}
        assert {name: info[name] for name in before} == before and (folder / "summary.md").read_text() == "mine"
        assert sum(len(lines(folder / file)) for file in made.values()) == budget
    assert [p.name for p in folder.glob("random-*")] == ["random-2"] and "random-2/summary.md" in run.log
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset_info.json").write_text('{"docs_random": {"file_name": "mine.json"}}')
    refused = select(with_block(config, {"name": "random"}), tmp_path / "other", hooks=("no_model",))
    assert refused.status == [2] and "defines 'docs_random', which no selection that is there wrote" in refused.log


def test_sampled_rows_keep_their_numbers(offline: Config, base: Config, tmp_path: Path) -> None:
    folder = Path(base["dataset_dir"])
    info = json.loads((folder / "dataset_info.json").read_text())
    entry = {**info["code"], "file_name": str(folder / info["code"]["file_name"]), "num_samples": 25}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"code": entry}))
    config = with_block(
        {**offline, "dataset": "code", "dataset_dir": str(tmp_path / "data")}, {"name": "token_length"}, budget=4
    )
    run = select(config, tmp_path / "out").ok
    found, stored = scores(run.out), lines(Path(entry["file_name"]))
    assert len(found["row"]) == 25 and not np.array_equal(found["row"], np.arange(25))
    rows = lines(written(run.out) / "code_token_length.jsonl")
    assert sorted(map(str, rows)) == sorted(str(stored[i]) for i in found["row"][found["times"] > 0])


# -- every selector --------------------------------------------------------------------------------------------------

SELECTORS: list[Any] = [
    pytest.param({"name": "random"}, marks=pytest.mark.slow),
    {"name": "loss"},
    {"name": "token_length"},
    {"name": "rds"},
    pytest.param({"name": "near", "pooling": "last"}, marks=pytest.mark.slow),
    {"name": "tsds"},
    {"name": "less", "gradient_type": "sgd"},
    pytest.param({"name": "icons", "gradient_type": "sgd"}, marks=pytest.mark.slow),
    {"name": "cluster_less", "gradient_type": "sgd", "cluster_size": 10},
    {"name": "nice", "gradient_type": "sgd", "mc_samples": 1, "max_new_tokens": 4},
    pytest.param({"name": "greats"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("choice", SELECTORS, ids=lambda choice: choice["name"])
def test_every_selector(offline: Config, tmp_path: Path, choice: Config) -> None:
    config = {**with_block(offline, choice), **LORA, "eval_dataset": "arithmetic_heldout"}
    run = select(config, tmp_path / "out").ok
    assert scores(run.out)["times"].sum() == 20
    assert sum(len(lines(run.out / entry["file_name"])) for entry in info_of(run.out).values()) == 20


def test_scores_are_those_of_a_run_at_the_same_checkpoint(base: Config, offline: Config, tmp_path: Path) -> None:
    """LESS with Adam's moments: what the run that made the checkpoint measured there itself; on one rank and on two."""
    aimed = {**LORA, "eval_dataset": "arithmetic_heldout,code_heldout"}
    block = {"name": "less", "warmup": 2, "interval": 4}
    run = train(
        {**base, **aimed, "save_strategy": "steps", "save_steps": 2, "dataflex": {"select": block}}, tmp_path / "run"
    ).ok
    config = {**with_block(offline, block), **aimed, "resume_from_checkpoint": str(run.out / "checkpoint-6")}
    one, two = train_all(start_select(config, tmp_path / "one"), start_select(config, tmp_path / "two", ranks=2))
    expected = table(run, 6)["score"]
    for found in (scores(one.ok.out), scores(two.ok.out)):
        assert np.allclose(found["score"], expected, atol=1e-6)
        assert set(np.flatnonzero(found["times"])) == set(np.argsort(-expected, kind="stable")[:20])
    no = select({**config, "resume_from_checkpoint": None}, tmp_path / "none")
    assert no.status == [2] and "gradient_type: adam reads the moments of an optimizer" in no.log
    flip(run.out / "checkpoint-6" / "optimizer.pt")
    damaged = select(config, tmp_path / "damaged")
    assert (
        damaged.status == [2] and "checkpoint-6 is damaged (optimizer.pt does not hold what was saved)" in damaged.log
    )


# -- without a model -------------------------------------------------------------------------------------------------


def test_embeddings_from_files_need_no_model(offline: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, targets = rng.standard_normal((180, 8)).astype(np.float32), rng.standard_normal((5, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "targets.npy", targets)
    files = {"embeddings": str(tmp_path / "rows.npy"), "target_embeddings": str(tmp_path / "targets.npy")}
    config = {k: v for k, v in with_block(offline, {"name": "near"}, **files).items() if k != "model_name_or_path"}
    run = select(config, tmp_path / "out", hooks=("no_model",)).ok
    unit_rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    unit_targets = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    found = scores(run.out)
    assert np.allclose(found["score"], (unit_rows @ unit_targets.T).max(axis=1), atol=1e-6)
    assert found["times"].sum() == 20
    np.save(tmp_path / "rows.npy", rows[:170])
    short = select(config, tmp_path / "short", hooks=("no_model",))
    assert short.status != [0] and "must hold 180 rows, one per row of the data, " in short.log
    np.save(tmp_path / "rows.npy", np.ones((180, 7), dtype=np.float32))
    narrow = select(config, tmp_path / "narrow", hooks=("no_model",))
    assert narrow.status != [0] and "have different lengths, 7 and 8" in narrow.log


def test_a_text_encoder_is_asked_once(offline: Config, tmp_path: Path) -> None:
    encoder = build_encoder(tmp_path / "encoder", offline["model_name_or_path"])
    choice = {"name": "rds", "embedding_model": str(encoder), "target_dataset": "arithmetic_heldout"}
    config = {**with_block(offline, choice, store=str(tmp_path / "store")), "model_name_or_path": None}
    first = select(config, tmp_path / "out", hooks=("no_model",)).ok
    found = scores(first.out)
    assert (found["dataset"][found["times"] > 0] == "arithmetic").mean() > 0.9
    other = {**config, "dataflex": {**config["dataflex"], "select": {**choice, "name": "near"}}}
    second = select(other, tmp_path / "other", hooks=("no_model", "no_encoder")).ok
    assert np.allclose(scores(second.out)["score"], found["score"], atol=1e-6)


def test_drawn_rows_are_the_same_each_time(offline: Config, base: Config, tmp_path: Path) -> None:
    """`num_samples` draws from the global generator, which LLaMA-Factory seeds where it loads a model; and rows drawn twice."""
    folder = Path(base["dataset_dir"])
    entry = json.loads((folder / "dataset_info.json").read_text())["code"]
    (tmp_path / "data").mkdir()
    entry = {**entry, "file_name": str(folder / entry["file_name"]), "num_samples": 90}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({"code": entry}))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "rows.npy", rng.standard_normal((60, 8)))
    np.save(tmp_path / "targets.npy", rng.standard_normal((5, 8)))
    files = {"embeddings": str(tmp_path / "rows.npy"), "target_embeddings": str(tmp_path / "targets.npy")}
    config = {
        **with_block(offline, {"name": "near"}, **files),
        "dataset": "code",
        "dataset_dir": str(tmp_path / "data"),
    }
    one, other = train_all(*(start_select(config, tmp_path / name) for name in ("one", "other")))
    first, second = scores(one.ok.out), scores(other.ok.out)
    assert np.array_equal(first["row"], second["row"]) and len(np.unique(first["row"])) == 60 < len(first["row"])
    assert lines(written(one.out) / "code_near.jsonl") == lines(written(other.out) / "code_near.jsonl")


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_selection_goes_on(offline: Config, tmp_path: Path, ranks: int) -> None:
    """Killed after two pieces of the rows: the others are measured, and the selection is that of a run not killed."""
    hooks = ("small_pieces:400", "count_measured")
    whole, killed = train_all(
        start_select(offline, tmp_path / "whole", ranks=ranks, hooks=hooks),
        start_select(offline, tmp_path / "killed", ranks=ranks, hooks=(*hooks, "kill_after_pieces:2")),
    )
    assert whole.ok and killed.status == [-9] * ranks and not (killed.out / "dataset_info.json").exists()
    (done,) = json.loads((killed.out / "measured.json").read_text())
    resumed = select(offline, tmp_path / "killed", ranks=ranks, hooks=hooks).ok
    assert 0 < done < 180 and json.loads((resumed.out / "measured.json").read_text()) == [
        180 - done,
        10,
    ]  # the target's
    one, other = scores(whole.out), scores(resumed.out)
    assert np.array_equal(one["score"], other["score"]) and np.array_equal(one["times"], other["times"])


@pytest.mark.parametrize("name", ["less", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nice", "cluster_less"))])
def test_the_target_is_measured_once(offline: Config, tmp_path: Path, name: str) -> None:
    """Not once per piece; and not at all where nothing is left to measure."""
    block = {"name": name, "target_dataset": ["arithmetic_heldout", "code_heldout"], "gradient_type": "sgd"}
    block |= {"mc_samples": 2, "max_new_tokens": 4} if name == "nice" else {}
    config = with_block({**offline, **LORA}, block)
    hooks = ("small_pieces:400", "count_measured", "count_passes")
    first = select(config, tmp_path / "out", hooks=hooks).ok
    passes = json.loads((first.out / "passes.json").read_text())
    assert passes.pop("embeddings", None) == (1 if name == "cluster_less" else None)
    assert passes == {"target gradients": 2, "gradients": 1}
    (first.out / "passes.json").unlink()
    again = select(config, tmp_path / "out", hooks=hooks).ok
    assert not any(json.loads((again.out / "measured.json").read_text()))
    assert not (again.out / "passes.json").exists()
    assert np.array_equal(scores(first.out)["score"], scores(again.out)["score"], equal_nan=True)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line(offline: Config, tmp_path: Path, ranks: int) -> None:
    """What was kept before it is taken up again."""
    hooks = ("small_pieces:400", "count_measured")
    full = select(offline, tmp_path / "out", ranks=ranks, hooks=(*hooks, "full_store:2"))
    (done,) = json.loads((full.out / "measured.json").read_text())
    assert full.status != [0] * ranks and "Traceback" not in full.log
    assert full.log.count("what is measured cannot be kept in ") == 1 and "(No space left on device)" in full.log
    again = select(offline, tmp_path / "out", ranks=ranks, hooks=hooks).ok
    assert 0 < done < 180 and json.loads((again.out / "measured.json").read_text()) == [180 - done, 10]


def test_what_is_measured_is_kept_by_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.signals.keeping.disk._ROWS", 4)
    asked: list[list[int]] = []

    def measure(indices: np.ndarray) -> np.ndarray:
        asked.append(indices.tolist())
        return np.stack([indices, indices**2], axis=1).astype(np.float32)

    expected = np.stack([np.arange(10), np.arange(10) ** 2], axis=1)
    key = {"model": "a", "signal": "embedding"}
    assert np.array_equal(kept_values(tmp_path, key, 10, measure), expected)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    asked.clear()
    found = kept_values(tmp_path, key, 10, measure)
    found[:] = 0  # what is kept stays as it is
    assert np.array_equal(kept_values(tmp_path, key, 10, measure), expected) and not asked
    assert np.array_equal(kept_values(tmp_path, {**key, "model": "b"}, 10, measure), expected) and len(asked) == 3
    asked.clear()
    (folder,) = [f.parent for f in tmp_path.glob("*/key.json") if '"a"' in f.read_text()]
    values = np.load(folder / "values.npy", mmap_mode="r+")
    values[5] = 7  # a piece that is not what was written
    values.flush()
    with (folder / "done.jsonl").open("a") as file:
        file.write('{"from": 8, "to": 10, "ha')
    assert np.array_equal(kept_values(tmp_path, key, 10, measure), expected) and asked == [[4, 5, 6, 7]]
    asked.clear()
    (folder / "values.npy").write_bytes((folder / "values.npy").read_bytes()[:90])
    assert np.array_equal(kept_values(tmp_path, key, 10, measure), expected) and len(asked) == 3


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataflex": None}, "dataflex.select is required"),
        ({"offline": None}, "dataflex.offline needs either budget, the rows to select, or keep_ratio"),
        ({"offline": {"budget": 3, "keep_ratio": 0.5}}, "dataflex.offline needs either budget"),
        ({"offline": {"buget": 3}}, "dataflex.offline.buget: unknown key; did you mean 'budget'"),
        ({"offline": {"budget": 181}}, "dataflex.offline.budget: 181 rows are asked for, but the data has 180"),
        ({"offline": {"keep_ratio": 2}}, "dataflex.offline.keep_ratio must be in (0, 1]"),
        ({"offline": {"budget": 3, "embeddings": "/none.npy"}}, "dataflex.offline.embeddings must be a file"),
        ({"select": {"name": "delta_loss"}}, "delta_loss compares moments of a training"),
        ({"select": {"name": "less"}}, "less needs a target"),
        ({"mix": {"name": "static"}}, "dataflex.mix belongs to training"),
        ({"top": {"deepspeed": "ds.json"}}, "deepspeed splits the model over ranks"),
        ({"top": {"dataset": "cod"}}, "dataset: 'cod' is not defined in"),
        ({"top": {"stage": "kto"}}, "stage: kto makes rows of several stored ones"),
        (
            {"select": {"name": "less", "target_dataset": "twin", "gradient_type": "sgd"}},
            "'twin' has the rows of 'code'",
        ),
        (
            {"select": {"name": "less", "target_dataset": "code_heldout"}, "top": {"resume_from_checkpoint": "."}},
            "resume_from_checkpoint: . has no optimizer.pt",
        ),
    ],
)
def test_bad_input(offline: Config, tmp_path: Path, changes: Config, message: str) -> None:
    block, config = offline["dataflex"], {**offline, **changes.get("top", {})}
    folder = Path(offline["dataset_dir"])
    info = json.loads((folder / "dataset_info.json").read_text())
    if "twin" not in info:
        (folder / "dataset_info.json").write_text(json.dumps({**info, "twin": info["code"]}))
    config["dataflex"] = (
        {**block, **{k: v for k, v in changes.items() if k != "top"}} if "dataflex" not in changes else None
    )
    run = select(config, tmp_path / "out", hooks=("no_model",))
    assert run.status == [2] and message in run.log
    assert run.log.count("dataflex: error") == 1 and "Traceback" not in run.log


def test_training_says_that_it_does_not_read_the_block(offline: Config, base: Config, tmp_path: Path) -> None:
    block = {**offline["dataflex"], "select": {**offline["dataflex"]["select"], "interval": 2}}
    run = train({**base, "max_steps": 2, "dataflex": block}, tmp_path / "run").ok
    assert "dataflex.offline has no effect on train" in run.log


def test_a_file_gives_the_rows_that_are_asked_for() -> None:
    """All of them, or those of a shortlist."""
    values, nothing = np.arange(8.0).reshape(4, 2), SimpleNamespace(step=0)
    context = MeasureContext(nothing, range(4), *[nothing] * 3, stage="sft", seed=0)  # type: ignore[arg-type]
    signals = Signals(context, nothing, files={"embedding": lambda: values})  # type: ignore[arg-type]
    assert signals.measure(Embedding()).tolist() == values.tolist()
    assert signals.measure(Embedding(), np.array([3, 1])).tolist() == values[[3, 1]].tolist()
