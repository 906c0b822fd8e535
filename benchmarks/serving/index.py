"""How many of the nearest items ScaNN finds, and what the share of leaves that it reads costs."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import numpy as np

from benchmarks.serving.setting import Setting
from benchmarks.serving.world import recall

_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)
_QUERIES = 1000
_BATCH = 32
_PARTS = 20


def index(setting: Setting) -> dict[str, Any]:
    """Recall against brute force and time for shares of leaves; the first one is the default.

    Kept in the world's directory: it depends on nothing else.
    """
    kept = setting.files.root / "index.json"
    if not kept.exists():
        kept.write_text(json.dumps(_measured(setting), indent=2))
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def _measured(setting: Setting) -> dict[str, Any]:
    import tensorflow as tf

    from models.index import ScannSearcher
    from models.settings import IndexSettings

    world, files = setting.world, setting.files
    default = IndexSettings().leaves_to_search_share
    queries, exact = files.queries[:_QUERIES], np.load(files.neighbours_path)[:_QUERIES]
    # As many candidates as a request asks for, which may exclude those.
    k = tf.constant(world.top_k + world.history + world.exclusions)
    rows = []
    for share in (default, *(s for s in _SHARES if s != default)):
        setting.say(f"index that reads {share:.0%} of its leaves")
        settings = IndexSettings(top_k=world.top_k, leaves_to_search_share=share)
        search = tf.function(functools.partial(ScannSearcher(files.vectors, settings).search, k=k))
        found = np.concatenate(
            [search(tf.constant(batch))[1] for batch in np.array_split(queries, _PARTS)]
        )
        rows.append(
            {
                "leaves_to_search_share": share,
                "recall": recall(found[:, : world.top_k], exact),
                "alone_us": _microseconds(search, queries, 1),
                "batched_us_per_query": _microseconds(search, queries, _BATCH) / _BATCH,
            }
        )
    return {"queries": len(queries), "reorder": IndexSettings().reorder, "shares": rows}


def _microseconds(search: Any, queries: Any, size: int) -> float:
    """Median time of a search of `size` queries."""
    import tensorflow as tf

    times = []
    for start in range(0, len(queries) - size + 1, size):
        batch = tf.constant(queries[start : start + size])
        begin = time.perf_counter()
        search(batch)[0].numpy()
        times.append(time.perf_counter() - begin)
    return float(np.median(times) * 1e6)
