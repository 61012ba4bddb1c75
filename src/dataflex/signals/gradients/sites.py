"""Which parameters have a per-sample gradient, and in which modules it is seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers.pytorch_utils import Conv1D

from dataflex.signals.cross_entropy import output_embedding

Kind = Literal["linear", "conv1d", "embedding", "other"]


@dataclass
class Site:
    """A module that owns trainable parameters: {name within the module: parameter}."""

    name: str
    module: torch.nn.Module
    kind: Kind
    parameters: dict[str, torch.nn.Parameter]


@dataclass
class Sites:
    """The parameters whose gradients are taken.

    Attributes:
        covered: Parameters with a gradient per row and their full names, in the order of the model; a tied parameter
            once.
        left_out: Trainable parameters without one.
    """

    sites: list[Site] = field(default_factory=list)
    covered: dict[str, torch.nn.Parameter] = field(default_factory=dict)
    left_out: dict[str, torch.nn.Parameter] = field(default_factory=dict)

    @property
    def values(self) -> int:
        return sum(size(p) for p in self.covered.values())

    def describe(self) -> str:
        """One line: how much is covered, and what is not."""
        missing = sum(size(p) for p in self.left_out.values())
        line = f"gradients of {self.values:,} of {self.values + missing:,} trainable values"
        if not self.left_out:
            return line
        some = ", ".join(list(self.left_out)[:3]) + (", ..." if len(self.left_out) > 3 else "")
        return f"{line}; left out: {len(self.left_out)} parameters ({some})"


def size(parameter: torch.nn.Parameter) -> int:
    """Number of values; under ZeRO-3 of the whole parameter."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter, under ZeRO-3 too."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def find_sites(model: torch.nn.Module, parameters: Literal["linear", "all"] = "linear") -> Sites:
    """The layers and parameters of a model whose gradients are taken.

    Fused expert weights, LoRA on embeddings and DoRA's magnitudes are always left out.

    Args:
        parameters: `linear`: weights and biases of linear layers (`nn.Linear`, GPT-2's `Conv1D`; so both factors of
            LoRA), without the output embedding. `all`: also the embeddings and every leaf module with one input
            (norms).
    """
    head = output_embedding(model)
    tied = {id(p) for p in head.parameters()} if head is not None else set()
    found = Sites()
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        kind = _kind(module)
        if not own or kind is None:
            continue
        if parameters == "linear" and (kind in ("embedding", "other") or any(id(p) in tied for p in own.values())):
            continue
        found.sites.append(Site(name, module, kind, own))
        for key, parameter in own.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found.covered[f"{name}.{key}" if name else key] = parameter
    found.left_out = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in seen}
    return found


def _kind(module: torch.nn.Module) -> Kind | None:
    if isinstance(module, torch.nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    return "other" if next(module.children(), None) is None else None
