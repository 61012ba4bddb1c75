"""The rules of evaluation: which option is right, which number is final, what a figure and its error are."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import ByHand

from dataflex.base.evaluation.final import final_keys
from dataflex.config import RunConfig, load_offline, parse
from dataflex.config.doremi import load_doremi
from dataflex.config.evaluate import read_evaluate
from dataflex.errors import ConfigError, Mistakes
from dataflex.evaluating.choice import choose
from dataflex.evaluating.figures import Figures, mean_and_error, ratio_and_error
from dataflex.evaluating.matching import final_number, normalised
from dataflex.evaluating.options import Question, Unusable, from_columns, from_prompt
from dataflex.evaluating.record import evaluation_record, write_evaluation


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9 * 2 = $18 every day.\n#### 18", 18),
        ("#### 1,234", 1234),
        ("the result is 1,001.", 1001),
        ("3 - 8 = -5", -5),
        ("5-3", 3),
        ("16 - 3 = 13.50", 13.5),
        ("it costs $ 7", 7),
        ("= \u22124", -4),
        (".5 of it", 0.5),
        ("12 apples, #### none", 12),
        ("#### 230 of 300", 230),
        ("x2 is a name", None),
        ("no number", None),
    ],
)
def test_the_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(str(number)))


def test_equal_numbers_may_be_written_otherwise() -> None:
    assert final_number("18.00") == final_number("#### 18")
    assert final_number("18.01") != final_number("#### 18")


def test_texts_are_compared_without_case_and_space() -> None:
    assert normalised("  The  Answer.\n") == normalised("the answer")
    assert normalised("\uff21") == normalised("a")
    assert normalised("-5") != normalised("5")


@pytest.mark.parametrize(
    ("prompt", "response", "options", "answer"),
    [
        ("Q?\nA. one\nB. two", "B", ("one", "two"), 1),
        ("Q?\nA) one\nB) two\nC) three", "(C)", ("one", "two", "three"), 2),
        ("Q?\nA. one\nB. two\n\nAnswer:", "A. one", ("one", "two"), 0),
        ("Q?\nA: one\nB: two", "The answer is B.", ("one", "two"), 1),
        ("Q?\nA. one\nB. two", "two", ("one", "two"), 1),
        (
            "Q? Answer1: a b Answer2: c\n\nAnswer format: answer1/answer2",
            "the correct answer is answer2",
            ("a b", "c"),
            1,
        ),
        ("A. is a letter of a heading\nQ?\nA. x\nB. y", "A", ("x", "y"), 0),
        ("Q?\nA. 水\nB. größer", "B", ("水", "größer"), 1),
    ],
)
def test_options_of_a_prompt(prompt: str, response: str, options: tuple[str, ...], answer: int) -> None:
    found = from_prompt(prompt, response)
    assert (found.options, found.answer) == (options, answer)
    assert isinstance(found, Question) and prompt.startswith(found.text) and found.text.endswith("Q?")


@pytest.mark.parametrize(
    ("prompt", "response", "why"),
    [
        ("Q?", "A", "lists no options"),
        ("Q?\nA. one", "A", "lists no options"),
        ("Q?\nA. one\nB. \nC. three", "A", "is empty"),
        ("Q?\nA. one\nB. two", "C", "names no option"),
        ("Q? answer1: a answer2: b", "answer1 or answer2", "names no option"),
    ],
)
def test_prompts_that_are_no_questions(prompt: str, response: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        from_prompt(prompt, response)


def test_options_of_columns() -> None:
    assert from_columns(["1", " 2 ", "3"], 2) == (("1", "2", "3"), 2)
    assert from_columns(["1", "2", "3"], "3") == (("1", "2", "3"), 2)
    assert from_columns(["a", "b"], 1.0) == (("a", "b"), 1)
    for options, answer in (
        (["a", "b"], 2),
        (["a", "b"], -1),
        (["a", "b"], "c"),
        (["a", "b"], True),
        ("ab", 0),
        (["a"], 0),
    ):
        with pytest.raises(Unusable):
            from_columns(options, answer)


def test_the_first_of_equal_scores_is_chosen() -> None:
    tied = choose(np.array([-2.0, -1.0, -1.0]), 2)
    assert (tied.right, tied.tied) == (False, True)
    assert choose(np.array([-2.0, -1.0, -1.0]), 1).right
    clear = choose(np.log(np.array([0.2, 0.5, 0.3])), 1)
    assert (clear.right, clear.tied) == (True, False)
    assert clear.margin == pytest.approx(0.2)
    broken = choose(np.array([np.nan, -1.0]), 1)
    assert not broken.right and np.isnan(broken.margin)


def test_standard_errors_are_those_of_repeated_draws() -> None:
    """The spread of the figures of many samples is what the error of a single one says."""
    rng = np.random.default_rng(0)
    ratios, said, means, said_of_means = [], [], [], []
    for _ in range(2000):
        lengths = rng.integers(1, 30, 200)
        values = lengths * rng.gamma(4.0, 0.5, 200)
        ratio, error = ratio_and_error(values, lengths)
        mean, error_of_mean = mean_and_error(values)
        ratios.append(ratio), said.append(error), means.append(mean), said_of_means.append(error_of_mean)
    assert np.std(ratios) == pytest.approx(np.mean(said), rel=0.05)
    assert np.std(means) == pytest.approx(np.mean(said_of_means), rel=0.05)
    assert mean_and_error(np.array([3.0])) == (3.0, None)
    assert ratio_and_error(np.array([3.0]), np.array([2])) == (1.5, None)


def test_the_file_is_metric_then_data_set(tmp_path: Path) -> None:
    figures = [
        ("a", Figures({"loss": 1.0}, {"loss": 0.1}, {"rows": 3})),
        ("b", Figures({"loss": float("inf")}, {}, {"rows": 1}, Counter())),
    ]
    record = evaluation_record(figures, {"stage": "sft"})
    assert json.loads(write_evaluation(tmp_path, record).read_text()) == {
        "loss": {"a": 1.0, "b": None}, "standard_errors": {"loss": {"a": 0.1}}, "counts": {"rows": {"a": 3, "b": 1}},
        "about": {"stage": "sft"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["chatml", "qwen", "qwen3", "qwen3_nothink", "llama3", "llama2", "mistral", "gemma", "empty", "alpaca"]
)
def test_the_tokens_of_an_option_are_those_of_its_text(ground: Path, name: str) -> None:
    """Whatever a template puts before and after an answer is no part of it."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    from dataflex.base.evaluation.reading import AnswerTemplate

    tokenizer = ByHand(ground / "still").tokenizer
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))
    row = {"_prompt": [{"role": "user", "content": "What?"}], "_system": "", "_tools": ""}
    options = ["a stone", "größer 🙂", "7", "the end."]
    prompt, answers = AnswerTemplate(template, tokenizer).question(row, options)
    assert [tokenizer.decode(own).strip() for own in answers] == options
    if name == "qwen3":
        assert tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    else:
        assert tokenizer.decode(prompt) == tokenizer.decode(AnswerTemplate(template, tokenizer).prompt(row))


