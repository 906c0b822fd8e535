"""What a parameter costs the optimiser, an item the exact ranking, and the catalogue a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf

from benchmarks.costs.figures import Figure, Setting, cpu_seconds
from benchmarks.costs.log import Log
from models.batches import BatchMaker
from models.fitting import Task
from models.held_out import HeldOut
from models.settings import NegativeSettings, StageSettings, TowerSettings

DIMENSION = 64
_TABLES = (100_000, 400_000)
_STEPS = 10
_QUERIES = 512
_RANKED = (50_000, 200_000)
_BEST = 50
_CATALOGUES = (500_000, 50_000_000)
_USERS = 20_000
_BATCHES = 64


class _Table(Task):
    """One table that learns, with the optimiser of every task."""

    def __init__(self, rows: int) -> None:
        super().__init__(StageSettings(name="exposure").learning_rate)
        self.table = tf.Variable(tf.random.normal([rows, DIMENSION]))

    @property
    def moving(self) -> list[tf.Variable]:
        """The table."""
        return [self.table]


def _repeat(step: Callable[[], None]) -> None:
    for _ in range(_STEPS):
        step()


def adam(setting: Setting) -> list[Figure]:
    """The op that moves a table, given a gradient of its size."""
    tf.keras.utils.set_random_seed(setting.seed)
    figures = []
    for rows in map(setting.size, _TABLES):
        task = _Table(rows)
        task.start(())
        gradient = tf.random.normal([rows, DIMENSION])

        @tf.function
        def step(task: _Table = task, gradient: tf.Tensor = gradient) -> None:
            task.optimizer.apply_gradients([(gradient, task.table)])

        step()  # is traced
        seconds = cpu_seconds(partial(_repeat, step))
        figures.append(
            Figure(
                "P1",
                f"Adam, table of {rows:,} x {DIMENSION}",
                "CPU ns per parameter",
                1e9 * seconds / (_STEPS * rows * DIMENSION),
            )
        )
    return figures


def ranking(setting: Setting) -> list[Figure]:
    """`HeldOut.top`, as validation and the choice of weights call it."""
    rng = np.random.default_rng(setting.seed)
    figures = []
    for items in map(setting.size, _RANKED):
        timelines = Log(_QUERIES, setting.seed, items).timelines()
        held_out = HeldOut.of(timelines, _QUERIES, setting.seed)
        users, vectors = (
            rng.normal(size=(rows, DIMENSION)).astype(np.float32) for rows in (_QUERIES, items)
        )
        rank = partial(held_out.top, users, vectors, _BEST)
        rank()  # every later call finds the libraries awake, and the machine's memory at hand
        seconds = cpu_seconds(rank)
        figures.append(
            Figure(
                "P2",
                f"HeldOut.top, {_QUERIES} queries, {items:,} items, best {_BEST}",
                "CPU ns per query and item",
                1e9 * seconds / (_QUERIES * items),
            )
        )
    return figures


def batches(setting: Setting) -> list[Figure]:
    """The first batch of a reader, which makes a place for every item, and those that follow."""
    figures = []
    for items in map(setting.size, (_CATALOGUES[0], *_CATALOGUES)):
        timelines = Log(setting.size(_USERS), setting.seed, items).timelines()
        settings, negatives = StageSettings(name="exposure"), NegativeSettings(kind="sampled")
        maker = BatchMaker(
            timelines,
            True,
            0,
            TowerSettings(),
            settings,
            negatives,
            items,
            len(timelines),
            setting.seed,
        )
        drawn = maker.batches()
        first = cpu_seconds(partial(next, drawn))
        rest = cpu_seconds(partial(list, itertools.islice(drawn, _BATCHES)))
        figures += [
            Figure("P5", f"first batch of {items:,} items", "CPU ms", 1e3 * first),
            Figure("P5", f"later batches of {items:,} items", "CPU ms each", 1e3 * rest / _BATCHES),
        ]
    return figures[2:]  # the first ones wake the libraries up
