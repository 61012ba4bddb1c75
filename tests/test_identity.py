"""What makes a run the run that a checkpoint, or a directory of tokenized rows, is of."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness import Result, start, tiny_run, train, train_all

from dataflex.base.checks import contents, identity
from dataflex.base.checks.identity import comparable
from dataflex.base.checks.tokenized import MANIFEST
from dataflex.components.registry import FAMILIES, resolve
from dataflex.errors import ConfigError

Config = dict[str, Any]
MIX: Config = {"mix": {"name": "static"}}


# -- contents of files -----------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above 1 MiB are looked at in samples."""
    monkeypatch.setattr(contents, "SMALL", 1 << 20)


def noise(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(len(path.name)).bytes(size))
    return path


def edit(file: Path, at: int, *, keep_time: bool) -> None:
    """One other byte, in a file of the same size."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))
    times = (before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 5_000_000_000))
    os.utime(file, ns=times)


@pytest.mark.parametrize("at", [0, 12_345, 99_999])
@pytest.mark.parametrize("keep_time", [True, False])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, at: int, keep_time: bool) -> None:
    file = noise(tmp_path / "rows.json", 100_000)
    known = contents.described({"rows.json": file})
    whole = contents.digest(file)
    assert contents.first_change({"rows.json": file}, known) is None
    edit(file, at, keep_time=keep_time)
    assert contents.first_change({"rows.json": file}, known) == "rows.json has as many bytes as before but other ones"
    assert contents.digest(file) != whole


@pytest.mark.usefixtures("small")
def test_a_large_file_with_another_time_is_read_whole(tmp_path: Path) -> None:
    """A byte that no sample holds: seen by the time of the edit; the time alone changes nothing."""
    file = noise(tmp_path / "rows.json", 40 << 20)
    known = contents.described({"rows.json": file})
    os.utime(file, ns=(1, 1))
    assert contents.first_change({"rows.json": file}, known) is None
    copied = tmp_path / "copied" / "rows.json"
    copied.parent.mkdir()
    shutil.copyfile(file, copied)
    assert contents.first_change({"rows.json": copied}, known) is None
    edit(file, 300_000, keep_time=False)
    assert contents.first_change({"rows.json": file}, known) is not None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("at", [0, 65_535, (40 << 20) - 1, (40 << 20) - 65_000, (((40 << 20) - 65_536) * 7) // 15 + 9])
def test_head_tail_and_samples_of_a_large_file_count_whatever_its_time(tmp_path: Path, at: int) -> None:
    file = noise(tmp_path / "rows.json", 40 << 20)
    known, samples = contents.described({"rows.json": file}), contents.sampled(file, 1 << 20)
    edit(file, at, keep_time=True)
    assert contents.first_change({"rows.json": file}, known) is not None
    assert contents.sampled(file, 1 << 20) != samples


def test_folders_count_with_all_that_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("a.json", "deep/er/b.json"):
        noise(folder / name, 1000)
    known, whole = contents.described({"set": folder}), contents.digest(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert contents.first_change({"set": tmp_path / "elsewhere"}, known) is None
    assert contents.digest(tmp_path / "elsewhere") == whole
    noise(folder / ".cache" / "lock", 10)  # is not read as data
    assert contents.first_change({"set": folder}, known) is None
    noise(folder / "deep/c.json", 10)
    assert contents.first_change({"set": folder}, known) == "set/deep/c.json is new"
    (folder / "deep/c.json").rename(folder / "a.json")
    assert contents.first_change({"set": folder}, known) == "set/a.json had 1000 bytes and has 10"
    (folder / "a.json").unlink()
    assert contents.first_change({"set": folder}, known) == "set/a.json is gone"
    assert contents.digest(folder) != whole


# -- tokenized_path --------------------------------------------------------------------------------------------------


def copy_of_data(ground: Path, tmp_path: Path) -> Path:
    shutil.copytree(ground / "data", tmp_path / "data")
    return tmp_path / "data"


def swap_letters(file: Path) -> None:
    """Another row of the same length."""
    lines = file.read_text().splitlines(keepends=True)
    row = json.loads(lines[20])
    lines[20] = json.dumps({**row, "output": row["output"][::-1]}) + "\n"
    assert "".join(lines) != file.read_text() and len("".join(lines)) == len(file.read_text())
    file.write_text("".join(lines))


def make_folder(data: Path, name: str) -> Path:
    """Turns the file of a data set into a folder of one file."""
    info = json.loads((data / "dataset_info.json").read_text())
    file = data / info[name]["file_name"]
    folder = data / f"{name}_parts"
    folder.mkdir()
    shutil.move(file, folder / file.name)
    info[name]["file_name"] = folder.name
    (data / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("block", [MIX, {"weight": {"name": "loss"}}], ids=["by domain", "weight alone"])
def test_rows_edited_since_they_were_tokenized_are_noticed(
    base: Config, ground: Path, tmp_path: Path, block: Config
) -> None:
    """An edit of the same size, rows added to a folder; a copy of the data under another path goes on."""
    data = copy_of_data(ground, tmp_path)
    folder = make_folder(data, "docs")
    config = {
        **base,
        "max_steps": 1,
        "dataset_dir": str(data),
        "tokenized_path": str(tmp_path / "t"),
        "dataflex": block,
    }
    first = train(config, tmp_path / "1").ok
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    again = train({**config, "dataset_dir": str(tmp_path / "copy")}, tmp_path / "2", hooks=["no_tokenization"]).ok
    assert again.trace() == first.trace()

    def refused(words: str) -> None:
        run = train(config, tmp_path / "refused")
        lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
        assert run.status == [2] and len(lines) == 1, run.log[-3000:]
        assert lines[0].startswith("dataflex: error: tokenized_path: ") and words in lines[0], lines[0]
        assert "trainable params" not in run.log

    kept = (data / "code.jsonl").read_bytes()
    swap_letters(data / "code.jsonl")
    refused("'code': code.jsonl has as many bytes as before but other ones; point it to a new directory")
    (data / "code.jsonl").write_bytes(kept)
    more = json.dumps({"instruction": "i", "input": "", "output": "o"}) + "\n"
    (folder / "more.jsonl").write_text(more * 500)
    refused("'docs': docs_parts/more.jsonl is new")


def test_a_directory_of_the_version_before(base: Config, ground: Path, tmp_path: Path) -> None:
    """It noted sizes of files: read, with a line, while nothing is newer than it; then refused."""
    data = copy_of_data(ground, tmp_path)
    tokens = tmp_path / "t"
    config = {**base, "max_steps": 1, "dataset_dir": str(data), "tokenized_path": str(tokens), "dataflex": MIX}
    assert train(config, tmp_path / "1").ok
    manifest = json.loads((tokens / MANIFEST).read_text())
    del manifest["sources"]
    for name in ("code", "docs", "arithmetic"):
        entry = manifest["signature"][f"source of {name}"]
        manifest["signature"][f"source of {name}"] = {
            "entry": entry, "bytes": (data / entry["file_name"]).stat().st_size
        }  # fmt: skip
    (tokens / MANIFEST).write_text(json.dumps({**manifest, "format": "dataflex-domains-3"}))
    accepted = train(config, tmp_path / "2", hooks=["no_tokenization"]).ok
    assert accepted.log.count("was made by an earlier version, which noted no contents") == 1
    swap_letters(data / "docs.jsonl")
    times = (tokens / MANIFEST).stat().st_mtime_ns + 1_000_000_000
    os.utime(data / "docs.jsonl", ns=(times, times))
    run = train(config, tmp_path / "3")
    assert run.status == [2]
    assert "was made by an earlier version, and docs.jsonl of 'docs' has changed since" in run.log


# -- going on from a checkpoint --------------------------------------------------------------------------------------


def own_files(ground: Path) -> Config:
    """A run with components of one's own that read files."""
    (ground / "own").mkdir(exist_ok=True)
    np.save(ground / "own" / "rank.npy", np.arange(180)[::-1].copy())
    (ground / "own" / "shares").mkdir(exist_ok=True)
    (ground / "own" / "shares" / "now.txt").write_text("0.5 0.3 0.2")
    return {
        "select": {"name": "reading_components:RankedSelector", "ranking": str(ground / "own" / "rank.npy"), "interval": 4},
        "mix": {"name": "reading_components:FolderMixer", "interval": 3, "folder": str(ground / "own" / "shares")},
        "weight": {"name": "reading_components:FlatWeighter", "note": str(ground / "own" / "rank.npy")},
    }  # fmt: skip


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directories of one LoRA run that saved steps 3, 6 and 9 of 12: `whole`, and `killed` after step 10."""
    ground = request.getfixturevalue("ground")
    path = tmp_path_factory.mktemp("identity")
    config = configuration(ground)
    whole, killed = train_all(
        start(config, path / "whole", hooks=["record_ids"]), start(config, path / "killed", hooks=["kill_after:10"])
    )
    assert whole.ok and killed.status == [-9]
    return path


def configuration(ground: Path) -> Config:
    adapter = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"}
    saving = {"save_strategy": "steps", "save_steps": 3}
    return {**tiny_run(ground), **adapter, **saving, "dataflex": own_files(ground)}


def model_with(ground: Path, tmp_path: Path, **changes: Any) -> Config:
    """A copy of the model with another configuration."""
    shutil.copytree(ground / "model", tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return {"model_name_or_path": str(tmp_path / "model")}


def other_weights(ground: Path, tmp_path: Path) -> Config:
    shutil.copytree(ground / "model", tmp_path / "model")
    edit(tmp_path / "model" / "model.safetensors", 5000, keep_time=True)
    return {"model_name_or_path": str(tmp_path / "model")}


def moved(ground: Path, tmp_path: Path, slot: str, parameter: str, change: Any = None) -> Config:
    """The files of the components elsewhere."""
    shutil.copytree(ground / "own", tmp_path / "own")
    block = own_files(ground)
    path = tmp_path / "own" / Path(block[slot][parameter]).name
    block[slot][parameter] = str(path)
    if change is not None:
        change(path)
    return {"dataflex": block}


CHANGED: dict[str, tuple[Any, str]] = {
    "activation": (lambda g, t: model_with(g, t, hidden_act="gelu"), "model.hidden_act was 'silu' there and is 'gelu' now"),
    "rope": (
        lambda g, t: model_with(g, t, rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
        "model.rope_parameters.rope_theta was ",
    ),
    "weights below an adapter": (other_weights, "weights of the model was "),
    "scale of the adapter": (lambda g, t: {"lora_alpha": 3}, "lora_alpha was 8.0 there and is 3.0 now"),
    "optimizer": (lambda g, t: {"optim": "sgd"}, "optim was 'adamw_torch_fused' there and is 'sgd' now"),
    "file of a selector": (
        lambda g, t: moved(g, t, "select", "ranking", lambda p: np.save(p, np.arange(180))),
        "content of dataflex.select.ranking was ",
    ),
    "folder of a mixer": (
        lambda g, t: moved(g, t, "mix", "folder", lambda p: (p / "now.txt").write_text("0.5 0.2 0.3")),
        "content of dataflex.mix.folder was ",
    ),
    "file of a weighter": (
        lambda g, t: moved(g, t, "weight", "note", lambda p: np.save(p, np.arange(180))),
        "content of dataflex.weight.note was ",
    ),
    "no such file": (
        lambda g, t: moved(g, t, "select", "ranking", lambda p: p.unlink()),
        "dataflex.select.ranking: no such file or folder: ",
    ),
}  # fmt: skip


# One of each kind among the fast tests.
OFTEN = ("activation", "weights below an adapter", "file of a selector", "file of a weighter")


@pytest.mark.parametrize("change", [c if c in OFTEN else pytest.param(c, marks=pytest.mark.slow) for c in CHANGED])
def test_another_model_optimizer_or_file_is_refused(ground: Path, saved: Path, tmp_path: Path, change: str) -> None:
    make, words = CHANGED[change]
    shutil.copytree(saved / "killed", tmp_path / "run")
    run = train({**configuration(ground), **make(ground, tmp_path)}, tmp_path / "run")
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert run.status == [2] and len(lines) == 1, run.log[-3000:]
    assert words in lines[0], lines[0]
    assert "trainable params" not in run.log


def test_the_same_model_and_files_elsewhere_go_on(ground: Path, saved: Path, tmp_path: Path) -> None:
    """Copies with other times, a configuration that says other things of no consequence, defaults spelled out."""
    changes = model_with(ground, tmp_path, transformers_version="4.0.0", use_cache=False, architectures=["Other"])
    for slot, parameter in (("select", "ranking"), ("mix", "folder"), ("weight", "note")):
        folder = tmp_path / slot
        folder.mkdir()
        changes.setdefault("dataflex", own_files(ground))[slot] = moved(ground, folder, slot, parameter)["dataflex"][
            slot
        ]
    changes |= {"lora_alpha": 8, "lora_target": ["all"], "learning_rate": 1e-3}
    shutil.copytree(saved / "killed", tmp_path / "run")
    run = train({**configuration(ground), **changes}, tmp_path / "run", hooks=["record_ids"]).ok
    whole = Result([0], saved / "whole", "")
    assert run.trace() == whole.trace() and min(run.ids()) == 9
    assert run.ledger() == whole.ledger()


def test_a_checkpoint_of_the_version_before_goes_on(ground: Path, saved: Path, tmp_path: Path) -> None:
    """It says nothing of the model and of files of one's own."""
    shutil.copytree(saved / "killed", tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-9" / "dataflex" / "state.json"
    state = json.loads(file.read_text())
    new = ("model.", "model config", "weights of the", "content of dataflex.", "optim")
    new += identity._OF_MODEL + sum(identity._OF_FINETUNING.values(), ()) + identity._OF_OPTIMIZER
    state["identity"] = {k: v for k, v in state["identity"].items() if not k.startswith(new)}
    paths = own_files(ground)
    for slot, parameter in (("select", "ranking"), ("mix", "folder"), ("weight", "note")):
        state["identity"][f"dataflex.{slot}.{parameter}"] = paths[slot][parameter]
    file.write_text(json.dumps(state))
    mark = file.with_name("COMPLETE")
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "dataflex/state.json": file.stat().st_size}))
    run = train(configuration(ground), tmp_path / "run", hooks=["record_ids"]).ok
    assert min(run.ids()) == 9 and run.trace() == Result([0], saved / "whole", "").trace()


