"""On PYTHONPATH of every process of a run: writes down what goes through the model.

With UNCHANGED_FORWARDS=FOLDER in the environment each process appends a line per forward pass of an outermost transformers
model to FOLDER/forwards-<rank>.jsonl: class, training mode, gradients on or off, and shape and hash of what it was given.
`watch` does the same in a process that was forked after this module was read.
"""

import hashlib
import json
import os
import sys

NAMES = ("input_ids", "labels", "attention_mask", "position_ids", "inputs_embeds")


def _digest(value):
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    try:
        plain = value.detach().to("cpu").contiguous()
        data = plain.flatten().view(torch.uint8).numpy().tobytes()
    except Exception as error:  # inside a transformation of torch.func
        return f"{tuple(value.shape)} {type(error).__name__}"
    shape = "x".join(map(str, plain.shape))
    return f"{str(plain.dtype)[6:]}:{shape}:{hashlib.blake2b(data, digest_size=8).hexdigest()}"


def watch(folder):
    """Append the forward passes of this process to a file of its rank in `folder`."""
    import torch

    file = open(os.path.join(folder, f"forwards-{os.environ.get('RANK', '0')}.jsonl"), "a", buffering=1)  # noqa: SIM115
    process, inside = os.getpid(), []

    def root(module):
        models = sys.modules.get("transformers.modeling_utils")
        return models is not None and isinstance(module, models.PreTrainedModel)

    def before(module, args):
        if root(module):
            inside.append(module)

    def after(module, args, kwargs, output):
        if not root(module):
            return
        while inside and inside.pop() is not module:
            pass
        if inside or os.getpid() != process:
            return
        given = {"input_ids": args[0]} if args else {}
        given.update((name, kwargs[name]) for name in NAMES if kwargs.get(name) is not None)
        line = {name: _digest(value) for name, value in given.items()}
        mode = ("train" if module.training else "eval") + (" grad" if torch.is_grad_enabled() else "")
        file.write(json.dumps({"model": type(module).__name__, "mode": mode, **line}) + "\n")

    torch.nn.modules.module.register_module_forward_pre_hook(before)
    torch.nn.modules.module.register_module_forward_hook(after, with_kwargs=True, always_call=True)


def fsdp_on_cpu():
    """accelerate knows FSDP on accelerators only: let it take the CPU for one."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def set_device(self):
        self.device = torch.device("cpu")

    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = set_device


if os.environ.get("UNCHANGED_FORWARDS"):
    watch(os.environ["UNCHANGED_FORWARDS"])
