"""The explorer's page in a real browser, over a real server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.browser import BrowserError, find_chromium, open_browser
from serving.client import RecommenderClient

pytestmark = pytest.mark.slow

USER = "u5"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        find_chromium()
    except BrowserError as error:
        pytest.skip(str(error))
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(world: Any, start_server: Callable[..., Any]) -> Any:
    return start_server(world.serving / "recommender")


@pytest.fixture(scope="module")
def site(world: Any, server: Any, explore: Callable[..., Any]) -> Any:
    return explore(world.workdir, f"127.0.0.1:{server.port}")


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[RecommenderClient]:
    with RecommenderClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


class Page:
    """What people do on the page, and what they see."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requested: list[str] = []
        self.trouble: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: self.trouble.append(f"dialog {dialog.message}"))

    def open(self, url: str) -> Page:
        self.page.goto(url)
        self.page.wait_for_selector(".items > li")
        return self

    def items(self, at: int = 0) -> list[str]:
        return (
            self.page.locator(".list")
            .nth(at)
            .locator(".items > li")
            .evaluate_all("rows => rows.map(row => row.dataset.item)")
        )

    def texts(self, selector: str, at: int = 0) -> list[str]:
        return self.page.locator(".list").nth(at).locator(selector).all_inner_texts()

    def shows(self, expected: list[str], at: int = 0) -> None:
        """Waits until the list is this one."""
        self.page.wait_for_function(
            "([at, ids]) => JSON.stringify([...document.querySelectorAll('.list')[at]"
            "?.querySelectorAll('.items > li') ?? []].map(row => row.dataset.item)) === ids",
            arg=[at, re.sub(r"\s", "", str(expected)).replace("'", '"')],
        )

    def slide(self, name: str, key: str, times: int = 1) -> None:
        """Moves a slider with the keyboard."""
        slider = self.page.get_by_label(name, exact=False).and_(
            self.page.locator("input[type=range]")
        )
        slider.focus()
        for _ in range(times):
            slider.press(key)

    def weights(self) -> list[float]:
        return self.page.locator("#sliders input").evaluate_all("all => all.map(i => +i.value)")


@pytest.fixture
def visit(browser: Any, site: Any) -> Iterator[Callable[..., Page]]:
    """visit(query, size, dark, url): the page, opened; nothing may have failed on it."""
    opened: list[Page] = []

    def open_page(
        query: str = "", size: dict[str, int] = DESK, dark: bool = False, url: str = site.url
    ) -> Page:
        page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
        page.set_default_timeout(30_000)
        opened.append(Page(page))
        return opened[-1].open(f"{url}/{query}")

    yield open_page
    for page in opened:
        page.page.close()
        assert page.trouble == []
        assert {urlsplit(url).hostname for url in page.requested} <= {"127.0.0.1", None}


def ask(client: RecommenderClient, weights: list[float], **more: Any) -> list[str]:
    return [item for item, _ in client.recommend(more.pop("user", USER), weights, **more).items]