def test_what_can_be_compared() -> None:
    """Keys that one release of transformers alone knows count only where both sides were read by the same."""
    release = "model config read by transformers"
    saved = {release: "5.6.0", "model.hidden_act": "silu", "model.old": 1, "seed": 7}
    current = {release: "5.7.0", "model.hidden_act": "gelu", "model.new": 2, "seed": 7}
    assert comparable(saved, current) == (
        {"model.hidden_act": "silu", "seed": 7}, {"model.hidden_act": "gelu", "seed": 7}
    )  # fmt: skip
    one, other = comparable(saved, {**current, release: "5.6.0"})
    assert one["model.old"] == 1 and other["model.new"] == 2
    former = {"content of the selector's file": "a", "dataflex.select.probs_path": "/x", "seed": 7}
    now = {release: "5.6.0", "content of dataflex.select.probs_path": "b", "model.hidden_act": "silu", "seed": 7}
    assert comparable(former, now) == (
        {"content of dataflex.select.probs_path": "a", "seed": 7},
        {"content of dataflex.select.probs_path": "b", "seed": 7},
    )


def test_components_that_read_a_file_name_it(tmp_path: Path) -> None:
    """Every built-in component with a parameter that names a file gives it in `files`. Models count by the requests that name
    them, and the file of `mix: file` is edited while the run goes on, on purpose."""
    models = ("reference_model_path", "reward_model_path", "embedding_model_name_or_path")
    named = set()
    for slot, (table, _, _) in FAMILIES.items():
        for name in table:
            kind = resolve(slot, name, name)
            for parameter in (f.name for f in fields(kind)):
                file = parameter.endswith("_path") or parameter in ("ledger", "path", "by_domain")
                if not file or parameter in models or name == "file":
                    continue
                component = object.__new__(kind)
                for other in fields(kind):
                    object.__setattr__(component, other.name, other.default)
                object.__setattr__(component, parameter, str(tmp_path))
                assert component.files() == {parameter: str(tmp_path)}
                named.add(parameter)
    assert named == {"indices_path", "probs_path", "ledger", "by_domain"}


