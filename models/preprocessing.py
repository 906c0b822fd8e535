"""The Transform step: one TFT graph for timelines and catalogue, so that their ids agree."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from models.vocabulary import compute_and_apply, vocabulary
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
    items = (names.ITEM_IDS, names.ITEM_ID)
    every_item = tf.concat([inputs[key].values for key in items], axis=0)
    item_vocabulary = vocabulary(every_item, ITEM_VOCABULARY)
    for key in items:
        outputs[key] = tft.apply_vocabulary(inputs[key], item_vocabulary, num_oov_buckets=1)
    outputs[names.USER_ID] = compute_and_apply(inputs[names.USER_ID], USER_VOCABULARY)
    for key, kind in custom_config["features"].items():
        if kind == CATEGORICAL:
            outputs[key] = compute_and_apply(inputs[key], key)
        else:
            outputs[key] = tft.bucketize(inputs[key], num_buckets=_BUCKETS)
    return outputs


def feature_size(transform: tft.TFTransformOutput, key: str, kind: str) -> int:
    """Number of indices that a transformed feature can take, out-of-vocabulary included."""
    return transform.vocabulary_size_by_name(key) + 1 if kind == CATEGORICAL else _BUCKETS
