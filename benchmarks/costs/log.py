"""A synthetic log of users of ten events each, as the trainer and the evaluator find it on disk.

Nothing in it was ever done by anybody; the sizes are those that docs/scaling.md assumes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.timelines import Timelines, read_timelines
from schemas import names

EVENTS = 10  # of a user
HELD_OUT = 2  # of these, in the evaluator's examples
_EVENTS_PER_ITEM = 20
_SPAN_MS = 90 * 86_400_000
_LEVELS = (0.85, 0.105, 0.045)  # shares of the events that reach the three


@dataclass(frozen=True)
class Log:
    """Parameters of a log; the same ones give the same events.

    Attributes:
      users: of `EVENTS` events each.
      seed: of all draws.
      items: None = one for every 20 events.
    """

    users: int
    seed: int
    items: int | None = None

    @property
    def events(self) -> int:
        """Of all users."""
        return self.users * EVENTS

    @property
    def n_items(self) -> int:
        """Size of the item vocabulary."""
        return self.items or max(1, self.events // _EVENTS_PER_ITEM)

    def transformed(self) -> list[bytes]:
        """Timelines as Transform writes them: ids are places in vocabularies."""
        items, levels, times = self._columns()
        return [
            _example(
                {
                    names.USER_ID: [user],
                    names.ITEM_IDS: items[user],
                    names.LEVELS: levels[user],
                    names.TIMESTAMPS: times[user],
                    names.TARGET_LEVELS: levels[user],
                }
            )
            for user in range(self.users)
        ]

    def held_out(self) -> list[bytes]:
        """Timelines as InteractionGen writes them for evaluation, with ids of nine bytes."""
        items, levels, times = self._columns()
        targets = np.where(np.arange(EVENTS) < EVENTS - HELD_OUT, names.CONTEXT, levels)
        return [
            _example(
                {
                    names.USER_ID: [b"u%08d" % user],
                    names.ITEM_IDS: [b"i%08d" % item for item in items[user].tolist()],
                    names.LEVELS: levels[user],
                    names.TIMESTAMPS: times[user],
                    names.TARGET_LEVELS: targets[user],
                }
            )
            for user in range(self.users)
        ]

    def timelines(self) -> Timelines:
        """The transformed ones in memory."""
        return read_timelines(self.transformed(), self.n_items, self.users, [])

    def _columns(self) -> tuple[npt.NDArray[np.int64], ...]:
        """[users, EVENTS] items, levels, and times, which ascend and differ."""
        rng = np.random.default_rng(self.seed)
        shape = self.users, EVENTS
        times = np.sort(rng.integers(0, _SPAN_MS, shape), axis=1) + np.arange(EVENTS)
        levels = rng.choice(len(_LEVELS), shape, p=_LEVELS)
        return rng.integers(0, self.n_items, shape), levels, times


def _example(columns: dict[str, npt.NDArray[np.int64] | list[int] | list[bytes]]) -> bytes:
    example = tf.train.Example()
    for key, values in columns.items():
        feature = example.features.feature[key]
        kind = feature.bytes_list if isinstance(values[0], bytes) else feature.int64_list
        kind.value.extend(values)
    serialised: bytes = example.SerializeToString()
    return serialised
