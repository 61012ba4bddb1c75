"""Weights without a run: normalisation, what is weighed, the losses they reach, and the weighters against their formulas."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataflex.components.contexts import WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.requests import Embedding, GivenWeight, ReferenceLoss
from dataflex.components.weighters.adapt import AdaptWeighter
from dataflex.components.weighters.column import ColumnWeighter
from dataflex.components.weighters.domain import DomainWeighter
from dataflex.components.weighters.focal import FocalWeighter
from dataflex.components.weighters.joint_update_aware import JointUpdateAwareWeighter
from dataflex.components.weighters.loss import LossWeighter
from dataflex.components.weighters.rho1 import Rho1Weighter
from dataflex.config.schema import WeightPart
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.weighting.objectives import Objective
from dataflex.weighting.units import LossEntries, Tokens
from dataflex.weighting.weighing import Weighing
from dataflex.weighting.weights import rounding_of

CPU = torch.device("cpu")
GIVEN = GivenWeight()
NONE = torch.zeros(0, dtype=torch.int64)


def context(reference: torch.Tensor, step: int = 0, **signals: Any) -> WeightContext:
    """signals: name=(of the rows, of the comparison batch)"""
    return WeightContext(
        reference=reference, ids=NONE, domains=NONE, step=step,
        signals={k: v[0] for k, v in signals.items()}, reference_signals={k: v[1] for k, v in signals.items()},
    )  # fmt: skip


# -- the weighters ---------------------------------------------------------------------------------------------------


def test_temperatures_follow_their_schedule() -> None:
    weighter = LossWeighter(r_schedule=((10, 4.0), (20, 1.0), (22, 0.5)))
    found = [weighter.temperature(step) for step in (0, 10, 15, 20, 21, 22, 99)]
    assert found == [4.0, 4.0, 2.5, 1.0, 0.75, 0.5, 0.5]
    losses = torch.tensor([1.0, 2.0, 3.0])  # h = -1, 0, 1 and f = 0, 1, 1
    weights = weighter.weights({}, losses, context(losses, step=15))
    torch.testing.assert_close(weights / weights[0], torch.tensor([0.0, 1 / 2.5, 1 / 2.5]).exp())


def test_adapt_is_the_mean_cosine_to_every_anchor() -> None:
    draw = np.random.default_rng(0)
    rows, anchors = draw.normal(size=(5, 8)).astype(np.float32), draw.normal(size=(7, 8)).astype(np.float32)
    weighter = AdaptWeighter(tau=0.3)
    state = weighter.aim({}, np.concatenate([anchors, np.full((1, 8), np.nan, np.float32)]))
    found = weighter.weights(state, torch.zeros(5), context(torch.zeros(5), embedding=(torch.tensor(rows),) * 2))
    for i, row in enumerate(rows):
        cosines = [row @ a / np.linalg.norm(row) / np.linalg.norm(a) for a in anchors]
        assert float(found[i]) == pytest.approx(1 / (1 + np.exp(-np.mean(cosines) / 0.3)), rel=1e-5)
    clipped = AdaptWeighter(tau=0.3, clip=1.05).weights(
        state, torch.zeros(5), context(torch.zeros(5), embedding=(torch.tensor(rows),) * 2)
    )
    torch.testing.assert_close(clipped, found.clamp_max(float(1.05 * found.mean())))
    assert (clipped < found).any()


@pytest.mark.parametrize("mode", ["full", "align_only", "diverse_only"])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_joint_weights_are_the_fixed_point(mode: str, damping: float) -> None:
    draw = np.random.default_rng(1)
    rows, target = draw.normal(size=(6, 8)), draw.normal(size=(4, 8))
    beta, tau, times = 0.4, 0.2, 7
    z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    u = np.mean([t / np.linalg.norm(t) for t in target], axis=0)
    s = z @ u if mode != "diverse_only" else np.zeros(6)
    similarity = z @ z.T if mode != "align_only" else np.zeros((6, 6))
    w = np.full(6, 1 / 6)
    for _ in range(times):
        e = np.exp((s - beta * similarity @ w) / tau)
        w = (1 - damping) * w + damping * e / e.sum()
    expected = np.exp((s - beta * similarity @ w) / tau)
    weighter = JointUpdateAwareWeighter(
        beta=beta, tau=tau, fixed_point_iters=times, damping=damping, objective_mode=mode
    )
    state = weighter.aim({}, target.astype(np.float32)) if mode != "diverse_only" else {}
    all_rows = torch.tensor(rows, dtype=torch.float32)
    found = weighter.weights(state, torch.zeros(6), context(torch.zeros(6), embedding=(all_rows, all_rows))).numpy()
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-5)
    part = weighter.weights(state, torch.zeros(2), context(torch.zeros(6), embedding=(all_rows[2:4], all_rows)))
    np.testing.assert_allclose(part.numpy(), found[2:4], rtol=1e-5)  # each row by itself


def test_joint_weights_maximise_the_objective() -> None:
    """After enough iterations no point of the simplex nearby is better."""
    draw = np.random.default_rng(2)
    rows, target = draw.normal(size=(5, 6)), draw.normal(size=(3, 6))
    weighter = JointUpdateAwareWeighter(beta=0.3, tau=0.5, fixed_point_iters=200)
    state = weighter.aim({}, target.astype(np.float32))
    both = (torch.tensor(rows, dtype=torch.float32),) * 2
    w = weighter.weights(state, torch.zeros(5), context(torch.zeros(5), embedding=both)).double().numpy()
    w /= w.sum()
    z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    s, similarity = z @ state["u"], z @ z.T

    def objective(p: np.ndarray) -> float:
        return float(s @ p - 0.15 * p @ similarity @ p - 0.5 * (p * np.log(p)).sum())

    for _ in range(50):
        other = w * np.exp(0.01 * draw.normal(size=5))
        assert objective(other / other.sum()) <= objective(w) + 1e-9


def test_rho1_keeps_the_share_with_the_greatest_excess() -> None:
    draw = torch.Generator().manual_seed(0)
    losses, known = torch.rand(40, generator=draw), torch.rand(40, generator=draw)
    weighter = Rho1Weighter(reference_model_path="x", keep_ratio=0.3)
    found = weighter.weights({}, losses, context(losses, reference_loss=(known, known)))
    best = sorted(range(40), key=lambda i: float(known[i] - losses[i]))[:12]
    assert [i for i in range(40) if found[i]] == sorted(best)
    torch.testing.assert_close((found / found.mean() * losses).sum() / 40, losses[sorted(best)].mean())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_rho1_keeps_what_rounding_alone_sets_apart(kind: torch.dtype) -> None:
    """With the model itself as the reference every excess is rounding noise, and every token is trained on. The logits of both
    passes have been rounded, each in its own way."""
    draw = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(3000, 50, generator=draw)
    target = torch.randint(50, (3000,), generator=draw)
    target[:2000] = logits[:2000].argmax(dim=1)  # most tokens are easy, as in text

    def measured() -> torch.Tensor:
        noise = torch.finfo(kind).eps * (torch.rand(logits.shape, generator=draw) - 0.5)
        noisy = (logits * (1 + noise)).to(kind).float()
        return torch.nn.functional.cross_entropy(noisy, target, reduction="none")

    losses, reference = measured(), measured()
    given: dict[str, Any] = {
        "signals": {"reference_loss": reference},
        "reference_signals": {"reference_loss": reference},
    }
    rho1 = Rho1Weighter(reference_model_path="x")
    exact = WeightContext(reference=losses, ids=NONE, domains=NONE, step=0, **given)
    assert kind == torch.float32 or float(rho1.weights({}, losses, exact).mean()) < 0.8
    rounded = WeightContext(reference=losses, ids=NONE, domains=NONE, step=0, rounding=torch.finfo(kind).eps, **given)
    assert rho1.weights({}, losses, rounded).all()
    higher = losses + torch.linspace(0, 3, 3000)  # differences that mean something still count
    told = replace(rounded, reference=higher)
    assert rho1.weights({}, higher, told).mean() == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.4, 0.6, 0.95])
@pytest.mark.parametrize("apart", [0.25, 1.0])
def test_rho1_takes_its_share_where_the_reference_is_another_model(keep_ratio: float, apart: float) -> None:
    """In bf16 too: exactly the top of the excess losses, ties kept. apart: how far the logits of both are from one another."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3000, 50, generator=draw)
    target = torch.randint(50, (3000,), generator=draw)
    target[:1500] = logits[:1500].argmax(dim=1)

    def measured(found: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(found.bfloat16().float(), target, reduction="none")

    reference, losses = measured(logits), measured(logits + apart * torch.randn(logits.shape, generator=draw))
    told = replace(context(losses, reference_loss=(reference, reference)), rounding=2.0**-7)
    found = Rho1Weighter(reference_model_path="x", keep_ratio=keep_ratio).weights({}, losses, told)
    excess = losses - reference
    assert torch.equal(found.bool(), excess >= excess.sort(descending=True).values[ceil(keep_ratio * 3000) - 1])
    assert keep_ratio * 3000 <= found.sum() <= keep_ratio * 3000 + 30


def test_the_rounding_of_a_run_is_that_of_its_coarsest_type() -> None:
    model = torch.nn.Linear(2, 2)
    assert rounding_of(model, "no") == 2**-23 and rounding_of(model, "bf16") == 2**-7
    model.bias.data = model.bias.data.half()
    assert rounding_of(model, "no") == 2**-10 and rounding_of(model, "fp16") == 2**-10


def test_focal_weights() -> None:
    probabilities = torch.tensor([0.9, 0.5, 0.1])
    found = FocalWeighter(gamma=2.0).weights({}, -probabilities.log(), context(NONE))
    torch.testing.assert_close(found, torch.tensor([0.01, 0.25, 0.81]))
    assert FocalWeighter(gamma=0.0).weights({}, torch.tensor([0.0, 5.0]), context(NONE)).tolist() == [1.0, 1.0]


# -- normalisation ---------------------------------------------------------------------------------------------------


class Given(Weighter):
    """Weighs a row by its loss, or by a power of it."""

    power: float = 1.0

    def __init__(self, power: float = 1.0) -> None:
        object.__setattr__(self, "power", power)

    def weights(self, state: dict[str, Any], losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        return losses**self.power


def weighing(*parts: WeightPart) -> Weighing:
    slots = {f"weight.{i}": part for i, part in enumerate(parts)}
    return Weighing(slots, Domains(("a", "b"), (5, 5)), CPU, "w", equal_counts=True)


def entries(*losses: float) -> LossEntries:
    return LossEntries(torch.tensor(losses), torch.arange(len(losses)))


def weigh(found: Weighing, rows: LossEntries, step: int = 0) -> torch.Tensor | None:
    states: dict[str, dict[str, Any]] = {slot: {} for slot in found.parts}
    return found.weigh(rows, torch.ones(len(rows), dtype=torch.bool), states, step)


def test_weights_have_mean_one_over_the_comparison_batch() -> None:
    one = weighing(WeightPart(name="x", component=Given()))
    assert weigh(one, entries(1.0)) is None  # nothing to compare with yet
    one.compare_with(entries(1.0, 2.0, 3.0))
    assert weigh(one, entries(1.0, 2.0, 3.0)).tolist() == [0.5, 1.0, 1.5]
    assert weigh(one, entries(4.0)).tolist() == [2.0]  # a later row, by the same comparison batch


def test_several_weighters_multiply_and_are_normalised_once_more() -> None:
    two = weighing(WeightPart(name="x", component=Given()), WeightPart(name="y", component=Given(2.0)))
    two.compare_with(entries(1.0, 2.0, 3.0))
    found = weigh(two, entries(1.0, 2.0, 3.0))
    cubes = torch.tensor([1.0, 8.0, 27.0])
    torch.testing.assert_close(found, cubes / cubes.mean())


def test_strength_rises_and_falls() -> None:
    part = WeightPart(name="x", component=Given(), warmup=2, ramp=4, until=10, fade=5)
    assert [part.strength(s) for s in (0, 1, 2, 3, 6, 9, 10, 11, 14, 15, 99)] == [
        0.0, 0.0, 0.0, 0.25, 1.0, 1.0, 1.0, 0.8, pytest.approx(0.2), 0.0, 0.0,
    ]  # fmt: skip
    one = weighing(part)
    one.compare_with(entries(1.0, 2.0, 3.0))
    assert weigh(one, entries(1.0, 2.0, 3.0), step=2) is None
    one.compare_with(entries(1.0, 2.0, 3.0))
    torch.testing.assert_close(weigh(one, entries(1.0, 2.0, 3.0), step=3), torch.tensor([0.875, 1.0, 1.125]))
    assert WeightPart(name="x", component=Given(), until=3).strength(3) == 0.0


def test_rows_that_do_not_count() -> None:
    """NaN losses, rows without tokens and padding: weight zero, not part of any mean; the first two are reported."""
    one = weighing(WeightPart(name="x", component=Given()))
    rows = LossEntries(torch.tensor([1.0, torch.nan, 5.0, 3.0]), torch.tensor([0, 1, 2, 3])).padded(6)
    one.compare_with(rows)
    counting = torch.tensor(
        [True, True, False, True, True, True]
    )  # 5.0 has no tokens, but a loss in the comparison batch
    found = one.weigh(rows, counting, {"weight.0": {}}, 0)
    torch.testing.assert_close(found, torch.tensor([1 / 3, 0.0, 0.0, 1.0, 0.0, 0.0]))
    scalars = one.scalars()
    assert scalars.pop("w/effective_share") == pytest.approx((4 / 3) ** 2 / (1 / 9 + 1) / 2)
    assert scalars == {"w/min": pytest.approx(1 / 3), "w/max": 1.0, "w/zero_share": 0.0, "w/left_out": 2.0}
    assert one.scalars() == {}


def test_all_weights_zero_stay_zero() -> None:
    """But a row later than a comparison batch of zeros has nothing to be compared with."""
    one = weighing(WeightPart(name="x", component=Given()))
    one.compare_with(entries(0.0, 0.0))
    assert weigh(one, entries(0.0, 0.0)).tolist() == [0.0, 0.0]
    assert one.scalars()["w/zero_share"] == 1.0
    later = one.weigh(entries(50.0, 0.0), torch.ones(2, dtype=torch.bool), {"weight.0": {}}, 0, in_comparison=False)
    assert later.tolist() == [1.0, 1.0]


def test_what_weights_are_divided_by_is_found_anew_at_every_step() -> None:
    """Also where the comparison batch stays: a second weighter may have begun to act."""
    second = WeightPart(name="y", component=Given(2.0), warmup=1)
    two = weighing(WeightPart(name="x", component=Given()), second)
    rows = entries(1.0, 2.0, 3.0)
    two.compare_with(rows)
    assert weigh(two, rows, step=0).tolist() == [0.5, 1.0, 1.5]
    cubes = torch.tensor([1.0, 8.0, 27.0])
    torch.testing.assert_close(weigh(two, rows, step=1), cubes / cubes.mean())


class Wrong(Weighter):
    """Returns what it was made with."""

    def __init__(self, found: Any) -> None:
        object.__setattr__(self, "found", found)

    def weights(self, state: dict[str, Any], losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.ones(2, 1), r"x returned \[2, 1\] for 2 losses"),
        ([1.0, 2.0], "x returned list for 2 losses"),
        (torch.tensor([1.0, -1.0]), "negative or not finite"),
        (torch.tensor([1.0, torch.nan]), "negative or not finite"),
    ],
)
def test_what_is_no_weight_is_refused(found: Any, message: str) -> None:
    one = weighing(WeightPart(name="x", component=Wrong(found)))
    one.compare_with(entries(1.0, 2.0))
    with pytest.raises(DataflexError, match=message):
        weigh(one, entries(1.0, 2.0))


