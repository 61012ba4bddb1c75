"""WeightTrainer: how hard each sample pulls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from dataflex.components.contracts import declared
from dataflex.components.requests import as_requests
from dataflex.config.schema import WeightConfig
from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS
from dataflex.trainer.core import DynamicTrainer
from dataflex.weighting.units import Sample, Tokens
from dataflex.weighting.weighing import Weighing


class WeightTrainer(DynamicTrainer):
    """Row and token weights with mean one over what they refer to (see `Weighing`).

    Without accumulation that is the global batch: its losses are gathered between forward and backward. With
    accumulation, `running` uses the global batch of the step before (the first step is unweighted), and `global` makes
    a pre-pass over the micro-batches of the step, in training mode and with the random state put back, so that the
    losses seen are those of the step itself. packed: rows hold several sequences, each weighed by itself.
    """

    packed: ClassVar[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        by_level: dict[str, dict[str, Any]] = {}
        for slot, part in self._spec.slots().items():
            by_level.setdefault(declared(part.component.level), {})[slot] = part
        self._levels = {
            level: Weighing(
                parts,
                self.rows.domains,
                self.args.device,
                prefix="dataflex/weight" if level == "row" else "dataflex/weight/token",
                even=level == "row" and not self.packed,
                rounding=rounding_of(self.model, self.accelerator.mixed_precision),
            )
            for level, parts in by_level.items()
        }
        states = [r.hidden_states() for level in self._levels.values() for r in level.requests()]
        self.hidden_layers = frozenset(found[0] for found in states if found is not None)
        self._surveying: list[dict[str, Sample]] | None = None
        self._surveyed = False  # whether the reference is that of this step
        self._aimed: dict[str, int] = {}  # step at which a weighter has last taken in its target

    @property
    def _spec(self) -> WeightConfig:
        assert self.config.weight is not None
        return self.config.weight

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self._step_batches and inputs is self._step_batches[0]:
            self._aim()
            step = self.state.global_step
            acts = any(part.strength(step) > 0 for part in self._spec.parts)
            if acts and len(self._step_batches) > 1 and self._spec.scope == "global":
                self._survey(model)
        return super().training_step(model, inputs, num_items_in_batch)

    def _survey(self, model: Any) -> None:
        """Refer to the losses of all micro-batches of this step, found before the first backward."""
        model.train()
        if hasattr(self.optimizer, "train") and callable(
            self.optimizer.train
        ):  # schedule-free ones, as the Trainer does
            self.optimizer.train()
        self._surveying = []
        with _same_random_state(), torch.no_grad():
            for batch in self._step_batches:
                self._micro_ids, self._micro_given = batch[SAMPLE_IDS].cpu(), batch.get(GIVEN_WEIGHTS)
                rest = {k: v for k, v in batch.items() if k not in (SAMPLE_IDS, GIVEN_WEIGHTS)}
                inputs = self._prepare_inputs(rest)
                with self.compute_loss_context_manager():
                    self._look(model, inputs)
        seen, self._surveying, self._surveyed = self._surveying, None, True
        for level, weighing in self._levels.items():
            for found in seen:
                weighing.see(found[level])
            weighing.close()

    def _look(self, model: Any, inputs: Any) -> None:
        """A forward pass that adds to the survey."""
        if self.stage_name in ("pt", "sft"):
            _, _, tokens = self._forward_tokens(model, inputs)
            counts = tokens.active.sum(dim=1)
            self._weigh(tokens.losses.sum(dim=1) / counts, counts > 0, tokens)
        elif self.stage_name == "kto":
            self._micro_tags = inputs["kto_tags"]
            self.get_batch_loss_metrics(model, inputs)
        else:
            losses = self._score(model, inputs)
            self._weigh(losses, torch.isfinite(losses), None)

    def _observe(self, losses: torch.Tensor, counts: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        if self._surveying is not None:
            return self._weigh(losses, counts > 0, None)
        return super()._observe(losses, counts, *args, **kwargs)

    def _weigh(self, losses: torch.Tensor, trainable: torch.Tensor, tokens: Tokens | None) -> torch.Tensor | None:
        samples, place = self._samples(losses, tokens)
        if self._surveying is not None:
            self._surveying.append(samples)
            return None
        out: torch.Tensor | None = None
        for level, weighing in self._levels.items():
            sample, alone = samples[level], len(self._step_batches) == 1
            if alone:
                weighing.refer(sample)
            elif self._spec.scope == "running":
                weighing.see(sample)
            counted = torch.ones(len(sample), dtype=torch.bool, device=sample.losses.device)
            if level == "row" and place is None:
                counted[: len(trainable)] = trainable
            within = alone or self._spec.scope == "global"
            weights = weighing.weigh(sample, counted, self.states, self.state.global_step, within)
            if weights is None:
                continue
            if level == "row" and place is None:
                found = weights[: len(losses)]
            elif level == "row":
                assert tokens is not None and place is not None
                found = torch.zeros_like(tokens.losses)
                found[tokens.active] = weights[place[tokens.active]]
            else:
                assert tokens is not None
                found = torch.zeros_like(tokens.losses)
                found[tokens.active] = weights
            out = found if out is None else _times(out, found)
        return out

    def _samples(self, losses: torch.Tensor, tokens: Tokens | None) -> tuple[dict[str, Sample], torch.Tensor | None]:
        """What each level weighs of this micro-batch; and for sequences of packed rows the entry of every token."""
        assert self._micro_ids is not None
        ids, place = self._micro_ids, None
        out = {}
        for level, weighing in self._levels.items():
            requests = weighing.requests()
            if level == "token":
                assert tokens is not None
                out[level] = tokens.by_token(ids, requests)
            elif tokens is None:
                given = {r: self._micro_given.to(losses) for r in requests if self._micro_given is not None}
                out[level] = Sample(losses.float(), ids.to(losses.device), given)
            elif self.packed:
                out[level], place = tokens.by_sequence(ids, requests)
            else:
                out[level] = tokens.by_row(ids, losses, requests)
            if weighing.even:
                out[level] = out[level].padded(self._train_batch_size)
        return out, place

    def _close_step(self) -> None:
        super()._close_step()
        if not self._step_batches:
            return
        for weighing in self._levels.values():
            if weighing.close() or len(self._step_batches) == 1 or self._surveyed:
                weighing.learn(self.states, self.state.global_step)
        self._step_batches, self._surveyed = [], False

    # -- targets -----------------------------------------------------------------------------------------------------

    def _aim(self) -> None:
        """Show the target, as the current model sees it, to the weighters that are due."""
        step = self.state.global_step
        for slot, part in self._spec.slots().items():
            interval, weighter = declared(part.component.target_interval), part.component
            if interval is None or part.strength(step) == 0:
                continue
            last = self._aimed.get(slot)
            if last is not None and step - last < interval:
                continue
            begin = time.perf_counter()
            (request,) = [r for r in as_requests(declared(weighter.needs)) if r.per == "target row"]
            self.states[slot] = weighter.aim(self.states[slot], self.signals.measure(request))
            self._aimed[slot] = step
            self._log_decision(
                step,
                f"{slot}:{part.name}",
                {"target_rows": len(self.signals.rows_of(request))},
                {},
                time.perf_counter() - begin,
            )

    # -- saving ------------------------------------------------------------------------------------------------------

    def _extra_state(self) -> dict[str, Any]:
        out = super()._extra_state()
        for weighing in self._levels.values():
            out |= weighing.saved()
        return out | {f"aimed {slot}": step for slot, step in self._aimed.items()}

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        super()._restore_extra(extra)
        for weighing in self._levels.values():
            weighing.restore(extra)
        self._aimed = {k.removeprefix("aimed "): int(v) for k, v in extra.items() if k.startswith("aimed ")}

    def _scalars(self) -> dict[str, float]:
        out = super()._scalars()
        for weighing in self._levels.values():
            out |= weighing.scalars()
        return out


def rounding_of(model: torch.nn.Module, autocast: str) -> float:
    """eps of the coarsest floating type among the parameters and that of autocast (`bf16`, `fp16`, `no`, ...)."""
    types = {
        p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    types |= {"bf16": {torch.bfloat16}, "fp16": {torch.float16}}.get(autocast, set())
    return max((torch.finfo(t).eps for t in types), default=torch.finfo(torch.float32).eps)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Afterwards torch's generators are as they were before."""
    cpu = torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    yield
    torch.random.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of weights of rows, [B], or tokens, [B, T]."""
    if a.ndim == b.ndim:
        return a * b
    return a[:, None] * b if a.ndim == 1 else a * b[:, None]
