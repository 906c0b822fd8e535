"""One field -> one value, or an UnusableError that says what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from components.interaction_gen.faults import UnusableError

EARLIEST_MS = 631_152_000_000  # 1990-01-01
LATEST_MS = 4_102_444_800_000  # 2100-01-01
MAX_ID_BYTES = 1024  # item ids become fixed-width arrays: one long id would widen all of them

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class NumericUnit(NamedTuple):
    """How a number becomes milliseconds since the epoch."""

    name: str
    low: int  # numbers from here ..
    high: int  # .. to below this lie in 1990..2100
    multiplier: int  # of whole numbers
    divisor: int
    factor: float  # of numbers with a fraction


NUMERIC_UNITS = {
    "s": NumericUnit("seconds", EARLIEST_MS // 1000, LATEST_MS // 1000, 1000, 1, 1000.0),
    "ms": NumericUnit("milliseconds", EARLIEST_MS, LATEST_MS, 1, 1, 1.0),
    "us": NumericUnit("microseconds", EARLIEST_MS * 1000, LATEST_MS * 1000, 1, 1000, 0.001),
}


def identifier(value: Any, role: str) -> bytes:
    """Returns the id as UTF-8 without surrounding white space.

    Args:
      value: text, or a number from JSON or Parquet.
      role: "user_id" or "item_id", for the text of the error.

    Raises:
      UnusableError: empty, not an id at all, with control characters, or longer than MAX_ID_BYTES.
    """
    text = as_text(value, role)
    if not text:
        raise UnusableError(f"no_{role}", f"the {role} is empty")
    if not text.isprintable() and _CONTROL.search(text):
        # Vocabulary files have one entry per line.
        raise UnusableError(f"bad_{role}", f"the {role} contains a control character: {text!r}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(
            f"bad_{role}", f"the {role} contains half a surrogate pair: {text!a}"
        ) from error
    if len(encoded) > MAX_ID_BYTES:
        raise UnusableError(
            f"bad_{role}",
            f"the {role} has {len(encoded)} bytes; at most {MAX_ID_BYTES} are allowed",
        )
    return encoded


def as_text(value: Any, role: str) -> str:
    """Returns a field as text without surrounding white space; an absent field is empty.

    Raises:
      UnusableError: the field is neither text nor a whole number.
    """
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        # pandas turns a whole column of integers into floats where one of them is missing.
        if value.is_integer():
            return str(int(value))
        if math.isnan(value):
            return ""
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError as error:
            raise UnusableError(
                "undecodable", f"the {role} does not decode as utf-8: {error.reason}"
            ) from error
    raise UnusableError(
        f"bad_{role}", f"the {role} is neither text nor a whole number: {value!r:.100}"
    )


def number(value: Any) -> float | None:
    """Returns a finite number, or None where the field is empty.

    Raises:
      ValueError: the field is not a number.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and not value.strip():
        return None
    result = float(value)
    if math.isnan(result) and not isinstance(value, str):
        return None
    if not math.isfinite(result):
        raise ValueError(f"{result} is not a finite number")
    return result


def timestamp_reader(unit: str) -> Callable[[Any], int]:
    """Returns a function from a field to milliseconds since the epoch, UTC.

    Args:
      unit: s, ms, us or iso8601. A Parquet timestamp column knows its own unit, which wins.

    Returns:
      A function that raises UnusableError for what is not a time between 1990 and 2100; the reason
      names the unit that the number would fit.
    """
    if unit == "iso8601":
        return _iso_milliseconds
    limits = NUMERIC_UNITS[unit]

    def milliseconds(value: Any) -> int:
        try:
            count = int(value)
        except (TypeError, ValueError, OverflowError):
            return _uncommon_milliseconds(value, unit)
        if isinstance(value, float | bool):
            return _uncommon_milliseconds(value, unit)
        if not limits.low <= count < limits.high:
            raise _out_of_range(count, unit)
        return count * limits.multiplier // limits.divisor

    return milliseconds


