"""How often items are met, and taken on to an objective: what is known of them beforehand.

Where an objective has few positives, its block learns little that holds. How often an item is
taken on is known all the same, item by item, and is most of what tells a click from an exposure
there. And how often it is met tells how far the first block over- or underrates what is popular.
So every block has a coordinate that holds the logarithm of such a rate, counted and smoothed, not
trained (ours; METHOD 1.7 asks what a scarce objective can add). By the chain rule they add up:
log p(met) + log p(taken on | met).
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
    """What `log_rates` reads for the objective of a level.

    Returns:
      ([N] in how many timelines each item could have reached the level, [N] in how many it did).
      It could have in those that meet it as a target; and be met, level 0, in all of them.
    """
    is_target = np.flatnonzero((timelines.targets >= 0) & (timelines.items >= 0))
    _, first = np.unique(timelines.pairs()[is_target], return_index=True)
    items = timelines.items[is_target[first]]
    met = np.bincount(items, minlength=n_items)
    if level == 0:
        return np.full(n_items, len(np.unique(timelines.timeline_of[is_target]))), met
    reached = items[timelines.best_levels()[is_target[first]] >= level]
    return met, np.bincount(reached, minlength=n_items)


def log_rates(tried: Counts, reached: Counts) -> npt.NDArray[np.float32]:
    """[N] log of each item's expected rate over the rate of an item that was never tried.

    The rate of item i has the posterior Beta(a + reached_i, b + tried_i - reached_i). The prior is
    the one under which all counts are most likely (empirical Bayes), so items with few exposures
    stay near the others' mean as far as the data say that items differ.

    Args:
      tried: [N] of `counted`.
      reached: [N] of `counted`, at most `tried`.
    """
    if not 0 < reached.sum() < tried.sum():
        return np.zeros(len(tried), np.float32)
    a, b = _prior(tried, reached)
    rates = np.log((a + reached) / (a + b + tried)) - np.log(a / (a + b))
    return rates.astype(np.float32)


def _prior(tried: Counts, reached: Counts) -> tuple[float, float]:
    """Parameters of the Beta distribution that makes beta-binomial counts most likely."""
    pairs, times = np.unique(np.stack([tried, reached])[:, tried > 0], axis=1, return_counts=True)
    n, k = pairs

    def surprise(logs: npt.NDArray[np.float64]) -> float:
        a, b = np.exp(logs)
        return -float(np.sum(times * (betaln(a + k, b + n - k) - betaln(a, b))))

    mean = reached.sum() / tried.sum()
    start = np.log([10 * mean, 10 * (1 - mean)])
    # Without derivatives: two parameters, and a few hundred different pairs of counts.
    found = minimize(surprise, start, method="Nelder-Mead", bounds=[_LOG_BOUNDS] * 2)
    a, b = np.exp(found.x)
    return float(a), float(b)
