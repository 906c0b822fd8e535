"""A real browser, for measurements and pictures of pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",  # it opens nothing but our own pages, often as root of a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class BrowserError(RuntimeError):
    """There is no browser on this machine; the text says how to get one."""


def find_chromium() -> str:
    """Path of Chromium or Chrome.

    Raises:
      BrowserError: there is none on the PATH.
    """
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    raise BrowserError(
        f"no browser: looked for {', '.join(_NAMES)} on the PATH. "
        "On Debian: sudo apt-get install chromium"
    )


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser.

    Raises:
      BrowserError: there is none.
    """
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
