"""The `beam` section of a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import BeamSettings
from schemas.settings import ConfigError


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ({}, []),
        ({"runner": "DirectRunner"}, ["--runner=DirectRunner"]),
        ({"options": ["--runner=FlinkRunner"]}, ["--runner=FlinkRunner"]),
        (
            {"runner": "FlinkRunner", "options": ["--parallelism=8"]},
            ["--runner=FlinkRunner", "--parallelism=8"],
        ),
    ],
)
def test_what_beam_is_told(section: dict[str, Any], arguments: list[str]) -> None:
    assert BeamSettings.parse(section).arguments() == arguments


@pytest.mark.parametrize(
    ("section", "error"),
    [
        ({"runner": "FlinkRuner"}, "runner: Input should be .*'FlinkRunner'.*given: 'FlinkRuner'"),
        ({"options": ["parallelism=8"]}, "must begin with --, as in --parallelism=8"),
        (
            {"runner": "FlinkRunner", "options": ["--runner=DirectRunner"]},
            "name the runner once: runner is FlinkRunner, and --runner=DirectRunner",
        ),
        ({"option": []}, "unknown key. Did you mean 'options'"),
    ],
)
def test_what_beam_would_not_understand_is_refused(section: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        BeamSettings.parse(section)
