from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.browser import BrowserError, find_chromium, open_browser
from pipeline.report.render import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

# Boxes of texts of one drawing that lie on each other by more than a hair.
OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map(
      t => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([a, p], i) => texts.slice(i + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 2 && high > 4) found.push(a + " | " + b);
    }));
  }
  return found;
}"""
# Texts that stick out of their drawing.
CUT_OFF = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(text => {
    const t = text.getBoundingClientRect();
    return t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 1;
  }).map(text => text.textContent);
})"""


@pytest.fixture
def opened(whole_kit: Any) -> Iterator[tuple[Page, list[str]]]:
    """The page in a browser, and everything the browser complained of or asked for."""
    try:
        find_chromium()
    except BrowserError as error:
        pytest.skip(str(error))
    path = write_report(whole_kit.recorder.path, None, whole_kit.recorder.root / "report.html")
    with open_browser() as browser:
        context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
        page = context.new_page()
        heard: list[str] = []
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: heard.append(dialog.message))
        page.on("request", lambda request: heard.append(request.url))
        page.goto(path.as_uri())
        yield page, heard


def test_it_opens_offline_and_runs_nothing(opened: tuple[Page, list[str]]) -> None:
    page, heard = opened
    assert [url for url in heard if not url.endswith("/report.html")] == []
    assert page.locator("script").count() == 0
    assert page.get_by_text("<script>alert('x')</script>").count() > 0


def test_no_label_covers_another(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    assert page.evaluate(OVERLAPS) == []
    assert page.evaluate(CUT_OFF) == []


def test_it_fits_a_phone(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    page.set_viewport_size({"width": 375, "height": 700})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375


def test_contents_lead_to_every_section(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    links = page.locator("nav a")
    assert links.count() == page.locator("main section").count() == 11
    for place in range(links.count()):
        target = str(links.nth(place).get_attribute("href"))
        assert page.locator(target).count() == 1


def test_assistive_technology_gets_pictures_and_tables(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    pictures = page.get_by_role("img")
    assert pictures.count() == page.locator("figure").count()
    page.locator("details").first.locator("summary").click()
    assert page.get_by_role("table", name="Input files").is_visible()
