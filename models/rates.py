"""How often those who meet an item take it on to an objective: what is known of it beforehand.

Where an objective has few positives, its block learns little that holds. How often an item is
taken on is known all the same, item by item, and is most of what tells a click from an exposure
there. So every later block has a coordinate that holds the logarithm of that rate, counted and
smoothed, not trained (ours; METHOD 1.7 asks what a scarce objective can add).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import betaln

from models.timelines import Timelines

Counts = npt.NDArray[np.int64]

_LOG_BOUNDS = (-7.0, 12.0)  # of both parameters of the prior


def counted(timelines: Timelines, level: int, n_items: int) -> tuple[Counts, Counts]:
    """([N] how many timelines meet each item as a target, [N] in how many it reaches `level`)."""
    is_target = np.flatnonzero((timelines.targets >= 0) & (timelines.items >= 0))
    _, first = np.unique(timelines.pairs()[is_target], return_index=True)
    items = timelines.items[is_target[first]]
    reached = items[timelines.best_levels()[is_target[first]] >= level]
    return np.bincount(items, minlength=n_items), np.bincount(reached, minlength=n_items)


def log_rates(met: Counts, reached: Counts) -> npt.NDArray[np.float32]:
    """[N] log of each item's expected rate over that of an item nobody has met, which is 0.

    The rate of item i has the posterior Beta(a + reached_i, b + met_i - reached_i). The prior is
    the one under which all counts are most likely (empirical Bayes), so items with few exposures
    stay near the others' mean as far as the data say that items differ.

    Args:
      met: [N] of `counted`.
      reached: [N] of `counted`, at most `met`.
    """
    if not 0 < reached.sum() < met.sum():
        return np.zeros(len(met), np.float32)
    a, b = _prior(met, reached)
    rates = np.log((a + reached) / (a + b + met)) - np.log(a / (a + b))
    return rates.astype(np.float32)


def _prior(met: Counts, reached: Counts) -> tuple[float, float]:
    """Parameters of the Beta distribution that makes beta-binomial counts most likely."""
    pairs, times = np.unique(np.stack([met, reached])[:, met > 0], axis=1, return_counts=True)
    n, k = pairs

    def surprise(logs: npt.NDArray[np.float64]) -> float:
        a, b = np.exp(logs)
        return -float(np.sum(times * (betaln(a + k, b + n - k) - betaln(a, b))))

    mean = reached.sum() / met.sum()
    start = np.log([10 * mean, 10 * (1 - mean)])
    # Without derivatives: two parameters, and a few hundred different pairs of counts.
    found = minimize(surprise, start, method="Nelder-Mead", bounds=[_LOG_BOUNDS] * 2)
    a, b = np.exp(found.x)
    return float(a), float(b)
