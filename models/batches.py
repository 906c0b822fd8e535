"""Training batches, cut out of timelines on the host: what a user had done, and what came next.

A row has one history and several positives, which share its user vector and the sum over its
negatives: the same gradient signal for a fraction of the work of one row per positive.

* Ordered logs: a row is a short run of a timeline; its history is what lies strictly before the
  first positive.
* Logs without times: a row is a user; a random part of the items is the history, the rest are the
  positives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.losses import depth_margins, log_expected_count
from models.settings import NegativeSettings, StageSettings, TowerSettings
from models.timelines import Ints, Timelines, ranges

_REMOVED = np.float32(-1e9)  # finite, as a difference of two infinities would be NaN


@dataclass(frozen=True)
class Batch:
    """One training step's input. Ids are vocabulary indices, -1 is padding."""

    history_items: Ints  # [B, H]
    history_levels: Ints  # [B, H]
    history_ranks: Ints  # [B, H], 0 = most recent
    user_ids: Ints  # [B]
    features: dict[str, Ints]  # name -> [B, F]
    candidates: Ints  # [C] items
    positives: Ints  # [B, W] columns of `candidates`
    log_q: npt.NDArray[np.float32]  # [C], see `losses.log_expected_count`; 0 in the exact softmax
    # [B, C] added to negatives: removed, repeated, or hard; margins by depth, if wanted
    offsets: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Rows:
    """Rows before candidates are chosen."""

    timelines: Ints  # [B]
    history: npt.NDArray[np.int64]  # [B, H] event indices, -1 is padding
    positives: npt.NDArray[np.int64]  # [B, W] event indices, -1 is padding
    seen_until: npt.NDArray[np.int64]  # [B] index of the first event that the history cannot see


