"""Streams of samples through LLaMA-Factory's own reading, templates and tokenization (`streaming: true`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash
from datasets import IterableDataset
from llamafactory.data import converter, loader
from llamafactory.data import parser as data_parser

from dataflex.base import seams
from dataflex.base.checks.contents import sampled_all
from dataflex.base.checks.nodes import same_rows
from dataflex.base.loading.carried import Carried, CarryingProcessor
from dataflex.base.loading.data import load_evaluation
from dataflex.base.loading.reading import ReadData, read_data, read_stored
from dataflex.base.loading.split import assigned_rows
from dataflex.base.loading.stream_sources import StreamedData, filtered_streams, streams_of_domains
from dataflex.base.loading.weight_column import WeightColumn
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import refusals
from dataflex.config.refusals import domains as domains_refused
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DATA_SETS, DomainsKeys, MixConfig
from dataflex.data.streams import BlockReader, Source, StreamPosition, Streams
from dataflex.errors import ConfigError, DataflexError

_LOOKED_AT = 1 << 30  # bytes of the files of a stream that are hashed when a run starts


def load_streams(mix: MixConfig, loading: Loading, carried: Carried, spec: DomainsKeys = DATA_SETS) -> dict[str, Any]:
    """As `load_domains`, with `train_dataset` a `Streams`. Evaluation data is read and kept as without streaming.

    Local files are read from the Arrow files that LLaMA-Factory converts them to, everything else as it comes. Domains that
    rows name are found in local files: each domain is a stream of its rows, in their order, data set by data set.
    """
    data_args, indexed = loading.data_args, loading.indexed()
    names = list(data_args.dataset)
    with refusals():
        attributes = data_parser.get_dataset_list(names, data_args.dataset_dir)
    elsewhere = _from_elsewhere(spec, attributes, names)
    if mix.needs_sizes and (spec == DATA_SETS or elsewhere):
        _require_sizes(mix, names, attributes, divided=elsewhere)
    with loading.first_process("load dataset"):
        if spec == DATA_SETS or elsewhere:
            raw = [_open(name, attribute, loading) for name, attribute in zip(names, attributes, strict=True)]
        else:
            raw = [_indexed(name, loading) for name in names]
        evaluated = {name: read_data(indexed, name, "eval_dataset") for name in data_args.eval_dataset or []}
    with loading.first_process("pre-process dataset"):
        evaluation = load_evaluation(indexed, evaluated)

    with refusals():
        processor: Any = loader._get_dataset_processor(
            data_args, loading.stage, loading.template, loading.tokenizer, loading.processor
        )
        converters = [converter.get_dataset_converter(a.formatting, a, data_args) for a in attributes]
    if carried.weights is not None:
        processor = CarryingProcessor(processor)
    weights = [carried.weight_column(name, attribute) for name, attribute in zip(names, attributes, strict=True)]
    readers = dict(zip(names, zip(raw, converters, weights, strict=True), strict=True))
    sources, sizes, left_out = _sources(spec, dict(zip(names, attributes, strict=True)), readers, processor, loading)
    assert mix.stream_block is not None
    block = mix.stream_block

    def first_blocks() -> dict[str, str]:
        return {name: _first_block(source, name, block, processor) for name, source in sources.items()}

    blocks, facts = same_rows(first_blocks, "dataset"), dict[str, Any]()
    for name, attribute in zip(names, attributes, strict=True):
        facts[f"entry of {name}"] = {k: v for k, v in sorted(vars(attribute).items()) if v is not None}
        facts[f"files of {name}"] = _files(attribute, data_args)
    facts |= {f"content of {name}": found for name, found in blocks.items()}
    contents = same_rows(
        lambda: {name: _contents(a, data_args) for name, a in zip(names, attributes)}, "dataset", "files"
    )
    facts |= {f"contents of {name}": found for name, found in contents.items()}
    streams = Streams(list(sources.values()), list(sources), rows_per_block=block, sizes=sizes, facts=facts)
    return {
        "train_dataset": streams,
        "left_out": left_out,
        **({} if evaluation is None else {"eval_dataset": evaluation}),
    }


def _sources(
    spec: DomainsKeys,
    attributes: Mapping[str, Any],
    readers: Mapping[str, tuple[Any, Any, WeightColumn | None]],
    processor: Any,
    loading: Loading,
) -> tuple[Mapping[str, Source], list[int], Mapping[str, int]]:
    """The stream of each domain, the rows of each (0: not known), and the rows that are left out. readers: of each data set its
    rows, converter and weights."""
    if spec == DATA_SETS:
        streams = {name: StreamedData(*parts, processor) for name, parts in readers.items()}
        return streams, [attribute.num_samples or 0 for attribute in attributes.values()], {}
    if any(attribute.load_from != "file" for attribute in attributes.values()):
        ((name, (_, convert, weights)),) = readers.items()
        filtered = filtered_streams(
            name, lambda: _open(name, attributes[name], loading), convert, weights, processor, spec
        )
        return filtered, [0] * len(filtered), {}
    read = {name: ReadData(attributes[name], rows, rows) for name, (rows, _, _) in readers.items()}
    assigned = assigned_rows(read, spec, loading)
    found = streams_of_domains(assigned, readers, processor)
    return found, [len(stream) for stream in found.values()], assigned.left_out


def _open(name: str, attribute: Any, loading: Loading) -> IterableDataset:
    """The rows of one data set as they are stored, in one order whatever the number of loader workers."""
    training_args, data_args = copy.copy(loading.training_args), copy.copy(loading.data_args)
    training_args.dataloader_num_workers = 1  # into how many pieces LLaMA-Factory cuts a file; with 0 it reads nothing
    if attribute.load_from != "file":
        data_args.preprocessing_num_workers = None  # only what is converted first can be read by several processes
    loading = replace(loading, data_args=data_args, training_args=training_args)
    _, dataset = read_stored(loading, name, "dataset")
    return dataset if isinstance(dataset, IterableDataset) else dataset.to_iterable_dataset()  # type: ignore[no-any-return]


def _from_elsewhere(spec: DomainsKeys, attributes: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether the data is read from front to back, and its rows are divided as they come. ConfigError where they cannot be."""
    name = next((n for n, a in zip(names, attributes, strict=True) if a.load_from != "file"), None)
    if spec == DATA_SETS or name is None:
        return False
    why = None
    if spec.by != "column":
        why = f"by: {spec.by} needs a number for each row"
    elif not spec.keep:
        why = "the names of its domains must be known: set dataflex.domains.keep"
    elif len(names) > 1:
        why = "only one such data set can be divided"
    if why is not None:
        raise domains_refused.NOT_LOCAL.error(name=name, why=why)
    return True


