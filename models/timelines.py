"""User timelines in memory.

Each event is stored once, in flat arrays with offsets (CSR): 20 bytes an event. What training and
validation read (`models.batches`, `models.held_out`) are windows into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

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

    def pairs(self) -> npt.NDArray[np.int64]:
        """[E] a number that events of the same timeline and item share, and no others do.

        They ascend by timeline and then by item.
        """
        return self.timeline_of.astype(np.int64) * (int(self.items.max(initial=0)) + 2) + self.items

    def best_levels(self) -> Ints:
        """[E] highest level that the event's user reaches on the event's item in this timeline.

        A target counts, too: it may know of an event in a later chunk of the user.
        """
        return highest(self.pairs(), np.maximum(self.levels, self.targets))

    def positives(self, level: int) -> npt.NDArray[np.int64]:
        """Event indices of the targets that reach `level` and whose item is in the vocabulary."""
        return np.flatnonzero((self.targets >= level) & (self.items >= 0))


def ranges(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All indices of the ranges [begin, end), one after the other: (number of its range, index)."""
    sizes = end - begin
    row = np.repeat(np.arange(len(sizes)), sizes)
    return row, np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes) + begin[row]


def highest(keys: npt.NDArray[np.int64], levels: Ints) -> Ints:
    """[E] highest level among the entries with the same key."""
    _, inverse = np.unique(keys, return_inverse=True)
    best = np.full(inverse.max(initial=-1) + 1, -1, np.int32)
    np.maximum.at(best, inverse, levels)
    return best[inverse]


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


def padded(lists: Sequence[npt.NDArray[np.integer]]) -> Ints:
    """[n, F] the lists side by side, padded with -1 to the longest, at least one column."""
    width = max([1, *(len(values) for values in lists)])
    table = np.full((len(lists), width), -1, np.int32)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table
