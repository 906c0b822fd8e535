"""Evaluation queries: what a user had done before a held-out moment, and what came then."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models.preprocessing import CATEGORICAL
from models.recommender import PADDING
from models.weighting import default_weights
from schemas import names

Lists = npt.NDArray[np.object_]  # [Q, N] item ids, b"" where a list ends early
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """One held-out moment of one user: the events that share a time are its targets."""

    user_id: bytes
    history: tuple[bytes, ...]  # strictly before the moment, oldest first
    history_levels: tuple[int, ...]
    targets: tuple[bytes, ...]  # items not seen before
    target_levels: tuple[int, ...]
    features: dict[str, tuple]  # user feature -> its raw values

    def targets_at(self, level: int) -> list[bytes]:
        """Targets that reach `level`."""
        return [
            item
            for item, reached in zip(self.targets, self.target_levels, strict=True)
            if reached >= level
        ]


def build_queries(records: Iterable[bytes], feature_kinds: dict[str, str]) -> list[Query]:
    """Makes one query of every held-out moment.

    Args:
      records: serialised eval timelines (raw, as InteractionGen wrote them).
      feature_kinds: user feature name -> "categorical" or "numeric".

    Returns:
      Queries sorted by user and time, whatever the order of the records.
    """
    queries: dict[tuple[bytes, int], Query] = {}
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        user = features[names.USER_ID].bytes_list.value[0]
        items = list(features[names.ITEM_IDS].bytes_list.value)
        levels = list(features[names.LEVELS].int64_list.value)
        times = np.asarray(features[names.TIMESTAMPS].int64_list.value)
        targets = np.asarray(features[names.TARGET_LEVELS].int64_list.value)
        profile = {
            name: tuple(_values(features[names.user_feature(name)], kind))
            for name, kind in feature_kinds.items()
        }
        for time in np.unique(times[targets != names.CONTEXT]):
            begin = int(np.searchsorted(times, time))
            now = np.flatnonzero((times == time) & (targets != names.CONTEXT))
            query = Query(
                user_id=user,
                history=tuple(items[:begin]),
                history_levels=tuple(levels[:begin]),
                targets=tuple(items[i] for i in now),
                target_levels=tuple(int(targets[i]) for i in now),
                features=profile,
            )
            key = (user, int(time))
            queries[key] = _merged(queries[key], query) if key in queries else query
    return [queries[key] for key in sorted(queries)]


def _merged(one: Query, other: Query) -> Query:
    """A moment that a chunk's border cuts in two; the longer history holds the shorter one."""
    longest = max(one, other, key=lambda query: len(query.history))
    pairs = sorted(
        {
            *zip(one.targets, one.target_levels, strict=True),
            *zip(other.targets, other.target_levels, strict=True),
        }
    )
    return dataclasses.replace(
        longest,
        targets=tuple(item for item, _ in pairs),
        target_levels=tuple(level for _, level in pairs),
    )


def _values(feature: tf.train.Feature, kind: str) -> list:
    return list(feature.bytes_list.value if kind == CATEGORICAL else feature.float_list.value)


