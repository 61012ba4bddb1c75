"""TSDS: rows distributed as the target is, near-duplicates counted once (Liu et al., arXiv 2410.11303).

This is the paper's algorithm KNN-KDE. With M target rows (its query examples) and N rows (its candidates):

    1. neighbours   the K nearest candidates of each target row and their distances d     tools/neighbours.py
    2. scale        sigma and C from the data, where they are not given                   scale.py
    3. density      rho of each candidate: how many candidates lie around it              density.py
    4. transport    gamma: the mass that each target row sends to each candidate          transport.py
    5. sampling     rows drawn with probability  p_i = sum over target rows j of gamma_ji  tools/sampling.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.selectors.tsds.scale import scale
from dataflex.components.selectors.tsds.transport import Transported, transport
from dataflex.components.tools.embeddings import EmbeddingSelector, comparable, distance
from dataflex.components.tools.files import ProbabilityFile
from dataflex.components.tools.neighbours import nearest
from dataflex.components.tools.sampling import draw
from dataflex.errors import DataflexError

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int


@dataclass(frozen=True, kw_only=True)
class TsdsSelector(EmbeddingSelector):
    """Rows distributed as the target is, near-duplicates counted once.

    They are drawn from the distribution p that minimises

        alpha/C  x  distance that mass travels from the target rows   +   (1 - alpha) G_KDE .

    G_KDE is small where mass lies evenly, near-duplicates together counting as one row (see `transport.py`). sigma and C are
    distances, and those differ from one kind of embedding to another: None takes them from the data (`scale`). Embeddings
    have length one. Rows are drawn with replacement, as in the paper. The score of a row is its probability. With
    `probs_path` all updates draw from the distribution in that file, and nothing is measured.

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
    """Nearest candidates of a target row that its mass may reach; at most a tenth of all."""
    kde_K: int = 1000
    """Nearest candidates in the sum of rho; at most a tenth of all."""
    sigma: float | None = None
    """Width of the kernel of rho, a distance. 0: every row counts alone; null: from the distances in the data."""
    alpha: float = 0.5
    """What distance counts against evenness; 1: the nearest row gets all; 0: as even as `max_K` allows."""
    C: float | None = None
    """Scale of the distances: the larger, the more even; null: from the distances in the data."""
    replacement: bool = True
    """Draw with replacement, as the paper does; the budget may then exceed the data."""
    exact: bool = False
    """Compare all pairs of candidates for rho, however many there are."""
    probs_path: str | None = None
    """A distribution found before: an .npy file of float[N], one for each row as stored; null: it is worked out."""

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
        self.check_found_before()

    def found_before(self) -> ProbabilityFile | None:
        return None if self.probs_path is None else ProbabilityFile("probs_path", self.probs_path)

    def with_replacement(self) -> bool:
        return self.replacement

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        file = self.found_before()
        if file is None:
            rows, targets, indices = comparable(signals)
            gamma, remarks = self.distribution(rows, targets)
            p, score_from = gamma.probabilities, np.where(gamma.sender < 0, -1, indices[gamma.sender])
        else:
            assert context.raw_rows is not None
            p, remarks = np.asarray(file.probabilities(), dtype=np.float64)[context.raw_rows], {}
            score_from = None
        reached = int(np.count_nonzero(p))
        if not reached or (reached < context.budget and not self.replacement):
            raise DataflexError(
                f"select: tsds was asked for {context.budget} different rows, but only {reached} of {context.rows} have a"
                " probability above 0; set replacement, a larger max_K, a smaller alpha or a larger C"
            )
        chosen = draw(p, context.budget, context.rng, replacement=self.replacement)
        chosen_for = None if score_from is None else score_from[chosen]
        return Selection(chosen, p, remarks, chosen_for=chosen_for, score_from=score_from), state

    def distribution(
        self, rows: Float32[np.ndarray, "rows dims"], targets: Float32[np.ndarray, "targets dims"]
    ) -> tuple[Transported, dict[str, str]]:
        """Steps 1 to 4: the probability of each row, whose mass it is, and remarks. All vectors have length one."""
        from dataflex.components.selectors.tsds.density import Density

        tenth = max(len(rows) // 10, min(len(rows), 2))  # as in the authors' program; mass needs two places to go
        cosine, indices = nearest(targets, rows, min(self.max_K, tenth))
        d = distance(cosine)
        found = np.zeros(len(rows), dtype=bool)
        found[indices] = True
        reachable = np.flatnonzero(found)  # rho counts these alone, as in the authors' program
        candidates = np.ascontiguousarray(rows[reachable])
        sigma, C, remarks = self.scaled(candidates, d)
        kde = Density(candidates, sigma, min(self.kde_K, tenth), exact=self.exact) if sigma else None

        def rho(at: Int[np.ndarray, " some"]) -> Float64[np.ndarray, " some"]:
            return np.ones(len(at)) if kde is None else kde(np.searchsorted(reachable, at))

        gamma = transport(d, indices, len(rows), rho, alpha=self.alpha, C=C)
        return gamma, remarks | self.remarks_on(gamma, indices.shape[1])

    def scaled(
        self, candidates: Float32[np.ndarray, "candidates dims"], d: Float64[np.ndarray, "targets K"]
    ) -> tuple[float, float, dict[str, str]]:
        """sigma and C, given or from the data, and a remark on what they are in the latter case."""
        if self.sigma is not None and self.C is not None:
            return self.sigma, self.C, {}
        sigma, C = scale(candidates, d)
        sigma, C = sigma if self.sigma is None else self.sigma, C if self.C is None else self.C
        return sigma, C, {"scale": f"sigma {sigma:.3g} and C {C:.3g}, where not given from the distances in the data"}

    def remarks_on(self, gamma: Transported, K: int) -> dict[str, str]:
        """That alpha and C had no effect, if they had none and should have had one."""
        if gamma.stopped or self.alpha == 0:
            return {}
        return {
            "transport": f"the transport did not stop, so alpha and C had no say: every target row fills all its {K}"
            f" candidates, and {gamma.at_the_end:.1%} of the mass is left for the farthest; raise alpha, lower C or"
            " sigma, or raise max_K (which is cut to a tenth of the rows)"
        }