def test_a_parameter_may_not_be_called_files() -> None:
    with pytest.raises(ConfigError, match=r"^x: reading_components:Misnamed has a parameter called files"):
        resolve("weight", "reading_components:Misnamed", "x")


def test_an_encoder_that_was_trained_on_in_its_place_embeds_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored of texts goes by what is in the encoder's folder, not by its name."""
    from dataflex.base.loading import text_selection
    from dataflex.signals import embeddings

    noise(tmp_path / "encoder" / "1_Pooling" / "config.json", 100)
    measured: list[int] = []
    monkeypatch.setattr(embeddings, "load_encoder", lambda *_: None)
    monkeypatch.setattr(
        embeddings, "encoded_texts", lambda _, count, *__: measured.append(count) or np.ones((count, 2), np.float32)
    )

    class Two:
        arguments = SimpleNamespace(device="cpu")

        def fingerprint(self) -> str:
            return "two rows"

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> str:
            return f"row {index}"

    def encode() -> None:
        found = text_selection._encoded(str(tmp_path / "encoder"), Two(), tmp_path / "store")  # type: ignore[arg-type]
        assert found.shape == (2, 2)

    encode()
    encode()
    assert measured == [2]
    edit(tmp_path / "encoder" / "1_Pooling" / "config.json", 50, keep_time=True)
    encode()
    assert measured == [2, 2]


def test_the_seed_of_a_component_is_part_of_the_contract() -> None:
    """Zero unless a component makes it a parameter; not a parameter of those that do not draw."""
    from dataflex import Selector
    from dataflex.components.mixers.fixed import StaticMixer
    from dataflex.components.selectors.random import RandomSelector

    assert StaticMixer().seed == 0 and "seed" not in StaticMixer.__dataclass_fields__
    assert RandomSelector().seed == 42 and RandomSelector(seed=3).seed == 3

    @dataclass(frozen=True, kw_only=True)
    class Own(Selector):
        seed: int = 5

        def select(self, state: Any, signals: Any, context: Any) -> Any:
            raise NotImplementedError

    assert Own().seed == 5
    assert SimpleNamespace(**vars(Own(seed=6))).seed == 6
