"""The numbered directories of a served model, as TensorFlow Serving reads them."""

from __future__ import annotations

from pathlib import Path

_MAX_VERSION = 2**63 - 1  # TensorFlow Serving reads the directory name as an int64


def versions_in(base: Path) -> dict[int, list[Path]]:
    """Returns version -> its directories (two names can mean one number: "7" and "007")."""
    found: dict[int, list[Path]] = {}
    if not base.is_dir():
        return found
    for entry in base.iterdir():
        name = entry.name
        if name.isascii() and name.isdigit() and entry.is_dir() and int(name) <= _MAX_VERSION:
            found.setdefault(int(name), []).append(entry)
    return found


def newest_version(base: Path) -> Path | None:
    """Returns the directory of the highest version, None if there is none."""
    found = versions_in(base)
    return min(found[max(found)]) if found else None
