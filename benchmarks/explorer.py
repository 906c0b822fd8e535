"""`csmf bench explorer`: from a slider to the redrawn list, in a real browser; and its pictures."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.options import FIGURES
from pipeline.options import REPORT_FILE, WORKDIR

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TARGET_MS = 100.0  # median, slider to redrawn list
_WARM_UP = 10  # moves that are not counted
_START_MS = 120_000.0
_STOP_SECONDS = 60.0
_DESK, _PHONE = (1280, 900), (390, 844)
_URL = re.compile(r"http://127\.0\.0\.1:\d+/")
_REDRAWS = "() => Number(document.documentElement.dataset.redraws ?? 0)"
_REDRAWN = "before => Number(document.documentElement.dataset.redraws ?? 0) > before"
_SCROLL_TO_LIST = """() => scrollTo(0, document.getElementById("lists").offsetTop
    - document.querySelector(".weights").offsetHeight - 10)"""
_LAST = "() => JSON.parse(document.documentElement.dataset.last)"


@click.command()
@WORKDIR
@FIGURES
@click.option(
    "--moves",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Of a slider, one after the other.",
)
@click.option(
    "--screenshots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for explorer.png, explorer-phone.png and, of the workdir's report, report.png.",
)
def explorer(workdir: Path, json_path: Path, moves: int, screenshots: Path | None) -> None:
    """Move the sliders of `csmf explore` in Chromium; time each redrawn list."""
    from benchmarks.browser import open_browser
    from pipeline import console
    from schemas.files import write_atomically

    with open_browser() as browser, _running_explorer(workdir) as url:
        page = _open(browser, url, _DESK)
        figures = {
            "chromium": browser.version,
            "cores": len(os.sched_getaffinity(0)),
            "model": _model(page),
            "target_median_ms": TARGET_MS,
        } | _measure(page, moves)
        if screenshots is not None:
            screenshots.mkdir(parents=True, exist_ok=True)
            _take_pictures(browser, url, workdir / REPORT_FILE, screenshots)
    write_atomically(json_path, (json.dumps(figures, indent=2) + "\n").encode())
    console.say(_table(figures))


@contextlib.contextmanager
def _running_explorer(workdir: Path) -> Iterator[str]:
    """Address of the page of a `csmf explore` of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "explore"]
    command += ["--workdir", str(workdir), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := _URL.search(line):
                yield found[0]
                break
        else:
            raise RuntimeError(f"csmf explore --workdir {workdir} has ended without a page")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_STOP_SECONDS)


def _open(browser: Browser, url: str, size: tuple[int, int]) -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(url)
    page.wait_for_selector(".items > li", timeout=_START_MS)
    return page


def _model(page: Page) -> dict[str, Any]:
    """What answers: name, version, size."""
    state = page.evaluate("async () => (await fetch('/api/state')).json()")
    version = state["versions"][0]
    kept = ("version", "model_id", "objectives", "items", "users")
    return {"name": state["model"]} | {key: version[key] for key in kept}


def _measure(page: Page, moves: int) -> dict[str, Any]:
    """Presses arrow keys on one slider after the other and waits for each redrawn list."""
    sliders = page.locator("#sliders input")
    redraws: list[float] = []
    calls: dict[str, list[float]] = {}
    for move in range(-_WARM_UP, moves):
        last = _press(page, sliders.nth(move % sliders.count()))
        if move < 0:
            continue
        redraws.append(last["milliseconds"])
        for call in last["calls"][0]:
            calls.setdefault(call["signature"], []).append(call["ms"])
    return {
        "redraw_ms": _spread(redraws),
        "calls_ms": {signature: _spread(values) for signature, values in calls.items()},
    }


def _press(page: Page, slider: Any) -> dict[str, Any]:
    value, most = (float(slider.evaluate(f"one => one.{name}")) for name in ("value", "max"))
    before = page.evaluate(_REDRAWS)
    slider.press("ArrowLeft" if value > most / 2 else "ArrowRight")
    page.wait_for_function(_REDRAWN, arg=before)
    last: dict[str, Any] = page.evaluate(_LAST)
    return last


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
        "max": round(ordered[-1], 2),
    }


def _take_pictures(browser: Browser, url: str, report: Path, directory: Path) -> None:
    for name, size in (("explorer", _DESK), ("explorer-phone", _PHONE)):
        page = _open(browser, url, size)
        before = page.evaluate(_REDRAWS)
        page.locator("#sliders input").last.press("End")
        page.wait_for_function(_REDRAWN, arg=before)
        if size == _PHONE:
            page.evaluate(_SCROLL_TO_LIST)
        page.screenshot(path=directory / f"{name}.png")
    if report.exists():
        page = browser.new_page(viewport={"width": _DESK[0], "height": _DESK[1]})
        page.goto(report.absolute().as_uri())
        page.screenshot(path=directory / "report.png")


def _table(figures: dict[str, Any]) -> Any:
    from rich.table import Table

    model = figures["model"]
    median, target = figures["redraw_ms"]["median"], figures["target_median_ms"]
    verdict = "met" if median <= target else "missed"
    table = Table(
        "what",
        *(("n", "median", "p95", "max")),
        title=f"Explorer of {model['name']} version {model['version']} ({model['items']} items), "
        f"Chromium {figures['chromium']}, {figures['cores']} cores; milliseconds",
        caption=f"Target: {target:g} ms at the median, {verdict}.",
    )
    rows = {"slider to redrawn list": figures["redraw_ms"]} | figures["calls_ms"]
    for name, spread in rows.items():
        table.add_row(name, *(f"{value:g}" for value in spread.values()))
    return table
