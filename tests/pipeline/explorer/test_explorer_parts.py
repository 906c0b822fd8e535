"""Parts of the explorer that need no server: search, merging, guards, what a missing one means."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.browser import BrowserError, find_chromium
from models import preprocessing
from pipeline.explorer.catalogue import Catalogue, Vocabulary
from pipeline.explorer.explorer import _merge
from pipeline.explorer.servers import Servers
from schemas import names
from schemas.settings import ConfigError
from serving.client import ItemScores
from tests.pipeline.metadata.recorder import Recorder, Recording


def test_a_search_puts_ids_before_titles_and_the_start_before_the_rest() -> None:
    vocabulary = Vocabulary(
        ["9", "42", "142", "7", "420"], ["No 42", "Zebra", "Aardvark", "42nd Street", "x"]
    )
    assert [found.id for found in vocabulary.search("42", 9).found] == [
        "42",
        "420",
        "7",
        "9",
        "142",
    ]
    assert [found.id for found in vocabulary.search("  AARD ", 9).found] == ["142"]
    matches = vocabulary.search("", 2)
    assert [found.id for found in matches.found] == ["9", "42"]
    assert matches.total == 5
    assert vocabulary.search("nowhere", 2).total == 0
    assert "420" in vocabulary
    assert "4" not in vocabulary


def test_a_large_vocabulary_is_searched_at_once() -> None:
    import time

    ids = [f"item-{number:06d}" for number in range(200_000)]
    vocabulary = Vocabulary(ids, [f"Title {number}" for number in range(200_000)])
    started = time.perf_counter()
    assert vocabulary.search("Title 199999", 20).total == 1
    assert vocabulary.search("", 20).total == 200_000
    assert time.perf_counter() - started < 2.0


def test_titles_are_asked_for_once_and_in_pieces(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(ids: Any) -> list[str]:
        asked.append(len(ids))
        return [f"T{id_}" for id_ in ids]

    (tmp_path / "assets").mkdir()
    ids = [str(number) for number in range(12_000)]
    (tmp_path / names.ITEMS_FILE).write_text("\n".join(ids) + "\n")
    catalogue = Catalogue(tmp_path)
    assert catalogue.titles(["3", "4", "3"], ask) == ["T3", "T4", "T3"]
    items = catalogue.items(ask)
    assert items is not None
    assert len(items.search("T11999", 5).found) == 1
    assert catalogue.items(ask) is items
    assert asked == [2, 5000, 5000, 1998]
    assert catalogue.users is None


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / names.USERS_FILE).write_bytes(b"a\xffb\nn\xc3\xb6\n")
    users = Catalogue(tmp_path).users
    assert users is not None
    assert [found.id for found in users.search("", 5).found] == ["a\ufffdb", "nö"]


@pytest.mark.parametrize("manifest", ["", "[]", "{broken"])
def test_a_manifest_that_says_nothing(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / names.MANIFEST_FILE).write_text(manifest)
    assert Catalogue(tmp_path).manifest == {}
    assert Catalogue(None).manifest == {}


def test_vocabularies_are_named_as_transform_names_them() -> None:
    assert f"assets/{preprocessing.USER_VOCABULARY}" == names.USERS_FILE
    assert f"assets/{preprocessing.ITEM_VOCABULARY}" == names.ITEMS_FILE


def merged(best: list[float], seen: list[float]) -> list[tuple[str, bool]]:
    scores = np.array([*best, *seen], np.float32)
    places = _merge(
        [f"b{n}" for n in range(len(best))],
        [f"s{n}" for n in range(len(seen))],
        ItemScores("m", 1, scores[:, None], scores),
        [1.0],
    )
    return [(place.item, place.seen) for place in places]


def test_seen_items_are_put_before_the_first_that_scores_less() -> None:
    assert merged([3, 2, 1], [2.5, 9, 0.5]) == [
        ("s1", True),
        ("b0", False),
        ("s0", True),
        ("b1", False),
        ("b2", False),
        ("s2", True),
    ]
    # The model's own order stays, also where its approximate scores order it otherwise.
    assert merged([2, 3, 1], [2.5]) == [("s0", True), ("b0", False), ("b1", False), ("b2", False)]
    assert merged([], [1, 2]) == [("s1", True), ("s0", True)]
    assert merged([1], []) == [("b0", False)]


# --- without a server -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory, explore: Callable[..., Any]) -> Any:
    """An explorer whose server is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return explore(tmp_path_factory.mktemp("missing") / "workdir", f"127.0.0.1:{port}")


def test_the_page_and_its_files_need_no_server(lonely: Any) -> None:
    status, page = lonely.get("/")
    assert status == 200
    for path in ("explorer.css", "explorer.js", "api.js", "lists.js", "combobox.js", "icon.svg"):
        status, text = lonely.get(f"/static/{path}")
        assert status == 200
        for host in ("http://", "https://"):
            assert host not in text.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in page
    # The policy forbids what would have to be inside the page.
    assert "<style" not in page
    assert " style=" not in page
    assert " onclick" not in page


def test_a_server_that_is_not_there(lonely: Any) -> None:
    status, answer = lonely.get("/api/state")
    assert status == 503
    assert "cannot be reached" in answer["error"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_names_that_were_rebound_to_this_machine_are_refused(lonely: Any, host: str) -> None:
    status, answer = lonely.get("/", Host=host)
    assert status == 403
    assert "only as 127.0.0.1 or localhost" in answer["error"]


def test_this_machine_has_several_names(lonely: Any) -> None:
    port = lonely.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"[::1]:{port}", "localhost:9000", "localhost"):
        assert lonely.get("/", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b"\xff\xfe{}", "application/json", 400),
        (b'{"user": "' + b"x" * 2**21 + b'"}', "application/json", 413),
    ],
)
def test_bodies_that_are_refused(lonely: Any, body: bytes, kind: str, status: int) -> None:
    found, answer = lonely.post(body, **{"Content-Type": kind})
    assert found == status
    assert answer["error"]
    assert "Traceback" not in answer["error"]


def test_paths_that_do_not_exist(lonely: Any) -> None:
    for path in ("/nothing", "/static/../app.py", "/static/%2e%2e/app.py", "/lineage/one"):
        status, answer = lonely.get(path)
        assert status in (403, 404)
        assert "class" not in str(answer)


def test_headers_of_all_answers(lonely: Any) -> None:
    import urllib.request

    for path in ("/", "/static/explorer.js"):
        with urllib.request.urlopen(lonely.url + path) as response:
            assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Access-Control-Allow-Origin"] is None


def test_the_lineage_of_a_version(tmp_path: Path, explore: Callable[..., Any]) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(Recording("run-1", version=1))
    site = explore(recorder.path.parent, "127.0.0.1:1")
    status, page = site.get("/lineage/1")
    assert status == 200
    assert "recommender version 1" in page
    assert "<script" not in page
    status, page = site.get("/lineage/2")
    assert status == 404
    assert "no push of version 2" in page
    assert "Traceback" not in page


def test_nothing_to_explore(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pushed model under .* Run: csmf run"):
        Servers(tmp_path / "nowhere", None, None)


def test_a_machine_without_a_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrowserError, match="sudo apt-get install chromium"):
        find_chromium()
