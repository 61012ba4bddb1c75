"""The gradient of one parameter for every row of a batch, in its cheapest form.

A linear layer y = W a has, for row i, G_i = sum_t g_it a_it^T, with g the gradient of the loss with respect to y. The
two *factors* g and a determine G_i. It is formed only where that is cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int
    from torch import Tensor

# Values of per-row gradients formed at once: what stays in a processor's cache, and what keeps an accelerator busy.
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}
# Multiplications of a matrix product that take as long as one value of a formed gradient: to write it and read it for its
# norm (first), and to read it for each target (second). In fp32 with AVX-512; bf16 multiplies ten times as fast with AMX.
_VALUE = {torch.float32: (50, 25), torch.bfloat16: (500, 250)}
# Rows of a symmetric matrix that are computed at once, up to their end. Products in bf16 are faster whole.
_BLOCK = {torch.float32: 128, torch.bfloat16: 1 << 20}


@dataclass
class Factors:
    """One parameter's gradient G per row, for a parameter of shape [m, n]."""

    pieces: list[tuple[Float[Tensor, "B S m"], Float[Tensor, "B S n"]]]
    """Pairs (left, right) for a parameter of shape [m, n]: G_i = sum over pieces of left_i^T right_i."""
    dense: Float[Tensor, "B ..."] | None = None
    """A part that is formed already."""
    lookups: list[tuple[Int[Tensor, "B S"], Float[Tensor, "B S n"], int]] = field(default_factory=list)
    """Of an embedding (ids, gradients, m): as a piece with a left of ones and zeros."""

    def join(self, other: Factors) -> None:
        """Add another use of the same parameter (tied weights, a module called twice)."""
        self.pieces += other.pieces
        self.lookups += other.lookups
        if other.dense is not None:
            self.dense = other.dense if self.dense is None else self.dense + other.dense

    def __len__(self) -> int:
        return len(self._any)

    @property
    def _any(self) -> torch.Tensor:
        """A tensor that has one entry per row."""
        return self.dense if self.dense is not None else (self.pieces or self.lookups)[0][0]

    def folded(self, count: int) -> Factors:
        """Each `count` consecutive rows as one, whose gradient is the sum of theirs."""
        if count == 1:
            return self
        pieces = [
            tuple(side.reshape(-1, count * side.shape[1], side.shape[2]) for side in pair) for pair in self.pieces
        ]
        dense = None if self.dense is None else self.dense.unflatten(0, (-1, count)).sum(dim=1)
        lookups = [
            (i.reshape(-1, count * i.shape[1]), g.reshape(-1, count * g.shape[1], g.shape[2]), m)
            for i, g, m in self.lookups
        ]
        return Factors(pieces, dense, lookups)  # type: ignore[arg-type]

    def only(self, rows: Bool[Tensor, " B"]) -> Factors:
        """The gradient of every row where `rows` holds, zero elsewhere, whatever stood there."""

        def kept(values: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
            return torch.where(rows.view(-1, *[1] * (values.ndim - 1)), values, 0)

        return Factors(
            [(kept(left), kept(right)) for left, right in self.pieces],
            None if self.dense is None else kept(self.dense),
            [(ids, kept(gradients), m) for ids, gradients, m in self.lookups],
        )

    def scaled(self, scale: float | Float32[Tensor, " B"]) -> Factors:
        """Every row's gradient times `scale`, or times its own."""

        def times(values: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
            own = scale.view(-1, *[1] * (values.ndim - 1)) if torch.is_tensor(scale) else scale
            product = values.float() * own
            return product.to(values.dtype) if values.dtype == torch.bfloat16 else product

        return Factors(
            [(times(left), right) for left, right in self.pieces],
            None if self.dense is None else times(self.dense),
            [(ids, times(gradients), m) for ids, gradients, m in self.lookups],
        )

    def in_bf16(self) -> Factors:
        """Factors in bf16 where one of a pair is: what autocast rounds an input to before it multiplies."""
        pieces = [
            (left.bfloat16(), right.bfloat16()) if torch.bfloat16 in (left.dtype, right.dtype) else (left, right)
            for left, right in self.pieces
        ]
        return Factors(pieces, self.dense, self.lookups)

    def in_fp32(self) -> Factors:
        """All factors in fp32, so that all products are."""
        return Factors([(left.float(), right.float()) for left, right in self.pieces], self.dense, self.lookups)

    @property
    def shape(self) -> torch.Size:
        """Of the parameter."""
        if self.dense is not None:
            return self.dense[0].shape
        if self.lookups:
            _, gradients, entries = self.lookups[0]
            return torch.Size((entries, gradients.shape[-1]))
        left, right = self.pieces[0]
        return torch.Size((left.shape[-1], right.shape[-1]))

    @property
    def numel(self) -> int:
        """Values of the parameter."""
        return self.shape.numel()

    @property
    def device(self) -> torch.device:
        return self._any.device

    def factored(self) -> tuple[Float[Tensor, "B S m"], Float[Tensor, "B S n"]] | None:
        """The two factors over all pieces; None if a part exists in dense form only."""
        if self.dense is not None or self.lookups:
            return None
        if len(self.pieces) > 1:
            left, right = (torch.cat(side, dim=1) for side in zip(*self.pieces, strict=True))
            self.pieces = [(left, right)]
        return self.pieces[0]

    def chunks(self) -> Iterator[tuple[slice, Float32[Tensor, "b numel"]]]:
        """Rows and their gradients, a few rows at a time; the tensors may be overwritten."""
        step = max(1, _CHUNK.get(self.device.type, _CHUNK["cuda"]) // self.numel)
        for start in range(0, len(self), step):
            rows = slice(start, start + step)
            total = None if self.dense is None else self.dense[rows].float().flatten(1).clone()
            for left, right in self.pieces:
                part = outer(left[rows], right[rows]).flatten(1)
                total = part if total is None else total.add_(part)
            for ids, gradients, entries in self.lookups:
                part = looked_up(ids[rows], gradients[rows], entries)
                total = part if total is None else total.add_(part)
            assert total is not None
            yield rows, total

    def total(self) -> Float32[Tensor, " numel"]:
        """The sum over rows."""
        out = 0.0 if self.dense is None else self.dense.float().sum(dim=0).flatten()
        for left, right in self.pieces:
            out = out + outer(left.flatten(0, 1)[None], right.flatten(0, 1)[None])[0].flatten()
        for ids, gradients, entries in self.lookups:
            out = out + looked_up(ids.flatten()[None], gradients.flatten(0, 1)[None], entries)[0]
        assert torch.is_tensor(out)
        return out


def multiplied(
    left: Float[Tensor, "B S m"], right: Float[Tensor, "B S n"]
) -> tuple[Float[Tensor, "B S m"], Float[Tensor, "B S n"]]:
    """A pair of factors in the precision of their products: bf16 on a CPU where both are in it, else fp32."""
    if left.dtype == right.dtype == torch.bfloat16 and left.device.type == "cpu":
        return left, right
    return left.float(), right.float()


def outer(left: Float[Tensor, "B S m"], right: Float[Tensor, "B S n"]) -> Float32[Tensor, "B m n"]:
    """left^T right for every row, accumulated in fp32."""
    if left.dtype == right.dtype != torch.float32 and left.is_cuda:
        with suppress(TypeError):  # torch before 2.8 has no such argument
            return torch.bmm(left.transpose(1, 2), right, out_dtype=torch.float32)
    left, right = multiplied(left, right)
    return torch.bmm(left.transpose(1, 2), right).float()


def looked_up(
    ids: Int[Tensor, "b S"], gradients: Float[Tensor, "b S n"], entries: int
) -> Float32[Tensor, "b entries*n"]:
    """The gradient of an embedding of `entries` vectors for every row."""
    rows, width = len(ids), gradients.shape[-1]
    out = torch.zeros((rows * entries, width), dtype=torch.float32, device=gradients.device)
    cell = ids + entries * torch.arange(rows, device=ids.device)[:, None]
    return out.index_add_(0, cell.flatten(), gradients.reshape(-1, width).float()).view(rows, -1)


def dots_and_norms(
    factors: Factors, target: Float32[Tensor, "targets numel"] | None
) -> tuple[Float32[Tensor, "B targets"], Float32[Tensor, " B"]]:
    """<G_i, M_k> and |G_i|^2, for targets M (None: no targets).

    From the factors alone (ghost norms) where they are short against the parameter, else from formed gradients.
    """
    pair = factors.factored()
    count = 0 if target is None else len(target)
    if pair is not None:
        left, right = multiplied(*pair)
        if _ghost_is_cheaper(left.shape[1], left.shape[2], right.shape[2], count, left.dtype):
            return _ghost(left, right, target)
    device = factors.device
    dots = torch.empty((len(factors), count), dtype=torch.float32, device=device)
    norms = torch.empty(len(factors), dtype=torch.float32, device=device)
    for rows, gradients in factors.chunks():
        if target is not None:
            torch.matmul(gradients, target.T, out=dots[rows])
        norms[rows] = torch.linalg.vector_norm(gradients, dim=1).square()
    return dots, norms


def _ghost_is_cheaper(length: int, m: int, n: int, targets: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether inner products from the factors are cheaper than a formed gradient, by multiplications per row."""
    ghost = targets * length * m * n + length * length * (m + n)
    formed, read = _VALUE[dtype]
    return ghost < length * m * n + (formed + read * targets) * m * n


def _ghost(
    left: Float[Tensor, "B S m"], right: Float[Tensor, "B S n"], target: Float32[Tensor, "targets numel"] | None
) -> tuple[Float32[Tensor, "B targets"], Float32[Tensor, " B"]]:
    """<G, M> = sum_t left_t^T M right_t, and |G|^2."""
    norms = _square_norms(left, right)
    if target is None:
        return norms.new_empty((len(left), 0)), norms
    m, n = left.shape[2], right.shape[2]
    dots = [_products(left, one.view(m, n), right) for one in target]
    return torch.stack(dots, dim=1), norms


def _products(
    left: Float[Tensor, "B S m"], target: Float32[Tensor, "m n"], right: Float[Tensor, "B S n"]
) -> Float32[Tensor, " B"]:
    """sum_t left_t^T M right_t, through the shorter of the two sides."""
    if right.shape[2] > left.shape[2]:
        left, target, right = right, target.T, left
    return (left @ target.to(left.dtype)).mul_(right).sum(dim=(1, 2), dtype=torch.float32)


def _square_norms(left: Float[Tensor, "B S m"], right: Float[Tensor, "B S n"]) -> Float32[Tensor, " B"]:
    """sum_{s,t} (left_s . left_t) (right_s . right_t). The terms are symmetric in s and t, so those with t beyond the block
    of s are counted with their mirror images."""
    norms = torch.zeros(len(left), dtype=torch.float32, device=left.device)
    block = _BLOCK[left.dtype]
    for begin in range(0, left.shape[1], block):
        end = begin + block
        terms = torch.bmm(left[:, begin:end], left[:, :end].transpose(1, 2))
        terms.mul_(torch.bmm(right[:, begin:end], right[:, :end].transpose(1, 2)))
        below, within = terms[:, :, :begin], terms[:, :, begin:]
        norms += 2 * below.sum(dim=(1, 2), dtype=torch.float32) + within.sum(dim=(1, 2), dtype=torch.float32)
    return norms.clamp_(min=0.0)
