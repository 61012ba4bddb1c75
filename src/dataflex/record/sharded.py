"""What accelerate 1.11 does not restore of a model that FSDP has sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from dataflex.distributed import collectives
from dataflex.errors import DataflexError


def load_adapter(model: Any, folder: Path) -> None:
    """An adapter of a model sharded by FSDP 2, from the file that holds it whole. Of what accelerate writes beside it, each shard
    but the first rank's is lost."""
    file = folder / "adapter_model.safetensors"
    if not hasattr(model, "peft_config") or not collectives.decide(file.is_file):
        return
    from peft import get_peft_model_state_dict
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    stored: dict[str, Any] = {}

    def read() -> None:
        names = get_peft_model_state_dict(
            model, state_dict={n: n for n in model.state_dict()}
        )  # in the file: in the model
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                if key not in names:
                    raise DataflexError(f"{file} holds {key}, which the model does not have")
                stored[names[key]] = weights.get_tensor(key)

    collectives.decide(read)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, stored, options=options)


def load_moments(model: Any, optimizer: Any, folder: Path) -> None:
    """The state of the optimizer, where every rank has saved its own shards. accelerate reads what is in the state of a fresh
    optimizer, which is nothing."""
    shards = folder / "optimizer_0"
    if not collectives.decide(shards.is_dir):
        return
    import torch.distributed.checkpoint as stored
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    inner = getattr(optimizer, "optimizer", optimizer)
    state = get_optimizer_state_dict(model, inner)
    stored.load({"optimizer": state}, checkpoint_id=shards)
    set_optimizer_state_dict(model, inner, state)
