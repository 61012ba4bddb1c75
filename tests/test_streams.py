"""`streaming: true`: what is served, that it can be gone on with, and what is refused. Through the command line, on data that
is stored in three ways: a file, a folder of Parquet files and one of JSON lines, the last two read as the Hub's are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import assert_refused
from harness import Result, start, tiny_run, train, train_all

from dataflex.data.streams import STREAM, BlockReader, Cursor, StreamPosition
from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.quota import SCALE, quantise

Config = dict[str, Any]

NAMES = ("lists", "notes", "sums")
ROWS = {"lists": 13, "notes": 6, "sums": 9}
BLOCK = 4
STATIC = {"name": "static", "proportions": [0.5, 0.3, 0.2]}
ODM = {"name": "odm", "warmup": 2, "interval": 3, "proportions": [0.5, 0.3, 0.2]}
RANDOM = {"name": "random", "warmup": 0, "interval": 4}
ADO = {"name": "ado", "warmup": 1, "interval": 1, "fit_after": 4, "ignore": 1, "fit_every": 3, "initial": "uniform"}
SFT = {"stage": "sft", "template": "qwen", "dataset": "lists_sft,notes_sft,sums_sft", "cutoff_len": 48}


def texts(name: str) -> list[str]:
    return [" ".join(f"{name} {i} of {j}." for j in range(1 + i * 5 % 7)) for i in range(ROWS[name])]


def write_data(folder: Path) -> None:
    """Each data set as text and, with `_sft`, as a question and its answer."""
    from datasets import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    info: Config = {}
    for name in NAMES:
        rows = [{"text": text, "question": f"Row {i}?"} for i, text in enumerate(texts(name))]
        half, stored = len(rows) // 2, folder / name
        if name == "lists":
            stored = folder / "lists.jsonl"
            stored.write_text("".join(json.dumps(row) + "\n" for row in rows))
            source: Config = {"file_name": stored.name}
        else:
            stored.mkdir(exist_ok=True)
            source = {"hf_hub_url": str(stored)}
            for part, piece in enumerate((rows[:half], rows[half:])):
                if name == "notes":
                    Dataset.from_list(piece).to_parquet(stored / f"{part}.parquet", batch_size=3)
                else:
                    (stored / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in piece))
        info[name] = {**source, "columns": {"prompt": "text"}}
        info[f"{name}_sft"] = {**source, "columns": {"prompt": "question", "response": "text"}}
    for name, of in (("held", "notes"), ("lists_held", "lists"), ("sums_held", "sums")):
        held = [{"text": text, "question": "Held out?"} for text in texts(of)[:4]]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
        info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streamed")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def sized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data, with sizes in dataset_info.json."""
    path, info = tmp_path_factory.mktemp("sized"), json.loads((folder / "dataset_info.json").read_text())
    for name, size in (("lists", 600), ("notes", 300), ("sums", 100)):
        info[name]["num_samples"] = size
        if "file_name" in info[name]:
            info[name]["file_name"] = str(folder / info[name]["file_name"])
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path


@pytest.fixture
def streamed(ground: Path, folder: Path) -> Config:
    """pt on packed text, 14 steps of 4 samples; every data set begins anew in that time."""
    config = {
        **tiny_run(ground),
        "stage": "pt",
        "dataset_dir": str(folder),
        "dataset": ",".join(NAMES),
        "streaming": True,
        "cutoff_len": 24,
        "max_steps": 14,
        "dataflex": {"mix": {**STATIC, "stream_block": BLOCK}},
    }
    del config["template"]
    return config


def mixed(mix: Config, **more: Any) -> Config:
    return {"dataflex": {"mix": {**mix, "stream_block": BLOCK}, **more}}


def served(run: Result) -> dict[int, list[Any]]:
    """step -> [id, token ids] of its global batch, in the order of the plan (accumulation 1)."""
    per_rank = [
        {r["step"]: r["rows"] for r in map(json.loads, file.read_text().splitlines())}
        for file in sorted(run.out.glob("samples-*.jsonl"))
    ]
    return {step: [row for rank in per_rank for row in rank[step]] for step in sorted(per_rank[0])}


# -- the order -------------------------------------------------------------------------------------------------------

