"""User timelines in memory, and the (history so far -> next item) pairs they hold.

Each event is stored once, in flat arrays with offsets (CSR); pairs are windows into them, cut in
the graph, batch by batch. That is 21 bytes an event: 100 million events take 2 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.towers import UserInputs
from schemas import names

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Timelines:
    """Events of all timelines, one timeline after the other, each chronological.

    Items are vocabulary ids, -1 = not in the vocabulary. See `schemas.names` for the columns.
    """

    user_ids: Ints  # [n]
    offsets: npt.NDArray[np.int64]  # [n + 1]
    items: Ints  # [E]
    levels: Ints  # [E]
    times: npt.NDArray[np.int64]  # [E]
    targets: Ints  # [E], names.CONTEXT where the event is history only
    features: dict[str, Ints]  # name -> [n, F], -1 is padding

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def timeline_of(self) -> Ints:
        """[E] index of the timeline that each event belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def history_ends(self) -> npt.NDArray[np.int64]:
        """[E] index of the first event with the same timeline and time: history ends before it."""
        new_group = np.ones(len(self.items), dtype=bool)
        new_group[1:] = np.diff(self.times) != 0
        new_group[self.offsets[:-1][self.offsets[:-1] < len(self.items)]] = True
        starts = np.flatnonzero(new_group)
        return starts[np.cumsum(new_group) - 1]

    def best_levels(self) -> Ints:
        """[E] highest level that the event's user reaches on the event's item in this timeline."""
        key = self.timeline_of.astype(np.int64) * (int(self.items.max(initial=0)) + 2) + self.items
        _, inverse = np.unique(key, return_inverse=True)
        best = np.full(inverse.max(initial=-1) + 1, -1, np.int32)
        np.maximum.at(best, inverse, self.levels)
        return best[inverse]

    def positives(self, level: int) -> npt.NDArray[np.int64]:
        """Event indices of the targets that reach `level` and whose item is in the vocabulary."""
        return np.flatnonzero((self.targets >= level) & (self.items >= 0))


def read_timelines(
    records: Iterable[bytes], n_items: int, n_users: int, user_features: Sequence[str]
) -> Timelines:
    """Reads transformed timeline examples into memory, in an order that the files do not decide.

    Args:
      records: serialised tf.Examples as Transform wrote them (ids are vocabulary indices, the
        out-of-vocabulary bucket comes last).
      n_items: size of the item vocabulary; larger ids become -1.
      n_users: size of the user vocabulary; larger ids become `n_users`, the unknown user.
      user_features: names of the user features.
    """
    keys = [names.user_feature(name) for name in user_features]
    rows = []
    for record in records:
        example = tf.train.Example.FromString(record)
        columns = [
            np.asarray(example.features.feature[key].int64_list.value, np.int64)
            for key in (
                names.USER_ID,
                names.ITEM_IDS,
                names.LEVELS,
                names.TIMESTAMPS,
                names.TARGET_LEVELS,
                *keys,
            )
        ]
        rows.append(columns)
    # Beam promises no order; sort by content so that equal data give equal batches.
    rows.sort(key=lambda row: tuple(column.tobytes() for column in row))
    lengths = [len(row[1]) for row in rows]

    def flat(column: int, dtype: type) -> npt.NDArray:
        parts = [row[column] for row in rows]
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    items = flat(1, np.int32)
    return Timelines(
        user_ids=np.minimum(flat(0, np.int32), n_users),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.where(items < n_items, items, -1).astype(np.int32),
        levels=flat(2, np.int32),
        times=flat(3, np.int64),
        targets=flat(4, np.int32),
        features={
            name: padded([row[5 + i] for row in rows]) for i, name in enumerate(user_features)
        },
    )


def padded(lists: list[npt.NDArray[np.int64]]) -> Ints:
    """[n, F] the lists side by side, padded with -1 to the longest, at least one column."""
    width = max([1, *(len(values) for values in lists)])
    table = np.full((len(lists), width), -1, np.int32)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table


class Histories:
    """Cuts the histories of events out of timelines, inside the TensorFlow graph."""

    def __init__(self, timelines: Timelines, length: int, ordered: bool):
        """Copies the timelines into tensors.

        Args:
          timelines: the events.
          length: H, the most recent events that a history keeps.
          ordered: True = a history holds what lies strictly before the event. False = the log has
            no times: it holds the user's other items, a random stretch of H of them.
        """
        owner = timelines.timeline_of
        self._length = length
        self._ordered = ordered
        self._items = tf.constant(timelines.items)
        self._levels = tf.constant(timelines.levels)
        self._best_levels = tf.constant(timelines.best_levels())
        self._begin = tf.constant(timelines.offsets[:-1][owner], tf.int32)
        self._end = tf.constant(timelines.offsets[1:][owner], tf.int32)
        self._history_end = tf.constant(timelines.history_ends(), tf.int32)
        self._user_ids = tf.constant(timelines.user_ids[owner])
        self._owner = tf.constant(owner)
        self._features = {name: tf.constant(ids) for name, ids in timelines.features.items()}

    def targets(self, events: tf.Tensor) -> tf.Tensor:
        """[B] item ids of the events."""
        return tf.gather(self._items, events)

    def user_inputs(self, events: tf.Tensor, generator: tf.random.Generator) -> UserInputs:
        """What the user tower reads at each of the events [B]; the target is never in it."""
        begin = tf.gather(self._begin, events)[:, None]
        steps = tf.range(self._length)[None, :]
        if self._ordered:
            index = tf.gather(self._history_end, events)[:, None] - 1 - steps
            valid = index >= begin
        else:
            size = tf.gather(self._end, events)[:, None] - begin
            offset = generator.uniform(tf.shape(size), 0, 2**30, tf.int32)
            index = begin + (offset + steps) % size
            valid = steps < size
        index = tf.maximum(index, 0)
        items = tf.gather(self._items, index)
        valid &= items != self.targets(events)[:, None]
        owner = tf.gather(self._owner, events)
        return UserInputs(
            history_items=tf.where(valid, items, -1),
            history_levels=tf.gather(self._levels, index),
            user_ids=tf.gather(self._user_ids, events),
            features={name: tf.gather(ids, owner) for name, ids in self._features.items()},
        )

    def known(self, events: tf.Tensor, level: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Items that are no negatives for the events: seen before, or liked at this level.

        Returns:
          (items, valid): int32 [B, M] and bool [B, M], M = the longest timeline of the batch.
        """
        begin = tf.gather(self._begin, events)[:, None]
        end = tf.gather(self._end, events)[:, None]
        index = begin + tf.range(tf.reduce_max(end - begin))[None, :]
        inside = index < end
        index = tf.minimum(index, tf.size(self._items) - 1)
        items = tf.gather(self._items, index)
        liked = tf.gather(self._best_levels, index) >= level
        if self._ordered:
            liked |= index < tf.gather(self._history_end, events)[:, None]
        else:
            liked = tf.ones_like(liked)  # without times, all of a user's items are "seen"
        return items, inside & liked & (items >= 0)