class Model:
    """A SavedModel with our signatures, asked in batches.

    Attributes:
      weights: objective -> the request weights that serve it, as its manifest says.
    """

    def __init__(self, path: str, feature_kinds: dict[str, str], batch_size: int = 256):
        """Loads the model; the ops of its flavour must be registered."""
        manifest = json.loads((Path(path) / names.MANIFEST_FILE).read_text(encoding="utf-8"))
        # Versions pushed before weights were chosen do not name any.
        self.weights: dict[str, list[float]] = default_weights(
            manifest["objectives"]
        ) | manifest.get("weights", {})
        self._loaded = tf.saved_model.load(path)  # kept: signatures do not keep it alive
        self._recommend = self._loaded.signatures[names.SIGNATURE_RECOMMEND]
        self._embed = self._loaded.signatures[names.SIGNATURE_EMBED_USER]
        self._titles = self._loaded.signatures[names.SIGNATURE_ITEM_TITLES]
        self._feature_kinds = {
            name: kind
            for name, kind in feature_kinds.items()
            if names.user_feature(name) in self._recommend.structured_input_signature[1]
        }
        self._batch_size = batch_size

    def recommend(self, queries: list[Query], weights: list[float]) -> Lists:
        """[Q, N] the lists for the queries, in their order."""
        return self.recommend_scored(queries, weights)[0]

    def recommend_scored(self, queries: list[Query], weights: list[float]) -> tuple[Lists, Floats]:
        """As `recommend`, and the fused scores float [Q, N]; 0 where a list has ended."""

        def ask(batch: list[Query]) -> tuple[npt.NDArray, npt.NDArray]:
            answer = self._recommend(**self._request(batch, weights))
            return answer[names.ITEM_IDS].numpy(), answer[names.SCORES].numpy()

        lists, scores = self._in_batches(queries, ask)
        return lists, scores

    def embed(self, queries: list[Query]) -> tuple[Floats, list[int]]:
        """(float [Q, D] the blocks of the queries' users, the sizes of the K blocks)."""
        sizes: list[int] = []

        def ask(batch: list[Query]) -> tuple[npt.NDArray, ...]:
            answer = self._embed(**self._user(batch))
            sizes[:] = answer[names.BLOCK_SIZES].numpy().tolist()
            return (answer[names.BLOCKS].numpy(),)

        (blocks,) = self._in_batches(queries, ask)
        return blocks, sizes

    def titles(self, items: Sequence[bytes]) -> dict[bytes, bytes]:
        """Item -> its title, b"" where it has none or is not known."""
        answer = self._titles(**{names.ITEM_IDS: tf.constant([list(items)], tf.string)})
        return dict(zip(items, answer[names.TITLES].numpy()[0].tolist(), strict=True))

    def _in_batches(
        self, queries: list[Query], ask: Callable[[list[Query]], tuple[npt.NDArray, ...]]
    ) -> tuple[npt.NDArray, ...]:
        """The parts of the answers, each with a row per query, in the order of the queries."""
        # Similar lengths together, so that little of a batch is padding.
        order = np.argsort([len(query.history) for query in queries], kind="stable")
        answers = [
            ask([queries[i] for i in order[start : start + self._batch_size]])
            for start in range(0, len(order), self._batch_size)
        ]
        back = np.argsort(order)
        return tuple(np.concatenate(parts)[back] for parts in zip(*answers, strict=True))

    def _request(self, batch: list[Query], weights: list[float]) -> dict[str, tf.Tensor]:
        return self._user(batch) | {
            names.EXCLUDE_ITEM_IDS: tf.zeros([1, 0], tf.string),
            names.OBJECTIVE_WEIGHTS: tf.constant([weights], tf.float32),
        }

    def _user(self, batch: list[Query]) -> dict[str, tf.Tensor]:
        user = {
            names.USER_ID: tf.constant([query.user_id for query in batch]),
            names.HISTORY_ITEM_IDS: _rows([query.history for query in batch], tf.string),
            names.HISTORY_LEVELS: _rows([query.history_levels for query in batch], tf.int64),
        }
        for name, kind in self._feature_kinds.items():
            dtype = tf.string if kind == CATEGORICAL else tf.float32
            values = [query.features[name] for query in batch]
            user[names.user_feature(name)] = _rows(values, dtype)
        return user


def _rows(lists: list[tuple], dtype: tf.DType) -> tf.Tensor:
    width = max((len(row) for row in lists), default=0)
    padded = [list(row) + [PADDING[dtype]] * (width - len(row)) for row in lists]
    return tf.reshape(tf.constant(padded, dtype), [len(lists), width])


def popularity_lists(
    counts: dict[bytes, int], queries: Iterable[Query], n: int
) -> Iterator[list[bytes]]:
    """The most popular items that each query's user has not seen; ties by item id."""
    ranking = sorted(counts, key=lambda item: (-counts[item], item))
    for query in queries:
        seen = set(query.history)
        answer: list[bytes] = []
        for item in ranking:
            if item not in seen:
                answer.append(item)
                if len(answer) == n:
                    break
        yield answer
