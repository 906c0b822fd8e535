"""The margins' variants: their values, the loss that they enter, and how a stage chooses them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from models import losses
from models.batches import Batch, BatchMaker
from models.settings import Margin, NegativeSettings, StageSettings, TowerSettings
from models.stages import StageTask, user_inputs
from models.timelines import Timelines
from models.towers import TowerSpec, TwoTower
from schemas import names
from tests.models.logs import offsets_of

PAIRS: tuple[Margin, ...] = ("adaptive", "negated", "probability", "constant")
N_ITEMS, STAGE = 6, 2
GAMMA, TEMPERATURE = 0.4, 0.5


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # The scores -1, 1 have a deviation of 1; sigmoid(0) = 1/2, sigmoid(2) = .880797.
        ("adaptive", [0.2, 0.3523188]),
        ("negated", [-0.2, -0.3523188]),
        # p_up at T = 1/2: e^-2 : e^2 = .017986 : .982014.
        ("probability", [0.0, 0.4 * (0.982014 - 0.017986)]),
        ("constant", [0.4, 0.4]),
    ],
)
def test_margins_of_a_positive_that_upstream_ranks_last(
    kind: Margin, expected: list[float]
) -> None:
    upstream = tf.constant([[-1.0, 1.0]])
    margins = losses.pair_margins(kind, upstream, tf.constant([[-1.0]]), GAMMA, TEMPERATURE)
    np.testing.assert_allclose(margins, [expected], rtol=1e-5)


def test_probability_margins_by_hand() -> None:
    # Scores T * log(1, 2, 5) give probabilities 1/8, 2/8, 5/8; for each of the three as positive:
    upstream = TEMPERATURE * np.log(np.float32([[1, 2, 5]] * 3))
    margins = losses.probability_margins(upstream, np.diag(upstream)[:, None], 0.8, TEMPERATURE)
    np.testing.assert_allclose(margins, [[0, 0.1, 0.4], [0, 0, 0.3], [0, 0, 0]], atol=1e-6)


def test_depth_margins_by_hand() -> None:
    margins = losses.depth_margins(np.array([[0, 1, 2, 3]]), 3, 0.6)
    np.testing.assert_allclose(margins, [[0.6, 0.4, 0.2, 0.0]], atol=1e-7)


def test_margins_by_depth_are_not_of_pairs() -> None:
    with pytest.raises(ValueError, match="do not depend on pairs"):
        losses.pair_margins("depth", tf.zeros([1, 2]), tf.zeros([1, 1]), GAMMA, TEMPERATURE)


@pytest.mark.parametrize("kind", PAIRS)
def test_nothing_flows_back_into_upstream(kind: Margin) -> None:
    upstream = tf.constant([[0.1, 0.9, -0.4]])
    with tf.GradientTape() as tape:
        tape.watch(upstream)
        loss = losses.margin_loss(
            tf.constant([[0.3, 0.2, 0.1]]),
            upstream,
            tf.constant([[0]]),
            tf.zeros([3]),
            tf.constant([[-1e9, 0.0, 0.0]]),
            GAMMA,
            TEMPERATURE,
            kind,
        )
    assert tape.gradient(loss, upstream) is None


# --- the loss ----------------------------------------------------------------------------------


def _margin(kind: Margin, up: np.ndarray, i: int, every: np.ndarray) -> np.ndarray:
    """[C] METHOD 1.5, for one positive i with the upstream scores of its row."""
    if kind in ("adaptive", "negated"):
        r = 1 / (1 + np.exp(-(up - up[i]) / every.std()))
        return GAMMA * r if kind == "adaptive" else -GAMMA * r
    if kind == "probability":
        p = np.exp(up / TEMPERATURE) / np.exp(up / TEMPERATURE).sum()
        return GAMMA * np.maximum(p - p[i], 0)
    return np.full(len(up), GAMMA if kind == "constant" else 0.0)


def _expected_loss(kind: Margin, scores: np.ndarray, upstream: np.ndarray, batch: Batch) -> float:
    """Every positive against the negatives of its row, weighing 1 / sqrt(positives)."""
    pairs = [(row, i) for row, places in enumerate(batch.positives) for i in places if i >= 0]
    every = np.stack([upstream[row] for row, _ in pairs])  # T_m is taken over these
    total = weights = 0.0
    for row, i in pairs:
        margin = _margin(kind, upstream[row], i, every)
        against = np.exp((scores[row] + margin) / TEMPERATURE + offsets_of(batch)[row]).sum()
        positive = np.exp(scores[row, i] / TEMPERATURE)
        weight = 1 / np.sqrt(np.sum(batch.positives[row] >= 0))
        total -= weight * np.log(positive / (positive + against))
        weights += weight
    return total / weights


# --- a stage -----------------------------------------------------------------------------------


def _timelines() -> Timelines:
    """User 0 takes item 0 to level 2, then 1 to 2, 2 to 0, 3 to 1, 4 to 2; user 1 takes 5 and 0."""
    levels = np.array([2, 2, 0, 1, 2, 2, 2], np.int32)
    targets = levels.copy()
    targets[[0, 4]] = names.CONTEXT
    return Timelines(
        user_ids=np.array([0, 1], np.int32),
        offsets=np.array([0, 5, 7], np.int64),
        items=np.array([0, 1, 2, 3, 4, 5, 0], np.int32),
        levels=levels,
        times=np.array([0, 1, 2, 3, 4, 0, 0], np.int64),
        targets=targets,
        features={},
    )


def _settings(margin: Margin, gamma: float = GAMMA) -> StageSettings:
    return StageSettings(
        name="buy",
        batch_size=4,
        targets_per_row=2,
        temperature=TEMPERATURE,
        history_dropout=0.0,
        hard_negative_weight=5.0,
        gamma=gamma,
        margin=margin,
    )


def _batch(settings: StageSettings, level: int = STAGE) -> Batch:
    maker = BatchMaker(
        _timelines(),
        True,
        level,
        TowerSettings(history_length=5),
        settings,
        NegativeSettings(kind="exact"),
        N_ITEMS,
        2,
        seed=3,
    )
    return next(maker.batches())


def test_margins_by_depth_enter_the_offsets() -> None:
    batch = _batch(_settings("depth"))
    assert batch.candidates.tolist() == list(range(N_ITEMS))
    (row,) = np.flatnonzero((batch.positives == 1).any(axis=1))
    # Item 0 is history, 1 and 4 reach level 2: no negatives. Item 2 was exposed only, 3 clicked
    # (a hard negative, no margin), 5 never seen.
    offsets = offsets_of(batch)[row]
    removed = offsets < -1e6
    assert removed.tolist() == [True, True, False, False, True, False]
    np.testing.assert_allclose(
        offsets[~removed],
        [GAMMA / 2 / TEMPERATURE, np.log(5.0), GAMMA / TEMPERATURE],
        rtol=1e-6,
    )
    # Without them, the same batch has the hard negative alone.
    plain = _batch(_settings("adaptive"))
    np.testing.assert_allclose(offsets_of(plain)[row, ~removed], [0, np.log(5.0), 0], rtol=1e-6)


def test_the_first_stage_has_no_margins_by_depth() -> None:
    first = offsets_of(_batch(_settings("depth"), level=0))
    assert set(np.unique(first)) <= {np.float32(-1e9), np.float32(0)}


@pytest.mark.parametrize("margin", [*PAIRS, "depth"])
def test_a_stage_trains_with_the_margins_of_its_settings(margin: Margin) -> None:
    towers = TwoTower(
        TowerSpec(
            towers=TowerSettings(dimension=12, item_embedding=8, minimum_block=1),
            n_objectives=3,
            ordered=True,
            n_items=N_ITEMS,
            n_users=2,
            user_features={},
            item_features={},
        ),
        seed=1,
    )
    for stage in range(STAGE):
        towers.release(stage, 0.5, seed=2)
    settings = _settings(margin)
    batch = _batch(settings)
    tensors = tf.nest.map_structure(tf.constant, vars(batch))
    loss = StageTask(towers, {}, STAGE, settings).compute_loss((tensors,))

    users = towers.users(user_inputs(tensors))
    items = towers.items(tensors["candidates"], {})
    scores = [
        towers.learnt(users, k).numpy().astype(float) @ towers.learnt(items, k).numpy().T
        for k in range(3)
    ]
    expected = _expected_loss(margin, scores[2], scores[0] + scores[1], batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    plain = StageTask(towers, {}, STAGE, _settings(margin, 0.0)).compute_loss(
        (tf.nest.map_structure(tf.constant, vars(_batch(_settings("adaptive")))),)
    )
    assert abs(float(loss) - float(plain)) > 1e-3, "the margin makes a difference"
