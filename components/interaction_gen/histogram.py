"""Where to cut a log in time, from counts of events per bucket of time.

Buckets start at one millisecond and grow to a second, a minute, an hour, a day as soon as there are
too many: a log of an afternoon is cut to the second, one of years to the hour or day, and memory is
bounded. The result does not depend on the order in which parts are merged: the final bucket is the
smallest one that gives the whole log at most MAX_BUCKETS of them, and no part of the log can need
larger ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import apache_beam as beam
import numpy as np
import numpy.typing as npt

BUCKET_MS = (1, 1_000, 60_000, 3_600_000, 86_400_000)
MAX_BUCKETS = 10_000


@dataclass
class Histogram:
    """Counts of events per bucket of time."""

    step: int = 0  # index into BUCKET_MS
    counts: dict[int, int] = field(default_factory=dict)  # start of the bucket (ms) -> events
    first_ms: int | None = None
    last_ms: int | None = None

    def add(self, timestamps_ms: npt.NDArray[np.int64]) -> None:
        """Counts events at moments, in any order."""
        if not len(timestamps_ms):
            return
        # From wide to narrow buckets: where there are too many of one width, there are too many of
        # the narrower ones, which would take memory and time to count.
        step = len(BUCKET_MS) - 1
        buckets, counts = _bucket_counts(timestamps_ms, BUCKET_MS[step])
        while step > self.step:
            narrower, narrower_counts = _bucket_counts(timestamps_ms, BUCKET_MS[step - 1])
            if len(narrower) > MAX_BUCKETS:
                break
            step, buckets, counts = step - 1, narrower, narrower_counts
        self.merge(
            Histogram(
                step,
                dict(zip(buckets.tolist(), counts.tolist(), strict=True)),
                int(timestamps_ms.min()),
                int(timestamps_ms.max()),
            )
        )

    def merge(self, other: Histogram) -> None:
        """Adds the counts of another histogram."""
        self._widen(max(self.step, other.step))
        width = BUCKET_MS[self.step]
        for bucket, count in other.counts.items():
            bucket -= bucket % width
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        firsts = [moment for moment in (self.first_ms, other.first_ms) if moment is not None]
        lasts = [moment for moment in (self.last_ms, other.last_ms) if moment is not None]
        self.first_ms = min(firsts, default=None)
        self.last_ms = max(lasts, default=None)
        self._widen(self.step)

    def _widen(self, step: int) -> None:
        last = len(BUCKET_MS) - 1
        while True:
            step = min(step, last)
            if step > self.step:
                width = BUCKET_MS[step]
                wider: dict[int, int] = {}
                for bucket, count in self.counts.items():
                    start = bucket - bucket % width
                    wider[start] = wider.get(start, 0) + count
                self.counts, self.step = wider, step
            if len(self.counts) <= MAX_BUCKETS or self.step == last:
                return
            step = self.step + 1


def _bucket_counts(
    timestamps_ms: npt.NDArray[np.int64], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Starts of the buckets that hold something, and how many moments each holds."""
    numbers = timestamps_ms // width
    first = int(numbers.min())
    if int(numbers.max()) - first > 1_000_000 + 4 * len(numbers):
        found, counts = np.unique(numbers, return_counts=True)
        return found * width, counts
    counts = np.bincount(numbers - first)
    found = np.flatnonzero(counts)
    return (found + first) * width, counts[found]


def choose_cut(histogram: Histogram, eval_share: float) -> int | None:
    """Returns the start of a bucket such that the share of events at or after it is nearest.

    The first bucket is not a choice, so that something is left for training. Of two equally near
    cuts the later one wins.

    Returns:
      Milliseconds since the epoch, or None where all events fall into one bucket.
    """
    total = sum(histogram.counts.values())
    best: tuple[float, int] | None = None
    after = 0
    for bucket in sorted(histogram.counts, reverse=True)[:-1]:
        after += histogram.counts[bucket]
        distance = abs(after - eval_share * total)
        if best is None or distance < best[0]:
            best = (distance, bucket)
    return None if best is None else best[1]


class MergeHistograms(beam.CombineFn):
    """Histograms of parts -> the histogram of the log."""

    def create_accumulator(self) -> Histogram:
        """An empty histogram."""
        return Histogram()

    def add_input(self, accumulator: Histogram, element: Histogram) -> Histogram:
        """Adds one part."""
        accumulator.merge(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Histogram]) -> Histogram:
        """Adds parts up."""
        merged = Histogram()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: Histogram) -> Histogram:
        """The histogram itself."""
        return accumulator
