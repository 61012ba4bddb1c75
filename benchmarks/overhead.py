"""Step time of each dynamic run over the same run of LLaMA-Factory alone, at equal steps, rows and row lengths; and of mixers
that read losses over static mixing.

The two trainers take turns, step by step (see turns.py), so that what else the machine does hits both. Ratios are of
neighbouring steps.

    python benchmarks/overhead.py                # --preset tiny for a quick look, --preset gpu on a GPU
    python benchmarks/overhead.py --write        # and put the tables into RESULTS.md
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import settings
import turns
from measuring import interval
from runner import Command, table

SKIPPED = 10  # first steps of a run: memory pools, thread pools, lazy imports
DOMAINS = 7
TARGET = f"d{DOMAINS}"  # a data set that is not trained on
PROPORTIONS = (0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05)
LAYER, RUNNING = 1.02, 1.03
# A pretrained chat model of about 100M parameters with LoRA, in steps of a second.
LORA = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "all", "template": "chatml"}
REAL, REAL_TARGETS = settings.Preset(model={}, vocabulary=0, rows=4, cutoff=64, pairs=20, pool=0), (1.01, 1.02)


@dataclass(frozen=True)
class Variant:
    """block: what stands under `dataflex` (None: nothing, the plain run once more). target: of the median ratio. over: the
    block of the run it is compared with (None: LLaMA-Factory alone)."""

    block: dict[str, Any] | None
    accumulation: int = 1
    target: float | None = None
    over: dict[str, Any] | None = None


def variants(reference: Path, layer: float = LAYER, running: float = RUNNING) -> dict[str, Variant]:
    """reference: a model that DoReMi and rho1 compare losses with. layer, running: targets."""
    static = {"mix": {"name": "static"}}
    doremi = {"name": "doremi", "reference_model_path": str(reference)}
    weight = {"name": "loss", "strategy": "linupper"}
    scored = {"name": "loss", "focus": "medium", "interval": 20}
    odm = {"name": "odm", "interval": 10}
    return {
        "plain again (the noise)": Variant(None),
        "mix static (the layer)": Variant({"mix": {"name": "static", "proportions": list(PROPORTIONS)}}, target=layer),
        "select random (the layer)": Variant({"select": {"name": "random", "interval": 10}}, target=layer),
        "weight loss": Variant({"weight": weight}, target=running),
        "weight loss, running, 4 micro-batches": Variant({"weight": {**weight, "scope": "running"}}, 4, running),
        "weight loss, global, 4 micro-batches": Variant({"weight": {**weight, "scope": "global"}}, 4),
        "weight focal": Variant({"weight": {"name": "focal"}}, target=running),
        "weight loss and focal": Variant({"weight": [weight, {"name": "focal"}]}, target=running),
        "weight rho1": Variant({"weight": {"name": "rho1", "reference_model_path": str(reference)}}, target=running),
        "weight adapt": Variant({"weight": {"name": "adapt", "refresh_interval": 20, "target_dataset": TARGET}}),
        "weight joint_update_aware": Variant(
            {"weight": {"name": "joint_update_aware", "target_update_step": 20, "target_dataset": TARGET}}
        ),
        "mix odm": Variant({"mix": odm}, target=layer),
        "mix odm, over mix static": Variant({"mix": odm}, target=layer, over=static),
        "mix ado, over mix static": Variant({"mix": {"name": "ado", "interval": 3}}, target=layer, over=static),
        "mix doremi, over mix static": Variant({"mix": doremi}, target=layer, over=static),
        "select loss": Variant({"select": scored}, target=layer),
        "select less": Variant({"select": {"name": "less", "interval": 20, "target_dataset": TARGET}}),
        "select loss, mix odm, weight loss": Variant({"select": scored, "mix": odm, "weight": weight}),
    }


HEADER = (
    "run", "plain ms", "more ms", "ratio", "90% interval", "of totals", "target", "verdict", "decision ms", "scoring s",
)  # fmt: skip


def compare(
    name: str,
    variant: Variant,
    keys_of: Callable[[str], dict[str, Any]],
    preset: settings.Preset,
    threads: int,
    orders: Sequence[bool] = (True, False),
    processor_time: bool = False,
) -> list[str]:
    """One line of the table, of a pair of runs for every order: whether the plain one is started first, for which of two equal
    processes was can be worth several per cent. keys_of: the keys of a run of a name, without a block and a number of steps."""
    keys = {
        "max_steps": SKIPPED + preset.pairs,
        "per_device_train_batch_size": preset.rows // variant.accumulation,
        "gradient_accumulation_steps": variant.accumulation,
    }
    plain, other = ({**keys_of(which), **keys} for which in ("plain", "other"))
    for run, block in ((plain, variant.over), (other, variant.block)):
        if block is not None:
            run["dataflex"] = block
    seen = []
    for plain_first in orders:
        pair = turns.run_pair(*((plain, other) if plain_first else (other, plain)), threads, processor_time)
        seen.append((pair[0], pair[1]) if plain_first else (pair[1], pair[0]))
    return _line(name, variant, seen)


def _line(name: str, variant: Variant, seen: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """One line of the table from what the clocks of the two runs, plain and other, saw in each of several pairs; scoring
    passes are left out of the steps. The ratio is the geometric mean over the pairs of their median ratios."""
    for plain, other in seen:
        if plain["shapes"] != other["shapes"] or len(plain["shapes"]) != 1:
            raise RuntimeError(f"{name}: micro-batches of {plain['shapes']} and {other['shapes']} cannot be compared")
    a = np.array([plain["steps"][SKIPPED:] for plain, _ in seen])
    scoring, deciding = (np.array([other[key][SKIPPED:] for _, other in seen]) for key in ("scoring", "deciding"))
    b = np.array([other["steps"][SKIPPED:] for _, other in seen]) - scoring
    ratios = b / a

    def middle(i: Any) -> float:
        return float(np.exp(np.log(np.median(ratios[:, i], axis=1)).mean()))

    low, high = interval(middle, ratios.shape[1])
    decisions = (deciding - scoring)[deciding > 0]
    verdict = "-"
    if variant.target is not None:
        verdict = "met" if high <= variant.target else "missed" if low > variant.target else "in the noise"
    return [
        name,
        f"{1000 * np.median(a):.1f}",
        f"{1000 * np.median(b - a):+.2f}",
        f"{middle(slice(None)):.3f}",
        f"{low:.3f} .. {high:.3f}",
        f"{b.sum() / a.sum():.3f}",
        "-" if variant.target is None else f"<= {variant.target:.2f}",
        verdict,
        f"{1000 * decisions.mean():.1f}" if len(decisions) else "-",
        f"{scoring[scoring > 0].mean():.2f}" if scoring.any() else "-",
    ]


def make_data(work: Path, tokenizer: Any, texts: Sequence[str], preset: settings.Preset, least: int = 0) -> None:
    """Data sets d0 to d7 of equal rows, the last of them for TARGET. least: steps that there are rows for."""
    rows = -(-max(SKIPPED + preset.pairs, least) * preset.rows // DOMAINS)
    settings.write_equal_rows(work / "data", tokenizer, texts, DOMAINS + 1, rows * (DOMAINS + 1), preset.cutoff)


def keys_of_run(
    work: Path, preset: settings.Preset, place: int, which: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    keys = settings.run_keys(work, preset, f"{place}-{which}") | {"dataset": ",".join(f"d{i}" for i in range(DOMAINS))}
    return keys | dict(more or {})


def chosen(known: Mapping[str, Variant], only: str) -> dict[str, Variant]:
    return {name: variant for name, variant in known.items() if any(part in name for part in only.split(","))}


def plan_cost() -> str:
    """Microseconds of `Plan.rows` for one global batch: consecutive batches of a stage of seven domains."""
    from dataflex.plan.plan import Domains, Plan

    lines = []
    for size in (10_000, 10_000_000):
        plan = Plan(Domains(tuple("abcdefg"), (size,) * DOMAINS), seed=0)
        plan.append(0, plan.domain_pools(), PROPORTIONS)
        line = [f"{size:,}"]
        for batch in (8, 512):
            plan.rows(0, batch)
            times = []
            for step in range(1, 501):
                begin = time.perf_counter()
                plan.rows(step * batch, (step + 1) * batch)
                times.append(time.perf_counter() - begin)
            line.append(f"{1e6 * np.median(times):.0f}")
        lines.append(line)
    return table((f"rows in each of {DOMAINS} domains", "batch of 8, us", "batch of 512, us"), lines)


def main() -> None:
    presets = {**settings.PRESETS, "real": REAL}
    command = Command(
        __file__, __doc__, presets, "threads", "processor_time", "model",
        pairs={"type": int, "help": "pairs of steps compared per run (of the preset)"},
        only={"default": "", "help": "measure the runs whose names contain this, or one of these between commas"},
    )  # fmt: skip
    given, preset = command.given, presets[command.given.preset]
    if (given.preset == "real") != (given.model is not None):
        command.parser.error("--preset real and --model go together")
    given.pairs = given.pairs or preset.pairs
    preset = replace(preset, pairs=given.pairs)
    if not chosen(variants(Path()), given.only):
        command.parser.error(f"--only: no run has {given.only!r} in its name")
    if given.processor_time and (given.threads != 1 or preset.gpu):
        command.parser.error("--processor-time needs --threads 1, and says nothing about a GPU")
    with tempfile.TemporaryDirectory(prefix="dataflex-overhead-") as folder:
        work = Path(folder)
        settings.settle_environment(work, preset, given.threads)
        _, texts, tokenizer = settings.demonstration(work, preset, model=given.model)
        make_data(work, tokenizer, texts, preset)
        lines = []
        targets = REAL_TARGETS if given.model else (LAYER, RUNNING)
        asked = chosen(variants(work / "model", *targets), given.only)
        for place, (name, variant) in enumerate(asked.items()):
            keys_of = partial(keys_of_run, work, preset, place, more=LORA if given.model else {})
            lines.append(compare(name, variant, keys_of, preset, given.threads, processor_time=given.processor_time))
            print(f"{name}: {lines[-1][3]} ({lines[-1][4]})", flush=True)
    text = (
        f"A step is {preset.rows} rows of {preset.cutoff} tokens; each line is 2 x {preset.pairs} pairs of steps, once each way"
        f" round.\n\n{table(HEADER, lines)}\n\nThe plan alone, per optimizer step:\n\n{plan_cost()}"
    )
    title = f"Overhead of a step ({given.preset}{', ' + given.only if given.only else ''})"
    command.publish(title, text, threads=given.threads, gpu=preset.gpu)


if __name__ == "__main__":
    main()
