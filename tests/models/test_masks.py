"""CPP and the block-triangular rule, against values worked out by hand and against properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import masks

IMPORTANCES = hnp.arrays(
    np.float64, st.integers(1, 40), elements=st.floats(0, 1e6, allow_subnormal=False)
)
TAUS = st.floats(0.001, 0.999)


def test_frees_the_smallest_up_to_the_share() -> None:
    # Ascending: 1, 2, 3, 4 (total 10); cumulative 1, 3, 6, 10. tau 0.5 -> at most 5.
    freed = masks.freed_slots(np.array([3.0, 1.0, 4.0, 2.0]), 0.5)
    assert freed.tolist() == [False, True, False, True]


def test_a_slot_that_ends_exactly_at_the_share_is_freed() -> None:
    # Cumulative 1, 2, 4 of 8 at tau 0.5: equality counts (c_j <= tau * c_n).
    importance = np.array([1.0, 1.0, 2.0, 4.0])
    assert masks.freed_slots(importance, 0.5).tolist() == [True, True, True, False]
    assert masks.freed_slots(importance, np.nextafter(0.5, 0)).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_ties_are_freed_in_the_order_of_the_slots() -> None:
    assert masks.freed_slots(np.full(4, 2.0), 0.5).tolist() == [True, True, False, False]
    # Two slots of 1 are tied for the one place that the share leaves: 1 of 4 <= 0.3 * 4 < 2.
    assert masks.freed_slots(np.array([2.0, 1.0, 1.0]), 0.3).tolist() == [False, True, False]


def test_the_share_is_of_the_mass_and_not_of_the_slots() -> None:
    # Nine small slots hold 9 of 109: tau 0.1 frees them all, though they are 90 % of the slots.
    importance = np.array([100.0] + [1.0] * 9)
    assert masks.freed_slots(importance, 0.1).sum() == 9
    # And here the smallest slot alone is above the share: nothing is freed.
    assert masks.freed_slots(np.array([5.0, 6.0]), 0.4).sum() == 0


@pytest.mark.parametrize("tau", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_tau_must_lie_strictly_between_0_and_1(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must lie strictly between 0 and 1"):
        masks.freed_slots(np.ones(3), tau)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_importances_must_be_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        masks.freed_slots(np.array([1.0, bad]), 0.5)


def test_nothing_to_prune_frees_nothing() -> None:
    assert masks.freed_slots(np.zeros(0), 0.5).shape == (0,)


@given(IMPORTANCES, TAUS)
def test_freed_mass_is_at_most_the_share_and_maximal(importance: np.ndarray, tau: float) -> None:
    freed = masks.freed_slots(importance, tau)
    total = importance.sum()
    assert importance[freed].sum() <= tau * total * (1 + 1e-9)
    if freed.any() and not freed.all():
        assert importance[freed].max() <= importance[~freed].min()
    if not freed.all():
        # The next slot would not have fitted.
        following = importance[freed].sum() + importance[~freed].min()
        assert following >= tau * total * (1 - 1e-9)


@given(IMPORTANCES, TAUS, TAUS)
def test_a_larger_share_frees_a_superset(importance: np.ndarray, one: float, two: float) -> None:
    less = masks.freed_slots(importance, min(one, two))
    more = masks.freed_slots(importance, max(one, two))
    assert np.all(more[less])


@given(IMPORTANCES.filter(lambda importance: importance.sum() > 0), TAUS)
def test_a_most_important_slot_always_stays(importance: np.ndarray, tau: float) -> None:
    kept = ~masks.freed_slots(importance, tau)
    assert importance[kept].max(initial=-1) == importance.max()


@given(st.data(), TAUS, st.integers(0, 2))
def test_hand_over_moves_only_slots_of_its_stage_one_stage_on(
    data: st.DataObject, tau: float, stage: int
) -> None:
    n = data.draw(st.integers(1, 30))
    owners = data.draw(hnp.arrays(np.int32, n, elements=st.integers(0, 3)))
    importance = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 100)))
    before = owners.copy()
    after = masks.hand_over(owners, importance, stage, tau)
    assert np.array_equal(owners, before), "the argument is not changed"
    assert after.dtype == owners.dtype
    changed = after != before
    assert np.all(before[changed] == stage)
    assert np.all(after[changed] == stage + 1)
    # What others own carries no weight in the decision.
    disturbed = np.where(owners == stage, importance, 1e9)
    assert np.array_equal(masks.hand_over(owners, disturbed, stage, tau), after)


def test_hand_over_by_hand() -> None:
    owners = np.array([0, 1, 1, 0, 1, 2], np.int32)
    importance = np.array([0.1, 5.0, 1.0, 0.1, 4.0, 0.1])
    # Stage 1 owns 5, 1, 4 (total 10): cumulative 1, 5, 10; at most 5 -> slots 2 and 4.
    assert masks.hand_over(owners, importance, 1, 0.5).tolist() == [0, 1, 2, 0, 2, 2]


def test_a_connection_may_only_run_from_older_to_newer_owners() -> None:
    allowed = masks.allowed(np.array([0, 1, 2], np.int32), np.array([0, 1, 2], np.int32))
    assert allowed.tolist() == [
        [True, True, True],  # an input of stage 0 is read by everyone
        [False, True, True],
        [False, False, True],  # an input of stage 2 is read by stage 2 alone
    ]


def test_a_stage_moves_what_enters_its_own_neurons() -> None:
    inputs, outputs = np.array([0, 1, 2], np.int32), np.array([1, 0, 1, 2], np.int32)
    assert masks.trainable(inputs, outputs, 1).tolist() == [
        [True, False, True, False],
        [True, False, True, False],
        [False, False, False, False],  # stage 1 may not read stage 2
    ]


@given(
    hnp.arrays(np.int32, st.integers(1, 12), elements=st.integers(0, 2)),
    hnp.arrays(np.int32, st.integers(1, 12), elements=st.integers(0, 2)),
)
def test_every_allowed_weight_is_trained_by_exactly_one_stage(
    inputs: np.ndarray, outputs: np.ndarray
) -> None:
    trained = sum(masks.trainable(inputs, outputs, stage).astype(int) for stage in range(3))
    assert np.array_equal(trained, masks.allowed(inputs, outputs).astype(int))
