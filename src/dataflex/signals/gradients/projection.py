"""Random projection of all parameters' gradients of a row into one vector of `dim` values.

Every parameter is projected with random signs of its own, and the projections are added. That is one
Johnson-Lindenstrauss transform of the concatenated gradient. Inner products are kept without bias. There are two ways:

- Formed gradients: a sparse transform into the whole vector, with one non-zero per coordinate (count sketch; Charikar et
  al. 2002, Weinberger et al. arXiv 0902.2206). It costs one addition per value. The variance of an inner product is about
  (|x|^2 |y|^2 + <x, y>^2) / dim.
- Factors: left R and right Q with random signs, before the outer product, so no gradient is ever formed. This is the
  Kronecker product of the two projections. It fills one *block* of the vector. Up to 8192 values there is one block, and
  all parameters are added there. A longer vector has blocks of 4096 values or a little more, and every parameter has one
  of them.

The gradient of a layer has few large singular values. So the shapes of R and Q decide how far an inner product is off,
and a length beyond them brings little. Blocks keep the cost of a token at that of 4096 values, whatever `dim` is.

The two are different random maps, so both sides of an inner product must use the same one. It is chosen per parameter,
from its shape and from whether either side needs formed gradients.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from dataflex.signals.gradients.factors import Factors, multiplied
from dataflex.signals.gradients.sites import size

if TYPE_CHECKING:
    from jaxtyping import Float32, Int8, Int32
    from torch import Tensor

# Tokens of a row for which it is decided what is cheaper.
_TOKENS = 256
# The longest vector with one block, and the shortest block of a longer one.
_ONE_BLOCK = 8192
_BLOCK = 4096


class Projection:
    """A projection of gradients.

    Attributes:
        names: Names of the parameters. They key the random signs, with `seed`.
        dim: Length of the vector.
        formed: Whether either side of an inner product needs formed gradients, as Adam's directions do.
    """

    def __init__(self, names: dict[torch.nn.Parameter, str], dim: int, seed: int, *, formed: bool) -> None:
        self.names, self.dim, self.seed, self.formed = names, dim, seed, formed
        blocks = max(1, min(dim // _BLOCK, len(names))) if has_blocks(dim) else 1
        self.block_dim = dim // blocks
        self.left_dim = 1 << (self.block_dim.bit_length() - 1) // 2
        self.right_dim = self.block_dim // self.left_dim
        self._blocks = _evenly(names, blocks)
        self._buckets: dict[torch.nn.Parameter, tuple[torch.Tensor, torch.Tensor]] = {}
        self._signs: dict[tuple[torch.nn.Parameter, str], torch.Tensor] = {}

    def takes_factors(self, shape: torch.Size) -> bool:
        """Whether factors take fewer operations for a parameter of this shape than a formed gradient and its sketch."""
        if self.formed or len(shape) != 2:
            return False
        m, n = shape
        return m * self.left_dim + n * self.right_dim + self.block_dim < m * n + 8 * m * n / _TOKENS

    def add_factors(self, parameter: torch.nn.Parameter, factors: Factors, out: Float32[Tensor, "B dim"]) -> None:
        """out += R^T G Q of every row, in the parameter's block; from the factors where there are such."""
        (m, n), pair, device = factors.shape, factors.factored(), factors.device
        r = self._sign_matrix(parameter, "left", m, self.left_dim, device)
        q = self._sign_matrix(parameter, "right", n, self.right_dim, device)
        if pair is not None:
            left, right = multiplied(*pair)
            found = torch.bmm((left @ r.to(left.dtype)).transpose(1, 2), right @ q.to(right.dtype)).float()
        else:
            found = torch.cat([r.T @ (gradients.view(-1, m, n) @ q) for _, gradients in factors.chunks()])
        begin = self._blocks[parameter] * self.block_dim
        out[:, begin : begin + found[0].numel()] += found.flatten(1)

    def add_gradients(
        self, parameter: torch.nn.Parameter, gradients: Float32[Tensor, "b numel"], out: Float32[Tensor, "b dim"]
    ) -> None:
        """out += the projection of formed gradients; these are overwritten."""
        bucket, sign = self._sketch(parameter, gradients.shape[1], gradients.device)
        signed = gradients.mul_(sign)
        if signed.device.type != "cpu":
            part = torch.zeros((self.dim, len(signed)), dtype=torch.float32, device=signed.device)
            out += part.index_add_(0, bucket, signed.T).T
            return
        places = bucket.long().expand(len(signed), -1)
        if has_blocks(self.dim):
            out.scatter_add_(1, places, signed)  # several times as fast as index_add_
        else:  # one parameter after the other, as earlier versions added them up
            out += torch.zeros_like(out).scatter_add_(1, places, signed)

    def _sketch(
        self, parameter: torch.nn.Parameter, numel: int, device: torch.device
    ) -> tuple[Int32[Tensor, " numel"], Int8[Tensor, " numel"]]:
        if parameter not in self._buckets:
            generator = self._generator(parameter, "sketch")
            bucket = torch.randint(self.dim, (numel,), generator=generator, dtype=torch.int32)
            sign = torch.randint(2, (numel,), generator=generator, dtype=torch.int8) * 2 - 1
            self._buckets[parameter] = bucket.to(device), sign.to(device)
        return self._buckets[parameter]

    def _sign_matrix(
        self, parameter: torch.nn.Parameter, side: str, rows: int, columns: int, device: torch.device
    ) -> Float32[Tensor, "rows columns"]:
        """Random signs / sqrt(columns)."""
        if (parameter, side) not in self._signs:
            generator = self._generator(parameter, side)
            signs = torch.randint(2, (rows, columns), generator=generator, dtype=torch.int8) * 2 - 1
            self._signs[parameter, side] = (signs.float() / columns**0.5).to(device)
        return self._signs[parameter, side]

    def _generator(self, parameter: torch.nn.Parameter, purpose: str) -> torch.Generator:
        key = f"{self.seed}:{self.names[parameter]}:{purpose}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True))


def has_blocks(dim: int) -> bool:
    """Whether a vector of so many values has several blocks."""
    return dim > _ONE_BLOCK


def _evenly(names: dict[torch.nn.Parameter, str], blocks: int) -> dict[torch.nn.Parameter, int]:
    """A block for every parameter: the largest first, each where the fewest values are so far."""
    values, found = [0] * blocks, dict[torch.nn.Parameter, int]()
    for parameter in sorted(names, key=size, reverse=True):
        found[parameter] = values.index(min(values))
        values[found[parameter]] += size(parameter)
    return found


class Concatenation:
    """No projection: the gradients of all parameters, concatenated.

    Args:
        sizes: Values of each parameter.
    """

    def __init__(self, sizes: dict[torch.nn.Parameter, int]) -> None:
        self.starts: dict[torch.nn.Parameter, int] = {}
        self.dim = 0
        for parameter, values in sizes.items():
            self.starts[parameter] = self.dim
            self.dim += values

    def add_gradients(
        self, parameter: torch.nn.Parameter, gradients: Float32[Tensor, "b numel"], out: Float32[Tensor, "b dim"]
    ) -> None:
        start = self.starts[parameter]
        out[:, start : start + gradients.shape[1]] += gradients
