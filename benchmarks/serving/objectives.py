"""What several objectives cost: against one objective, and against an index for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.serving.inprocess import InProcess
from benchmarks.serving.load import merge
from benchmarks.serving.processes import generate, our_server
from benchmarks.serving.setting import Setting, spread, summary
from benchmarks.serving.world import MODEL, OBJECTIVES, ONE, nearest, recall

_PAIRS = 400
_GROUPS = 10
_RECALL_QUERIES = 500


def objectives(setting: Setting) -> dict[str, Any]:
    """Three objectives at arbitrary weights against one, and against three indexes."""
    files = setting.files
    runs: dict[str, list[Any]] = {"fused": [], "one": [], "separate": []}
    models = {name: files.base(name) for name in (MODEL, *OBJECTIVES)}
    with our_server(models, setting.workers, setting.workdir / "objectives") as server:
        # All answers are decoded and merged, a single one like three: only their number differs.
        common = {"weights": str(files.weights_path)}
        separate = [str(files.requests_path(name)) for name in OBJECTIVES]
        plans = {
            "fused": setting.plan(server, MODEL, **common),
            "one": setting.plan(server, ONE, **common),
            "separate": setting.plan(server, **common, requests=separate),
        }
        for plan in plans.values():
            generate(plan)
        for _ in range(setting.rounds):
            for name, plan in plans.items():
                runs[name].append(generate(plan))
    rates = {name: [result["rate"] for result in results] for name, results in runs.items()}
    return {
        "three_over_one": _three_over_one(setting),
        **{name: summary(results) for name, results in runs.items()},
        "three_over_one_under_load": spread(_ratios(rates["one"], rates["fused"])),
        "times_separate": spread(_ratios(rates["fused"], rates["separate"])),
        "separate_recall": _separate_recall(setting),
    }


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _three_over_one(setting: Setting) -> dict[str, Any]:
    """Time of a call with three objectives over that of the same call with one.

    Pairs of calls right after each other, each pair a ratio; medians of groups of pairs.
    """
    model = InProcess(MODEL, setting.files.base(MODEL))
    three = model.decoded(setting.files.requests()[:_PAIRS])
    one = model.decoded(setting.files.requests(ONE)[:_PAIRS])
    model.pairs(three, one, 1)
    times = np.array(model.pairs(three, one, 2 * setting.rounds))
    model.close()
    ratios = times[:, 0] / times[:, 1]
    return {
        "ratio": float(np.median(ratios)),
        "groups": spread([float(np.median(g)) for g in np.array_split(ratios, _GROUPS)]),
        "pairs": len(ratios),
        "ms": np.median(times * 1000, axis=0).tolist(),
    }


def _separate_recall(setting: Setting) -> float:
    """Share of the best items by the weighted sum that merging three exact lists finds."""
    world, files = setting.world, setting.files
    vectors, weights = files.vectors, files.weights[:_RECALL_QUERIES]
    users = files.queries[:_RECALL_QUERIES] / np.repeat(weights, world.block_sizes, axis=1)
    ends = np.cumsum(world.block_sizes)
    lists = []
    for end, size in zip(ends, world.block_sizes, strict=True):
        block = slice(end - size, end)
        rows = nearest(users[:, block], vectors[:, block], world.top_k)
        scores = np.einsum("qd,qnd->qn", users[:, block], vectors[rows][:, :, block])
        lists.append((rows, scores))
    found = [
        merge(
            [(rows[query].tolist(), scores[query].tolist()) for rows, scores in lists],
            weights[query].tolist(),
            world.top_k,
        )
        for query in range(len(weights))
    ]
    return recall(np.array(found), np.load(files.neighbours_path)[: len(found)])
