"""The events of many users -> chunks for training and evaluation. NumPy only, no Beam.

A chunk is what becomes one tf.Example. Its targets are marked by the level to predict; everything
else is context. Nothing in a training chunk, targets included, depends on an event at or after the
cut; the context of an evaluation chunk lies before the events it precedes.

Users and items are codes: 0, 1, .. in the order of their ids, so that sorting by code sorts by id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from components.interaction_gen.sorting import Flags, Ints, same_as_before, sorted_order
from schemas.names import CONTEXT

HELD_OUT_TIME = 1  # timestamp of held-out events in a log without times; the others have 0


class Events(NamedTuple):
    """Columns of events, [N] each, in any order."""

    user: Ints  # code
    item: Ints  # code
    timestamp_ms: Ints
    level: Ints


class Bounds(NamedTuple):
    """Sizes of chunks."""

    max_events: int  # of one chunk, context included
    context_events: int  # that a later chunk repeats from before


@dataclass(frozen=True)
class Timelines:
    """The events that are used, and what became of the others.

    Users stand one after the other; a user's training events come before those for evaluation.

    Attributes:
      user, item, timestamp_ms, level: [E] as in Events.
      target_level: [E] level to predict at this event, or CONTEXT.
      evaluation: [E] whether the event is of the evaluation split.
      duplicates: events with the item, level and time of another.
      repeats: events on an item that had already reached this level.
    """

    user: Ints
    item: Ints
    timestamp_ms: Ints
    level: Ints
    target_level: Ints
    evaluation: Flags
    duplicates: int
    repeats: int


class Chunks(NamedTuple):
    """Ranges of the events of a Timelines, [C] each, in the order of users and times."""

    start: Ints
    own: Ints  # events from `start` up to here are CONTEXT, whatever they are elsewhere
    end: Ints
    evaluation: Flags


def time_split(events: Events, cut_ms: int | None) -> Timelines:
    """Divides the events of each user at a moment.

    An event is kept where it takes its item to a level that the user had not reached on it; of
    events of one moment the highest level remains.

    Args:
      events: of any number of users.
      cut_ms: events at or after it are for evaluation; None puts all into training.
    """
    order = sorted_order(events.user, events.timestamp_ms, events.item, -events.level)
    user, item, time, level = (column[order] for column in events)
    same = same_as_before(user, item, time, level)
    by_pair = sorted_order(user, item)  # and by time within a pair
    pair = _groups(user[by_pair], item[by_pair])
    # A pair's values lie above those of the pair before, so one running maximum serves all pairs.
    value = pair * (int(level.max(initial=0)) + 1) + level[by_pair]
    rising = value > np.append(-1, np.maximum.accumulate(value)[:-1])
    keep = np.zeros(len(user), bool)
    keep[by_pair[rising]] = True
    duplicates = int(same.sum())
    kept = int(keep.sum())
    user, item, time, level = (column[keep] for column in (user, item, time, level))
    evaluation = np.zeros(kept, bool) if cut_ms is None else time >= cut_ms
    return Timelines(
        user=user,
        item=item,
        timestamp_ms=time,
        level=level,
        target_level=_targets(user, item, level, evaluation),
        evaluation=evaluation,
        duplicates=duplicates,
        repeats=len(events.user) - duplicates - kept,
    )


def leave_out_split(
    events: Events,
    user_ids: Sequence[bytes],
    item_ids: Sequence[bytes],
    seed: int,
    eval_share: float,
) -> Timelines:
    """Holds out a share of each user's items by a seeded hash; a user keeps one at least.

    One event per item remains, with the highest level. Times are not used.

    Args:
      events: of any number of users.
      user_ids: by code; part of the hash.
      item_ids: by code; part of the hash.
      seed: another seed holds out other items.
      eval_share: expected share of the items that are held out.
    """
    order = sorted_order(events.user, events.item, -events.level)
    user, item, level = events.user[order], events.item[order], events.level[order]
    duplicates = int(same_as_before(user, item, level).sum())
    first = ~same_as_before(user, item)  # the highest level of the pair stands first
    user, item, level = user[first], item[first], level[first]
    draws = np.array(
        [
            _draw(seed, user_ids[u], item_ids[i])
            for u, i in zip(user.tolist(), item.tolist(), strict=True)
        ],
        np.float64,
    )
    held_out = draws < eval_share
    held_out[_last_draws_of_users_without_any(user, item, draws, held_out)] = False
    order = sorted_order(user, held_out.astype(np.int64), item)
    user, item, level, held_out = user[order], item[order], level[order], held_out[order]
    return Timelines(
        user=user,
        item=item,
        timestamp_ms=held_out.astype(np.int64) * HELD_OUT_TIME,
        level=level,
        target_level=level,
        evaluation=held_out,
        duplicates=duplicates,
        repeats=len(events.user) - duplicates - len(user),
    )


def cut_into_chunks(timelines: Timelines, bounds: Bounds) -> Chunks:
    """Cuts timelines into chunks of at most `max_events` events.

    Each event stands in exactly one chunk as itself. A split's first chunk starts with as much of
    the user's recent context as fits where that keeps all events in one chunk. Every other start
    repeats up to `context_events` events from before as CONTEXT.
    """
    # A run: the events of one user in one split.
    runs = ~same_as_before(timelines.user, timelines.evaluation)
    own = np.flatnonzero(runs)
    end = np.append(own[1:], len(runs))[: len(own)]
    evaluation = timelines.evaluation[own]
    first_of_user = ~same_as_before(timelines.user[own])
    first = own[np.maximum.accumulate(np.where(first_of_user, np.arange(len(own)), 0))]
    whole = end - own + np.minimum(own - first, bounds.context_events) <= bounds.max_events
    start = np.maximum(first, end - bounds.max_events)
    if whole.all():
        return Chunks(start, own, end, evaluation)
    pieces: list[tuple[int, int, int, bool]] = []
    long_runs = np.flatnonzero(~whole)
    for run in long_runs.tolist():
        position = int(own[run])
        while position < end[run]:
            before = max(int(first[run]), position - bounds.context_events)
            stop = min(int(end[run]), before + bounds.max_events)
            pieces.append((before, position, stop, bool(evaluation[run])))
            position = stop
    columns = [np.array(column) for column in zip(*pieces, strict=True)]
    every = [
        np.concatenate([short[whole], long])
        for short, long in zip((start, own, end, evaluation), columns, strict=True)
    ]
    order = np.argsort(every[1], kind="stable")
    return Chunks(*(column[order] for column in every))


def _groups(*columns: npt.NDArray[np.generic]) -> Ints:
    """[N] numbers of the groups of equal neighbours: 1, 2, .."""
    return np.cumsum(~same_as_before(*columns))


def _targets(user: Ints, item: Ints, level: Ints, evaluation: Flags) -> Ints:
    """Marks each item at its first event with the highest level it reaches within that split."""
    by_pair = sorted_order(user, item)  # and by time
    first = ~same_as_before(user[by_pair], item[by_pair])
    # Levels of an item rise: the highest one of a split is that of the last event.
    starts = np.flatnonzero(~same_as_before(user[by_pair], item[by_pair], evaluation[by_pair]))
    last = np.append(starts[1:], len(user))[: len(starts)] - 1
    opens = first[starts]  # an item touched in training is no target of the evaluation
    targets = np.full(len(user), CONTEXT, np.int64)
    targets[by_pair[starts[opens]]] = level[by_pair[last[opens]]]
    return targets


def _last_draws_of_users_without_any(
    user: Ints, item: Ints, draws: npt.NDArray[np.float64], held_out: Flags
) -> Ints:
    """Indices of the largest draws of the users all of whose items are held out."""
    order = np.lexsort((item, draws, user))
    last = np.append(user[order][1:] != user[order][:-1], np.ones(min(1, len(user)), bool))
    largest = order[last]
    # The largest draw is held out only where all are.
    return largest[held_out[largest]]


def _draw(seed: int, user_id: bytes, item_id: bytes) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    text = b"%d:%d:%b%b" % (seed, len(user_id), user_id, item_id)
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
