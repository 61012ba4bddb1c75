"""Losses per row: their values and gradients, the batches they are computed in, and the traces they must not leave."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from dataflex.data.rows import SAMPLE_IDS, RowCollator, Rows
from dataflex.demo.model import build_model
from dataflex.signals import cross_entropy
from dataflex.signals.batching import ScoringRows, share, token_batches
from dataflex.signals.cross_entropy import IGNORE, forward_inputs, forward_row_losses, row_losses
from dataflex.signals.isolation import isolated
from dataflex.signals.stage_loss import stage_losses
from dataflex.trainer.scoring import score_rows
from dataflex.weighting.observations import DomainSums


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- cross entropy ---------------------------------------------------------------------------------------------------

ROWS, LENGTH, VOCABULARY = 6, 9, 23


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels: a whole row, a masked prefix, holes, a label at position 0 alone, nothing, the last alone."""
    generator = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator)).to(dtype)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[1, :5] = IGNORE
    labels[2, ::2] = IGNORE
    labels[3, 1:] = IGNORE  # the first token has nothing before it to be predicted from
    labels[4] = IGNORE
    labels[5, :-1] = IGNORE
    return logits, labels


def one_at_a_time(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Sum of -log softmax(logits[i, t])[labels[i, t + 1]] over the labels that count, in fp64, token by token."""
    sums, counts = [], []
    for row, target in zip(logits.double(), labels.tolist(), strict=True):
        terms = [F.cross_entropy(row[t], torch.tensor(y)) for t, y in enumerate(target[1:]) if y != IGNORE]
        sums.append(torch.stack(terms).sum() if terms else row.sum() * 0)
        counts.append(len(terms))
    return torch.stack(sums), counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 5 * VOCABULARY, 1 << 24])
def test_losses_without_gradient(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many values are upcast at once; logits of a lower precision are upcast before anything else."""
    monkeypatch.setattr(cross_entropy, "_CHUNK_VALUES", chunk)
    logits, labels = example(dtype)
    kept = labels.clone()
    sums, counts = row_losses(logits, labels)
    expected, wanted = one_at_a_time(logits, labels)
    assert counts.tolist() == wanted == [8, 4, 4, 0, 0, 1]
    assert sums.dtype == torch.float32 and counts.dtype == torch.int64
    assert sums.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert sums[3:5].tolist() == [0.0, 0.0]
    assert torch.equal(labels, kept)


def test_a_forward_without_gradient_never_holds_all_logits_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_VALUES", 4 * VOCABULARY)
    seen: list[int] = []
    original = F.cross_entropy

    def spy(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(values))
        return original(values, *args, **kwargs)

    monkeypatch.setattr(cross_entropy.F, "cross_entropy", spy)
    logits, labels = example()
    row_losses(logits, labels)
    assert sum(seen) == 17 and max(seen) == 4


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_losses_with_gradient(dtype: torch.dtype, tolerance: float) -> None:
    """Values, and the gradient of a weighted sum of the rows: weight x (softmax - one hot) at the tokens that count."""
    logits, labels = example(dtype)
    logits.requires_grad_()
    sums, counts = row_losses(logits, labels)
    expected, wanted = one_at_a_time(logits.detach(), labels)
    assert counts.tolist() == wanted
    assert sums.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert sums[3:5].tolist() == [0.0, 0.0]

    weights = torch.tensor([1.0, 0.5, 2.0, 3.0, 4.0, 0.25])
    (weights * sums).sum().backward()
    reference = logits.detach().double().requires_grad_()
    (weights * one_at_a_time(reference, labels)[0]).sum().backward()
    assert logits.grad is not None and reference.grad is not None
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=tolerance, atol=1e-7)
    assert (logits.grad[3:5] == 0).all() and (logits.grad[:, -1] == 0).all()


def test_both_paths_give_the_same_losses() -> None:
    logits, labels = example()
    without = row_losses(logits, labels)
    with_gradient = row_losses(logits.requires_grad_(), labels)
    with torch.no_grad():
        switched_off = row_losses(logits, labels)
    assert with_gradient[0].requires_grad and not switched_off[0].requires_grad
    assert without[0].tolist() == switched_off[0].tolist()
    assert without[0].tolist() == pytest.approx(with_gradient[0].tolist(), rel=1e-6)


