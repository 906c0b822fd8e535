"""Which request weights serve an objective best, found on the validation cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.held_out import HeldOut, Vectors
from models.timelines import Ints
from models.towers import TwoTower

if TYPE_CHECKING:  # serving a model needs its weights, not what trained it
    from models.stages import TrainingData

# Both from the smallest on.
GRID = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
RATE_GRID = (0.0, *(sign * size for size in GRID[1:] for sign in (1, -1)))
_SWEEPS = 2
_NEAR = 50  # see `HeldOut.nearness_by`


def default_weights(objectives: Sequence[str]) -> dict[str, list[float]]:
    """Objective -> weights where nothing was validated: 1 up to the objective, 0 beyond."""
    return {
        name: [1.0 if k <= level else 0.0 for k in range(len(objectives))]
        for level, name in enumerate(objectives)
    }


def chosen_weights(
    towers: TwoTower, data: TrainingData, objectives: Sequence[str]
) -> dict[str, list[float]]:
    """Objective -> its `choose_weights`; objectives without a validation query are left out.

    Args:
      towers: the network after its last stage.
      data: what the stages were trained and validated on.
      objectives: names, in the order of the stages.
    """
    held_out = data.held_out
    if held_out is None or not len(held_out):
        return {}
    users, items = user_blocks(towers, held_out), item_blocks(towers, data.item_features)
    return {
        name: choose_weights(held_out, users, items, towers.block_sizes(), level)[0]
        for level, name in enumerate(objectives)
        if len(held_out.reaching(level))
    }


def choose_strengths(
    towers: TwoTower, held_out: HeldOut, item_features: Mapping[str, Ints], stage: int
) -> tuple[float, float]:
    """(of what a stage has learnt, of its rates) in its score, so that a request weight of 1 is
    what serves the stage's own objective best, beside the blocks before it at 1.

    The rates come first, and take the best value of `RATE_GRID`: they have no parameters that could
    have been fitted to the cut, which chose when the stage stops. What is learnt takes the smallest
    value that is as good as the best, see `choose_weights`; in the first stage it counts 1.

    Args:
      towers: trained up to the stage, its rates set.
      held_out: the validation queries, some of which reach the stage's level.
      item_features: name -> [N, F].
      stage: whose strengths are chosen.
    """
    held_out = held_out.only(held_out.reaching(stage))
    towers.set_strengths(stage, 1.0, 1.0)
    sizes = towers.block_sizes()
    parts = [sum(sizes[:stage]), sizes[stage] - 1, 1]  # upstream, learnt, rates
    users = user_blocks(towers, held_out)[:, : sum(parts)]
    items = item_blocks(towers, item_features)[:, : sum(parts)]

    def along(part: int, grid: Sequence[float]) -> npt.NDArray[np.float64]:
        return _values_along(held_out, users, items, parts, weights, part, stage, _NEAR, grid)

    weights = [1.0, 0.0 if stage else 1.0, 0.0]
    weights[2] = RATE_GRID[int(np.argmax(along(2, RATE_GRID).mean(axis=1)))]
    if stage:
        # Not 0: a request may ask for what did not help here.
        weights[1] = max(GRID[_smallest_as_good(along(1, GRID), 0)], GRID[1])
    return weights[1], weights[2]


def user_blocks(towers: TwoTower, held_out: HeldOut) -> Vectors:
    """[Q, D] the blocks of the queries' users, stage 0 first."""
    spec = towers.spec
    inputs = held_out.user_inputs(spec.towers.history_length, spec.n_users)
    return np.concatenate([towers.user_blocks(batch).numpy() for batch in inputs])


def item_blocks(towers: TwoTower, item_features: Mapping[str, Ints]) -> Vectors:
    """[N, D] the blocks of all items; features: name -> [N, F]."""
    features = {name: tf.constant(ids) for name, ids in item_features.items()}
    return towers.item_blocks(tf.range(towers.spec.n_items), features).numpy()


