"""A steady rate below the peak for a long time: memory and latency must not drift."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.serving.processes import generate, our_server, start_generating
from benchmarks.serving.setting import Setting
from benchmarks.serving.world import MODEL

_SHARE_OF_PEAK = 0.8
_WINDOW_SECONDS = 60.0
_PEAK_WINDOWS = 2  # a burst of seconds is no peak: what it can keep up is


def soak(setting: Setting) -> dict[str, Any]:
    """Rate, latency and memory of every minute; the first one is left out of the drift."""
    window = min(_WINDOW_SECONDS, setting.soak_seconds / 4)
    models = {MODEL: setting.files.base(MODEL)}
    memory = []
    with our_server(models, setting.workers, setting.workdir / "soak") as server:
        generate(setting.plan(server))
        peak = generate(setting.plan(server, seconds=_PEAK_WINDOWS * window, window_seconds=window))
        plan = setting.plan(
            server,
            rate=_SHARE_OF_PEAK * peak["rate"],
            seconds=setting.soak_seconds,
            window_seconds=window,
        )
        with start_generating(plan) as finish:
            time.sleep(plan.warm_seconds)
            for _ in range(int(setting.soak_seconds // window)):
                time.sleep(window)
                memory.append(server.rss() / 2**20)
            result = finish()
    windows = result["windows"][1:]
    return {
        **result,
        "peak": peak,
        "asked_rate": plan.rate,
        "rss_mb": memory,
        "rss_growth": memory[-1] / memory[0] - 1,
        "p50_drift": _drift([minute["p50_ms"] for minute in windows]),
        "p99_drift": _drift([minute["p99_ms"] for minute in windows]),
    }


def _drift(values: list[float]) -> float:
    """By how much the median of the last third is above that of the first third."""
    third = max(len(values) // 3, 1)
    return float(np.median(values[-third:]) / np.median(values[:third]) - 1)
