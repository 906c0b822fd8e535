"""Numbers as people read them."""

from __future__ import annotations

import math

NOTHING = "–"
_MINUTE, _HOUR = 60.0, 3600.0
_UNIT = 1024.0


def count(value: float) -> str:
    """A number of things, e.g. 100,000."""
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def score(value: float | None) -> str:
    """A metric, e.g. 0.4890."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.4f}"


def share(value: float | None) -> str:
    """A part of a whole, e.g. 12.3 %."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def change(value: float, before: float) -> str:
    """How much more or less than before, e.g. +12.3 %."""
    return NOTHING if before == 0 else f"{100 * (value / before - 1):+.1f} %"


def times(value: float, of: float) -> str:
    """How many times something else, e.g. 2.26 x."""
    return NOTHING if of == 0 else f"{value / of:.2f} ×"


def seconds(value: float) -> str:
    """A duration, e.g. 3.2 s or 4 min 05 s."""
    if round(value, 1) < _MINUTE:
        return f"{value:.1f} s"
    if round(value) < _HOUR:
        return f"{round(value) // 60} min {round(value) % 60:02d} s"
    return f"{round(value) // 3600} h {round(value) % 3600 // 60:02d} min"


def memory(value: int | None) -> str:
    """An amount of memory, e.g. 1.4 GiB."""
    if value is None:
        return NOTHING
    return f"{value / _UNIT**3:.2f} GiB" if value >= _UNIT**3 else f"{value / _UNIT**2:.0f} MiB"


def weights(values: list[float]) -> str:
    """Request weights in funnel order, e.g. 1 : 0.2 : 0."""
    return " : ".join(f"{value:g}" for value in values)


def clipped(text: str, length: int = 120) -> str:
    """The beginning of a text that may be long, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