def test_signals_are_gathered_in_one_order_on_all_ranks() -> None:
    """The order of a set of requests is that of hashes, which differ between processes."""
    known, embedding = ReferenceLoss(model="m"), Embedding()
    values = {known: torch.ones(2), embedding: torch.zeros(2, 3), "given_weight": torch.ones(2)}
    orders = []
    for keys in (list(values), list(reversed(values))):
        seen: list[tuple[int, ...]] = []
        rows = LossEntries(torch.ones(2), torch.arange(2), {k: values[k] for k in keys})
        rows.mapped(lambda v, seen=seen: seen.append(tuple(v.shape)) or v)
        orders.append(seen)
    assert orders[0] == orders[1] and len(orders[0]) == 5


def test_a_file_of_weights_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "proportions.json"
    file.write_text('{"a": 0.25, "b": 0.75}')
    weighter = DomainWeighter(by_domain=str(file))
    weighter.check_domains(("a", "b"))
    file.unlink()
    rows = torch.zeros(3)
    given = WeightContext(reference=rows, ids=NONE, domains=torch.tensor([1, 0, 1]), step=0, names=("a", "b"))
    assert weighter.weights({}, rows, given).tolist() == [0.75, 0.25, 0.75]


def test_the_comparison_batch_survives_a_checkpoint() -> None:
    part = WeightPart(name="x", component=ColumnWeighter())
    first, second = weighing(part), weighing(part)
    rows = LossEntries(torch.tensor([1.0, 2.0]), torch.tensor([7, 3]), {GIVEN: torch.tensor([1.0, 3.0])})
    first.collect(rows)
    assert first.compare_with_collected() and not first.compare_with_collected()
    second.load_state_dict(first.state_dict())
    assert weigh(second, rows).tolist() == weigh(first, rows).tolist() == [0.5, 1.5]