def fuse(users: Vectors, block_sizes: Sequence[int], weights: Sequence[float]) -> Vectors:
    """[Q, D] query vectors: each block times its weight (METHOD 1.4)."""
    return users * np.repeat(np.asarray(weights, np.float32), block_sizes)


def choose_weights(
    held_out: HeldOut,
    users: npt.NDArray[np.float32],
    items: npt.NDArray[np.float32],
    block_sizes: Sequence[int],
    level: int,
    k: int = _NEAR,
) -> tuple[list[float], float]:
    """Weights of the blocks that bring an objective's targets nearest to the top of the lists.

    Coordinate ascent over `GRID`. Of two weights the better one has the larger
    `HeldOut.nearness_by`; Recall@k, which counts only those targets that cross a border, tells
    weights apart much less surely where an objective has few queries.

    It starts at the first block alone, and moves only where the mean over the queries improves by
    more than its standard error, so that it does not follow noise; of the weights that the best one
    does not exceed by as much it takes the smallest (the one-standard-error rule of Breiman et al.,
    CART, 1984). On the validation cut the fused score is never worse than the first head alone.

    Args:
      held_out: the validation queries.
      users: [Q, D] blocks of the users, stage 0 first.
      items: [N, D] blocks of the items.
      block_sizes: of the K blocks.
      level: of the objective.
      k: see `HeldOut.nearness_by`.

    Returns:
      (K weights, the first one 1; their mean nearness, NaN where there is nothing to choose: one
      block, or no query that reaches the level).
    """
    reaching = held_out.reaching(level)
    held_out, users = held_out.only(reaching), users[reaching]
    weights = [1.0] + [0.0] * (len(block_sizes) - 1)
    if len(weights) == 1 or not len(held_out):
        return weights, float("nan")

    for _ in range(_SWEEPS):
        before = list(weights)
        for block in range(1, len(weights)):
            values = _values_along(
                held_out, users, items, block_sizes, weights, block, level, k, GRID
            )
            place = _smallest_as_good(values, GRID.index(weights[block]))
            weights[block], best = GRID[place], values[place]
        if weights == before:
            break
    return weights, float(best.mean())


def _values_along(
    held_out: HeldOut,
    users: Vectors,
    items: Vectors,
    block_sizes: Sequence[int],
    weights: Sequence[float],
    block: int,
    level: int,
    k: int,
    grid: Sequence[float],
) -> npt.NDArray[np.float64]:
    """[G, Q] nearness with one block's weight at each value of a grid, the others as they are.

    What the block and what the others score is computed once for all G.
    """
    others = fuse(users, block_sizes, [*weights[:block], 0.0, *weights[block + 1 :]])
    end = sum(block_sizes[: block + 1])
    own = slice(end - block_sizes[block], end)
    values = np.empty((len(grid), len(held_out)))
    for (start, rest), (_, alone) in zip(
        held_out.scores(others, items),
        held_out.scores(users[:, own], items[:, own]),
        strict=True,
    ):
        held_out.exclude_seen(rest, start)
        fused = np.empty_like(rest)
        for place, weight in enumerate(grid):
            np.multiply(alone, np.float32(weight), out=fused)
            fused += rest
            batch = slice(start, start + len(rest))
            values[place, batch] = held_out.nearness_by(fused, start, level, k)
    return values


def _smallest_as_good(values: npt.NDArray[np.float64], now: int) -> int:
    """Place of the smallest weight as good as the best, or `now` where none is better than that.

    Args:
      values: [G, Q] of `_values_along`, over a grid that ascends.
      now: place of the present weight.
    """
    better = [place for place in range(len(values)) if _exceeds(values[place], values[now])]
    if not better:
        return now
    most = values[max(better, key=lambda place: values[place].mean())]
    return next(place for place in better if not _exceeds(most, values[place]))


def _exceeds(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> bool:
    """Whether the mean over the queries [Q] is larger by more than its standard error."""
    difference = values - others
    return bool(difference.mean() > difference.std() / np.sqrt(len(difference)))
