"""`dataflex-cli evaluate`: every figure against one computed by hand, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import assert_refused
from harness import train
from judging import (
    ANSWERS,
    CUTOFF,
    LETTERED,
    QUESTIONS,
    SUMS,
    TALKS,
    ByHand,
    evaluated,
    evaluation,
    judged,
    start_evaluate,
    write_data,
)

from dataflex.errors import ConfigError
from dataflex.evaluating.matching import final_number

WHOLE_BLOCK = {
    "heldout": ["answers"],
    "choice": ["quiz", {"dataset": "lettered", "options": "letters"}],
    "generate": [{"dataset": "sums", "match": "number", "max_new_tokens": 6}],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def by_hand(ground: Path) -> ByHand:
    return ByHand(ground / "still")


@pytest.fixture(scope="module")
def found(ground: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """evaluation.json of the whole block, in one process and batches of three."""
    return evaluated(judged(ground / "still", data, WHOLE_BLOCK), tmp_path_factory.mktemp("found"))


def test_held_out_figures_are_those_of_single_rows(found: dict[str, Any], by_hand: ByHand) -> None:
    """The answer ends with the end token and its line; LLaMA-Factory cuts long prompts and answers from their ends."""
    nats, tokens, whole = [], [], []
    for question, text in ANSWERS:
        prompt, answer = by_hand.prompt(question), by_hand.ids(f"{text}<|im_end|>\n")
        cut_answer = len(answer) * 2 >= CUTOFF and len(prompt) + len(answer) > CUTOFF
        if cut_answer:
            answer = answer[: CUTOFF - len(prompt)]
        prompt = prompt[: CUTOFF - len(answer)]
        nats.append(by_hand.nats(prompt, answer))
        tokens.append(len(answer))
        whole.append(not cut_answer)
    assert whole.count(False) == 1
    loss = sum(nats) / sum(tokens)
    of_bytes = [len(text.encode()) for _, text in ANSWERS]
    in_whole = [n for n, w in zip(nats, whole) if w], [b for b, w in zip(of_bytes, whole) if w]
    assert found["heldout_loss"]["answers"] == pytest.approx(loss, rel=1e-6)
    assert found["perplexity"]["answers"] == pytest.approx(np.exp(loss), rel=1e-6)
    assert found["bits_per_byte"]["answers"] == pytest.approx(sum(in_whole[0]) / np.log(2) / sum(in_whole[1]), rel=1e-6)
    n = len(nats)
    error = np.sqrt(n / (n - 1) * sum((a - loss * t) ** 2 for a, t in zip(nats, tokens))) / sum(tokens)
    assert found["standard_errors"]["heldout_loss"]["answers"] == pytest.approx(error, rel=1e-5)
    counts = {name: of["answers"] for name, of in found["counts"].items() if "answers" in of}
    assert counts == {
        "heldout_rows": n, "heldout_tokens": sum(tokens), "heldout_bytes": sum(in_whole[1]), "heldout_cut_rows": 2,
        "heldout_left_out": 0,
    }  # fmt: skip


@pytest.mark.parametrize("last_alone", [False, True])
def test_every_answer_of_a_conversation_counts_unless_history_is_masked(
    ground: Path, data: Path, by_hand: ByHand, tmp_path: Path, last_alone: bool
) -> None:
    config = judged(ground / "still", data, {"heldout": "talks"}, mask_history=last_alone)
    found = evaluated(config, tmp_path / "run")
    nats, tokens, size = 0.0, 0, 0
    for talk in TALKS:
        context: list[int] = []
        for turn, (question, text) in enumerate(talk):
            context, answer = context + by_hand.prompt(question), by_hand.ids(f"{text}<|im_end|>\n")
            if turn == len(talk) - 1 or not last_alone:
                nats, tokens = nats + by_hand.nats(context, answer), tokens + len(answer)
                size += len(text.encode())
            context = context + answer
    assert found["heldout_loss"]["talks"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found["bits_per_byte"]["talks"] == pytest.approx(nats / np.log(2) / size, rel=1e-6)


def choices(by_hand: ByHand, question: str, options: list[str], answer: int) -> dict[str, tuple[bool, float]]:
    """Whether the best option is the right one, and its margin, by raw and by normalised log-likelihood."""
    ids = [by_hand.ids(option) for option in options]
    prompt = by_hand.prompt(question)[-(CUTOFF - max(map(len, ids))) :]
    raw = np.array([-by_hand.nats(prompt, own) for own in ids])
    said = {}
    for name, scores in (("_raw", raw), ("", raw / np.array([len(option.encode()) for option in options]))):
        p = np.exp(scores) / np.exp(scores).sum()
        said[name] = (int(np.argmax(scores)) == answer, p[answer] - max(np.delete(p, answer)))
    return said


def test_choices_are_those_of_single_rows(found: dict[str, Any], by_hand: ByHand) -> None:
    kept = [q for q in QUESTIONS if len(q[1]) > 1 and all(q[1]) and q[2] < len(q[1])]
    assert len(kept) == 7
    expected = [choices(by_hand, *question) for question in kept]
    for suffix in ("", "_raw"):
        right = [one[suffix][0] for one in expected]
        assert found[f"choice_accuracy{suffix}"]["quiz"] == sum(right) / 7
        assert found["counts"][f"choice_correct{suffix}"]["quiz"] == sum(right)
        margins = [one[suffix][1] for one in expected]
        assert found[f"choice_margin{suffix}"]["quiz"] == pytest.approx(np.mean(margins), abs=1e-6)
        error = np.std(margins, ddof=1) / np.sqrt(7)
        assert found["standard_errors"][f"choice_margin{suffix}"]["quiz"] == pytest.approx(error, rel=1e-4)
    assert found["counts"]["choice_rows"]["quiz"] == 7
    assert found["counts"]["choice_left_out"]["quiz"] == 3
    assert found["counts"]["choice_cut_rows"]["quiz"] == 1


def test_options_are_read_from_lettered_prompts(found: dict[str, Any], by_hand: ByHand) -> None:
    parsed = [
        (["the sky", "the floor", "a cellar"], 0), (["the sky", "the floor"], 1), (["wood", "water", "a stone"], 0)
    ]  # fmt: skip
    right = [choices(by_hand, prompt, *given)[""] for (prompt, _), given in zip(LETTERED, parsed)]
    assert found["choice_accuracy"]["lettered"] == sum(r for r, _ in right) / 3
    assert found["choice_margin"]["lettered"] == pytest.approx(np.mean([m for _, m in right]), abs=1e-6)
    assert found["counts"]["choice_left_out"]["lettered"] == 1


def test_generated_answers_are_those_of_single_prompts(found: dict[str, Any], by_hand: ByHand) -> None:
    texts = [(by_hand.generate(by_hand.prompt(question), 6), reference) for question, reference in SUMS]
    texts = [(text, reference) for text, reference in texts if final_number(reference) is not None]
    assert len(texts) == 3
    same = [final_number(text) == final_number(reference) for text, reference in texts]
    assert found["number_match"]["sums"] == sum(same) / 3
    assert found["counts"]["generate_left_out"]["sums"] == 1
    assert found["counts"]["generate_rows"]["sums"] == 3


def test_answers_that_the_model_does_give_are_right(ground: Path, by_hand: ByHand, tmp_path: Path) -> None:
    """A random model says nothing useful, so its own answers are taken for the responses of all rows but one."""
    data = write_data(tmp_path / "data")
    questions = ["Say.", "Say it again, and say it in a long sentence.", "2 + 3 =", "Greek: Γειά"]
    answers = [by_hand.generate(by_hand.prompt(question), 8) for question in questions]
    rows = [{"instruction": q, "output": a} for q, a in zip(questions, [*answers[:3], "something else"])]
    (data / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    block = {"generate": [{"dataset": "sums", "max_new_tokens": 8}]}
    found = evaluated(judged(ground / "still", data, block), tmp_path / "run")
    assert found["counts"]["exact_match_correct"] == {"sums": 3}
    assert found["exact_match"] == {"sums": 0.75}


def test_another_batch_size_and_two_ranks_change_nothing(
    ground: Path, data: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    config = judged(ground / "still", data, WHOLE_BLOCK)
    runs = [
        start_evaluate({**config, "per_device_eval_batch_size": 1}, tmp_path / "single"),
        start_evaluate(config, tmp_path / "ranks", ranks=2),
    ]
    for run in runs:
        other = evaluation(run.wait().ok.out)
        assert other["counts"] == found["counts"]
        assert set(other) == set(found)
        for metric in set(found) - {"about", "counts", "standard_errors"}:
            for name, value in found[metric].items():
                assert other[metric][name] == pytest.approx(value, rel=1e-5, abs=1e-6), metric


def test_options_of_equal_likelihood_are_ties_and_the_first_counts(data: Path, ground: Path, tmp_path: Path) -> None:
    """A model with an output embedding of zeros gives every token the same probability: log p of an option depends on its number
    of tokens alone."""
    from models_and_data import load
    from transformers import AutoTokenizer

    model, tokenizer = load(ground / "still"), AutoTokenizer.from_pretrained(ground / "still")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach() * 0)
    model.save_pretrained(tmp_path / "level")
    tokenizer.save_pretrained(tmp_path / "level")
    run = start_evaluate(judged(tmp_path / "level", data, {"choice": ["quiz"], "limit": 4}), tmp_path / "run").wait().ok
    found = evaluation(tmp_path / "run")
    counted, tied, tied_raw, right, right_raw = len(tokenizer), 0, 0, 0, 0
    for _, options, answer in QUESTIONS[:4]:
        lengths = np.array([len(tokenizer.encode(o, add_special_tokens=False)) for o in options])
        raw = -np.log(model.config.vocab_size) * lengths
        per_byte = raw / np.array([len(o.encode()) for o in options])
        tied += int(np.isclose(per_byte, per_byte.max(), rtol=1e-9).sum() > 1)
        tied_raw += int((lengths == lengths.min()).sum() > 1)
        right += int(np.flatnonzero(np.isclose(per_byte, per_byte.max(), rtol=1e-9))[0] == answer)
        right_raw += int(lengths.argmin() == answer)
    assert counted > 256 and tied >= 1 and tied_raw >= 1
    counts = {name: of["quiz"] for name, of in found["counts"].items()}
    assert (counts["choice_tied_rows"], counts["choice_tied_rows_raw"]) == (tied, tied_raw)
    assert (counts["choice_correct"], counts["choice_correct_raw"]) == (right, right_raw)
    assert f"{tied} rows with several options of the best score, of which the first counts" in run.log.replace(
        "1 row ", "1 rows "
    )


def test_the_answer_may_be_a_text_of_another_column(ground: Path, data: Path, by_hand: ByHand, tmp_path: Path) -> None:
    """A text that several options have means the first of them."""
    entry = {"dataset": "quiz_text", "options_column": "texts", "answer_column": "right"}
    found = evaluated(judged(ground / "still", data, {"choice": [entry]}), tmp_path / "text")
    expected = [choices(by_hand, q, options, options.index(options[a]))[""] for q, options, a in QUESTIONS[:4]]
    assert found["choice_accuracy"]["quiz_text"] == sum(right for right, _ in expected) / 4
    assert found["choice_margin"]["quiz_text"] == pytest.approx(np.mean([margin for _, margin in expected]), abs=1e-6)


def test_texts_of_pre_training(ground: Path, data: Path, by_hand: ByHand, tmp_path: Path) -> None:
    """A text is whole with its end token; its first token has nothing before it."""
    config = judged(ground / "still", data, {"heldout": "texts"}, stage="pt")
    found = evaluated(config, tmp_path / "run")
    nats, tokens, cut = 0.0, 0, 0
    for question, answer in ANSWERS:
        ids = by_hand.ids(f"{question} {answer}<|im_end|>")
        cut += len(ids) > CUTOFF
        ids = ids[:CUTOFF]
        nats, tokens = nats + by_hand.nats(ids[:1], ids[1:]), tokens + len(ids) - 1
    assert found["heldout_loss"]["texts"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found["counts"]["heldout_tokens"]["texts"] == tokens
    assert found["counts"]["heldout_cut_rows"]["texts"] == cut


def test_the_final_model_of_a_training_is_judged(base: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """At the end of `train` and by the command, the figures are the same, and not those of the first model."""
    block = {"select": {"name": "loss", "interval": 6}, "evaluate": {"heldout": ["answers"]}}
    info = Path(base["dataset_dir"]) / "dataset_info.json"
    merged = tmp_path / "data"
    merged.mkdir()
    for folder in (info.parent, data):
        for file in folder.glob("*.jsonl"):
            (merged / file.name).symlink_to(file)
    both = json.loads(info.read_text()) | json.loads((data / "dataset_info.json").read_text())
    (merged / "dataset_info.json").write_text(json.dumps(both))
    run = train({**base, "dataset_dir": str(merged), "dataflex": block}, tmp_path / "run").ok
    written = evaluation(run.out)
    config = {key: value for key, value in base.items() if key != "do_train"} | {"dataset_dir": str(merged)}
    later = {**config, "model_name_or_path": str(run.out), "evaluate": {"heldout": ["answers"]}}
    first = {**config, "evaluate": {"heldout": ["answers"]}}
    for other, same in ((later, True), (first, False)):
        again = evaluated(other, tmp_path / f"alone-{same}")
        assert (again["heldout_loss"] == written["heldout_loss"]) == same


@pytest.mark.parametrize(
    ("file", "key"), [("config.json", "model_name_or_path"), ("adapter_config.json", "adapter_name_or_path")]
)
def test_the_figures_of_a_trained_model_are_not_those_of_another(
    ground: Path, data: Path, tmp_path: Path, file: str, key: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text("{}")
    config = judged(ground / "still", data, {"heldout": ["answers"]})
    run = start_evaluate(config, tmp_path / "run", hooks=["no_model"]).wait()
    assert_refused(run, f"{key}: {tmp_path / 'run'} holds a trained model, and another one would be judged; set {key}=")


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"heldot": ["answers"]}, "evaluate.heldot: unknown key; did you mean 'heldout'?"),
        ({"heldout": ["answer"]}, "evaluate.heldout: 'answer' is not defined"),
        ({"heldout": ["answers", "answers"]}, "evaluate.heldout: 'answers' is listed twice"),
        ({"choice": [{"dataset": "quiz", "options": "leters"}]}, "did you mean 'letters'?"),
        ({"choice": [{"options": "letters"}]}, "evaluate.choice[0].dataset is required"),
        ({"choice": [{"dataset": "quiz", "prompt": "question"}]}, "evaluate.choice[0].prompt has no effect"),
        (
            {"choice": [{"dataset": "quiz", "options_column": "option"}]},
            "has no column 'option'; did you mean 'options'?",
        ),
        ({"choice": [{"dataset": "answers", "options": "letters"}]}, "no row of 'answers' can be judged"),
        ({"generate": [{"dataset": "sums", "max_new_tokens": 0}]}, "max_new_tokens must be at least 1, got 0"),
        ({"generate": [{"dataset": "sums", "match": "numbr"}]}, "did you mean 'number'?"),
        ({"generate": 5}, "evaluate.generate must be a list of blocks or names, got 5"),
        ({"heldout": ["answers"], "limit": 0}, "evaluate.limit must be at least 1, got 0"),
        ({}, "evaluate names no data set; add heldout, choice, generate or tasks"),
        (None, "evaluate is required"),
        (7, "evaluate must be a block of keys, got 7"),
    ],
)
def test_a_mistake_ends_before_a_model_loads(ground: Path, data: Path, tmp_path: Path, block: Any, words: str) -> None:
    run = start_evaluate(judged(ground / "still", data, block), tmp_path / "run", hooks=["no_model"]).wait()
    assert_refused(run, words)
    assert not (tmp_path / "run" / "dataflex" / "evaluation.json").exists()


def test_all_mistakes_are_named_at_once(ground: Path, data: Path, tmp_path: Path) -> None:
    block = {"heldout": ["nobody"], "choice": [{"dataset": "quiz", "options": "leters"}], "limit": -1}
    config = judged(ground / "still", data, block, cutof_len=3, deepspeed="x.json")
    run = start_evaluate(config, tmp_path / "run", hooks=["no_model"]).wait()
    assert run.status == [2]
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    expected = (
        *("evaluate.heldout: 'nobody' is not defined", "evaluate.choice[0].options", "evaluate.limit"),
        *("cutof_len: unknown key", "deepspeed splits"),
    )
    assert len(lines) == len(expected), lines
    for words in expected:
        assert any(words in line for line in lines), lines


@pytest.mark.parametrize(
    ("keys", "dtype"), [({}, "float32"), ({"bf16": True}, "bfloat16"), ({"infer_dtype": "bfloat16"}, "bfloat16")]
)
def test_the_precision_is_the_one_that_is_asked_for(
    ground: Path, data: Path, found: dict[str, Any], tmp_path: Path, keys: dict[str, Any], dtype: str
) -> None:
    other = evaluated(judged(ground / "still", data, {"heldout": "answers"}, **keys), tmp_path / "run")
    assert other["about"]["measured"]["dtype"] == dtype
    loss, exact = other["heldout_loss"]["answers"], found["heldout_loss"]["answers"]
    assert (loss == pytest.approx(exact, rel=1e-6)) == (dtype == "float32")
    assert loss == pytest.approx(exact, rel=0.02)


@pytest.mark.slow
def test_a_task_of_lm_eval(ground: Path, data: Path, by_hand: ByHand, tmp_path: Path) -> None:
    """A task on local data through lm-eval's own interface has the accuracy of a computation by hand."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    kept = QUESTIONS[:4]
    (folder / "quiz.yaml").write_text(
        "task: quiz_of_our_own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data / 'quiz.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{options}}'\n"
        "doc_to_target: answer\nmetric_list: [{metric: acc}]\n"
    )
    block = {"tasks": ["quiz_of_our_own"], "task_folder": str(folder), "limit": 4}
    found = evaluated(judged(ground / "still", data, block), tmp_path / "run")
    right = 0
    for question, options, answer in kept:
        context = by_hand.ids(question)
        nats = [by_hand.nats(context, by_hand.ids(f"{question} {option}")[len(context) :]) for option in options]
        right += int(np.argmin(nats)) == answer
    assert found["lm_eval/acc"] == {"quiz_of_our_own": right / 4}
    assert found["counts"]["lm_eval_rows"] == {"quiz_of_our_own": 4}
    assert found["standard_errors"]["lm_eval/acc"]["quiz_of_our_own"] >= 0
    refused = start_evaluate(
        judged(ground / "still", data, block | {"tasks": ["quiz_of_our_own", "quiz_of_our_won"]}), tmp_path / "refused",
        hooks=["no_model"],
    ).wait()  # fmt: skip
    assert_refused(refused, "lm-eval has no task 'quiz_of_our_won'; did you mean 'quiz_of_our_own'?")


def test_tasks_without_lm_eval_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflex.config import evaluate
    from dataflex.errors import Mistakes

    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    mistakes = Mistakes()
    evaluate.read_evaluate({"tasks": "arc_easy"}, "evaluate", mistakes)
    with pytest.raises(ConfigError, match="the package lm-eval is not installed; it comes with the extra eval"):
        mistakes.settle()


def test_a_training_says_what_it_cannot_judge(base: dict[str, Any], tmp_path: Path) -> None:
    block = {"select": {"name": "loss", "interval": 6}, "evaluate": {"heldout": ["nobody"], "limt": 3}}
    run = train({**base, "dataflex": block}, tmp_path / "run", hooks=["no_model"])
    assert run.status == [2]
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert len(lines) == 2
    assert "dataflex.evaluate.limt: unknown key; did you mean 'limit'?" in lines[0]
    assert "dataflex.evaluate.heldout: 'nobody' is not defined" in lines[1]
    del block["evaluate"]["limt"]
    run = train({**base, "dataflex": block}, tmp_path / "other", hooks=["no_model"])
    assert_refused(run, "dataflex.evaluate.heldout: 'nobody' is not defined")
