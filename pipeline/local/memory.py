"""Memory of this process and of all that it started, watched while something runs."""

from __future__ import annotations

import threading
import time

import psutil

_SAMPLE_SECONDS = 0.1
_CHILDREN_SECONDS = 1.0  # finding them reads the state of every process of the machine


class MemoryWatch:
    """Samples the resident memory of the process tree in a thread, from `with` to its end.

    Resident sizes are added up: pages that several processes share count once for each.
    """

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._children: list[psutil.Process] = []
        self._looked = 0.0  # monotonic seconds of the last search for children
        self._peak = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self) -> None:
        """Forgets the peak of what ran before."""
        with self._lock:
            self._peak, self._looked = 0, 0.0
        self._sample()

    def peak(self) -> int:
        """Most bytes since `begin`."""
        self._sample()
        with self._lock:
            return self._peak

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= _CHILDREN_SECONDS:
                self._children = self._own.children(recursive=True)
                self._looked = now
            used = sum(_resident(process) for process in (self._own, *self._children))
            self._peak = max(self._peak, used)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended since, or became somebody else's
        return 0
