"""A small model with trained-like towers, pushed twice as the pipeline pushes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

# 25 users u0.., 40 items i0.., user features age and gender.
from tests.models.conftest import exported, shop

__all__ = ["exported", "shop"]  # fixtures


@pytest.fixture(scope="session")
def pushed(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with versions 1 and 2 of both flavours. Read only."""
    from components.pusher.push import publish

    workdir = tmp_path_factory.mktemp("pushed")
    for _ in range(2):
        publish(exported.directory, workdir / "serving", "recommender")
    return workdir


@pytest.fixture
def workdir(pushed: Path, tmp_path: Path) -> Path:
    """A copy of `pushed` to write to."""
    return Path(shutil.copytree(pushed, tmp_path / "work"))
