"""Softmax losses over scored candidates: logQ correction and the cross-stage margins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models import replicas
from models.settings import Margin


def log_expected_count(
    probability: npt.NDArray[np.float64], in_batch: int, n_random: int, n_items: int
) -> npt.NDArray[np.float64]:
    """logQ of mixed negatives: log of how often an item is expected among a batch's candidates.

    A batch offers B in-batch items, drawn as often as they are positives, and R items drawn
    uniformly: E[count of j] = B * p_j + R / N. Subtracting its logarithm from the logit corrects
    the sampled softmax (Yi et al. 2019; mixed sampling: Yang et al. 2020).

    Args:
      probability: [C] p_j, share of the stage's positives that fall on the item.
      in_batch: B.
      n_random: R.
      n_items: N, size of the catalogue.
    """
    return np.log(in_batch * probability + n_random / n_items)


def negative_offsets(
    offsets: tf.Tensor, places: tf.Tensor, there: tf.Tensor, rows: tf.Tensor
) -> tf.Tensor:
    """[B, C] what is added to negatives: `offsets` in every row, and `there` at a few places.

    Spread out in the graph: a matrix that the host fills and copies takes it longer than all
    else that it does for a batch. The op writes a place in 5 ns, `tf.scatter_nd` in 20.

    Args:
      offsets: [C] by candidate.
      places: int32 [M] row * C + column, each at most once.
      there: [M] added at the places beside `offsets`.
      rows: scalar B.
    """
    columns = tf.size(offsets)
    beside = tf.raw_ops.SparseToDense(
        sparse_indices=places,
        output_shape=[rows * columns],
        sparse_values=there,
        default_value=0.0,
        validate_indices=False,
    )
    return offsets[None, :] + tf.reshape(beside, [rows, -1])


def softmax_loss(
    logits: tf.Tensor, positives: tf.Tensor, log_q: tf.Tensor, offsets: tf.Tensor
) -> tf.Tensor:
    """Softmax loss of rows with several positives that share their negatives.

    The positives of a row do not compete with each other: each is compared with the row's
    negatives alone. A row of n positives weighs sqrt(n), so that the few users with the longest
    histories do not decide alone.

    Args:
      logits: [B, C] scores divided by the temperature.
      positives: int [B, W] columns, -1 is padding.
      log_q: [C] see `log_expected_count`; 0 when every item is a candidate.
      offsets: [B, C] added to negatives; very negative = no negative of this row.

    Returns:
      Scalar.
    """
    adjusted = logits - log_q[None, :]
    against = tf.reduce_logsumexp(adjusted + offsets, axis=1, keepdims=True)  # [B, 1]
    of_positive = tf.gather(adjusted, tf.maximum(positives, 0), axis=1, batch_dims=1)
    return _weighted(tf.math.softplus(against - of_positive), positives)


def margin_loss(
    logits: tf.Tensor,
    upstream: tf.Tensor,
    positives: tf.Tensor,
    log_q: tf.Tensor,
    offsets: tf.Tensor,
    gamma: float,
    temperature: float,
    kind: Margin = "adaptive",
) -> tf.Tensor:
    """`softmax_loss` with the cross-stage adaptive margins of CSMF (AML, METHOD 1.5).

    m_ij = gamma * sigmoid((s_up(u, j) - s_up(u, i)) / T_m) is added to the score of every negative
    j of a positive i; T_m = standard deviation of s_up. A pair that upstream orders well gets
    almost none, a pair it orders wrongly gets up to gamma. Other kinds: see `pair_margins`.

    Args:
      logits: [B, C] scores divided by the temperature.
      upstream: [B, C] fused upstream scores; nothing flows back into them.
      positives: int [B, W] columns, -1 is padding.
      log_q: [C] see `softmax_loss`.
      offsets: [B, C] see `softmax_loss`.
      gamma: largest margin, on the scale of the scores.
      temperature: of the logits.
      kind: of the margins.
    """
    adjusted = logits - log_q[None, :]
    places = tf.where(positives >= 0)  # [P, 2] (row, place)
    rows = places[:, 0]
    columns = tf.gather_nd(positives, places)
    margins = pair_margins(
        kind,
        tf.gather(upstream, rows),
        tf.gather(tf.gather(upstream, rows), columns, axis=1, batch_dims=1)[:, None],
        gamma,
        temperature,
    )
    against = tf.reduce_logsumexp(
        tf.gather(adjusted + offsets, rows) + margins / temperature, axis=1
    )
    of_positive = tf.gather_nd(adjusted, tf.stack([tf.cast(rows, tf.int32), columns], axis=1))
    losses = tf.scatter_nd(
        places, tf.math.softplus(against - of_positive), tf.shape(positives, tf.int64)
    )
    return _weighted(losses, positives)


def adaptive_margins(upstream: tf.Tensor, upstream_positive: tf.Tensor, gamma: float) -> tf.Tensor:
    """[P, C] margins of P positives against C candidates; see `margin_loss`.

    Args:
      upstream: [P, C] fused upstream score of every candidate.
      upstream_positive: [P, 1] fused upstream score of the positive.
      gamma: largest margin.
    """
    upstream = tf.stop_gradient(upstream)
    scale = tf.maximum(_deviation(upstream), 1e-6)
    return gamma * tf.sigmoid((upstream - tf.stop_gradient(upstream_positive)) / scale)


def probability_margins(
    upstream: tf.Tensor, upstream_positive: tf.Tensor, gamma: float, temperature: float
) -> tf.Tensor:
    """[P, C] gamma * relu(p_up(j) - p_up(i)), p_up = softmax of upstream / temperature.

    Args:
      upstream: [P, C] fused upstream score of every candidate; the softmax runs over them all.
      upstream_positive: [P, 1] fused upstream score of the positive, one of the candidates.
      gamma: largest margin.
      temperature: of the softmax.
    """
    logits = tf.stop_gradient(upstream) / temperature
    of_positive = tf.stop_gradient(upstream_positive) / temperature
    total = tf.reduce_logsumexp(logits, axis=1, keepdims=True)
    return gamma * tf.nn.relu(tf.exp(logits - total) - tf.exp(of_positive - total))


def depth_margins(
    depths: npt.NDArray[np.int32], stage: int, gamma: float
) -> npt.NDArray[np.float32]:
    """gamma * (1 - depth / stage): gamma for items never exposed, 0 for hard negatives.

    Args:
      depths: how many levels the user took each item to, 0 = never exposed .. `stage`.
      stage: index of the objective, at least 1.
      gamma: largest margin.
    """
    return (gamma * (1.0 - depths / stage)).astype(np.float32)


def pair_margins(
    kind: Margin,
    upstream: tf.Tensor,
    upstream_positive: tf.Tensor,
    gamma: float,
    temperature: float,
) -> tf.Tensor:
    """[P, C] margins of P positives against C candidates.

    Args:
      kind: adaptive (`adaptive_margins`), its negative, probability (`probability_margins`) or
        constant. Margins by depth do not depend on the positive: they are `Batch.offsets`.
      upstream: [P, C] fused upstream score of every candidate.
      upstream_positive: [P, 1] fused upstream score of the positive.
      gamma: largest margin.
      temperature: of the logits; read by the probabilities.

    Raises:
      ValueError: margins by depth.
    """
    if kind == "adaptive":
        return adaptive_margins(upstream, upstream_positive, gamma)
    if kind == "negated":
        return -adaptive_margins(upstream, upstream_positive, gamma)
    if kind == "probability":
        return probability_margins(upstream, upstream_positive, gamma, temperature)
    if kind == "constant":
        return tf.fill(tf.shape(upstream), gamma)
    raise ValueError(f"margins of kind {kind!r} do not depend on pairs")


def _deviation(values: tf.Tensor) -> tf.Tensor:
    """Standard deviation of the values of all replicas."""
    if not replicas.are_many():
        return tf.math.reduce_std(values)
    count = replicas.total(tf.cast(tf.size(values), tf.float32))
    mean = replicas.total(tf.reduce_sum(values)) / tf.maximum(count, 1.0)
    squares = replicas.total(tf.reduce_sum(tf.math.squared_difference(values, mean)))
    return tf.sqrt(squares / tf.maximum(count, 1.0))


def _weighted(losses: tf.Tensor, positives: tf.Tensor) -> tf.Tensor:
    """Mean of the losses [B, W] of the positives, each weighing 1 / sqrt(positives of its row).

    Of several replicas each gets its part of the mean: theirs sum up to that of the global batch.
    """
    is_positive = tf.cast(positives >= 0, tf.float32)
    count = tf.reduce_sum(is_positive, axis=1, keepdims=True)
    weights = is_positive / tf.sqrt(tf.maximum(count, 1.0))
    return tf.reduce_sum(losses * weights) / tf.maximum(
        replicas.total(tf.reduce_sum(weights)), 1e-9
    )
