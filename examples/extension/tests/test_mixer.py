"""A component needs no model to be tested: it is a function of its state and of what it is given."""

from __future__ import annotations

import numpy as np
from dataflex_example.mixer import ProgressMixer

from dataflex import DomainInfo, Observations

DOMAINS = DomainInfo(names=("code", "docs"), sizes=np.array([60, 40]), proportions=np.array([0.5, 0.5]))


def interval(update: int, mean_loss: list[float]) -> Observations:
    """Ten rows of each domain with the given mean losses; a NaN stands for a domain without rows."""
    rows = np.where(np.isnan(mean_loss), 0.0, 10.0)
    loss = rows * np.nan_to_num(mean_loss)
    return Observations(
        step=10 * update,
        update=update,
        proportions=np.array([0.5, 0.5]),
        rows=rows,
        loss=loss,
        tokens=20 * rows,
        token_loss=20 * loss,
        signals={},
        rng=np.random.default_rng(0),
    )


def test_the_domain_that_improves_is_drawn_more() -> None:
    mixer = ProgressMixer(temperature=0.1, smoothing=0.0, floor=0.1)
    first, state = mixer.update(mixer.init(DOMAINS), interval(0, [3.0, 3.0]))
    assert first.proportions.tolist() == [0.5, 0.5]  # no progress is known yet
    second, state = mixer.update(state, interval(1, [2.8, 3.0]))
    share = 1 / (1 + np.exp(-2.0))  # progress 0.2 and 0, temperature 0.1
    np.testing.assert_allclose(second.proportions, [0.9 * share + 0.05, 0.9 * (1 - share) + 0.05])
    third, _ = mixer.update(state, interval(2, [float("nan"), 3.0]))
    np.testing.assert_allclose(third.proportions, second.proportions)  # a domain without rows keeps its progress
