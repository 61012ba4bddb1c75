"""The demonstration: its model, its data and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataflex.cli import main
from dataflex.demo.data import DOMAINS, HELDOUT, build_domains, training_texts
from dataflex.demo.model import build_model
from dataflex.demo.run import RUNS, _claim, _remove, run_configs
from dataflex.demo.sources import cut, sums, worked_sum
from dataflex.demo.table import RunResult, format_table, read_result
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


def test_llamafactory_knows_every_data_set(data: Path) -> None:
    from llamafactory.data.parser import get_dataset_list

    info = json.loads((data / "dataset_info.json").read_text(encoding="utf-8"))
    assert len(info) == 2 * (2 * len(DOMAINS) + 2)
    for name, attributes in zip(info, get_dataset_list(list(info), str(data)), strict=True):
        assert attributes.load_from == "file"
        row = _rows(data, name)[0]
        used = [getattr(attributes, key) for key in ("prompt", "query", "response", "chosen", "rejected", "kto_tag")]
        assert {column for column in used if column} == set(row) - {"weight"}
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


# --- runs and table


def test_run_configs_differ_only_in_what_dataflex_does(tmp_path: Path) -> None:
    configs = run_configs(tmp_path, ["code", "docs"], steps=60, heldout=HELD)
    assert tuple(configs) == RUNS
    assert configs["static"].pop("max_steps") == 60
    blocks = {name: config.pop("dataflex") for name, config in configs.items() if name != "static"}
    assert blocks == {
        "select": {"total_steps": 60, "select": {"name": "loss", "focus": "medium", "warmup": 10, "interval": 10}},
        "mix": {"total_steps": 60, "mix": {"name": "odm", "warmup": 10, "interval": 5}},
        "weight": {"total_steps": 60, "weight": {"name": "loss", "strategy": "linupper", "warmup": 5}},
    }
    for name, config in configs.items():
        assert config.pop("output_dir") == str(tmp_path.resolve() / name)
        assert config == configs["static"]
        assert config["dataset"] == "code,docs" and config["eval_dataset"] == "code_heldout,docs_heldout"


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


def test_table() -> None:
    results = [RunResult("static", {"code": 5.5, "docs": 4.25}, 12.34), RunResult("mix", {"code": 10.0}, 9.0)]
    assert format_table(results).splitlines() == [
        "run       code   docs    mean  seconds",
        "------  ------  -----  ------  -------",
        "static   5.500  4.250   4.875     12.3",
        "mix     10.000      -  10.000      9.0",
    ]
