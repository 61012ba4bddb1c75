"""Arrays that a component reads from an .npy file, and the checks of what they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dataflex.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# How far probabilities may add up to another sum than 1: in fp16 each of them is off by up to 5e-4 of itself.
_SUM_TOLERANCE = 1e-3


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


@dataclass(frozen=True)
class StoredRowsFile(ABC):
    """An .npy file about the rows of the data sets as they are stored, laid end to end.

    `check` and `check_rows` raise ConfigError with a message that begins with `parameter`.
    """

    parameter: str
    """The parameter of the component that names the file."""
    path: str

    dimensions: ClassVar[int]

    def read(self) -> np.ndarray:
        """Memory-mapped, so reading is cheap and may be repeated."""
        return read_array(self.parameter, self.path, dimensions=self.dimensions)

    @abstractmethod
    def check(self) -> None:
        """Test the type and the values of the file, without the data."""

    @abstractmethod
    def check_rows(self, stored_rows: int) -> None:
        """Test that the file fits data sets of so many stored rows in all."""


class NeighbourFile(StoredRowsFile):
    """For each target row the numbers of its nearest stored rows, nearest first; -1 where there is none."""

    dimensions = 2

    def neighbours(self) -> Int[np.ndarray, "targets neighbours"]:
        return self.read()

    def check(self) -> None:
        found = self.neighbours()
        if not np.issubdtype(found.dtype, np.integer):
            raise ConfigError(f"{self.parameter} must hold integers, {self.path} has {found.dtype}")
        if found.size == 0 or found.max() < 0:
            raise ConfigError(f"{self.parameter} must name at least one row, {self.path} has none")

    def check_rows(self, stored_rows: int) -> None:
        found = self.neighbours()
        lowest, highest = found.min(), found.max()
        if highest >= stored_rows or lowest < -1:
            wrong = highest if highest >= stored_rows else lowest
            raise ConfigError(
                f"{self.parameter} must hold rows of the data, 0 to {stored_rows - 1} (or -1: none), {self.path} has {wrong}"
            )


class ProbabilityFile(StoredRowsFile):
    """A probability for every stored row: finite, non-negative, adding up to one."""

    dimensions = 1

    def probabilities(self) -> Float[np.ndarray, " stored_rows"]:
        return self.read()

    def check(self) -> None:
        found = self.probabilities()
        if not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found).all() or found.min(initial=0) < 0:
            raise ConfigError(f"{self.parameter} must hold finite, non-negative numbers, and {self.path} does not")
        if abs(float(found.sum(dtype=np.float64)) - 1) > _SUM_TOLERANCE:
            raise ConfigError(f"{self.parameter} must add up to 1, {self.path} adds up to {found.sum():g}")

    def check_rows(self, stored_rows: int) -> None:
        found = len(self.probabilities())
        if found != stored_rows:
            raise ConfigError(
                f"{self.parameter} must hold {stored_rows} numbers, one per row of the data, {self.path} has {found}"
            )
