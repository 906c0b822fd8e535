"""`csmf bench explorer` on a small model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.browser import BrowserError, find_chromium
from benchmarks.explorer import _spread, explorer


def test_spreads() -> None:
    assert _spread([3.0, 1.0, 2.0]) == {"n": 3, "median": 2.0, "p95": 3.0, "max": 3.0}
    hundred = [float(value) for value in range(100, 0, -1)]
    assert _spread(hundred) == {"n": 100, "median": 50.5, "p95": 96.0, "max": 100.0}


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:])
    return width, height


@pytest.mark.slow
def test_figures_and_pictures(world: Any, tmp_path: Path) -> None:
    try:
        find_chromium()
    except BrowserError as error:
        pytest.skip(str(error))
    (world.workdir / "report.html").write_text("<!doctype html><title>A report</title><p>Hello")
    path, pictures = tmp_path / "out.json", tmp_path / "images"
    arguments = ["--workdir", str(world.workdir), "--json", str(path), "--moves", "6"]
    done = CliRunner().invoke(explorer, [*arguments, "--screenshots", str(pictures)])
    assert done.exit_code == 0, done.output
    figures = json.loads(path.read_text())
    assert figures["redraw_ms"]["n"] == 6
    assert 0 < figures["redraw_ms"]["median"] <= figures["redraw_ms"]["max"]
    assert {"serving_default", "score_items"} <= set(figures["calls_ms"])
    assert figures["model"]["version"] == 2
    assert figures["model"]["items"] == 40
    assert figures["chromium"]
    assert size_of(pictures / "explorer.png") == (1280, 900)
    assert size_of(pictures / "explorer-phone.png") == (390, 844)
    assert (pictures / "report.png").exists()
