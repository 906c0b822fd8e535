"""Measurements in processes of their own, and the machine they ran on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_ANSWER = "measured: "  # before the JSON; libraries may print other lines


def machine() -> dict[str, Any]:
    """What the figures of a benchmark were measured on."""
    return {
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def measured_by(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m MODULE ARGUMENTS` tells by `answer`.

    Raises:
      RuntimeError: it failed, or told nothing; the text ends with what it printed as errors.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    if done.returncode or not answers:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    measured: dict[str, Any] = json.loads(answers[-1].removeprefix(_ANSWER))
    return measured


def answer(measured: dict[str, Any]) -> None:
    """Tells `measured_by` the figures."""
    print(_ANSWER + json.dumps(measured))


def resident_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)