def test_choose_a_user_move_a_slider_see_the_servers_order(
    visit: Callable[..., Page], client: RecommenderClient
) -> None:
    page = visit()
    field = page.page.locator("#user")
    assert field.input_value() == "u0"  # the first known one
    field.fill("u1")
    page.page.wait_for_selector("#user-options [role=option]")
    field.press("ArrowDown")
    field.press("ArrowDown")
    assert field.get_attribute("aria-activedescendant") == "user-options-1"
    field.press("Enter")
    assert field.input_value() == "u10"
    assert field.get_attribute("aria-expanded") == "false"
    weights = [0.5, 1.0, 1.5]  # those that the model chose for the last objective
    assert page.weights() == weights
    page.shows(ask(client, weights, user="u10", n=20))
    before = page.items()
    assert page.texts(".said") == [""] * 20  # nothing has moved yet

    page.slide("exposure", "End")
    now = ask(client, [5.0, 1.0, 1.5], user="u10", n=20)
    page.shows(now)
    assert now != before
    expected = []
    for place, item in enumerate(now):
        moved = before.index(item) - place if item in before else None
        words = {None: "new in the list", 0: ""}
        expected.append(
            words.get(moved) if moved in words else f"{'up' if moved > 0 else 'down'} {abs(moved)}"
        )
    assert page.texts(".said") == expected
    signs = [
        text.replace("up ", "▲").replace("down ", "▼").replace("new in the list", "new")
        for text in expected
    ]
    assert page.texts(".sign") == signs
    (told,) = page.texts(".moves")
    ups = sum(text.startswith("up") for text in expected)
    assert told.startswith(f"▲ {ups} up · ▼ {sum(t.startswith('down') for t in expected)} down")
    for gone in set(before) - set(now):
        assert client.titles([gone])[0][:5] in told or "more" in told
    page.page.wait_for_function(
        "() => document.getElementById('announce').textContent.includes(' up')"
    )
    page.page.wait_for_function("() => document.documentElement.dataset.last !== undefined")
    (calls,) = page.texts(".calls")
    assert re.fullmatch(
        r"serving_default \d+\.\d ms · score_items \d+\.\d ms( · item_titles \d+\.\d ms)? · "
        r"in all \d+\.\d ms",
        calls,
    )
    assert re.match(r"Change to list \d+ ms, median of 1: ", page.page.inner_text("#latency"))


def test_shares_are_told_in_numbers(visit: Callable[..., Page], world: Any) -> None:
    page = visit(f"?user={USER}&w.exposure=0.5&w.click=2&w.conversion=-1")
    known = world.versions[2]
    scores = known.scores(USER)
    for item, shares, score in zip(
        page.items(), page.texts(".shares"), page.texts(".score b"), strict=True
    ):
        parts = scores[int(item[1:])] * [0.5, 2, -1]
        whole = abs(parts).sum()
        found = re.findall(r"(−?\d+) %\s+(−?\d+\.\d\d)", shares.replace("\n", " "))
        for part, (share, value) in zip(parts, found, strict=True):
            assert abs(float(share.replace("−", "-")) - 100 * part / whole) <= 0.51
            assert abs(float(value.replace("−", "-")) - part) <= 0.0051
        assert abs(float(score.replace("−", "-")) - parts.sum()) <= 0.0051
        assert [name in shares for name in known.objectives] == [True] * 3
    # The bar: the same from the zero line to both sides.
    widths = (
        page.page.locator(".items > li .bar")
        .first.locator("span")
        .evaluate_all(
            """all => all.map(({ className, style }) =>
             [className, parseFloat(style.left), parseFloat(style.width)])"""
        )
    )
    style, left, width = widths[2]
    zero = next(at for name, at, _ in widths if name == "zero")
    assert style == "k2"
    assert left + width == pytest.approx(zero, abs=0.01)


def test_a_fast_drag_ends_at_the_last_value(
    visit: Callable[..., Page], client: RecommenderClient
) -> None:
    page = visit(f"?user={USER}")
    before = page.items()
    page.requested.clear()
    page.page.evaluate(
        """() => {
          const slider = document.getElementById("weight-1");
          for (let value = 0; value <= 5; value += 0.05) {
            slider.value = value;
            slider.dispatchEvent(new Event("input"));
          }
          slider.dispatchEvent(new Event("change"));
        }"""
    )
    _, last, _ = page.weights()
    page.shows(ask(client, [0.5, last, 1.5], n=20))
    asked = [url for url in page.requested if url.endswith("/api/recommend")]
    assert len(asked) <= 3, "values in between are skipped"
    # Movements are those since the drag began.
    now = page.items()
    assert [text == "new in the list" for text in page.texts(".said")] == [
        item not in before for item in now
    ]


