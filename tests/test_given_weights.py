"""Weights that the data gives: from the raw row or message, through LLaMA-Factory's preprocessing, to the batch."""

from __future__ import annotations

import json
import re
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from harness import tiny_run

from dataflex.base.checks.identity import identity_of_run
from dataflex.base.commands.train import load_data
from dataflex.base.loading_arguments import Loading
from dataflex.config import RunConfig, parse
from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS, RowCollator, Rows
from dataflex.data.streams import StreamPosition
from dataflex.errors import ConfigError

SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
OPENAI = {
    "formatting": "openai",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
             "observation_tag": "tool", "function_tag": "function_call", "system_tag": "system"},
}  # fmt: skip
PAIRS = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
KTO = {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "kto_tag"}}
TEXT = {"columns": {"prompt": "text"}}
COLUMN = {"name": "column"}
BY_MESSAGE = {"name": "column", "per": "message"}


class Bench:
    """Data sets in a folder of its own, loaded as a run would."""

    def __init__(self, ground: Path, folder: Path) -> None:
        self.folder, self.info = folder, dict[str, Any]()
        self.base = {
            **tiny_run(ground),
            "dataset_dir": str(folder),
            "output_dir": str(folder / "out"),
            "cutoff_len": 400,
        }

    def write(self, name: str, rows: list[dict[str, Any]], entry: dict[str, Any] | None = None) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.info[name] = {"file_name": f"{name}.jsonl", **(entry or {})}
        (self.folder / "dataset_info.json").write_text(json.dumps(self.info))

    def config(self, weight: Any = None, block: dict[str, Any] | None = None, **keys: Any) -> RunConfig:
        given = {"dataset": ",".join(n for n in self.info if not n.startswith("held")), **keys}
        block = {**(block or {}), **({} if weight is None else {"weight": weight})}
        return parse({**self.base, **given, **({"dataflex": block} if block else {})})

    def prepare(self, config: RunConfig) -> Loading:
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer

        model_args, data_args, training_args, _, _ = get_train_args(dict(config.llamafactory))
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        stage = {"dpo": "rm"}.get(config.llamafactory["stage"], config.llamafactory["stage"])
        return Loading(template, model_args, data_args, training_args, stage, **module)

    def load(self, weight: Any = COLUMN, block: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
        config = self.config(weight, block, **keys)
        assert config.dataflex is not None
        loading = self.prepare(config)
        self.template, self.tokenizer = loading.template, loading.tokenizer
        return {"config": config, "loading": loading, **load_data(config.dataflex, loading)}

    def rows(self, *args: Any, **keys: Any) -> Rows:
        return self.load(*args, **keys)["train_dataset"]

    def plain(self, **keys: Any) -> Any:
        """As LLaMA-Factory alone prepares the data."""
        from llamafactory.data import get_dataset

        return get_dataset(**vars(self.prepare(self.config(**keys))))["train_dataset"]


@pytest.fixture
def bench(ground: Path, tmp_path: Path) -> Bench:
    return Bench(ground, tmp_path)


def alpaca(count: int = 30) -> list[dict[str, Any]]:
    """Rows of different lengths, row i of weight i / 4."""
    return [
        {"instruction": f"say {i}", "input": "", "output": f"well {i} " * (1 + i % 7), "weight": i / 4}
        for i in range(count)
    ]


def talk(row: int, turns: int, weigh: Any = None) -> list[dict[str, Any]]:
    """Messages of one digit each, from 1 on; message `j` weighs weigh(row, j), where that is a number."""
    found = []
    for j in range(2 * turns):
        message: dict[str, Any] = {
            "from": ("human", "gpt")[j % 2],
            "value": " ".join([str(j + 1)] * (2 + row + j % 2)),
        }
        weight = None if weigh is None else weigh(row, j)
        found.append(message if weight is None else {**message, "weight": weight})
    return found


def weights(rows: Any, index: int) -> np.ndarray:
    return np.array(rows[index][GIVEN_WEIGHTS], dtype=np.float32)


def by_content(rows: Any) -> dict[tuple[int, ...], Any]:
    """What each row weighs, by its token ids."""
    return {tuple(row["input_ids"]): row[GIVEN_WEIGHTS] for row in rows}


# -- rows ------------------------------------------------------------------------------------------------------------


def test_everything_but_the_column_is_as_llamafactory_prepares_it(bench: Bench) -> None:
    bench.write("a", alpaca())
    bench.write("b", [{"conversations": talk(i, 3), "weight": 1.5} for i in range(20)], SHAREGPT)
    for keys in (
        {},
        {"packing": True},
        {"packing": True, "neat_packing": True},
        {"cutoff_len": 48, "mask_history": True},
    ):
        plain, rows = bench.plain(**keys), bench.rows(**keys).parts[0]
        assert rows.column_names == [*plain.column_names, GIVEN_WEIGHTS]
        assert rows.remove_columns(GIVEN_WEIGHTS)[:] == plain[:]
        assert rows.features[GIVEN_WEIGHTS].feature.dtype == "float32"
        assert [len(w) for w in rows[GIVEN_WEIGHTS]] == [len(row) for row in plain["labels"]]


@pytest.mark.parametrize("workers", [None, 2])
def test_a_row_weighs_what_its_column_says(bench: Bench, workers: int | None) -> None:
    """In every formatting, in a column of any name and of whole numbers, too."""
    openai = [
        [{"role": {"human": "user", "gpt": "assistant"}[m["from"]], "content": m["value"]} for m in talk(i, 2)]
        for i in range(20)
    ]
    bench.write("a", [{"quality" if k == "weight" else k: v for k, v in row.items()} for row in alpaca()])
    bench.write("b", [{"conversations": talk(i, 1 + i % 3), "quality": i} for i in range(20)], SHAREGPT)
    bench.write("c", [{"messages": messages, "quality": 3 + i} for i, messages in enumerate(openai)], OPENAI)
    rows = bench.rows({**COLUMN, "column": "quality"}, preprocessing_num_workers=workers)
    expected = [i / 4 for i in range(30)] + list(range(20)) + [3 + i for i in range(20)]
    for index, weight in enumerate(expected):
        assert (weights(rows, index) == weight).all()
    assert len(rows) == len(expected)


def test_a_mixture_keeps_the_weights_of_each_data_set(bench: Bench) -> None:
    bench.write("a", alpaca())
    bench.write("b", [{**row, "weight": 100 + row["weight"]} for row in alpaca(12)])
    module = bench.load(block={"mix": {"name": "static", "proportions": [0.5, 0.5]}}, val_size=0.2)
    rows = module["train_dataset"]
    texts = [bench.tokenizer.decode(row["input_ids"]) for row in map(rows.__getitem__, range(len(rows)))]
    for index, (domain, text) in enumerate(zip(rows.domains.of(np.arange(len(rows))), texts, strict=True)):
        number = int(re.findall(r"say (\d+)", text)[0])
        assert (weights(rows, index) == 100 * domain + number / 4).all()
    held = [module["eval_dataset"], *module["held_out"].parts]
    assert len(rows) == 24 + 9 and all(GIVEN_WEIGHTS not in part.column_names for part in held)


def test_rows_drawn_or_cut_off_keep_their_weights(bench: Bench) -> None:
    bench.write("a", alpaca(), {"num_samples": 40})
    for keys in ({}, {"max_samples": 25}, {"val_size": 0.3}):
        rows = bench.rows(**keys)
        for index in range(len(rows)):
            number = int(re.findall(r"say (\d+)", bench.tokenizer.decode(rows[index]["input_ids"]))[0])
            assert (weights(rows, index) == number / 4).all()
        assert len(rows) == {"max_samples": 25, "val_size": 28}.get(next(iter(keys), ""), 40)


@pytest.mark.parametrize("neat", [False, True])
@pytest.mark.parametrize("workers", [None, 2])
def test_packed_rows_keep_the_weight_of_every_sequence(bench: Bench, neat: bool, workers: int | None) -> None:
    bench.write("a", alpaca())
    alone = {ids: own[0] for ids, own in by_content(bench.rows().parts[0]).items()}
    rows = bench.rows(packing=True, neat_packing=neat, preprocessing_num_workers=workers, cutoff_len=200)
    seen = []
    for row in rows.parts[0]:
        own, starts = np.array(row[GIVEN_WEIGHTS]), [i for i, p in enumerate(row["position_ids"]) if p == 0]
        for a, b in zip(starts, [*starts[1:], len(own)], strict=True):
            ids = tuple(row["input_ids"][a:b])
            if ids in alone:
                assert (own[a:b] == alone[ids]).all()
                seen.append(alone[ids])
            else:
                assert set(row["labels"][a:b]) == {-100} and (own[a:b] == 1).all()  # padding
    assert sorted(seen) == [i / 4 for i in range(30)] and len(rows) < 20


@pytest.mark.parametrize("packing", [False, True])
def test_text_keeps_the_weight_of_every_document(bench: Bench, packing: bool) -> None:
    """Packed, a row may hold the end of a document, whole ones, and the beginning of another."""
    texts = [f"text {i} " * (3 + 5 * (i % 4)) for i in range(40)]
    bench.write("a", [{"text": text, "weight": i / 8} for i, text in enumerate(texts)], TEXT)
    rows = bench.rows(stage="pt", packing=packing, cutoff_len=51 if packing else 50)  # one is kept free
    ids = [bench.tokenizer(text + bench.tokenizer.eos_token, add_special_tokens=False)["input_ids"] for text in texts]
    told = [[i / 8] * len(own) for i, own in enumerate(ids)]
    if packing:
        ids = [list(chain(*ids))[i : i + 50] for i in range(0, sum(map(len, ids)) // 50 * 50, 50)]
        told = [list(chain(*told))[i : i + 50] for i in range(0, 50 * len(ids), 50)]
    assert [row["input_ids"] for row in rows.parts[0]] == [own[:50] for own in ids]
    assert [row[GIVEN_WEIGHTS] for row in rows.parts[0]] == [own[:50] for own in told]
    assert max(map(len, ids)) >= 50 and (not packing or any(len(set(own)) > 2 for own in told))


@pytest.mark.parametrize("stage", ["rm", "dpo", "kto"])
def test_pairs_and_judged_answers_have_one_weight_each(bench: Bench, stage: str) -> None:
    rows = [{"instruction": f"say {i}", "weight": i / 4} for i in range(20)]
    if stage == "kto":
        bench.write("a", [{**row, "output": f"well {i}", "kto_tag": i % 3 == 0} for i, row in enumerate(rows)], KTO)
    else:
        bench.write("a", [{**row, "chosen": f"well {i}", "rejected": "no"} for i, row in enumerate(rows)], PAIRS)
    part = bench.rows(stage=stage).parts[0]
    assert part[GIVEN_WEIGHTS][:] == [i / 4 for i in range(20)]
    side = "input_ids" if stage == "kto" else "chosen_input_ids"
    assert all(f"say {i}" in bench.tokenizer.decode(ids) for i, ids in enumerate(part[side]))
    assert part.remove_columns(GIVEN_WEIGHTS)[:] == bench.plain(stage=stage)[:]


# -- messages --------------------------------------------------------------------------------------------------------


def own_weight(row: int, message: int) -> float | None:
    """Every third message says nothing, and weighs one."""
    return None if (row + message) % 3 == 0 else (1 + row % 5) / 4 + message


def messages_of(bench: Bench, row: dict[str, Any]) -> list[tuple[int, float]]:
    """For each token that is learned and belongs to a message, the message and what the token weighs. Tokens with a digit belong
    to that message, those after it that are predicted in their own place (an end of turn) or in that of another one, too."""
    out, last = [], None
    for i, label, weight in zip(row["input_ids"], row["labels"], row[GIVEN_WEIGHTS], strict=True):
        digit = re.search(r"\d", bench.tokenizer.decode([label])) if label != -100 else None
        last = int(digit[0]) - 1 if digit else last
        ends = label in (bench.tokenizer.eos_token_id, bench.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        if last is not None and (digit or ends):
            out.append((last, weight))
        other = re.search(r"\d", bench.tokenizer.decode([i]))
        last = int(other[0]) - 1 if other else last
    return out


def expected(row: int, message: int) -> float:
    weight = own_weight(row, message)
    return float(np.float32(1 if weight is None else weight))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"train_on_prompt": True},
        {"mask_history": True},
        {"cutoff_len": 40},
        {"cutoff_len": 40, "mask_history": True},
        {"template": "falcon"},
        {"template": "falcon", "mask_history": True},
        {"template": "falcon", "cutoff_len": 30},
        {"template": "qwen3"},
        {"template": "qwen", "default_system": "be short"},
    ],
    ids=str,
)
def test_a_message_gives_its_tokens_their_weight(bench: Bench, keys: dict[str, Any]) -> None:
    """falcon leaves the end of an answer to the token after it; qwen3 puts an empty thought before answers."""
    bench.write("a", [{"conversations": talk(i, 1 + i % 4, own_weight)} for i in range(12)], SHAREGPT)
    part = bench.rows(BY_MESSAGE, **keys).parts[0]
    assert part.remove_columns(GIVEN_WEIGHTS)[:] == bench.plain(**keys)[:]
    seen = set()
    for i, row in enumerate(part):
        for message, weight in messages_of(bench, row):
            assert weight == expected(i, message)
            seen.add((i, message))
    learned = {(i, j) for i in range(12) for j in range(2 * (1 + i % 4)) if j % 2 or keys.get("train_on_prompt")}
    if keys.get("mask_history"):
        last = [2 * (1 + i % 4) - 1 for i in range(12)]
        ends = (
            keys.get("template") == "falcon"
        )  # those of earlier answers are learned all the same, but for that of the last but one
        learned = {(i, j) for i, j in learned if j == last[i] or (ends and j < last[i] - 2)}
    assert seen <= learned if "cutoff_len" in keys else seen == learned
    assert {i for i, _ in seen} == set(range(12))


@pytest.mark.parametrize("neat", [False, True])
def test_messages_keep_their_weights_when_packed(bench: Bench, neat: bool) -> None:
    for template in ("qwen", "falcon"):
        keys = {"template": template, "mask_history": True, "cutoff_len": 600}
        bench.write("a", [{"conversations": talk(i, 1 + i % 4, own_weight)} for i in range(12)], SHAREGPT)
        alone = by_content(bench.rows(BY_MESSAGE, **keys).parts[0])
        count = 0
        for row in bench.rows(BY_MESSAGE, packing=True, neat_packing=neat, **keys).parts[0]:
            starts = [i for i, p in enumerate(row["position_ids"]) if p == 0]
            for a, b in zip(starts, [*starts[1:], len(row["labels"])], strict=True):
                own = alone.get(tuple(row["input_ids"][a:b]), [1] * (b - a))
                assert row[GIVEN_WEIGHTS][a:b] == own
                count += tuple(row["input_ids"][a:b]) in alone
        assert count == 12


def test_messages_in_the_openai_form_with_tools_and_a_system_prompt(bench: Bench) -> None:
    """What tools say one after the other becomes one message; what nothing follows is left out."""
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        "weight": 2,
    }
    messages = [
        {"role": "system", "content": "be short", "weight": 9},
        {"role": "user", "content": "1 1", "weight": 3},
        call,
        {"role": "tool", "content": "3 3", "weight": 4},
        {"role": "tool", "content": "3 3 3", "weight": 5},
        {"role": "assistant", "content": "4 4", "weight": 0},
        {"role": "user", "content": "5"},
        {**call, "weight": 6},
        {"role": "tool", "content": "7", "weight": 8},
    ]
    bench.write("a", [{"messages": messages[:6]}, {"messages": messages}], OPENAI)
    rows = bench.rows(BY_MESSAGE, train_on_prompt=True)
    parts = []
    for row in rows.parts[0]:
        changes = [0, *np.flatnonzero(np.diff(row[GIVEN_WEIGHTS])) + 1, len(row["labels"])]
        runs = [(bench.tokenizer.decode(row["input_ids"][a:b]), row[GIVEN_WEIGHTS][a]) for a, b in pairwise(changes)]
        parts.append(runs)
    assert [[weight for _, weight in runs] for runs in parts] == [[3, 2, 4, 0], [3, 2, 4, 0, 1, 6]]
    marks = ("1 1", '"name": "f"', "3 3 3", "4 4", "5", '"name": "f"')
    for runs in parts:
        assert all(mark in text for mark, (text, _) in zip(marks, runs, strict=False))
        assert "be short" in runs[0][0]


