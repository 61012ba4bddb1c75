"""Per-sample gradients in batches, against one backward pass per row in fp64."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from dataflex.components.gradient_requests import Features, TargetAlignment
from dataflex.demo.model import build_model
from dataflex.signals.asking.measures import measure_of
from dataflex.signals.batching import ScoringRows
from dataflex.signals.cross_entropy import IGNORE
from dataflex.signals.gradients import attention as attention_module
from dataflex.signals.gradients import capture
from dataflex.signals.gradients import factors as factors_module
from dataflex.signals.gradients import passes as passes_module
from dataflex.signals.gradients import projection as projection_module
from dataflex.signals.gradients.alignment import alignment, exact_targets, group_products
from dataflex.signals.gradients.directions import (
    AdamDirection,
    AuthorsDirection,
    Moments,
    has_moments,
    optimizer_moments,
)
from dataflex.signals.gradients.factors import Factors, dots_and_norms
from dataflex.signals.gradients.passes import MERGE_WEIGHTS, BatchGradients
from dataflex.signals.gradients.projection import Concatenation, Projection
from dataflex.signals.gradients.sites import find_sites

FAMILIES = ("qwen2", "llama", "gpt2")
ROWS = 7
EMPTY = 4  # a row without trainable tokens


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """(family, "full" or "lora") -> a tiny fp32 model with dropout, in evaluation mode; LoRA's B is not zero."""
    out = {}
    for family in FAMILIES:
        path = tmp_path_factory.mktemp(family)
        sizes: dict[str, Any] = {
            "hidden_size": 24,
            "heads": 2,
            "kv_heads": 1,
            "intermediate_size": 40,
            "vocab_size": 300,
        }
        model, _ = build_model(path, ["a few words"], family=family, attention_dropout=0.1, **sizes)
        out[family, "full"] = model.eval()
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM")
        lora = get_peft_model(copy.deepcopy(model), config)
        torch.manual_seed(0)
        for name, parameter in lora.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        out[family, "lora"] = lora.eval()
    return out


