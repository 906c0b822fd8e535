"""Held-out moments in vocabulary ids: what validation and the benchmarks rank and measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.timelines import Ints, Timelines, highest, padded, ranges
from models.towers import UserInputs

Vectors = npt.NDArray[np.float32]
_BATCH = 512


@dataclass(frozen=True)
class HeldOut:
    """Q queries. Each is a moment of a user: the events before it, the new items of that moment."""

    timelines: Timelines
    owner: Ints  # [Q] timeline of each query
    history_end: npt.NDArray[np.int64]  # [Q] index of the first event that is not history
    targets: Ints  # [Q, W] items met for the first time at the moment, -1 is padding
    target_levels: Ints  # [Q, W]

    @classmethod
    def of(cls, timelines: Timelines, max_queries: int, seed: int) -> HeldOut:
        """All moments with a target in the vocabulary, or a seeded sample of `max_queries`."""
        is_target = np.flatnonzero((timelines.targets >= 0) & (timelines.items >= 0))
        ends = timelines.history_ends()[is_target]
        moments = np.unique(ends)
        if len(moments) > max_queries:
            chosen = np.random.default_rng(seed).choice(len(moments), max_queries, replace=False)
            chosen.sort()
            moments = moments[chosen]
        first = np.searchsorted(ends, moments, side="left")
        last = np.searchsorted(ends, moments, side="right")
        groups = [is_target[a:b] for a, b in zip(first, last, strict=True)]
        return cls(
            timelines=timelines,
            owner=timelines.timeline_of[is_target[first]],
            history_end=moments,
            targets=padded([timelines.items[group] for group in groups]),
            target_levels=padded([timelines.targets[group] for group in groups]),
        )

    def __len__(self) -> int:
        return len(self.owner)

    def only(self, queries: npt.NDArray[np.int64]) -> HeldOut:
        """The queries at these places."""
        return dataclasses.replace(
            self,
            owner=self.owner[queries],
            history_end=self.history_end[queries],
            targets=self.targets[queries],
            target_levels=self.target_levels[queries],
        )

    def reaching(self, level: int) -> npt.NDArray[np.int64]:
        """Places of the queries with a target that reaches the level."""
        return np.flatnonzero((self.target_levels >= level).any(axis=1))

    def user_inputs(self, history_length: int, n_users: int) -> Iterator[UserInputs]:
        """What the user tower reads, batch by batch, in the order of the queries."""
        timelines = self.timelines
        for start in range(0, len(self), _BATCH):
            owner = self.owner[start : start + _BATCH]
            begin, end = timelines.offsets[owner], self.history_end[start : start + _BATCH]
            width = max(1, min(history_length, int((end - begin).max())))
            ranks = np.arange(width, dtype=np.int32)[None, :]
            events = end[:, None] - 1 - ranks
            inside = events >= begin[:, None]
            events = np.maximum(events, 0)
            yield UserInputs(
                history_items=tf.constant(np.where(inside, timelines.items[events], -1)),
                history_levels=tf.constant(timelines.levels[events]),
                history_ranks=tf.constant(np.broadcast_to(ranks, events.shape)),
                user_ids=tf.constant(timelines.user_ids[owner]),
                features={n: tf.constant(ids[owner]) for n, ids in timelines.features.items()},
            )

    def top(self, users: Vectors, items: Vectors, k: int) -> Ints:
        """[Q, k] the items of the largest inner products that the user has not met before.

        Args:
          users: [Q, D] query vectors.
          items: [N, D] item vectors, N >= k.
          k: length of the lists. A list is padded with -1 where fewer items remain.
        """
        parts = [self.top_of(scores, start, k) for start, scores in self.scores(users, items)]
        return np.concatenate(parts) if parts else np.zeros((0, k), np.int32)

    def scores(self, users: Vectors, items: Vectors) -> Iterator[tuple[int, Vectors]]:
        """(first query, inner products [B, N]) batch by batch; see `top`."""
        for start in range(0, len(self), _BATCH):
            scores = tf.matmul(users[start : start + _BATCH], items, transpose_b=True)
            yield start, scores.numpy()

    def top_of(self, scores: Vectors, start: int, k: int) -> Ints:
        """[B, k] the best new items of the queries from `start` on, by their scores [B, N]."""
        self.exclude_seen(scores, start)
        values, top = tf.math.top_k(scores, k)
        return np.where(np.isfinite(values), top, -1)

    def exclude_seen(self, scores: Vectors, start: int) -> None:
        """Sets scores [B, N] of the queries from `start` on to -inf where the item is not new."""
        rows, items = self.seen(start, start + len(scores))
        scores[rows, items] = -np.inf

    def recall_of(
        self, users: Vectors, items: Vectors, level: int, k: int
    ) -> npt.NDArray[np.float64]:
        """[Q] `recall` of the lists that `top` gives, without making them."""
        parts = [np.zeros(0)]
        for start, scores in self.scores(users, items):
            self.exclude_seen(scores, start)
            parts.append(self.recall_by(scores, start, level, k))
        return np.concatenate(parts)

    def recall_by(self, scores: Vectors, start: int, level: int, k: int) -> npt.NDArray[np.float64]:
        """[B] `recall` of the best k items of the queries from `start` on.

        An item's place is the number of those that score more, or as much and come before it.
        To count them for the few targets takes a fraction of the time that sorting takes.

        Args:
          scores: [B, N] -inf where an item is not to be found.
          start: see `top_of`.
          level: see `recall`.
          k: see `recall`.
        """
        targets = self._targets_at(level, start, len(scores))
        hits = np.zeros(len(scores))
        # One by one: NumPy counts along a contiguous row ten times as fast as along an axis.
        for row, column in np.argwhere(targets >= 0):
            item, of_row = targets[row, column], scores[row]
            place = np.count_nonzero(of_row > of_row[item])
            if place < k:
                place += np.count_nonzero(of_row[:item] == of_row[item])
            hits[row] += place < k and np.isfinite(of_row[item])
        wanted = (targets >= 0).sum(axis=1)
        return hits / np.where(wanted > 0, np.minimum(wanted, k), np.nan)

    def nearness_by(
        self, scores: Vectors, start: int, level: int, k: int
    ) -> npt.NDArray[np.float64]:
        """[B] how near the targets of the queries from `start` on are to the top: mean of
        k / (k + place), the first place being 0; NaN where no target reaches the level.

        Unlike `recall_by` it also tells places within the best k, and those beyond, from each
        other. An item comes after those that score as much.

        Args:
          scores: [B, N] -inf where an item is not to be found.
          start: see `top_of`.
          level: see `recall`.
          k: place that counts half as much as the first.
        """
        targets = self._targets_at(level, start, len(scores))
        total = np.zeros(len(scores))
        for row, column in np.argwhere(targets >= 0):
            of_target, of_row = scores[row, targets[row, column]], scores[row]
            if np.isfinite(of_target):
                total[row] += k / (k - 1 + np.count_nonzero(of_row >= of_target))
        wanted = (targets >= 0).sum(axis=1)
        return total / np.where(wanted > 0, wanted, np.nan)

    def _targets_at(self, level: int, start: int, count: int) -> Ints:
        """[count, T] targets that reach the level, of the queries from `start` on; else -1."""
        batch = slice(start, start + count)
        return np.where(self.target_levels[batch] >= level, self.targets[batch], -1)

    def seen(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], Ints]:
        """(row, item) of everything in the histories of the queries [start, stop)."""
        begin = self.timelines.offsets[self.owner[start:stop]]
        row, events = ranges(begin, self.history_end[start:stop])
        items = self.timelines.items[events]
        return row[items >= 0], items[items >= 0]

    def recall(self, top: Ints, level: int, k: int) -> npt.NDArray[np.float64]:
        """[Q] `metrics.recall_at` of each query; NaN where no target reaches the level."""
        hits, wanted = self._hits(top[:, :k], level)
        return hits.sum(axis=1) / np.where(wanted > 0, np.minimum(wanted, k), np.nan)

    def ndcg(self, top: Ints, level: int, k: int) -> npt.NDArray[np.float64]:
        """[Q] `metrics.ndcg_at` of each query; NaN where no target reaches the level."""
        hits, wanted = self._hits(top[:, :k], level)
        discounts = 1.0 / np.log2(np.arange(hits.shape[1]) + 2)
        ideal = np.append(0.0, np.cumsum(1.0 / np.log2(np.arange(k) + 2)))[np.minimum(wanted, k)]
        return (hits * discounts).sum(axis=1) / np.where(wanted > 0, ideal, np.nan)

    def _hits(self, top: Ints, level: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """bool [Q, k] whether a list's item is a target; int [Q] how many targets there are."""
        targets = self._targets_at(level, 0, len(self))
        hits = np.zeros(top.shape, bool)
        for column in targets.T:
            hits |= (top == column[:, None]) & (column >= 0)[:, None]
        return hits, (targets >= 0).sum(axis=1)


