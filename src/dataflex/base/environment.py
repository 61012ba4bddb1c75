"""What this installation consists of: versions, against those that the tests run on, devices, plug-ins and trackers."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from dataflex.components.registry import FAMILIES, plug_ins
from dataflex.errors import DataflexError
from dataflex.notices import first_line
from dataflex.shipped import shipped
from dataflex.version import __version__

PACKAGES = (
    "torch", "transformers", "llamafactory", "peft", "accelerate", "trl", "datasets", "tokenizers", "deepspeed", "ray",
    "sentence-transformers", "bitsandbytes", "flash-attn", "liger-kernel", "numpy", "pyarrow", "scikit-learn",
)  # fmt: skip
TRACKERS = ("wandb", "tensorboard", "mlflow", "swanlab", "trackio", "comet-ml", "neptune", "clearml", "dvclive", "aim")


def report() -> list[tuple[str, str]]:
    """Pairs of a thing and its version or kind, in the order in which they are read."""
    tested = tested_versions()
    lines = [
        ("dataflex", __version__),
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
    ]
    for name in PACKAGES:
        found = installed(name)
        if found is not None:
            lines.append((name, found + _deviation(found, tested.get(name))))
        elif name in tested:
            lines.append((name, "not installed"))
    lines += [("device", device) for device in _devices()]
    lines += [("plug-in", plug_in) for plug_in in _plug_ins()] or [("plug-ins", "none")]
    trackers = [f"{name} {found}" for name in TRACKERS if (found := installed(name)) is not None]
    return [*lines, ("trackers", ", ".join(trackers) or "none")]


def deviations() -> list[str]:
    """Installed packages of the tested set, all of it, that have another version than the tests."""
    pairs = ((name, installed(name), wanted) for name, wanted in tested_versions().items())
    return [
        f"{name} {found} ({wanted})" for name, found, wanted in pairs if found is not None and _differs(found, wanted)
    ]


def tested_versions() -> dict[str, str]:
    """Version by package of the set that the tests run on (constraints.txt); empty where the file is missing."""
    try:
        text = shipped("constraints.txt").read_text(encoding="utf-8")
    except DataflexError:
        return {}
    return dict(re.findall(r"^([\w.-]+)==([^\s;#]+)", text, re.MULTILINE))


def installed(name: str) -> str | None:
    """The version of a package, if it is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _differs(found: str, wanted: str) -> bool:
    """A local part, as in 2.10.0+cu128, names a build of the same release."""
    return found.partition("+")[0] != wanted


def _deviation(found: str, wanted: str | None) -> str:
    return f" (tested: {wanted})" if wanted is not None and _differs(found, wanted) else ""


def _devices() -> Iterator[str]:
    try:
        import torch

        if not torch.accelerator.is_available():
            yield f"CPU, {torch.get_num_threads()} threads"
            return
        kind = torch.accelerator.current_accelerator()
        for index in range(torch.accelerator.device_count()):
            yield f"{kind} {index}" + (f": {_gpu(index)}" if kind is not None and kind.type == "cuda" else "")
    except Exception as error:  # torch that does not load, or a driver that does not answer
        yield f"unknown ({first_line(error)})"


def _gpu(index: int) -> str:
    from torch import cuda, version

    found = cuda.get_device_properties(index)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {version.cuda}"


def _plug_ins() -> list[str]:
    """Each package with the names that it adds."""
    added: dict[str, list[str]] = {}
    for family in FAMILIES:
        for entry in plug_ins(family):
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value.partition(":")[0]
            added.setdefault(package, []).append(f"{family} {entry.name}")
    return [f"{package}: {', '.join(names)}" for package, names in sorted(added.items())]