def test_rows_that_llamafactory_drops(bench: Bench) -> None:
    """Of roles in the wrong order, and judged answers, which are not for sft."""
    told = [talk(i, 2, own_weight) for i in range(6)]
    told[2] = told[2][1:]
    bench.write("a", [{"conversations": m} for m in told], SHAREGPT)
    bench.write("b", [{"conversations": m, "tag": i > 0} for i, m in enumerate(told[3:])],
                {**SHAREGPT, "columns": {**SHAREGPT["columns"], "kto_tag": "tag"}})  # fmt: skip
    part = bench.rows(BY_MESSAGE).parts[0]
    assert len(part) == 5
    for i, row in zip((0, 1, 3, 4, 5), part, strict=True):
        assert all(weight == expected(i, message) for message, weight in messages_of(bench, row))


def test_weights_survive_as_float32_from_zero_to_the_largest(bench: Bench) -> None:
    values = [0, -0.0, 1e-45, 1e-30, 0.1, 1 / 3, 1, 7, 2**24 + 1, 3.4e38]
    bench.write(
        "a", [{"instruction": f"say {i}", "input": "", "output": "well", "weight": v} for i, v in enumerate(values)]
    )
    rows = bench.rows()
    assert [set(rows[i][GIVEN_WEIGHTS]) for i in range(len(rows))] == [{float(np.float32(abs(v)))} for v in values]