MASK = (1 << 64) - 1


def scatter(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def by_the_rule(tokenizer: Any, name: str, domain: int, *, packed: bool, shuffled: bool, epochs: int) -> list[Any]:
    """The samples of a stream, written out: blocks of 4 texts; joined and cut into 24 tokens, or cut off there; sorted by a
    hash of their place under a key of (seed 7, purpose, domain, epoch, block)."""
    out: list[Any] = []
    for epoch in range(epochs):
        for block, first in enumerate(range(0, ROWS[name], BLOCK)):
            rows = [
                tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
                for text in texts(name)[first : first + BLOCK]
            ]
            samples = [ids[:24] for ids in rows]
            if packed:
                joined = [token for ids in rows for token in ids]
                samples = [joined[i : i + 24] for i in range(0, len(joined) - 23, 24)]
            key = 0
            for part in (7, 0x57E4, domain, epoch, block):
                key = scatter(key ^ scatter(part))
            order = sorted(range(len(samples)), key=lambda i: scatter(key ^ scatter(i)))
            out += [samples[i] for i in (order if shuffled else range(len(samples)))]
    return out


@pytest.mark.parametrize(
    ("packed", "shuffled"), [(True, True), (False, True), (False, False)], ids=["packed", "unpacked", "unshuffled"]
)
def test_a_stream_serves_what_the_rule_says(
    streamed: Config, tmp_path: Path, ground: Path, packed: bool, shuffled: bool
) -> None:
    from transformers import AutoTokenizer

    config = {**streamed, "max_steps": 25, "disable_shuffling": not shuffled}
    if not packed:
        config["packing"] = False
    run = train(config, tmp_path / "run", hooks=["record_samples"])
    rows = [row for step in served(run.ok).values() for row in step]
    assert len(rows) == 100
    tokenizer = AutoTokenizer.from_pretrained(ground / "model")
    parts, counts = quantise(STATIC["proportions"]), [0, 0, 0]
    expected = [
        by_the_rule(tokenizer, name, d, packed=packed, shuffled=shuffled, epochs=12) for d, name in enumerate(NAMES)
    ]
    for position, (sample, ids) in enumerate(rows, start=1):
        d, n = divmod(sample, STREAM)
        assert n == counts[d], "samples of a stream are numbered one after the other"
        assert ids == expected[d][n], (NAMES[d], n)
        counts[d] += 1
        for part, count in zip(parts, counts, strict=True):  # the quota bound, from the first position on
            assert abs(part * position - count * SCALE) < SCALE
    one_epoch = [len(e) / 12 for e in expected]
    assert all(count > size for count, size in zip(counts, one_epoch, strict=True)), "every stream began anew"
    last = run.history()[-1]
    assert [last[f"dataflex/epoch/{name}"] for name in NAMES] == [
        (count - 1) // size for count, size in zip(counts, one_epoch, strict=True)
    ]
    assert last["epoch"] == 1.0


def test_workers_and_ranks_do_not_change_what_is_served(streamed: Config, tmp_path: Path) -> None:
    """Loader workers 0 and 2; ranks 1 and 2 of half the batch, with and without workers."""
    config, hooks = {**streamed, **mixed(RANDOM)}, ["record_samples"]
    half = {**config, "per_device_train_batch_size": 2}
    none, two, ranks, both = train_all(
        start(config, tmp_path / "0", hooks=hooks),
        start({**config, "dataloader_num_workers": 2}, tmp_path / "2", hooks=hooks),
        start(half, tmp_path / "r", ranks=2, hooks=hooks),
        start({**half, "dataloader_num_workers": 2}, tmp_path / "b", ranks=2, hooks=hooks),
    )
    assert len(served(none.ok)) == 14
    assert served(two.ok) == served(ranks.ok) == served(both.ok) == served(none)
    assert two.trace() == none.trace() and both.trace() == ranks.trace()
    assert [r["decided"] for r in ranks.ledger()] == [r["decided"] for r in none.ledger()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_reads_no_more_than_it_needs(streamed: Config, tmp_path: Path, workers: int) -> None:
    """Four steps of four: no read asks for more than a block; without workers the only blocks read are those whose samples were
    served, and with them one more of each stream. (Before training rank 0 reads one block of each.)"""
    config = {**streamed, "max_steps": 4, "packing": False, "dataloader_num_workers": workers}
    run = train(config, tmp_path / "run", hooks=["count_rows", "record_samples"])
    counts = [0, 0, 0]
    for row in (row for step in served(run.ok).values() for row in step):
        counts[row[0] // STREAM] += 1
    assert counts == [8, 5, 3]
    reads = [json.loads(line) for line in (run.out / "rows_read.jsonl").read_text().splitlines()]
    assert {r["asked"] for r in reads} == {BLOCK} and max(r["got"] for r in reads) == BLOCK
    needed = sum(-(-count // BLOCK) for count in counts)
    first, later = reads[:3], [r for r in reads[3:] if r["got"]]  # at the end of an epoch a read finds nothing
    assert [r["got"] for r in first] == [BLOCK] * 3
    if not workers:
        assert len(later) == needed
    else:
        assert needed <= len(later) <= needed + 3
        assert {r["process"] for r in first}.isdisjoint({r["process"] for r in later})


def test_evaluation_data_is_kept(streamed: Config, tmp_path: Path) -> None:
    """Read whole, and by several processes where these are asked for (which a stream cannot be)."""
    config = {**streamed, "eval_dataset": "held", "eval_strategy": "steps", "eval_steps": 7, "packing": False}
    config["preprocessing_num_workers"] = 2
    run = train(config, tmp_path / "run")
    records = json.loads((run.ok.out / "trainer_state.json").read_text())["log_history"]
    losses = [r["eval_loss"] for r in records if "eval_loss" in r]
    assert len(losses) == 2 and losses[1] < losses[0]


def test_sizes_from_num_samples(streamed: Config, sized: Path, tmp_path: Path) -> None:
    """`proportional` with the rows that dataset_info.json states; config.yaml shows them."""
    import yaml

    config = {**streamed, "dataset_dir": str(sized), "max_steps": 5, **mixed({"name": "proportional"})}
    run = train(config, tmp_path / "run", hooks=["record_samples"])
    domains = [row[0] // STREAM for step in served(run.ok).values() for row in step]
    assert [domains.count(d) for d in range(3)] == [12, 6, 2]
    written = yaml.safe_load((run.out / "dataflex" / "config.yaml").read_text())["domains"]
    assert [written[name]["rows"] for name in NAMES] == [600, 300, 100]


# -- killed and resumed ----------------------------------------------------------------------------------------------


def kill_and_resume(config: Config, tmp_path: Path, kill: int, resumes_at: int, ranks: int = 1) -> Config:
    """The state of the streams in the checkpoint that the killed run goes on from."""
    hooks = ["record_samples"]
    whole, killed = train_all(
        start(config, tmp_path / "whole", ranks=ranks, hooks=hooks),
        start(config, tmp_path / "killed", ranks=ranks, hooks=[*hooks, f"kill_after:{kill}"]),
    )
    assert killed.status == [-9] * ranks
    for file in killed.out.glob("samples-*.jsonl"):
        file.unlink()
    resumed = train(config, tmp_path / "killed", ranks=ranks, hooks=hooks)
    assert resumed.ok.trace() == whole.ok.trace()
    assert resumed.scalars() == whole.scalars()
    assert resumed.ledger() == whole.ledger()
    assert served(resumed) == {step: rows for step, rows in served(whole).items() if step >= resumes_at}
    last = sorted(whole.out.glob("checkpoint-*"))[-1].name
    states = [json.loads((r.out / last / "dataflex" / "state.json").read_text())["parts"] for r in (whole, resumed)]
    assert states[0] == states[1]
    assert not list(whole.out.rglob("exposure.parquet"))
    state = json.loads((whole.out / f"checkpoint-{resumes_at}" / "dataflex" / "state.json").read_text())
    return state["parts"]["serving"]["streams"]


PAIRS: dict[str, tuple[Config, int, int]] = {
    "static, packed": ({}, 8, 1),
    "odm, packed, on a boundary of it": ({**mixed(ODM), "save_steps": 8}, 9, 1),
    "odm, packed, off a boundary, workers": ({**mixed(ODM), "dataloader_num_workers": 2}, 10, 1),
    "ado, packed": (mixed(ADO), 9, 1),
    "temperature, packed": (mixed({"name": "temperature", "temperature": 2.0}), 9, 1),
    "random, unpacked, two ranks": ({**mixed(RANDOM), "packing": False, "per_device_train_batch_size": 2}, 9, 2),
    "sft packed, odm and weights": (
        {**SFT, **mixed(ODM, weight={"name": "loss", "warmup": 2}), "packing": True, "gradient_accumulation_steps": 2},
        9,
        1,
    ),
    "sft neat, workers, two ranks": ({**SFT, **mixed(ODM), "neat_packing": True, "dataloader_num_workers": 1}, 9, 2),
    "sft unshuffled": ({**SFT, "disable_shuffling": True}, 10, 1),
}


@pytest.mark.parametrize("case", PAIRS)
def test_kill_and_resume_is_exact(streamed: Config, sized: Path, tmp_path: Path, case: str) -> None:
    """In the middle of a block, and after at least one stream has begun anew."""
    changes, kill, ranks = PAIRS[case]
    config = {**streamed, "save_strategy": "steps", "save_steps": 4, **changes}
    if case.startswith("temperature"):
        config["dataset_dir"] = str(sized)
    streams = kill_and_resume(config, tmp_path, kill, kill // config["save_steps"] * config["save_steps"], ranks)
    assert any(s["offset"] > 0 and s["place"]["block"] > 0 for s in streams.values()), streams
    assert any(s["place"]["epoch"] > 0 for s in streams.values()), streams


def test_a_run_goes_on_at_every_step(streamed: Config, tmp_path: Path) -> None:
    """Twelve checkpoints, each gone on with for the rest of the run: at the end of a block and of an epoch too."""
    config = {**streamed, "max_steps": 12, "save_strategy": "steps", "save_steps": 1}
    whole = train(config, tmp_path / "whole", hooks=["record_samples"])
    everything = served(whole.ok)
    steps = range(1, 12)
    runs = train_all(
        *(
            start(
                {**config, "save_strategy": "no", "resume_from_checkpoint": str(whole.out / f"checkpoint-{step}")},
                tmp_path / str(step),
                hooks=["record_samples"],
            )
            for step in steps
        )
    )
    ends = 0
    for step, run in zip(steps, runs, strict=True):
        assert served(run.ok) == {s: rows for s, rows in everything.items() if s >= step}
        assert run.trace() == whole.trace()
        state = json.loads((whole.out / f"checkpoint-{step}" / "dataflex" / "state.json").read_text())
        ends += sum(s["place"]["block"] > 0 and s["offset"] == 0 for s in state["parts"]["serving"]["streams"].values())
    assert ends > 0, "some checkpoint lies at the end of a block"


def test_another_number_of_ranks_and_another_batch_go_on(streamed: Config, tmp_path: Path) -> None:
    """From one checkpoint: 1 rank x 4, 2 ranks x 2; and 1 rank x 2, whose batches are halves of theirs."""
    first = {**streamed, "save_strategy": "steps", "save_steps": 5}
    train(first, tmp_path / "start", hooks=["kill_after:5"])
    config = {**streamed, "resume_from_checkpoint": str(tmp_path / "start" / "checkpoint-5")}
    half = {**config, "per_device_train_batch_size": 2}
    one, two, halves = train_all(
        start(config, tmp_path / "1", hooks=["record_samples"]),
        start(half, tmp_path / "2", ranks=2, hooks=["record_samples"]),
        start(half, tmp_path / "h", hooks=["record_samples"]),
    )
    assert served(one.ok) == served(two.ok) and min(served(one)) == 5
    order = [row for step in served(one).values() for row in step]
    assert [row for step in served(halves.ok).values() for row in step] == order[: 2 * 9]


def other_files(folder: Path) -> None:
    with (folder / "lists.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more", "question": "?"}) + "\n")


def other_beginning(folder: Path) -> None:
    change(folder / "sums" / "0.jsonl", 0)


def forget_samples(folder: Path) -> None:
    """A checkpoint as the version before wrote it."""
    state = json.loads((folder / "state.json").read_text())
    state["identity"] = {
        k: v for k, v in state["identity"].items() if not k.startswith(("contents of ", "model config"))
    }
    (folder / "state.json").write_text(json.dumps(state))
    mark = json.loads((folder / "COMPLETE").read_text())
    mark["dataflex/state.json"] = (folder / "state.json").stat().st_size
    (folder / "COMPLETE").write_text(json.dumps(mark))


def other_rows_later(folder: Path) -> None:
    change(folder / "sums" / "1.jsonl", 1)


def change(file: Path, row: int) -> None:
    """Another text of the same length."""
    lines = file.read_text().splitlines(keepends=True)
    lines[row] = lines[row].replace("sums", "mums")
    file.write_text("".join(lines))


CHANGES: dict[str, tuple[Config, Callable[[Path], None] | None, str]] = {
    "seed": ({"seed": 8}, None, "seed was 7 there and is 8 now"),
    "block": (
        mixed(STATIC) | {"dataflex": {"mix": {**STATIC, "stream_block": 5}}},
        None,
        "dataflex.mix.stream_block was 4",
    ),
    "streaming": ({"streaming": False}, None, "dataflex.mix.stream_block was 4 there and is not set now"),
    "cutoff": ({"cutoff_len": 25}, None, "cutoff_len was 24"),
    "files": ({}, other_files, "files of lists was '1 files"),
    "first block": ({}, other_beginning, "content of sums was"),
    "later rows": ({}, other_rows_later, "contents of sums was"),
    "block in use": ({}, other_rows_later, "the rows of 'sums' after row 4 are not those the run was reading"),
}


@pytest.fixture(scope="module")
def stopped(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 7, with the data it reads."""
    path = tmp_path_factory.mktemp("stopped")
    write_data(path / "data")
    config = {
        **tiny_run(ground), "stage": "pt", "template": None, "dataset_dir": str(path / "data"), "dataset": ",".join(NAMES),
        "streaming": True, "cutoff_len": 24, "packing": False, "max_steps": 14, "save_strategy": "steps", "save_steps": 7,
        **mixed(STATIC),
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    assert train(config, path / "out", hooks=["kill_after:7"]).status == [-9]
    return path


@pytest.mark.parametrize("case", CHANGES)
def test_another_run_is_not_gone_on_with(stopped: Path, tmp_path: Path, case: str) -> None:
    import shutil

    changes, damage, words = CHANGES[case]
    shutil.copytree(stopped / "out", tmp_path / "out")
    if case == "block in use":  # where no sample of the files shows the change: here, none was taken
        forget_samples(tmp_path / "out" / "checkpoint-7" / "dataflex")
    config = {**json.loads((stopped / "config.json").read_text()), **changes}
    if damage is not None:
        shutil.copytree(stopped / "data", tmp_path / "data")
        info = (tmp_path / "data" / "dataset_info.json").read_text()
        kept = stopped / "data"
        shutil.rmtree(kept)
        shutil.copytree(tmp_path / "data", kept)  # names are part of what is compared, so it is changed where it is
        damage(kept)
        assert (kept / "dataset_info.json").read_text() == info
    try:
        run = train(config, tmp_path / "out")
    finally:
        if damage is not None:
            shutil.rmtree(stopped / "data")
            shutil.copytree(tmp_path / "data", stopped / "data")
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert run.status == [2] and len(lines) == 1 and "Traceback" not in run.log, run.log[-3000:]
    assert "cannot resume" in lines[0] and words in lines[0]


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Config, tuple[str, ...]]] = {
    "select": (
        {"dataflex": {"select": {"name": "random", "interval": 2}, "mix": STATIC}},
        ("streaming", "select: random"),
    ),
    "select alone": ({"dataflex": {"select": {"name": "loss", "interval": 2}}}, ("streaming", "select: loss")),
    "weight alone": ({"dataflex": {"weight": {"name": "loss"}}}, ("streaming", "only weight", "mix: static")),
    "no length": ({"max_steps": -1, "num_train_epochs": 2}, ("streaming", "dataflex.total_steps or max_steps")),
    "epochs": ({"save_strategy": "epoch"}, ("save_strategy: epoch",)),
    "val_size": ({"val_size": 4}, ("val_size", "eval_dataset")),
    "max_samples": ({"max_samples": 4}, ("max_samples", "streaming")),
    "tokenized_path": ({"tokenized_path": "somewhere"}, ("tokenized_path", "streaming")),
    "interleaving": ({"mix_strategy": "interleave_under"}, ("mix_strategy",)),
    "tokens per second": ({"include_effective_tokens_per_second": True}, ("include_effective_tokens_per_second",)),
    "pool losses": (
        mixed({"name": "own_components:PoolLossMixer", "interval": 2}),
        ("streaming", "PoolLossMixer", "'loss'"),
    ),
    "reference": (
        mixed({"name": "doremi", "reference_model_path": "nowhere/nothing"}),
        ("streaming", "mix: doremi", "'excess_loss'"),
    ),
    "weights by a reference": (
        mixed(STATIC, weight={"name": "rho1", "reference_model_path": "nowhere/nothing"}),
        ("streaming", "dataflex.weight", "'reference_loss'"),
    ),
    "weights by a target": (
        mixed(STATIC, weight=[{"name": "loss"}, {"name": "adapt", "target_dataset": "anything"}]),
        ("streaming", "dataflex.weight[1]", "'target_embedding'"),
    ),
    "proportional": (
        mixed({"name": "proportional"}),
        ("mix: proportional", "num_samples of 'lists'", "dataflex.mix.proportions"),
    ),
    "temperature": (mixed({"name": "temperature"}), ("mix: temperature", "num_samples of 'lists'")),
    "stratified": (
        mixed({"name": "odm", "interval": 2, "initial": "stratified"}),
        ("dataflex.mix.initial: stratified", "num_samples of 'lists'", "dataflex.mix.initial: uniform"),
    ),
    "a prior by size": (
        mixed({"name": "ado", "interval": 2}),
        ("dataflex.mix.initial: stratified, the default of ado,", "num_samples of 'lists'", "dataflex.mix.initial: uniform"),
    ),
    "wrong number of proportions": (
        mixed({"name": "static", "proportions": [0.5, 0.5]}),
        ("proportions", "2 given for 3 data sets"),
    ),
    "block of nothing": ({"dataflex": {"mix": {**STATIC, "stream_block": 0}}}, ("dataflex.mix.stream_block", "at least 1")),
    "buffer of nothing": ({"dataflex": {"mix": STATIC}, "buffer_size": 0}, ("buffer_size", "at least 1")),
    "columns": ({"dataset": "lists,columns"}, ("'columns'", "do the columns and formatting")),
    "empty": ({"dataset": "lists,empty"}, ("dataset:", "'empty'")),
    "nothing left": (
        {"cutoff_len": 4096},
        ("no row of 'lists' is left after tokenization, in blocks of 4 (dataflex.mix.stream_block)",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", ["rm", "dpo", "kto"])
def test_stages_that_are_not_streamed(stage: str) -> None:
    from dataflex.config import parse

    with pytest.raises(ConfigError, match=f"streaming is not supported for stage: {stage}"):
        parse({"stage": stage, "do_train": True, "max_steps": 2, "streaming": True, "dataflex": {"mix": "uniform"}})


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_streamed_is_one_clear_line(streamed: Config, folder: Path, tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    config = {**streamed, **changes}
    if case in ("columns", "empty"):
        info = json.loads((folder / "dataset_info.json").read_text())
        info["lists"]["file_name"] = str(folder / "lists.jsonl")
        info["columns"] = {**info["lists"], "columns": {"prompt": "no_such_column"}}
        (tmp_path / "empty.jsonl").write_text("")
        info["empty"] = {"file_name": "empty.jsonl", "columns": {"prompt": "text"}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        config |= {"dataset_dir": str(tmp_path), **mixed({"name": "uniform"})}
    assert_refused(train(config, tmp_path / "run", hooks=["own_component", "no_model"]), *words)


def test_the_block_comes_from_the_buffer_where_none_is_given(tmp_path: Path) -> None:
    from dataflex.config import parse

    def blocks(mix: Config, **keys: Any) -> tuple[int | None, tuple[str, ...]]:
        run = parse({"stage": "pt", "do_train": True, "max_steps": 2, "dataflex": {"mix": {**STATIC, **mix}}, **keys})
        assert run.dataflex is not None and run.dataflex.mix is not None
        return run.dataflex.mix.stream_block, run.notices

    assert blocks({}, streaming=True) == (2048, ())
    assert blocks({}, streaming=True, buffer_size=512) == (512, ())
    block, (notice,) = blocks({"stream_block": 64}, streaming=True, buffer_size=512)
    assert block == 64 and notice.startswith("buffer_size has no effect")
    block, (notice,) = blocks({"stream_block": 64})
    assert block is None and notice.startswith("dataflex.mix.stream_block has no effect")
    assert blocks({}) == (None, ())


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_breaks_off_is_one_line(streamed: Config, folder: Path, tmp_path: Path, workers: int) -> None:
    """A row that is not text, in a later block: exit status 1, with the data set and how far it was read."""
    rows = [{"text": text} for text in texts("lists")]
    (tmp_path / "broken").mkdir()
    lines = [json.dumps(row) for row in rows[:6]] + ['{"text": {"no": "text"}}']
    for part, piece in enumerate((lines[:6], lines[6:])):
        (tmp_path / "broken" / f"{part}.jsonl").write_text("".join(line + "\n" for line in piece))
    info = {"broken": {"hf_hub_url": str(tmp_path / "broken"), "columns": {"prompt": "text"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    config = {
        **streamed, "dataset_dir": str(tmp_path), "dataset": "broken", "packing": False, "dataloader_num_workers": workers,
        **mixed({"name": "uniform"}),
    }  # fmt: skip
    run = train(config, tmp_path / "run")
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert run.status == [1] and len(lines) == 1 and "Traceback" not in run.log, run.log[-3000:]
    assert "dataset: 'broken' cannot be read after row 4" in lines[0]


def test_a_reader_that_dies_ends_the_run(streamed: Config, tmp_path: Path) -> None:
    """Say for want of memory: one line, exit status 1."""
    run = train({**streamed, "dataloader_num_workers": 2}, tmp_path / "run", hooks=["kill_reader:4"])
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert run.status == [1] and len(lines) == 1 and "Traceback" not in run.log, run.log[-3000:]
    assert lines[0].removeprefix("dataflex: error: ") in {f"the process that reads {n!r} has ended" for n in NAMES}


# -- the parts -------------------------------------------------------------------------------------------------------


class Numbers:
    """A source of rows 0 .. n - 1; a row makes itself as often as `times` says."""

    def __init__(self, n: int, times: Callable[[int], int] = lambda row: 1) -> None:
        self.n, self.times, self.at = n, times, 0

    def seek(self, state: Any) -> None:
        self.at = 0 if state is None else state["at"]

    def state(self) -> Config:
        return {"at": self.at}

    def read(self, count: int) -> list[Config]:
        first, self.at = self.at, min(self.n, self.at + count)
        return [{"row": row} for row in range(first, self.at)]

    def samples(self, rows: list[Config]) -> list[Config]:
        return [dict(row) for row in rows for _ in range(self.times(row["row"]))]


def reader(source: Any, block: int, *, shuffle: bool = False) -> BlockReader:
    found = BlockReader(source, "numbers", 0, block, 7, shuffle=shuffle)
    found.seek(StreamPosition())
    return found


def test_blocks_without_a_sample_are_passed_over() -> None:
    """Ten rows in blocks of three, of which those from 3 to 5 and the last make nothing and others several."""
    blocks = reader(Numbers(10, lambda row: 0 if row in (3, 4, 5, 9) else 1 + row % 2), 3)
    found = [blocks.next() for _ in range(3)]
    assert [[s["row"] for s in b.samples] for b in found] == [[0, 1, 1, 2], [6, 7, 7, 8], [0, 1, 1, 2]]
    assert [(b.begin.epoch, b.begin.block, b.begin.rows, b.begin.samples) for b in found] == [
        (0, 0, 0, 0), (0, 2, 6, 4), (1, 0, 0, 8),
    ]  # fmt: skip
    assert found[0].end == StreamPosition(0, 1, 3, 4, {"at": 3})


def test_data_that_makes_no_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="no row of 'numbers' is left after tokenization"):
        reader(Numbers(10, lambda row: 0), 3).next()
    with pytest.raises(ConfigError, match="no row of 'numbers' is left after tokenization"):
        reader(Numbers(0), 3).next()


def test_every_epoch_and_block_has_an_order_of_its_own() -> None:
    blocks = reader(Numbers(40), 20, shuffle=True)
    orders = [[s["row"] % 20 for s in blocks.next().samples] for _ in range(4)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_a_cursor_goes_on_from_each_of_its_states() -> None:
    """Any number of samples taken; what follows is the same, and a state is JSON."""

    def cursor(saved: Any = None) -> Cursor:
        blocks = reader(Numbers(11, lambda row: row % 3), 4, shuffle=True)
        blocks.seek(Cursor.begin_of(saved))
        return Cursor("numbers", blocks.next, saved)

    whole = cursor()
    order = [whole.take(n) for n in range(40)]
    for taken in range(30):
        one = cursor()
        assert [one.take(n) for n in range(taken)] == order[:taken]
        saved = json.loads(json.dumps(one.state()))
        other = cursor(saved)
        assert json.loads(json.dumps(other.state())) == saved
        assert [other.take(n) for n in range(taken, 40)] == order[taken:]
    with pytest.raises(DataflexError, match="is at sample 0 instead of 3"):
        cursor().take(3)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_a_source_leads_back_to_its_row(name: str, ground: Path, folder: Path) -> None:
    """From every row of the three kinds of data, as LLaMA-Factory opens them; through JSON."""
    from types import SimpleNamespace

    from llamafactory.data.parser import get_dataset_list

    from dataflex.base.loading.streams import StreamedData, _open
    from dataflex.base.loading_arguments import Loading

    arguments: Any = SimpleNamespace(cache_dir=None, hf_hub_token=None)
    data: Any = SimpleNamespace(
        dataset_dir=str(folder), streaming=True, preprocessing_num_workers=None, max_samples=None
    )
    (attribute,) = get_dataset_list([name], str(folder))

    def source() -> StreamedData:
        training: Any = SimpleNamespace(dataloader_num_workers=0)
        dataset = _open(name, attribute, Loading(None, arguments, data, training, "pt", None))
        found = StreamedData(dataset, lambda row: row["text"], None, None)
        found.seek(None)
        return found

    whole = source()
    assert whole.read(100) == texts(name)
    for count in range(1, ROWS[name] + 1):
        one, other = source(), source()
        assert one.read(count) == texts(name)[:count]
        other.seek(json.loads(json.dumps(one.state())))
        assert other.read(100) == texts(name)[count:]
        other.seek(None)
        assert other.read(100) == texts(name)


def test_held_out_rows_beside_streams(streamed: Config, tmp_path: Path) -> None:
    """They are read whole: a mixer goes by them, and an evaluation reports them by domain."""
    held = {"lists": "lists_held", "notes": "held", "sums": "sums_held"}
    mix = {"name": "loss_gap", "warmup": 2, "interval": 4, "reference_losses": [6.0, 5.5, 5.0], "eval_dataset": held}
    config = {**streamed, "dataflex": {"mix": mix}, "eval_strategy": "steps", "eval_steps": 7, "do_eval": True}
    run = train(config, tmp_path / "run").ok
    decided = [r["decided"]["proportions"] for r in run.ledger() if r["component"] == "mix:loss_gap"]
    assert len(decided) == 3 and len({json.dumps(d) for d in decided}) == 3
    found = json.loads((run.out / "trainer_state.json").read_text())["log_history"]
    assert all(f"eval_dataflex/loss/{name}" in {k for r in found for k in r} for name in NAMES)


@pytest.mark.parametrize(
    "mix, message",
    [
        ({"unit": "tokens"}, "dataflex.mix.unit: tokens needs the lengths of all rows"),
        ({"max_repetition": 2.0}, "dataflex.mix.max_repetition needs the number of rows"),
    ],
)
def test_what_needs_all_rows_is_refused(streamed: Config, tmp_path: Path, mix: Config, message: str) -> None:
    run = train({**streamed, "dataflex": {"mix": {**STATIC, **mix}}}, tmp_path / "run")
    assert run.status == [2] and f"dataflex: error: {message}" in run.log
