"""One forward and backward pass that delivers the factors of every parameter's per-row gradient as they appear.

The gradient is taken with respect to layer *outputs*, by `torch.autograd.grad` through the inner module. No
`param.grad`, no reducer of DDP and no DeepSpeed engine is touched. Hooks exist during one pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.func import functional_call, vjp, vmap
from torch.utils.checkpoint import checkpoint

from dataflex.errors import DataflexError
from dataflex.signals.gradients.factors import Factors
from dataflex.signals.gradients.lora import fusable_layers, fused, takes
from dataflex.signals.gradients.sites import Site, Sites

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor

Consume = Callable[[torch.nn.Parameter, Factors], None]


class Capture:
    """Calls consume(parameter, factors) once per parameter that the loss depends on, during the backward pass.

    Under gradient checkpointing, the inputs of a layer are taken when it is computed again. So they are not kept alive
    in between. Such a layer may be called once per pass.
    """

    def __init__(self, model: Any, sites: Sites, consume: Consume) -> None:
        self.model, self.sites, self.consume = model, sites, consume
        self._phase: Literal["off", "forward", "backward"] = "off"
        self._again: set[torch.nn.Module] = set()  # modules inside a checkpointed layer
        self._calls: dict[torch.nn.Module, int] = {}
        self._inputs: dict[tuple[torch.nn.Module, int], torch.Tensor] = {}
        self._waiting: dict[torch.nn.Module, torch.Tensor] = {}
        self._expected: dict[torch.nn.Parameter, int] = {}
        self._partial: dict[torch.nn.Parameter, tuple[int, Factors]] = {}
        self._ends: list[torch.Tensor] = []
        self._shape = (0, 0)
        self._dora: dict[torch.nn.Module, torch.nn.Module] = {}
        self._aside: set[torch.nn.Module] = set()

    def run(self, loss: Callable[[], torch.Tensor], rows: int, length: int) -> None:
        """loss(): a forward pass through the model, on `rows` rows of `length` tokens, that ends in a scalar: the sum of
        one term per row. DataflexError for a layer that is given anything but all tokens of all rows, such as the experts
        of a router."""
        self._shape, self._dora, self._aside = (rows, length), _dora_pairs(self.model), set()
        handles = [h for site in self.sites.sites for h in self._attach(site)]
        layers = fusable_layers(self.model, self.sites)
        own = [layer.__dict__.get("forward") for layer in layers]
        for layer in layers:
            layer.forward = partial(self._fused, layer, layer.forward)
        embedding = self.model.get_input_embeddings() if hasattr(self.model, "get_input_embeddings") else None
        if embedding is not None:
            handles.append(embedding.register_forward_hook(self._root))
        try:
            with torch.enable_grad(), _checkpointing(self.model) as self._again:
                self._phase = "forward"
                total = loss()
                self._phase = "backward"
                if total.requires_grad and self._ends:
                    torch.autograd.grad(total, self._ends, allow_unused=True)
                for site in self.sites.sites:  # torch.func does not work while a layer is computed again
                    if site.module in self._waiting and (site.module, 0) in self._inputs:
                        self._use(site, self._inputs.pop((site.module, 0)), self._waiting.pop(site.module))
            self._phase = "off"
            for parameter, (_, factors) in self._partial.items():  # a use that the loss does not depend on
                self.consume(parameter, factors)
        finally:
            self._phase = "off"
            for handle in handles:
                handle.remove()
            for layer, forward in zip(layers, own):
                if forward is None:
                    del layer.forward  # its class's again
                else:
                    layer.forward = forward
            for kept in (self._calls, self._inputs, self._waiting, self._expected, self._partial, self._ends):
                kept.clear()

    def _attach(self, site: Site) -> list[Any]:
        return [
            site.module.register_forward_pre_hook(partial(self._before, site)),
            site.module.register_forward_hook(partial(self._after, site)),
        ]

    def _fused(self, layer: Any, stock: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """A LoRA layer as one operation where that is possible; else its parts are called, and hooked, as ever."""
        if self._phase == "off" or args or kwargs or x.shape[:2] != self._shape or not takes(layer, x):
            return stock(x, *args, **kwargs)
        name = layer.active_adapters[0]
        if self._phase == "forward":
            for part in (layer.lora_A[name], layer.lora_B[name]):
                self._expected[part.weight] = self._expected.get(part.weight, 0) + 1
        return fused(layer, x, self._accept)

    def _root(self, _: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
        """Everything the model computes from its tokens hangs on this tensor, so the backward pass reaches all of it."""
        if self._phase == "forward" and torch.is_tensor(output):
            if not output.requires_grad:
                output.requires_grad_()
            self._ends.append(output)

    def _is_aside(self, module: torch.nn.Module, x: torch.Tensor) -> bool:
        """Whether this call is one of DoRA's own: lora_A and then lora_B on an identity matrix, to see its weight.

        Nothing is learned from such calls.
        """
        square = x.ndim == 2 and x.shape[0] == x.shape[1] and not x.requires_grad
        return module in self._aside or (square and module in self._dora)

    def _before(self, site: Site, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if self._is_aside(module, args[0]):
            return
        if self._phase == "forward" and module not in self._again:
            self._inputs[module, self._calls.get(module, 0)] = args[0].detach()
        elif self._phase == "backward" and module in self._again:
            if module in self._waiting and site.kind != "other":
                self._use(site, args[0].detach(), self._waiting.pop(module))
            else:
                self._inputs[module, 0] = args[0].detach()

    def _after(self, site: Site, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        if self._is_aside(module, args[0]):
            self._aside.symmetric_difference_update({self._dora.get(module, module)})
            return None
        if self._phase != "forward":
            return None
        call = self._calls.get(module, 0)
        if not output.requires_grad:
            self._inputs.pop((module, call), None)
            return None
        if call and module in self._again:
            raise RuntimeError(
                f"{site.name} is called twice in a pass, which gradient checkpointing does not allow here"
            )
        self._calls[module] = call + 1
        for parameter in site.parameters.values():
            self._expected[parameter] = self._expected.get(parameter, 0) + 1
        if not args[0].requires_grad:
            self._ends.append(output)
        rows, length = self._shape
        shared = site.kind == "embedding" and args[0].shape == (1, length) and rows > 1
        if shared:  # learned positions, looked up once for all rows
            output = output.expand(rows, *output.shape[1:])
            self._inputs[module, call] = args[0].detach().expand(rows, length)
        output.register_hook(partial(self._arrive, site, call))
        return output if shared else None

    def _arrive(self, site: Site, call: int, gradient: torch.Tensor) -> None:
        if self._phase != "backward":
            return
        value = self._inputs.pop((site.module, call), None)
        if value is None:  # the layer is yet to be computed again
            self._waiting[site.module] = gradient
        else:
            self._use(site, value, gradient)

    def _use(self, site: Site, value: torch.Tensor, gradient: torch.Tensor) -> None:
        phase, self._phase = self._phase, "off"
        with torch.no_grad():
            value, gradient = (self._by_row(site, t, t is value) for t in (value, gradient))
            for parameter, factors in site_factors(site, value, gradient):
                self._accept(parameter, factors)
        self._phase = phase

    def _accept(self, parameter: torch.nn.Parameter, factors: Factors) -> None:
        """One use of a parameter; handed on once all its uses are there."""
        seen, kept = self._partial.pop(parameter, (0, None))
        if kept is not None:
            kept.join(factors)
            factors = kept
        if seen + 1 == self._expected[parameter]:
            self.consume(parameter, factors)
        else:
            self._partial[parameter] = (seen + 1, factors)

    def _by_row(self, site: Site, tensor: torch.Tensor, is_input: bool) -> Shaped[Tensor, "rows length ..."]:
        """The same by row, also where a layer was given all tokens in one line."""
        rows, length = self._shape
        if tensor.shape[:2] == (rows, length):
            return tensor
        flat = 1 if site.kind == "embedding" and is_input else 2
        if tensor.ndim == flat and len(tensor) == rows * length:
            return tensor.view(rows, length, *tensor.shape[1:])
        raise DataflexError(
            f"gradients: {site.name} is given {list(tensor.shape)} instead of all {rows} x {length} tokens of a batch, so"
            " its gradient cannot be told apart by row; leave it out of what is trained"
        )


def site_factors(
    site: Site, value: Shaped[Tensor, "B S ..."], gradient: Float[Tensor, "B S ..."]
) -> Iterator[tuple[torch.nn.Parameter, Factors]]:
    """Each trainable parameter of a module, and its factors, from one call's input and output gradient."""
    if site.kind in ("linear", "conv1d"):
        a, g = value.flatten(1, -2), gradient.flatten(1, -2)
        if "weight" in site.parameters:
            pair = (g, a) if site.kind == "linear" else (a, g)
            yield site.parameters["weight"], Factors([pair])
        if "bias" in site.parameters:
            yield site.parameters["bias"], Factors([], g.float().sum(dim=1))
    elif site.kind == "embedding":
        lookup: Any = site.module
        if lookup.padding_idx is not None:  # whose vector is never trained
            gradient = gradient * (value != lookup.padding_idx).unsqueeze(-1)
        yield site.parameters["weight"], Factors([], None, [(value, gradient, lookup.num_embeddings)])
    else:
        module, weights = site.module, {n: p.detach() for n, p in site.parameters.items()}

        def one(x: torch.Tensor, g: torch.Tensor) -> dict[str, torch.Tensor]:
            _, pull = vjp(lambda w: functional_call(module, w, (x[None],)), weights)
            return pull(g[None])[0]

        for name, dense in vmap(one)(value, gradient).items():
            yield site.parameters[name], Factors([], dense)


