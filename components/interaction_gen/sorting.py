"""Sorting rows by several whole numbers, in a time that grows linearly with their number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_DIGIT_BITS = 16  # NumPy sorts 16-bit numbers by counting them
_WORD_BITS = 63


def sorted_order(*keys: Ints) -> Ints:
    """[N] indices that sort rows by the first key, then the second, ..; equal rows keep theirs."""
    order: Ints = np.arange(len(keys[0]))
    if not len(order):
        return order
    for word, bits in _words(keys):
        for shift in range(0, bits, _DIGIT_BITS):
            digits = (word[order] >> shift).astype(np.uint16)
            order = order[np.argsort(digits, kind="stable")]
    return order


def _words(keys: tuple[Ints, ...]) -> Iterator[tuple[Ints, int]]:
    """Packs keys into as few numbers as they fit in; the last keys come first."""
    word, used = np.zeros(len(keys[0]), np.int64), 0
    for key in reversed(keys):
        smallest = int(key.min())
        bits = (int(key.max()) - smallest).bit_length()
        if used + bits > _WORD_BITS:
            yield word, used
            word, used = np.zeros(len(key), np.int64), 0
        word |= (key - smallest) << used
        used += bits
    yield word, used


def same_as_before(*columns: npt.NDArray[np.generic]) -> Flags:
    """[N] whether a row equals the one before it."""
    same = np.zeros(len(columns[0]), bool)
    if len(same):
        same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return same
