"""sigma and C of TSDS, where they are not given: what counts as near, and as far, in this data.

The paper leaves both to the user, and how far rows are apart depends on what embeds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.tools.embeddings import distance
from dataflex.components.tools.neighbours import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

# Candidates whose spacing is measured, evenly spaced among all: enough for a median.
_SAMPLED_CANDIDATES = 1024
# Neighbours looked at for each, so that up to 30 copies of a row can be passed over.
_NEIGHBOURS = 32
# Rows nearer than this are copies: fp32 products of equal rows differ from one by up to 2e-6.
_COPY_DISTANCE = 2e-3


def scale(
    candidates: Float32[np.ndarray, "candidates dims"], distances: Float[np.ndarray, "targets K"]
) -> tuple[float, float]:
    """sigma and C for this data. distances: of the target rows to their candidates; candidates have length one.

    sigma is the median distance of a candidate to its nearest other one, copies aside. So rows count as near-duplicates
    where they are nearer than is usual. It is 0 where all are copies.

    C is the median distance of a target row to its candidates. So alpha weighs distance against evenness whatever the
    distances are.
    """
    sampled = np.linspace(0, len(candidates) - 1, min(len(candidates), _SAMPLED_CANDIDATES)).astype(np.int64)
    cosine, _ = nearest(candidates[np.unique(sampled)], candidates, min(len(candidates), _NEIGHBOURS))
    apart = distance(cosine)
    spacing = np.where(apart > _COPY_DISTANCE, apart, np.inf).min(axis=1)
    spacing = spacing[np.isfinite(spacing)]
    reach = float(np.median(distances))
    return float(np.median(spacing)) if len(spacing) else 0.0, reach if reach > 0 else 1.0
