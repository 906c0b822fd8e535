"""The catalogue after Transform: ids, titles and features, row i being item i."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_transform as tft

from models.preprocessing import ITEM_VOCABULARY
from models.timelines import Ints, padded
from schemas import names


@dataclass(frozen=True)
class Catalogue:
    """The candidates; row i is item i of the vocabulary."""

    item_ids: npt.NDArray[np.object_]  # [n] bytes
    titles: npt.NDArray[np.object_]  # [n] bytes
    features: dict[str, Ints] = field(default_factory=dict)  # name -> [n, F], -1 is padding

    def __len__(self) -> int:
        return len(self.item_ids)


def read_catalogue(
    records: Iterable[bytes], transform: tft.TFTransformOutput, features: Iterable[str]
) -> Catalogue:
    """Reads transformed catalogue examples.

    Args:
      records: serialised tf.Examples of the catalogue split as Transform wrote them.
      transform: holds the item vocabulary.
      features: names of the item features.
    """
    item_ids = np.array(transform.vocabulary_by_name(ITEM_VOCABULARY), dtype=object)
    titles = item_ids.copy()
    keys = {name: names.item_feature(name) for name in features}
    values: dict[str, list[npt.NDArray[np.int64]]] = {
        name: [np.zeros(0, np.int64)] * len(item_ids) for name in keys
    }
    for record in records:
        example = tf.train.Example.FromString(record).features.feature
        row = example[names.ITEM_ID].int64_list.value[0]
        titles[row] = example[names.ITEM_TITLE].bytes_list.value[0]
        for name, key in keys.items():
            values[name][row] = np.asarray(example[key].int64_list.value, np.int64)
    return Catalogue(item_ids, titles, {name: padded(lists) for name, lists in values.items()})
