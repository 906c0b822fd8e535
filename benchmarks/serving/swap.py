"""Hot swaps under load, between two models whose answers cannot be confused."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.processes import BenchmarkError, Server, our_server, start_generating
from benchmarks.serving.setting import Setting
from benchmarks.serving.world import MODEL, OTHER, link_version
from schemas import names
from serving.client import RecommenderClient

_CLIENTS = 16
_EVERY_SECONDS = 2.0
_SETTLED = 3  # swaps after which memory should not grow any more
_PAUSE_SECONDS = 1.0  # of a version that serves, before the next is published
_SAMPLE_SECONDS = 0.2
_LOAD_SECONDS = 120.0


class _Versions:
    """Publishes one model and the other in turn: odd versions are MODEL, even ones OTHER."""

    prefixes = (OTHER, "i")  # how item ids start, by version modulo 2

    def __init__(self, setting: Setting, base: Path) -> None:
        self._sources = [
            setting.files.servable(name) / names.SCANN_FLAVOUR for name in (OTHER, MODEL)
        ]
        self._base = base
        self.newest = 0

    def publish(self) -> None:
        """Adds the next version to the base path."""
        self.newest += 1
        link_version(self._sources[self.newest % 2], self._base, self.newest)


def swap(setting: Setting) -> dict[str, Any]:
    """Every answer is checked against the version it names, while versions come in two ways.

    First one is published every two seconds, whether or not the last one serves yet: what is
    overtaken while it loads never serves. Then as many are swapped in for sure, each published
    when the one before serves; the memory is that of these.
    """
    base = setting.workdir / "swap" / "base"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    versions = _Versions(setting, base)
    versions.publish()
    swaps = int(setting.swap_seconds // _EVERY_SECONDS)
    rss: list[float] = []
    with (
        our_server({MODEL: base}, setting.workers, base.parent, poll_seconds=1.0) as server,
        RecommenderClient(server.target, MODEL) as client,
    ):
        plan = setting.plan(
            server,
            clients=_CLIENTS,
            seconds=swaps * (_EVERY_SECONDS + _LOAD_SECONDS),
            check_every=1,
            prefixes=list(versions.prefixes),
        )
        with start_generating(plan) as finish:
            time.sleep(plan.warm_seconds)
            for _ in range(swaps):
                versions.publish()
                time.sleep(_EVERY_SECONDS)
            _wait_for(versions.newest, client)
            published, began = versions.newest, time.monotonic()
            for _ in range(swaps):
                versions.publish()
                _wait_for(versions.newest, client)
                rss.append(_lowest_rss(server) / 2**20)
            seconds = time.monotonic() - began
            result = finish(at_once=True)
    settled = min(_SETTLED, swaps)
    early = float(np.median(rss[settled - 1 : settled + 2]))
    return {
        **result,
        "mixed": sum(result["wrong"].values()),
        "published": published,
        "versions_seen": sum(int(version) <= published for version in result["versions"]),
        "seconds_per_swap": seconds / swaps,
        "rss_mb_by_swap": rss,
        "rss_growth": float(np.median(rss[-3:])) / early - 1,
    }


def _wait_for(version: int, client: RecommenderClient) -> None:
    deadline = time.monotonic() + _LOAD_SECONDS
    while (version, "AVAILABLE") not in [state[:2] for state in client.status()]:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"version {version} does not serve after {_LOAD_SECONDS} s")
        time.sleep(_SAMPLE_SECONDS)


def _lowest_rss(server: Server) -> int:
    """Of a while: the version before, or the other worker's, may just be going."""
    lowest = server.rss()
    end = time.monotonic() + _PAUSE_SECONDS
    while time.monotonic() < end:
        time.sleep(_SAMPLE_SECONDS)
        lowest = min(lowest, server.rss())
    return lowest
