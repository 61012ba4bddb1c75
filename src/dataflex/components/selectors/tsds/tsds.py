"""TSDS: rows distributed as the target is, near-duplicates counted once (Liu et al., arXiv 2410.11303)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.selectors.tsds.transport import transport
from dataflex.components.tools.embeddings import EmbeddingSelector, comparable
from dataflex.components.tools.files import read_array
from dataflex.components.tools.neighbours import nearest
from dataflex.components.tools.sampling import draw
from dataflex.errors import ConfigError, DataflexError

# Candidates whose spacing is looked at; how many neighbours of each, so that copies can be passed over; and the distance below
# which two rows are copies (rounding makes it of equal ones).
_SAMPLE, _COPIES, _SAME = 1024, 32, 2e-3


@dataclass(frozen=True, kw_only=True)
class TsdsSelector(EmbeddingSelector):
    """Rows distributed as the target is, near-duplicates counted once.

    They are drawn from the distribution that solves the transport problem of `transport.py`. sigma and C are distances, and
    those differ from one kind of embedding to another: None takes them from the data (`scale`). Embeddings have length one.
    score: the probability. With `probs_path` all updates draw from the distribution in that file.

    Departures:

    Compared with an independent transcription of their `tsds.py` with exact neighbours: the distribution is the same. What is
    different:

    - *Scale.* Their configuration has alpha 0.5, as here, and asks for a C "in the same scale as the norm of the embeddings";
      sigma is a number too. Here both follow from the data unless they are given. dataflex 1.1.0 had alpha 0.6, C 5 and sigma
      0.75, with which the transport does not stop on mean hidden states; files written for it keep them.
    - Neighbours and rho are not looked up in an inverted-file index, which misses many of them.
    - Embeddings are measured with the model, not read from files (`dataflex-cli select` reads files too).
    - dataflex 1.1.0 drew without replacement, which fails where fewer rows than the budget have a probability; its script
      left out the limit of a tenth; it took its file to be about processed rows.
    """

    max_K: int = 5000
    """Nearest rows that a target row can reach; at most a tenth of the candidates."""
    kde_K: int = 1000
    """Rows in the kernel density of a row; at most a tenth of the candidates."""
    sigma: float | None = None
    """Width of the kernel; 0: every row counts alone; null: from the distances in the data."""
    alpha: float = 0.5
    """What distance counts against evenness; 1: the nearest row gets all; 0: as even as `max_K` allows."""
    C: float | None = None
    """Scale of the distances: the larger, the more even; null: from the distances in the data."""
    replacement: bool = True
    """Draw with replacement, as the paper does; the budget may then exceed the data."""
    exact: bool = False
    """Compare all pairs for the density, however many rows there are."""
    probs_path: str | None = None
    """A distribution found before: an .npy file of float[N], one for each row as stored."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Liu et al.",
        title="TSDS: Data Selection for Task-Specific Model Finetuning",
        arxiv="2410.11303",
        venue="NeurIPS 2024",
    )
    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {"sigma": 0.75, "alpha": 0.6, "C": 5.0}
    retired: ClassVar[Mapping[str, str]] = {"cache_dir": "nothing is cached outside the checkpoints"}

    def check(self) -> None:
        super().check()
        self.require("max_K", self.max_K >= 2, "at least 2")
        self.require("kde_K", self.kde_K >= 1, "at least 1")
        self.require(
            "sigma", self.sigma is None or 0 <= self.sigma < 2, "in [0, 2), a distance between vectors of length one"
        )
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        self.require("C", self.C is None or self.C > 0, "positive")
        if self.probs_path is not None:
            found = read_array("probs_path", self.probs_path, dimensions=1)
            if not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found).all() or found.min(initial=0) < 0:
                raise ConfigError(f"probs_path must hold finite, non-negative numbers, and {self.probs_path} does not")
            if abs(float(found.sum(dtype=np.float64)) - 1) > 1e-3:
                raise ConfigError(f"probs_path must add up to 1, {self.probs_path} adds up to {found.sum():g}")

    @property
    def found_before(self) -> bool:
        return self.probs_path is not None

    def files(self) -> Mapping[str, str]:
        return {} if self.probs_path is None else {"probs_path": self.probs_path}

    def with_replacement(self) -> bool:
        return self.replacement

    def check_rows(self, raw_rows: int) -> None:
        if self.probs_path is not None:
            found = len(read_array("probs_path", self.probs_path, dimensions=1))
            if found != raw_rows:
                raise ConfigError(
                    f"probs_path must hold {raw_rows} numbers, one per row of the data, {self.probs_path} has {found}"
                )

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        remarks: dict[str, str] = {}
        if self.probs_path is None:
            rows, targets, _ = comparable(signals)
            probabilities, remarks = self.distribution(rows, targets)
        else:
            assert context.raw_rows is not None
            probabilities = np.asarray(read_array("probs_path", self.probs_path, dimensions=1), dtype=np.float64)
            probabilities = probabilities[context.raw_rows]
        reached = int(np.count_nonzero(probabilities))
        if not reached or (reached < context.budget and not self.replacement):
            raise DataflexError(
                f"select: tsds was asked for {context.budget} different rows, but only {reached} of {context.rows} have a"
                " probability above 0; set replacement, a larger max_K, a smaller alpha or a larger C"
            )
        chosen = draw(probabilities, context.budget, context.rng, replacement=self.replacement)
        return Selection(chosen, probabilities, remarks), state

    def distribution(self, rows: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        """Probability of each row, float64 [N], and remarks. rows, targets: float32 [N, d] and [M, d] of length one."""
        from dataflex.components.selectors.tsds.density import Density

        limit = max(len(rows) // 10, min(len(rows), 2))
        cosine, places = nearest(targets, rows, min(self.max_K, limit))
        distances = np.sqrt(np.maximum(2 - 2 * cosine.astype(np.float64), 0))
        found = np.unique(places)  # the density is that of the candidates that are near some target
        candidates = np.ascontiguousarray(rows[found])
        remarks, sigma, C = {}, self.sigma, self.C
        if sigma is None or C is None:
            spacing, reach = scale(candidates, distances)
            sigma, C = spacing if sigma is None else sigma, reach if C is None else C
            remarks["scale"] = f"sigma {sigma:.3g} and C {C:.3g}, where not given from the distances in the data"
        around = Density(candidates, sigma, min(self.kde_K, limit), exact=self.exact) if sigma else None

        def density(at: np.ndarray) -> np.ndarray:
            return np.ones(len(at)) if around is None else around(np.searchsorted(found, at))

        result = transport(distances, places, len(rows), density, alpha=self.alpha, C=C)
        if not result.stopped and self.alpha > 0:
            remarks["transport"] = (
                f"the transport did not stop, so alpha and C had no say: every target row fills all its {places.shape[1]}"
                f" candidates, and {result.at_the_end:.1%} of the mass is left for the farthest; raise alpha, lower C or"
                " sigma, or raise max_K (which is cut to a tenth of the rows)"
            )
        return result.probabilities, remarks


def scale(candidates: np.ndarray, distances: np.ndarray) -> tuple[float, float]:
    """sigma and C for this data: the median distance of a candidate to its nearest other one, copies aside, so that rows count
    as near-duplicates where they are nearer than is usual; and the median distance of a target row to its candidates, so that
    alpha weighs distance against evenness whatever the distances are.

    candidates: float32 [R, d] of length one. distances: float [M, K], of the target rows to theirs."""
    some = candidates[np.unique(np.linspace(0, len(candidates) - 1, min(len(candidates), _SAMPLE)).astype(np.int64))]
    cosine, _ = nearest(some, candidates, min(len(candidates), _COPIES))
    apart = np.sqrt(np.maximum(2 - 2 * cosine.astype(np.float64), 0))
    own = np.where(apart > _SAME, apart, np.inf).min(axis=1)  # where all of them are copies, it is unknown
    own = own[np.isfinite(own)]
    reach = float(np.median(distances))
    return float(np.median(own)) if len(own) else 0.0, reach if reach > 0 else 1.0
