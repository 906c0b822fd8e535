"""Hot swaps under load, between two models whose answers cannot be confused."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np

from benchmarks.serving.processes import our_server, start_generating
from benchmarks.serving.setting import Setting
from benchmarks.serving.world import MODEL, OTHER, link_version
from schemas import names

_CLIENTS = 16
_EVERY_SECONDS = 2.0
_SETTLED = 3  # swaps after which memory should not grow any more
_SAMPLE_SECONDS = 0.2


def swap(setting: Setting) -> dict[str, Any]:
    """A new version every two seconds; every answer is checked against the version it names."""
    base = setting.workdir / "swap" / "base"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    # Odd versions are the one model, even ones the other.
    sources = [setting.files.servable(name) / names.SCANN_FLAVOUR for name in (OTHER, MODEL)]
    link_version(sources[1], base, 1)
    swaps = int(setting.swap_seconds // _EVERY_SECONDS)
    samples: list[list[float]] = []
    with our_server({MODEL: base}, setting.workers, base.parent, poll_seconds=1.0) as server:
        plan = setting.plan(
            server,
            clients=_CLIENTS,
            seconds=(swaps + 2) * _EVERY_SECONDS,
            check_every=1,
            prefixes=[OTHER, "i"],
            window_seconds=_EVERY_SECONDS,
        )
        with start_generating(plan) as finish:
            time.sleep(plan.warm_seconds)
            for number in range(1, swaps + 1):
                link_version(sources[(number + 1) % 2], base, number + 1)
                samples.append([])
                end = time.monotonic() + _EVERY_SECONDS
                while time.monotonic() < end:
                    samples[-1].append(server.rss() / 2**20)
                    time.sleep(_SAMPLE_SECONDS)
            result = finish()
    # The lowest of a swap: a version that loads just then is no leak.
    lowest = [min(values) for values in samples]
    settled = min(_SETTLED, swaps)
    early = float(np.median(lowest[settled - 1 : settled + 2]))
    return {
        **result,
        "mixed": sum(result["wrong"].values()),
        "published": swaps,
        "versions_seen": len(result["versions"]),
        "rss_mb_by_swap": lowest,
        "rss_growth": float(np.median(lowest[-3:])) / early - 1,
    }
