"""logQ, accidental hits and adaptive margins against NumPy and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from models import losses


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _probabilities(logits: np.ndarray, removed: np.ndarray, positive: int) -> np.ndarray:
    """Softmax probabilities that the loss gives to the candidates of one row.

    The gradient of -log p_positive with respect to the logits is p - onehot(positive).
    """
    variable = tf.Variable(logits[None, :].astype(np.float32))
    with tf.GradientTape() as tape:
        loss = losses.softmax_loss(
            tf.identity(variable), tf.constant([positive]), tf.constant(removed[None, :])
        )
    gradient = tape.gradient(loss, variable).numpy()[0]
    return gradient + np.eye(len(logits))[positive]


# --- logQ -----------------------------------------------------------------------------------


def test_log_expected_count_by_hand() -> None:
    # 8 in-batch draws with p = 1/2, 1/4, 0 and 10 uniform draws from 100 items:
    # 8 * 0.5 + 0.1 = 4.1;  8 * 0.25 + 0.1 = 2.1;  0 + 0.1.
    log_q = losses.log_expected_count(tf.constant([0.5, 0.25, 0.0]), 8, 10, 100)
    np.testing.assert_allclose(log_q, np.log([4.1, 2.1, 0.1]), rtol=1e-6)


def test_log_expected_count_is_what_a_simulation_counts() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.6, 0.3, 0.1, 0.0])
    rounds = 50_000
    drawn = [rng.choice(4, 3 * rounds, p=share), rng.integers(0, 4, 2 * rounds)]
    counts = np.bincount(np.concatenate(drawn), minlength=4)
    log_q = losses.log_expected_count(tf.constant(share, tf.float32), tf.constant(3), 2, 4).numpy()
    np.testing.assert_allclose(np.exp(log_q), counts / rounds, rtol=0.03)


def test_sampled_softmax_with_logq_equals_numpy() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 7)).astype(np.float32)
    log_q = rng.normal(size=7).astype(np.float32)
    positives = np.array([0, 3, 6, 2, 2])
    removed = rng.random((5, 7)) < 0.3
    expected = []
    for row, positive in enumerate(positives):
        kept = [c for c in range(7) if c == positive or not removed[row, c]]
        corrected = logits[row].astype(float) - log_q  # subtracted: the sign matters
        expected.append(math.log(sum(math.exp(corrected[c]) for c in kept)) - corrected[positive])
    loss = losses.softmax_loss(
        tf.constant(logits), tf.constant(positives), tf.constant(removed), tf.constant(log_q)
    )
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_popular_in_batch_negatives_are_corrected_downwards() -> None:
    # A popular item (column 1) and a rare one (column 2) score alike. Without the correction both
    # weigh the same; with it the popular one, which is drawn far more often, weighs less.
    log_q = losses.log_expected_count(tf.constant([0.1, 0.8, 0.01]), 64, 16, 1000)
    logits = tf.Variable([[0.0, 0.0, 0.0]])
    gradients = {}
    for name, correction in (("plain", None), ("corrected", log_q)):
        with tf.GradientTape() as tape:
            loss = losses.softmax_loss(
                tf.identity(logits), tf.constant([0]), tf.zeros([1, 3], tf.bool), correction
            )
        gradients[name] = tape.gradient(loss, logits).numpy()[0]
    assert gradients["plain"][1] == pytest.approx(gradients["plain"][2])
    assert gradients["corrected"][1] < gradients["corrected"][2]
    ratio = gradients["corrected"][2] / gradients["corrected"][1]
    assert ratio == pytest.approx((64 * 0.8 + 0.016) / (64 * 0.01 + 0.016), rel=1e-4)


def test_logq_makes_the_sampled_softmax_consistent() -> None:
    """The sampled partition function, corrected, is on average that of the full softmax."""
    rng = np.random.default_rng(2)
    n_items, batch, n_random = 12, 6, 5
    scores = rng.normal(size=n_items)
    share = rng.dirichlet(np.ones(n_items))
    log_q = losses.log_expected_count(
        tf.constant(share, tf.float32), batch, n_random, n_items
    ).numpy()
    rounds = 50_000
    drawn = [
        rng.choice(n_items, batch * rounds, p=share),
        rng.integers(0, n_items, n_random * rounds),
    ]
    weights = np.exp(scores - log_q)[np.concatenate(drawn)]
    assert weights.sum() / rounds == pytest.approx(np.exp(scores).sum(), rel=0.02)


# --- accidental hits ------------------------------------------------------------------------


def test_removed_candidates_get_no_probability() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=6) * 5
    removed = np.array([False, True, False, True, False, False])
    probabilities = _probabilities(logits, removed, positive=2)
    np.testing.assert_allclose(probabilities[removed], 0.0, atol=1e-12)
    np.testing.assert_allclose(
        probabilities[~removed], _softmax(logits[None, ~removed])[0], rtol=1e-4
    )


def test_a_removed_candidate_far_above_all_others_still_gets_no_probability() -> None:
    probabilities = _probabilities(
        np.array([0.0, 500.0, 0.0]), np.array([False, True, False]), positive=0
    )
    np.testing.assert_allclose(probabilities, [0.5, 0.0, 0.5], atol=1e-6)


def test_the_positive_is_never_removed() -> None:
    logits = np.array([1.0, 2.0, 3.0])
    removed = np.ones(3, bool)
    probabilities = _probabilities(logits, removed, positive=1)
    np.testing.assert_allclose(probabilities, [0.0, 1.0, 0.0], atol=1e-6)
    loss = losses.softmax_loss(
        tf.constant(logits[None, :], tf.float32), tf.constant([1]), tf.constant(removed[None, :])
    )
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_loss_and_gradient_stay_finite_with_removed_candidates_and_logq() -> None:
    logits = tf.Variable([[50.0, -50.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = losses.softmax_loss(
            tf.identity(logits),
            tf.constant([1]),
            tf.constant([[True, True, False]]),
            tf.constant([-9.0, 9.0, -9.0]),
        )
    assert np.isfinite(float(loss))
    assert np.all(np.isfinite(tape.gradient(loss, logits)))


# --- adaptive margins -----------------------------------------------------------------------


def test_margins_by_hand() -> None:
    # Scores 1, 3 and 1, 3: standard deviation 1. The positives score 3 and 1.
    upstream = tf.constant([[1.0, 3.0], [1.0, 3.0]])
    margins = losses.adaptive_margins(upstream, tf.constant([[3.0], [1.0]]), 0.4)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731 - a formula
    expected = 0.4 * np.array([[sigmoid(-2), sigmoid(0)], [sigmoid(0), sigmoid(2)]])
    np.testing.assert_allclose(margins, expected, rtol=1e-6)


def test_pairs_that_upstream_orders_wrongly_get_the_larger_margin() -> None:
    upstream = tf.constant([[-1.0, 0.0, 1.0]])
    margins = losses.adaptive_margins(upstream, tf.constant([[0.0]]), 0.1).numpy()[0]
    assert 0 < margins[0] < margins[1] < margins[2] < 0.1
    assert margins[1] == pytest.approx(0.05)


def test_margins_do_not_depend_on_the_scale_of_upstream() -> None:
    rng = np.random.default_rng(4)
    upstream = rng.normal(size=(3, 5)).astype(np.float32)
    one = losses.adaptive_margins(tf.constant(upstream), tf.constant(upstream[:, :1]), 1.0)
    two = losses.adaptive_margins(tf.constant(upstream * 7), tf.constant(upstream[:, :1] * 7), 1.0)
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_equal_upstream_scores_give_half_the_margin_and_no_nan() -> None:
    margins = losses.adaptive_margins(tf.fill([2, 3], 0.7), tf.fill([2, 1], 0.7), 0.2)
    np.testing.assert_allclose(margins, 0.1, rtol=1e-6)


def test_without_gamma_the_loss_is_the_plain_softmax() -> None:
    rng = np.random.default_rng(5)
    scores = tf.constant(rng.normal(size=(4, 6)), tf.float32)
    upstream = tf.constant(rng.normal(size=(4, 6)), tf.float32)
    positives, none = tf.constant([0, 1, 2, 3]), tf.zeros([4, 6], tf.bool)
    of_positive = tf.gather(upstream, positives, axis=1, batch_dims=1)[:, None]
    margins = losses.adaptive_margins(upstream, of_positive, 0.0)
    assert np.array_equal(margins, np.zeros((4, 6)))
    with_margin = losses.softmax_loss(scores + margins, positives, none)
    expected = -np.log(_softmax(scores.numpy())[np.arange(4), positives.numpy()]).mean()
    assert float(with_margin) == pytest.approx(float(expected), rel=1e-5)


def test_nothing_flows_back_into_upstream() -> None:
    upstream = tf.Variable([[0.1, 0.5, -0.3]])
    with tf.GradientTape() as tape:
        margins = losses.adaptive_margins(tf.identity(upstream), upstream[:, :1], 0.3)
        loss = tf.reduce_sum(margins)
    assert tape.gradient(loss, upstream) is None
