"""Called in a test run's process before the command; each takes the run's directory and an argument."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dataflex import events


def llamafactory_itself(out: str, _: str) -> Callable[[list[str]], int]:
    """Run LLaMA-Factory's own entry instead of ours."""

    def entry(arguments: list[str]) -> int:
        from llamafactory.train.tuner import run_exp

        run_exp(args=yaml.safe_load(Path(arguments[1]).read_text()))
        return 0

    return entry


def record_ids(out: str, _: str) -> None:
    """Write the ids of every micro-batch served to served-<rank>.jsonl, one line per optimizer step."""
    file = Path(out) / f"served-{os.environ.get('RANK', '0')}.jsonl"

    def record(event: events.BatchServed) -> None:
        with file.open("a") as handle:
            handle.write(json.dumps({"step": event.step, "ids": [m.ids.tolist() for m in event.micro]}) + "\n")

    events.on(events.BatchServed, record)


def kill_after(out: str, step: str) -> None:
    """SIGKILL this process when optimizer step `step` is done and its checkpoint, if any, is written."""
    events.on(events.StepEnded, lambda event: kill() if event.step == int(step) else None)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_after(out: str, argument: str) -> None:
    """`<step>=<path>=<text>`: write the text to the file when optimizer step `step` is done and its checkpoint is written."""
    step, path, text = argument.split("=", 2)

    def write(event: events.StepEnded) -> None:
        if event.step == int(step) and os.environ.get("RANK", "0") == "0":
            Path(path).write_text(text)

    events.on(events.StepEnded, write)


def kill_while_saving(out: str, step: str) -> None:
    """SIGKILL when the checkpoint of `step` has its model and optimizer, but not yet our state."""
    events.on(events.SavingState, lambda event: kill() if event.step == int(step) else None)


def kill_while_scoring(out: str, step: str) -> None:
    """SIGKILL in the middle of the scoring pass before optimizer step `step`."""
    scored: list[int] = []

    def count(event: events.ScoredBatch) -> None:
        scored.append(event.step)
        if event.step == int(step) and len(scored) > 1:
            kill()

    events.on(events.ScoredBatch, count)


def distributed_type(out: str, _: str) -> None:
    """Write which engine the run really has."""

    def write(event: events.BatchServed) -> None:
        accelerator, stage = event.trainer.accelerator, ""
        kind = accelerator.distributed_type.name
        if kind == "DEEPSPEED":
            stage = f" {accelerator.state.deepspeed_plugin.zero_stage}"
        if kind == "FSDP":
            stage = f" {accelerator.state.fsdp_plugin.fsdp_version}"
        (Path(out) / "distributed_type").write_text(kind + stage)

    events.on(events.BatchServed, write)


