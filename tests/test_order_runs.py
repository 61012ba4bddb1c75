"""Orders through the real command line: what is served, measured, recorded and refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from checkpoint_files import assert_refused
from commands import command
from comparing import kill_and_resume
from harness import Result, start, train, train_all

from dataflex.components.registry import ORDERS, resolve
from dataflex.config import parse
from dataflex.errors import ConfigError

Config = dict[str, Any]
SOURCES = ("code", "docs", "arithmetic")
EACH, ROWS = 60, 180
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
BY_COLUMN = {"name": "sorting", "by": "column", "column": "meta.score"}


@pytest.fixture
def base(base: Config) -> Config:
    """Of rows that are not all cut to one length."""
    return {**base, "cutoff_len": 160}


@pytest.fixture(scope="session")
def scored(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A dataset_dir whose rows have a score, some of them equal, and these scores by sample id. `gaps` lacks one."""
    folder, info, every = tmp_path_factory.mktemp("scored"), dict[str, Any](), []
    rng = np.random.default_rng(4)
    for name in SOURCES:
        rows = [json.loads(line) for line in (ground / "data" / f"{name}.jsonl").read_text().splitlines()]
        scores = rng.integers(0, 40, len(rows)) / 8
        rows = [row | {"meta": {"score": float(s), "word": "x"}} for row, s in zip(rows, scores, strict=True)]
        info[name] = {"file_name": f"{name}.jsonl", "columns": COLUMNS}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        every.append(scores)
    rows[7]["meta"]["score"] = None
    (folder / "gaps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info["gaps"] = {"file_name": "gaps.jsonl", "columns": COLUMNS}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder, np.concatenate(every)


def ordered(result: Result, step: int) -> dict[str, np.ndarray]:
    columns = pq.read_table(result.out / "dataflex" / "orders" / f"step_{step}.parquet")
    found = {name: np.asarray(columns[name].to_pylist()) for name in columns.column_names}
    return {**found, "score": found["score"].astype(float)}


def served(result: Result) -> np.ndarray:
    return np.concatenate([rows for _, rows in sorted(result.ok.ids().items())])


def orders(result: Result) -> list[dict[str, Any]]:
    return [line for line in result.ledger() if line["component"].startswith("order:")]


def run_all(base: Config, folder: Path, **blocks: Config) -> dict[str, Result]:
    runs = [start({**base, "dataflex": block}, folder / name, hooks=["record_ids"]) for name, block in blocks.items()]
    return dict(zip(blocks, train_all(*runs), strict=True))


# -- what is served --------------------------------------------------------------------------------------------------


def test_scores_of_a_column_and_of_files(base: Config, scored: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """The same scores from a column, an array in order, and a file by row are one run."""
    folder, scores = scored
    np.save(tmp_path / "scores.npy", scores)
    shuffled = np.random.default_rng(1).permutation(ROWS)
    lines = ({"dataset": SOURCES[i // EACH], "row": int(i % EACH), "hard": float(scores[i])} for i in shuffled)
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = {"name": "sorting", "by": "file"}
    found = run_all(
        {**base, "dataset_dir": str(folder)},
        tmp_path,
        column={"order": BY_COLUMN},
        array={"order": {**file, "path": str(tmp_path / "scores.npy")}},
        lines={"order": {**file, "path": str(tmp_path / "scores.jsonl"), "column": "hard"}},
    )
    ids = served(found["column"])
    assert len(set(ids)) == 48 and ids.tolist() == sorted(ids, key=lambda i: (scores[i], i))
    assert ordered(found["column"], 0)["score"].tolist() == scores.tolist()
    for other in ("array", "lines"):
        assert served(found[other]).tolist() == ids.tolist()
    (line,) = orders(found["column"])
    assert (line["decided"]["rows"], line["decided"]["draws"]) == ([ROWS], [48])
    assert "order sorting by column: 180 rows, over 48 draws" in found["column"].log


def test_lengths_polarity_and_epochs(base: Config, tmp_path: Path) -> None:
    found = run_all(
        {**base, "max_steps": 60, "disable_shuffling": True},  # an epoch and a third
        tmp_path,
        down={"order": {"name": "sorting", "by": "length", "polarity": "higher_earlier"}},
        layers={"order": {"name": "folding", "by": "length", "layers": 3, "warmup": 5}},
    )
    tokens, ids = ordered(found["down"], 0)["score"], served(found["down"])
    for begin, end in ((0, ROWS), (ROWS, 240)):
        part = ids[begin:end]
        assert part.tolist() == sorted(part, key=lambda i: (-tokens[i], i))
    assert sorted(ids[:ROWS]) == list(range(ROWS))
    layered = served(found["layers"])
    assert layered[:20].tolist() == list(range(20))  # disable_shuffling counts before the warmup is over
    ranks = {i: rank for rank, i in enumerate(sorted(layered[20:ROWS], key=lambda i: (tokens[i], i)))}
    assert [ranks[i] for i in layered[20:ROWS]] == [r for layer in range(3) for r in range(layer, 160, 3)]


def test_losses_are_measured_every_interval_and_the_shape_stays(base: Config, tmp_path: Path) -> None:
    block = {"order": {"name": "zigzag", "by": "loss", "layers": 2, "warmup": 2, "interval": 4}}
    run = train({**base, "max_steps": 45, "dataflex": block}, tmp_path / "run", hooks=["record_ids", "count_passes"])
    steps = [line["step"] for line in orders(run.ok)]
    assert steps == list(range(2, 45, 4))
    assert sum(line["from"]["without_score"] for line in orders(run)) == 0
    rows = served(run)
    assert sorted(rows) == list(range(ROWS))
    shape = np.asarray(resolve("order", "zigzag", "")(layers=2).ranks(ROWS - 8, None))  # type: ignore[attr-defined]
    for step, following in pairwise([*steps, 45]):
        score, begin = ordered(run, step)["score"], step * 4
        left = sorted(rows[begin:], key=lambda i: (score[i], i))
        places = np.argsort(np.argsort(shape[begin - 8 :]))
        assert rows[begin : following * 4].tolist() == [left[place] for place in places][: following * 4 - begin]
    first, last = ordered(run, 2), ordered(run, 42)
    assert not np.array_equal(first["score"], last["score"])


def test_every_selection_is_a_pool_of_its_own(base: Config, tmp_path: Path) -> None:
    select = {"name": "random", "warmup": 2, "interval": 4, "updates": 2}
    found = run_all(
        {**base, "max_steps": 18},
        tmp_path,
        length={"select": select, "order": {"name": "sorting", "by": "length"}},
        loss={"select": {**select, "name": "loss"}, "order": {"name": "sorting", "by": "loss"}},
        late={"select": select, "order": {"name": "sorting", "by": "length", "warmup": 4}},
    )
    run = found["length"]
    tokens, ids = ordered(run, 0)["score"], served(run)
    assert [line["step"] for line in orders(run)] == [0, 2, 6]
    assert [line["decided"]["draws"] for line in orders(run)] == [[8], [16], [48]]
    for begin, end in ((0, 2), (2, 6), (6, 10), (10, 14), (14, 18)):
        part = ids[4 * begin : 4 * end]
        assert part.tolist() == sorted(part, key=lambda i: (tokens[i], i)), begin
    assert sorted(ids[24:40]) == sorted(ids[40:56]) == sorted(ids[56:])  # the last selection, three times
    assert sum(1 for line in found["loss"].ledger() if line["component"] == "select:loss") == 2
    by_loss = found["loss"]
    score, second = ordered(by_loss, 0)["score"], served(by_loss)[8:24]
    assert second.tolist() == sorted(second, key=lambda i: (score[i], i))  # measured once: at step 0
    late = served(found["late"])
    assert late[16:24].tolist() == sorted(late[16:24], key=lambda i: (tokens[i], i))
    assert late[8:16].tolist() != sorted(late[8:16], key=lambda i: (tokens[i], i))


def test_a_mixture_orders_each_domain(base: Config, tmp_path: Path) -> None:
    static = {"name": "static", "proportions": [0.5, 0.3, 0.2]}
    moving = {"name": "schedule", "points": [[0, [0.6, 0.2, 0.2]], [9, [0.1, 0.1, 0.8]]]}
    tight = {"max_repetition": {"code": 0.5}}
    found = run_all(
        {**base, "max_steps": 24},
        tmp_path,
        static={"mix": static, "order": {"name": "saw", "by": "length"}},
        anew={"mix": moving, "order": {"name": "sorting", "by": "length", "interval": 9}},
        spent={"mix": {**static, **tight}, "order": {"name": "sorting", "by": "length"}},
        kept={
            "select": {"name": "random", "interval": 12, "keep_ratio": 0.5},
            "mix": static,
            "order": {"name": "sorting", "by": "length"},
            "weight": {"name": "loss"},
        },
    )
    tokens = ordered(found["static"], 0)["score"]
    (line,) = orders(found["static"])
    assert line["decided"] == {"rows": [60, 60, 60], "draws": [48, 29, 20], "file": "orders/step_0.parquet"}
    for d, length in enumerate((48, 29, 20)):
        rows = [i for i in served(found["static"]) if i // EACH == d]
        ranks = {i: rank for rank, i in enumerate(sorted(rows, key=lambda i: (tokens[i], i)))}
        shape = resolve("order", "saw", "")().ranks(length, None)  # type: ignore[attr-defined]
        if len(rows) == length:
            assert [ranks[i] for i in rows] == list(shape)
        assert length - 1 <= len(rows) <= length
    for name in ("anew", "spent"):
        for d in range(3):
            rows = [i for i in served(found[name]) if i // EACH == d]
            assert len(set(rows)) == len(rows)
            assert any(tokens[a] != tokens[b] for a, b in pairwise(rows))
            parts = [rows[: (30, 29, 20)[d]]]  # what code has no more, the others serve beyond their shape
            if name == "anew":
                parts = [[i for i in some if i // EACH == d] for some in np.split(served(found[name]), [36])]
            for part in parts:
                assert part == sorted(part, key=lambda i: (tokens[i], i)), (name, d)
    assert [line["step"] for line in orders(found["anew"])] == [0, 9]  # at step 18 nothing is new
    spent = [i for i in served(found["spent"]) if i < EACH]
    assert len(spent) == 30 and orders(found["spent"])[0]["decided"]["draws"] == [30, 29, 20]
    assert [line["decided"]["draws"] for line in orders(found["kept"])] == [[24, 15, 10], [24, 14, 11]]
    for d in range(3):
        rows = [i for i in served(found["kept"])[:48] if i // EACH == d]
        assert rows == sorted(rows, key=lambda i: (tokens[i], i))


def test_rows_without_a_loss_come_in_the_middle(base: Config, tmp_path: Path) -> None:
    block = {"order": {"name": "sorting", "by": "loss"}}
    hooks = ["record_ids", "nan_rows:3,70,110"]
    run = train({**base, "max_steps": 45, "dataflex": block}, tmp_path / "run", hooks=hooks).ok
    places = {i: place for place, i in enumerate(served(run))}
    assert all(85 <= places[i] <= 95 for i in (3, 70, 110))
    assert run.scalars()[1]["dataflex/order/without_score"] == 3
    assert "3 rows without a score" in run.log


def test_reports_and_rows_by_rank(base: Config, tmp_path: Path) -> None:
    order = {"name": "saw", "by": "loss", "interval": 5}
    run = train({**base, "dataflex": {"order": order}}, tmp_path / "run").ok
    told = command("report", str(run.out))
    assert told.returncode == 0, told.stderr
    assert "order saw" in told.stdout and "without a score" in told.stdout and "order:saw" in told.stdout
    assert command("report", str(run.out), "--html", str(tmp_path / "page.html")).returncode == 0
    assert "Orders" in (tmp_path / "page.html").read_text()
    shown = json.loads(command("show", str(run.out), "--bottom", "3", "--step", "5", "--json").stdout)
    found = ordered(run, 5)
    assert [row["sample_id"] for row in shown] == np.argsort(found["rank"])[:3].tolist()
    assert [row["rank"] for row in shown] == [0, 1, 2] and shown[0]["score"] == found["score"].min()
    page = command("show", str(run.out), "--top", "2", "--domain", "docs").stdout
    assert "saw by loss" in page and "docs:" in page
    refused = command("show", str(run.out), "--row", "docs:3")
    assert refused.returncode == 2 and "--row: this run has no selection" in refused.stderr
    assert "there are 0, 5, 10" in command("show", str(run.out), "--step", "4").stderr
    config = yaml.safe_load((run.out / "config.yaml").read_text())
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    planned = command("plan", str(tmp_path / "again.yaml"), "--json")
    forecast = json.loads(planned.stdout)
    assert [(act["slot"], act["times"]) for act in forecast["timeline"]] == [("order", 3)]
    assert [(each["slot"], each["signal"], each["times"]) for each in forecast["passes"]] == [("order", "loss", 3)]


# -- what is refused -------------------------------------------------------------------------------------------------


def refusal(block: Any, **more: Any) -> str:
    keys = {"stage": "sft", "do_train": True, "dataset": "code,docs", "output_dir": "out", "max_steps": 9, **more}
    with pytest.raises(ConfigError) as error:
        parse({**keys, "dataflex": block})
    return str(error.value)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"order": "sorting"}, "dataflex.order.by is required: what sorting orders rows by; choose from column, file,"),
        ({"order": {"name": "sorted"}}, "dataflex.order.name: unknown order 'sorted'; did you mean 'sorting'?"),
        (
            {"order": {"name": "saw", "by": "lenght"}},
            "dataflex.order.by: 'lenght' is not a choice; did you mean 'length'?",
        ),
        (
            {"order": {"name": "saw", "by": "loss", "layer": 2}},
            "dataflex.order.layer: saw has no such parameter; did you",
        ),
        ({"order": {"name": "saw", "by": "loss", "windw": 2}}, "no such parameter; did you mean 'window'?"),
        (
            {"order": {"name": "saw", "by": "loss", "radius": 0.2}},
            "dataflex.order.radius must be in [0, 1 / (2 sections))",
        ),
        ({"order": {"name": "saw", "by": "loss", "polarity": "higher_late"}}, "did you mean 'higher_later'?"),
        ({"order": {"name": "saw", "by": "loss", "window": -1}}, "dataflex.order.window"),
        ({"order": {"name": "saw", "by": "loss", "interval": 0}}, "dataflex.order.interval"),
        ({"order": {"name": "saw", "by": "column"}}, "dataflex.order.column is required with by: column"),
        ({"order": {"name": "saw", "by": "file"}}, "dataflex.order.path is required with by: file"),
        (
            {"order": {"name": "saw", "by": "loss", "column": "x"}},
            "dataflex.order.column has no effect with by: loss; it",
        ),
        ({"order": {"name": "saw", "by": "file", "path": "no.npy"}}, "dataflex.order.path: no such file: no.npy"),
        ({"order": {"name": "saw", "by": "file", "path": __file__}}, "must be a file of the kinds .parquet, .jsonl,"),
        ({"order": {"by": "loss"}}, "dataflex.order.name is required; choose from custom, folding, saw"),
        ({"order": {"name": "loss", "by": "loss"}}, "unknown order 'loss'"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_key(block: Config, words: str) -> None:
    said = refusal(block)
    assert words in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "by", "words"),
    [
        (
            {"packing": True},
            "column",
            "packing joins rows, but order: saw by column reads scores of the rows as they are",
        ),
        ({"stage": "pt"}, "column", "stage: pt makes rows of several stored ones, but order: saw by column"),
        ({"tokenized_path": "x"}, "column", "tokenized_path does not say which stored row"),
        ({"streaming": True}, "loss", "streaming shows no rows to put in order, and order: saw needs all of them"),
        ({"group_by_length": True}, "length", "group_by_length orders rows itself"),
        ({"enable_liger_kernel": True}, "loss", "hides the logits, but order: saw needs a loss per row"),
        ({"stage": "kto"}, "loss", "stage: kto has a KL term that belongs to the batch, but order: saw"),
        ({"stage": "ppo"}, "loss", "stage: ppo cannot be combined with order"),
    ],
)
def test_combinations_that_cannot_be_are_refused(more: Config, by: str, words: str) -> None:
    order = {"name": "saw", "by": by, **({"column": "score"} if by == "column" else {})}
    assert words in refusal({"order": order}, **more)


def test_what_has_no_effect_is_said() -> None:
    keys = {"stage": "sft", "do_train": True, "dataset": "code,docs", "output_dir": "out", "max_steps": 9}

    def said(**block: Any) -> str:
        return "\n".join(parse({**keys, "dataflex": block}).notices)

    assert "order: saw never acts: its warmup is 20" in said(order={"name": "saw", "by": "loss", "warmup": 20})
    assert "dataflex.order.interval has no effect" in said(order={"name": "saw", "by": "length", "interval": 2})
    assert "dataflex.order.updates has no effect without interval" in said(
        order={"name": "saw", "by": "loss", "updates": 2}
    )
    assert "with radius: 0, stair serves rows as sorting does" in said(
        order={"name": "stair", "by": "loss", "radius": 0}
    )
    assert "without effect: by; shuffle goes by no scores" in said(order={"name": "shuffle", "by": "length"})
    select = {"name": "random", "interval": 3, "serving_order": "selection"}
    assert "serving_order has no effect with order" in said(select=select, order={"name": "saw", "by": "loss"})


def test_what_the_data_decides_is_refused_before_a_model_is_loaded(
    base: Config, scored: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, scores = scored
    base = {**base, "dataset_dir": str(folder)}
    np.save(tmp_path / "short.npy", scores[:-1])
    (tmp_path / "broken.parquet").write_text("none")
    pq.write_table(
        pa.table({"row": [0, 1], "dataset": ["code", "code"], "score": [1.0, 2.0]}), tmp_path / "two.parquet"
    )
    file = {"name": "sorting", "by": "file"}
    cases: dict[str, tuple[Config, Config, tuple[str, ...]]] = {
        "column": ({**BY_COLUMN, "column": "meta.scor"}, {}, ("dataflex.order.column", "did you mean 'meta.score'?")),
        "words": ({**BY_COLUMN, "column": "meta.word"}, {}, ("dataflex.order.column", "string", "no number")),
        "gap": (BY_COLUMN, {"dataset": "gaps"}, ("dataflex.order.column: row 7 of 'gaps' has no 'meta.score'",)),
        "short": (
            {**file, "path": str(tmp_path / "short.npy")},
            {},
            ("a number for each of the 180 stored rows", "179"),
        ),
        "few": (
            {**file, "path": str(tmp_path / "two.parquet")},
            {},
            ("dataflex.order.path: row 2 of 'code'", "'score'"),
        ),
        "name": (
            {**file, "path": str(tmp_path / "two.parquet"), "column": "scor"},
            {},
            ("dataflex.order.column: ", "did you mean 'score'?"),
        ),
        "broken": ({**file, "path": str(tmp_path / "broken.parquet")}, {}, ("dataflex.order.path: ", "cannot be read")),
    }
    runs = [
        start({**base, **more, "dataflex": {"order": order}}, tmp_path / name, hooks=["no_model"])
        for name, (order, more, _) in cases.items()
    ]
    for run, (_, _, words) in zip(train_all(*runs), cases.values(), strict=True):
        assert_refused(run, *words)


# -- resuming, and ranks ---------------------------------------------------------------------------------------------

REMEASURED: dict[str, Config] = {
    "length": {"by": "length", "warmup": 1},
    "loss": {"by": "loss", "warmup": 1, "interval": 3},
    "loss once": {"by": "loss", "warmup": 2, "window": 5},
}
KEPT = {"save_strategy": "steps", "save_steps": 4}


def test_a_killed_run_goes_on_to_the_bit(base: Config, tmp_path: Path) -> None:
    """In the middle of an epoch, between two measurements."""
    block = {"order": {"name": "saw", **REMEASURED["loss"]}}
    kill_and_resume({**base, **KEPT, "dataflex": block}, tmp_path, "kill_after:6", resumes_at=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("scores", REMEASURED)
def test_every_order_goes_on_to_the_bit(base: Config, tmp_path: Path, name: str, scores: str) -> None:
    block = {"order": {"name": name, **REMEASURED[scores]}}
    config = {**base, **KEPT, "max_steps": 50, "dataflex": block}  # an epoch and a part of the next
    kill_and_resume(config, tmp_path, "kill_after:47", resumes_at=44)


@pytest.mark.slow
@pytest.mark.parametrize("scores", REMEASURED)
@pytest.mark.parametrize(
    "others",
    [
        {"select": {"name": "random", "warmup": 2, "interval": 5}},
        {"mix": {"name": "odm", "interval": 3}},
        {"mix": {"name": "odm", "interval": 3, "unit": "tokens", "max_repetition": {"code": 0.4}}},
        {"select": {"name": "loss", "interval": 5}, "mix": {"name": "odm", "interval": 2}, "weight": {"name": "loss"}},
    ],
    ids=["select", "mix", "tokens", "all"],
)
def test_compositions_go_on_to_the_bit(base: Config, tmp_path: Path, others: Config, scores: str) -> None:
    block = {**others, "order": {"name": "folding", **REMEASURED[scores]}}
    kill_and_resume({**base, **KEPT, "dataflex": block}, tmp_path, "kill_after:10", resumes_at=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("scores", REMEASURED)
def test_two_ranks_serve_what_one_does(base: Config, tmp_path: Path, name: str, scores: str) -> None:
    """Without dropout; losses on two ranks differ from those on one by rounding, and no two rows come that near."""
    block = {"order": {"name": name, **REMEASURED[scores]}}
    base = {**base, "model_name_or_path": base["model_name_or_path"].removesuffix("model") + "still", "dataflex": block}
    half = {**base, "per_device_train_batch_size": 2}
    one, two = train_all(
        start(base, tmp_path / "one", hooks=["record_ids"]),
        start(half, tmp_path / "two", ranks=2, hooks=["record_ids"]),
    )
    assert one.ok.ids() == two.ok.ids()
    found = [[{**line, "from": None} for line in run.ledger()] for run in (one, two)]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_and_rows_of_a_step(base: Config, tmp_path: Path) -> None:
    block = {"order": {"name": "zigzag", "by": "length", "layers": 3}}
    config = {**base, **KEPT, "max_steps": 45, "dataflex": block}
    whole = train(config, tmp_path / "whole", hooks=["record_ids"]).ok
    train(config, tmp_path / "part", hooks=["record_ids", "kill_after:22"])
    for file in (tmp_path / "part").glob("served-*.jsonl"):
        file.unlink()
    rest = train({**config, "per_device_train_batch_size": 2}, tmp_path / "part", ranks=2, hooks=["record_ids"]).ok
    assert served(rest).tolist() == served(whole)[80:].tolist()
