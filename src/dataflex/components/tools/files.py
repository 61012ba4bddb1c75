"""Arrays that a component reads from a file."""

from __future__ import annotations

import numpy as np

from dataflex.errors import ConfigError


def read_array(parameter: str, path: str, *, dimensions: int) -> np.ndarray:
    """A memory-mapped .npy file of so many dimensions; ConfigError that begins with `parameter` if it is none."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"{parameter} must be a file, and {path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{parameter} must be an .npy file, and {path} is none: {error}") from None
    if not isinstance(values, np.ndarray):
        raise ConfigError(f"{parameter} must be an .npy file of one array, and {path} is none")
    if values.ndim != dimensions:
        raise ConfigError(
            f"{parameter} must hold an array of {dimensions} dimension{'s' * (dimensions > 1)}, {path} has {values.ndim}"
        )
    return values