# -- what is no weight -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "has no 'weight'"), (-0.5, "has weight -0.5, which is not a finite non-negative number"),
     (1e39, "has weight 1e[+]39, which"), (float("inf"), "has weight inf, which")],
)  # fmt: skip
@pytest.mark.parametrize("mixed", [False, True])
def test_a_row_without_a_usable_weight_is_named(bench: Bench, value: Any, said: str, mixed: bool) -> None:
    rows = alpaca(12)
    rows[7]["weight"] = value
    bench.write("a", alpaca())
    bench.write("b", rows)
    block = {"mix": {"name": "static", "proportions": [0.5, 0.5]}} if mixed else None
    with pytest.raises(ConfigError, match=rf"^dataflex.weight.column: row 7 of 'b' {said}"):
        bench.load(block=block)


def test_a_row_is_named_as_it_is_stored(bench: Bench) -> None:
    rows = alpaca(12)
    rows[7]["weight"] = -1
    bench.write("a", rows, {"num_samples": 12})  # in an order of their own
    with pytest.raises(ConfigError, match="row 7 of 'a' has weight -1"):
        bench.load()


@pytest.mark.parametrize("value", ["high", True, [1.0], {"of": 1}])
def test_a_column_of_something_else_is_refused(bench: Bench, value: Any) -> None:
    bench.write("a", [{**row, "weight": value} for row in alpaca(4)])
    with pytest.raises(ConfigError, match=f"row 0 of 'a' has weight {re.escape(repr(value))}, which is not a finite"):
        bench.load()


