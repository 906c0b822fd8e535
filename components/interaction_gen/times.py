"""Columns of times -> milliseconds since the epoch; `columns` says what certain means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.interaction_gen.arrow_values import binary, bytes_of, digits_only, numbers_of
from components.interaction_gen.readers import is_text
from components.interaction_gen.sorting import Flags, Ints
from components.interaction_gen.values import EARLIEST_MS, LATEST_MS, NUMERIC_UNITS

Floats = npt.NDArray[np.float64]


def timestamps(column: pa.Array, unit: str) -> tuple[Ints, Flags]:
    """[N] milliseconds since the epoch, and [N] where they are certain."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        times, known = timestamps(column.dictionary, unit)
        codes, present = numbers_of(column.indices)
        return times[codes], known[codes] & present
    if pa.types.is_timestamp(kind):
        return _of_arrow_times(column)
    if unit == "iso8601":
        return _of_iso_texts(binary(column)) if is_text(kind) else _unknown(len(column))
    if pa.types.is_integer(kind):
        values, known = numbers_of(column)
        return _of_integers(values, known, unit)
    if pa.types.is_floating(kind):
        values, known = numbers_of(column)
        return _of_floats(values.astype(np.float64), known, unit)
    if is_text(kind):
        return _of_texts(binary(column), unit)
    return _unknown(len(column))


def _of_integers(
    values: npt.NDArray[np.integer[Any]], known: Flags, unit: str
) -> tuple[Ints, Flags]:
    limits = NUMERIC_UNITS[unit]
    known = known & (values >= limits.low) & (values < limits.high)
    counts = np.where(known, values, 0).astype(np.int64)
    return counts * limits.multiplier // limits.divisor, known


def _of_floats(values: Floats, known: Flags, unit: str) -> tuple[Ints, Flags]:
    limits = NUMERIC_UNITS[unit]
    known = known & (values >= limits.low) & (values < limits.high)
    return np.floor(np.where(known, values, 0.0) * limits.factor).astype(np.int64), known


def _of_texts(column: pa.BinaryArray, unit: str) -> tuple[Ints, Flags]:
    digits = digits_only(column)
    text = column.view(pa.string())  # a cast refuses all where one value does not decode
    if digits.all():
        values, known = numbers_of(text.cast(pa.int64()))
        return _of_integers(values, known, unit)
    times, known = _unknown(len(column))
    whole = np.flatnonzero(digits)
    values, _ = numbers_of(text.take(pa.array(whole)).cast(pa.int64()))
    times[whole], known[whole] = _of_integers(values, np.ones(len(whole), bool), unit)
    others = np.flatnonzero(~digits)
    fractions = pc.match_substring_regex(
        text.take(pa.array(others)), r"^[0-9]{1,15}\.[0-9]{1,9}$"
    ).fill_null(False)
    others = others[fractions.to_numpy(zero_copy_only=False)]
    floats, _ = numbers_of(text.take(pa.array(others)).cast(pa.float64()))
    times[others], known[others] = _of_floats(floats, np.ones(len(others), bool), unit)
    return times, known


def _of_arrow_times(column: pa.TimestampArray) -> tuple[Ints, Flags]:
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    values, known = numbers_of(column.view(pa.int64()))
    known = known & (values >= EARLIEST_MS // 1000 * per_second)
    known &= values < LATEST_MS // 1000 * per_second
    counts = np.where(known, values, 0)
    if per_second == 1:
        return counts * 1000, known
    return counts // (per_second // 1000), known


def _of_iso_texts(column: pa.BinaryArray) -> tuple[Ints, Flags]:
    """ISO 8601 of the usual lengths: a date, or to seconds, ms or us, with or without a zone."""
    times, known = _unknown(len(column))
    size, offsets, content = bytes_of(column)
    for length in np.unique(size).tolist():
        form = _ISO_FORMS.get(length)
        if form is None:
            continue
        rows = np.flatnonzero(size == length)
        texts = content[offsets[rows][:, None] + np.arange(length)]
        times[rows], known[rows] = _iso_times(texts, *form)
    return times, known


# Length -> digits of the fraction of a second, characters of the zone; None: a date only.
_ISO_FORMS: dict[int, tuple[int | None, int]] = {10: (None, 0)} | {
    19 + (fraction + 1 if fraction else 0) + zone: (fraction, zone)
    for fraction in (0, 3, 6)
    for zone in (0, 1, 6)
}


def _iso_times(texts: npt.NDArray[np.uint8], fraction: int | None, zone: int) -> tuple[Ints, Flags]:
    """[N] milliseconds of [N, length] characters, and [N] where they are certain."""
    digit = texts - np.uint8(ord("0"))
    good = np.ones(len(texts), bool)

    def read(start: int, end: int, low: int, high: int) -> Ints:
        nonlocal good
        value = np.zeros(len(texts), np.int64)
        for place in range(start, end):
            good &= digit[:, place] <= 9
            value = value * 10 + digit[:, place]
        good &= (value >= low) & (value <= high)
        return value

    def expect(place: int, characters: bytes) -> None:
        nonlocal good
        good &= np.isin(texts[:, place], list(characters))

    year, month, day = read(0, 4, 1, 9999), read(5, 7, 1, 12), read(8, 10, 1, 31)
    expect(4, b"-")
    expect(7, b"-")
    months = ((year - 1970) * 12 + np.clip(month, 1, 12) - 1).astype("datetime64[M]")
    first, following = (
        part.astype("datetime64[D]").astype(np.int64) for part in (months, months + 1)
    )
    good &= first + day <= following
    result = (first + day - 1) * 86_400_000
    if fraction is not None:
        expect(10, b"T ")
        expect(13, b":")
        expect(16, b":")
        seconds = (read(11, 13, 0, 23) * 60 + read(14, 16, 0, 59)) * 60 + read(17, 19, 0, 59)
        result += seconds * 1000
        if fraction:
            expect(19, b".")
            result += read(20, 20 + fraction, 0, 10**fraction) // 10 ** (fraction - 3)
        end = texts.shape[1]
        if zone == 1:
            expect(end - 1, b"Z")
        elif zone:
            expect(end - 6, b"+-")
            expect(end - 3, b":")
            away = (read(end - 5, end - 3, 0, 23) * 60 + read(end - 2, end, 0, 59)) * 60_000
            result -= np.where(texts[:, end - 6] == ord("-"), -away, away)
    good &= (result >= EARLIEST_MS) & (result < LATEST_MS)
    return result, good


def _unknown(size: int) -> tuple[Ints, Flags]:
    return np.zeros(size, np.int64), np.zeros(size, bool)
