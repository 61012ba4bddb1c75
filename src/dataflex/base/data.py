"""One processed data set per domain, through LLaMA-Factory's own loading, templates and tokenization."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

from datasets import concatenate_datasets
from datasets.exceptions import DatasetsError
from llamafactory.data import loader
from llamafactory.data.data_utils import split_dataset

from dataflex.base.refusals import is_ours, refusals
from dataflex.base.tokenized import TokenizedStore
from dataflex.config.schema import DataflexConfig
from dataflex.errors import ConfigError, DataflexError
from dataflex.trainer.mix import domain_info
from dataflex.trainer.rows import Rows


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

    def process(dataset: Any, is_eval: bool, arguments: tuple[Any, Any] = (data_args, training_args)) -> Any:
        part = process_rows(dataset, *arguments, stage, template, tokenizer, processor, is_eval=is_eval)
        if part is None and is_eval:
            raise ConfigError("eval_dataset: no row is left after tokenization")
        return part

    local = not data_args.data_shared_file_system
    with training_args.main_process_first(desc="load dataset", local=local):
        raw = {name: read_raw(name, "dataset", model_args, data_args, training_args, stage) for name in names}
        held = [
            read_raw(n, "eval_dataset", model_args, data_args, training_args, stage)
            for n in data_args.eval_dataset or []
        ]
        raw_eval = _joined(dict(zip(data_args.eval_dataset or [], held, strict=True)), data_args)
    for name in names:
        if len(raw[name]) == 0:
            raise ConfigError(f"dataset: {name!r} is empty")

    parts, held_out, examples = [], {}, {}
    plain = single_rows(data_args, training_args, stage)
    with training_args.main_process_first(desc="pre-process dataset", local=local):
        for name in names:
            with refusals():
                train, validation = split_dataset(raw[name], None, data_args, seed=training_args.seed)
            part = process(train["train"], is_eval=False)
            if part is None or len(part) == 0:
                raise ConfigError(f"dataset: no row of {name!r} is left after tokenization")
            parts.append(part)
            if validation:
                held_out[name] = examples[name] = process(validation["validation"], is_eval=True)
            if validation and plain is not None:
                examples[name] = process(validation["validation"], is_eval=True, arguments=plain)
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
) -> Any:
    """Rows as LLaMA-Factory tokenizes them; None where none is left."""
    try:
        with refusals():
            return loader._get_preprocessed_dataset(
                raw, data_args, training_args, stage, template, tokenizer, processor, is_eval=is_eval
            )
    except (StopIteration, RuntimeError) as error:
        if isinstance(error, StopIteration) or "Cannot find" in str(error):
            return None
        raise


def read_raw(name: str, key: str, model_args: Any, data_args: Any, training_args: Any, stage: str) -> Any:
    """One raw data set in LLaMA-Factory's own columns."""
    try:
        return loader._get_merged_dataset([name], model_args, data_args, training_args, stage, return_dict=True)[name]
    except (DatasetsError, ValueError, OSError, ImportError) as error:
        if is_ours(error) or isinstance(error, DataflexError):
            raise
        cause = error.__cause__ or error
        if "at least one example" in str(cause):  # a file without a row
            raise ConfigError(f"{key}: {name!r} is empty") from error
        raise ConfigError(f"{key}: {name!r} cannot be read: {' '.join(str(cause).split())}") from error
    except (AttributeError, KeyError, IndexError, TypeError) as error:  # columns or formatting that do not fit the rows
        if is_ours(error):
            raise
        raise ConfigError(
            f"{key}: the columns or formatting of {name!r} in dataset_info.json do not fit its rows"
            f" ({type(error).__name__}: {error})"
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


def load_merged(rows: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Wrap what LLaMA-Factory loaded itself (weight-only runs): one part; a single data set gives the domain its name."""
    domain = names[0] if len(names) == 1 else "all"
    return {**rows, "train_dataset": Rows([rows["train_dataset"]], [domain])}


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