@contextmanager
def _checkpointing(model: torch.nn.Module) -> Iterator[set[torch.nn.Module]]:
    """Keep gradient checkpointing in force in evaluation mode, in the form that `autograd.grad` works with.

    Yields the modules inside checkpointed layers. Only the layers' own `training` is set, not that of what they hold, so
    dropout stays off.
    """
    layers = [
        m
        for m in model.modules()
        if getattr(m, "gradient_checkpointing", False) and hasattr(m, "_gradient_checkpointing_func")
        and isinstance(m, _checkpointed_class())
    ]  # fmt: skip
    kept = [(m, m.training, m._gradient_checkpointing_func) for m in layers]
    for layer in layers:
        layer.training = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
    try:
        yield {inner for layer in layers for inner in layer.modules()}
    finally:
        for layer, training, function in kept:
            layer.training = training
            layer._gradient_checkpointing_func = function


def _checkpointed_class() -> type:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return GradientCheckpointingLayer


def _dora_pairs(model: Any) -> dict[torch.nn.Module, torch.nn.Module]:
    """lora_A -> lora_B of peft's DoRA layers."""
    layers = [m for m in model.modules() if getattr(m, "lora_variant", None)]
    return {layer.lora_A[name]: layer.lora_B[name] for layer in layers for name in layer.lora_A}
