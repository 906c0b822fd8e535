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

    history_items: Ints  # [B, H], column r holds the r-th most recent event
    history_levels: Ints  # [B, H]
    user_ids: Ints  # [B]
    features: dict[str, Ints]  # name -> [B, F]
    candidates: Ints  # [C] items
    positives: Ints  # [B, W] columns of `candidates`
    log_q: npt.NDArray[np.float32]  # [C], see `losses.log_expected_count`; 0 in the exact softmax
    # Added to negatives, see `losses.negative_offsets`: by candidate (repeated; margins by depth),
    # and beside it at the few places, each named once, where a row differs (removed: known to the
    # user, or liked at this level at any time; hard).
    offsets: npt.NDArray[np.float32]  # [C]
    offset_places: Ints  # [M] row * C + column
    offsets_there: npt.NDArray[np.float32]  # [M]


@dataclass(frozen=True)
class _Rows:
    """Rows before candidates are chosen."""

    timelines: Ints  # [B]
    history: npt.NDArray[np.int64]  # [B, H] event indices, -1 is padding
    positives: npt.NDArray[np.int64]  # [B, W] event indices, -1 is padding
    seen_until: npt.NDArray[np.int64]  # [B] index of the first event that the history cannot see


class _Met:
    """The items that each timeline meets, once each, timeline after timeline, in their order."""

    def __init__(self, timelines: Timelines):
        owner = timelines.timeline_of
        known = np.flatnonzero(timelines.items >= 0)
        pairs = timelines.pairs()[known]
        _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        order = np.argsort(first)
        first_events = known[first[order]]  # [P] ascending
        self.items = timelines.items[first_events]  # [P]
        self.best_levels = timelines.best_levels()[first_events]  # [P]
        self.offsets = np.searchsorted(owner[first_events], np.arange(len(timelines) + 1))
        # [E + 1] how many were met before each event
        self.before = np.searchsorted(first_events, np.arange(len(owner) + 1))
        self.of_event = np.full(len(owner), -1, np.int64)  # [E] where an event's item is, or -1
        self.of_event[known] = np.argsort(order)[inverse]


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
        self._items = np.append(timelines.items, np.int32(-1))  # the item of event -1 is -1
        self._met = _Met(timelines)
        self._column_of = np.zeros(0, np.int32)  # [n_items] of one reader, see `batches`
        self._exact = negatives.exact(n_items)
        self._n_random = negatives.random
        self._margin, apart = self._offsets_by_level(self._met.best_levels)
        # Side by side, as one look-up takes half as long as two.
        self._items_apart = np.zeros(len(apart), [("item", np.int32), ("apart", np.float32)])  # [P]
        self._items_apart["item"], self._items_apart["apart"] = self._met.items, apart
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
        maker._column_of = np.arange(self._n_items, dtype=np.int32)
        if not self._exact:
            maker._column_of[:] = -1
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
        users = np.flatnonzero(np.bincount(self._owner[self.positives]))
        for chosen in self._shuffled(len(users)):
            rows = users[chosen]
            row, events = ranges(offsets[rows], offsets[rows + 1])
            column = events - offsets[rows][row]
            shape = len(rows), int(column.max()) + 1
            kept = self._kept(shape)[row, column]
            yield _Rows(
                timelines=rows,
                history=self._some(shape, row, column, events, kept),
                positives=self._some(shape, row, column, events, ~kept & is_positive[events]),
                seen_until=offsets[rows],
            )

    def _some(
        self,
        shape: tuple[int, int],
        row: npt.NDArray[np.int64],
        column: npt.NDArray[np.int64],
        events: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int64]:
        """[B, <= history_length] a random choice of each row's wanted events, -1 is padding.

        Args:
          shape: (B, columns) of the matrix in which the events lie.
          row: [E] of each event, ascending.
          column: [E] of each event.
          events: [E].
          wanted: [E].
        """
        # Drawn for the whole matrix, but sorted only where there is something: most is padding.
        rank = self._rng.random(shape)[row[wanted], column[wanted]]
        row, events = row[wanted], events[wanted]
        order = np.lexsort((rank, row))
        sizes = np.bincount(row, minlength=shape[0])
        place = np.arange(len(row)) - (np.cumsum(sizes) - sizes)[row]
        chosen = np.full((shape[0], max(1, min(self._length, int(sizes.max(initial=0))))), -1)
        fits = place < chosen.shape[1]
        chosen[row[fits], place[fits]] = events[order][fits]
        return chosen

    def _shuffled(self, n: int) -> Iterator[npt.NDArray[np.int64]]:
        order = self._rng.permutation(n)
        for start in range(0, n, self._stage.batch_size):
            yield order[start : start + self._stage.batch_size]

    def _kept(self, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        return self._rng.random(shape, np.float32) >= self._stage.history_dropout

    # --- candidates -------------------------------------------------------------------------

    def _batch(self, rows: _Rows) -> Batch:
        timelines = self._timelines
        items = self._items[rows.positives]
        in_batch = items[items >= 0]
        column_of = self._column_of
        if self._exact:
            candidates = column_of
            counts = np.ones(self._n_items, np.int64)
            log_q = np.zeros(self._n_items)
        else:
            random = self._rng.integers(0, self._n_items, self._n_random)
            candidates, counts = np.unique(np.append(in_batch, random), return_counts=True)
            log_q = log_expected_count(
                self._probability[candidates], len(in_batch), self._n_random, self._n_items
            )
            column_of[candidates] = np.arange(len(candidates))
        positives = np.where(items >= 0, column_of[items], -1).astype(np.int32)
        offsets, offset_places, offsets_there = self._offsets(rows, np.log(counts))
        if not self._exact:  # a batch touches a few items of many
            column_of[candidates] = -1
        anonymous = self._rng.random(len(rows.timelines)) < self._stage.user_id_dropout
        history = rows.history
        return Batch(
            history_items=self._items[history],
            history_levels=timelines.levels[history],
            user_ids=np.where(anonymous, self._n_users, timelines.user_ids[rows.timelines]).astype(
                np.int32
            ),
            features={name: ids[rows.timelines] for name, ids in timelines.features.items()},
            candidates=candidates.astype(np.int32),
            positives=positives,
            log_q=log_q.astype(np.float32),
            offsets=offsets,
            offset_places=offset_places,
            offsets_there=offsets_there,
        )

    def _offsets(
        self, rows: _Rows, log_counts: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float32], Ints, npt.NDArray[np.float32]]:
        """`Batch.offsets`, `.offset_places` and `.offsets_there`."""
        met = self._met
        starts = met.offsets[rows.timelines]
        sizes = met.offsets[rows.timelines + 1] - starts
        before = np.cumsum(sizes) - sizes
        pairs = np.arange(sizes.sum()) + np.repeat(starts - before, sizes)
        looked_up = self._items_apart[pairs]
        column, there = looked_up["item"], looked_up["apart"].copy()
        if not self._ordered:
            row = np.nonzero(rows.history >= 0)[0]
            known = met.of_event[rows.history[rows.history >= 0]]
            there[((before - starts)[row] + known)[known >= 0]] = _REMOVED
        elif self._level:  # the history is a part of what was seen; at level 0 all met is removed
            np.putmask(there, pairs < np.repeat(met.before[rows.seen_until], sizes), _REMOVED)
        first_cells = np.arange(len(sizes), dtype=np.int32) * np.int32(len(log_counts))
        if not self._exact:
            column = self._column_of[column]
        places = np.repeat(first_cells, sizes) + column
        if not self._exact:
            places, there = places[column >= 0], there[column >= 0]
        return log_counts.astype(np.float32) + self._margin, places, there

    def _offsets_by_level(self, best: Ints) -> tuple[np.float32, npt.NDArray[np.float32]]:
        """(offset of an item never met, [P] what is added to it for items met).

        Removed: liked at this level at any time. Hard: one level below. Between an item never
        exposed and a hard one, which has none, lie the margins by depth, if they are wanted.

        Args:
          best: [P] highest level that a user reaches on an item.
        """
        hardness = np.float32(np.log(self._stage.hard_negative_weight))
        margin, below = np.float32(0), np.zeros(len(best), np.float32)
        if self._stage.margin == "depth" and self._level > 0:
            depths = np.minimum(np.append(best, -1) + 1, self._level)
            margins = depth_margins(depths, self._level, self._stage.gamma)
            margin, below = margins[-1] / self._stage.temperature, margins[:-1] - margins[-1]
            below /= self._stage.temperature
        apart = np.where(best == self._level - 1, hardness - margin, below)
        return margin, np.where(best >= self._level, _REMOVED, apart)
