"""A model of known answers: its first objective likes low numbers, the last one high ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.types import artifact_utils, standard_artifacts

from schemas import names

OBJECTIVES = ["exposure", "click"]
N_ITEMS = 120
WEIGHTS = {"exposure": [1.0, 0.0], "click": [0.0, 2.0]}
TRAIN, EVAL, CATALOGUE = names.TRAIN_SPLIT, names.EVAL_SPLIT, names.CATALOGUE_SPLIT


def item(number: int) -> bytes:
    return b"i%03d" % number


def vectors() -> np.ndarray:
    """[n, 3]: a block of two whose product with (1, 0) falls with the number, one that rises."""
    angles = np.arange(N_ITEMS) / N_ITEMS
    rising = np.arange(N_ITEMS) / N_ITEMS
    return np.stack([np.cos(angles), np.sin(angles), rising], axis=1).astype(np.float32)


class Toy(tf.Module):
    """The signatures of `models.recommender`, for users who are all alike."""

    def __init__(self) -> None:
        super().__init__()
        ids = [item(n) for n in range(N_ITEMS)]
        self._ids = tf.constant([*ids, b""])
        # Not every text is UTF-8, and not every item has a title.
        titles = [b"Title of %s" % i for i in ids]
        titles[5], titles[6] = b"caf\xe9", b""
        self._titles = tf.constant([*titles, b""])
        self._rows = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(ids, list(range(N_ITEMS)), value_dtype=tf.int32),
            N_ITEMS,
        )
        self._vectors = tf.constant(vectors())

    def _blocks(self, users: tf.Tensor) -> tf.Tensor:
        return tf.tile(tf.constant([[1.0, 0.0, 1.0]]), [tf.shape(users)[0], 1])

    def recommend(
        self,
        user_id: tf.Tensor,
        history_item_ids: tf.Tensor,
        history_levels: tf.Tensor,
        exclude_item_ids: tf.Tensor,
        objective_weights: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        del history_levels, exclude_item_ids
        query = self._blocks(user_id) * tf.repeat(objective_weights, [2, 1], axis=1)
        scores = tf.matmul(query, self._vectors, transpose_b=True)
        seen = tf.reduce_max(
            tf.one_hot(self._rows.lookup(history_item_ids), N_ITEMS), axis=1, keepdims=False
        )
        scores, rows = tf.math.top_k(tf.where(seen > 0, -np.inf, scores), k=100)
        found = tf.math.is_finite(scores)
        return {
            names.ITEM_IDS: tf.gather(self._ids, tf.where(found, rows, N_ITEMS)),
            names.SCORES: tf.where(found, scores, 0.0),
        }

    def embed_user(
        self, user_id: tf.Tensor, history_item_ids: tf.Tensor, history_levels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        del history_item_ids, history_levels
        return {
            names.BLOCKS: self._blocks(user_id),
            names.BLOCK_SIZES: tf.constant([2, 1], tf.int64),
        }

    def item_titles(self, item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {names.TITLES: tf.gather(self._titles, self._rows.lookup(item_ids))}


def save_toy(directory: Path) -> None:
    """Writes a SavedModel and its manifest."""
    toy = Toy()
    user = {
        names.USER_ID: tf.TensorSpec([None], tf.string, names.USER_ID),
        names.HISTORY_ITEM_IDS: tf.TensorSpec([None, None], tf.string, names.HISTORY_ITEM_IDS),
        names.HISTORY_LEVELS: tf.TensorSpec([None, None], tf.int64, names.HISTORY_LEVELS),
    }
    request = user | {
        names.EXCLUDE_ITEM_IDS: tf.TensorSpec([None, None], tf.string, names.EXCLUDE_ITEM_IDS),
        names.OBJECTIVE_WEIGHTS: tf.TensorSpec([None, 2], tf.float32, names.OBJECTIVE_WEIGHTS),
    }
    items = {names.ITEM_IDS: tf.TensorSpec([None, None], tf.string, names.ITEM_IDS)}
    tf.saved_model.save(
        toy,
        str(directory),
        signatures={
            name: tf.function(method).get_concrete_function(**specs)
            for name, method, specs in (
                (names.SIGNATURE_RECOMMEND, toy.recommend, request),
                (names.SIGNATURE_EMBED_USER, toy.embed_user, user),
                (names.SIGNATURE_ITEM_TITLES, toy.item_titles, items),
            )
        },
    )
    path = directory / names.MANIFEST_FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"objectives": OBJECTIVES, "weights": WEIGHTS}))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model artifact: both flavours alike, and the vectors."""
    directory = tmp_path_factory.mktemp("toy")
    save_toy(directory / names.STOCK_FLAVOUR)
    shutil.copytree(directory / names.STOCK_FLAVOUR, directory / names.SCANN_FLAVOUR)
    np.savez(
        directory / names.VECTORS_FILE,
        item_ids=np.asarray([item(n) for n in range(N_ITEMS)]),
        item_vectors=vectors(),
    )
    return directory


def timeline(user: bytes, events: list[tuple[bytes, int, int, int]]) -> bytes:
    """A serialised timeline of (item, level, time, target level)."""
    example = tf.train.Example()
    features = example.features.feature
    features[names.USER_ID].bytes_list.value.append(user)
    for event in events:
        features[names.ITEM_IDS].bytes_list.value.append(event[0])
        for name, value in zip(
            (names.LEVELS, names.TIMESTAMPS, names.TARGET_LEVELS), event[1:], strict=True
        ):
            features[name].int64_list.value.append(value)
    return example.SerializeToString()


@dataclass(frozen=True)
class Data:
    """Artifacts of InteractionGen and of the ExampleValidators."""

    examples: standard_artifacts.Examples
    anomalies: standard_artifacts.ExampleAnomalies
    catalogue_anomalies: standard_artifacts.ExampleAnomalies


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Ten users. They look at low numbers, and click on high ones."""
    root = tmp_path_factory.mktemp("toy_data")
    train, held_out = [], []
    for n in range(10):
        user, before = b"u%d" % n, (item(50 + n), 0, 1, 0)
        train.append(timeline(user, [before]))
        held_out.append(
            timeline(
                user,
                [
                    (*before[:3], names.CONTEXT),
                    (item(n), 0, 2, 0),  # a look
                    (item(N_ITEMS - 1 - n), 1, 3, 1),  # a click
                ],
            )
        )
    examples = standard_artifacts.Examples()
    examples.uri = str(root / "examples")
    examples.split_names = artifact_utils.encode_split_names([TRAIN, EVAL, CATALOGUE])
    for split, records in ((TRAIN, train), (EVAL, held_out)):
        path = Path(artifact_utils.get_split_uri([examples], split)) / "part-00000.gz"
        path.parent.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            for record in records:
                writer.write(record)
    found = []
    for name, splits in (("timelines", [TRAIN, EVAL]), ("catalogue", [CATALOGUE])):
        artifact = standard_artifacts.ExampleAnomalies()
        artifact.uri = str(root / name)
        artifact.split_names = artifact_utils.encode_split_names(splits)
        for split in splits:
            path = Path(artifact_utils.get_split_uri([artifact], split)) / "SchemaDiff.pb"
            path.parent.mkdir(parents=True)
            path.write_bytes(anomalies_pb2.Anomalies().SerializeToString())
        found.append(artifact)
    return Data(examples, *found)
