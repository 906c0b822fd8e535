"""What an event and a held-out moment cost where timelines are kept in memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from benchmarks.costs.figures import Figure, Setting, Traced, cpu_seconds, per_unit, traced
from benchmarks.costs.log import HELD_OUT, Log
from models.batches import Batch, BatchMaker
from models.queries import build_queries
from models.recommender import build_profiles
from models.settings import ModelSettings, NegativeSettings, StageSettings
from models.stages import TrainingData
from models.timelines import read_timelines
from models.towers import TowerSpec

QUERIES = "build_queries"
_USERS = 20_000
_FEW_USERS = 512
_ROW = "P3"

T = TypeVar("T")
Measured = Callable[[str, Callable[[], Any]], Any]  # (name, call) -> what the call returns


def events(setting: Setting) -> list[Figure]:
    """Memory as the line through half of the users and all, processor time without tracing."""
    users = setting.size(_USERS)
    few, small, large = (
        _Examples.of(Log(count, setting.seed)) for count in (_FEW_USERS, users // 2, users)
    )
    _process(few, lambda _, call: call())  # wakes the libraries up
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], T]) -> T:
        results: list[T] = []
        seconds[name] = cpu_seconds(lambda: results.append(call()))
        return results[0]

    _process(large, timed)
    memory: dict[str, list[Traced]] = defaultdict(list)

    def weighed(name: str, call: Callable[[], T]) -> T:
        result, found = traced(call)
        memory[name].append(found)
        return result

    tracemalloc.start()
    _process(few, weighed)  # caches are filled
    memory.clear()
    for examples in (small, large):
        _process(examples, weighed)
    tracemalloc.stop()
    return unit_costs(small.log, large.log, seconds, memory)


def unit_costs(
    small: Log, large: Log, seconds: dict[str, float], memory: dict[str, list[Traced]]
) -> list[Figure]:
    """Bytes an event or a moment, microseconds a user or a moment.

    Args:
      small: a log.
      large: a larger one, with which the seconds were measured.
      seconds: of every step.
      memory: of every step with the small and the large log.
    """
    figures = []
    for name, (little, much) in memory.items():
        units = [log.users * HELD_OUT if name == QUERIES else log.events for log in (small, large)]
        thing = "moment" if name == QUERIES else "event"
        figures += [
            Figure(_ROW, f"{name}, {label}", f"bytes per {thing}", value)
            for label, value in (
                ("peak", per_unit((units[0], little.peak), (units[1], much.peak))),
                ("kept", per_unit((units[0], little.kept), (units[1], much.kept))),
            )
        ]
        timed, each = (units[1], "moment") if name == QUERIES else (large.users, "user")
        figures.append(Figure(_ROW, name, f"CPU us per {each}", 1e6 * seconds[name] / timed))
    return figures


class _Examples(NamedTuple):
    """A log as the files hold it."""

    log: Log
    transformed: list[bytes]
    held_out: list[bytes]

    @classmethod
    def of(cls, log: Log) -> _Examples:
        return cls(log, log.transformed(), log.held_out())


def _process(examples: _Examples, measured: Measured) -> None:
    """What the trainer, the index builder and the evaluator do with their examples."""
    log, transformed, held_out = examples
    # As in a large log: candidates are sampled.
    model = ModelSettings(negatives=NegativeSettings(kind="sampled"))
    stage = StageSettings(name="exposure")
    spec = TowerSpec(model.towers, 3, True, log.n_items, log.users, {}, {})
    read = measured(
        "read_timelines", lambda: read_timelines(transformed, log.n_items, log.users, [])
    )
    data = measured(
        "TrainingData.split", lambda: TrainingData.split(read, True, {}, model, log.seed)
    )
    maker = measured(
        "BatchMaker", lambda: data.batch_maker(spec, 0, stage, model.negatives, log.seed)
    )
    measured("batches of an epoch", lambda: _epoch(maker))
    measured("build_profiles", lambda: build_profiles([read], log.users))
    measured(QUERIES, lambda: build_queries(held_out, {}))


def _epoch(maker: BatchMaker) -> Iterator[Batch]:
    """The iterator after an epoch of batches, which is what the trainer holds between two."""
    batches = maker.batches()
    for _ in itertools.islice(batches, maker.steps()):
        pass
    return batches
