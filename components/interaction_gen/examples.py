"""Timelines and catalogue items -> serialised tf.Examples (names: schemas/names.py).

The bytes are put together here instead of by tf.train.Example, whose objects cost more than all
other work on a row. They are those of its deterministic serialisation: features in the order of
their names, integers packed. https://protobuf.dev/programming-guides/encoding describes the format:
a field is a tag, a length and the content; here every field is of the kind that has a length.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.shards import id_list
from components.interaction_gen.sorting import Ints
from components.interaction_gen.timelines import Chunks, Timelines
from schemas import names
from schemas.names import CONTEXT
from schemas.wire_format import varint

# Fields number 1, 2 and 3 of a message: (number << 3) | 2.
_FIRST, _SECOND, _THIRD = b"\x0a", b"\x12", b"\x1a"
_CONTEXT_VARINT = b"\xff" * 9 + b"\x01"  # CONTEXT is -1: ten bytes
_TIME_BYTES = 6  # of a varint of any time from 1990 to 2100 in milliseconds

assert CONTEXT == -1


def feature_entry(name: str, values: Sequence[bytes] | Sequence[float]) -> bytes:
    """Serialises a feature with its name; one without values is left out, so empty."""
    if not values:
        return b""
    texts = [value for value in values if isinstance(value, bytes)]
    if texts:
        return _entry(name, _FIRST, b"".join(_field(_FIRST, text) for text in texts))
    floats = struct.pack(f"<{len(values)}f", *values)
    return _entry(name, _SECOND, _field(_FIRST, floats))


def id_entries(name: str, ids: pa.LargeBinaryArray) -> list[bytes]:
    """Serialises a feature of one text per row."""

    def head(size: int) -> bytes:
        field = _FIRST + varint(size)
        return _bytes_head(name, len(field) + size) + field

    return id_list(_prefixed(ids, head))


def user_entries(
    user_ids: pa.LargeBinaryArray,
    entities: Sequence[int | None],
    features: Mapping[str, list[bytes]],
) -> list[bytes]:
    """Serialises the features of users, in the order of their names.

    Args:
      user_ids: the users.
      entities: by user, the index into the features; None for users without any.
      features: name -> serialised entries.
    """
    entries = id_entries(names.USER_ID, user_ids)
    if not features:
        return entries
    before = [values for name, values in sorted(features.items()) if name < names.USER_ID]
    after = [values for name, values in sorted(features.items()) if name > names.USER_ID]
    return [
        entry
        if found is None
        else b"".join(
            (*(column[found] for column in before), entry, *(column[found] for column in after))
        )
        for entry, found in zip(entries, entities, strict=True)
    ]


def item_examples(
    item_ids: Sequence[bytes], titles: Sequence[bytes], features: Mapping[str, Sequence[bytes]]
) -> Iterator[bytes]:
    """Serialises items; an empty title falls back to the id.

    Args:
      item_ids: the items.
      titles: by item.
      features: name -> serialised entries by item.
    """
    shown = [title or item_id for item_id, title in zip(item_ids, titles, strict=True)]
    columns: dict[str, Sequence[bytes]] = {
        **features,
        names.ITEM_ID: id_entries(names.ITEM_ID, pa.array(item_ids, pa.large_binary())),
        names.ITEM_TITLE: id_entries(names.ITEM_TITLE, pa.array(shown, pa.large_binary())),
    }
    for entries in zip(*(columns[name] for name in sorted(columns)), strict=True):
        yield _field(_FIRST, b"".join(entries))


class EncodedTimelines:
    """The values of timelines as they stand in tf.Examples, of which chunks are cut."""

    def __init__(
        self, timelines: Timelines, item_ids: pa.LargeBinaryArray, user_entries: Sequence[bytes]
    ) -> None:
        """Encodes all events.

        Args:
          timelines: the events.
          item_ids: by code.
          user_entries: by code, as `user_entries` returns them.
        """
        order = names.ITEM_IDS, names.LEVELS, names.TARGET_LEVELS, names.TIMESTAMPS, names.USER_ID
        assert list(order) == sorted(order)
        self._users = timelines.user
        self._user_entries = user_entries
        self._items, self._item_starts = _contiguous(
            _prefixed(item_ids, lambda size: _FIRST + varint(size)).take(pa.array(timelines.item))
        )
        # Levels are single bytes; targets, too, but for CONTEXT.
        self._levels = timelines.level.astype(np.uint8).tobytes()
        top = int(timelines.level.max(initial=0))
        assert top < 128
        varints = [_CONTEXT_VARINT, *(bytes([level]) for level in range(top + 1))]
        self._targets, self._target_starts = _contiguous(
            pa.array(varints, pa.large_binary()).take(pa.array(timelines.target_level + 1))
        )
        self._times, self._time_bytes = _time_varints(timelines.timestamp_ms)

    def examples(self, chunks: Chunks) -> Iterator[bytes]:
        """Serialises chunks, in their order."""
        items, levels, targets, times = self._items, self._levels, self._targets, self._times
        width = self._time_bytes
        columns = (
            self._users[chunks.own],
            chunks.start,
            chunks.own - chunks.start,
            chunks.end,
            self._item_starts[chunks.start],
            self._item_starts[chunks.end],
            self._target_starts[chunks.own],
            self._target_starts[chunks.end],
        )
        for user, start, context, end, item_from, item_to, target_from, target_to in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            content = b"".join(
                (
                    _bytes_head(names.ITEM_IDS, item_to - item_from),
                    items[item_from:item_to],
                    _ints_head(names.LEVELS, end - start),
                    levels[start:end],
                    _ints_head(names.TARGET_LEVELS, target_to - target_from + 10 * context),
                    _CONTEXT_VARINT * context,
                    targets[target_from:target_to],
                    _ints_head(names.TIMESTAMPS, width * (end - start)),
                    times[width * start : width * end],
                    self._user_entries[user],
                )
            )
            yield _FIRST + varint(len(content)) + content


def _prefixed(values: pa.LargeBinaryArray, prefix: Callable[[int], bytes]) -> pa.LargeBinaryArray:
    """Puts a prefix that depends on the size before each value."""
    sizes, codes = np.unique(pc.binary_length(values).to_numpy(), return_inverse=True)
    prefixes = pa.array([prefix(size) for size in sizes.tolist()], pa.large_binary())
    return pc.binary_join_element_wise(
        prefixes.take(pa.array(codes)), values, pa.scalar(b"", pa.large_binary())
    )


def _contiguous(values: pa.LargeBinaryArray) -> tuple[bytes, Ints]:
    """The bytes of all values one after the other, and where each starts; the end is the last."""
    _, offsets, content = values.buffers()
    bounds = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    return b"" if content is None else content.to_pybytes(), bounds


def _time_varints(timestamps: Ints) -> tuple[bytes, int]:
    """Varints of one width: six bytes for times, one byte for the 0 and 1 of logs without them."""
    if timestamps.max(initial=0) < 128:
        return timestamps.astype(np.uint8).tobytes(), 1
    assert timestamps.min() >= 1 << 35
    assert timestamps.max() < 1 << 42
    septets: npt.NDArray[np.uint8] = np.empty((len(timestamps), _TIME_BYTES), np.uint8)
    for place in range(_TIME_BYTES):
        more = 0x80 if place < _TIME_BYTES - 1 else 0
        septets[:, place] = ((timestamps >> (7 * place)) & 0x7F) | more
    return septets.tobytes(), _TIME_BYTES


def _entry(name: str, kind: bytes, content: bytes) -> bytes:
    feature = _field(_SECOND, _field(kind, content))
    return _field(_FIRST, _field(_FIRST, name.encode()) + feature)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


@lru_cache(maxsize=1 << 16)
def _bytes_head(name: str, size: int) -> bytes:
    """What precedes `size` bytes of the values of a bytes feature."""
    return _head(name, _FIRST + varint(size), size)


@lru_cache(maxsize=1 << 16)
def _ints_head(name: str, size: int) -> bytes:
    """What precedes `size` bytes of the packed values of an int64 feature."""
    packed = _FIRST + varint(size)
    return _head(name, _THIRD + varint(len(packed) + size) + packed, size)


def _head(name: str, feature: bytes, size: int) -> bytes:
    key = _field(_FIRST, name.encode())
    value = _SECOND + varint(len(feature) + size) + feature
    return _FIRST + varint(len(key) + len(value) + size) + key + value