def test_texts_of_users_and_items_stay_text(visit: Callable[..., Page], world: Any) -> None:
    page = visit("?user=%3Cb%3Eme%3C/b%3E&count=50&seen=shown")
    titles = dict(zip(page.items(), page.texts(".title"), strict=True))
    for item, title in titles.items():
        assert title == (world.versions[2].titles[item] or item)
    assert page.page.locator(".items script, .items img").count() == 0
    assert page.page.title() == "<b>me</b> · csmf explorer"
    page.page.get_by_label("A history of your own").check()
    page.page.fill("#item", "script")
    option = page.page.locator("#item-options [role=option]")
    option.wait_for()
    assert option.inner_text() == "<script>alert(1)</script> i3"
    option.click()
    assert page.page.locator("#picked > li > span").inner_text() == "<script>alert(1)</script>"


def test_a_history_is_put_together(visit: Callable[..., Page], client: RecommenderClient) -> None:
    page = visit("?user=u1&w.exposure=1&w.click=1&w.conversion=1")
    page.page.get_by_label("A history of your own").check()
    page.shows(ask(client, [1, 1, 1], user="", n=20))
    for text, item in (("Title of 17", "i17"), ("i21", "i21")):
        page.page.fill("#item", text)
        page.page.wait_for_selector(f"#item-options [role=option]:has-text('{item}')")
        page.page.press("#item", "Enter")
    page.page.get_by_label("Level that Title of 17 has reached").select_option("click")
    history = [("i17", 1), ("i21", 2)]
    page.shows(ask(client, [1, 1, 1], user="", n=20, history=history))
    first = page.items()[0]
    page.page.locator(".items > li .add").first.click()
    history.append((first, 2))
    expected = ask(client, [1, 1, 1], user="", n=20, history=history)
    page.shows(expected)
    page.page.wait_for_url("**/*history=1%3Ai17*history=2%3Ai21*")
    page.page.reload()
    page.shows(expected)
    assert page.page.locator("#picked > li > span").all_inner_texts()[0] == "Title of 17"
    page.page.locator("#picked button").last.click()
    page.shows(ask(client, [1, 1, 1], user="", n=20, history=history[:2]))


def test_exclusions(visit: Callable[..., Page], client: RecommenderClient, world: Any) -> None:
    page = visit("?user=u11&w.exposure=1&w.click=1&w.conversion=1")
    known = world.versions[2]
    first, second = page.items()[:2]
    page.page.locator(".items > li .drop").first.click()
    page.shows(ask(client, [1, 1, 1], user="u11", n=20, exclude=[first]))
    assert page.items()[0] == second
    assert page.page.locator("#excluded li").count() == 1
    page.page.locator("#excluded button").click()
    page.shows(ask(client, [1, 1, 1], user="u11", n=20))
    assert page.page.locator("#excluded").is_hidden()
    page.page.get_by_label("Exclude seen items").uncheck()
    expected = known.best("u11", [1, 1, 1], seen=True)[:20]
    page.shows(expected)
    seen = {item for item, _ in known.histories["u11"]}
    assert [bool(text) for text in page.texts(".badges")] == [item in seen for item in expected]
    assert "Stored history: 11 events" in page.page.inner_text("#stored summary")
    page.page.locator("#stored summary").click()
    rows = page.page.locator("#stored tbody tr").all_inner_texts()
    newest, level = known.histories["u11"][-1]
    assert rows[0].split("\t") == [known.titles[newest] or newest, known.objectives[level]]


def test_two_versions_side_by_side(visit: Callable[..., Page], world: Any) -> None:
    page = visit(f"?user={USER}&w.exposure=1&w.click=1&w.conversion=1")
    page.page.get_by_label("Compare two versions").check()
    page.page.get_by_text("starting version 1").wait_for()
    weights = [1, 1, 1]
    newest, older = (world.versions[v].best(USER, weights)[:20] for v in (2, 1))
    page.page.set_default_timeout(120_000)
    page.shows(older, at=1)
    assert page.page.get_by_text("starting version 1").count() == 0
    assert page.items(0) == newest
    for at, (mine, other, number) in enumerate(((newest, older, 1), (older, newest, 2))):
        expected = [
            f"#{other.index(item) + 1} in version {number}"
            if item in other
            else f"not in version {number}"
            for item in mine
        ]
        assert page.texts(".badges", at) == expected
        assert page.texts(".answered", at) == [f"answered by version {3 - number}"]
    links = page.page.locator(".lineage").evaluate_all("all => all.map(a => a.pathname)")
    assert links == ["/lineage/2", "/lineage/1"]
    page.slide("click", "Home")
    for at, version in ((0, 2), (1, 1)):
        page.shows(world.versions[version].best(USER, [1, 0, 1])[:20], at)
    page.page.wait_for_url("**/*compare=1*")
    page.page.get_by_label("Compare two versions").uncheck()
    assert page.page.locator(".list").count() == 1