# -- what is weighed -------------------------------------------------------------------------------------------------


def packed() -> tuple[Tokens, list[list[slice]]]:
    """Two packed rows of 9 tokens, the last two of the first one padding; and where their sequences lie."""
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 0, 1, 2, 3, 0, 1, 2]])
    learned = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1, 0, 0, 0]]).bool()
    active = F.pad(learned[:, 1:], (0, 1), value=False)
    losses = torch.rand(2, 9) * active
    inputs = {"input_ids": torch.ones(2, 9, dtype=torch.int64), "position_ids": positions}
    tokens = Tokens(losses, active, inputs, {-1: torch.randn(2, 9, 4)}, given=torch.rand(2, 9))
    return tokens, [[slice(0, 4), slice(4, 7)], [slice(0, 2), slice(2, 6)]]  # the last one has nothing to learn


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last"])
def test_sequences_of_packed_rows_are_weighed_by_themselves(pooling: Any) -> None:
    tokens, sequences = packed()
    request = Embedding(pooling=pooling)
    found, entry = tokens.by_sequence(torch.tensor([11, 22]), frozenset({request, GIVEN}))
    assert found.ids.tolist() == [11, 11, 22, 22]
    number = 0
    for row, parts in enumerate(sequences):
        for part in parts:
            own = slice(max(part.start - 1, 0), part.stop - 1)  # a token is predicted from the one before
            learned = tokens.active[row, own]
            torch.testing.assert_close(found.losses[number], tokens.losses[row, own][learned].mean())
            given = tokens.given[row, own.start + 1 : own.stop + 1][learned]
            torch.testing.assert_close(found.signals[GIVEN][number], given.mean())
            assert (entry[row, own][learned] == number).all()
            hidden = tokens.hidden[-1][row, part]
            n = len(hidden)
            weights = {"mean": torch.ones(n), "weighted_mean": torch.arange(1.0, n + 1), "last": torch.eye(n)[-1]}[
                pooling
            ]
            expected = (weights[:, None] * hidden).sum(0) / weights.sum()
            torch.testing.assert_close(found.signals[request][number], expected)
            number += 1


