"""Ownership of neurons by objectives: CPP and the block-triangular rule.

Every neuron of every layer carries the number of the stage that owns it. Two rules follow:

* a connection i -> j may be non-zero only if owner(i) <= owner(j): new neurons read old ones,
  never the reverse, so that upstream blocks cannot change (METHOD 1.3);
* stage k may move a weight only if it enters a neuron that stage k owns.

The rules are pure NumPy. Forbidden connections are stored as zeros and never receive a gradient,
so the forward pass needs no mask at all: adding an exact zero changes no bit of a sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Owners = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def freed_slots(importance: npt.NDArray[np.float64], tau: float) -> Mask:
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
    if not 0.0 < tau < 1.0:
        raise ValueError(f"tau must lie strictly between 0 and 1, got {tau}")
    if not np.all(np.isfinite(importance)) or np.any(importance < 0):
        raise ValueError("importances must be finite and not negative")
    order = np.argsort(importance, kind="stable")
    cumulative = np.cumsum(importance[order], dtype=np.float64)
    freed = np.zeros(len(importance), dtype=bool)
    if len(importance):
        # Where nothing has any importance there is no order to prune by: all stay.
        freed[order] = (cumulative <= tau * cumulative[-1]) & (cumulative[-1] > 0)
    return freed


def hand_over(
    owners: Owners, importance: npt.NDArray[np.float64], stage: int, tau: float
) -> Owners:
    """Gives the slots of `stage` that CPP frees to stage + 1.

    Args:
      owners: [n] owner of each slot.
      importance: [n] importance of each slot; only those that `stage` owns are read.
      stage: the stage whose slots are pruned.
      tau: as in `freed_slots`.

    Returns:
      [n] the new owners; the argument is not changed.
    """
    owned = np.flatnonzero(owners == stage)
    after = owners.copy()
    after[owned[freed_slots(importance[owned], tau)]] = stage + 1
    return after


def allowed(inputs: Owners, outputs: Owners) -> Mask:
    """[n_in, n_out] True where a connection may exist: owner(in) <= owner(out)."""
    return inputs[:, None] <= outputs[None, :]


def trainable(inputs: Owners, outputs: Owners, stage: int) -> Mask:
    """[n_in, n_out] True where `stage` may move the weight: it owns the output neuron."""
    return allowed(inputs, outputs) & (outputs == stage)[None, :]
