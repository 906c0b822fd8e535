"""A log file for every node of a run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_OURS = "csmf"  # what we tell people; it does not propagate to the root logger


class NodeLogs(logging.Handler):
    """Writes what is logged at INFO and above into the file of the node that runs.

    Attributes:
      directory: holds `<node>.log`; made with the first of them.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(logging.INFO)
        self.directory = directory
        self._file: TextIO | None = None
        formatter = logging.Formatter(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    @contextlib.contextmanager
    def attached(self) -> Iterator[NodeLogs]:
        """Listens to all loggers. Handlers that are there already keep their own levels."""
        root, ours = logging.getLogger(), logging.getLogger(_OURS)
        loggers = [root] if ours.propagate else [root, ours]
        level = root.level
        for logger in loggers:
            logger.addHandler(self)
        root.setLevel(min(level, logging.INFO))
        try:
            yield self
        finally:
            root.setLevel(level)
            for logger in loggers:
                logger.removeHandler(self)
            self.end(keep=True)

    def begin(self, node: str) -> None:
        """From now on, what is logged belongs to this node."""
        self.end(keep=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._file = (self.directory / f"{node}.log").open("w", encoding="utf-8")

    def end(self, keep: bool) -> None:
        """The node has ended; its file is deleted if there is nothing to keep."""
        with self._locked():
            if self._file is not None:
                self._file.close()
                if not keep:
                    Path(self._file.name).unlink()
            self._file = None

    def fail(self, error: BaseException) -> None:
        """Writes the traceback of what ended the run into the file of the node."""
        self.handle(
            logging.LogRecord(
                _OURS,
                logging.ERROR,
                __file__,
                0,
                "the node did not end well",
                None,
                (type(error), error, error.__traceback__),
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record; what is logged between two nodes is left out."""
        if self._file is None:
            return
        try:
            self._file.write(self.format(record) + "\n")
            self._file.flush()
        except Exception:  # as every handler of the standard library
            self.handleError(record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()