def parsed(**keys: Any) -> RunConfig:
    return parse({"stage": "sft", "do_train": True, "output_dir": "runs/x", "model_name_or_path": "base", **keys})


def test_the_final_model_is_named_by_the_kind_of_training() -> None:
    block = {"heldout": "a", "choice": ["b", {"dataset": "c", "options": "letters"}], "limit": 3}
    run = parsed(finetuning_type="full", deepspeed="x.json", learning_rate=1.0, dataflex={"evaluate": block})
    assert run.dataflex is None  # a plain run of LLaMA-Factory
    keys = final_keys(run)
    assert keys["model_name_or_path"] == "runs/x" and "adapter_name_or_path" not in keys and "deepspeed" not in keys
    choice = [{"dataset": "b"}, {"dataset": "c", "options": "letters"}]
    assert keys["evaluate"] == {"heldout": ["a"], "choice": choice, "limit": 3}
    mistakes = Mistakes()
    again = read_evaluate(keys["evaluate"], "dataflex.evaluate", mistakes)
    assert not mistakes and again == run.evaluate


@pytest.mark.parametrize(
    ("given", "adapters"),
    [
        ({}, "runs/x"),
        ({"adapter_name_or_path": "one,two"}, "one,runs/x"),
        ({"adapter_name_or_path": ["one", "two"], "create_new_adapter": True}, "one,two,runs/x"),
    ],
)
def test_an_adapter_is_on_top_of_those_that_it_was_trained_on(given: dict[str, Any], adapters: str) -> None:
    keys = final_keys(parsed(**given, dataflex={"evaluate": {"heldout": "a"}}))
    assert keys["adapter_name_or_path"] == adapters and keys["model_name_or_path"] == "base"
    assert "create_new_adapter" not in keys


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"stage": "rm"}, "dataflex.evaluate: stage: rm makes a model that has no answers to judge"),
        ({"finetuning_type": "oft"}, "dataflex.evaluate: LLaMA-Factory loads no adapter of finetuning_type: oft"),
        ({"pissa_init": True}, "dataflex.evaluate: pissa_init changes the model below the adapter"),
        ({"output_dir": None}, "dataflex.evaluate: output_dir is required"),
    ],
)
def test_final_models_that_cannot_be_judged(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(**keys, dataflex={"evaluate": {"heldout": "a"}})


def test_of_doremi_the_final_model_alone_is_judged(tmp_path: Path) -> None:
    file = tmp_path / "doremi.yaml"
    block = "{total_steps: 4, mix: {unit: samples}, evaluate: {heldout: a}}"
    file.write_text(f"model_name_or_path: m\ndataset: a,b\noutput_dir: {tmp_path}\nstage: sft\ndataflex: {block}\n")
    runs = load_doremi([str(file)]).runs
    assert [step for step, keys in runs.items() if "evaluate" in keys["dataflex"]] == ["final"]


def test_a_selection_says_that_it_judges_nothing(tmp_path: Path) -> None:
    file = tmp_path / "select.yaml"
    block = "{select: {name: loss}, offline: {budget: 3}, evaluate: {heldout: a}}"
    file.write_text(f"model_name_or_path: m\ndataset: a\noutput_dir: {tmp_path}\nstage: sft\ndataflex: {block}\n")
    run = load_offline([str(file)])
    assert run.evaluate is None
    assert run.notices == ("dataflex.evaluate has no effect on select; dataflex-cli evaluate reads it",)