def test_a_column_that_is_not_there(bench: Bench) -> None:
    bench.write("a", alpaca())
    bench.write("b", [{("wieght" if k == "weight" else k): v for k, v in row.items()} for row in alpaca()])
    for block in (None, {"mix": {"name": "static", "proportions": [0.5, 0.5]}}):
        with pytest.raises(ConfigError, match=r"the rows of 'b' have no 'weight'; did you mean 'wieght'\?"):
            bench.load(block=block)
    with pytest.raises(
        ConfigError, match="the rows of 'a' have no 'quality'; choose from input, instruction, output, weight"
    ):
        bench.load({**COLUMN, "column": "quality"})


def test_messages_that_have_none(bench: Bench) -> None:
    bench.write("a", [{"conversations": talk(i, 2), "weight": 1} for i in range(4)], SHAREGPT)
    with pytest.raises(ConfigError, match="the messages of 'a' have no 'weight'; choose from from, value"):
        bench.load(BY_MESSAGE)
    bench.write(
        "a",
        [
            {"conversations": talk(i, 2, lambda i, j: -1 if (i, j) == (3, 2) else None if i < 3 else 1)}
            for i in range(4)
        ],
        SHAREGPT,
    )
    with pytest.raises(ConfigError, match="row 3 of 'a' has weight -1"):
        bench.load(BY_MESSAGE)
    bench.write("a", alpaca())
    with pytest.raises(
        ConfigError, match=r"dataflex.weight.per: 'a' has no messages to weigh \(formatting: alpaca\); use per: row"
    ):
        bench.load(BY_MESSAGE)


