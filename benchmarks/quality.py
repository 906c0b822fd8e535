"""`csmf bench quality`: every method on the same split."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.methods import methods
from benchmarks.outcome import Outcome
from benchmarks.runner import Trial
from benchmarks.split import Split
from schemas.settings import ConfigError, nearest

DETERMINISTIC = ("popularity", "item-knn", "ease")  # one seed says it all


def run_method(name: str, split: Split, seed: int) -> list[Outcome]:
    """Trains and measures one method."""
    return methods(split.config.objective_names)[name](split, seed)


def quality_trials(
    objectives: Sequence[str], chosen: Sequence[str], dimensions: Sequence[int], seeds: int
) -> list[Trial]:
    """All trainings of the table, the methods of a seed together.

    Args:
      objectives: names, first of the funnel first.
      chosen: names of methods; empty = all.
      dimensions: of the index vectors.
      seeds: how many, from 1 on.

    Raises:
      ConfigError: no method of that name.
    """
    known = list(methods(objectives))
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f"no method {name!r}.{nearest(name, known)} Methods: {', '.join(known)}."
            )
    return [
        Trial(name, dimension, seed)
        for dimension in dimensions
        for seed in range(1, seeds + 1)
        for name in known
        if (not chosen or name in chosen) and (seed == 1 or name not in DETERMINISTIC)
    ]
