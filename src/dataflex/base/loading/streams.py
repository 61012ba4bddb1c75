"""Streams of samples through LLaMA-Factory's own reading, templates and tokenization (`streaming: true`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
from datasets import IterableDataset
from llamafactory.data import converter, loader
from llamafactory.data import parser as data_parser

from dataflex.base import seams
from dataflex.base.checks.contents import sampled_all
from dataflex.base.checks.nodes import same_rows
from dataflex.base.loading.data import _evaluation, _joined, process_rows, read_raw
from dataflex.base.refusals import refusals
from dataflex.config.schema import MixConfig
from dataflex.data.streams import BlockReader, Place, Sample, Streams
from dataflex.errors import ConfigError, DataflexError

_LOOKED_AT = 1 << 30  # bytes of the files of a stream that are hashed when a run starts


def load_streams(
    mix: MixConfig,
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    stage: str,
    tokenizer: Any,
    processor: Any = None,
) -> dict[str, Any]:
    """As `load_domains`, with `train_dataset` a `Streams`. Evaluation data is read and kept as without streaming.

    Local files are read from the Arrow files that LLaMA-Factory converts them to, everything else as it comes.
    """
    names = list(data_args.dataset)
    with refusals():
        attributes = data_parser.get_dataset_list(names, data_args.dataset_dir)
    if mix.needs_sizes:
        _require_sizes(mix, names, attributes)
    held = list(data_args.eval_dataset or [])
    indexed = copy.copy(data_args)
    indexed.streaming = False
    local = not data_args.data_shared_file_system
    with training_args.main_process_first(desc="load dataset", local=local):
        raw = [
            _open(name, attribute, model_args, data_args, training_args, stage)
            for name, attribute in zip(names, attributes, strict=True)
        ]
        raw_eval = [read_raw(n, "eval_dataset", model_args, indexed, training_args, stage) for n in held]

    def process(dataset: Any, is_eval: bool) -> Any:
        origin = ("eval_dataset", list(zip(held, raw_eval, strict=True)))
        part = process_rows(
            dataset, indexed, training_args, stage, template, tokenizer, processor, is_eval=is_eval, origin=origin
        )
        if part is None:
            raise ConfigError("eval_dataset: no row is left after tokenization")
        return part

    with training_args.main_process_first(desc="pre-process dataset", local=local):
        evaluation = _evaluation(_joined(dict(zip(held, raw_eval, strict=True)), indexed), {}, indexed, process)

    with refusals():
        made = loader._get_dataset_processor(data_args, stage, template, tokenizer, processor)
        converters = [converter.get_dataset_converter(a.formatting, a, data_args) for a in attributes]
    sources = [StreamedData(dataset, convert, made) for dataset, convert in zip(raw, converters, strict=True)]
    assert mix.stream_block is not None
    rows = mix.stream_block

    def first_blocks() -> list[str]:
        return [_first_block(source, name, rows, made) for source, name in zip(sources, names, strict=True)]

    blocks = same_rows(lambda: dict(zip(names, first_blocks(), strict=True)), "dataset")
    facts: dict[str, Any] = {}
    for name, attribute, content in zip(names, attributes, blocks.values(), strict=True):
        facts[f"entry of {name}"] = {k: v for k, v in sorted(vars(attribute).items()) if v is not None}
        facts[f"files of {name}"] = _files(attribute, data_args)
        facts[f"content of {name}"] = content
    contents = same_rows(
        lambda: {name: _contents(a, data_args) for name, a in zip(names, attributes)}, "dataset", "files"
    )
    facts |= {f"contents of {name}": found for name, found in contents.items()}
    streams = Streams(sources, names, rows_per_block=rows, sizes=[a.num_samples or 0 for a in attributes], facts=facts)
    return {"train_dataset": streams, **({} if evaluation is None else {"eval_dataset": evaluation})}


class StreamedData:
    """A `Source`: rows as LLaMA-Factory's converter gives them, samples as its processor makes them.

    The converter is applied here and not by `IterableDataset.map`, since the state of a mapped data set does not always lead
    back to the row it was taken at (datasets 4.0, data with known columns).
    """

    def __init__(self, dataset: IterableDataset, convert: Any, processor: Any) -> None:
        self.dataset, self.convert, self.processor = dataset, convert, processor
        self._rows: Any = iter(())

    def seek(self, state: Mapping[str, Any] | None) -> None:
        self.dataset.load_state_dict(copy.deepcopy(state))  # type: ignore[arg-type]
        self._rows = iter(self.dataset)

    def state(self) -> dict[str, Any]:
        return self.dataset.state_dict()

    def read(self, count: int) -> list[dict[str, Any]]:
        return [self.convert(row) for row in islice(self._rows, count)]

    def samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        made = self.processor.preprocess_dataset({column: [row[column] for row in rows] for column in rows[0]})
        columns = list(made.keys())
        return [dict(zip(columns, values, strict=True)) for values in zip(*made.values(), strict=True)]


def _open(
    name: str, attribute: Any, model_args: Any, data_args: Any, training_args: Any, stage: str
) -> IterableDataset:
    """The rows of one data set as they are stored, in one order whatever the number of loader workers."""
    found: list[Any] = []

    def align_dataset(dataset: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(dataset)
        return dataset

    whole, alone = copy.copy(training_args), copy.copy(data_args)
    whole.dataloader_num_workers = 1  # the number of pieces LLaMA-Factory cuts a file into; of none it reads nothing
    if attribute.load_from != "file":
        alone.preprocessing_num_workers = None  # what is not converted first cannot be by several processes
    with seams.replaced((loader.__name__, "align_dataset", align_dataset)):
        read_raw(name, "dataset", model_args, alone, whole, stage)
    dataset = found[0]
    return dataset if isinstance(dataset, IterableDataset) else dataset.to_iterable_dataset()


def _require_sizes(mix: MixConfig, names: Sequence[str], attributes: Sequence[Any]) -> None:
    for name, attribute in zip(names, attributes, strict=True):
        if not attribute.num_samples:
            asks, instead = f"mix: {mix.name}", "mix: static with dataflex.mix.proportions"
            if not mix.component.needs_sizes:
                asks, instead = (
                    "dataflex.mix.initial: stratified",
                    "dataflex.mix.initial: uniform or dataflex.mix.proportions",
                )
                if mix.component.default_initial == "stratified":
                    asks += f", the default of {mix.name},"
            raise ConfigError(
                f"{asks} goes by the number of rows, which a stream does not have: give num_samples of {name!r} in"
                f" dataset_info.json, or {instead}"
            )


def _first_block(source: StreamedData, name: str, rows: int, processor: Any) -> str:
    """The digest of the first block that has a sample, an example of which is shown as LLaMA-Factory does."""
    reader = BlockReader(source, name, 0, rows, 0, shuffle=False)
    reader.seek(Place())
    try:
        block = reader.next()
    except ConfigError:
        raise
    except DataflexError as error:
        fits = isinstance(error.__cause__, AttributeError | KeyError | IndexError | TypeError)
        hint = "; do the columns and formatting in dataset_info.json fit its rows?" if fits else ""
        raise ConfigError(f"{error}{hint}") from error
    print("training example:")
    processor.print_data_example(block.samples[0])
    source.seek(None)
    return block.digest


def _local(attribute: Any, data_args: Any) -> list[tuple[str, Path]] | None:
    """(name, file) in the order of reading where the files are on this machine; None elsewhere."""
    hosted = attribute.load_from not in ("file", "script")
    path = Path(attribute.dataset_name if hosted else Path(str(data_args.dataset_dir)) / attribute.dataset_name)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        found = path.iterdir() if attribute.load_from == "file" else sorted(path.rglob("*"))
        files = [f for f in found if attribute.load_from == "file" or not _hidden(f.relative_to(path))]
    else:
        return None
    return [(str(f.relative_to(path)), f) for f in files if f.is_file()]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _files(attribute: Any, data_args: Any) -> str | None:
    """Names, order and sizes of the files."""
    found = _local(attribute, data_args)
    if found is None:
        return None
    listed = [(name, file.stat().st_size) for name, file in found]
    total = sum(size for _, size in listed)
    return f"{len(listed)} files, {total} bytes ({xxhash.xxh3_64_hexdigest(repr(listed).encode())})"


def _contents(attribute: Any, data_args: Any) -> str | None:
    """A hash of samples of the files: a stream may be too large to read before every start."""
    found = _local(attribute, data_args)
    return None if found is None else sampled_all(found, _LOOKED_AT)
