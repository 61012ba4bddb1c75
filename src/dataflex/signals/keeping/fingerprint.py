"""Hashes of a model and of an optimizer's moments as they are now, down to the last bit, wherever their parts are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from dataflex.distributed.collectives import gather, rank, ranks

# Values that are copied off an accelerator at once.
_BLOCK = 1 << 26
_WIDTH = 16  # bytes of a digest


def model_fingerprint(*models: torch.nn.Module) -> str | None:
    """A hash of the names, shapes, types and values of all parameters and stored buffers, equal on every rank.

    None if some of them cannot be read (on an NVMe). Each rank reads its own shards under ZeRO-3 or FSDP, and a part of
    the tensors that all ranks hold whole. So the hash of a sharded model depends on the number of ranks; that of a
    whole model does not.
    """
    whole: list[tuple[int, bytes]] = []
    split, parts, gone = xxhash.xxh3_128(), 0, False
    for index, (name, tensor) in enumerate(t for m in models for t in _tensors(m)):
        part = own_part(tensor)
        if part is None:
            gone = True
            continue
        said = f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.requires_grad}".encode()
        if part is not tensor or hasattr(tensor, "_fsdp_flattened"):  # FSDP 1 leaves a part in the place of the whole
            split.update(said)
            _add(split, part)
            parts += 1
        elif index % ranks() == rank():
            digest = xxhash.xxh3_128(said)
            _add(digest, part)
            whole.append((index, digest.digest()))
    if any(other.any() for other in gather(np.array([gone]))):
        return None
    found = dict(_gathered(whole))
    digests = b"".join(found[index] for index in sorted(found))
    return xxhash.xxh3_128_hexdigest(digests + (_of_all(split) if parts else b""))


def moments_fingerprint(optimizer: Any) -> str | None:
    """The same of the moments, steps, betas and eps that Adam's directions depend on; each rank reads what it holds."""
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper, DeepSpeed's
        if getattr(optimizer, "swap_optimizer", False):
            return None
        optimizer = optimizer.optimizer
    digest = xxhash.xxh3_128()
    for group in optimizer.param_groups:
        for name in ("betas", "eps", "step"):
            _add_numbers(digest, name, group.get(name, ()))
        for parameter in group["params"]:
            for name, value in sorted(optimizer.state.get(parameter, {}).items()):
                part = own_part(value)
                if torch.is_tensor(part) and part.numel() > 1:
                    digest.update(name.encode())
                    _add(digest, part)
                else:
                    _add_numbers(digest, name, part.tolist() if torch.is_tensor(part) else part)
    return xxhash.xxh3_128_hexdigest(_of_all(digest))


def own_part(tensor: Any) -> Any:
    """What this rank holds of a parameter or moment: the tensor itself where it is whole, None where that is not in memory."""
    if hasattr(tensor, "ds_tensor"):  # ZeRO-3; the last part is filled up with whatever was in memory
        part = tensor.ds_tensor
        if part.status.name != "AVAILABLE":
            return None
        begin = part.ds_numel * dist.get_rank(tensor.ds_process_group)
        return part.flatten()[: max(0, tensor.ds_numel - begin)]
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:  # those follow from what was computed last
                yield f"{name}.{key}", buffer


def _add(digest: Any, tensor: Any) -> None:
    for block in tensor.detach().reshape(-1).split(_BLOCK):
        digest.update(block.cpu().contiguous().view(torch.uint8).numpy())


def _add_numbers(digest: Any, name: str, numbers: Any) -> None:
    """Whatever they are kept as: loading a checkpoint makes lists of tuples, and tensors of numbers."""
    digest.update(f"{name}{np.asarray(numbers, dtype=np.float64).ravel().tolist()}".encode())


def _of_all(digest: Any) -> bytes:
    """The digests of all ranks, in their order; one of them where all have the same."""
    found = [part.tobytes() for part in gather(np.frombuffer(digest.digest(), np.uint8))]
    return found[0] if len(set(found)) == 1 else b"".join(found)


def _gathered(digests: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """(index, digest) of all ranks."""
    own = b"".join(index.to_bytes(8, "big") + digest for index, digest in digests)
    for part in gather(np.frombuffer(own, np.uint8)):
        text = part.tobytes()
        for at in range(0, len(text), 8 + _WIDTH):
            yield int.from_bytes(text[at : at + 8], "big"), text[at + 8 : at + 8 + _WIDTH]