def test_weights_that_are_all_zero(bench: Bench) -> None:
    said = "dataflex.weight.column: 'weight' is zero wherever there is something to learn"
    nothing = [{**row, "weight": 0} for row in alpaca()]
    bench.write("a", nothing)
    for keys in ({}, {"packing": True}):
        with pytest.raises(ConfigError, match=said):
            bench.load(**keys)
    bench.write("b", [{**row, "weight": float(i == 29)} for i, row in enumerate(alpaca())])
    assert len(bench.rows()) == 60  # a data set may weigh nothing
    bench.write("a", [{"conversations": talk(i, 2, lambda _, j: (j + 1) % 2)} for i in range(4)], SHAREGPT)
    with pytest.raises(ConfigError, match=said):  # prompts do
        bench.load(BY_MESSAGE, dataset="a")
    assert len(bench.rows(BY_MESSAGE, dataset="a", train_on_prompt=True)) == 4
    bench.write("a", [{"text": "1 2 3" * 300, "weight": 0}], TEXT)
    with pytest.raises(ConfigError, match=said):
        bench.load(dataset="a", stage="pt")
    for stage, entry, more in (
        ("dpo", PAIRS, {"chosen": "a", "rejected": "b"}),
        ("kto", KTO, {"output": "a", "kto_tag": True}),
    ):
        bench.write("a", [{"instruction": "say", "weight": 0, **more}] * 3, entry)
        with pytest.raises(ConfigError, match=said):
            bench.load(dataset="a", stage=stage)