def cut(
    timelines: Timelines, ordered: bool, share: float, seed: int
) -> tuple[Timelines, Timelines]:
    """Holds out a part of the training events, in the way that the test events were.

    Args:
      timelines: the training timelines.
      ordered: True = the last targets of the log, by time. False = random events of every user.
      share: of the targets to hold out.
      seed: of the random choice.

    Returns:
      (training, validation): training has no trace of the held-out events; validation has the
      held-out events as its only targets, and what lies before them.
    """
    is_target = timelines.targets >= 0
    owner = timelines.timeline_of
    pair = timelines.user_ids[owner].astype(np.int64) * (timelines.items.max(initial=0) + 2)
    pair += timelines.items
    if ordered:
        times = np.sort(timelines.times[is_target])
        border = times[min(int(len(times) * (1 - share)), len(times) - 1)] if len(times) else None
        held = timelines.times >= border if border is not None else is_target
        dropped = held
        order = np.arange(len(held))
        times_after = timelines.times
    else:
        held = is_target & (np.random.default_rng(seed).random(len(is_target)) < share)
        left = np.bincount(owner[~held], minlength=len(timelines))
        held &= left[owner] > 0
        # A later chunk of the same user repeats events as context.
        dropped = np.isin(pair, pair[held])
        order = np.lexsort((held, owner))
        order = order[held[order] | ~dropped[order]]
        times_after = held.astype(np.int64)
    training = _of_events(timelines, np.flatnonzero(~dropped))
    # The level to predict may come from a held-out event on the same item.
    training = dataclasses.replace(
        training, targets=np.minimum(training.targets, highest(pair[~dropped], training.levels))
    )
    validation = _of_events(
        dataclasses.replace(
            timelines,
            times=times_after,
            targets=np.where(held, timelines.targets, -1).astype(np.int32),
        ),
        order,
    )
    return training, validation


def _of_events(timelines: Timelines, events: npt.NDArray[np.int64]) -> Timelines:
    """Only these events, in this order, which must keep those of a timeline together."""
    sizes = np.bincount(timelines.timeline_of[events], minlength=len(timelines))
    return dataclasses.replace(
        timelines,
        offsets=np.append(0, np.cumsum(sizes)),
        items=timelines.items[events],
        levels=timelines.levels[events],
        times=timelines.times[events],
        targets=timelines.targets[events],
    )