def test_a_version_that_was_deleted(visit: Callable[..., Page], site: Any) -> None:
    page = visit(f"?user={USER}&compare=7")
    page.page.get_by_text("Version 7 of recommender is neither served nor on disk").wait_for()
    link = page.page.locator(".lineage").nth(1)
    assert link.get_attribute("href") == "/lineage/7"
    assert page.items(0)
    options = page.page.locator(".version").nth(1).locator("option").all_inner_texts()
    assert options == ["Newest (2)", "Version 2", "Version 1, on disk", "Version 7, gone"]
    page.page.goto(f"{site.url}/lineage/7")
    assert "No lineage of version 7" in page.page.inner_text("h1")


def test_an_unreachable_server_is_told_and_comes_back(
    world: Any,
    start_server: Callable[..., Any],
    explore: Callable[..., Any],
    visit: Callable[..., Page],
    client: RecommenderClient,
) -> None:
    server = start_server(world.serving / "recommender")
    site = explore(world.workdir, f"127.0.0.1:{server.port}")
    page = visit(f"?user={USER}&w.exposure=1&w.click=1&w.conversion=1", url=site.url)
    banner = page.page.locator("#banner")
    assert banner.is_hidden()
    before = page.items()
    server.stop()
    page.slide("click", "End")
    banner.wait_for()
    text = banner.inner_text()
    assert f"The server at 127.0.0.1:{server.port} cannot be reached." in text
    assert "Trying again every second" in text
    assert "Traceback" not in page.page.content()
    assert page.items() == before, "the last answer stays"
    assert page.page.locator(".list.stale").count() == 1
    assert page.page.inner_text("#server") == "No connection"
    start_server(world.serving / "recommender", server.port)
    banner.wait_for(state="hidden")
    page.page.wait_for_selector(".list:not(.stale)")
    page.shows(ask(client, [1, 5, 1], n=20))


def test_a_workdir_that_is_missing(
    world: Any,
    tmp_path: Path,
    start_server: Callable[..., Any],
    explore: Callable[..., Any],
    visit: Callable[..., Page],
) -> None:
    shutil.copytree(world.workdir, tmp_path / "work")
    server = start_server(tmp_path / "work/serving/recommender", poll_seconds=0)
    shutil.rmtree(tmp_path / "work")
    site = explore(tmp_path / "work", f"127.0.0.1:{server.port}")
    page = visit(f"?user={USER}", url=site.url)
    assert "is missing" in page.page.inner_text("#missing")
    page.shows(world.versions[2].best(USER, [1, 1, 1])[:20])
    assert page.page.locator("#sliders label").all_inner_texts() == [
        "■ objective 1",
        "● objective 2",
        "▲ objective 3",
    ]
    page.page.click("#user")
    page.page.locator("#user-options", has_text="cannot be searched").wait_for()


def test_all_weights_zero(visit: Callable[..., Page]) -> None:
    page = visit(f"?user={USER}&w.exposure=0&w.click=0&w.conversion=0")
    assert "All weights are 0" in page.texts(".moves")[0]
    assert "NaN" not in page.page.inner_text("main")


def test_the_address_holds_what_was_chosen(visit: Callable[..., Page], world: Any) -> None:
    page = visit(f"?user={USER}&count=10&exclude=i7&seen=shown&version=2")
    assert len(page.items()) == 10
    page.page.get_by_role("button", name="Best for click").click()
    page.page.wait_for_url("**/*w.click=2*")
    assert page.weights() == [1, 2, 0]
    pressed = page.page.locator("#presets [aria-pressed=true]").all_inner_texts()
    assert pressed == ["Best for click"]
    best = world.versions[2].best(USER, [1, 2, 0], seen=True)
    items = [item for item in best if item != "i7"][:10]
    page.shows(items)
    again = visit(urlsplit(page.page.url).query.join(["?", ""]))
    again.shows(items)
    assert not again.page.get_by_label("Exclude seen items").is_checked()
    assert again.page.locator("#excluded li").count() == 1