def fsdp_on_cpu(out: str, _: str) -> None:
    """accelerate knows FSDP on accelerators only: let it take the CPU for one."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def set_device(self: Any) -> None:
        self.device = torch.device("cpu")

    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = set_device


def kill_in_gradients(out: str, step: str) -> None:
    """SIGKILL in the middle of the gradient pass before optimizer step `step`."""
    from dataflex.signals.gradients.capture import Capture

    stock, passes, at = Capture.run, [], []

    def wrapped(self: Any, *args: Any) -> None:
        if at == [int(step)]:
            passes.append(1)
            if len(passes) == 3:
                kill()
        stock(self, *args)

    events.on(events.Deciding, lambda event: at.__setitem__(slice(None), [event.step]))
    Capture.run = wrapped


def nothing_to_learn(out: str, ids: str) -> None:
    """Mask all labels of the rows in `ids` (comma separated) in every batch."""
    from dataflex.data import rows

    bad = torch.tensor([int(i) for i in ids.split(",")])
    stock = rows.RowCollator.__call__

    def wrapped(self: Any, features: Any) -> Any:
        batch = stock(self, features)
        if rows.SAMPLE_IDS in batch and len(features[0]) > 1:
            batch["labels"][torch.isin(batch[rows.SAMPLE_IDS], bad)] = -100
        return batch

    rows.RowCollator.__call__ = wrapped


def count_forwards(out: str, _: str) -> None:
    """Write the number of model forwards to forwards.json: {"train": n, "eval": m}."""
    from transformers import Qwen2ForCausalLM

    stock, counts = Qwen2ForCausalLM.forward, {"train": 0, "eval": 0}

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts["train" if self.training else "eval"] += 1
        (Path(out) / "forwards.json").write_text(json.dumps(counts))
        return stock(self, *args, **kwargs)

    Qwen2ForCausalLM.forward = wrapped


def dump_labels(out: str, _: str) -> None:
    """Write token ids and labels of all training rows to labels.json."""

    def write(event: events.Prepared) -> None:
        rows = [event.rows[i] for i in range(len(event.rows))]
        kept = [{k: r[k] for k in ("input_ids", "labels") if k in r} for r in rows]
        (Path(out) / "labels.json").write_text(json.dumps(kept))

    events.on(events.Prepared, write)


def one_model_at_a_time(out: str, _: str) -> None:
    """Fail if another model is in memory when the one that is trained is loaded."""
    import gc

    from llamafactory.train.pt import workflow as pt
    from llamafactory.train.sft import workflow as sft
    from transformers import PreTrainedModel

    for module in (pt, sft):
        stock = module.load_model

        def wrapped(*args: Any, stock: Any = stock, **kwargs: Any) -> Any:
            gc.collect()
            others = [o for o in gc.get_objects() if isinstance(o, PreTrainedModel)]
            assert not others, f"{len(others)} models are in memory already"
            return stock(*args, **kwargs)

        module.load_model = wrapped


def ignore_scores(out: str, _: str) -> None:
    """Make every scoring pass, and select all rows whatever it says."""
    from dataflex.components.contracts import declared
    from dataflex.deciding.selecting import Selecting

    def everything(self: Any, step: int, view: Any) -> None:
        if self.schedule.due(step):
            needs = declared(self.spec.component.needs)
            assert needs
            for request in needs:
                self.chooser.measure(request)

    Selecting.act = everything


def less_by_hand(out: str, step: str) -> None:
    """Before the decision at `step`, write the alignments of LESS to by_hand.json: one backward pass per row in fp64, Adam's
    formula applied to the whole gradient, cosines with each target row, averaged by subtask."""
    prepared: list[events.Prepared] = []

    def write(event: events.Deciding) -> None:
        if event.step == int(step):
            (Path(out) / "by_hand.json").write_text(json.dumps(_alignments(prepared[0], event.trainer)))

    events.on(events.Prepared, prepared.append)
    events.on(events.Deciding, write)


def _alignments(data: events.Prepared, trainer: Any) -> dict[str, Any]:
    import copy

    model = copy.deepcopy(trainer.model).double().eval()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = trainer.optimizer.optimizer
    kept = {n: optimizer.state[p] for n, p in trainer.model.named_parameters() if p.requires_grad}
    group = optimizer.param_groups[0]
    (b1, b2), eps = group["betas"], group["eps"]

    def gradient(row: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        if (labels == -100).all():
            return None
        logits = model(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
        return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    def direction(g: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        if data.config.select.component.adam_step == "authors":
            m = 0.9 * state["exp_avg"].double() + 0.1 * g
            return m / (0.999 * state["exp_avg_sq"].double() + 0.001 * g**2 + 1e-8).sqrt()
        t = int(state["step"]) + 1
        m = b1 * state["exp_avg"].double() + (1 - b1) * g
        v = b2 * state["exp_avg_sq"].double() + (1 - b2) * g**2
        return (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)

    def unit(parts: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.cat([p.flatten() for p in parts])
        return whole / whole.norm()

    aims = []
    for part in data.target.parts:
        found = [g for g in map(gradient, part) if g is not None]
        aims.append(torch.stack([unit(list(g.values())) for g in found]))
    out: dict[str, Any] = {}
    for row in (data.rows[i] for i in range(len(data.rows))):
        g = gradient(row)
        if g is None:
            out[str(row["dataflex_sample_ids"])] = None
            continue
        step = unit([direction(g[n], kept[n]) for n in g])
        out[str(row["dataflex_sample_ids"])] = [float((aim @ step).mean()) for aim in aims]
    return out


def disk_full(out: str, step: str) -> None:
    """From the checkpoint of `step` on, no file can grow beyond a few kilobytes."""
    import resource

    def fill(event: events.Saving) -> None:
        if event.step >= int(step):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    events.on(events.Saving, fill)


def nan_rows(out: str, ids: str) -> None:
    """Give the rows in `ids` (comma separated) a NaN loss whenever they are scored."""
    bad = torch.tensor([int(i) for i in ids.split(",")])

    def spoil(event: events.ScoredBatch) -> None:
        event.losses[torch.isin(event.ids.cpu(), bad).to(event.losses.device)] = torch.nan

    events.on(events.ScoredBatch, spoil)


def own_component(out: str, _: str) -> None:
    """Let `own_components.py` be imported by module:Class."""
    sys.path.insert(0, str(Path(__file__).parent))


def import_from(out: str, folder: str) -> None:
    """Components of the test's own."""
    sys.path.append(folder)


