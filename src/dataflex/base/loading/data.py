"""One processed data set per domain, through LLaMA-Factory's own loading, templates and tokenization."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from datasets import concatenate_datasets
from llamafactory.data import loader
from llamafactory.data.data_utils import merge_dataset, split_dataset

from dataflex.base import seams
from dataflex.base.checks.tokenized import TokenizedStore, noted
from dataflex.base.loading.faults import reading, untokenized
from dataflex.base.refusals import is_ours, ours, refusals
from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import Rows
from dataflex.errors import ConfigError, DataflexError, Mistakes
from dataflex.trainer.mix import domain_info

# Stands where `load_merged` puts its own.
_read_one = loader._get_merged_dataset


def load_domains(
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    stage: str,
    tokenizer: Any,
    processor: Any = None,
) -> dict[str, Any]:
    """As LLaMA-Factory's get_dataset, with `train_dataset` a `Rows` of one part per data set name.

    Packing happens within a domain. Held-out rows of `val_size` are split off each domain before tokenization, and never
    train; together they are the `validation` set, or one set per domain with `eval_on_each_dataset`. By domain, each an example
    by itself, they are the `Rows` `held_out`.
    """
    names = list(data_args.dataset)
    store = TokenizedStore(data_args, training_args, stage, tokenizer) if data_args.tokenized_path else None
    if store is not None and store.exists:
        return _module(names, *store.read())
    if store is not None:
        store.describe_sources()

    def process(
        dataset: Any, is_eval: bool, arguments: tuple[Any, Any] = (data_args, training_args), of: str = ""
    ) -> Any:
        parts = [(of, dataset)] if of else list(zip(data_args.eval_dataset or [], held, strict=True))
        origin = ("dataset" if of else "eval_dataset", parts)
        part = process_rows(dataset, *arguments, stage, template, tokenizer, processor, is_eval=is_eval, origin=origin)
        if part is None and is_eval:
            raise ConfigError("eval_dataset: no row is left after tokenization")
        return part

    local = not data_args.data_shared_file_system
    with training_args.main_process_first(desc="load dataset", local=local):
        raw = _read_all(names, "dataset", model_args, data_args, training_args, stage)
        evaluated = data_args.eval_dataset or []
        held = list(_read_all(evaluated, "eval_dataset", model_args, data_args, training_args, stage).values())
        raw_eval = _joined(dict(zip(data_args.eval_dataset or [], held, strict=True)), data_args)

    parts, held_out, examples = [], {}, {}
    plain = single_rows(data_args, training_args, stage)
    with training_args.main_process_first(desc="pre-process dataset", local=local):
        for name in names:
            train, validation = _split(raw[name], data_args, training_args.seed, name)
            part = process(train["train"], is_eval=False, of=name)
            if part is None or len(part) == 0:
                raise ConfigError(f"dataset: no row of {name!r} is left after tokenization")
            parts.append(part)
            if validation:
                held_out[name] = examples[name] = process(validation["validation"], is_eval=True, of=name)
            if validation and plain is not None:
                examples[name] = process(validation["validation"], is_eval=True, arguments=plain, of=name)
        evaluation = _evaluation(raw_eval, held_out, data_args, process)
        if store is not None and training_args.should_save:
            store.write(parts, list(examples.values()), evaluation)
    return _module(names, parts, list(examples.values()), evaluation)


def _module(names: list[str], parts: list[Any], held_out: list[Any], evaluation: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"train_dataset": Rows(parts, names)}
    if evaluation is not None:
        out["eval_dataset"] = evaluation
    if held_out:
        out["held_out"] = Rows(held_out, names)
    return out


def single_rows(data_args: Any, training_args: Any, stage: str) -> tuple[Any, Any] | None:
    """The arguments with which every row is an example by itself, with its answer; None where those of the run do that. Packed
    text of pre-training stays as it is: its rows are no examples."""
    packs = stage != "pt" and (data_args.packing or data_args.neat_packing)
    generates = getattr(training_args, "predict_with_generate", False)
    if not packs and not generates:
        return None
    data_args, training_args = copy.copy(data_args), copy.copy(training_args)
    if stage != "pt":
        data_args.packing = data_args.neat_packing = False
    training_args.predict_with_generate = False
    return data_args, training_args


def process_rows(
    raw: Any,
    data_args: Any,
    training_args: Any,
    stage: str,
    template: Any,
    tokenizer: Any,
    processor: Any,
    *,
    is_eval: bool,
    origin: tuple[str, Sequence[tuple[str, Any]]],
) -> Any:
    """Rows as LLaMA-Factory tokenizes them; None where none is left. ConfigError for a row that cannot be tokenized.

    origin: the key that names the data sets in `raw`, and these, [(name, rows)].
    """
    try:
        return loader._get_preprocessed_dataset(
            raw, data_args, training_args, stage, template, tokenizer, processor, is_eval=is_eval
        )
    except DataflexError:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        if isinstance(error, StopIteration) or "Cannot find" in str(error):
            return None
        generates = training_args.predict_with_generate and is_eval
        preprocess = loader._get_dataset_processor(
            data_args, stage, template, tokenizer, processor, do_generate=generates
        ).preprocess_dataset
        key, parts = origin
        for name, rows in parts:
            if not isinstance(error, OSError) and (fault := untokenized(rows, name, key, preprocess)) is not None:
                raise fault from error
        with refusals():
            raise


def read_raw(name: str, key: str, model_args: Any, data_args: Any, training_args: Any, stage: str) -> Any:
    """One raw data set in LLaMA-Factory's own columns."""
    with reading(name, key, data_args):
        return _read_one([name], model_args, data_args, training_args, stage, return_dict=True)[name]