def test_what_cannot_be_combined(bench: Bench) -> None:
    bench.write("a", alpaca())
    for keys, said in (
        ({"tokenized_path": "x"}, "^tokenized_path keeps no column of the data, and weight: column needs 'weight'"),
        (
            {"weight": BY_MESSAGE, "stage": "pt"},
            "^dataflex.weight.per: stage: pt does not learn messages; use per: row",
        ),
        (
            {"weight": BY_MESSAGE, "stage": "dpo"},
            "^dataflex.weight.per: stage: dpo does not learn messages; use per: row",
        ),
        (
            {"weight": BY_MESSAGE, "stage": "kto"},
            "^dataflex.weight.per: stage: kto does not learn messages; use per: row",
        ),
        ({"weight": [COLUMN, {**COLUMN, "column": "b"}]}, "^dataflex.weight: two weighters read a column of the data"),
    ):
        with pytest.raises(ConfigError, match=said):
            bench.config(**{"weight": COLUMN, **keys})


def test_data_that_is_not_trained_on_needs_no_column(bench: Bench) -> None:
    bench.write("a", alpaca())
    bench.write("held", [{k: v for k, v in row.items() if k != "weight"} for row in alpaca(5)])
    module = bench.load(eval_dataset="held")
    assert (
        GIVEN_WEIGHTS not in module["eval_dataset"].column_names
        and GIVEN_WEIGHTS in module["train_dataset"].column_names
    )


def test_without_the_weighter_there_is_no_column(bench: Bench) -> None:
    """Nor is what was prepared with one taken for what is prepared without, or with other weights."""
    bench.write("a", alpaca())
    assert GIVEN_WEIGHTS in bench.rows().column_names
    assert GIVEN_WEIGHTS not in bench.rows({"name": "loss"}).column_names
    assert GIVEN_WEIGHTS not in bench.plain().column_names
    bench.write("a", [{**row, "weight": 5, "other": 6} for row in alpaca()])
    assert {w for own in bench.rows().parts[0][GIVEN_WEIGHTS] for w in own} == {5}
    assert {w for own in bench.rows({**COLUMN, "column": "other"}).parts[0][GIVEN_WEIGHTS] for w in own} == {6}


# -- batches ---------------------------------------------------------------------------------------------------------