def test_the_sum_over_rows_is_the_loss_of_the_model_itself() -> None:
    logits, labels = example()
    sums, counts = row_losses(logits, labels)
    mean = F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), ignore_index=IGNORE)
    assert (sums.sum() / counts.sum()).item() == pytest.approx(mean.item(), rel=1e-6)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_logits_are_made_where_there_is_a_target_and_nowhere_else(family: str, tmp_path: Any) -> None:
    """The sums of a whole forward pass, from as many logits as there are targets; and none of it stays on the model."""
    model, _ = build_model(
        tmp_path, ["a few words"], hidden_size=32, heads=2, kv_heads=1, family=family, vocab_size=300
    )
    model.eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (ROWS, LENGTH), generator=generator)
    labels = example()[1]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left
    labels[0, :4] = IGNORE
    mask[1, -1:] = 0  # and on the right
    labels[1, -1:] = IGNORE
    labels = labels.clamp(max=250)
    seen: list[tuple[int, ...]] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, logits: seen.append(tuple(logits.shape)))
    with torch.no_grad():
        sums, counts = forward_row_losses(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        whole, wanted = row_losses(model(input_ids=ids, attention_mask=mask).logits, labels)
    hook.remove()
    assert [shape[:-1] for shape in seen] == [(1, int(counts.sum())), (ROWS, LENGTH)]
    assert counts.tolist() == wanted.tolist()
    assert sums.tolist() == pytest.approx(whole.tolist(), rel=1e-5)


@pytest.mark.parametrize("family", sorted(cross_entropy._CAUSAL))
def test_padding_on_the_right_needs_no_mask(family: str) -> None:
    """Every family that is measured without one: logits of real tokens are the same; with padding on the left it stays."""
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "intermediate_size": 48, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 4,
        "initializer_range": 0.3, "max_position_embeddings": 64,
    }  # fmt: skip
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "initializer_range": 0.3}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    assert model.config._attn_implementation in ("sdpa", "eager")
    ids = torch.randint(3, 64, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = mask[1, 8:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    given = forward_inputs(model, batch)
    assert set(given) == {"input_ids", "use_cache"} and set(batch) == {"input_ids", "attention_mask", "labels"}
    with torch.no_grad():
        with_mask, without = (
            model(**b, use_cache=False).logits for b in ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids})
        )
    assert torch.allclose(with_mask[mask == 1], without[mask == 1], rtol=1e-4, atol=1e-5)
    assert "attention_mask" in forward_inputs(model, {**batch, "attention_mask": mask.flip(1)})
    model.config._attn_implementation = "flash_attention_2"  # which packs rows by their mask
    assert "attention_mask" in forward_inputs(model, batch)