def _indexed(name: str, loading: Loading) -> Any:
    """All rows of a local file as they are stored, of which none is in memory."""
    listed = loader.get_dataset_list

    def whole(*args: Any, **kwargs: Any) -> Any:
        found = listed(*args, **kwargs)
        for each in found:
            each.num_samples = None  # which draws rows where data is not streamed
        return found

    with seams.replaced((loader.__name__, "get_dataset_list", whole)):
        return read_stored(loading.indexed(), name, "dataset")[1]


def _require_sizes(mix: MixConfig, names: Sequence[str], attributes: Sequence[Any], *, divided: bool) -> None:
    """divided: whether domains are found as rows come, so that no `num_samples` is theirs."""
    asks, instead = f"mix: {mix.name}", "mix: static with dataflex.mix.proportions"
    if not mix.component.needs_sizes:
        asks, instead = "dataflex.mix.initial: stratified", "dataflex.mix.initial: uniform or dataflex.mix.proportions"
        if mix.component.default_initial == "stratified":
            asks += f", the default of {mix.name},"
    for name, attribute in zip(names, attributes, strict=True):
        if divided:
            raise domains_refused.NO_SIZES.error(key=asks, name=name, other=instead)
        if not attribute.num_samples:
            raise refused.NO_SIZE.error(key=asks, name=name, other=instead)


def _first_block(source: Source, name: str, rows: int, processor: Any) -> str:
    """The digest of the first block that has a sample, an example of which is shown as LLaMA-Factory does."""
    reader = BlockReader(source, name, 0, rows, 0, shuffle=False)
    reader.seek(StreamPosition())
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