def collator(bench: Bench, stage: str, **options: Any) -> RowCollator:
    """Of the workflow of the stage."""
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask
    from llamafactory.data.collator import KTODataCollatorWithPadding, PairwiseDataCollatorWithPadding
    from transformers import DataCollatorForLanguageModeling

    if stage == "pt":
        return RowCollator(DataCollatorForLanguageModeling(tokenizer=bench.tokenizer, mlm=False))
    kinds = {"sft": SFTDataCollatorWith4DAttentionMask, "kto": KTODataCollatorWithPadding}
    kind = kinds.get(stage, PairwiseDataCollatorWithPadding)
    return RowCollator(kind(template=bench.template, tokenizer=bench.tokenizer, pad_to_multiple_of=8, **options))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_padded_with_ones_where_the_tokens_are(bench: Bench, side: str) -> None:
    bench.write("a", alpaca())
    rows = bench.rows()
    collate = collator(
        bench, "sft", compute_dtype=torch.bfloat16
    )  # to which LLaMA-Factory casts whatever is a fraction
    bench.tokenizer.padding_side = side
    batch = collate(rows.__getitems__([13, 1, 6]))
    assert batch[GIVEN_WEIGHTS].dtype == torch.float32 and batch[GIVEN_WEIGHTS].shape == batch["labels"].shape
    assert batch[GIVEN_WEIGHTS].shape[1] % 8 == 0 and batch[SAMPLE_IDS].tolist() == [13, 1, 6]
    for i, weight in enumerate((13 / 4, 1 / 4, 6 / 4)):
        own = torch.where(batch["attention_mask"][i] == 1, weight, 1.0)
        assert torch.equal(batch[GIVEN_WEIGHTS][i], own) and (i == 2 or (own == 1).any())


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_a_batch_of_packed_rows(bench: Bench, attention: str) -> None:
    """Under flash attention, LLaMA-Factory cuts a row of its own padding off."""
    bench.write("a", alpaca())
    rows = bench.rows(packing=True, neat_packing=True, cutoff_len=100)
    collate = collator(
        bench, "sft", neat_packing=True, attn_implementation=attention, block_diag_attn=attention == "eager"
    )
    sizes = set()
    for i in range(len(rows)):
        row, batch = rows[i], collate([rows[i]])
        width, own = batch["input_ids"].shape[1], torch.tensor(row[GIVEN_WEIGHTS])
        assert batch[GIVEN_WEIGHTS].shape == batch["labels"].shape == (1, width)
        shared = min(width, len(own))
        assert (
            torch.equal(batch[GIVEN_WEIGHTS][0, :shared], own[:shared])
            and (batch[GIVEN_WEIGHTS][0, shared:] == 1).all()
        )
        assert batch["input_ids"][0, :shared].tolist() == row["input_ids"][:shared]
        sizes.add(width)
    assert min(sizes) < 100 if attention == "flash_attention_2" else sizes == {104}


def test_batches_of_text_pairs_and_judged_answers(bench: Bench) -> None:
    bench.write("a", [{"text": f"text {i} " * (1 + i), "weight": i / 8} for i in range(6)], TEXT)
    rows = bench.rows(stage="pt", packing=False)
    batch = collator(bench, "pt")(rows.__getitems__([5, 2]))
    for i, weight in enumerate((5 / 8, 2 / 8)):
        assert torch.equal(batch[GIVEN_WEIGHTS][i], torch.where(batch["attention_mask"][i] == 1, weight, 1.0))
    assert batch[GIVEN_WEIGHTS].shape == batch["labels"].shape
    for stage, entry, more in (
        ("rm", PAIRS, {"chosen": "a", "rejected": "b"}),
        ("kto", KTO, {"output": "a", "kto_tag": True}),
    ):
        bench.write("a", [{"instruction": f"say {i}", "weight": i / 8, **more} for i in range(6)], entry)
        rows = bench.rows(stage=stage)
        batch = collator(bench, stage)(rows.__getitems__([5, 2]))
        assert torch.equal(batch[GIVEN_WEIGHTS], torch.tensor([5 / 8, 2 / 8]))


def test_rows_without_an_id_are_left_to_llamafactory(bench: Bench) -> None:
    bench.write("a", alpaca())
    rows = bench.rows()
    collate = collator(bench, "sft")
    plain = collate.inner(
        [{k: v for k, v in row.items() if k != GIVEN_WEIGHTS} for row in rows.parts[0].select([3, 5])]
    )
    batch = collate(list(rows.parts[0].select([3, 5])))
    assert set(batch) == set(plain) and all(torch.equal(batch[k], plain[k]) for k in plain)


# -- beside the rows -------------------------------------------------------------------------------------------------


