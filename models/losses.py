"""Softmax losses over scored candidates: logQ correction and the cross-stage adaptive margin."""

from __future__ import annotations

import tensorflow as tf


def adaptive_margins(upstream: tf.Tensor, upstream_positive: tf.Tensor, gamma: float) -> tf.Tensor:
    """Cross-stage adaptive margins m_ij (CSMF's AML, METHOD 1.5, default form).

    m_ij = gamma * sigmoid((s_up(u, j) - s_up(u, i)) / T_m), T_m = standard deviation of s_up. A
    pair that upstream orders well gets almost none, a pair it orders wrongly gets up to gamma.
    Nothing flows back into the upstream scores.

    Args:
      upstream: [B, C] fused upstream score of every candidate.
      upstream_positive: [B, 1] fused upstream score of the positive.
      gamma: largest margin, on the scale of the scores.

    Returns:
      [B, C] margins to add to the candidates' scores.
    """
    upstream = tf.stop_gradient(upstream)
    scale = tf.maximum(tf.math.reduce_std(upstream), 1e-6)
    return gamma * tf.sigmoid((upstream - tf.stop_gradient(upstream_positive)) / scale)


def log_expected_count(
    probability: tf.Tensor, batch_size: tf.Tensor | int, n_random: int, n_items: int
) -> tf.Tensor:
    """logQ of mixed negatives: log of how often an item is expected among a batch's candidates.

    A batch offers B in-batch items, drawn as often as they are positives, and R items drawn
    uniformly: E[count of j] = B * p_j + R / N. Subtracting its logarithm from the logit corrects
    the sampled softmax (Yi et al. 2019; mixed sampling: Yang et al. 2020).

    Args:
      probability: [C] p_j, share of the stage's positives that fall on the item.
      batch_size: B.
      n_random: R.
      n_items: N, size of the catalogue.
    """
    in_batch = tf.cast(batch_size, tf.float32) * probability
    return tf.math.log(in_batch + n_random / n_items)


def softmax_loss(
    logits: tf.Tensor,
    positives: tf.Tensor,
    removed: tf.Tensor,
    log_q: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over the batch of -log softmax of the positive among the candidates.

    Args:
      logits: [B, C] scores, margins included, divided by the temperature.
      positives: int [B] column of each row's positive.
      removed: bool [B, C] candidates that are no negatives for the row (accidental hits). The
        positive's own column is kept whatever it says.
      log_q: [C] see `log_expected_count`; None when every item is a candidate.

    Returns:
      Scalar.
    """
    if log_q is not None:
        logits -= log_q[None, :]
    is_positive = tf.one_hot(positives, tf.shape(logits)[1], on_value=True, off_value=False)
    logits = tf.where(removed & ~is_positive, logits.dtype.min, logits)
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=positives, logits=logits)
    )
