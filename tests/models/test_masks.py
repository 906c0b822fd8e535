"""CPP and the block-triangular rule, against values worked out by hand and against properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import masks
from models.settings import PruneRule

IMPORTANCES = hnp.arrays(
    np.float64, st.integers(1, 40), elements=st.floats(0, 1e6, allow_subnormal=False)
)
TAUS = st.floats(0.001, 0.999)
RULES: tuple[PruneRule, ...] = ("cumulative", "fixed", "global")


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


def test_a_fixed_share_is_of_the_slots_and_not_of_the_mass() -> None:
    # The same layer of which CPP at 0.1 frees nine slots: here it is a tenth of ten.
    importance = np.array([100.0] + [1.0] * 9)
    assert masks.freed_share(importance, 0.1).tolist() == [False, True] + [False] * 8
    # Ascending: slots 1, 3, 0, 2. Half of four slots are two, whatever they weigh.
    assert masks.freed_share(np.array([3.0, 1.0, 400.0, 2.0]), 0.5).tolist() == [
        False,
        True,
        False,
        True,
    ]
    assert masks.freed_share(np.zeros(0), 0.5).shape == (0,)


@given(IMPORTANCES, TAUS)
def test_a_fixed_share_frees_the_rounded_number_of_least_slots(
    importance: np.ndarray, share: float
) -> None:
    freed = masks.freed_share(importance, share)
    assert abs(freed.sum() - share * len(importance)) <= 0.5
    assert importance[freed].max(initial=0) <= importance[~freed].min(initial=np.inf)


def test_one_threshold_for_all_layers() -> None:
    # Means 2 and 20: relative importances .5, 1.5 and .1, .85, 2.05. Ascending: b0, a0, b1, a1, b2,
    # cumulative .1, .6, 1.45, 2.95, 5. tau .3 -> at most 1.5: b0, a0, b1.
    layers = {"a": np.array([1.0, 3.0]), "b": np.array([2.0, 17.0, 41.0])}
    freed = masks.freed_everywhere(layers, 0.3)
    assert {name: mask.tolist() for name, mask in freed.items()} == {
        "a": [True, False],
        "b": [True, True, False],
    }
    # Layer by layer: a frees 1 of at most 1.2, b frees 2 of at most 18 (2 + 17 is more).
    by_layer = masks.freed_by_layer(layers, 0.3, "cumulative")
    assert {name: mask.tolist() for name, mask in by_layer.items()} == {
        "a": [True, False],
        "b": [True, False, False],
    }


def test_layers_without_importance_or_without_slots_keep_what_they_have() -> None:
    layers = {"nothing": np.zeros(2), "empty": np.zeros(0), "some": np.array([1.0, 9.0])}
    freed = masks.freed_everywhere(layers, 0.5)
    assert {name: mask.tolist() for name, mask in freed.items()} == {
        "nothing": [False, False],
        "empty": [],
        "some": [True, False],
    }
    assert not masks.freed_everywhere({"nothing": np.zeros(2)}, 0.5)["nothing"].any()


@given(IMPORTANCES, TAUS, st.floats(0.01, 100))
def test_one_threshold_does_not_see_the_scale_of_a_layer(
    importance: np.ndarray, tau: float, scale: float
) -> None:
    # A power of two changes no mantissa, so that ties stay ties.
    scaled = importance * 2.0 ** round(np.log2(scale))
    one = masks.freed_everywhere({"a": importance, "b": importance[::-1]}, tau)
    two = masks.freed_everywhere({"a": scaled, "b": importance[::-1]}, tau)
    assert np.array_equal(one["a"], two["a"])
    assert np.array_equal(one["b"], two["b"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("importance", "tau"), [([1.0], 0.0), ([1.0], 1.0), ([-1.0], 0.5), ([float("nan")], 0.5)]
)
def test_every_rule_refuses_what_cpp_refuses(
    rule: PruneRule, importance: list[float], tau: float
) -> None:
    with pytest.raises(ValueError, match=r"tau must lie|finite and not negative"):
        masks.freed_by_layer({"a": np.array(importance)}, tau, rule)


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data(), tau=TAUS, stage=st.integers(0, 2))
def test_hand_over_moves_only_slots_of_its_stage_one_stage_on(
    rule: PruneRule, data: st.DataObject, tau: float, stage: int
) -> None:
    sizes = {"a": data.draw(st.integers(1, 30)), "b": data.draw(st.integers(1, 30))}
    owners = {
        name: data.draw(hnp.arrays(np.int32, n, elements=st.integers(0, 3)))
        for name, n in sizes.items()
    }
    importance = {
        name: data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 100)))
        for name, n in sizes.items()
    }
    before = {name: layer.copy() for name, layer in owners.items()}
    after = masks.hand_over(owners, importance, stage, tau, rule)
    # What others own carries no weight in the decision.
    disturbed = {name: np.where(owners[name] == stage, importance[name], 1e9) for name in owners}
    again = masks.hand_over(owners, disturbed, stage, tau, rule)
    for name in owners:
        assert np.array_equal(owners[name], before[name]), "the argument is not changed"
        assert after[name].dtype == owners[name].dtype
        changed = after[name] != before[name]
        assert np.all(before[name][changed] == stage)
        assert np.all(after[name][changed] == stage + 1)
        assert np.array_equal(again[name], after[name])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Stage 1 owns 5, 4, 5 (total 14, at most 7) and 1, 1, 1, 9 (total 12, at most 6).
        ("cumulative", {"a": [0, 1, 2, 0, 1, 2], "b": [2, 2, 2, 1]}),
        # Half of three slots rounds to two, the tie goes to the first; half of four is two.
        ("fixed", {"a": [0, 2, 2, 0, 1, 2], "b": [2, 2, 1, 1]}),
        # Means 14/3 and 3: 15/14, 12/14, 15/14 and 1/3, 1/3, 1/3, 3. At most half of 7:
        # 1, 1.86, 2.93 fit, 4 does not.
        ("global", {"a": [0, 2, 2, 0, 1, 2], "b": [2, 2, 2, 1]}),
    ],
)
def test_hand_over_by_hand(rule: PruneRule, expected: dict[str, list[int]]) -> None:
    owners = {"a": np.array([0, 1, 1, 0, 1, 2], np.int32), "b": np.ones(4, np.int32)}
    importance = {
        "a": np.array([0.1, 5.0, 4.0, 0.1, 5.0, 0.1]),
        "b": np.array([1.0, 1.0, 1.0, 9.0]),
    }
    after = masks.hand_over(owners, importance, 1, 0.5, rule)
    assert {name: layer.tolist() for name, layer in after.items()} == expected


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


# --- what was pruned ------------------------------------------------------------------------


def test_what_was_pruned_by_hand() -> None:
    # Stage 1 owns slots 0, 2, 3 of a and none of b; the rule frees slot 2 of a.
    before = {"a": np.array([1, 0, 1, 1], np.int32), "b": np.array([0, 0], np.int32)}
    after = {"a": np.array([1, 0, 2, 1], np.int32), "b": before["b"]}
    importance = {"a": np.array([5.0, 9.0, 0.5, 3.0]), "b": np.array([1.0, 2.0])}
    assert masks.pruned(before, after, importance, 1) == {
        "a": masks.Pruned(importance=[0.5, 3.0, 5.0], freed=1),
        "b": masks.Pruned(importance=[], freed=0),
    }


@given(data=st.data(), tau=TAUS, stage=st.integers(0, 2))
def test_cpp_frees_a_prefix_of_the_importances(data: st.DataObject, tau: float, stage: int) -> None:
    n = data.draw(st.integers(1, 30))
    owners = {"a": data.draw(hnp.arrays(np.int32, n, elements=st.integers(0, 3)))}
    importance = {"a": data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 100)))}
    after = masks.hand_over(owners, importance, stage, tau)
    layer = masks.pruned(owners, after, importance, stage)["a"]
    assert len(layer.importance) == int(np.sum(owners["a"] == stage))
    freed = importance["a"][(owners["a"] == stage) & (after["a"] == stage + 1)]
    assert layer.importance[: layer.freed] == sorted(freed)
