"""The Transform step: one TFT graph for timelines and catalogue, so that their ids agree."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from schemas import names

ITEM_VOCABULARY = "items"
USER_VOCABULARY = "users"

CATEGORICAL = "categorical"
NUMERIC = "numeric"
_BUCKETS = 10
_PASSED_ON = (names.LEVELS, names.TIMESTAMPS, names.TARGET_LEVELS, names.ITEM_TITLE)


def preprocessing_fn(inputs: dict[str, Any], custom_config: dict[str, Any]) -> dict[str, Any]:
    """Turns raw ids and features into vocabulary indices.

    All inputs are sparse, as each split fills only its own features. Vocabularies are ordered by
    frequency in the analysed splits (train timelines and catalogue); the index after the last
    entry is the out-of-vocabulary bucket. Numbers become the index of one of ten quantile buckets.

    Args:
      inputs: the raw features named in `schemas.names`, and the declared user and item features.
      custom_config: {"features": {tf.Example key: "categorical" | "numeric"}}.

    Returns:
      The same keys, as int64 indices; levels, times and titles unchanged.
    """
    outputs = {key: inputs[key] for key in _PASSED_ON}
    every_item = tf.sparse.concat(axis=1, sp_inputs=[inputs[names.ITEM_IDS], inputs[names.ITEM_ID]])
    item_vocabulary = tft.vocabulary(every_item, vocab_filename=ITEM_VOCABULARY)
    for key in (names.ITEM_IDS, names.ITEM_ID):
        outputs[key] = tft.apply_vocabulary(inputs[key], item_vocabulary, num_oov_buckets=1)
    outputs[names.USER_ID] = tft.compute_and_apply_vocabulary(
        inputs[names.USER_ID], vocab_filename=USER_VOCABULARY, num_oov_buckets=1
    )
    for key, kind in custom_config["features"].items():
        if kind == CATEGORICAL:
            outputs[key] = tft.compute_and_apply_vocabulary(
                inputs[key], vocab_filename=key, num_oov_buckets=1
            )
        else:
            outputs[key] = tft.bucketize(inputs[key], num_buckets=_BUCKETS)
    return outputs


def feature_size(transform: tft.TFTransformOutput, key: str, kind: str) -> int:
    """Number of indices that a transformed feature can take, out-of-vocabulary included."""
    return transform.vocabulary_size_by_name(key) + 1 if kind == CATEGORICAL else _BUCKETS
