"""One processed data set per domain, through LLaMA-Factory's own loading, templates and tokenization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from llamafactory.data import loader
from llamafactory.data.data_utils import merge_dataset, split_dataset

from dataflex.base import seams
from dataflex.base.checks.tokenized import TokenizedStore, noted
from dataflex.base.loading.carried import (
    NOTHING,
    RAW_ROW,
    Carried,
    CarryingProcessor,
    carries,
    row_indices,
    without_carried,
)
from dataflex.base.loading.faults import untokenized
from dataflex.base.loading.reading import ReadData, read_all, read_data
from dataflex.base.loading.split import assigned_rows, split_domains, take
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import is_ours, ours, refusals
from dataflex.components.contracts import declared
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DATA_SETS, DataflexConfig, DomainsKeys
from dataflex.data.origins import data_sets_of, raw_rows, stored_numbers
from dataflex.data.rows import Rows, ScatteredDomains
from dataflex.deciding.mixing import domain_info
from dataflex.errors import ConfigError, DataflexError


def load_domains(loading: Loading, carried: Carried, spec: DomainsKeys = DATA_SETS) -> dict[str, Any]:
    """As LLaMA-Factory's get_dataset, with `train_dataset` a `Rows` of one part per domain.

    Packing happens within a domain. Held-out rows of `val_size` are split off each domain before tokenization, and never
    train. They are the `validation` set, or with `eval_on_each_dataset` one set per domain. By domain, each an example by
    itself, they are the `Rows` `held_out`. If rows carry their index, `origins` is a list with an `Origin` for each data set
    of each domain, and `stored_rows` has the rows of each data set as it is stored. `left_out` says how many rows are in no
    domain.
    """
    data_args, training_args = loading.data_args, loading.training_args
    store = TokenizedStore(loading, spec) if data_args.tokenized_path else None
    if store is not None and store.exists:
        return _module(*store.read())
    if store is not None:
        store.describe_sources()
    with loading.first_process("load dataset"):
        read = read_all(loading, data_args.dataset, "dataset", carried)
        evaluated = read_all(loading, data_args.eval_dataset or [], "eval_dataset")

    data = split_domains(read, spec, loading)
    names, parts, held_out, examples = list(data.parts), [], {}, {}
    alone = loading.single_rows()
    with loading.first_process("pre-process dataset"):
        for name, aligned in data.parts.items():
            train, validation = _split(aligned, data_args, training_args.seed, name)
            kept = ("dataset", data.sources(name, train["train"]))
            part = process_rows(loading, train["train"], is_eval=False, origin=kept)
            if part is None or len(part) == 0:
                raise ConfigError(f"dataset: no row of {name!r} is left after tokenization")
            parts.append(part)
            if validation:
                origin = ("dataset", data.sources(name, validation["validation"]))
                held_out[name] = examples[name] = _process_evaluated(loading, validation["validation"], origin)
            if validation and alone is not loading:
                examples[name] = _process_evaluated(alone, validation["validation"], origin)
        evaluation = load_evaluation(loading, evaluated) if evaluated else _evaluation_held_out(loading, held_out)
        if store is not None and training_args.should_save:
            store.write(names, parts, list(examples.values()), evaluation)
    more = {"left_out": data.left_out}
    if not carried.row_index:
        return _module(names, parts, list(examples.values()), evaluation) | more
    origins = [origin for name, part in zip(names, parts, strict=True) for origin in data.origins(name, part)]
    parts = [part.remove_columns(RAW_ROW) for part in parts]
    raw = (*raw_rows(origins, data.stored_rows()), np.concatenate([origin.numbers for origin in origins]))
    in_sets = None if data.by_data_set else data_sets_of(origins)
    module = _module(names, parts, list(examples.values()), evaluation, *raw, in_sets)
    return {**module, **more, "origins": origins, "stored_rows": data.stored_rows()}


def _module(names: list[str], parts: list[Any], held_out: list[Any], evaluation: Any, *raw: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"train_dataset": Rows(parts, names, *raw)}
    if evaluation is not None:
        out["eval_dataset"] = evaluation
    if held_out:
        out["held_out"] = Rows(held_out, names)
    return out


def process_rows(
    loading: Loading, raw: Any, *, is_eval: bool, origin: tuple[str, Sequence[tuple[str, Any]]], numbered: bool = False
) -> Any:
    """Rows as LLaMA-Factory tokenizes them; None where none is left. ConfigError for a row that cannot be tokenized.

    What rows carry goes with them; evaluated ones carry nothing unless they are `numbered`.

    origin: the key that names the data sets in `raw`, and these, [(name, rows)].
    """
    raw = without_carried(raw) if is_eval and not numbered else raw
    given = (loading.data_args, loading.training_args, loading.stage, loading.template, loading.tokenizer)
    choose = loader._get_dataset_processor

    def choose_carrying(*args: Any, **kwargs: Any) -> Any:
        return CarryingProcessor(choose(*args, **kwargs))

    changes = [(loader.__name__, "_get_dataset_processor", choose_carrying)] if carries(raw) else []
    try:
        with seams.replaced(*changes):
            return loader._get_preprocessed_dataset(raw, *given, loading.processor, is_eval=is_eval)
    except DataflexError:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        if isinstance(error, StopIteration) or "Cannot find" in str(error):
            return None
        preprocess = choose(
            loading.data_args, loading.stage, loading.template, loading.tokenizer, loading.processor,
            do_generate=loading.training_args.predict_with_generate and is_eval,
        ).preprocess_dataset  # fmt: skip
        key, parts = origin
        for name, rows in parts:
            if not isinstance(error, OSError) and (fault := untokenized(rows, name, key, preprocess)) is not None:
                raise fault from error
        with refusals():
            raise


def _process_evaluated(loading: Loading, raw: Any, origin: tuple[str, Sequence[tuple[str, Any]]]) -> Any:
    part = process_rows(loading, raw, is_eval=True, origin=origin)
    if part is None:
        raise ConfigError("eval_dataset: no row is left after tokenization")
    return part


def process_named(loading: Loading, name: str, key: str) -> Any:
    """The rows of one data set that `key` names, read and tokenized as evaluated ones are. ConfigError where none is left."""
    return _process_named(loading, name, key, NOTHING)[0]


def process_numbered(loading: Loading, name: str, key: str) -> tuple[Any, np.ndarray]:
    """The same, and the number of each row in the data set as it is stored, int64[n]. For the stages pt and sft."""
    part, stored = _process_named(loading, name, key, Carried(row_index=True))
    return part.remove_columns(RAW_ROW), stored_numbers(stored)[row_indices(part)]


def _process_named(loading: Loading, name: str, key: str, carried: Carried) -> tuple[Any, Any]:
    """The rows, and the data set as it is stored."""
    read = read_data(loading, name, key, carried)
    origin = (key, [(name, read.aligned)])
    part = process_rows(loading, read.aligned, is_eval=True, origin=origin, numbered=carried.row_index)
    if part is None or len(part) == 0:
        raise ConfigError(f"{key}: no row of {name!r} is left after tokenization")
    return part, read.stored


def _split(raw: Any, data_args: Any, seed: int, name: str = "") -> tuple[Any, Any]:
    """As LLaMA-Factory holds `val_size` out."""
    try:
        return split_dataset(raw, None, data_args, seed=seed)
    except ValueError as error:
        rows = f"{len(raw)} row{'' if len(raw) == 1 else 's'}{f' of {name!r}' if name else ''}"
        raise ConfigError(
            f"val_size: {data_args.val_size:g} of the {rows} leaves none to train on, or holds none out"
        ) from error


def load_evaluation(loading: Loading, read: Mapping[str, ReadData]) -> Any:
    """The data sets of `eval_dataset`, tokenized. Together, or with `eval_on_each_dataset` {name: rows}; None without any."""
    raw = {name: found.aligned for name, found in read.items()}
    origin = ("eval_dataset", list(raw.items()))
    if loading.data_args.eval_on_each_dataset:
        return {name: _process_evaluated(loading, rows, origin) for name, rows in raw.items()} or None
    return _process_evaluated(loading, concatenate_datasets(list(raw.values())), origin) if raw else None


def _evaluation_held_out(loading: Loading, held_out: dict[str, Any]) -> Any:
    """The same of the rows that `val_size` holds out of each domain."""
    if not held_out:
        return None
    return held_out if loading.data_args.eval_on_each_dataset else concatenate_datasets(list(held_out.values()))


def load_merged(loading: Loading, carried: Carried, spec: DomainsKeys = DATA_SETS) -> dict[str, Any]:
    """LLaMA-Factory's own get_dataset (weight-only runs), with every data set read and tokenized as `load_domains` does: one
    part; a single data set gives the domain its name. Domains that rows name are found first, and change no order."""
    data_args, seed = loading.data_args, loading.training_args.seed
    found, assigned = None, None
    if spec != DATA_SETS:
        with loading.first_process("load dataset"):
            found = read_all(loading, data_args.dataset, "dataset", replace(carried, row_index=True))
        assigned = assigned_rows(found, spec, loading)
        found = {name: replace(read, aligned=_kept(read, assigned.codes[name])) for name, read in found.items()}
    names = list(dict.fromkeys(data_args.dataset))  # LLaMA-Factory reads a name that is listed twice once
    parts: dict[str, list[tuple[str, Any]]] = {"dataset": [], "eval_dataset": []}
    prepare = loader._get_preprocessed_dataset

    def read(given: list[str] | None, *_: Any, return_dict: bool = False) -> Any:
        if given is None:
            return None
        key = "eval_dataset" if parts["dataset"] else "dataset"
        of_key = carried if key == "dataset" else NOTHING
        before = found if key == "dataset" else None
        aligned = {n: each.aligned for n, each in (before or read_all(loading, given, key, of_key)).items()}
        parts[key] = list(aligned.items())
        return aligned if return_dict else merge_dataset(list(aligned.values()), data_args, seed=seed)

    def split(dataset: Any, evaluation: Any, arguments: Any, seed: int) -> Any:
        if evaluation is not None:
            return split_dataset(dataset, evaluation, arguments, seed)
        return _split(dataset, arguments, seed)

    def preprocess(dataset: Any, *_: Any, is_eval: bool = False) -> Any:
        key = "eval_dataset" if is_eval and parts["eval_dataset"] else "dataset"
        with seams.replaced((loader.__name__, "_get_preprocessed_dataset", prepare)):
            part = process_rows(loading, dataset, is_eval=is_eval, origin=(key, parts[key]))
        if part is None:
            raise ConfigError(f"{key}: no row is left after tokenization")
        return part

    with (
        noted(loading),
        seams.replaced(
            (loader.__name__, "_get_merged_dataset", ours(read)),
            (loader.__name__, "split_dataset", ours(split)),
            (loader.__name__, "_get_preprocessed_dataset", ours(preprocess)),
        ),
        refusals(),
    ):
        module = loader.get_dataset(**vars(loading))
    rows, name = module["train_dataset"], names[0] if len(names) == 1 else "all"
    if assigned is None:
        return {**module, "train_dataset": Rows([rows], [name])}
    codes = np.concatenate(list(assigned.codes.values()))[row_indices(rows)]
    sizes = tuple(np.bincount(codes, minlength=len(assigned.names)).tolist())
    for domain, size in zip(assigned.names, sizes, strict=True):
        if not size:
            raise ConfigError(f"dataset: no row of {domain!r} is left after tokenization")
    domains = ScatteredDomains(assigned.names, sizes, codes)
    rows = Rows([rows.remove_columns(RAW_ROW)], [name], scattered=domains)
    return {**module, "train_dataset": rows, "left_out": assigned.left_out}


def _kept(read: ReadData, codes: np.ndarray) -> Any:
    """The rows of a data set that are in a domain."""
    kept = np.flatnonzero(codes >= 0)
    return take(read.aligned, kept) if len(kept) else read.aligned.select([])


def check_budgets(config: DataflexConfig, rows: Rows, global_batch: int) -> None:
    """Raise ConfigError for a budget or proportion the data cannot meet in training; `_check` of the command select is apart."""
    domains = rows.domains
    select, mix = config.select, config.mix
    if select is not None and rows.raw is not None and declared(select.component.reads_raw_rows):
        try:
            select.component.check_rows(rows.raw_total)
        except ConfigError as error:
            raise ConfigError(f"dataflex.select.{error}") from None
    if select is not None:
        learned = rows.trainable_tokens() > 0
        usable = [int(learned[a:b].sum()) for a, b in pairwise(domains.offsets)]
        for name, count in zip(domains.names, usable, strict=True):
            if count == 0 and (mix is not None or not any(usable)):
                raise refused.NOTHING_TO_LEARN.error(key="dataset", name=name)
        budget, most = (select.schedule.interval or 0) * global_batch, sum(usable) // global_batch
        if mix is None and not declared(select.component.with_replacement) and budget > sum(usable):
            raise refused.LONG_INTERVAL.error(
                interval=select.schedule.interval, batch=global_batch, budget=budget, rows=sum(usable),
                most=f"{most} step{'' if most == 1 else 's'}",
            )  # fmt: skip
    if mix is not None:
        mix.most_rows(domains.names, domains.sizes)
    if mix is not None and mix.proportions is not None and len(mix.proportions) != len(domains):
        raise refused.OTHER_COUNT.error(**refused.count_of(mix.proportions, domains.names))
    if mix is not None:
        mix.component.init(domain_info(mix, rows))  # refuses parameters that do not fit the domains