def small_pieces(out: str, tokens: str) -> None:
    """Keep signals in pieces of a single round, of batches of so many tokens, or of 50 texts."""
    from dataflex.signals import embeddings, pace
    from dataflex.signals.asking import context

    pace.PIECE_SECONDS, embeddings._TEXTS = 0.0, 50
    context.default_batch_tokens = lambda *args: int(tokens)


def kill_after_pieces(out: str, argument: str) -> None:
    """`<count>[=<index>]`: SIGKILL when so many pieces of a signal have been measured, of the first one that is kept or of
    the one at that index."""
    from dataflex.signals.keeping import disk, run

    count, _, index = argument.partition("=")
    left = [int(index or 0), int(count)]

    for kind in (disk.DiskCache, run.RunCache):

        def opened(self: Any, *args: Any, stock: Any = kind.__init__, **kwargs: Any) -> None:
            stock(self, *args, **kwargs)
            self.counted = left[0] == 0
            left[0] -= 1

        def put(self: Any, indices: Any, values: Any, stock: Any = kind.put) -> None:
            stock(self, indices, values)
            left[1] -= self.counted
            if left[1] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        kind.__init__, kind.put = opened, put


def count_measured(out: str, _: str) -> None:
    """Write to measured.json how many rows (of a reference, tokens) were measured of each signal that is kept."""
    from dataflex.signals.keeping import disk, run

    counts: list[int] = []

    def note() -> None:
        if os.environ.get("RANK", "0") == "0":
            (Path(out) / "measured.json").write_text(json.dumps(counts))

    for kind in (disk.DiskCache, run.RunCache):

        def opened(self: Any, *args: Any, stock: Any = kind.__init__, **kwargs: Any) -> None:
            counts.append(0)
            stock(self, *args, **kwargs)
            note()

        def put(self: Any, indices: Any, values: Any, stock: Any = kind.put) -> None:
            stock(self, indices, values)
            counts[-1] += len(values)
            note()

        kind.__init__, kind.put = opened, put


def count_passes(out: str, _: str) -> None:
    """Write to passes.json how many passes over rows of what kind were begun: {"gradients": n, ...}."""
    from dataflex.signals import batching
    from dataflex.signals.gradients import alignment

    stock, counts = batching.batches_of, {}

    def wrapped(rows: Any, name: str, batches: Any = None) -> Any:
        counts[name] = counts.get(name, 0) + 1
        (Path(out) / "passes.json").write_text(json.dumps(counts))
        return stock(rows, name, batches)

    batching.batches_of = alignment.batches_of = wrapped


def full_store(out: str, pieces: str) -> None:
    """No space is left for signals once so many pieces are written."""
    from dataflex.signals.keeping import disk

    left, stock = [int(pieces)], disk._write_rows

    def wrapped(*args: Any) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        stock(*args)

    disk._write_rows = wrapped