def test_neat_packing_shows_sequences_in_its_mask_too() -> None:
    tokens, _ = packed()
    mask = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 2, 2, 2, 3, 3, 3]])
    masked = Tokens(tokens.losses, tokens.active, {"input_ids": mask, "attention_mask": mask})
    first, _ = tokens.by_sequence(torch.tensor([0, 1]), frozenset())
    second, _ = masked.by_sequence(torch.tensor([0, 1]), frozenset())
    torch.testing.assert_close(first.losses, second.losses)


def test_tokens_and_rows() -> None:
    tokens, _ = packed()
    known = ReferenceLoss(model="m")
    tokens = Tokens(tokens.losses, tokens.active, {}, reference_losses={known: torch.rand(2, 9)}, given=tokens.given)
    by_token = tokens.by_token(torch.tensor([4, 9]), frozenset({known, GIVEN}))
    assert by_token.ids.tolist() == [4, 4, 4, 4, 9, 9]
    assert by_token.losses.tolist() == tokens.losses[tokens.active].tolist()
    assert by_token.signals[known].tolist() == tokens.reference_losses[known][tokens.active].tolist()
    learned = F.pad(tokens.active[:, :-1], (1, 0))
    assert by_token.signals[GIVEN].tolist() == tokens.given[learned].tolist()
    by_row = tokens.by_row(torch.tensor([4, 9]), torch.tensor([1.0, 2.0]), frozenset({known}))
    torch.testing.assert_close(by_row.signals[known][0], tokens.reference_losses[known][0][tokens.active[0]].mean())
    nothing = Tokens(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), {"input_ids": torch.ones(1, 3).long()})
    assert len(nothing.by_sequence(torch.tensor([0]), frozenset())[0]) == 0


