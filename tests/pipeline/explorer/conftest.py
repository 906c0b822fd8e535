"""A servable whose every score is known, pushed twice, and the explorer over a real server."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

N_ITEMS, TOP_K = 40, 30
OBJECTIVES = ("exposure", "click", "conversion")
# What people may call an item must stay text.
ODD_TITLES = {
    3: "<script>alert(1)</script>",
    4: '<img src=x onerror="document.title=1">',
    5: "Ünïcode & “quotes” 😀",
    6: "",
}


@dataclass(frozen=True)
class Knowledge:
    """What a servable knows, and so what it must answer.

    The score of objective k is `table[item, k]` times 1 + a quarter for every event of the user's
    history that reaches level k. What is no item of the model counts for nothing.
    """

    table: np.ndarray  # [N_ITEMS, K]
    histories: dict[str, list[tuple[str, int]]]
    objectives: tuple[str, ...]
    titles: dict[str, str] = field(default_factory=dict)

    def scores(self, user: str, history: list[tuple[str, int]] = ()) -> np.ndarray:
        """[N_ITEMS, K] of all items."""
        events = list(history) or self.histories.get(user, [])
        levels = [level for item, level in events if item in self.titles]
        reaching = [sum(level >= k for level in levels) for k in range(self.table.shape[1])]
        return self.table * (1 + 0.25 * np.array(reaching))

    def best(
        self,
        user: str,
        weights: list[float],
        history: list[tuple[str, int]] = (),
        exclude: tuple[str, ...] = (),
        seen: bool = False,
    ) -> list[str]:
        """Ids of the items to answer with, best first."""
        fused = self.scores(user, history) @ np.array(weights)
        events = list(history) or self.histories.get(user, [])
        hidden = {*exclude} | (set() if seen else {item for item, _ in events})
        return [f"i{row}" for row in np.argsort(-fused) if f"i{row}" not in hidden]


def know(seed: int, objectives: tuple[str, ...] = OBJECTIVES, negative: bool = False) -> Knowledge:
    """Random scores, of which none are so near that rounding changes their order."""
    table = np.random.default_rng(seed).random((N_ITEMS, len(objectives)))
    table -= 0.5 if negative else 0.0
    histories = {
        f"u{n}": [(f"i{(7 * n + step) % N_ITEMS}", step % len(objectives)) for step in range(n)]
        for n in range(12)
    }
    titles = {f"i{row}": ODD_TITLES.get(row, f"Title of {row}") for row in range(N_ITEMS)}
    return Knowledge(table.astype(np.float32), histories, objectives, titles)


def export_model(known: Knowledge, directory: Path, weights: dict[str, list[float]]) -> None:
    """Writes it with the real exporter; only towers and vocabularies are replaced by tables."""
    import tensorflow as tf

    from models.catalogue import Catalogue
    from models.export import export
    from models.recommender import Profiles
    from models.settings import IndexSettings
    from schemas import names

    vocabularies = directory / "vocabularies"
    vocabularies.mkdir(parents=True)
    users = list(known.histories)
    ids = {"users": users, "items": [f"i{row}" for row in range(N_ITEMS)]}
    for name, entries in ids.items():
        (vocabularies / name).write_text("".join(f"{entry}\n" for entry in entries))

    class Lookup(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = {
                key: tf.lookup.StaticVocabularyTable(
                    tf.lookup.TextFileInitializer(
                        str(vocabularies / name),
                        tf.string,
                        tf.lookup.TextFileIndex.WHOLE_LINE,
                        tf.int64,
                        tf.lookup.TextFileIndex.LINE_NUMBER,
                    ),
                    1,
                )
                for key, name in ((names.USER_ID, "users"), (names.ITEM_ID, "items"))
            }

        def __call__(self, inputs: dict[str, tf.SparseTensor]) -> dict[str, tf.SparseTensor]:
            return {key: self.tables[key].lookup(value) for key, value in inputs.items()}

    class Towers(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            k = known.table.shape[1]
            rows = np.vstack([known.table, np.zeros([1, k])]).astype(np.float32)
            self.weights = {"table": tf.Variable(rows)}
            self.owners = {"table": np.arange(k)}
            self.spec = SimpleNamespace(towers=SimpleNamespace(history_length=1000))

        def block_sizes(self) -> list[int]:
            return [1] * known.table.shape[1]

        def item_blocks(self, rows: tf.Tensor, features: Any) -> tf.Tensor:
            return tf.gather(self.weights["table"], tf.where(rows < 0, N_ITEMS, rows))

        def user_blocks(self, inputs: Any) -> tf.Tensor:
            levels = tf.range(known.table.shape[1])
            reaching = inputs.history_levels[:, :, None] >= levels
            events = tf.cast(reaching & (inputs.history_items >= 0)[:, :, None], tf.float32)
            return 1.0 + 0.25 * tf.reduce_sum(events, axis=1)

    stored = [known.histories[user] for user in users]
    profiles = Profiles(
        offsets=np.cumsum([0, *map(len, stored), 0]).astype(np.int64),
        items=np.array([int(item[1:]) for row in stored for item, _ in row], np.int32),
        levels=np.array([level for row in stored for _, level in row], np.int32),
        features={},
    )
    lookup = Lookup()
    transform = SimpleNamespace(
        transform_features_layer=lambda: lookup,
        raw_feature_spec=lambda: {key: tf.io.VarLenFeature(tf.string) for key in lookup.tables},
        vocabulary_by_name=lambda name: [entry.encode() for entry in ids[name]],
    )
    catalogue = Catalogue(
        np.array([item.encode() for item in ids["items"]], object),
        np.array([known.titles[item].encode() for item in ids["items"]], object),
    )
    (directory / "model").mkdir()
    export(
        directory / "model",
        Towers(),
        transform,
        {},
        catalogue,
        profiles,
        IndexSettings(top_k=TOP_K),
        list(known.objectives),
        weights,
    )


PRESETS = {"click": [1.0, 2.0, 0.0], "conversion": [0.5, 1.0, 1.5]}


@dataclass(frozen=True)
class World:
    """A workdir with pushed versions, and what each of them knows."""

    workdir: Path
    versions: dict[int, Knowledge]

    @property
    def serving(self) -> Path:
        return self.workdir / "serving"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Versions 1 and 2. Read only."""
    from components.pusher.push import publish

    workdir = tmp_path_factory.mktemp("explorer") / "work"
    known = {1: know(1), 2: know(2)}
    for version, knowledge in known.items():
        made = tmp_path_factory.mktemp(f"export{version}")
        export_model(knowledge, made, PRESETS)
        publish(made / "model", workdir / "serving", "recommender")
    return World(workdir, known)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    """make_world(objectives, negative): another model, as version 1 of a workdir of its own."""
    from components.pusher.push import publish

    def make(objectives: tuple[str, ...], negative: bool = False) -> World:
        known = know(3, objectives, negative)
        export_model(known, tmp_path / "export", {})
        publish(tmp_path / "export" / "model", tmp_path / "work" / "serving", "recommender")
        return World(tmp_path / "work", {1: known})

    return make


