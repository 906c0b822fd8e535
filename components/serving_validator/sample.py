"""Draws users with their histories from the eval timelines."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tensorflow as tf

from schemas import names

_MAX_HISTORY = 200  # events; keeps requests as large as real ones, not as large as crawlers' logs


@dataclass(frozen=True)
class Timeline:
    """A user and (item id, level) of the events, oldest first; never empty."""

    user_id: bytes
    history: tuple[tuple[bytes, int], ...]


def sample_timelines(files: Sequence[str], size: int, seed: int) -> list[Timeline]:
    """Returns up to `size` users, the same ones for the same seed whatever the files' order.

    The history is what precedes the user's first event to predict, or, where nothing does, the
    whole timeline.

    Args:
      files: gzip-compressed TFRecords of tf.Examples, one per user chunk.
      size: number of users.
      seed: decides which.
    """
    drawn: list[tuple[str, bytes]] = heapq.nsmallest(
        size, ((_rank(record, seed), record) for record in _records(files))
    )
    timelines: dict[bytes, Timeline] = {}
    for _, record in drawn:
        timeline = _parse(record)
        if timeline.history:
            timelines.setdefault(timeline.user_id, timeline)
    return list(timelines.values())


def _records(files: Sequence[str]) -> Iterator[bytes]:
    yield from tf.data.TFRecordDataset(list(files), compression_type="GZIP").as_numpy_iterator()


def _rank(record: bytes, seed: int) -> str:
    return hashlib.blake2b(record, digest_size=16, key=str(seed).encode()).hexdigest()


def _parse(record: bytes) -> Timeline:
    feature = tf.train.Example.FromString(record).features.feature
    items = feature[names.ITEM_IDS].bytes_list.value
    levels = feature[names.LEVELS].int64_list.value
    targets = feature[names.TARGET_LEVELS].int64_list.value
    first = next((i for i, level in enumerate(targets) if level != names.CONTEXT), len(targets))
    events = list(zip(items, levels, strict=True))
    history = events[:first] or events
    return Timeline(feature[names.USER_ID].bytes_list.value[0], tuple(history[-_MAX_HISTORY:]))