def test_a_run_is_known_by_its_weights(bench: Bench) -> None:
    """Apart from its rows, so that held-out rows are known as ones that are trained on, weights or not."""

    def known(weight: Any = COLUMN) -> dict[str, Any]:
        loaded = bench.load(weight, {"mix": {"name": "static", "proportions": [0.5, 0.5]}})
        return identity_of_run(loaded["config"], loaded["loading"], loaded["train_dataset"])

    bench.write("a", alpaca())
    bench.write("b", alpaca(12))
    first, unweighed = known(), known({"name": "loss"})
    assert first == known()
    bench.write("b", [{**row, "weight": row["weight"] + (i == 11) / 1024} for i, row in enumerate(alpaca(12))])
    second = known()
    assert [key for key in first if first[key] != second[key]] == ["weights of b"]
    assert {k: v for k, v in first.items() if k.startswith("content")} == {
        k: v for k, v in unweighed.items() if k.startswith("content")
    }
    assert not any(key.startswith("weights") for key in unweighed)


def test_a_fingerprint_of_weights_sees_every_one_and_where_rows_end() -> None:
    def digest(own: list[Any]) -> str:
        return Rows([Dataset.from_dict({GIVEN_WEIGHTS: own})], ["a"]).weight_fingerprints()["a"]

    def own(row: int = -1, value: float = 0.0) -> list[Any]:
        return [[value if i == row else i / 2] * (1 + i % 3) for i in range(2500)]

    moved = own()
    moved[1], moved[2] = moved[1][:1], moved[1][1:] + moved[2]
    prints = [digest(own()), digest(moved), digest([i / 2 for i in range(2500)])]
    prints += [digest(own(row, row / 2 + 2**-12)) for row in (0, 999, 1000, 2499)]
    assert len(set(prints)) == len(prints) and digest(own()) == prints[0]


def test_selectors_that_read_stored_rows_leave_the_weights_alone(bench: Bench, tmp_path: Path) -> None:
    bench.write("a", alpaca(), {"num_samples": 20})
    bench.write("held", alpaca(4))
    np.save(tmp_path / "near.npy", np.zeros((4, 3), dtype=np.int64))
    select = {"name": "near", "indices_path": str(tmp_path / "near.npy"), "interval": 1, "updates": 1}
    rows = bench.rows(block={"select": select}, eval_dataset="held")
    assert rows.raw is not None and rows.column_names[-1] == GIVEN_WEIGHTS
    assert [set(rows[i][GIVEN_WEIGHTS]) for i in range(20)] == [{number / 4} for number in rows.raw.tolist()]


@pytest.mark.parametrize("keys", [{}, {"packing": True}, {"weight": BY_MESSAGE}], ids=str)
def test_streams_carry_weights(bench: Bench, keys: dict[str, Any]) -> None:
    """As an index of the same rows does, with the same digest of the rows only if weights are the same."""
    options = {"weight": COLUMN, **keys}
    mix = {"name": "static", "proportions": [1.0]}

    def write(more: float) -> None:
        told = [talk(i, 2, lambda i, j: i + j + more) for i in range(9)]
        bench.write("a", [{"conversations": m, "weight": i + more} for i, m in enumerate(told)], SHAREGPT)

    def first_block() -> Any:
        streams = bench.rows(block={"mix": {**mix, "stream_block": 100}}, streaming=True, max_steps=3, **options)
        reader = streams.readers(0, shuffle=False)[0]
        reader.seek(StreamPosition())
        return streams.facts, reader.next().samples

    write(0.5)
    facts, samples = first_block()
    part = bench.rows(block={"mix": mix}, **options).parts[0]
    assert [list(s[GIVEN_WEIGHTS]) for s in samples] == part[GIVEN_WEIGHTS][:]
    batch = collator(bench, "sft")([{**s, SAMPLE_IDS: i} for i, s in enumerate(samples)])
    assert (
        batch[GIVEN_WEIGHTS].shape == batch["labels"].shape and batch[GIVEN_WEIGHTS][0, 0] == part[0][GIVEN_WEIGHTS][0]
    )
    write(0.75)
    changed = first_block()[0]
    assert changed["content of a"] != facts["content of a"]
    bench.write("a", [{"conversations": talk(i, 2)} for i in range(9)], SHAREGPT)
    with pytest.raises(ConfigError, match="of 'a' have no 'weight'"):
        first_block()