@dataclass
class Site:
    """A running explorer."""

    url: str

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of an answer."""
        return self._open(urllib.request.Request(self.url + path, headers=headers))

    def recommend(self, **query: Any) -> tuple[int, Any]:
        """Status and JSON of a list."""
        return self.post(json.dumps(query).encode(), **{"Content-Type": "application/json"})

    def post(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Status and JSON of /api/recommend."""
        return self._open(
            urllib.request.Request(self.url + "/api/recommend", data=body, headers=headers)
        )

    def _open(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, body, kind = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            status, body, kind = error.code, error.read(), error.headers
        text = body.decode()
        return status, json.loads(text) if "json" in kind["Content-Type"] else text


@dataclass
class _Running:
    site: Site
    servers: Any
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


def _start(workdir: Path, address: str | None, model: str | None) -> _Running:
    from aiohttp import web

    from pipeline.explorer.app import make_app
    from pipeline.explorer.servers import Servers

    servers = Servers(workdir, address, model)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> int:
        runner = web.AppRunner(make_app(workdir, servers))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner.addresses[0][1]

    port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    return _Running(Site(f"http://127.0.0.1:{port}"), servers, loop, thread)


@pytest.fixture(scope="module")
def explore() -> Iterator[Callable[..., Site]]:
    """explore(workdir, address=None, model=None): an explorer in this process."""
    running: list[_Running] = []

    def start(workdir: Path, address: str | None = None, model: str | None = None) -> Site:
        running.append(_start(workdir, address, model))
        return running[-1].site

    yield start
    for one in running:
        one.loop.call_soon_threadsafe(one.loop.stop)
        one.thread.join()
        one.servers.close()


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Any]]:
    """start_server(base, port=0): the real server of the newest version, in this process."""
    from serving.options import ServerOptions
    from serving.server import ModelServer

    servers: list[ModelServer] = []

    def start(base: Any, port: int = 0, **options: Any) -> ModelServer:
        given = {"host": "127.0.0.1", "port": port, "poll_seconds": 0.1} | options
        servers.append(ModelServer(ServerOptions(models={"recommender": base}, **given)))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
