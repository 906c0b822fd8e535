"""What a probe finds, and the clocks and scales that it reads."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Figure(NamedTuple):
    """One unit cost."""

    row: str  # of the table in docs/scaling.md
    what: str
    unit: str
    value: float


@dataclass(frozen=True)
class Setting:
    """What a probe is given.

    Attributes:
      scale: of all sizes; 1 = those that docs/scaling.md names.
      seed: of everything that is drawn.
      place: a directory that the probes of a part share.
    """

    scale: float
    seed: int
    place: Path

    def size(self, documented: int) -> int:
        """A size at this scale, large enough for every probe to work."""
        return max(512, round(documented * self.scale))


Probe = Callable[[Setting], list[Figure]]


class Traced(NamedTuple):
    """Bytes that Python and NumPy allocated for a call, beside what was there before."""

    kept: float
    peak: float


def cpu_seconds(run: Callable[[], object]) -> float:
    """Processor time of all threads of this process during the call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def traced(run: Callable[[], T]) -> tuple[T, Traced]:
    """(result, memory) of a call; `tracemalloc` must have been started."""
    gc.collect()  # what earlier calls left must not be freed in this one
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    result = run()
    _, peak = tracemalloc.get_traced_memory()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    return result, Traced(after - before, peak - before)


def per_unit(small: tuple[float, float], large: tuple[float, float]) -> float:
    """Slope of the line through two (number of units, cost): without what is there at any size."""
    return (large[1] - small[1]) / (large[0] - small[0])
