"""Timelines and catalogue items -> serialised tf.Examples (names: schemas/names.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tensorflow.core.example import example_pb2

from components.interaction_gen.timelines import TimelineEvent
from schemas import names

# tf.Example key -> values; a feature without values is left out.
Features = Mapping[str, Sequence[bytes] | Sequence[float]]


def timeline_example(
    user_id: bytes, events: Sequence[TimelineEvent], user_features: Features
) -> bytes:
    """Serialises one chunk of a user's timeline."""
    example = example_pb2.Example()
    feature = example.features.feature
    timestamps, items, levels, targets = zip(*events, strict=True)
    feature[names.USER_ID].bytes_list.value.append(user_id)
    feature[names.ITEM_IDS].bytes_list.value.extend(items)
    feature[names.LEVELS].int64_list.value.extend(levels)
    feature[names.TIMESTAMPS].int64_list.value.extend(timestamps)
    feature[names.TARGET_LEVELS].int64_list.value.extend(targets)
    _add_features(example, user_features)
    return example.SerializeToString(deterministic=True)


def item_example(item_id: bytes, title: bytes, item_features: Features) -> bytes:
    """Serialises one item; an empty title falls back to the id."""
    example = example_pb2.Example()
    feature = example.features.feature
    feature[names.ITEM_ID].bytes_list.value.append(item_id)
    feature[names.ITEM_TITLE].bytes_list.value.append(title or item_id)
    _add_features(example, item_features)
    return example.SerializeToString(deterministic=True)


def _add_features(example: example_pb2.Example, features: Features) -> None:
    for key, values in features.items():
        if not values:
            continue
        if isinstance(values[0], bytes):
            example.features.feature[key].bytes_list.value.extend(values)
        else:
            example.features.feature[key].float_list.value.extend(values)
