"""The rows that a model is judged by: held-out answers, questions with options, prompts with references."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataflex.base.evaluation.reading import AnswerTemplate, ReadRows, column_of, cut_prompt, read_rows
from dataflex.base.loading.carried import row_indices
from dataflex.base.loading.data import process_rows
from dataflex.base.loading_arguments import Loading
from dataflex.config.schema import ChoiceKeys, GenerateKeys
from dataflex.errors import ConfigError
from dataflex.evaluating.choice import ChoiceRow, ChoiceRows
from dataflex.evaluating.generation import GenerationRows
from dataflex.evaluating.heldout import HeldOutRows
from dataflex.evaluating.likelihood import LabelledRow
from dataflex.evaluating.matching import final_number
from dataflex.evaluating.options import Question, Unusable, from_columns, from_prompt
from dataflex.signals.cross_entropy import IGNORE

_NO_ROOM = "one of its options has no room within cutoff_len"
_LONGEST = 1 << 30  # a cutoff_len that cuts nothing


# -- held-out answers ------------------------------------------------------------------------------------------------


def heldout_rows(loading: Loading, name: str, key: str, limit: int | None) -> HeldOutRows:
    """The rows of a data set as a training reads them, each an example by itself."""
    read = read_rows(loading, name, key, limit)
    ids, labels, index = _processed(loading, read, read.aligned)
    suspects = [place for place, own in enumerate(ids) if len(own) >= loading.data_args.cutoff_len]
    whole, cut = np.ones(len(ids), dtype=bool), 0
    if suspects:
        full, full_labels, _ = _processed(_uncut(loading), read, read.aligned.select(index[suspects]))
        for place, own, own_labels in zip(suspects, full, full_labels, strict=True):
            cut += len(own) > len(ids[place])
            whole[place] = _count(own_labels) == _count(labels[place])
    of_answers = _answer_bytes(loading, read.aligned.select(index))
    left_out = Counter({"LLaMA-Factory takes them for no example": len(read) - len(ids)})
    rows = [LabelledRow(own, own_labels) for own, own_labels in zip(ids, labels, strict=True)]
    if not any(row.answer_tokens for row in rows):
        raise ConfigError(f"{key}: no row of {name!r} has an answer token within cutoff_len")
    return HeldOutRows(rows, of_answers, whole, cut, +left_out)


def _processed(loading: Loading, read: ReadRows, aligned: Any) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Token ids, labels, and the index among the read rows, of the rows that LLaMA-Factory makes."""
    part = process_rows(loading, aligned, is_eval=False, origin=(read.key, [(read.name, aligned)]))
    if part is None or len(part) == 0:
        raise ConfigError(f"{read.key}: no row of {read.name!r} is left after tokenization")
    ids = [list(own) for own in part["input_ids"]]
    labels = [list(own) for own in part["labels"]] if "labels" in part.column_names else ids
    return ids, labels, row_indices(part)


def _uncut(loading: Loading) -> Loading:
    data_args = copy.copy(loading.data_args)
    data_args.cutoff_len = _LONGEST
    return replace(loading, data_args=data_args)


def _count(labels: Sequence[int]) -> int:
    return sum(label != IGNORE for label in labels)


def _answer_bytes(loading: Loading, aligned: Any) -> np.ndarray:
    """Bytes of the text that is labelled: the whole text (pt), all answers of a row, or with `mask_history` the last."""
    if loading.stage == "pt":
        texts = [[prompt[0]["content"]] for prompt in aligned["_prompt"]]
    else:
        earlier = [[] if loading.data_args.mask_history else prompt[1::2] for prompt in aligned["_prompt"]]
        texts = [
            [message["content"] for message in [*before, *response]]
            for before, response in zip(earlier, aligned["_response"], strict=True)
        ]
    return np.array([sum(len(text.encode()) for text in own) for own in texts], dtype=np.int64)


# -- questions with options ------------------------------------------------------------------------------------------


