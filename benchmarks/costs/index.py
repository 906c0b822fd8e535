"""What the index of ScaNN costs to build, to keep and to ask; the search in another process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from benchmarks.costs.figures import Figure, Setting, cpu_seconds
from benchmarks.costs.vectors import DIMENSION
from benchmarks.processes import resident_bytes
from models.index import ScannSearcher
from models.settings import IndexSettings

_ITEMS = 200_000
_QUERIES = 512
_BATCH = 32
_SHARES = (0.05, 0.1, 0.15, 1.0)  # of the leaves
_ROW = "P4"
# Attribute of the searcher's state -> what it holds of every item.
_PARTS = {"dataset": "vector", "hashed_dataset": "codes", "datapoint_to_token": "leaf"}


class _Served(tf.Module):
    """A searcher as a SavedModel."""

    def __init__(self, searcher: ScannSearcher, settings: IndexSettings) -> None:
        super().__init__()
        self.searcher = searcher
        self._settings = settings
        self.n_leaves = tf.Variable(searcher.n_leaves)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, DIMENSION], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def search(self, queries: tf.Tensor, leaves: tf.Tensor) -> tf.Tensor:
        """Rows of the best items."""
        top_k, reorder = self._settings.top_k, self._settings.reorder
        return self.searcher.search_with(queries, tf.constant(top_k), tf.constant(reorder), leaves)[
            1
        ]


def build(setting: Setting) -> list[Figure]:
    """Builds and saves an index, and weighs its variables."""
    items = setting.size(_ITEMS)
    settings = IndexSettings(kind="tree")
    vectors = _vectors(items, setting.seed)
    made: list[ScannSearcher] = []
    seconds = cpu_seconds(lambda: made.append(ScannSearcher(vectors, settings)))
    (searcher,) = made
    tf.saved_model.save(
        _Served(searcher, settings),
        str(_directory(setting)),
        options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
    )
    sizes = {
        name: int(tf.size(variable)) * variable.dtype.size
        for name, variable in vars(searcher._state).items()
        if isinstance(variable, tf.Variable) and variable.dtype != tf.string
    }
    figures = [
        Figure(_ROW, f"ScannSearcher, {items:,} x {DIMENSION}: built in", "CPU s", seconds),
        Figure(_ROW, "its variables", "bytes per item", sum(sizes.values()) / items),
    ]
    return figures + [
        Figure(_ROW, f".. {what}", "bytes per item", sizes[name] / items)
        for name, what in _PARTS.items()
    ]


def search(setting: Setting) -> list[Figure]:
    """Loads the index, as a server does, and asks it."""
    from scann.scann_ops.py import scann_ops  # noqa: F401 - registers the graph's ops

    served = tf.saved_model.load(str(_directory(setting)))
    items, n_leaves = setting.size(_ITEMS), int(served.n_leaves)
    queries = tf.constant(_vectors(_QUERIES, setting.seed + 1))
    before = resident_bytes()
    served.search(queries[:1], tf.constant(1))
    added = resident_bytes() - before
    figures = [Figure(_ROW, "memory that the first search adds", "bytes per item", added / items)]
    micros: dict[int, float] = {}
    for share in _SHARES:
        leaves = max(1, round(share * n_leaves))
        micros[leaves] = _micros(served, queries, leaves)
        what = f"search, {leaves} of {n_leaves} leaves, batches of {_BATCH}"
        figures.append(Figure(_ROW, what, "CPU us per query", micros[leaves]))
    nanos = 1e3 * slope(micros) * n_leaves / items
    return [*figures, Figure(_ROW, "a point of a leaf more", "CPU ns", nanos)]


def slope(costs: dict[int, float]) -> float:
    """Least squares: what one more of the keys adds to the cost."""
    return float(np.polyfit(list(costs), list(costs.values()), 1)[0])


def _micros(served: _Served, queries: tf.Tensor, leaves: int) -> float:
    def ask() -> None:
        for start in range(0, _QUERIES, _BATCH):
            served.search(queries[start : start + _BATCH], tf.constant(leaves))

    ask()
    return 1e6 * cpu_seconds(ask) / _QUERIES


def _vectors(n: int, seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _directory(setting: Setting) -> Path:
    return setting.place / "index"
