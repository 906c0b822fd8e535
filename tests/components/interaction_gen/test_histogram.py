from __future__ import annotations

import random
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.interaction_gen import histogram as module
from components.interaction_gen.histogram import Histogram, MergeHistograms, choose_cut

HOUR = 3_600_000


def filled(moments) -> Histogram:
    result = Histogram()
    result.add(np.array(moments, np.int64))
    return result


@given(st.lists(st.integers(0, 40_000_000), min_size=1, max_size=60), st.integers(1, 5))
def test_the_histogram_has_the_narrowest_buckets_that_are_not_too_many(moments, limit) -> None:
    before, module.MAX_BUCKETS = module.MAX_BUCKETS, limit
    try:
        counted = Histogram()
        for start in range(0, len(moments), 7):
            counted.add(np.array(moments[start : start + 7]))
    finally:
        module.MAX_BUCKETS = before
    by_width = [
        Counter(moment // width * width for moment in moments) for width in module.BUCKET_MS
    ]
    step = next(
        (step for step, counts in enumerate(by_width) if len(counts) <= limit), len(by_width) - 1
    )
    assert counted == Histogram(step, dict(by_width[step]), min(moments), max(moments))


def test_a_short_log_is_cut_to_the_millisecond() -> None:
    assert choose_cut(filled(range(100, 110)), 0.2) == 108
    assert choose_cut(filled(range(100, 110)), 0.25) == 108  # 2 or 3 events: the later cut


def test_the_first_bucket_is_never_the_cut() -> None:
    assert choose_cut(filled([1, 2]), 0.99) == 2
    assert choose_cut(filled([5, 5, 5]), 0.2) is None
    assert choose_cut(Histogram(), 0.2) is None


def test_a_long_log_is_cut_at_the_full_hour() -> None:
    start = 1_000 * HOUR
    moments = [start + i * 60_000 + 17 for i in range(20_000)]  # a fortnight, every minute
    counted = filled(moments)
    assert module.BUCKET_MS[counted.step] == HOUR
    cut = choose_cut(counted, 0.2)
    assert cut is not None
    assert cut % HOUR == 0
    assert abs(sum(moment >= cut for moment in moments) / 20_000 - 0.2) < 0.002
    assert (counted.first_ms, counted.last_ms) == (moments[0], moments[-1])


@given(
    st.lists(st.integers(0, 3_000_000), min_size=1, max_size=200),
    st.integers(0, 1_000_000),
    st.integers(1, 6),
)
def test_merging_in_any_order_gives_the_same_histogram(moments, shuffle, parts) -> None:
    limit, module.MAX_BUCKETS = module.MAX_BUCKETS, 10  # so that small logs widen too
    try:
        whole = filled(moments)
        shuffled = list(moments)
        random.Random(shuffle).shuffle(shuffled)
        pieces = [filled(shuffled[part::parts]) for part in range(parts)]
        combine = MergeHistograms()
        assert combine.merge_accumulators(pieces) == whole
        assert len(whole.counts) <= 10
        assert sum(whole.counts.values()) == len(moments)
    finally:
        module.MAX_BUCKETS = limit