def _uncommon_milliseconds(value: Any, unit: str) -> int:
    """Whatever is not simply an integer: fractions, Parquet times, and everything wrong."""
    if isinstance(value, datetime):
        return _datetime_milliseconds(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UnusableError("bad_timestamp", "the timestamp is empty")
    try:
        count = float(value)
        if isinstance(value, bool) or not math.isfinite(count):
            raise ValueError("not a finite number")
    except (TypeError, ValueError, OverflowError) as error:
        advice = ""
        if isinstance(value, str) and _is_iso(value):
            advice = "; it looks like ISO 8601: set `timestamp_unit: iso8601` for this source"
        raise UnusableError(
            "bad_timestamp", f"the timestamp {value!r:.60} is not a number{advice}"
        ) from error
    limits = NUMERIC_UNITS[unit]
    if not limits.low <= count < limits.high:
        raise _out_of_range(count, unit)
    return math.floor(count * limits.factor)


def _out_of_range(count: float, unit: str) -> UnusableError:
    fits = [key for key, limits in NUMERIC_UNITS.items() if limits.low <= count < limits.high]
    advice = (
        f"; in {NUMERIC_UNITS[fits[0]].name} it would fit (timestamp_unit: {fits[0]})"
        if fits
        else ""
    )
    return UnusableError(
        "bad_timestamp",
        f"the timestamp {count!r:.40} is outside 1990..2100 when read as"
        f" {NUMERIC_UNITS[unit].name}{advice}",
    )


def _is_iso(text: str) -> bool:
    try:
        datetime.fromisoformat(text.strip())
    except ValueError:
        return False
    return True


def _iso_milliseconds(value: Any) -> int:
    if isinstance(value, datetime):
        return _datetime_milliseconds(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if value is None or value == "":
        raise UnusableError("bad_timestamp", "the timestamp is empty")
    text = str(value).strip()
    for unit, limits in NUMERIC_UNITS.items():
        if text.isdigit() and limits.low <= int(text) < limits.high:
            raise UnusableError(
                "bad_timestamp",
                f"the timestamp {text} is a number, not ISO 8601; in {limits.name} it would fit"
                f" (timestamp_unit: {unit})",
            )
    try:
        return _datetime_milliseconds(datetime.fromisoformat(text))
    except ValueError as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError(
            "bad_timestamp", f"the timestamp {text!r:.60} is not ISO 8601"
        ) from error


def _datetime_milliseconds(value: datetime) -> int:
    if value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    # Integer arithmetic: seconds as a float would lose milliseconds.
    since = value - datetime(1970, 1, 1, tzinfo=UTC)
    result = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if not EARLIEST_MS <= result < LATEST_MS:
        raise UnusableError(
            "bad_timestamp", f"the timestamp {value.isoformat()} is outside 1990..2100"
        )
    return result


def iso(milliseconds: int) -> str:
    """Milliseconds since the epoch as ISO 8601, UTC."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC).replace(
        microsecond=milliseconds % 1000 * 1000
    )
    return moment.isoformat(timespec="milliseconds" if milliseconds % 1000 else "seconds").replace(
        "+00:00", "Z"
    )


def texts(value: Any, separator: str | None) -> list[bytes]:
    """Values of a categorical feature, in order, without empty ones.

    Args:
      value: a field; JSON and Parquet may hold a list.
      separator: cuts a text into several values; None keeps it whole.
    """
    parts = value if isinstance(value, list | tuple) else [value]
    found: list[str] = []
    for part in parts:
        if part is None or (isinstance(part, float) and math.isnan(part)):
            continue
        if isinstance(part, bytes):
            part = part.decode("utf-8", errors="replace")
        if isinstance(part, float) and part.is_integer():
            part = int(part)
        if isinstance(part, datetime | date):
            part = part.isoformat()
        text = part if isinstance(part, str) else str(part)
        found += text.split(separator) if separator is not None else [text]
    # Vocabulary files have one entry per line, so line breaks become spaces.
    cleaned = (" ".join(text.split()) for text in found)
    return [text.encode("utf-8", errors="replace") for text in cleaned if text]
