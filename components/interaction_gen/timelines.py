"""The events of one user -> chunks for training and evaluation. Pure functions, no Beam.

A chunk is what becomes one tf.Example. Its targets are marked by the level to predict; everything
else is context. Nothing in a training chunk, targets included, depends on an event at or after the
cut; the context of an evaluation chunk lies before the events it precedes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.names import CONTEXT

HELD_OUT_TIME = 1  # timestamp of held-out events in a log without times; the others have 0

UserEvent = tuple[int, bytes, int]  # timestamp (ms), item id, level


class TimelineEvent(NamedTuple):
    """One event of a chunk."""

    timestamp_ms: int
    item_id: bytes
    level: int
    target_level: int  # level to predict at this event, or CONTEXT


class UserTimeline(NamedTuple):
    """A user's chunks, and what became of the events given."""

    train: list[list[TimelineEvent]]
    evaluation: list[list[TimelineEvent]]
    train_events: list[TimelineEvent]  # every event of the split once, context left out
    eval_events: list[TimelineEvent]
    duplicates: int  # same item, level and time again
    repeats: int  # the item had already reached this level


class Bounds(NamedTuple):
    """Sizes of chunks."""

    max_events: int  # of one chunk, context included
    context_events: int  # that a later chunk repeats from before


def time_split(events: Iterable[UserEvent], cut_ms: int | None, bounds: Bounds) -> UserTimeline:
    """Divides a user's events at a moment.

    Args:
      events: in any order.
      cut_ms: events at or after it are for evaluation; None puts all into training.
      bounds: sizes of chunks.
    """
    kept, duplicates, repeats = rising_events(events)
    border = len(kept)
    if cut_ms is not None:
        border = next((i for i, event in enumerate(kept) if event[0] >= cut_ms), len(kept))
    return _timeline(kept[:border], kept[border:], duplicates, repeats, bounds)


def leave_out_split(
    events: Iterable[UserEvent], user_id: bytes, seed: int, eval_share: float, bounds: Bounds
) -> UserTimeline:
    """Holds out a share of a user's items by a seeded hash; the user keeps one at least.

    One event per item remains, with the highest level. Times are not used.

    Args:
      events: in any order.
      user_id: part of the hash.
      seed: another seed holds out other items.
      eval_share: expected share of the items that are held out.
      bounds: sizes of chunks.
    """
    highest: dict[bytes, int] = {}
    seen: set[tuple[bytes, int]] = set()
    duplicates = total = 0
    for _, item, level in events:
        total += 1
        if (item, level) in seen:
            duplicates += 1
        seen.add((item, level))
        highest[item] = max(level, highest.get(item, level))
    draws = {item: _draw(seed, user_id, item) for item in highest}
    held_out = {item for item, draw in draws.items() if draw < eval_share}
    if len(held_out) == len(highest):
        held_out.discard(max(highest, key=lambda item: (draws[item], item)))
    return _timeline(
        [(0, item, highest[item]) for item in sorted(highest) if item not in held_out],
        [(HELD_OUT_TIME, item, highest[item]) for item in sorted(held_out)],
        duplicates,
        total - duplicates - len(highest),
        bounds,
    )


def rising_events(events: Iterable[UserEvent]) -> tuple[list[UserEvent], int, int]:
    """Keeps the events that take an item to a level it had not reached.

    Returns:
      The events in time order (ties by item id), the number of exact duplicates dropped, and the
      number of repeats dropped: events on an item that had reached that level before, or reaches
      a higher one at the same moment.
    """
    ordered = sorted(events, key=lambda event: (event[0], event[1], -event[2]))
    reached: dict[bytes, int] = {}
    kept: list[UserEvent] = []
    duplicates = repeats = 0
    previous: UserEvent | None = None
    for event in ordered:
        _, item, level = event
        if event == previous:
            duplicates += 1
        elif level > reached.get(item, -1):
            reached[item] = level
            kept.append(event)
        else:
            repeats += 1
        previous = event
    return kept, duplicates, repeats


def _timeline(
    before: Sequence[UserEvent],
    after: Sequence[UserEvent],
    duplicates: int,
    repeats: int,
    bounds: Bounds,
) -> UserTimeline:
    train = _with_targets(before, touched=frozenset())
    evaluation = _with_targets(after, touched=frozenset(item for _, item, _ in before))
    context = [event._replace(target_level=CONTEXT) for event in train]
    return UserTimeline(
        train=chunks([], train, bounds),
        evaluation=chunks(context, evaluation, bounds),
        train_events=train,
        eval_events=evaluation,
        duplicates=duplicates,
        repeats=repeats,
    )


def _with_targets(events: Sequence[UserEvent], touched: frozenset[bytes]) -> list[TimelineEvent]:
    """Marks the first event of every item that was not touched before as a target."""
    highest: dict[bytes, int] = {}
    for _, item, level in events:
        highest[item] = max(level, highest.get(item, level))
    seen = set(touched)
    marked = []
    for timestamp, item, level in events:
        marked.append(
            TimelineEvent(timestamp, item, level, CONTEXT if item in seen else highest[item])
        )
        seen.add(item)
    return marked


def chunks(
    context: Sequence[TimelineEvent], events: Sequence[TimelineEvent], bounds: Bounds
) -> list[list[TimelineEvent]]:
    """Cuts a timeline into chunks of at most `max_events` events.

    Args:
      context: what lies before the events of this split; all of it CONTEXT.
      events: the events of this split; each stands in exactly one chunk as itself.
      bounds: sizes of chunks.

    Returns:
      Chunks in order. The first starts with as much of the recent context as fits where that
      keeps all events in one chunk. Every other start repeats up to `context_events` events from
      before as CONTEXT.
    """
    if not events:
        return []
    if len(events) + min(len(context), bounds.context_events) <= bounds.max_events:
        room = bounds.max_events - len(events)
        return [[*context[max(0, len(context) - room) :], *events]]
    past = [*context, *(event._replace(target_level=CONTEXT) for event in events)]
    result = []
    start = 0
    while start < len(events):
        here = len(context) + start  # index of the next event in `past`
        prefix = past[max(0, here - bounds.context_events) : here]
        end = start + bounds.max_events - len(prefix)
        result.append([*prefix, *events[start:end]])
        start = end
    return result


def _draw(seed: int, user_id: bytes, item_id: bytes) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    text = b"%d:%d:%b%b" % (seed, len(user_id), user_id, item_id)
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
