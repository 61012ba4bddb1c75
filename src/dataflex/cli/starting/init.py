"""`init`"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from dataflex import notices
from dataflex.cli.parsing import examples
from dataflex.errors import ConfigError

_FAMILIES = ("select", "mix", "weight", "order")
_FILE = "dataflex.yaml"
_STEPS = 500
_HEAD = """\
# A training on LLaMA-Factory with the dataflex block at the end.
#
#     dataflex-cli train {file}
#
# Keys outside of the block are LLaMA-Factory's own. Replace the names of the model and of the data sets first.

### model
model_name_or_path: Qwen/Qwen2.5-0.5B  # a directory, or a name on the hub
template: qwen  # the chat template of the model

### data: names in dataset_info.json of the folder dataset_dir
dataset_dir: data
dataset: {domains}  # each of them is a domain of a mixture
cutoff_len: 2048  # tokens; longer rows are cut

### training
stage: sft  # or pt, rm, dpo, kto
do_train: true
finetuning_type: lora  # or full
lora_rank: 8
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
learning_rate: 1.0e-4
# bf16: true  # on a GPU that has it
lr_scheduler_type: cosine
max_steps: {steps}  # or num_train_epochs
seed: 42

### held-out rows: did it help?
val_size: 0.05  # or eval_dataset, for data sets of their own
eval_strategy: steps
eval_steps: 100
per_device_eval_batch_size: 4

### output
output_dir: runs/{stem}
logging_steps: 10
save_steps: 100  # the same command, given again, goes on from the newest checkpoint
report_to: none  # or wandb, tensorboard, ...
"""
_BLOCK = """
### which rows are trained on, how much of each domain, how hard each row pulls, and in which order they come
dataflex:
"""


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Write a commented configuration to start from: LLaMA-Factory's keys, and a dataflex block with the components asked"
        " for. Without any it has a selector by loss, which needs nothing beside the data."
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, default=Path(_FILE), help=f"what is written ({_FILE})"
    )
    for family in _FAMILIES:
        parser.add_argument(f"--{family}", metavar="COMPONENT", help=f"a name of `dataflex-cli list` for `{family}`")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.epilog = examples(
        "dataflex-cli init",
        "dataflex-cli init mix.yaml --mix odm",
        "dataflex-cli init both.yaml --select rds --weight loss",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    chosen = {family: getattr(options, family) for family in _FAMILIES if getattr(options, family)}
    if options.file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{options.file} must end in .yaml or .yml")
    if options.file.exists() and not options.force:
        raise ConfigError(f"{options.file} is there already; --force writes over it")
    text = starter(options.file, chosen or {"select": "loss"})
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(text, encoding="utf-8")
    notices.show(f"wrote {options.file}; name your model and data sets in it, then: dataflex-cli train {options.file}")
    return 0


def starter(file: Path, chosen: dict[str, str]) -> str:
    """The text of a configuration with components by family. ConfigError for a name that no component has."""
    from dataflex.cli.blocks import DOMAINS, block_lines
    from dataflex.cli.components.found import find

    classes = {family: find(name, family)[0].load() for family, name in chosen.items()}
    if list(classes) == ["weight"] and getattr(classes["weight"], "goes_by_domain", False):
        # it must know the data set of each row, which a run with weight alone does not
        chosen = {"mix": "static", **chosen}
        classes["mix"] = find("static", "mix")[0].load()
    lines: list[str] = []
    for family, name in chosen.items():
        lines += [f"  {line}" for line in block_lines(family, name, classes[family])]
    head = _HEAD.format(file=file, domains=",".join(DOMAINS), steps=_STEPS, stem=file.stem)
    return head + _BLOCK + "\n".join(lines) + "\n"
