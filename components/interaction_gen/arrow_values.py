"""What a look at the bytes of an Arrow column tells about its values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.interaction_gen.readers import is_text
from components.interaction_gen.sorting import Flags, Ints


def binary(column: pa.Array) -> pa.BinaryArray:
    """A column of text as its bytes, without nulls: they become empty, which is uncertain."""
    if pa.types.is_string(column.type):
        column = column.view(pa.binary())
    elif not pa.types.is_binary(column.type):
        column = column.cast(pa.large_binary()).cast(pa.binary())
    return column.fill_null(b"") if column.null_count else column


def bytes_of(column: pa.BinaryArray) -> tuple[Ints, Ints, npt.NDArray[np.uint8]]:
    """[N] lengths, [N] where each value starts in the bytes, and the bytes of all values."""
    _, offsets, content = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    bounds = bounds.astype(np.int64)
    start = int(bounds[0])
    everything: npt.NDArray[np.uint8] = (
        np.empty(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    )
    return np.diff(bounds), bounds[:-1] - start, everything[start : int(bounds[-1])]


def all_bytes(column: pa.BinaryArray, good: Flags) -> Flags:
    """[N] whether all bytes of a value are good; `good` has a flag per byte of the column."""
    result = np.ones(len(column), bool)
    if not good.all():
        _, offsets, _ = bytes_of(column)
        result[np.searchsorted(offsets, np.flatnonzero(~good), side="right") - 1] = False
    return result


def digits_only(column: pa.BinaryArray) -> Flags:
    """[N] whether a value is a number of one to 18 digits and nothing else."""
    size, _, content = bytes_of(column)
    return all_bytes(column, (content - np.uint8(ord("0"))) <= 9) & (size >= 1) & (size <= 18)


def decodable(column: pa.Array) -> Flags:
    """[N] whether text is certainly UTF-8; Parquet does not promise it."""
    if pa.types.is_dictionary(column.type):
        if not is_text(column.type.value_type):
            return np.ones(len(column), bool)
        codes, _ = numbers_of(column.indices)
        return decodable(column.dictionary)[codes] if len(column.dictionary) else codes == 0
    if not is_text(column.type):
        return np.ones(len(column), bool)
    column = binary(column)
    size, offsets, content = bytes_of(column)
    if not (content & 0x80).any():
        return np.ones(len(column), bool)
    try:
        content.tobytes().decode()
    except UnicodeDecodeError:
        return all_bytes(column, content < 0x80)
    # The bytes of all values together are UTF-8, so those of each are, too, unless one of them
    # starts within a character.
    starts = offsets[size > 0]
    good = np.ones(len(column), bool)
    good[size > 0] = (content[starts] & 0xC0) != 0x80
    if not good.all():
        return all_bytes(column, content < 0x80)
    return good


def valid(column: pa.Array) -> Flags:
    """[N] where there is a value."""
    if not column.null_count:
        return np.ones(len(column), bool)
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))


def numbers_of(column: pa.Array) -> tuple[npt.NDArray[Any], Flags]:
    """[N] numbers, 0 where there is none, and [N] where there is one."""
    present = valid(column)
    if column.null_count:
        column = column.fill_null(0)
    return np.array(column.to_numpy(zero_copy_only=False)), present