def damage_piece(out: str, argument: str) -> None:
    """`<step>=<name>`: before the run starts, spoil what is kept of that step: `values`, a byte of them; `line`, the last line
    of what is sealed, which is torn."""
    step, name = argument.split("=")
    (folder,) = (Path(out) / "dataflex" / "signals" / f"step_{step}").iterdir()
    if name == "line":
        sealed = folder / "done.jsonl"
        sealed.write_text(sealed.read_text()[:-9])
        return
    values = np.load(folder / "values.npy", mmap_mode="r+")
    found = np.flatnonzero(values.reshape(len(values), -1)[:, 0])  # a row that is there
    values[found[0]] += 1
    values.flush()


def no_encoder(out: str, _: str) -> None:
    """Fail if a text encoder is loaded."""
    import sentence_transformers

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a text encoder was loaded")

    sentence_transformers.SentenceTransformer = refuse


def short_stages(out: str, positions: str) -> None:
    """Continue stages after this many positions."""
    from dataflex.deciding import decisions as deciding

    deciding.MAX_STAGE = int(positions)


def dump_rows(out: str, _: str) -> None:
    """Write the token ids of all training and evaluation rows, and the domain sizes, to rows.json."""

    def write(event: events.Prepared) -> None:
        rows = {
            "train": [event.rows[i]["input_ids"] for i in range(len(event.rows))],
            "eval": [row["input_ids"] for row in event.evaluation or []],
            "domains": list(event.rows.domains.sizes),
        }
        (Path(out) / "rows.json").write_text(json.dumps(rows))

    events.on(events.Prepared, write)


def dump_held_out(out: str, _: str) -> None:
    """Write the held-out rows of every domain, without their ids, to held_out.json, and whether there are any."""
    from dataflex.data.rows import SAMPLE_IDS

    def write(event: events.Prepared) -> None:
        rows: dict[str, list[Any]] = {}
        if event.held_out is not None:
            domains = event.held_out.domains
            rows = {name: [] for name in domains.names}
            for i in range(len(event.held_out)):
                row = event.held_out[i]
                assert row.pop(SAMPLE_IDS) == i
                rows[domains.names[int(domains.of(np.array([i]))[0])]].append(row)
        (Path(out) / "held_out.json").write_text(json.dumps(rows))

    events.on(events.Prepared, write)


def record_routing(out: str, _: str) -> None:
    """Write the tokens of the rows that the routers of experts are measured on to routing.jsonl, one line per pass."""
    from dataflex.signals.asking import measures

    stock = measures.expert_counts

    def wrapped(model: Any, rows: Any, layer: int) -> np.ndarray:
        with (Path(out) / "routing.jsonl").open("a") as handle:
            handle.write(json.dumps([list(rows.rows[int(i)]["input_ids"]) for i in rows.ids]) + "\n")
        return stock(model, rows, layer)

    measures.expert_counts = wrapped


def no_tokenization(out: str, _: str) -> None:
    """Fail if anything is tokenized."""
    from llamafactory.data import loader

    @functools.wraps(loader._get_preprocessed_dataset)
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("tokenized a second time")

    loader._get_preprocessed_dataset = refuse


def mask_rows(out: str, ids: str) -> None:
    """Take every trainable token off the rows in `ids`."""
    from dataflex.data.rows import SAMPLE_IDS, Rows

    stock, masked = Rows.__getitems__, {int(i) for i in ids.split(",")}

    def wrapped(self: Any, indices: Any) -> Any:
        rows = stock(self, indices)
        return [{**r, "labels": [-100] * len(r["labels"])} if r[SAMPLE_IDS] in masked else r for r in rows]

    Rows.__getitems__ = wrapped


def no_model(out: str, _: str) -> None:
    """Fail if a model is loaded."""
    import llamafactory.model
    from llamafactory.train.pt import workflow as pt
    from llamafactory.train.sft import workflow as sft

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    llamafactory.model.load_model = pt.load_model = sft.load_model = refuse


