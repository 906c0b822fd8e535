"""Ownership of neurons by objectives: CPP and the block-triangular rule.

Every neuron of every layer carries the number of the stage that owns it. Two rules follow:

* a connection i -> j may be non-zero only if owner(i) <= owner(j): new neurons read old ones,
  never the reverse, so that upstream blocks cannot change (METHOD 1.3);
* stage k may move a weight only if it enters a neuron that stage k owns.

The rules are pure NumPy. Forbidden connections are stored as zeros and never receive a gradient,
so the forward pass needs no mask at all: adding an exact zero changes no bit of a sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.settings import PruneRule

Owners = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Importances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pruned:
    """What a stage had of one layer when it was pruned, and how much of it went."""

    importance: list[float]  # of the slots it owned, ascending
    freed: int


def freed_slots(importance: Importances, tau: float) -> Mask:
    """Cumulative Percentile-based Pruning of one layer (CSMF, METHOD 1.2).

    Sorts the slots by importance, ascending; slot j is freed iff the cumulative importance up to
    and including it is at most `tau` of the total. Ties keep the slots' order, so the result is
    deterministic.

    Args:
      importance: [n] non-negative importance of each slot, e.g. the L1 norm of a neuron's
        incoming weights.
      tau: share of the total importance to free, 0 < tau < 1.

    Returns:
      [n] True where the slot is freed.

    Raises:
      ValueError: tau outside (0, 1), or a negative or non-finite importance.
    """
    _check(importance, tau)
    order = np.argsort(importance, kind="stable")
    cumulative = np.cumsum(importance[order], dtype=np.float64)
    freed = np.zeros(len(importance), dtype=bool)
    if len(importance):
        # Where nothing has any importance there is no order to prune by: all stay.
        freed[order] = (cumulative <= tau * cumulative[-1]) & (cumulative[-1] > 0)
    return freed


def freed_share(importance: Importances, share: float) -> Mask:
    """PackNet's rule for one layer: a fixed share of its slots, the least important ones.

    Args:
      importance: [n] as in `freed_slots`.
      share: of the slots, 0 < share < 1; their number is rounded. Ties keep the slots' order.

    Returns:
      [n] True where the slot is freed.

    Raises:
      ValueError: as in `freed_slots`.
    """
    _check(importance, share)
    freed = np.zeros(len(importance), dtype=bool)
    freed[np.argsort(importance, kind="stable")[: round(share * len(importance))]] = True
    return freed


def freed_everywhere(importance: Mapping[str, Importances], tau: float) -> dict[str, Mask]:
    """CPP with one threshold for all layers.

    Layers are made comparable by dividing their importances by their mean; then `freed_slots`
    runs over all slots together. Unlike CPP layer by layer, this may free a whole layer.

    Args:
      importance: by layer, [n] as in `freed_slots`. A layer without any importance keeps all.
      tau: share of the total importance of all layers.

    Returns:
      By layer, [n] True where the slot is freed.

    Raises:
      ValueError: as in `freed_slots`.
    """
    for values in importance.values():
        _check(values, tau)
    freed = {name: np.zeros(len(values), dtype=bool) for name, values in importance.items()}
    names = [name for name, values in importance.items() if values.sum() > 0]
    if names:
        relative = [importance[name] / importance[name].mean() for name in names]
        together = freed_slots(np.concatenate(relative), tau)
        ends = np.cumsum([len(values) for values in relative])
        freed |= dict(zip(names, np.split(together, ends[:-1]), strict=True))
    return freed


def freed_by_layer(
    importance: Mapping[str, Importances], tau: float, rule: PruneRule
) -> dict[str, Mask]:
    """By layer, the slots freed by `freed_slots`, `freed_share` or `freed_everywhere`."""
    if rule == "global":
        return freed_everywhere(importance, tau)
    of_layer = freed_slots if rule == "cumulative" else freed_share
    return {name: of_layer(values, tau) for name, values in importance.items()}


def hand_over(
    owners: Mapping[str, Owners],
    importance: Mapping[str, Importances],
    stage: int,
    tau: float,
    rule: PruneRule = "cumulative",
) -> dict[str, Owners]:
    """Gives the slots of `stage` that a rule frees to stage + 1.

    Args:
      owners: by layer, [n] owner of each slot.
      importance: by layer, [n] importance of each slot; only those that `stage` owns are read.
      stage: the stage whose slots are pruned.
      tau: share to free, as in `freed_slots`.
      rule: what it is a share of.

    Returns:
      By layer, [n] the new owners; the arguments are not changed.
    """
    owned = {name: np.flatnonzero(layer == stage) for name, layer in owners.items()}
    of_stage = {name: importance[name][slots] for name, slots in owned.items()}
    after = {name: layer.copy() for name, layer in owners.items()}
    for name, freed in freed_by_layer(of_stage, tau, rule).items():
        after[name][owned[name][freed]] = stage + 1
    return after


def pruned(
    before: Mapping[str, Owners],
    after: Mapping[str, Owners],
    importance: Mapping[str, Importances],
    stage: int,
) -> dict[str, Pruned]:
    """By layer, what `hand_over` took from `stage`.

    Args:
      before: by layer, [n] owner of each slot.
      after: the same, as `hand_over` returned it.
      importance: by layer, [n] importance of each slot.
      stage: the stage whose slots were pruned.
    """
    return {
        name: Pruned(
            importance=np.sort(importance[name][owners == stage]).tolist(),
            freed=int(np.sum((owners == stage) & (after[name] != stage))),
        )
        for name, owners in before.items()
    }


def _check(importance: Importances, tau: float) -> None:
    if not 0.0 < tau < 1.0:
        raise ValueError(f"tau must lie strictly between 0 and 1, got {tau}")
    if not np.all(np.isfinite(importance)) or np.any(importance < 0):
        raise ValueError("importances must be finite and not negative")


def allowed(inputs: Owners, outputs: Owners) -> Mask:
    """[n_in, n_out] True where a connection may exist: owner(in) <= owner(out)."""
    return inputs[:, None] <= outputs[None, :]


def trainable(inputs: Owners, outputs: Owners, stage: int) -> Mask:
    """[n_in, n_out] True where `stage` may move the weight: it owns the output neuron."""
    return allowed(inputs, outputs) & (outputs == stage)[None, :]
