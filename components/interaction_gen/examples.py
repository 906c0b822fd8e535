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
_NOTHING = pa.scalar(b"", pa.large_binary())
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


def text_entries(
    name: str, texts: pa.LargeBinaryArray, rows: Ints, size: int
) -> pa.LargeBinaryArray:
    """[size] a feature with its name as `feature_entry` has it.

    Args:
      name: of the feature.
      texts: its values, those of a row next to each other.
      rows: by value, the index of its row; rising.
      size: how many rows there are; those without values get an empty entry.
    """
    fields = _prefixed(texts, lambda length: _FIRST + varint(length))
    ends = np.searchsorted(rows, np.arange(size + 1))
    values = pc.binary_join(pa.LargeListArray.from_arrays(ends, fields), _NOTHING)
    return _prefixed(values, lambda length: _bytes_head(name, length) if length else b"")


def number_entries(name: str, numbers: npt.NDArray[np.float64]) -> pa.LargeBinaryArray:
    """[N] a feature of one number as `feature_entry` has it; NaN: no number, so empty."""
    head = feature_entry(name, [0.0])[:-4]
    values = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(4), len(numbers), [None, pa.py_buffer(numbers.astype("<f4"))]
    ).cast(pa.large_binary())
    entries = pc.binary_join_element_wise(pa.scalar(head, pa.large_binary()), values, _NOTHING)
    return pc.if_else(pa.array(np.isnan(numbers)), _NOTHING, entries)


def id_entries(name: str, ids: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """[N] a feature of one text."""

    def head(size: int) -> bytes:
        field = _FIRST + varint(size)
        return _bytes_head(name, len(field) + size) + field

    return _prefixed(ids, head)


def user_entries(
    user_ids: pa.LargeBinaryArray, entities: pa.Array, features: Mapping[str, pa.LargeBinaryArray]
) -> list[bytes]:
    """Serialises the features of users, in the order of their names.

    Args:
      user_ids: the users.
      entities: by user, the index into the features; null for users without any.
      features: name -> serialised entries.
    """
    found = {name: values.take(entities).fill_null(b"") for name, values in features.items()}
    return id_list(_in_order({**found, names.USER_ID: id_entries(names.USER_ID, user_ids)}))


def item_examples(
    item_ids: pa.LargeBinaryArray,
    titles: pa.LargeBinaryArray,
    features: Mapping[str, pa.LargeBinaryArray],
) -> list[bytes]:
    """Serialises items; an empty title falls back to the id.

    Args:
      item_ids: the items.
      titles: by item.
      features: name -> serialised entries by item.
    """
    shown = pc.if_else(pc.equal(titles, _NOTHING), item_ids, titles)
    entries = _in_order(
        {
            **features,
            names.ITEM_ID: id_entries(names.ITEM_ID, item_ids),
            names.ITEM_TITLE: id_entries(names.ITEM_TITLE, shown),
        }
    )
    return id_list(_prefixed(entries, lambda size: _FIRST + varint(size)))


def _in_order(entries: Mapping[str, pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    """[N] the entries of all features, in the order of their names."""
    return pc.binary_join_element_wise(*(entries[name] for name in sorted(entries)), _NOTHING)


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
    return pc.binary_join_element_wise(prefixes.take(pa.array(codes)), values, _NOTHING)


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
