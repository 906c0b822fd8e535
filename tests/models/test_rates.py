"""Rates of items: counts by hand, the prior against data of a known one, the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom

from models.rates import counted, log_rates
from models.timelines import Timelines
from schemas.names import CONTEXT


def _timelines(*rows: list[tuple[int, int, int]]) -> Timelines:
    """Each row a timeline of (item, level, target)."""
    events = np.array([event for row in rows for event in row], np.int32)
    sizes = [len(row) for row in rows]
    return Timelines(
        user_ids=np.arange(len(rows), dtype=np.int32),
        offsets=np.append(0, np.cumsum(sizes)).astype(np.int64),
        items=events[:, 0],
        levels=events[:, 1],
        times=np.arange(len(events), dtype=np.int64),
        targets=events[:, 2],
        features={},
    )


def test_an_item_counts_once_for_every_timeline_that_meets_it() -> None:
    timelines = _timelines(
        [(0, 0, 0), (1, 1, 1), (0, 2, 2)],  # item 0 twice, the second time to the end
        [(0, 0, 0), (2, 2, CONTEXT), (-1, 2, 2)],  # context, and an item outside the vocabulary
        [(0, 0, 1)],  # a later chunk knows that it is taken to level 1
    )
    met = [3, 1, 0, 0]
    for level, tried, reached in (
        (0, [3, 3, 3, 3], met),
        (1, met, [2, 1, 0, 0]),
        (2, met, [1, 0, 0, 0]),
    ):
        found = counted(timelines, level, 4)
        assert [counts.tolist() for counts in found] == [tried, reached]


def test_timelines_without_a_target_meet_nothing() -> None:
    timelines = _timelines([(0, 0, 0)], [(1, 1, CONTEXT)])
    assert [counts.tolist() for counts in counted(timelines, 0, 2)] == [[1, 1], [1, 0]]


def test_the_prior_is_the_one_the_counts_were_drawn_from() -> None:
    rng = np.random.default_rng(3)
    a, b = 2.0, 18.0
    met = rng.integers(0, 60, 20_000)
    reached = rng.binomial(met, rng.beta(a, b, len(met)))
    expected = np.log((a + reached) / (a + b + met)) - np.log(a / (a + b))
    np.testing.assert_allclose(log_rates(met, reached), expected, atol=0.08)


def test_no_other_prior_makes_the_counts_as_likely() -> None:
    """Against scipy's own distribution: the rates of two items give the prior away."""
    rng = np.random.default_rng(5)
    met = rng.integers(1, 40, 500)
    reached = rng.binomial(met, rng.beta(3.0, 5.0, len(met)))
    # An item nobody met has rate a / (a + b); one met n times and never taken on has
    # a / (a + b + n), so the ratio tells a + b.
    rates = log_rates(np.append(met, [0, 7]), np.append(reached, [0, 0]))
    assert rates[-2] == 0
    strength = 7 / np.expm1(-float(rates[-1]))
    means = np.linspace(0.3, 0.45, 31)
    likely = [betabinom.logpmf(reached, met, strength * m, strength * (1 - m)).sum() for m in means]
    best = means[int(np.argmax(likely))]
    top = max(likely)
    for other in (0.8 * strength, 1.25 * strength):
        assert betabinom.logpmf(reached, met, other * best, other * (1 - best)).sum() < top


def test_items_that_all_behave_alike_have_no_rates_to_tell() -> None:
    rng = np.random.default_rng(7)
    met = np.full(5_000, 50)
    reached = rng.binomial(met, 0.2)
    assert np.abs(log_rates(met, reached)).max() < 0.15


@pytest.mark.parametrize("reached", [[0, 0, 0], [4, 9, 0]])
def test_nothing_is_told_where_none_or_all_are_taken_on(reached: list[int]) -> None:
    assert log_rates(np.array([4, 9, 0]), np.array(reached)).tolist() == [0, 0, 0]


@given(
    st.lists(
        st.integers(0, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=2
    )
)
def test_rates_are_finite_and_rise_with_what_is_taken_on(counts: list[tuple[int, int]]) -> None:
    met, reached = (np.array(column) for column in zip(*counts, strict=True))
    rates = log_rates(met, reached)
    assert np.isfinite(rates).all()
    for n in set(met.tolist()):
        of_n = np.flatnonzero(met == n)
        order = of_n[np.argsort(reached[of_n], kind="stable")]
        assert np.all(np.diff(rates[order]) >= 0)
