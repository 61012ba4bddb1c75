"""Where LLaMA-Factory is entered: which module attribute holds a stage's trainer and its data loading.

Attributes are replaced for the length of one call and put back. `check` fails with one clear line if a release has moved
them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from dataflex.base.refusals import refusing
from dataflex.errors import DataflexError


@dataclass(frozen=True)
class StageSeam:
    """Where a stage looks up what it calls."""

    workflow: str
    """The module whose `get_dataset` it calls."""
    trainer_module: str
    """The module that holds its trainer."""
    trainer: str
    """The name of the trainer there."""


STAGES = {
    "pt": StageSeam("llamafactory.train.pt.workflow", "llamafactory.train.pt.workflow", "CustomTrainer"),
    "sft": StageSeam("llamafactory.train.sft.workflow", "llamafactory.train.sft.workflow", "CustomSeq2SeqTrainer"),
    "rm": StageSeam("llamafactory.train.rm.workflow", "llamafactory.train.rm.workflow", "PairwiseTrainer"),
    # run_dpo imports its trainer when called
    "dpo": StageSeam("llamafactory.train.dpo.workflow", "llamafactory.train.dpo.trainer", "CustomDPOTrainer"),
    "kto": StageSeam("llamafactory.train.kto.workflow", "llamafactory.train.kto.workflow", "CustomKTOTrainer"),
}

# Private functions used, with the parameters they must take.
_SIGNATURES = {
    ("llamafactory.data.loader", "_get_merged_dataset"): (
        "dataset_names", "model_args", "data_args", "training_args", "stage", "return_dict",
    ),
    ("llamafactory.data.loader", "_get_preprocessed_dataset"): (
        "dataset", "data_args", "training_args", "stage", "template", "tokenizer", "processor", "is_eval",
    ),
    ("llamafactory.data.loader", "align_dataset"): ("dataset", "dataset_attr", "data_args", "training_args"),
    ("llamafactory.data.converter", "get_dataset_converter"): ("name", "dataset_attr", "data_args"),
    ("llamafactory.data.parser", "get_dataset_list"): ("dataset_names", "dataset_dir"),
    ("llamafactory.data.loader", "_get_dataset_processor"): (
        "data_args", "stage", "template", "tokenizer", "processor", "do_generate",
    ),
    ("llamafactory.data.template", "Template.encode_multiturn"): (
        "self", "tokenizer", "messages", "system", "tools", "discarding_history_cot",
    ),
    ("llamafactory.data.processor", "SupervisedDatasetProcessor._encode_data_example"): (
        "self", "prompt", "response", "system", "tools", "images", "videos", "audios",
    ),
    ("llamafactory.data.processor", "FeedbackDatasetProcessor._encode_data_example"): (
        "self", "prompt", "response", "kl_response", "system", "tools", "images", "videos", "audios",
    ),
    ("llamafactory.data.processor", "PairwiseDatasetProcessor._encode_data_example"): (
        "self", "prompt", "response", "system", "tools", "images", "videos", "audios",
    ),
    ("llamafactory.data.loader", "get_dataset"): (
        "template", "model_args", "data_args", "training_args", "stage", "tokenizer", "processor",
    ),
    ("llamafactory.data.data_utils", "split_dataset"): ("dataset", "eval_dataset", "data_args", "seed"),
    ("llamafactory.train.tuner", "_training_function"): ("config",),
    ("llamafactory.hparams.parser", "get_last_checkpoint"): ("folder",),
}  # fmt: skip
# Used with Ray alone, and there with Ray alone.
_RAY_SIGNATURES = {
    ("llamafactory.train.tuner", "_ray_training_function"): ("ray_args", "config"),
    ("llamafactory.train.tuner", "Worker._training_function"): ("self", "config"),
    ("llamafactory.train.tuner", "get_placement_group"): ("num_workers",),
    ("llamafactory.train.tuner", "get_ray_head_node_ip"): (),
    ("llamafactory.train.tuner", "get_ray_remote_config_for_worker"): (
        "placement_group", "bundle_idx", "rank", "world_size", "master_addr", "master_port", "env",
    ),
}  # fmt: skip


def check(*, on_ray: bool = False) -> None:
    """Raise DataflexError if the installed LLaMA-Factory does not have the seams this version attaches to."""
    for (module, name), parameters in (_SIGNATURES | (_RAY_SIGNATURES if on_ray else {})).items():
        found = tuple(inspect.signature(attribute(module, name)).parameters)
        if found != parameters:
            raise DataflexError(
                f"this version of dataflex needs llamafactory 0.9.5: {module}.{name} takes {', '.join(found)}"
                f" instead of {', '.join(parameters)}"
            )


def attribute(module: str, name: str) -> Any:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise DataflexError(f"this version of dataflex needs llamafactory 0.9.5: {error}") from error


def that_may_refuse(stage: str, *, data: bool) -> list[tuple[str, str, Any]]:
    """The calls of a training of `stage` that read arguments and tokenizer, and data (`get_dataset`, where it is not replaced by
    ours), as functions whose errors are refusals."""
    workflow = f"llamafactory.train.{stage}.workflow"
    calls = [(workflow, "load_tokenizer"), (workflow, "get_template_and_fix_tokenizer")]
    calls += [("llamafactory.train.tuner", "get_train_args"), *([(workflow, "get_dataset")] if data else [])]
    return [(module, name, refusing(attribute(module, name))) for module, name in calls]


def of_progress() -> list[tuple[str, str, Any]]:
    """The Trainer's own bars and printed logs, in whose place evaluations announce themselves."""
    from dataflex.base.commands.callbacks import EvaluationProgress

    return [
        ("transformers.trainer", name, EvaluationProgress) for name in ("PrinterCallback", "DEFAULT_PROGRESS_CALLBACK")
    ]


@contextmanager
def replaced(*changes: tuple[str, str, Any]) -> Iterator[None]:
    """(module, attribute, value) for the length of the block."""
    with ExitStack() as stack:
        for module_name, name, value in changes:
            module = importlib.import_module(module_name)
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield
