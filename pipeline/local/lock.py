"""One run at a time in a working directory: two of them would spoil each other's artifacts."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from schemas.settings import ConfigError

LOCK_FILE = ".run.lock"  # in the working directory; holds the process id of the run


@contextlib.contextmanager
def exclusive_run(workdir: Path) -> Iterator[None]:
    """Holds the directory; the kernel lets go of it when the process ends, however it does.

    Args:
      workdir: must exist.

    Raises:
      ConfigError: another run holds it; the text says which process.
    """
    # Not truncated by opening: it may be another run's.
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"a run is under way in {workdir} (process {file.read().strip() or 'just started'})"
                ", and two at a time would spoil each other's artifacts. Wait for its end, or give "
                "this one another --workdir."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