# -- what is minimised -----------------------------------------------------------------------------------------------


class _Reference:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("kind", ["cross_entropy", "dft", "eaft", "asft", "smoothed"])
def test_objectives_are_those_of_llamafactory(kind: str) -> None:
    """Value and gradient of the sum over tokens against the functions that LLaMA-Factory itself calls."""
    from llamafactory.train.trainer_utils import asft_loss_func, dft_loss_func, eaft_loss_func
    from transformers.trainer_pt_utils import LabelSmoother

    torch.manual_seed(3)
    logits, other = torch.randn(3, 7, 30, requires_grad=True), torch.randn(3, 7, 30)
    labels = torch.randint(0, 30, (3, 7))
    labels[:, :2], labels[1, 5:] = -100, -100
    made = Objective(kind, smoothing=0.2, eaft_alpha=0.7, asft_alpha=0.3, reference_model=_Reference(other))
    objective, losses, active = made.of_tokens(logits, labels, {"input_ids": labels})
    outputs, count = {"logits": logits}, int(active.sum())
    stock = {
        "cross_entropy": lambda: F.cross_entropy(logits[:, :-1].reshape(-1, 30), labels[:, 1:].reshape(-1)),
        "dft": lambda: dft_loss_func(outputs, labels, torch.tensor(count)),
        "eaft": lambda: eaft_loss_func(outputs, labels, torch.tensor(count), 0.7),
        "asft": lambda: asft_loss_func(outputs, labels, other, 0.3),
        "smoothed": lambda: LabelSmoother(epsilon=0.2)(outputs, labels, shift_labels=True),
    }[kind]()
    torch.testing.assert_close(objective.sum() / count, stock)
    ours, theirs = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (objective.sum() / count, stock))
    torch.testing.assert_close(ours, theirs)
    assert not losses.requires_grad and not objective[~active].any()
