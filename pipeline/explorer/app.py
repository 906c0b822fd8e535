"""The HTTP side of the explorer: one page, its files, and the JSON that it asks for."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web

from pipeline import console
from pipeline.explorer.errors import ExplorerError
from pipeline.explorer.explorer import Explorer, Query
from pipeline.explorer.servers import Servers
from pipeline.options import METADATA_FILE
from schemas.settings import ConfigError

_LOG = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_STATIC = Path(__file__).parent / "static"
_THREADS = 8  # calls that wait for a server at the same time
_MAX_BODY_BYTES = 2**20
_MAX_SEARCH = 200
# A page on another site could rebind its name to this machine; its requests name that site.
_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_OURS_ALONE = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_PORT = re.compile(r":\d+$")
# The page of a lineage is one document with its style inside.
_DOCUMENT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
_ERROR_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>No lineage</title>
<style>:root {{color-scheme: light dark}} body {{font: 16px/1.5 system-ui; margin: 2rem}}</style>
<h1>No lineage of version {version}</h1><p>{text}</p><p><a href="/">Back to the explorer</a></p>
</html>
"""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(workdir: Path, port: int, address: str | None, model: str | None) -> None:
    """Serves the page until interrupted.

    Args:
      workdir: of the runs.
      port: on this machine; 0 picks a free one.
      address: host:port of the gRPC server; None = the workdir's, or one is started.
      model: name of the served model, None = the only one.

    Raises:
      ConfigError: nothing was pushed there, or the port is taken.
    """
    servers = Servers(workdir, address, model)
    try:
        asyncio.run(_serve(make_app(workdir, servers), port))
    finally:
        servers.close()


async def _serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, _HOST, port).start()
        except OSError as error:
            raise ConfigError(
                f"port {port} of this machine cannot be used: {error.strerror}. "
                "Choose another one with --port, or any free one with --port 0."
            ) from error
        console.say(f"Explorer: http://{_HOST}:{runner.addresses[0][1]}/ (Ctrl-C ends it)")
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()


def make_app(workdir: Path, servers: Servers) -> web.Application:
    """The application; `servers` is closed by the caller, after it."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_guard])
    api = _Api(workdir, Explorer(workdir, servers))
    app.router.add_get("/", api.page)
    app.router.add_static("/static", _STATIC)
    app.router.add_get("/api/state", api.state)
    app.router.add_get("/api/users", api.users)
    app.router.add_get("/api/items", api.items)
    app.router.add_get("/api/history", api.history)
    app.router.add_post("/api/recommend", api.recommend)
    app.router.add_get(r"/lineage/{version:\d{1,19}}", api.lineage)
    app.on_cleanup.append(api.close)
    return app


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Keeps other sites out, and turns errors into texts."""
    if _PORT.sub("", request.host).strip("[]") not in _HOSTS:
        response: web.StreamResponse = _failed(
            HTTPStatus.FORBIDDEN, f"The explorer answers only as {_HOST} or localhost."
        )
    else:
        response = await _answered(request, handler)
    if not response.prepared:
        headers = response.headers
        headers.setdefault("Content-Security-Policy", _OURS_ALONE)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cache-Control"] = "no-cache"  # a new version of the package is seen at once
    return response


async def _answered(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ExplorerError as error:
        return _failed(error.status, str(error))
    except web.HTTPException as error:
        return _failed(HTTPStatus(error.status), f"{request.path}: {error.reason}")
    except Exception:  # the page shows a text, never a stack trace
        _LOG.exception("%s %s", request.method, request.path)
        return _failed(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "The explorer has failed at this request. What happened is in its terminal.",
        )


class _Api:
    def __init__(self, workdir: Path, explorer: Explorer) -> None:
        self._workdir = workdir
        self._explorer = explorer
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="explorer")

    async def close(self, app: web.Application) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_STATIC / "index.html")

    async def state(self, request: web.Request) -> web.Response:
        return await self._json(self._explorer.state)

    async def users(self, request: web.Request) -> web.Response:
        return await self._json(self._explorer.users, _search_of(request), _version_of(request))

    async def items(self, request: web.Request) -> web.Response:
        return await self._json(self._explorer.items, _search_of(request), _version_of(request))

    async def history(self, request: web.Request) -> web.Response:
        user = request.query.get("user", "")
        return await self._json(self._explorer.history, user, _version_of(request))

    async def recommend(self, request: web.Request) -> web.Response:
        # A form of another site can send any text, but not under this name.
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(reason="send application/json")
        try:
            query = Query.parse(await request.json())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ExplorerError(f"This is no JSON: {error}") from error
        except ConfigError as error:
            raise ExplorerError(str(error)) from error
        return await self._json(self._explorer.recommend, query)

    async def lineage(self, request: web.Request) -> web.Response:
        from pipeline.lineage.html import page
        from pipeline.metadata.store import MetadataError

        version = int(request.match_info["version"])
        try:
            text = await self._run(
                page, self._workdir / METADATA_FILE, version, self._explorer.model
            )
            status = HTTPStatus.OK
        except MetadataError as error:
            text = _ERROR_PAGE.format(version=version, text=html.escape(str(error)))
            status = HTTPStatus.NOT_FOUND
        headers = {"Content-Security-Policy": _DOCUMENT}
        return web.Response(text=text, content_type="text/html", status=status, headers=headers)

    async def _json(self, call: Callable[..., Any], *args: Any) -> web.Response:
        return web.json_response(await self._run(call, *args))

    async def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


def _search_of(request: web.Request) -> str:
    return request.query.get("text", "")[:_MAX_SEARCH]


def _version_of(request: web.Request) -> int | None:
    text = request.query.get("version", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ExplorerError(f"version={text}: expected a number, or nothing for the newest")
    return int(text)


def _failed(status: HTTPStatus, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
