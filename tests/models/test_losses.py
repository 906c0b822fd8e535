"""logQ, rows with several positives and adaptive margins against NumPy and values by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import losses

GONE = np.float32(-1e9)


@dataclass(frozen=True)
class Case:
    """A random batch with padding, removed candidates, logQ and offsets."""

    logits: np.ndarray
    upstream: np.ndarray
    positives: np.ndarray
    log_q: np.ndarray
    offsets: np.ndarray

    def common(self) -> tuple[tf.Tensor, ...]:
        return tf.constant(self.positives), tf.constant(self.log_q), tf.constant(self.offsets)

    def softmax(self, logits: Any = None) -> tf.Tensor:
        return losses.softmax_loss(
            tf.constant(self.logits) if logits is None else logits, *self.common()
        )

    def margin(self, gamma: float, temperature: float, logits: Any = None) -> tf.Tensor:
        return losses.margin_loss(
            tf.constant(self.logits) if logits is None else logits,
            tf.constant(self.upstream),
            *self.common(),
            gamma,
            temperature,
        )


def _case(seed: int, rows: int = 6, candidates: int = 9, width: int = 4) -> Case:
    rng = np.random.default_rng(seed)
    positives = np.full((rows, width), -1, np.int32)
    offsets = rng.choice([0.0, math.log(3.0), GONE], (rows, candidates)).astype(np.float32)
    offsets[:, 0] = 0.0  # a negative is always left ..
    for row in range(rows):
        count = row % (width + 1)  # .. and the first row has no positive at all
        chosen = rng.choice(np.arange(1, candidates), count, replace=False)
        positives[row, rng.choice(width, count, replace=False)] = chosen
        offsets[row, chosen] = GONE
    return Case(
        logits=rng.normal(0, 3, (rows, candidates)).astype(np.float32),
        upstream=rng.normal(0, 1, (rows, candidates)).astype(np.float32),
        positives=positives,
        log_q=rng.normal(0, 1, candidates).astype(np.float32),
        offsets=offsets,
    )


def _oracle(case: Case, gamma: float = 0.0, temperature: float = 1.0) -> float:
    """METHOD 1.5 and 1.6, one positive at a time, in float64."""
    pairs = [(row, int(c)) for row, line in enumerate(case.positives) for c in line if c >= 0]
    scores = np.concatenate([case.upstream[row] for row, _ in pairs]).astype(float)
    deviation = scores.std()
    total = weights = 0.0
    for row, positive in pairs:
        logits = case.logits[row].astype(float) - case.log_q  # subtracted: the sign matters
        terms = [math.exp(logits[positive])]
        for column in range(len(logits)):
            if case.offsets[row, column] > -1e8:
                gap = case.upstream[row, column] - case.upstream[row, positive]
                margin = gamma / (1 + math.exp(-gap / deviation))
                terms.append(
                    math.exp(logits[column] + case.offsets[row, column] + margin / temperature)
                )
        weight = 1 / math.sqrt(sum(row == other for other, _ in pairs))
        total += weight * -math.log(terms[0] / sum(terms))
        weights += weight
    return total / weights


# --- logQ -----------------------------------------------------------------------------------


def test_log_expected_count_by_hand() -> None:
    # 8 in-batch draws with p = 1/2, 1/4, 0 and 10 uniform draws from 100 items:
    # 8 * 0.5 + 0.1 = 4.1;  8 * 0.25 + 0.1 = 2.1;  0 + 0.1.
    log_q = losses.log_expected_count(np.array([0.5, 0.25, 0.0]), 8, 10, 100)
    np.testing.assert_allclose(log_q, np.log([4.1, 2.1, 0.1]), rtol=1e-12)


def test_log_expected_count_is_what_a_simulation_counts() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.6, 0.3, 0.1, 0.0])
    rounds = 50_000
    drawn = [rng.choice(4, 3 * rounds, p=share), rng.integers(0, 4, 2 * rounds)]
    counts = np.bincount(np.concatenate(drawn), minlength=4)
    log_q = losses.log_expected_count(share, 3, 2, 4)
    np.testing.assert_allclose(np.exp(log_q), counts / rounds, rtol=0.03)


def test_logq_makes_the_sampled_softmax_consistent() -> None:
    """The sampled partition function, corrected, is on average that of the full softmax."""
    rng = np.random.default_rng(2)
    n_items, batch, n_random = 12, 6, 5
    scores = rng.normal(size=n_items)
    share = rng.dirichlet(np.ones(n_items))
    log_q = losses.log_expected_count(share, batch, n_random, n_items)
    rounds = 50_000
    drawn = [
        rng.choice(n_items, batch * rounds, p=share),
        rng.integers(0, n_items, n_random * rounds),
    ]
    weights = np.exp(scores - log_q)[np.concatenate(drawn)]
    assert weights.sum() / rounds == pytest.approx(np.exp(scores).sum(), rel=0.02)


def test_popular_negatives_are_corrected_downwards() -> None:
    # A popular item (column 1) and a rare one (column 2) score alike. Without the correction both
    # weigh the same; with it the popular one, which is drawn far more often, weighs less.
    share = np.array([0.1, 0.8, 0.01])
    log_q = losses.log_expected_count(share, 64, 16, 1000).astype(np.float32)
    logits = tf.Variable([[0.0, 0.0, 0.0]])
    gradients = []
    for correction in (np.zeros(3, np.float32), log_q):
        with tf.GradientTape() as tape:
            loss = losses.softmax_loss(
                tf.identity(logits),
                tf.constant([[0]]),
                tf.constant(correction),
                tf.constant([[GONE, 0.0, 0.0]]),
            )
        gradients.append(tape.gradient(loss, logits).numpy()[0])
    plain, corrected = gradients
    assert plain[1] == pytest.approx(plain[2])
    ratio = corrected[2] / corrected[1]
    assert ratio == pytest.approx((64 * 0.8 + 0.016) / (64 * 0.01 + 0.016), rel=1e-4)


# --- rows with several positives ------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_softmax_loss_equals_numpy(seed: int) -> None:
    case = _case(seed)
    assert float(case.softmax()) == pytest.approx(_oracle(case), rel=1e-5)


def test_softmax_loss_by_hand() -> None:
    # Two rows over three candidates that all score 0. The first has one positive and two
    # negatives: loss log 3. The second has two positives and one negative: twice log 2, each at
    # weight 1/sqrt(2).
    loss = losses.softmax_loss(
        tf.zeros([2, 3]),
        tf.constant([[0, -1], [1, 2]]),
        tf.zeros([3]),
        tf.constant([[GONE, 0, 0], [0, GONE, GONE]]),
    )
    root = math.sqrt(2)
    expected = (math.log(3) + root * math.log(2)) / (1 + root)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_positives_of_a_row_do_not_compete() -> None:
    logits = tf.Variable([[2.0, -1.0, 0.5, 0.0]])
    offsets = tf.constant([[GONE, GONE, 0, 0]])

    def gradient(positives: list[int]) -> np.ndarray:
        with tf.GradientTape() as tape:
            loss = losses.softmax_loss(
                tf.identity(logits), tf.constant([positives]), tf.zeros([4]), offsets
            )
        return tape.gradient(loss, logits).numpy()[0]

    both, first, second = gradient([0, 1]), gradient([0, -1]), gradient([1, -1])
    assert first[1] == second[0] == 0.0
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-5)


def test_removed_candidates_and_padding_get_no_gradient() -> None:
    for gamma in (None, 0.3):
        case = _case(3)
        logits = tf.Variable(case.logits)
        with tf.GradientTape() as tape:
            loss = (
                case.softmax(tf.identity(logits))
                if gamma is None
                else case.margin(gamma, 0.2, tf.identity(logits))
            )
        gradient = tape.gradient(loss, logits).numpy()
        assert np.all(np.isfinite(gradient))
        rows = np.arange(len(case.positives))[:, None]
        is_positive = np.zeros(case.logits.shape, bool)
        is_positive[np.broadcast_to(rows, case.positives.shape), case.positives] |= (
            case.positives >= 0
        )
        negative = (case.offsets > -1e8) & (case.positives >= 0).any(axis=1, keepdims=True)
        assert np.all(gradient[is_positive & ~negative] < 0)
        assert np.all(gradient[negative] > 0)
        assert np.all(gradient[~is_positive & ~negative] == 0.0)


def test_a_removed_candidate_far_above_all_others_changes_nothing() -> None:
    def loss(score: float) -> float:
        return float(
            losses.softmax_loss(
                tf.constant([[0.0, score, 0.0]]),
                tf.constant([[0]]),
                tf.constant([-9.0, 9.0, -9.0]),
                tf.constant([[GONE, GONE, 0.0]]),
            )
        )

    assert loss(500.0) == loss(-500.0) == pytest.approx(math.log(2))


def test_without_any_negative_there_is_nothing_to_learn() -> None:
    case = _case(1)
    case.offsets[:] = GONE
    logits = tf.Variable(case.logits)
    with tf.GradientTape() as tape:
        loss = case.softmax(tf.identity(logits))
    assert float(loss) == 0.0
    assert not tape.gradient(loss, logits).numpy().any()


def test_a_hard_negative_counts_as_often_as_it_weighs() -> None:
    def loss(logits: list[float], offsets: list[float]) -> float:
        return float(
            losses.softmax_loss(
                tf.constant([logits]),
                tf.constant([[0]]),
                tf.zeros([len(logits)]),
                tf.constant([[GONE, *offsets]]),
            )
        )

    assert loss([1.0, 0.5, 0.2], [math.log(3), 0.0]) == pytest.approx(
        loss([1.0, 0.5, 0.5, 0.5, 0.2], [0.0, 0.0, 0.0, 0.0]), rel=1e-6
    )


# --- adaptive margins -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_margin_loss_equals_numpy(seed: int) -> None:
    case = _case(seed)
    assert float(case.margin(0.4, 0.2)) == pytest.approx(_oracle(case, 0.4, 0.2), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_without_gamma_the_margin_loss_is_the_softmax_loss(seed: int) -> None:
    case = _case(seed)
    assert float(case.margin(0.0, 0.2)) == pytest.approx(float(case.softmax()), rel=1e-6)


def test_a_margin_makes_the_task_harder_the_more_so_the_larger_it_is() -> None:
    case = _case(2)
    values = [float(case.margin(gamma, 0.2)) for gamma in (0.0, 0.1, 0.3)]
    assert values == sorted(values)
    assert values[0] < values[1] < values[2]


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


def test_nothing_flows_back_into_upstream() -> None:
    case = _case(0)
    upstream, logits = tf.Variable(case.upstream), tf.Variable(case.logits)
    with tf.GradientTape() as tape:
        loss = losses.margin_loss(
            tf.identity(logits), tf.identity(upstream), *case.common(), 0.3, 0.2
        )
    into_upstream, into_logits = tape.gradient(loss, [upstream, logits])
    assert into_upstream is None
    assert np.any(into_logits.numpy() != 0.0)


def test_offsets_of_negatives_are_those_of_the_candidates_and_of_the_places() -> None:
    offsets = losses.negative_offsets(
        tf.constant([0.5, 0.0, 2.0]),
        tf.constant([1, 6, 8], tf.int32),
        tf.constant([-1e9, 1.25, -1e9]),
        tf.constant(3),
    )
    expected = [[0.5, -1e9, 2.0], [0.5, 0.0, 2.0], [1.75, 0.0, -1e9]]
    assert offsets.numpy().tolist() == expected
    none = losses.negative_offsets(
        tf.zeros([2]), tf.zeros([0], tf.int32), tf.zeros([0]), tf.constant(2)
    )
    assert none.numpy().tolist() == [[0.0, 0.0]] * 2
