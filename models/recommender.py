"""What is served: raw strings in, recommended items out, everything inside one graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_transform as tft

from models import index
from models.catalogue import Catalogue
from models.preprocessing import CATEGORICAL
from models.timelines import Ints, Timelines
from models.towers import TwoTower, UserInputs
from schemas import names

# What fills up the rows of a request. An empty text and NaN mean "unknown"; levels are only read
# where there is an item.
PADDING: dict[tf.DType, str | float | int] = {tf.string: "", tf.float32: math.nan, tf.int64: 0}


@dataclass(frozen=True)
class Profiles:
    """What is known of the users of the vocabulary, for requests that only name them.

    Row u of the CSR arrays is user u; the last row is the unknown user and is empty.
    """

    offsets: npt.NDArray[np.int64]  # [n_users + 2]
    items: Ints  # [E], chronological, -1 = not in the vocabulary
    levels: Ints  # [E]
    features: dict[str, Ints]  # name -> [n_users + 1, F], -1 is padding


def build_profiles(splits: list[Timelines], n_users: int) -> Profiles:
    """Merges all timelines of every known user into one, repeated context events once."""
    rows = []
    for part in splits:
        owner = part.user_ids[part.timeline_of]
        rows.append(np.stack([owner, part.times, part.items, part.levels], axis=1))
    events = np.concatenate(rows).astype(np.int64)
    events = np.unique(events[events[:, 0] < n_users], axis=0)  # by user, then time
    counts = np.bincount(events[:, 0], minlength=n_users + 1)
    features: dict[str, Ints] = {}
    for name in splits[0].features:
        width = max(part.features[name].shape[1] for part in splits)
        table = np.full((n_users + 1, width), -1, np.int32)
        for part in splits:
            values = part.features[name]
            table[part.user_ids, : values.shape[1]] = values
        table[n_users] = -1
        features[name] = table
    return Profiles(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=events[:, 2].astype(np.int32),
        levels=events[:, 3].astype(np.int32),
        features=features,
    )


class Recommender(tf.Module):
    """The serving signatures over a trained `TwoTower` and an index of its item vectors."""

    def __init__(
        self,
        towers: TwoTower,
        transform: tft.TFTransformOutput,
        feature_kinds: dict[str, str],
        catalogue: Catalogue,
        profiles: Profiles,
        searcher: index.Searcher | None,
        top_k: int,
        objectives: list[str],
    ):
        """Computes the item vectors.

        Args:
          towers: the network after its last stage.
          transform: its graph is what maps strings to ids.
          feature_kinds: user feature name -> "categorical" or "numeric".
          catalogue: the candidates.
          profiles: stored histories and features.
          searcher: None = exact search only.
          top_k: N.
          objectives: names, in the order of the stages.
        """
        super().__init__(name="recommender")
        self._towers = towers
        # Tracked, or its lookup tables are not initialised on load (tensorflow/transform#237).
        self._transform_layer = transform.transform_features_layer()
        self._raw_spec = transform.raw_feature_spec()
        self._feature_kinds = feature_kinds
        self._top_k = top_k
        self._objectives = tuple(objectives)
        self._n_items = len(catalogue)
        self._unknown_features = {
            name: tf.constant(-1, shape=(1, 1)) for name in catalogue.features
        }
        self._item_vectors = _constant(item_vectors(towers, catalogue))
        self._exact = index.ExactSearcher(self._item_vectors)
        self._searcher = searcher or self._exact
        self._item_ids = _constant(np.append(catalogue.item_ids, b""))
        self._titles = _constant(np.append(catalogue.titles, b""))
        self._profile_offsets = _constant(profiles.offsets)
        self._profile_items = _constant(np.append(profiles.items, np.int32(-1)))
        self._profile_levels = _constant(np.append(profiles.levels, np.int32(0)))
        self._profile_features = {n: _constant(ids) for n, ids in profiles.features.items()}

    # --- signatures -------------------------------------------------------------------------

    def user_specs(self) -> dict[str, tf.TensorSpec]:
        """Inputs that describe a user."""
        specs = {
            names.USER_ID: tf.TensorSpec([None], tf.string, names.USER_ID),
            names.HISTORY_ITEM_IDS: _matrix(names.HISTORY_ITEM_IDS, tf.string),
            names.HISTORY_LEVELS: _matrix(names.HISTORY_LEVELS, tf.int64),
        }
        for name, kind in self._feature_kinds.items():
            key = names.user_feature(name)
            specs[key] = _matrix(key, tf.string if kind == CATEGORICAL else tf.float32)
        return specs

    def request_specs(self) -> dict[str, tf.TensorSpec]:
        """Inputs of a recommendation."""
        return self.user_specs() | {
            names.EXCLUDE_ITEM_IDS: _matrix(names.EXCLUDE_ITEM_IDS, tf.string),
            names.OBJECTIVE_WEIGHTS: tf.TensorSpec(
                [None, len(self._objectives)], tf.float32, names.OBJECTIVE_WEIGHTS
            ),
        }

    def defaults(self) -> dict[str, npt.NDArray]:
        """Values of batch size 1 that stand for an input left out; all objectives weigh 1."""
        defaults = {
            key: np.zeros([1, 0], spec.dtype.as_numpy_dtype)
            for key, spec in self.request_specs().items()
            if key != names.USER_ID
        }
        defaults[names.OBJECTIVE_WEIGHTS] = np.ones([1, len(self._objectives)], np.float32)
        return defaults

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Signature name -> function, for `tf.saved_model.save`."""
        items = {names.ITEM_IDS: _matrix(names.ITEM_IDS, tf.string)}
        scored = self.request_specs() | items
        del scored[names.EXCLUDE_ITEM_IDS]
        examples = tf.TensorSpec([None], tf.string, names.EXAMPLES)
        known = {names.USER_ID: self.user_specs()[names.USER_ID]}
        return {
            name: tf.function(method, input_signature=[specs]).get_concrete_function()
            for name, method, specs in (
                (names.SIGNATURE_RECOMMEND, self.recommend, self.request_specs()),
                (names.SIGNATURE_EMBED_USER, self.embed_user, self.user_specs()),
                (names.SIGNATURE_SCORE_ITEMS, self.score_items, scored),
                (names.SIGNATURE_EXAMPLES, self.recommend_examples, {names.EXAMPLES: examples}),
                (names.SIGNATURE_ITEM_TITLES, self.item_titles, items),
                (names.SIGNATURE_USER_HISTORY, self.user_history, known),
            )
        }

    def recommend(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The best N items for each user under the request's weights.

        What the user has seen and what the request excludes never comes back. A user known from
        training who sends no history is answered from the stored one.

        Args:
          request: see `request_specs`; every input but the user id may have one row for all users.

        Returns:
          item_ids string [B, N] and scores float [B, N], best first; places that no item is left
          for hold "" and 0.
        """
        user, seen = self._user(request, excluded=request[names.EXCLUDE_ITEM_IDS])
        query = self._fuse(self._user_blocks(user), request[names.OBJECTIVE_WEIGHTS])
        scores, rows = index.search_excluding(
            self._searcher, self._exact, query, seen, self._top_k, self._n_items
        )
        found = rows >= 0
        return {
            names.ITEM_IDS: tf.gather(self._item_ids, tf.where(found, rows, self._n_items)),
            names.SCORES: tf.where(found, scores, 0.0),
        }

    def recommend_examples(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """`recommend` for serialised tf.Examples whose features are the inputs' names."""
        defaults = self.defaults()
        spec: dict[str, object] = {names.USER_ID: tf.io.FixedLenFeature([], tf.string, "")}
        for key, value in self.request_specs().items():
            if key == names.OBJECTIVE_WEIGHTS:
                spec[key] = tf.io.FixedLenFeature(
                    [len(self._objectives)], tf.float32, defaults[key][0]
                )
            elif key != names.USER_ID:
                spec[key] = tf.io.RaggedFeature(value.dtype)
        parsed = tf.io.parse_example(request[names.EXAMPLES], spec)
        return self.recommend(
            {
                key: value.to_tensor(PADDING[value.dtype])
                if isinstance(value, tf.RaggedTensor)
                else value
                for key, value in parsed.items()
            }
        )

    def embed_user(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """blocks float [B, D], see `TwoTower.user_blocks`; block_sizes int64 [K]."""
        user, _ = self._user(request)
        return {
            names.BLOCKS: self._user_blocks(user),
            names.BLOCK_SIZES: tf.constant(self._towers.block_sizes(), tf.int64),
        }

    def score_items(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Exact scores of the given items [B, M]: [B, M, K] per objective and [B, M] fused.

        An unknown item is scored as an item without id and features.
        """
        user, _ = self._user(request)
        blocks = self._user_blocks(user)
        rows = self._lookup_items(_broadcast(request[names.ITEM_IDS], blocks))
        unknown = self._towers.item_blocks(tf.constant([-1]), self._unknown_features)
        vectors = tf.gather(
            tf.concat([self._item_vectors, unknown], axis=0), _last(rows, self._n_items)
        )
        products = blocks[:, None, :] * vectors  # [B, M, D]
        per_objective = tf.stack(
            [
                tf.reduce_sum(part, axis=-1)
                for part in tf.split(products, self._towers.block_sizes(), axis=-1)
            ],
            axis=-1,
        )
        weights = self._weights(request[names.OBJECTIVE_WEIGHTS], blocks)
        return {
            names.OBJECTIVE_SCORES: per_objective,
            names.SCORES: tf.einsum("bmk,bk->bm", per_objective, weights),
        }

    def item_titles(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Titles string [B, M] of the items [B, M]; "" for an unknown item."""
        rows = self._lookup_items(request[names.ITEM_IDS])
        return {names.TITLES: tf.gather(self._titles, _last(rows, self._n_items))}

    def user_history(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What is stored of users known from training, and stands in for a history left out.

        Returns:
          history_item_ids string [B, H], oldest first, and history_levels int64 [B, H]; "" and 0
          for an item that is no candidate, as padding, and for unknown users.
        """
        ids = request[names.USER_ID]
        user = self._user_rows(self._looked_up({names.USER_ID: _one_a_row(ids)}))
        rows, levels, valid = self._stored(user, tf.ones_like(user, tf.bool))
        known = valid & (rows >= 0)
        return {
            names.HISTORY_ITEM_IDS: tf.gather(self._item_ids, tf.where(known, rows, self._n_items)),
            names.HISTORY_LEVELS: tf.cast(tf.where(known, levels, 0), tf.int64),
        }

    # --- from strings to towers -------------------------------------------------------------

    def _user(
        self, request: dict[str, tf.Tensor], excluded: tf.Tensor | None = None
    ) -> tuple[UserInputs, tf.Tensor]:
        """The user tower's inputs, and int32 [B, S] rows that must not come back (-1 padding)."""
        ids = request[names.USER_ID]
        raw = {
            names.user_feature(name): _broadcast(request[names.user_feature(name)], ids)
            for name in self._feature_kinds
        }
        lists = [_broadcast(request[names.HISTORY_ITEM_IDS], ids)]
        if excluded is not None:
            lists.append(_broadcast(excluded, ids))
        # All in one call: a call of the layer costs as much as searching the index does.
        looked_up = self._looked_up(
            {names.USER_ID: _one_a_row(ids), names.ITEM_ID: _one_a_row(*lists)}
            | {key: _sparse(value) for key, value in raw.items()}
        )
        user = self._user_rows(looked_up)
        sent, *also = self._item_rows(looked_up, *lists)
        sent_valid = lists[0] != ""
        sent_levels = _as_wide(_broadcast(request[names.HISTORY_LEVELS], ids), sent)
        use_stored = ~tf.reduce_any(sent_valid, axis=1)
        stored, stored_levels, stored_valid = self._stored(user, use_stored)
        items = tf.concat([sent, stored], axis=1)
        levels = tf.concat([sent_levels, stored_levels], axis=1)
        valid = tf.concat([sent_valid, stored_valid], axis=1)

        # Rank from the end: 1 is the most recent event.
        rank = tf.cumsum(tf.cast(valid, tf.int32), axis=1, reverse=True)
        recent = valid & (rank <= self._towers.spec.towers.history_length)
        features = {}
        for name in self._feature_kinds:
            given = _dense(looked_up[names.user_feature(name)])
            missing = tf.reduce_all(given < 0, axis=1, keepdims=True)
            known = tf.gather(self._profile_features[name], user)
            features[name] = tf.concat([given, tf.where(missing, known, -1)], axis=1)
        return (
            UserInputs(tf.where(recent, items, -1), levels, rank - 1, user, features),
            tf.concat([tf.where(valid, items, -1), *also], axis=1),
        )

    def _looked_up(self, raw: dict[str, tf.SparseTensor]) -> dict[str, tf.SparseTensor]:
        """What the Transform graph makes of some of its inputs."""
        # The layer would make up the others itself, with 45 ops in every call.
        return self._transform_layer(
            {key: _nothing(spec.dtype) for key, spec in self._raw_spec.items()} | raw
        )

    def _user_rows(self, looked_up: dict[str, tf.SparseTensor]) -> tf.Tensor:
        """int32 rows [B] of the users that were looked up; that of the unknown one is the last."""
        return tf.cast(looked_up[names.USER_ID].values, tf.int32)

    def _lookup_items(self, ids: tf.Tensor) -> tf.Tensor:
        """int32 rows of the item ids [B, X], -1 if unknown."""
        (rows,) = self._item_rows(self._looked_up({names.ITEM_ID: _one_a_row(ids)}), ids)
        return rows

    def _item_rows(
        self, looked_up: dict[str, tf.SparseTensor], *lists: tf.Tensor
    ) -> list[tf.Tensor]:
        """int32 rows [B, X] of each of the lists of item ids that were looked up together."""
        rows = tf.cast(looked_up[names.ITEM_ID].values, tf.int32)
        parts = tf.split(rows, [tf.size(ids) for ids in lists])
        return [
            tf.where((ids != "") & (part < self._n_items), part, -1)
            for ids, flat in zip(lists, parts, strict=True)
            for part in [tf.reshape(flat, tf.shape(ids))]
        ]

    def _stored(self, user: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Items, levels and validity [B, M] of the stored histories of the rows that want one."""
        begin = tf.gather(self._profile_offsets, user)
        length = tf.where(wanted, tf.gather(self._profile_offsets, user + 1) - begin, 0)
        steps = tf.range(tf.reduce_max(tf.concat([length, [0]], axis=0)))[None, :]
        valid = steps < length[:, None]
        place = tf.where(valid, begin[:, None] + steps, 0)
        return (
            tf.where(valid, tf.gather(self._profile_items, place), -1),
            tf.gather(self._profile_levels, place),
            valid,
        )

    def _user_blocks(self, user: UserInputs) -> tf.Tensor:
        return self._towers.user_blocks(user)

    def _fuse(self, blocks: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """[B, D] query: each objective's block times its weight (METHOD 1.4)."""
        block_of_column = np.repeat(np.arange(len(self._objectives)), self._towers.block_sizes())
        return blocks * tf.gather(self._weights(weights, blocks), block_of_column, axis=1)

    def _weights(self, weights: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        expected = f"objective_weights must hold a weight for each of: {self._objectives}"
        tf.debugging.assert_equal(tf.shape(weights)[1], len(self._objectives), message=expected)
        weights = tf.debugging.check_numerics(weights, "objective_weights must be finite")
        return _broadcast(weights, like)


def item_vectors(towers: TwoTower, catalogue: Catalogue) -> npt.NDArray[np.float32]:
    """[n, D] index vectors: the blocks of all items, stage 0 first."""
    n_items = len(catalogue)
    parts = [
        towers.item_blocks(
            tf.range(start, min(start + 65_536, n_items)),
            {n: tf.constant(ids[start : start + 65_536]) for n, ids in catalogue.features.items()},
        ).numpy()
        for start in range(0, n_items, 65_536)
    ]
    return np.concatenate(parts)


def _constant(value: npt.NDArray) -> tf.Variable:
    # A variable, not a constant: a graph above 2 GB cannot be saved (tensorflow#45041).
    return tf.Variable(value, trainable=False)


def _matrix(name: str, dtype: tf.DType) -> tf.TensorSpec:
    return tf.TensorSpec([None, None], dtype, name)


def _broadcast(matrix: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[B, X] from [B, X] or [1, X]; B is the first dimension of `like`."""
    return tf.broadcast_to(matrix, [tf.shape(like)[0], tf.shape(matrix)[1]])


def _as_wide(levels: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """int32 levels cut or padded with 0 to the width of `items`."""
    width = tf.shape(items)[1]
    levels = tf.cast(levels[:, :width], tf.int32)
    return tf.pad(levels, [[0, 0], [0, width - tf.shape(levels)[1]]])


def _nothing(dtype: tf.DType) -> tf.SparseTensor:
    """[0, 1], constant."""
    return tf.SparseTensor(
        tf.constant([], tf.int64, [0, 2]), tf.constant([], dtype), tf.constant([0, 1], tf.int64)
    )


def _one_a_row(*lists: tf.Tensor) -> tf.SparseTensor:
    """[N, 1] of all ids of the lists, one list after the other, "" included."""
    flat = tf.concat([tf.reshape(ids, [-1]) for ids in lists], axis=0)
    count = tf.size(flat, tf.int64)
    column = tf.stack([tf.range(count), tf.zeros([count], tf.int64)], axis=1)
    return tf.SparseTensor(column, flat, tf.stack([count, tf.constant(1, tf.int64)]))


def _sparse(values: tf.Tensor) -> tf.SparseTensor:
    """All entries of [B, F] but those that say "unknown"."""
    present = values != "" if values.dtype == tf.string else ~tf.math.is_nan(values)
    return tf.SparseTensor(
        tf.where(present), tf.boolean_mask(values, present), tf.shape(values, tf.int64)
    )


def _dense(ids: tf.SparseTensor) -> tf.Tensor:
    return tf.cast(tf.sparse.to_dense(ids, default_value=tf.constant(-1, tf.int64)), tf.int32)


def _last(rows: tf.Tensor, n_items: int) -> tf.Tensor:
    """Rows with -1 replaced by `n_items`, the row of the unknown item."""
    return tf.where(rows >= 0, rows, n_items)
