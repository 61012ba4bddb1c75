"""Runs a measurement in the middle of training so that nothing of it remains, and nothing of training gets into it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every random generator and every module's mode is as before."""
    modes = [(m, m.training) for m in model.modules()]
    with generators_kept():
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def generators_kept() -> Iterator[None]:
    """Afterwards every random generator is as before."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Models loaded inside are whole on every rank.

    Under ZeRO-3, transformers would partition them for an engine that they never have. Under FSDP with memory-efficient
    loading, it would read their weights on one rank only.
    """
    from transformers.integrations import deepspeed

    key = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    partitioned, efficient = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(key, None)
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = partitioned
        if efficient is not None:
            os.environ[key] = efficient