def attempt_all(out: str, given: str) -> Callable[[list[str]], int]:
    """Run the cases of bad_input.py that the file `given` lists, and write {case: [status, what was printed]}."""

    def entry(arguments: list[str]) -> int:
        from bad_input import CASES, attempt
        from llamafactory.train.dpo import workflow as dpo

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("a model was loaded")

        dpo.load_model = refuse
        no_model(out, "")
        asked = json.loads(Path(given).read_text())
        found = attempt(CASES, asked["base"], Path(out) / "cases", asked["names"])
        (Path(out) / "found.json").write_text(json.dumps(found))
        return 0

    return entry


def extension_example(out: str, _: str) -> None:
    """Let the package in `examples/extension` be imported, as PYTHONPATH would."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "extension" / "src"))


def no_loss_kwargs(out: str, _: str) -> None:
    """What LLaMA-Factory does for a model with a processor: the loss is a mean over the micro-batch."""
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    stock = CustomSeq2SeqTrainer.__init__

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.model_accepts_loss_kwargs = False

    CustomSeq2SeqTrainer.__init__ = wrapped


def record_samples(out: str, _: str) -> None:
    """Write the token ids of every sample a stream serves to samples-<rank>.jsonl: one line per optimizer step, a list of
    [sample id, token ids without padding]."""
    file = Path(out) / f"samples-{os.environ.get('RANK', '0')}.jsonl"

    def record(event: events.BatchServed) -> None:
        rows = [
            [i, (row[mask.bool()] if mask.ndim == 1 else row).tolist()]
            for batch, micro in zip(event.batches, event.micro, strict=True)
            for i, row, mask in zip(micro.ids.tolist(), batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        with file.open("a") as handle:
            handle.write(json.dumps({"step": event.step, "rows": rows}) + "\n")

    events.on(events.BatchServed, record)


def count_rows(out: str, _: str) -> None:
    """Write to rows_read.jsonl how many rows each read of a stream asked for and got, with the process that read."""
    from dataflex.base.loading.streams import StreamedData

    stock = StreamedData.read

    def wrapped(self: Any, count: int) -> Any:
        rows = stock(self, count)
        with (Path(out) / "rows_read.jsonl").open("a") as handle:
            handle.write(json.dumps({"asked": count, "got": len(rows), "process": os.getpid()}) + "\n")
        return rows

    StreamedData.read = wrapped


def kill_reader(out: str, reads: str) -> None:
    """SIGKILL a process that reads ahead when it reads for the given time."""
    from dataflex.base.loading.streams import StreamedData

    stock, main, left = StreamedData.read, os.getpid(), [int(reads)]

    def wrapped(self: Any, count: int) -> Any:
        if os.getpid() != main:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return stock(self, count)

    StreamedData.read = wrapped


def no_row_losses(out: str, _: str) -> None:
    """As with a fused kernel that never shows the logits."""
    from dataflex.base.commands import train

    train.hides_row_losses = lambda lf: "the kernel hides the logits"


def dump_batches(out: str, _: str) -> None:
    """Save the micro-batches of the first step of this rank, with the ids of their rows, to batches-<rank>.pt; and the target."""
    from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS

    file, target = Path(out) / f"batches-{os.environ.get('RANK', '0')}.pt", list[Any]()

    def prepared(event: events.Prepared) -> None:
        target.extend(event.target[i]["input_ids"] for i in range(len(event.target or ())))

    def save(event: events.BatchServed) -> None:
        if not file.exists():
            kept = [
                {
                    **{k: v.clone() for k, v in batch.items() if torch.is_tensor(v)},
                    SAMPLE_IDS: micro.ids,
                    **({} if micro.weights is None else {GIVEN_WEIGHTS: micro.weights}),
                }
                for batch, micro in zip(event.batches, event.micro, strict=True)
            ]
            torch.save({"batches": kept, "target": target}, file)

    events.on(events.Prepared, prepared)
    events.on(events.BatchServed, save)


def record_weights(out: str, _: str) -> None:
    """Append the losses of each micro-batch of rank 0 and the weights they got to weights.jsonl."""

    def record(event: events.TrainedRows) -> None:
        with (Path(out) / "weights.jsonl").open("a") as file:
            found = None if event.weights is None else event.weights.tolist()
            line = {"ids": event.ids.tolist(), "losses": event.losses.tolist(), "weights": found}
            print(json.dumps({**line, "counts": event.counts.tolist()}), file=file)

    events.on(events.TrainedRows, record)


def nan_logits(out: str, ids: str) -> None:
    """Make the logits of rows `ids` NaN while training, in such a way that gradients pass through unchanged."""
    from dataflex.trainer import losses

    bad = torch.tensor([int(i) for i in ids.split(",")])
    stock = losses.RowLosses._forward

    def wrapped(self: Any, micro: Any, model: Any, inputs: Any) -> Any:
        broken = torch.isin(micro.ids, bad)
        noise = torch.where(broken, torch.nan, 0.0)[:, None, None]
        head = model.get_output_embeddings()
        hook = head.register_forward_hook(lambda _, __, logits: logits + noise)
        try:
            return stock(self, micro, model, inputs)
        finally:
            hook.remove()

    losses.RowLosses._forward = wrapped


def nan_weights_after(out: str, step: str) -> None:
    """The parameters are no numbers any more once optimizer step `step` is done."""

    def spoil(event: events.StepEnded) -> None:
        if event.step == int(step):
            with torch.no_grad():
                for parameter in event.trainer.model.parameters():
                    parameter.fill_(torch.nan)

    events.on(events.StepEnded, spoil)


def count_target_rows(out: str, _: str) -> None:
    """Write how many target rows this rank embedded to target-<rank>.json: a number per pass."""
    from dataflex.signals import embeddings

    stock, counts = embeddings.row_embeddings, []

    def wrapped(model: Any, batch: Any, *args: Any) -> Any:
        assert not model.training
        counts.append(len(batch["input_ids"]))
        (Path(out) / f"target-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(counts))
        return stock(model, batch, *args)

    embeddings.row_embeddings = wrapped


def ray_on_cpus(out: str, _: str) -> None:
    """Let LLaMA-Factory's Ray driver start workers on CPUs."""
    from ray_hooks import on_cpus

    on_cpus()