def rows() -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of ROWS rows of different lengths, prompts masked."""
    generator = torch.Generator().manual_seed(5)
    out = []
    for i in range(ROWS):
        ids = torch.randint(3, 250, (5 + 3 * i,), generator=generator).tolist()
        labels = [IGNORE] * (1 + i % 3) + ids[1 + i % 3 :]
        out.append((ids, [IGNORE] * len(ids) if i == EMPTY else labels))
    return out


def collate(chosen: list[tuple[list[int], list[int]]], side: str = "right") -> dict[str, torch.Tensor]:
    length = max(len(ids) for ids, _ in chosen)

    def fill(values: list[int], pad: int) -> list[int]:
        gap = [pad] * (length - len(values))
        return values + gap if side == "right" else gap + values

    return {
        "input_ids": torch.tensor([fill(ids, 0) for ids, _ in chosen]),
        "attention_mask": torch.tensor([fill([1] * len(ids), 0) for ids, _ in chosen]),
        "labels": torch.tensor([fill(labels, IGNORE) for _, labels in chosen]),
    }


def one_at_a_time(model: Any, names: list[str]) -> list[dict[str, torch.Tensor] | None]:
    """Gradients of the token-mean cross entropy of each row alone, by autograd, in fp64; None for the empty row."""
    exact = copy.deepcopy(model).double()
    weights = {n: p for n, p in exact.named_parameters() if n in names}
    out: list[dict[str, torch.Tensor] | None] = []
    for ids, labels in rows():
        target = torch.tensor(labels[1:])
        if (target == IGNORE).all():
            out.append(None)
            continue
        logits = exact(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        out.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(weights.items(), found, strict=True)}
        )
    return out


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def random_targets(engine: BatchGradients, count: int) -> dict[torch.nn.Parameter, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {p: torch.randn((count, p.numel()), generator=generator) for p in engine.names}


def random_moments(parameters: Any) -> dict[Any, Moments]:
    generator = torch.Generator().manual_seed(2)

    def one(p: torch.Tensor) -> Moments:
        m, v = torch.randn(p.numel(), generator=generator), torch.rand(p.numel(), generator=generator)
        return Moments(1e-2 * m, 1e-4 * v, 13, 0.9, 0.95, 1e-6)

    return {p: one(p) for p in parameters}


def adam(gradient: torch.Tensor, at: Moments) -> torch.Tensor:
    """Kingma & Ba, algorithm 1, written out in fp64."""
    assert at.m is not None and at.v is not None
    t = at.step + 1
    m = at.beta1 * at.m.double() + (1 - at.beta1) * gradient
    v = at.beta2 * at.v.double() + (1 - at.beta2) * gradient**2
    return (m / (1 - at.beta1**t)) / ((v / (1 - at.beta2**t)).sqrt() + at.eps)


def authors_adam(gradient: torch.Tensor, at: Moments) -> torch.Tensor:
    """`obtain_gradients_with_adam` of princeton-nlp/LESS, written out in fp64."""
    average, average_of_squares = (torch.zeros(()) if t is None else t.double() for t in (at.m, at.v))
    average = 0.9 * average + (1 - 0.9) * gradient
    average_of_squares = 0.999 * average_of_squares + (1 - 0.999) * gradient**2
    return average / torch.sqrt(average_of_squares + 1e-08)


def check_rows(
    found: torch.Tensor, expected: list[torch.Tensor | None], scale: list[float], rtol: float = 2e-5
) -> None:
    """Each value within rtol of the scale of its row; the empty row is NaN."""
    for i, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        if wanted is None:
            assert value.isnan().all()
        else:
            assert (value.double() - wanted).abs().max() <= rtol * scale[i], (i, value, wanted)


# -- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", ["linear", "all"])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_and_norms_are_those_of_autograd(models: Any, family: str, kind: str, parameters: Any) -> None:
    model = models[family, kind]
    engine = BatchGradients(model, parameters)
    reference = one_at_a_time(model, list(engine.names.values()))
    targets = random_targets(engine, 3)
    dots, norms = engine.dots(collate(rows()), targets)
    aim = torch.cat([targets[p] for p in engine.names], dim=1).double()
    order = list(engine.names.values())
    whole = [None if g is None else flat({n: g[n] for n in order}) for g in reference]
    size = [0.0 if g is None else float(g.norm()) for g in whole]
    check_rows(norms[:, None], [None if g is None else g.norm()[None] for g in whole], size)
    check_rows(dots, [None if g is None else aim @ g for g in whole], [s * float(aim.norm(dim=1).max()) for s in size])
    assert torch.allclose(engine.norms(collate(rows())), norms, rtol=1e-6, equal_nan=True)
    if parameters == "all":
        assert not engine.sites.left_out
    if kind == "lora":
        assert all("lora_" in name for name in order) and not engine.sites.left_out


@pytest.mark.parametrize(("step", "formula"), [(AdamDirection, adam), (AuthorsDirection, authors_adam)])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adam_directions_are_those_of_the_formula(models: Any, family: str, kind: str, step: Any, formula: Any) -> None:
    model = models[family, kind]
    moments = random_moments([p for p in model.parameters() if p.requires_grad])
    engine = BatchGradients(model, direction=step(lambda p: moments[p]))
    by_name = {n: moments[p] for p, n in engine.names.items()}
    targets = random_targets(engine, 2)
    dots, norms = engine.dots(collate(rows()), targets)
    aim = torch.cat([targets[p] for p in engine.names], dim=1).double()
    whole = [
        None if g is None else flat({n: formula(g[n].flatten(), by_name[n]) for n in by_name})
        for g in one_at_a_time(model, list(by_name))
    ]
    size = [0.0 if g is None else float(g.norm()) for g in whole]
    check_rows(norms[:, None], [None if g is None else g.norm()[None] for g in whole], size, 2e-4)
    check_rows(
        dots, [None if g is None else aim @ g for g in whole], [s * float(aim.norm(dim=1).max()) for s in size], 2e-4
    )


def test_adam_direction_is_the_step_of_torchs_own_adam(models: Any) -> None:
    """Read from a real optimizer after a few steps: the parameters move by -lr times the direction."""
    model = copy.deepcopy(models["qwen2", "lora"])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.8, 0.97), eps=1e-7, weight_decay=0.0)
    batch = collate(rows())
    for step in range(4):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if step < 3:
            optimizer.step()
    direction = AdamDirection(optimizer_moments(optimizer))
    expected = {p: direction.of(p)(p.grad.flatten()[None].clone())[0] for p in trained}
    before = {p: p.detach().clone() for p in trained}
    optimizer.step()
    for p in trained:
        moved = (before[p].double() - p.detach().double()).flatten() / 1e-3
        assert (moved - expected[p].double()).abs().max() <= 2e-4 * max(1.0, float(expected[p].abs().max()))


def test_before_the_first_step_adam_has_no_moments(models: Any) -> None:
    model = models["qwen2", "lora"]
    trained = [p for p in model.parameters() if p.requires_grad]
    at = optimizer_moments(torch.optim.AdamW(trained))(trained[0])
    assert at.m is None and at.v is None and at.step == 0
    gradient = torch.tensor([[3.0, -0.5, 0.0]])
    found = AdamDirection(lambda _: at).of(trained[0])(gradient.clone())
    assert torch.allclose(found, gradient / (gradient.abs() + 1e-8))


def ranks(values: torch.Tensor) -> torch.Tensor:
    return values.argsort().argsort().double()


def test_the_authors_eps_ranks_rows_otherwise() -> None:
    """Scores of 60 rows where most of sqrt(v) is under the floor of 1e-4 that an eps inside the root makes, as in LoRA after a
    few steps: those of the authors' formula rank as its transcription does, and not as the step of the run does."""
    draw = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(400))
    scale = 10 ** (-6 + 3 * torch.rand(400, generator=draw))
    m, v = 0.3 * scale * torch.randn(400, generator=draw), scale.square()
    at = Moments(m, v, 12, 0.9, 0.999, 1e-8)
    gradients = scale * torch.randn(60, 400, generator=draw)
    aim = torch.randn(400, generator=draw)

    def scores(directions: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cosine_similarity(directions.double(), aim.double()[None], dim=1)

    authors = ranks(scores(AuthorsDirection(lambda _: at).of(p)(gradients.clone())))
    own = ranks(scores(AdamDirection(lambda _: at).of(p)(gradients.clone())))
    assert torch.equal(authors, ranks(scores(authors_adam(gradients.double(), at))))
    assert torch.equal(own, ranks(scores(adam(gradients.double(), at))))
    spearman = float(torch.corrcoef(torch.stack([authors, own]))[0, 1])
    assert 0.2 < spearman < 0.95


def test_whether_an_optimizer_has_moments() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([p])
    assert not has_moments(optimizer)
    p.sum().backward()
    optimizer.step()
    assert has_moments(optimizer)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_gradient_of_a_weighted_sum(models: Any, kind: str) -> None:
    model = models["llama", kind]
    engine = BatchGradients(model, "all")
    weights = torch.tensor([0.5, 2.0, float("nan"), 1.0, 1.0, 3.0, 0.0])
    totals = {p: torch.zeros(p.numel(), dtype=torch.float64) for p in engine.names}
    engine.add_weighted(collate(rows()), weights, totals)
    reference = one_at_a_time(model, list(engine.names.values()))
    for p, name in engine.names.items():
        wanted = sum(
            float(w) * g[name].flatten()
            for w, g in zip(weights, reference, strict=True)
            if g is not None and torch.isfinite(w)
        )
        assert (totals[p] - wanted).norm() <= 2e-5 * max(1e-3, float(wanted.norm()))


@pytest.mark.parametrize("room", [0, 1 << 17, 1 << 30])
@pytest.mark.parametrize("parameters", ["linear", "all"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_target_vectors_are_mean_unit_gradients(
    models: Any, kind: str, parameters: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each subtask, against autograd in fp64: by two passes where no factors may be kept, by one pass over small batches,
    and by one over large batches. The empty row has no direction."""
    monkeypatch.setitem(passes_module._KEPT_FACTORS, "cpu", room)
    model = models["qwen2", kind]
    engine = BatchGradients(model, parameters)
    made: list[int] = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda batch, *a: (made.append(len(batch["labels"])), run(batch, *a))[1])
    subtasks = [np.array([0, 2, EMPTY]), np.array([1, 3, 5, 6])]
    lengths = np.array([len(ids) for ids, _ in rows()])
    target = ScoringRows(
        rows=rows(), ids=np.arange(ROWS), lengths=lengths, batch_tokens=60, device=torch.device("cpu"), collate=collate,
        prepare=lambda batch: batch,
    )  # fmt: skip
    with torch.no_grad():
        found = exact_targets(target, subtasks, engine)
    assert sum(made) == (2 if room == 0 else 1) * ROWS
    order = list(engine.names.values())
    whole = [None if g is None else flat({n: g[n] for n in order}) for g in one_at_a_time(model, order)]
    units = [[whole[i] / whole[i].norm() for i in own if whole[i] is not None] for own in subtasks]  # type: ignore[union-attr, operator]
    vectors = torch.cat([found[p] for p in engine.names], dim=1).double()
    for k, some in enumerate(units):
        wanted = torch.stack(some).mean(0)  # type: ignore[arg-type]
        assert (vectors[k] - wanted).norm() <= 2e-5 * wanted.norm()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_several_rows_as_one(models: Any, kind: str) -> None:
    """Each two rows as one unit, weighted: norms and products are those of the weighted sum of their gradients."""
    model = models["qwen2", kind]
    engine = BatchGradients(model, "all")
    targets = random_targets(engine, 2)
    batch = collate(rows()[:6])
    batch[MERGE_WEIGHTS] = torch.tensor(
        [[1.0, -0.5], [0.0, 2.0], [0.7, 0.3]]
    )  # the empty row is merged into the last one
    dots, norms = engine.dots(batch, targets)
    reference = one_at_a_time(model, list(engine.names.values()))
    aim = torch.cat([targets[p] for p in engine.names], dim=1).double()
    zero = torch.zeros(aim.shape[1], dtype=torch.float64)
    whole = [zero if g is None else flat({n: g[n] for n in engine.names.values()}) for g in reference[:6]]
    merged = [
        sum(float(w) * g for w, g in zip(ws, whole[2 * i : 2 * i + 2], strict=True))
        for i, ws in enumerate(batch[MERGE_WEIGHTS])
    ]
    size = [float(u.norm()) for u in merged]
    check_rows(norms[:, None], [u.norm()[None] for u in merged], size)
    check_rows(dots, [aim @ u for u in merged], [s * float(aim.norm(dim=1).max()) for s in size])
    features = engine.features(batch, Concatenation(engine.sizes))
    check_rows(features, merged, size)
    totals = {p: torch.zeros(p.numel(), dtype=torch.float64) for p in engine.names}
    engine.add_weighted(batch, torch.tensor([2.0, 1.0, float("nan")]), totals)
    found = torch.cat([totals[p] for p in engine.names])
    assert (found - (2 * merged[0] + merged[1])).norm() <= 2e-5 * float(found.norm())


def test_a_row_that_is_not_finite_spoils_no_other(models: Any) -> None:
    """Its activations are NaN, so its factors are; sums, and units without a part in it, are those of the other rows."""
    model = copy.deepcopy(models["qwen2", "lora"])
    engine = BatchGradients(model)
    batch = collate(rows()[:4])
    clean = {p: torch.zeros(p.numel(), dtype=torch.float64) for p in engine.names}
    engine.add_weighted(batch, torch.tensor([1.0, 0.0, 2.0, 1.0]), clean)
    merged = {**batch, MERGE_WEIGHTS: torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
    before = engine.norms(merged)

    def spoil(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(4)[:, None, None] == 1, torch.nan, output)

    hook = model.get_input_embeddings().register_forward_hook(spoil)
    found = {p: torch.zeros(p.numel(), dtype=torch.float64) for p in engine.names}
    engine.add_weighted(batch, torch.ones(4) * torch.tensor([1.0, 5.0, 2.0, 1.0]), found)
    norms, after = engine.norms(batch), engine.norms(merged)
    both = engine.norms({**batch, MERGE_WEIGHTS: torch.tensor([[1.0, 1.0], [1.0, 1.0]])})
    hook.remove()
    for p in engine.names:
        assert (found[p] - clean[p]).norm() <= 1e-5 * max(1e-3, float(clean[p].norm()))
    assert norms.isnan().tolist() == [False, True, False, False]
    assert torch.allclose(after, before, rtol=1e-5)
    assert both.isnan().tolist() == [True, False]


# -- invariance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_adam", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_row_does_not_depend_on_batch_size_order_or_padding_side(models: Any, kind: str, with_adam: bool) -> None:
    model = models["qwen2", kind]
    moments = random_moments([p for p in model.parameters() if p.requires_grad])
    engine = BatchGradients(model, direction=AdamDirection(lambda p: moments[p]) if with_adam else None)
    targets = random_targets(engine, 2)
    data, tolerance = rows(), 2e-4 if with_adam else 2e-5

    def measure(batches: list[list[int]], side: str) -> torch.Tensor:
        out = torch.empty(ROWS, 3)
        for indices in batches:
            batch = collate([data[i] for i in indices], side)
            batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            dots, norms = engine.dots(batch, targets)
            out[indices] = torch.cat([dots / norms[:, None], norms[:, None]], dim=1)
        return out

    alone = measure([[i] for i in range(ROWS)], "right")
    for batches, side in (
        ([list(range(ROWS))], "right"),
        ([[6, 2, 0], [1, 5, 4, 3]], "right"),
        ([list(range(ROWS))[::-1]], "left"),
    ):
        found = measure(batches, side)
        limit = tolerance * torch.nan_to_num(alone).abs().amax(dim=0)
        assert ((found - alone).nan_to_num().abs() <= limit).all()
        assert torch.equal(found.isnan(), alone.isnan())


@pytest.mark.parametrize("parameters", ["linear", "all"])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(models: Any, family: str, kind: str, parameters: Any) -> None:
    """In evaluation mode too, where the model itself would not checkpoint; and inputs are not kept from the forward."""
    plain = BatchGradients(models[family, kind], parameters)
    targets = random_targets(plain, 2)
    model = copy.deepcopy(models[family, kind])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    engine = BatchGradients(model, parameters)
    mapped = dict(zip(engine.names, targets.values(), strict=True))
    before = {n: (m.training, getattr(m, "_gradient_checkpointing_func", None)) for n, m in model.named_modules()}
    calls: list[int] = []
    layer = next(m for n, m in model.named_modules() if n.endswith(("layers.0", "h.0")))
    hook = layer.register_forward_pre_hook(lambda *_: calls.append(1))
    dots, norms = engine.dots(collate(rows()), mapped)
    hook.remove()
    assert len(calls) == 2  # computed again in the backward pass
    expected = plain.dots(collate(rows()), targets)
    assert torch.allclose(dots, expected[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert torch.allclose(norms, expected[1], rtol=1e-5, equal_nan=True)
    assert before == {
        n: (m.training, getattr(m, "_gradient_checkpointing_func", None)) for n, m in model.named_modules()
    }


def test_tied_weights_get_the_gradient_of_both_uses(models: Any) -> None:
    model = copy.deepcopy(models["qwen2", "full"])
    model.lm_head.weight = model.model.embed_tokens.weight
    assert "model.embed_tokens.weight" not in find_sites(model, "linear").covered
    engine = BatchGradients(model, "all")
    assert [n for n in engine.names.values() if n.startswith(("model.embed_tokens", "lm_head"))] == [
        "model.embed_tokens.weight"
    ]
    norms = engine.norms(collate(rows()))
    reference = one_at_a_time(model, list(engine.names.values()))
    check_rows(
        norms[:, None],
        [None if g is None else flat(g).norm()[None] for g in reference],
        [0.0 if g is None else float(flat(g).norm()) for g in reference],
    )


def test_a_layer_used_twice_has_both_gradients(models: Any) -> None:
    model = copy.deepcopy(models["llama", "full"])
    model.model.layers[1] = model.model.layers[0]
    engine = BatchGradients(model)
    norms = engine.norms(collate(rows()))
    reference = one_at_a_time(model, list(engine.names.values()))
    check_rows(
        norms[:, None],
        [None if g is None else flat(g).norm()[None] for g in reference],
        [0.0 if g is None else float(flat(g).norm()) for g in reference],
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_a_fused_lora_layer_is_the_layer(models: Any, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same products as from peft's own parts, hooked: in fp32, and under autocast on bf16 weights with fp32 adapters."""
    model = copy.deepcopy(models["qwen2", "lora"])
    if autocast:
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
    engine = BatchGradients(model)
    targets = random_targets(engine, 2)
    calls: list[int] = []
    original = capture.fused
    monkeypatch.setattr(capture, "fused", lambda *a: (calls.append(1), original(*a))[1])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        whole = engine.dots(collate(rows()), targets)
        assert len(calls) == 14
        monkeypatch.setattr(capture, "fusable_layers", lambda *_: [])
        parts = engine.dots(collate(rows()), targets)
    assert len(calls) == 14
    scale = (parts[1][:, None] * torch.cat(list(targets.values()), dim=1).norm(dim=1)).nan_to_num()
    assert torch.allclose(whole[1], parts[1], rtol=2e-2 if autocast else 1e-5, equal_nan=True)
    limit = 2e-3 if autocast else 1e-6  # of the product of norms; a bf16 has 8 bits
    assert ((whole[0] - parts[0]).nan_to_num().abs() <= limit * scale).all()


def test_nothing_of_a_pass_stays_behind(models: Any) -> None:
    model = copy.deepcopy(models["qwen2", "lora"])
    batch = collate(rows())
    model.train()
    model(**batch).loss.backward()
    kept = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.eval()
    BatchGradients(model).norms(batch)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (kept[name] is None)
        assert kept[name] is None or torch.equal(parameter.grad, kept[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# -- forms of one parameter's gradient -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3, 40, 30), (5, 60, 3, 50), (3, 17, 8, 8), (2, 300, 5, 9)])
@pytest.mark.parametrize("targets", [0, 1, 4])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_factors_in_either_form(
    shape: tuple[int, ...], targets: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short rows of a large layer go by ghost norms, others are formed; both are the einsum."""
    monkeypatch.setitem(factors_module._CHUNK, "cpu", chunk)
    rows_, length, m, n = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn((rows_, length, m), generator=generator)
    right = torch.randn((rows_, length, n), generator=generator)
    aim = torch.randn((targets, m * n), generator=generator) if targets else None
    exact = torch.einsum("btm,btn->bmn", left.double(), right.double()).flatten(1)
    for form in (True, False):
        monkeypatch.setattr(factors_module, "_ghost_is_cheaper", lambda *_, form=form: form)
        dots, norms = dots_and_norms(Factors([(left, right)]), aim)
        assert torch.allclose(norms.double(), exact.square().sum(dim=1), rtol=1e-5)
        assert dots.shape == (rows_, targets)
        if aim is not None:
            size = exact.norm(dim=1)[:, None] * aim.double().norm(dim=1)
            assert ((dots.double() - exact @ aim.double().T).abs() <= 1e-5 * size).all()


def test_which_form_is_cheaper() -> None:
    assert factors_module._ghost_is_cheaper(8, 4096, 4096, 1)
    assert not factors_module._ghost_is_cheaper(256, 8, 256, 1)


# -- projection ------------------------------------------------------------------------------------------------------


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = [x.argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.mark.parametrize("with_adam", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_projection_is_as_good_as_a_dense_one(models: Any, kind: str, with_adam: bool) -> None:
    """Spearman correlation of projected with exact cosines, over pairs of rows and seeds, against a dense Rademacher matrix
    of the same dimension."""
    model, dim, seeds = models["qwen2", kind], 256, 8
    moments = random_moments([p for p in model.parameters() if p.requires_grad])
    engine = BatchGradients(model, direction=AdamDirection(lambda p: moments[p]) if with_adam else None)
    generator = torch.Generator().manual_seed(9)
    many = []
    for _ in range(24):
        ids = torch.randint(
            3, 250, (int(torch.randint(6, 30, (1,), generator=generator)),), generator=generator
        ).tolist()
        many.append((ids, ids))
    batch = collate(many)
    exact = engine.features(batch, Concatenation(engine.sizes))
    pairs = torch.triu_indices(24, 24, offset=1)

    def cosines(x: torch.Tensor) -> torch.Tensor:
        x = x / x.norm(dim=1, keepdim=True)
        return (x @ x.T)[pairs[0], pairs[1]]

    ours, dense = [], []
    for seed in range(seeds):
        ours.append(
            spearman(
                cosines(engine.features(batch, Projection(engine.names, dim, seed, formed=with_adam))), cosines(exact)
            )
        )
        matrix = torch.randint(2, (exact.shape[1], dim), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
        dense.append(spearman(cosines(exact @ matrix), cosines(exact)))
    mean = [sum(values) / seeds for values in (ours, dense)]
    assert mean[0] > mean[1] - 0.03, mean


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Wide enough for its layers to be projected by their factors."""
    sizes: dict[str, Any] = {"hidden_size": 128, "heads": 2, "kv_heads": 2, "intermediate_size": 160, "vocab_size": 300}
    return build_model(tmp_path_factory.mktemp("wide"), ["a few words to learn from"], **sizes)[0].eval()


def random_rows(count: int, longest: int, seed: int) -> list[list[int]]:
    """Of the first half of the vocabulary, or of the second."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(3, 120, rng.integers(4, longest)) + 110 * (i % 2)).tolist() for i in range(count)]


def scoring_rows(rows: list[list[int]], batch_tokens: int) -> ScoringRows:
    lengths = np.array([len(row) for row in rows])
    return ScoringRows(
        rows=rows, ids=np.arange(len(rows)), lengths=lengths, batch_tokens=batch_tokens, device=torch.device("cpu"),
        collate=lambda some: collate([(row, row) for row in some]), prepare=lambda batch: batch,
    )  # fmt: skip


@pytest.mark.parametrize("with_adam", [False, True])
@pytest.mark.parametrize("dim", [64, 1024, 8192])
def test_projected_alignment_is_that_without_a_projection(wide: Any, dim: int, with_adam: bool) -> None:
    """Adam's directions of the rows meet plain gradients of the target: both must have been through one and the same map."""
    moments = random_moments([p for p in wide.parameters() if p.requires_grad])
    rows = BatchGradients(wide, direction=AdamDirection(lambda p: moments[p]) if with_adam else None)
    aims = BatchGradients(wide)
    assert Projection(aims.names, dim, 0, formed=False).takes_factors(torch.Size((128, 128))) == (dim < 8192)
    measured, subtasks = (
        scoring_rows(random_rows(16, 40, 1), 256),
        [np.array([i]) for i in range(16)],
    )  # each row a target
    exact = alignment(measured, measured, subtasks, rows, aims)
    found = alignment(measured, measured, subtasks, rows, aims, proj_dim=dim)
    assert np.diag(exact).mean() > 0.05  # a row with itself
    assert np.abs(found - exact).max() < 4.5 / dim**0.5  # of unit vectors, with a deviation of about 1 / sqrt(dim)
    assert abs((np.diag(found) - np.diag(exact)).mean()) < 4 / (16 * dim) ** 0.5


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_of_mean_gradients(models: Any, family: str, kind: str) -> None:
    """<g_i, g_j> of groups' mean gradients, against autograd in fp64; a projection is near it."""
    model = models[family, kind]
    engine = BatchGradients(model)
    usable = [i for i in range(ROWS) if i != EMPTY]
    gradients = one_at_a_time(model, list(engine.names.values()))
    groups = [np.array(usable[:2]), np.array(usable[2:3]), np.array(usable[3:])]
    means = torch.stack([torch.stack([flat(gradients[i]) for i in g]).mean(0) for g in groups])  # type: ignore[arg-type]
    lengths = np.array([len(ids) for ids, _ in rows()])
    measured = ScoringRows(
        rows=rows(), ids=np.arange(ROWS), lengths=lengths, batch_tokens=40, device=torch.device("cpu"), collate=collate,
        prepare=lambda batch: batch,
    )  # fmt: skip
    exact = (means @ means.T).detach().numpy()
    np.testing.assert_allclose(group_products(measured, groups, engine), exact, rtol=2e-4, atol=2e-4 * exact.max())
    near = group_products(measured, groups, engine, proj_dim=4096)
    norms = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs((near - exact) / norms).max() < 4.5 / 4096**0.5


@pytest.mark.parametrize("dim", [64, 1024, 8192])
def test_projected_features_do_not_depend_on_the_batch(wide: Any, dim: int) -> None:
    """Short rows by themselves and beside one of 200 tokens."""
    engine, short = BatchGradients(wide), random_rows(3, 12, 3)
    projection = Projection(engine.names, dim, 1, formed=False)
    alone = engine.features(collate([(row, row) for row in short]), projection)
    mixed = engine.features(collate([(row, row) for row in [*short, list(range(3, 203))]]), projection)
    torch.testing.assert_close(mixed[:3], alone, rtol=1e-3, atol=1e-5 * float(alone.norm(dim=1).max()))


def test_a_gradient_that_is_formed_already_is_projected_as_its_factors_are() -> None:
    parameter, generator = torch.nn.Parameter(torch.empty(6, 10)), torch.Generator().manual_seed(3)
    left, right = torch.randn((2, 4, 6), generator=generator), torch.randn((2, 4, 10), generator=generator)
    dense = Factors([], torch.einsum("btm,btn->bmn", left, right))
    projection = Projection({parameter: "a"}, 16, 5, formed=False)
    torch.testing.assert_close(
        projected(projection, parameter, dense), projected(projection, parameter, Factors([(left, right)]))
    )


def projected(projection: Projection, parameter: torch.nn.Parameter, factors: Factors) -> torch.Tensor:
    out = torch.zeros(len(factors), projection.dim)
    projection.add_factors(parameter, factors, out)
    return out


@pytest.mark.parametrize("dim", [7, 64, 8192, 9000])
def test_a_sketch_adds_each_value_to_its_place(dim: int) -> None:
    """With its sign, beside what is there already. Up to 8192 values to the bit as earlier versions added them up."""
    parameter, generator = torch.nn.Parameter(torch.empty(70, 30)), torch.Generator().manual_seed(3)
    gradients = torch.randn((3, 2100), generator=generator)
    before = torch.randn((3, dim), generator=generator)
    projection = Projection({parameter: "a"}, dim, 7, formed=True)
    key = hashlib.sha256(b"7:a:sketch").digest()[:8]
    drawn = torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))
    places = torch.randint(dim, (2100,), generator=drawn, dtype=torch.int32)
    sign = torch.randint(2, (2100,), generator=drawn, dtype=torch.int8) * 2 - 1
    found = before.clone()
    projection.add_gradients(parameter, gradients.clone(), found)
    earlier = before + torch.zeros(dim, 3).index_add_(0, places, (gradients * sign).T).T
    torch.testing.assert_close(found, earlier, rtol=0 if dim <= 8192 else 1e-5, atol=0 if dim <= 8192 else 1e-5)
    exact = before.double()
    for place, value in zip(places.tolist(), (gradients * sign).double().T, strict=True):
        exact[:, place] += value
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def signs(seed: int, name: str, side: str, size: int, columns: int) -> torch.Tensor:
    """Of a projection, by its definition: drawn with a hash of (seed, name, side), and divided by sqrt(columns)."""
    key = hashlib.sha256(f"{seed}:{name}:{side}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little", signed=True))
    drawn = torch.randint(2, (size, columns), generator=generator, dtype=torch.int8)
    return (drawn.double() * 2 - 1) / columns**0.5


@pytest.mark.parametrize(
    ("dim", "left", "right", "starts"),
    [
        (60, 4, 15, [0, 0, 0, 0]),
        (8192, 64, 128, [0, 0, 0, 0]),  # the longest with one block
        (8193, 64, 64, [0, 4096, 4096, 4096]),
        (12300, 64, 64, [0, 4100, 8200, 8200]),
        (40000, 64, 156, [0, 10000, 20000, 30000]),
    ],
)
def test_where_the_factors_of_a_layer_are_projected_to(dim: int, left: int, right: int, starts: list[int]) -> None:
    """R^T G Q at the start of the layer's block, and nothing elsewhere. Each layer, the largest first, is in the block with the
    fewest values so far. Up to 8192 values the map is the one of earlier versions."""
    shapes = {"a": (40, 30), "b": (20, 30), "c": (6, 30), "d": (5, 30)}
    parameters = {torch.nn.Parameter(torch.empty(shape)): name for name, shape in reversed(shapes.items())}
    projection, generator = Projection(parameters, dim, 7, formed=False), torch.Generator().manual_seed(2)
    for parameter, name in parameters.items():
        (m, n), start = shapes[name], starts[list(shapes).index(name)]
        g, a = (torch.randn((3, 8, width), generator=generator) for width in (m, n))
        gradient = torch.einsum("btm,btn->bmn", g.double(), a.double())
        r, q = (signs(7, name, *rest) for rest in (("left", m, left), ("right", n, right)))
        wanted = torch.zeros(3, dim, dtype=torch.float64)
        wanted[:, start : start + left * right] = (r.T @ gradient @ q).flatten(1)
        found = projected(projection, parameter, Factors([(g, a)])).double()
        assert torch.equal(found != 0, wanted.abs() > 1e-9)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("request_type", [TargetAlignment, Features])
def test_what_was_kept_without_blocks_is_not_continued(request_type: Any) -> None:
    """Keys of values on disk differ from those of earlier versions where the projection does, and there alone."""

    def key(**how: Any) -> dict[str, Any]:
        request = request_type(**how)
        return measure_of(request).depends_on(None, request)  # type: ignore[arg-type]

    for gradient_type in ("sgd", "adam"):
        assert key(gradient_type=gradient_type) == key(gradient_type=gradient_type, proj_dim=8192) == {}
        assert key(gradient_type=gradient_type, proj_dim=8193) == {"projection": "blocks"}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_blocks_keep_the_products_of_whole_gradients(wide: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many seeds the mean of the projected products is the exact one, and so wide as a projection of this length is."""
    monkeypatch.setattr(projection_module, "_ONE_BLOCK", 512)
    monkeypatch.setattr(projection_module, "_BLOCK", 256)
    moments = random_moments([p for p in wide.parameters() if p.requires_grad])
    engine = BatchGradients(wide, direction=AdamDirection(lambda p: moments[p]) if kind == "adam" else None)
    batch = collate([(row, row) for row in random_rows(2, 30, 4)])
    x, y = engine.features(batch, Concatenation(engine.sizes)).double()
    found = []
    for seed in range(60):
        projection = Projection(engine.names, 1024, seed, formed=kind == "adam")
        assert projection.takes_factors(torch.Size((128, 128))) == (kind == "sgd")
        a, b = engine.features(batch, projection).double()
        assert (a.view(4, 256) != 0).any(dim=1).all()
        found.append(float(a @ b / (x.norm() * y.norm())))
    spread = float(np.std(found))
    assert abs(np.mean(found) - float(x @ y / (x.norm() * y.norm()))) < 4 * spread / 60**0.5
    assert spread < 4 / 1024**0.5


def sketch(projection: Projection, parameter: torch.nn.Parameter, gradients: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(gradients), projection.dim)
    projection.add_gradients(parameter, gradients.clone(), out)
    return out


def test_projections_of_either_form_are_unbiased_and_repeatable() -> None:
    """Mean over seeds of <Px, Py> is <x, y>; equal seeds give equal values; parameters have signs of their own."""
    generator = torch.Generator().manual_seed(3)
    parameter, other = torch.nn.Parameter(torch.empty(6, 10)), torch.nn.Parameter(torch.empty(6, 10))
    left, right = torch.randn((2, 4, 6), generator=generator), torch.randn((2, 4, 10), generator=generator)
    factors = Factors([(left, right)])
    gradients = torch.einsum("btm,btn->bmn", left, right).flatten(1)
    wanted, size = float(gradients[0] @ gradients[1]), float(gradients[0].norm() * gradients[1].norm())
    found: dict[str, list[float]] = {"factors": [], "gradients": []}
    for seed in range(600):
        projection = Projection({parameter: "a", other: "b"}, 64, seed, formed=False)
        a, b = projected(projection, parameter, factors), sketch(projection, parameter, gradients)
        found["factors"].append(float(a[0] @ a[1]))
        found["gradients"].append(float(b[0] @ b[1]))
        if seed == 0:
            again = Projection({parameter: "a", other: "b"}, 64, seed, formed=False)
            assert torch.equal(projected(again, parameter, factors), a)
            assert torch.equal(sketch(again, parameter, gradients), b)
            assert not torch.equal(sketch(again, other, gradients), b)
    for values in found.values():
        mean, spread = torch.tensor(values).mean(), torch.tensor(values).std()
        assert abs(float(mean) - wanted) < 4 * float(spread) / 600**0.5
        assert float(spread) < 3 * size / 64**0.5


# -- bf16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3, 40, 30), (5, 60, 3, 50), (3, 17, 30, 8), (2, 300, 5, 9)])
@pytest.mark.parametrize("form", [True, False])
def test_products_in_bf16_are_near_those_in_fp64(
    shape: tuple[int, ...], form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of factors that are bf16 values: only the products are rounded, to 8 bits, and the sums of them are not."""
    monkeypatch.setattr(factors_module, "_ghost_is_cheaper", lambda *_: form)
    rows_, length, m, n = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn((rows_, length, m), generator=generator).bfloat16()
    right = torch.randn((rows_, length, n), generator=generator)  # as a hook sees it, which autocast rounds
    aim = torch.randn((3, m * n), generator=generator)
    exact = torch.einsum("btm,btn->bmn", left.double(), right.bfloat16().double()).flatten(1)
    factors = Factors([(left, right)]).in_bf16()
    dots, norms = dots_and_norms(factors, aim)
    assert dots.dtype == norms.dtype == torch.float32
    assert torch.allclose(norms.double(), exact.square().sum(dim=1), rtol=1e-2)
    size = exact.norm(dim=1)[:, None] * aim.double().norm(dim=1)
    assert ((dots.double() - exact @ aim.double().T).abs() <= 1e-2 * size).all()
    in_fp32 = dots_and_norms(factors.in_fp32(), aim)
    assert ((in_fp32[0].double() - exact @ aim.double().T).abs() <= 1e-5 * size).all()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_in_bf16_is_torchs_with_a_better_gradient(heads: tuple[int, int]) -> None:
    """The same output; a gradient as near that of fp64 as torch's own; other calls are left alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads[0], 37, 16), (2, heads[1], 37, 16), (2, heads[1], 37, 16)]
    inputs = [torch.randn(s, generator=generator).bfloat16() for s in shapes]
    g = torch.randn(shapes[0], generator=generator).bfloat16()

    def attended(dtype: torch.dtype) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        own = [t.to(dtype).requires_grad_() for t in inputs]
        out = F.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=heads[0] != heads[1])
        return out, torch.autograd.grad(out, own, g.to(dtype))

    _, exact = attended(torch.float64)
    stock, found_by_stock = attended(torch.bfloat16)
    with attention_module.attention_in_bf16():
        out, found = attended(torch.bfloat16)
        assert out.grad_fn.name() == "_AttentionBackward"
        single = torch.randn(shapes[0]).requires_grad_()
        assert (
            F.scaled_dot_product_attention(single, single, single, is_causal=True).grad_fn.name() != out.grad_fn.name()
        )
        assert (
            F.scaled_dot_product_attention(inputs[0].requires_grad_(), inputs[0], inputs[0]).grad_fn.name()
            != out.grad_fn.name()
        )
    assert torch.equal(out, stock)
    for own, theirs, wanted in zip(found, found_by_stock, exact, strict=True):
        assert own.dtype == torch.bfloat16
        assert (own.double() - wanted).norm() <= 1.1 * max((theirs.double() - wanted).norm(), 4e-3 * wanted.norm())


@pytest.mark.parametrize("adapted", ["full", "lora"])
@pytest.mark.parametrize("with_adam", [False, True])
def test_gradients_in_bf16_point_where_those_in_fp32_do(
    models: Any, adapted: str, with_adam: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast, products in bf16 beside those in fp32: equal up to the rounding that the pass itself has."""
    monkeypatch.setattr(passes_module, "multiplies_bf16", lambda: True)
    model = models["llama", adapted]
    moments = random_moments([p for p in model.parameters() if p.requires_grad])
    direction = AdamDirection(lambda p: moments[p]) if with_adam else None
    targets = random_targets(BatchGradients(model), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        slow = BatchGradients(model, direction=direction).dots(collate(rows()), targets)
        fast = BatchGradients(model, direction=direction, fast_bf16=True).dots(collate(rows()), targets)
    assert not torch.equal(slow[0].nan_to_num(), fast[0].nan_to_num())
    size = (slow[1][:, None] * torch.cat(list(targets.values()), dim=1).norm(dim=1)).nan_to_num()
    assert torch.allclose(slow[1], fast[1], rtol=1e-2, equal_nan=True)
    assert ((slow[0] - fast[0]).nan_to_num().abs() <= 3e-3 * size).all()
    if direction is None:
        projection = Projection(BatchGradients(model).names, 64, 0, formed=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a = BatchGradients(model).features(collate(rows()), projection).nan_to_num()
            b = BatchGradients(model, fast_bf16=True).features(collate(rows()), projection).nan_to_num()
        assert (a - b).norm() <= 2e-2 * a.norm()
