"""The embedding signal: pooling on either padding side and in packed rows, and text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamafactory.data.collator import prepare_4d_attention_mask
from models_and_data import build_encoder

from dataflex.demo.model import build_model
from dataflex.errors import DataflexError
from dataflex.signals.embeddings import encoded_texts, load_encoder, pooling_weights, row_embeddings, sequences_of

POOLINGS = ("mean", "weighted_mean", "last")


def weights_by_hand(lengths: list[int], pooling: str) -> list[float]:
    """One row of sequences of these lengths, without padding."""
    out: list[float] = []
    for n in lengths:
        own = {"mean": [1 / n] * n, "last": [0.0] * (n - 1) + [1.0]}
        own["weighted_mean"] = [(i + 1) / (n * (n + 1) / 2) for i in range(n)]
        out += [w / len(lengths) for w in own[pooling]]
    return out


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("lengths", [[5], [3, 2], [1, 4, 2]])
@pytest.mark.parametrize(
    ("mask", "padding", "side"),
    [(mask, n, side) for mask in ("numbers", "blocks") for n in (0, 3) for side in ("left", "right")]
    + [("positions", 0, "right")],  # the collator trims the padding where it leaves no mask
)
def test_pooling_weights(pooling: str, lengths: list[int], padding: int, side: str, mask: str) -> None:
    """Every way in which a batch says which tokens belong together."""
    numbers = [s + 1 for s, n in enumerate(lengths) for _ in range(n)]
    numbers = [0] * padding + numbers if side == "left" else numbers + [0] * padding
    two = torch.tensor([numbers])
    batch: dict[str, Any] = {"input_ids": two, "attention_mask": two}
    if mask == "blocks":
        batch["attention_mask"] = prepare_4d_attention_mask(two, torch.float32)
    elif mask == "positions":
        batch |= {"attention_mask": None, "position_ids": torch.tensor([[i for n in lengths for i in range(n)]])}
    found = pooling_weights(sequences_of(batch), pooling)[0].tolist()
    expected = weights_by_hand(lengths, pooling)
    expected = [0.0] * padding + expected if side == "left" else expected + [0.0] * padding
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 24, "heads": 2, "kv_heads": 1, "intermediate_size": 40, "vocab_size": 300}
    path = tmp_path_factory.mktemp(request.param)
    return build_model(path, ["a few words to learn from"], family=request.param, **sizes)[0].eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_embeddings_do_not_depend_on_padding(model: Any, pooling: str, layer: int) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 200, n).tolist() for n in (4, 9, 1)]
    longest = max(map(len, rows))
    expected = []
    for row in rows:
        states = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0]
        expected.append(torch.tensor(weights_by_hand([len(row)], pooling)) @ states)
    for side in ("left", "right"):
        pad = [[0] * (longest - len(row)) for row in rows]
        ids = [p + r if side == "left" else r + p for r, p in zip(rows, pad, strict=True)]
        mask = [
            [0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p) for r, p in zip(rows, pad)
        ]
        batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(ids)}
        if side == "left":
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            found = row_embeddings(model, batch, layer, pooling)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_packed_row_is_the_mean_of_its_sequences(model: Any, pooling: str) -> None:
    first, second = [5, 6, 7, 8], [9, 10]
    numbers = torch.tensor([[1] * 4 + [2] * 2 + [0] * 2])
    packed = {
        "input_ids": torch.tensor([[*first, *second, 0, 0]]),
        "attention_mask": prepare_4d_attention_mask(numbers, torch.float32),
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 0, 0]]),
    }
    alone = [
        row_embeddings(
            model,
            {"input_ids": torch.tensor([s]), "attention_mask": torch.ones(1, len(s), dtype=torch.long)},
            -1,
            pooling,
        )
        for s in (first, second)
    ]
    found = row_embeddings(model, packed, -1, pooling)
    torch.testing.assert_close(found, (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_there(model: Any) -> None:
    batch = {"input_ids": torch.tensor([[3]]), "attention_mask": torch.tensor([[1]])}
    with pytest.raises(DataflexError, match="there is no layer 7; the model has 2"):
        row_embeddings(model, batch, 7, "mean")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    build_model(folder / "lm", ["a few words to learn from"], hidden_size=24, heads=2, kv_heads=1, vocab_size=300)
    return build_encoder(folder / "st", str(folder / "lm"))


def test_text_encoder(encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["a few words", "to learn", "from", ""]
    before = torch.random.get_rng_state()
    cpu = torch.device("cpu")
    found = encoded_texts(load_encoder(str(encoder), cpu), len(texts), texts.__getitem__, cpu)
    assert torch.equal(before, torch.random.get_rng_state()) and found.dtype == np.float32
    expected = SentenceTransformer(str(encoder), device="cpu").encode([t or " " for t in texts])
    assert np.allclose(found, expected, atol=1e-6)
    with pytest.raises(DataflexError, match="embedding_model: '/nowhere' cannot be loaded"):
        load_encoder("/nowhere", cpu)
