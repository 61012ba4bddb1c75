"""`evaluate`: the figures by which a finished model is judged, written to `dataflex/evaluation.json` of its output_dir."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.base import seams
from dataflex.base.checks.arguments import check_arguments
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import refusals
from dataflex.config.schema import EvaluateConfig, RunConfig
from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.evaluating.figures import Figures
from dataflex.locking import alone_in
from dataflex.masking import masked
from dataflex.notices import say
from dataflex.talking.talker import measuring
from dataflex.values import words
from dataflex.version import __version__

# Of LLaMA-Factory's keys, those that say what was evaluated and how.
_ABOUT = (
    "model_name_or_path", "adapter_name_or_path", "template", "cutoff_len", "per_device_eval_batch_size", "bf16", "fp16",
    "infer_dtype", "quantization_bit", "dataset_dir", "stage", "max_samples", "enable_thinking",
)  # fmt: skip


def evaluate(config: RunConfig) -> None:
    """Judge the model by all data sets of the block, on every rank. Rank 0 writes the file."""
    assert config.evaluate is not None
    config = check_arguments(config)
    say(*config.notices)
    seams.check()
    output_dir = Path(str(config.llamafactory["output_dir"]))
    _check_model(config.llamafactory, output_dir)
    with alone_in(output_dir), measuring(config.llamafactory, output_dir):
        _evaluate(config, output_dir)


def _check_model(keys: Mapping[str, Any], output_dir: Path) -> None:
    """ConfigError where output_dir holds a trained model and another one would be judged: its figures would be taken for those
    of the trained one."""
    held = {"adapter_name_or_path": "adapter_config.json", "model_name_or_path": "config.json"}
    key = next((key for key, file in held.items() if (output_dir / file).is_file()), None)
    if key is None or output_dir.resolve() in [Path(path).resolve() for path in words(keys.get(key))]:
        return
    raise ConfigError(
        f"{key}: {output_dir} holds a trained model, and another one would be judged; set {key}={output_dir}, or another"
        " output_dir"
    )


@dataclass(frozen=True)
class _Task:
    """A data set with what is measured on it. name: stands for it in lines."""

    name: str
    data_set: str
    rows: Any
    measure: Callable[..., Figures]
    """(model, rows) -> figures."""


def _evaluate(config: RunConfig, output_dir: Path) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    from dataflex.base.evaluation.model import load_evaluated
    from dataflex.distributed.collectives import rank
    from dataflex.evaluating.record import evaluation_record, write_evaluation

    assert config.evaluate is not None
    begin = time.perf_counter()
    with refusals():
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(dict(config.llamafactory))
        tokenizer_module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    stage = str(config.llamafactory["stage"])
    loading = Loading(template, model_args, data_args, training_args, stage, **tokenizer_module)
    with loading.first_process("load evaluation data"):
        tasks = _tasks(config.evaluate, loading)
    harness = _harness(config.evaluate, loading)
    model = load_evaluated(loading, finetuning_args)
    found = []
    for task in tasks:
        found.append((task.data_set, task.measure(model, task.rows)))
        say(*_lines(task.name, found[-1][1]))
    for name, figures in harness(model):
        found.append((name, figures))
        say(*_lines(f"task {name}", figures))
    if rank() != 0:
        return
    measured = {
        "limit": config.evaluate.limit,
        "dtype": str(model.dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    keys = {key: value for key in _ABOUT if (value := masked(config.llamafactory).get(key)) is not None}
    about = {"llamafactory": keys, "measured": measured, "versions": _versions()}
    say(f"written to {write_evaluation(output_dir, evaluation_record(found, about))}")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"dataflex": __version__, **{p: version(p) for p in ("llamafactory", "torch", "transformers")}}


def _tasks(config: EvaluateConfig, loading: Loading) -> list[_Task]:
    """What is to be measured, with the rows. ConfigError with all that is wrong with the data."""
    from dataflex.base.evaluation.rows import choice_rows, generation_rows, heldout_rows

    mistakes, tasks = Mistakes(), list[_Task]()

    def add(name: str, data_set: str, load: Callable[[], Any], measure: Callable[..., Figures]) -> None:
        with mistakes.noting():
            tasks.append(_Task(name, data_set, load(), measure))

    load: Callable[[], Any]
    for name in config.heldout:
        load = partial(heldout_rows, loading, name, f"{config.path}.heldout", config.limit)
        add(f"heldout {name}", name, load, partial(_heldout, loading=loading))
    for index, choice in enumerate(config.choice):
        load = partial(choice_rows, loading, choice, f"{config.path}.choice[{index}]", config.limit)
        add(f"choice {choice.dataset}", choice.dataset, load, partial(_chosen, loading=loading))
    for index, entry in enumerate(config.generate):
        load = partial(generation_rows, loading, entry, f"{config.path}.generate[{index}]", config.limit)
        add(f"generate {entry.dataset}", entry.dataset, load, partial(_generated, keys=entry, loading=loading))
    mistakes.settle()
    return tasks


def _harness(config: EvaluateConfig, loading: Loading) -> Callable[[Any], list[tuple[str, Figures]]]:
    """Measures the tasks of lm-eval, on rank 0 alone. ConfigError for a task that there is not."""
    if not config.tasks:
        return lambda model: []
    from dataflex.distributed.collectives import decide
    from dataflex.evaluating.harness import task_figures, task_manager

    manager, mistakes = task_manager(config.task_folder), Mistakes()
    for name in config.tasks:
        if name not in manager.all_tasks:
            near = nearest(name, manager.all_tasks)
            mistakes.note(ConfigError(f"{config.path}.tasks: lm-eval has no task {name!r}{near}"))
    mistakes.settle()
    batch_rows = loading.training_args.per_device_eval_batch_size

    def measure(model: Any) -> list[tuple[str, Figures]]:
        return decide(
            lambda: task_figures(
                model, loading.tokenizer, manager, config.tasks, limit=config.limit, batch_rows=batch_rows
            )
        )

    return measure


def _likelihoods(model: Any, loading: Loading, name: str) -> Callable[[Sequence[Any]], np.ndarray]:
    from dataflex.evaluating.likelihood import log_likelihoods

    return partial(
        log_likelihoods,
        model,
        batch_rows=loading.training_args.per_device_eval_batch_size,
        pad=loading.tokenizer.pad_token_id,
        device=loading.training_args.device,
        name=name,
    )


def _heldout(model: Any, rows: Any, loading: Loading) -> Figures:
    from dataflex.evaluating.heldout import heldout_figures

    return heldout_figures(rows, _likelihoods(model, loading, "held-out loss"))


def _chosen(model: Any, rows: Any, loading: Loading) -> Figures:
    from dataflex.evaluating.choice import choice_figures

    return choice_figures(rows, _likelihoods(model, loading, "options"))


def _generated(model: Any, rows: Any, keys: Any, loading: Loading) -> Figures:
    from dataflex.evaluating.generation import generation_figures, greedy_answers

    answers = greedy_answers(
        model,
        rows.prompts,
        max_new_tokens=keys.max_new_tokens,
        stop=loading.template.get_stop_token_ids(loading.tokenizer),
        pad=loading.tokenizer.pad_token_id,
        batch_rows=loading.training_args.per_device_eval_batch_size,
        device=loading.training_args.device,
    )
    texts = [loading.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
    return generation_figures(rows, answers, texts, keys.match == "number")


def _lines(task: str, figures: Figures) -> list[str]:
    """What is said of a data set once it is measured."""
    said = []
    for name, value in figures.metrics.items():
        error = figures.errors.get(name)
        said.append(f"{name} {value:.4f}{'' if error is None else f' ± {error:.4f}'}")
    total = next(iter(figures.counts.values()), None)
    lines = [f"{task}{'' if total is None else f' ({_rows(total)})'}: {', '.join(said)}"]
    for name, count in figures.counts.items():
        if count and (remark := _REMARKS.get(name.partition("_")[2])) is not None:
            lines.append(f"{task}: {_rows(count)} {remark}")
    return lines + [f"{task}: {_rows(count)} left out: {why}" for why, count in figures.reasons.items()]


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


# By what the name of a count says after its metric.
_REMARKS = {
    "cut_rows": "cut at cutoff_len",
    "tied_rows": "with several options of the best score, of which the first counts",
    "unended_rows": "with an answer that does not end within max_new_tokens",
}