def _read_all(names: Sequence[str], key: str, *args: Any) -> dict[str, Any]:
    """{name: its rows}; ConfigError for all that cannot be read. args: of `read_raw`."""
    mistakes, found = Mistakes(), {}
    for name in names:
        with mistakes.noting():
            found[name] = read_raw(name, key, *args)
            if len(found[name]) == 0:
                raise ConfigError(f"{key}: {name!r} is empty")
    mistakes.settle()
    return found


def _split(raw: Any, data_args: Any, seed: int, name: str = "") -> tuple[Any, Any]:
    """As LLaMA-Factory holds `val_size` out."""
    try:
        return split_dataset(raw, None, data_args, seed=seed)
    except ValueError as error:
        rows = f"{len(raw)} row{'' if len(raw) == 1 else 's'}{f' of {name!r}' if name else ''}"
        raise ConfigError(
            f"val_size: {data_args.val_size:g} of the {rows} leaves none to train on, or holds none out"
        ) from error


def _joined(parts: dict[str, Any], data_args: Any) -> Any:
    if not parts or data_args.eval_on_each_dataset:
        return parts or None
    return concatenate_datasets(list(parts.values()))


def _evaluation(raw_eval: Any, held_out: dict[str, Any], data_args: Any, process: Any) -> Any:
    if isinstance(raw_eval, dict):
        return {name: process(part, is_eval=True) for name, part in raw_eval.items()}
    if raw_eval is not None:
        return process(raw_eval, is_eval=True)
    if held_out and data_args.eval_on_each_dataset:
        return held_out
    return concatenate_datasets(list(held_out.values())) if held_out else None


def load_merged(
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    stage: str,
    tokenizer: Any,
    processor: Any = None,
) -> dict[str, Any]:
    """LLaMA-Factory's own get_dataset (weight-only runs), with every data set read and tokenized as `load_domains` does: one
    part; a single data set gives the domain its name."""
    names = list(dict.fromkeys(data_args.dataset))  # LLaMA-Factory reads a name that is listed twice once
    parts: dict[str, list[tuple[str, Any]]] = {"dataset": [], "eval_dataset": []}
    prepare = loader._get_preprocessed_dataset

    def read(given: list[str] | None, *args: Any, return_dict: bool = False) -> Any:
        if given is None:
            return None
        key = "eval_dataset" if parts["dataset"] else "dataset"
        found = _read_all(given, key, *args)
        parts[key] = list(found.items())
        return found if return_dict else merge_dataset(list(found.values()), data_args, seed=training_args.seed)

    def split(dataset: Any, evaluation: Any, arguments: Any, seed: int) -> Any:
        if evaluation is not None:
            return split_dataset(dataset, evaluation, arguments, seed)
        return _split(dataset, arguments, seed)

    def preprocess(dataset: Any, *args: Any, is_eval: bool = False) -> Any:
        key = "eval_dataset" if is_eval and parts["eval_dataset"] else "dataset"
        with seams.replaced((loader.__name__, "_get_preprocessed_dataset", prepare)):
            part = process_rows(dataset, *args, is_eval=is_eval, origin=(key, parts[key]))
        if part is None:
            raise ConfigError(f"{key}: no row is left after tokenization")
        return part

    with (
        noted(data_args, training_args, stage, tokenizer),
        seams.replaced(
            (loader.__name__, "_get_merged_dataset", ours(read)),
            (loader.__name__, "split_dataset", ours(split)),
            (loader.__name__, "_get_preprocessed_dataset", ours(preprocess)),
        ),
        refusals(),
    ):
        module = loader.get_dataset(template, model_args, data_args, training_args, stage, tokenizer, processor)
    return {**module, "train_dataset": Rows([module["train_dataset"]], [names[0] if len(names) == 1 else "all"])}


def check_budgets(config: DataflexConfig, rows: Rows, global_batch: int) -> None:
    """Raise ConfigError for a budget or proportion the data cannot meet."""
    domains = rows.domains
    select, mix = config.select, config.mix
    if select is not None and rows.raw is not None:
        try:
            select.component.check_rows(rows.raw_total)
        except ConfigError as error:
            raise ConfigError(f"dataflex.select.{error}") from None
    if select is not None:
        learned = rows.trainable_tokens() > 0
        usable = [int(learned[a:b].sum()) for a, b in pairwise(domains.offsets)]
        for name, count in zip(domains.names, usable, strict=True):
            if count == 0 and (mix is not None or not any(usable)):
                raise ConfigError(f"dataset: no row of {name!r} has a token to learn within cutoff_len")
        budget, most = (select.schedule.interval or 0) * global_batch, sum(usable) // global_batch
        if mix is None and not select.component.with_replacement and budget > sum(usable):
            raise ConfigError(
                f"dataflex.select.interval: {select.schedule.interval} steps of {global_batch} rows ask for {budget} rows,"
                f" but the data has {sum(usable)}; use at most {most} step{'' if most == 1 else 's'}"
            )
    if mix is not None:
        mix.most_rows(domains.names, domains.sizes)
    if mix is not None and mix.proportions is not None and len(mix.proportions) != len(domains):
        raise ConfigError(
            f"dataflex.mix.proportions: {len(mix.proportions)} given for {len(domains)} data sets ({', '.join(domains.names)})"
        )
    if mix is not None:
        mix.component.init(domain_info(mix, rows))  # refuses parameters that do not fit the domains