def choice_rows(loading: Loading, keys: ChoiceKeys, key: str, limit: int | None) -> ChoiceRows:
    """The questions of a data set; those that cannot be judged are counted by reason."""
    read = read_rows(loading, keys.dataset, f"{key}.dataset", limit)
    given = answers = None
    if keys.options == "column":
        given = column_of(read, keys.options_column, f"{key}.options_column")
        answers = column_of(read, keys.answer_column, f"{key}.answer_column")
    encode, left_out, rows, cut = AnswerTemplate(loading.template, loading.tokenizer), Counter[str](), [], 0
    for place, row in enumerate(read.aligned):
        try:
            text = _last_message(row)
            if given is not None and answers is not None:
                question = Question(text, *from_columns(given[place], answers[place]))
            else:
                question = from_prompt(text, _response(row))
                if keys.prompt == "question":
                    row = _asking(row, question.text)
            found, was_cut = _encoded_question(encode, row, question, loading.data_args.cutoff_len)
        except Unusable as why:
            left_out[str(why)] += 1
            continue
        rows.append(found)
        cut += was_cut
    _some_left(rows, left_out, key, keys.dataset)
    return ChoiceRows(rows, cut, left_out)


def _encoded_question(
    encode: AnswerTemplate, row: Mapping[str, Any], question: Question, cutoff: int
) -> tuple[ChoiceRow, bool]:
    """All options of a question have the same prompt, which is cut where the longest of them leaves no room."""
    prompt, answers = encode.question(row, question.options)
    if not all(answers):
        raise Unusable("one of its options has no token of its own")
    room = cutoff - max(map(len, answers))
    if room < 1:
        raise Unusable(_NO_ROOM)
    kept = cut_prompt(prompt, room)
    sizes = np.array([len(option.encode()) for option in question.options], dtype=np.int64)
    return ChoiceRow([LabelledRow.of(kept, own) for own in answers], sizes, question.answer), len(kept) < len(prompt)


def _asking(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A row whose last message is `text`."""
    *before, last = row["_prompt"]
    return {**row, "_prompt": [*before, {**last, "content": text}]}


def _last_message(row: Mapping[str, Any]) -> str:
    """The content of the last message of a prompt."""
    if len(row["_prompt"]) % 2 != 1:
        raise Unusable("its prompt does not end with a message of the user")
    return str(row["_prompt"][-1]["content"])


def _response(row: Mapping[str, Any]) -> str:
    if len(row["_response"]) != 1:
        raise Unusable("it has no single response")
    return str(row["_response"][0]["content"])


def _some_left(rows: Sequence[Any], left_out: Mapping[str, int], key: str, name: str) -> None:
    if not rows:
        why = max(left_out, key=lambda reason: left_out[reason])
        raise ConfigError(f"{key}: no row of {name!r} can be judged: {why}")


# -- prompts with references -----------------------------------------------------------------------------------------


def generation_rows(loading: Loading, keys: GenerateKeys, key: str, limit: int | None) -> GenerationRows:
    """Prompts and responses of a data set; rows that cannot be judged are counted by reason."""
    read = read_rows(loading, keys.dataset, f"{key}.dataset", limit)
    encode, left_out, cut = AnswerTemplate(loading.template, loading.tokenizer), Counter[str](), 0
    prompts, references = list[list[int]](), list[str]()
    for row in read.aligned:
        try:
            _last_message(row)
            reference = _response(row)
            if keys.match == "number" and final_number(reference) is None:
                raise Unusable("its response has no number")
        except Unusable as why:
            left_out[str(why)] += 1
            continue
        prompt = encode.prompt(row)
        prompts.append(cut_prompt(prompt, loading.data_args.cutoff_len))
        references.append(reference)
        cut += len(prompts[-1]) < len(prompt)
    _some_left(prompts, left_out, key, keys.dataset)
    return GenerationRows(prompts, references, cut, left_out)