@pytest.mark.parametrize("batch_tokens", [1, 7, 64, 300, 10**9])
@pytest.mark.parametrize("seed", range(3))
def test_batches_cover_every_row_once_within_the_budget(batch_tokens: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(0, 40, size=97)
    batches = token_batches(lengths, batch_tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(97))
    longest = [int(lengths[b].max()) for b in batches]
    assert all(len(b) * max(top, 1) <= batch_tokens or len(b) == 1 for b, top in zip(batches, longest, strict=True))
    assert longest == sorted(longest, reverse=True) and longest[0] == lengths.max()
    for batch, top, following in zip(batches, longest, batches[1:], strict=False):  # none could have held one more
        assert (len(batch) + 1) * max(top, 1) > batch_tokens
        assert lengths[batch].min() >= lengths[following].max()


def test_batches_by_hand() -> None:
    lengths = np.array([3, 9, 1, 3, 20, 4])
    assert [b.tolist() for b in token_batches(lengths, 12)] == [[4], [1], [5, 0, 3], [2]]
    assert [b.tolist() for b in token_batches(np.zeros(3, dtype=np.int64), 2)] == [[0, 1], [2]]
    assert token_batches(np.empty(0, dtype=np.int64), 12) == []
    lengths = np.random.default_rng(0).integers(1, 4, size=2000)  # rows of one length stay in the order of their ids
    order = np.concatenate(token_batches(lengths, 30)).tolist()
    assert order == sorted(range(2000), key=lambda i: (-lengths[i], i))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_every_rank_makes_the_same_number_of_forwards(ranks: int) -> None:
    batches = token_batches(np.arange(1, 40), 60)
    parts = [share(batches, rank, ranks) for rank in range(ranks)]
    assert len({len(mine) + dummies for mine, dummies in parts}) == 1
    assert all(0 <= dummies <= 1 for _, dummies in parts)
    assert sorted(i for mine, _ in parts for b in mine for i in b.tolist()) == list(range(39))
    assert sum(dummies for _, dummies in parts) < ranks


# -- isolation -------------------------------------------------------------------------------------------------------


def generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tolist(), rest, torch.random.get_rng_state().tolist()


def modes(model: torch.nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


def half_frozen() -> torch.nn.Module:
    """A model in training mode with a part that the user keeps in evaluation mode."""
    model = torch.nn.Sequential(
        torch.nn.Dropout(0.5), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    )
    model.train()
    model[1].eval()
    return model


def disturb(model: torch.nn.Module) -> None:
    random.random()
    np.random.random()
    torch.rand(1)
    assert not any(modes(model)) and not torch.is_grad_enabled()


def disturb_modes_too(model: torch.nn.Module) -> None:
    disturb(model)
    model.train()


@pytest.mark.parametrize("body", [disturb, disturb_modes_too])
def test_isolation_puts_everything_back(body: Callable[[torch.nn.Module], None]) -> None:
    model = half_frozen()
    before, mode = generators(), modes(model)
    assert mode == [True, True, False, False, False]
    with isolated(model):
        body(model)
    assert generators() == before
    assert modes(model) == mode
    assert torch.is_grad_enabled()


def test_isolation_puts_everything_back_after_an_error() -> None:
    model = half_frozen()
    before, mode = generators(), modes(model)
    with pytest.raises(ZeroDivisionError), isolated(model):
        disturb(model)
        _ = 1 / 0
    assert (generators(), modes(model), torch.is_grad_enabled()) == (before, mode, True)


# -- the loss of every row -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64, "vocab_size": 260}
    return build_model(tmp_path_factory.mktemp("model"), ["a few words"], attention_dropout=0.3, **sizes)[0]


def training_rows() -> Rows:
    """Forty rows of 1 to 30 tokens in two domains; rows 7 and 25 have no trainable token."""
    rng = np.random.default_rng(5)
    tokens = [rng.integers(3, 256, size=n).tolist() for n in rng.integers(2, 31, size=40)]
    labels = [[IGNORE] * (len(t) // 3) + t[len(t) // 3 :] for t in tokens]
    labels[7] = [IGNORE] * len(tokens[7])
    tokens[25] = labels[25] = [4]  # one token: nothing to predict it from
    parts = [Dataset.from_dict({"input_ids": tokens[s], "labels": labels[s]}) for s in (slice(0, 22), slice(22, 40))]
    return Rows(parts, ["a", "b"])


def pad(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(f["input_ids"]) for f in features)

    def column(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([f[name] + [filler] * (width - len(f[name])) for f in features])

    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": column("input_ids", 0), "labels": column("labels", IGNORE), "attention_mask": mask}


def measure(
    model: Any, rows: Rows, batch_tokens: int, workers: int = 0, seen: list[list[int]] | None = None
) -> np.ndarray:
    def row_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch.pop(SAMPLE_IDS)
        if seen is not None:
            seen.append(ids.tolist())
        return score_rows(None, "sft", model, batch)

    return stage_losses(model, scoring_rows(rows, batch_tokens, workers), row_loss)


def scoring_rows(rows: Rows, batch_tokens: int, workers: int = 0) -> ScoringRows:
    ids, device = np.arange(len(rows)), torch.device("cpu")
    return ScoringRows(rows, ids, rows.lengths(), batch_tokens, RowCollator(pad), lambda batch: batch, device, workers)


@pytest.fixture(scope="module")
def alone(model: Any) -> list[float]:
    """The token mean of each row, one forward each, from the model's own log probabilities."""
    out, rows = [], training_rows()
    training = model.training
    model.eval()
    with torch.no_grad():
        for i in range(len(rows)):
            tokens, labels = torch.tensor(rows[i]["input_ids"]), rows[i]["labels"]
            logits = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
            terms = [-logits[t - 1, y].item() for t, y in enumerate(labels) if t and y != IGNORE]
            out.append(sum(terms) / len(terms) if terms else float("nan"))
    model.train(training)
    return out


@pytest.mark.parametrize("batch_tokens, workers", [(1, 0), (40, 0), (30, 2), (100_000, 0)])
def test_the_loss_of_a_row_does_not_depend_on_its_batch(
    model: Any, alone: list[float], batch_tokens: int, workers: int
) -> None:
    model.train()  # dropout would show
    rows = training_rows()
    seen: list[list[int]] = []
    losses = measure(model, rows, batch_tokens, workers, seen)
    assert losses.dtype == np.float64
    assert np.flatnonzero(np.isnan(losses)).tolist() == [7, 25] == np.flatnonzero(np.isnan(alone)).tolist()
    np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-5)
    assert np.nanstd(losses) > 0.01
    assert seen == [batch.tolist() for batch in token_batches(rows.lengths(), batch_tokens)]
    assert model.training


def test_a_loss_that_is_not_finite_is_no_loss(model: Any) -> None:
    def broken(_: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        values = torch.tensor([float("inf"), float("-inf"), float("nan"), 1.0])
        return values[batch[SAMPLE_IDS] % 4]

    losses = stage_losses(model, scoring_rows(training_rows(), 50), broken)
    assert losses[3::4].tolist() == [1.0] * 10
    assert np.isnan(losses).sum() == 30


@pytest.mark.parametrize("workers", [0, 2])
def test_measuring_leaves_no_trace(model: Any, workers: int) -> None:
    """Parameters, their gradients, generators, modes: all as before, in the middle of an accumulation too."""
    model.train()
    model.lm_head.eval()
    rows = training_rows()
    for parameter in model.parameters():
        parameter.grad = None
    score_input = pad([rows[0], rows[1]])
    model(**score_input).loss.backward()
    model.lm_head.weight.grad = None
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    before, mode = generators(), modes(model)
    measure(model, rows, 64, workers)
    assert generators() == before and modes(model) == mode and torch.is_grad_enabled()
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name]) and p.requires_grad
        kept = gradients[name]
        assert p.grad is None if kept is None else torch.equal(p.grad, kept)
    assert [name for name, g in gradients.items() if g is None] == ["lm_head.weight"]


def test_scoring_in_between_does_not_change_dropout(model: Any) -> None:
    """The next training forward draws the mask it would have drawn without the pass."""
    rows = training_rows()
    batch = pad([rows[i] for i in range(4)])

    def next_losses(score: bool) -> tuple[float, float]:
        model.train()
        torch.manual_seed(11)
        first = model(**batch).loss.item()
        if score:
            measure(model, rows, 64)
        return first, model(**batch).loss.item()

    plain = next_losses(score=False)
    assert plain[0] != plain[1]  # dropout is on
    assert next_losses(score=True) == plain


# -- sums per domain -------------------------------------------------------------------------------------------------


def test_sums_per_domain_add_up_over_an_interval() -> None:
    """Against a plain loop; rows without a finite loss or without trainable tokens are left out."""
    rng = np.random.default_rng(2)
    sums, expected = DomainSums(3, torch.device("cpu")), np.zeros((3, 5))
    for _ in range(20):
        domains, counts = rng.integers(0, 3, size=8), rng.integers(0, 5, size=8)
        losses = np.where(rng.random(8) < 0.2, np.nan, rng.integers(1, 9, size=8) / 4).astype(np.float32)
        totals = np.nan_to_num(losses) * counts
        excess = rng.integers(0, 9, size=8) / 4
        for d, loss, count, total, more in zip(domains, losses, counts, totals, excess, strict=True):
            if count > 0 and np.isfinite(loss):
                expected[d] += (1, loss, count, total, more)
        added = [torch.tensor(v, dtype=torch.float32) for v in (totals, excess)]
        sums.add(domains, torch.tensor(losses), torch.tensor(counts), *added)
    assert sums.fold().tolist() == expected.tolist()  # quarters: exact in any order
    resumed = DomainSums(3, torch.device("cpu"))
    resumed.load(sums.fold())
    assert resumed.take().tolist() == sums.take().tolist() == expected.tolist()
    assert sums.take().tolist() == np.zeros((3, 5)).tolist()
    assert sums.mean_since_log().tolist() == (expected[:, 1] / expected[:, 0]).tolist()
    assert np.isnan(sums.mean_since_log()).all()