@pytest.mark.parametrize("objectives", [("click",), ("see", "look", "like", "buy")])
def test_other_numbers_of_objectives_on_the_page(
    objectives: tuple[str, ...],
    make_world: Callable[..., Any],
    start_server: Callable[..., Any],
    explore: Callable[..., Any],
    visit: Callable[..., Page],
) -> None:
    other = make_world(objectives)
    server = start_server(other.serving / "recommender")
    site = explore(other.workdir, f"127.0.0.1:{server.port}")
    page = visit(f"?user={USER}", url=site.url)
    assert page.page.locator("#sliders input").count() == len(objectives)
    page.slide(objectives[-1], "End")
    page.shows(other.versions[1].best(USER, [*[1.0] * (len(objectives) - 1), 5.0])[:20])


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("compare", ["", "&compare="])
def test_the_page_fits_the_width(visit: Callable[..., Page], width: int, compare: str) -> None:
    page = visit(f"?user={USER}{compare}", {"width": width, "height": 844})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    # Targets are large enough for fingers (WCAG 2.2: 24 by 24).
    sizes = page.page.locator("button:visible, select:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(box => [box.width, box.height])"
    )
    assert min(min(size) for size in sizes) >= 24


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out(visit: Callable[..., Page], dark: bool) -> None:
    """WCAG AA: at least 4.5 to 1 between each text and what is behind it."""
    page = visit(f"?user={USER}&compare=", dark=dark)
    page.slide("exposure", "End")
    page.page.wait_for_function("() => document.documentElement.dataset.redraws !== undefined")
    worst = page.page.evaluate(
        """() => {
          const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
          const linear = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
          const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
          const behind = (element) => {
            for (; element; element = element.parentElement) {
              const colour = rgb(getComputedStyle(element).backgroundColor);
              if (colour.length === 3 || colour[3] > 0) return colour;
            }
            return [255, 255, 255];
          };
          const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          const found = [];
          while (texts.nextNode()) {
            const element = texts.currentNode.parentElement;
            if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
            // A mark always goes with a name.
            if (element.closest(".mark, script, style, option")) continue;
            const pair = [rgb(getComputedStyle(element).color), behind(element)].map(light);
            pair.sort((a, b) => b - a);
            found.push([(pair[0] + 0.05) / (pair[1] + 0.05), texts.currentNode.data]);
          }
          return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert worst[0] >= 4.5, worst


def test_names_for_screen_readers_and_the_keyboard(visit: Callable[..., Page]) -> None:
    page = visit(f"?user={USER}&exclude=i7")
    nameless = page.page.locator("button, input, select, a").evaluate_all(
        """all => all.filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim()
             || [...(one.labels ?? [])].some((label) => label.textContent.trim())))
             .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert page.page.evaluate("document.documentElement.lang") == "en"
    reached = set()
    for _ in range(40):
        page.page.keyboard.press("Tab")
        reached.add(
            page.page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert {
        "user",
        "weight-0",
        "weight-1",
        "weight-2",
        "exclude-seen",
        "count",
        "compare",
        "version",
        "lineage",
        "drop",
    } <= reached
    # The focus stays on the slider while lists are redrawn, and on a row that moves.
    page.slide("click", "ArrowLeft", times=3)
    assert page.page.evaluate("document.activeElement.id") == "weight-1"
    # In one go: a list that is redrawn meanwhile would leave its old elements without a style.
    patterns = page.page.evaluate(
        """[...document.querySelector(".bar").querySelectorAll("span")]
            .map(one => getComputedStyle(one).backgroundImage)"""
    )
    assert len(set(patterns)) == 3, "told apart without colours"