def broken(out: str, _: str) -> None:
    """A fault nobody foresaw, in the first step."""

    def broken_step(event: events.BatchServed) -> None:
        raise ZeroDivisionError("a fault of the test's")

    events.on(events.BatchServed, broken_step)


def own_cache(out: str, folder: str) -> None:
    """A data set cache that no other node shares."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(folder)


def no_dataflex(out: str, _: str) -> None:
    """As where the package is not installed."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "dataflex"]:
        del sys.modules[name]
    sys.modules["dataflex"] = None  # type: ignore[assignment]


def full_from(out: str, step: str) -> None:
    """From the decision before optimizer step `step` on, the ledger is on a device that has no room left."""
    ledger = Path(out) / "dataflex" / "ledger.jsonl"

    def fill(event: events.Deciding) -> None:
        if event.step >= int(step):
            ledger.unlink()
            ledger.symlink_to("/dev/full")

    events.on(events.Deciding, fill)


def fault_in(out: str, where: str) -> None:
    """A fault of ours of a kind that LLaMA-Factory refuses with: while data is loaded, or where it asks for a checkpoint."""
    from dataflex.base.loading import data
    from dataflex.record import completeness

    def fault(*_: Any) -> None:
        raise ValueError("a fault of the test's")

    if where == "data":
        data.check_budgets = fault
    else:
        completeness.newest_complete = fault


