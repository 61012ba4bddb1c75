"""What a run is, before its first step: model, data, length, and what acts when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex import events
from dataflex.config.schema import DataflexConfig, OrderConfig, Schedule, WeightPart
from dataflex.talking.time_spent import strategy_of
from dataflex.talking.wording import amount, counted, fraction, listed
from dataflex.values import words

# Steps of a schedule that are listed by themselves.
_STEPS = 4
_LABEL = 10  # characters


def data_lines(event: events.Prepared, arguments: Mapping[str, Any], width: int | None) -> list[str]:
    """arguments: LLaMA-Factory's."""
    named = [
        ("model", model(event.model, arguments)),
        ("data", rows_of(event.rows, width) if event.config is not None else _plain(event.rows, arguments)),
        ("target", rows_of(event.target, width, tokens=False)),
        ("held out", rows_of(event.held_out, width, tokens=False) or _evaluated(event.evaluation)),
    ]
    return [label(name, text) for name, text in named if text]


def plan_lines(
    event: events.Started, config: DataflexConfig, proportions: Mapping[str, float], width: int | None
) -> list[str]:
    """proportions: the mixture that the run begins with."""
    steps, args = event.trainer.max_steps, event.trainer.args
    device, ranks = args.per_device_train_batch_size, counted(args.world_size, "rank")
    factors = f"{device} per device x {args.gradient_accumulation_steps} x {ranks}"
    begin = f", from step {event.step} on" if event.step else ""
    lines = [label("steps", f"{steps:,} of {counted(event.global_batch, 'row')} ({factors}){begin}")]
    if config.select is not None:
        lines.append(label("select", f"{config.select.name}: {when(event.schedules['select'], steps)}"))
    if config.mix is not None:
        schedule = event.schedules.get("mix", config.mix.schedule)
        first = [f"{name} {fraction(p)}" for name, p in proportions.items()]
        shares = f"; at first {listed(first)}" if first else ""
        lines.append(label("mix", f"{config.mix.name}: {when(schedule, steps)}{shares}"))
    if config.weight is not None:
        for slot, part in config.weight.slots().items():
            lines.append(label(slot, f"{part.name}: {strength(part)}"))
    if config.order is not None:
        lines.append(label("order", f"{_ordered(config.order)}: {when(event.schedules['order'], steps)}"))
    others = [
        f"{what} {found}" for what, key in (("evaluate", "eval"), ("save", "save")) if (found := _every(args, key))
    ]
    return lines + ([label("also", ", ".join(others))] if others else [])


def _ordered(order: OrderConfig) -> str:
    """saw by loss, higher_later."""
    of = f" {order.column}" if order.column else f" {order.path}" if order.path else ""
    return order.name if order.by is None else f"{order.name} by {order.by}{of}, {order.polarity}"


def label(name: str, text: str) -> str:
    return f"{name:<{_LABEL}}{text}"


def model(found: Any, arguments: Mapping[str, Any]) -> str:
    """Name, parameters, and what of them is trained."""
    path = str(arguments.get("model_name_or_path", "a model"))
    name = Path(path).name if Path(path).exists() else path
    total = trained = 0
    for parameter in found.parameters():
        size = _values(parameter)
        total, trained = total + size, trained + (size if parameter.requires_grad else 0)
    kind = str(arguments.get("finetuning_type", "lora"))
    return (
        f"{name}: {amount(total)} parameters, {'all' if trained == total else amount(trained)} of them trained ({kind})"
    )


def _values(parameter: Any) -> int:
    """Of a parameter that ZeRO-3 has split, all; of one in four bits, those that are packed."""
    count = int(getattr(parameter, "ds_numel", parameter.numel()))
    return 2 * count * parameter.element_size() if type(parameter).__name__ == "Params4bit" else count


def rows_of(rows: Any, width: int | None, *, tokens: bool = True) -> str:
    """rows: `Rows` or `Streams`; None: nothing."""
    if rows is None:
        return ""
    names = rows.domains.names
    if not hasattr(rows, "trainable_tokens"):
        return listed(names, apart=", ", room=_room(width)) + " (streamed)"
    sizes = [counted(int(size), "row") for size in rows.sizes]
    if not tokens:
        items = [f"{n} {s}" for n, s, size in zip(names, sizes, rows.sizes, strict=True) if size]
        return listed(items, apart=" | ", room=_room(width))
    sums = rows.by_domain(rows.trainable_tokens())
    items = [f"{n} {s} ({amount(t)} tokens)" for n, s, t in zip(names, sizes, sums, strict=True)]
    return listed(items, apart=" | ", room=_room(width))


def _plain(rows: Any, arguments: Mapping[str, Any]) -> str:
    """LLaMA-Factory's training data, which may be streamed."""
    names = ", ".join(words(arguments.get("dataset")))
    return f"{names}: {counted(len(rows), 'row')}" if hasattr(rows, "__len__") else f"{names} (streamed)"


def _room(width: int | None) -> int | None:
    return None if width is None else width - _LABEL


def _evaluated(evaluation: Any) -> str:
    """LLaMA-Factory's evaluation data."""
    if evaluation is None:
        return ""
    sets = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    return " | ".join(f"{name} {counted(len(rows), 'row')}".strip() for name, rows in sets.items())


def when(schedule: Schedule, steps: int) -> str:
    """before steps 10, 30, 50; every 20 steps from 10 on."""
    if schedule.next_due(0) is None:
        return "its proportions stay"
    turns = schedule.turns(steps)
    if not turns:
        return "never"
    if turns <= _STEPS or schedule.interval is None:
        due, step = list[str](), schedule.next_due(0)
        while step is not None and step < steps and len(due) < _STEPS + 3:
            due.append(str(step))
            step = schedule.next_due(step + 1)
        return f"before step{'s' if turns > 1 else ''} {listed(due, apart=', ')}"
    often = "every step" if schedule.interval == 1 else f"every {schedule.interval} steps"
    times = f", {schedule.updates} times" if schedule.updates is not None else ""
    return f"{often} from {schedule.warmup} on{times}"


def strength(part: WeightPart) -> str:
    """from step 50 on, in full from 150, until 500."""
    text = f"from step {part.warmup} on"
    if part.ramp:
        text += f", in full from {part.warmup + part.ramp}"
    if part.until is not None:
        text += f", until {part.until}" + (f" and fading to {part.until + part.fade}" if part.fade else "")
    return text


def _every(args: Any, key: str) -> str:
    """How often the Trainer evaluates or saves."""
    strategy, every = strategy_of(args, key), getattr(args, f"{key}_steps", None)
    if strategy == "steps" and every:
        return f"every {counted(int(every), 'step')}" if every >= 1 else f"after every {every:.0%} of the steps"
    return "every epoch" if strategy == "epoch" else ""
