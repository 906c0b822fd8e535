"""Which code runs: the version of the package, and the commit if it is a checkout."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """E.g. "0.1.0+gecb35d8", with ".dirty" where files differ from the commit (PEP 440)."""
    released = version("csmf")
    here = Path(__file__)
    try:
        # An installed package may lie inside somebody else's repository, which does not track it.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return released
    return f"{released}+g{commit.replace('-', '.')}"


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