def kill_in_save(out: str, argument: str) -> None:
    """`<step>=<file>`: SIGKILL when half of a file that torch writes into the checkpoint of that step is written."""
    (step, name), save, at = argument.split("="), torch.save, [-1]

    def wrapped(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(content, file, *args, **kwargs)
        if at[0] == int(step) and str(file).endswith(name):
            os.truncate(file, os.path.getsize(file) // 2)
            kill()

    events.on(events.Saving, lambda event: at.__setitem__(0, event.step))
    torch.save = wrapped


def no_room_in_turn(out: str, step: str) -> None:
    """Save the checkpoint of `step` again and again, each time with no room for another one of its files, or for files above
    another size; write what each save ended with to no_room.json, and end by SIGKILL."""
    import resource

    from dataflex import writing
    from dataflex.trainer import checkpoints
    from dataflex.trainer.hooks import DynamicTrainer

    stock, begin, create = DynamicTrainer._maybe_log_save_evaluate, checkpoints.begin_checkpoint, writing._new_file
    full, ended = [""], dict[str, str]()

    def begun(folder: Path, **kwargs: Any) -> None:
        begin(folder, **kwargs)
        if full[0] and not full[0].startswith("dataflex"):
            (folder / full[0]).symlink_to("/dev/full")

    def created(path: str, flags: int) -> int:
        if full[0] and full[0].startswith("dataflex") and f"checkpoint-{step}/{full[0]}." in path:
            return os.open("/dev/full", os.O_WRONLY)
        return create(path, flags)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step != int(step):
            return stock(self, *args, **kwargs)

        def attempt(name: str) -> None:
            self.control.should_log, self.control.should_evaluate, self.control.should_save = False, False, True
            try:
                stock(self, *args, **kwargs)
                ended[name] = "saved"
            except BaseException as error:
                ended[name] = f"{type(error).__name__}: {error}"
            self.checkpoints.unsealed = None

        attempt("nothing")
        saved = Path(out) / f"checkpoint-{step}"
        sizes = {str(p.relative_to(saved)): p.stat().st_size for p in saved.rglob("*") if p.is_file()}
        # left out: what peft reads if it is there, and what is renamed to its place; both meet a limit of size below
        for full[0] in (name for name in sizes if not name.endswith((".md", ".safetensors"))):
            attempt(full[0])
        full[0] = ""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        for name, size in sizes.items():
            for limit in (size - 1, size // 2):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
                attempt(f"{limit} bytes, {name}")
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        (Path(out) / "no_room.json").write_text(json.dumps(ended))
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    DynamicTrainer._maybe_log_save_evaluate = wrapped
    checkpoints.begin_checkpoint, writing._new_file = begun, created


def pause_after(out: str, argument: str) -> None:
    """`<step>=<path>`: when optimizer step `step` is done, make the file `paused`, and wait until there is one at the path."""
    import time

    step, path = argument.split("=", 1)

    def wait(event: events.StepEnded) -> None:
        if event.step == int(step):
            (Path(out) / "paused").touch()
            while not Path(path).exists():
                time.sleep(0.05)

    events.on(events.StepEnded, wait)


def block_optimizer(out: str, _: str) -> None:
    """In place of the package that `use_badam` needs: one parameter after the other, in turns kept outside state_dict."""
    import sys
    import types

    import torch
    import transformers
    from llamafactory.hparams import parser

    class BlockOptimizer(torch.optim.Optimizer):
        def __init__(self, base_optimizer: Any, **_: Any) -> None:
            self.base = base_optimizer
            super().__init__(base_optimizer.param_groups, base_optimizer.defaults)

        def step(self, closure: Any = None) -> None:
            self.base.step()

    module = types.ModuleType("badam")
    module.BlockOptimizer = BlockOptimizer  # type: ignore[attr-defined]
    module.BAdamCallback = transformers.TrainerCallback  # type: ignore[attr-defined]
    module.clip_grad_norm_old_version = lambda _, *args, **kwargs: torch.nn.utils.clip_grad_norm_(*args)  # type: ignore[attr-defined]
    sys.modules["badam"] = module
    parser.check_version = lambda *_, **__: None  # it looks for the package's metadata