class BatchMaker:
    """Draws the batches of one stage."""

    def __init__(
        self,
        timelines: Timelines,
        ordered: bool,
        level: int,
        towers: TowerSettings,
        stage: StageSettings,
        negatives: NegativeSettings,
        n_items: int,
        n_users: int,
        seed: int,
    ):
        """Prepares lookups; nothing is drawn yet.

        Args:
          timelines: the training events.
          ordered: False = the log has no times.
          level: positives are the targets that reach it.
          towers: for the length of histories.
          stage: batch size, targets per row, dropout, hard negatives.
          negatives: the whole catalogue or a sample.
          n_items: size of the catalogue.
          n_users: id of the unknown user.
          seed: of everything that is drawn.

        Raises:
          ValueError: no times and no dropout, so that no item could be a positive.
        """
        if not ordered and stage.history_dropout == 0:
            raise ValueError("history_dropout must be positive where the log has no times")
        self._timelines = timelines
        self._ordered = ordered
        self._level = level
        self._length = towers.history_length
        self._stage = stage
        self._n_items = n_items
        self._n_users = n_users
        self._rng = np.random.default_rng(seed)
        self._owner = timelines.timeline_of
        self._history_ends = timelines.history_ends()
        self._best_levels = timelines.best_levels()
        self._exact = negatives.exact(n_items)
        self._n_random = negatives.random
        self._log_hardness = float(np.log(stage.hard_negative_weight))
        self.features = list(timelines.features)
        self.positives = timelines.positives(level)
        self.share = len(self.positives) / max(1, len(timelines.positives(0)))
        counts = np.bincount(timelines.items[self.positives], minlength=n_items)
        self._probability = counts / max(len(self.positives), 1)

    def subset(self, share: float) -> None:
        """Keeps a random share of the positives, at least one."""
        size = max(1, round(share * len(self.positives)))
        chosen = self._rng.choice(len(self.positives), size, replace=False)
        self.positives = self.positives[np.sort(chosen)]

    def rows(self) -> int:
        """Rows of one epoch; for ordered logs an estimate from above."""
        return len(self.positives if self._ordered else np.unique(self._owner[self.positives]))

    def steps(self) -> int:
        """Batches of one epoch, about."""
        rows = self.rows() / (self._stage.targets_per_row if self._ordered else 1)
        return max(1, round(rows / self._stage.batch_size))

    def batches(self) -> Iterator[Batch]:
        """Epoch after epoch, without end.

        Each call draws from a generator of its own, so that what another call drew ahead, which
        depends on the clock, changes nothing.
        """
        maker = copy.copy(self)
        maker._rng = self._rng.spawn(1)[0]
        while True:
            rows = maker._runs() if maker._ordered else maker._users()
            for batch in rows:
                if np.any(batch.positives >= 0):
                    yield maker._batch(batch)

    # --- rows -------------------------------------------------------------------------------

    def _runs(self) -> Iterator[_Rows]:
        """The positives among `targets_per_row` successive events; the phase is drawn anew."""
        width = self._stage.targets_per_row
        owner = self._owner[self.positives]
        phase = self._rng.integers(0, width, len(self._timelines))[owner]
        run = (self.positives - self._timelines.offsets[owner] + phase) // width
        starts = np.flatnonzero(np.append(True, (np.diff(owner) != 0) | (np.diff(run) != 0)))
        ends = np.append(starts[1:], len(owner))
        for chosen in self._shuffled(len(starts)):
            begin, end = starts[chosen], ends[chosen]
            columns = begin[:, None] + np.arange(width)[None, :]
            events = self.positives[np.minimum(columns, len(owner) - 1)]
            until = self._history_ends[self.positives[begin]]
            past = until[:, None] - 1 - np.arange(self._length)[None, :]
            inside = past >= self._timelines.offsets[owner[begin]][:, None]
            yield _Rows(
                timelines=owner[begin],
                history=np.where(inside & self._kept(past.shape), past, -1),
                positives=np.where(columns < end[:, None], events, -1),
                seen_until=until,
            )

    def _users(self) -> Iterator[_Rows]:
        """Every user once: `history_dropout` of the items are positives, the rest the history."""
        offsets = self._timelines.offsets
        is_positive = np.zeros(len(self._owner), bool)
        is_positive[self.positives] = True
        users = np.unique(self._owner[self.positives])
        for chosen in self._shuffled(len(users)):
            rows = users[chosen]
            sizes = offsets[rows + 1] - offsets[rows]
            columns = np.arange(sizes.max())[None, :]
            inside = columns < sizes[:, None]
            events = np.where(inside, offsets[rows][:, None] + columns, 0)
            kept = self._kept(events.shape)
            yield _Rows(
                timelines=rows,
                history=self._some(events, inside & kept),
                positives=self._some(events, inside & ~kept & is_positive[events]),
                seen_until=offsets[rows],
            )

    def _some(self, events: npt.NDArray[np.int64], wanted: npt.NDArray) -> npt.NDArray[np.int64]:
        """[B, <= history_length] a random choice of each row's wanted events, -1 is padding."""
        rank = np.where(wanted, self._rng.random(events.shape), 2.0)
        width = max(1, min(self._length, int(wanted.sum(axis=1).max(initial=0))))
        order = np.argsort(rank, axis=1)[:, :width]
        return np.where(
            np.take_along_axis(wanted, order, axis=1),
            np.take_along_axis(events, order, axis=1),
            -1,
        )

    def _shuffled(self, n: int) -> Iterator[npt.NDArray[np.int64]]:
        order = self._rng.permutation(n)
        for start in range(0, n, self._stage.batch_size):
            yield order[start : start + self._stage.batch_size]

    def _kept(self, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        return self._rng.random(shape, np.float32) >= self._stage.history_dropout

    # --- candidates -------------------------------------------------------------------------

    def _batch(self, rows: _Rows) -> Batch:
        timelines = self._timelines
        items = np.where(rows.positives >= 0, timelines.items[rows.positives], -1)
        in_batch = items[items >= 0]
        if self._exact:
            candidates = np.arange(self._n_items, dtype=np.int32)
            counts = np.ones(self._n_items, np.int64)
            log_q = np.zeros(self._n_items)
            column_of = candidates
        else:
            random = self._rng.integers(0, self._n_items, self._n_random)
            candidates, counts = np.unique(np.append(in_batch, random), return_counts=True)
            log_q = log_expected_count(
                self._probability[candidates], len(in_batch), self._n_random, self._n_items
            )
            column_of = np.full(self._n_items, -1, np.int32)
            column_of[candidates] = np.arange(len(candidates))
        anonymous = self._rng.random(len(rows.timelines)) < self._stage.user_id_dropout
        history = rows.history
        ranks = np.arange(history.shape[1], dtype=np.int32)
        return Batch(
            history_items=np.where(history >= 0, timelines.items[history], -1).astype(np.int32),
            history_levels=timelines.levels[history],
            history_ranks=np.broadcast_to(ranks, history.shape),
            user_ids=np.where(anonymous, self._n_users, timelines.user_ids[rows.timelines]).astype(
                np.int32
            ),
            features={name: ids[rows.timelines] for name, ids in timelines.features.items()},
            candidates=candidates.astype(np.int32),
            positives=np.where(items >= 0, column_of[items], -1).astype(np.int32),
            log_q=log_q.astype(np.float32),
            offsets=self._offsets(rows, column_of, np.log(counts)),
        )

    def _offsets(
        self, rows: _Rows, column_of: Ints, log_counts: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float32]:
        """Removed: known to the user, or liked at this level at any time. Hard: one level below."""
        timelines = self._timelines
        row, events = ranges(
            timelines.offsets[rows.timelines], timelines.offsets[rows.timelines + 1]
        )
        best = self._best_levels[events]
        liked = (best >= self._level) | (events < rows.seen_until[row])
        history_row, history_column = np.nonzero(rows.history >= 0)
        offsets = np.tile(log_counts.astype(np.float32), (len(rows.timelines), 1))
        if self._stage.margin == "depth" and self._level > 0:
            offsets += self._depth_margins(offsets.shape, row, events, column_of)
        for at_row, event, value in (
            (row, np.where(best == self._level - 1, events, -1), self._log_hardness),
            (row, np.where(liked, events, -1), _REMOVED),
            (history_row, rows.history[history_row, history_column], _REMOVED),
        ):
            item = np.where(event >= 0, timelines.items[event], -1)
            column = np.where(item >= 0, column_of[item], -1)
            at_row, column = at_row[column >= 0], column[column >= 0]
            offsets[at_row, column] = value + log_counts[column]
        return offsets

    def _depth_margins(
        self,
        shape: tuple[int, ...],
        row: npt.NDArray[np.int64],
        events: npt.NDArray[np.int64],
        column_of: Ints,
    ) -> npt.NDArray[np.float32]:
        """[B, C] margins by depth, on the scale of the logits, from all events of the rows."""
        items = self._timelines.items[events]
        column = np.where(items >= 0, column_of[items], -1)
        known = column >= 0
        depths = np.zeros(shape, np.int32)
        reached = np.minimum(self._best_levels[events] + 1, self._level)
        depths[row[known], column[known]] = reached[known]
        return depth_margins(depths, self._level, self._stage.gamma) / self._stage.temperature
