"""What is served in the benchmark: a synthetic catalogue, exported as the pipeline exports a model.

Nothing is trained. Items lie in clusters of clusters, and both towers project into one space, so
that a user's vector is near the clusters of the history, as after training. Only the sizes matter
to the speed, and the clusters to how hard the search is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.serving.frames import read_frames, write_frames
from schemas import names
from serving import messages

OBJECTIVES = ("exposure", "click", "conversion")
MODEL = "recommender"
ONE = "one"  # its requests with only the first objective weighing
OTHER = "other"  # the same model with other item ids: what a hot swap brings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_PER_CLUSTER = 100
_CLUSTERS_PER_GENRE = 50
_CLUSTERS_OF_USER = 3
_DECAYS = 3  # plain, and the two of TowerSettings.recency


@dataclass(frozen=True)
class World:
    """Parameters of everything that is made; the same ones give the same files.

    Attributes:
      items, users: of the vocabularies.
      requests: distinct ones.
      block_sizes: index dimensions of the objectives.
      history, exclusions: ids in each request.
      top_k: ids in each answer.
      format: raised when the same parameters give other files.
    """

    items: int = 200_000
    users: int = 30_000
    requests: int = 4_000
    block_sizes: tuple[int, int, int] = (44, 14, 6)
    history: int = 50
    exclusions: int = 5
    top_k: int = 100
    seed: int = 1
    format: int = 4

    @property
    def key(self) -> str:
        """Names these parameters."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def dimension(self) -> int:
        """Of the index."""
        return sum(self.block_sizes)

    @cached_property
    def clusters(self) -> npt.NDArray[np.int64]:
        """[items] the cluster of every item."""
        return np.arange(self.items) // _PER_CLUSTER

    def vectors(self) -> Floats:
        """[items, dimension] of the towers' tables: genre, cluster and the item's own part."""
        rng = np.random.default_rng([self.seed, 0])
        n_clusters = int(self.clusters[-1]) + 1
        genres = rng.normal(size=(n_clusters // _CLUSTERS_PER_GENRE + 1, self.dimension))
        centres = genres[np.arange(n_clusters) // _CLUSTERS_PER_GENRE]
        centres = centres + rng.normal(size=centres.shape)
        own = rng.normal(size=(self.items, self.dimension))
        return (centres[self.clusters] + own).astype(np.float32)

    def histories(self, rng: np.random.Generator, n: int) -> tuple[Ints, Ints]:
        """(items, levels) [n, history]: of users who like a few clusters each."""
        liked = rng.integers(0, self.clusters[-1] + 1, (n, _CLUSTERS_OF_USER))
        chosen = np.take_along_axis(
            liked, rng.integers(0, _CLUSTERS_OF_USER, (n, self.history)), axis=1
        )
        items = chosen * _PER_CLUSTER + rng.integers(0, _PER_CLUSTER, chosen.shape)
        levels = rng.choice(len(OBJECTIVES), chosen.shape, p=[0.7, 0.22, 0.08])
        return np.minimum(items, self.items - 1), levels


@dataclass(frozen=True)
class Files:
    """A world on disk.

    Attributes:
      root: all of it.
    """

    root: Path

    def servable(self, name: str) -> Path:
        """What `models.export` wrote of MODEL, OTHER or one of OBJECTIVES."""
        return self.root / name

    def base(self, name: str) -> Path:
        """Base path with the SavedModel of `servable(name)` as version 1."""
        return self.root / "bases" / name

    def requests(self, name: str = MODEL) -> list[bytes]:
        """Serialised PredictRequests of MODEL, ONE or one of OBJECTIVES.

        Request i is the same user at the same moment in all of them.
        """
        return read_frames(self.requests_path(name))

    def requests_path(self, name: str = MODEL) -> Path:
        """Where `requests` reads."""
        return self.root / f"requests-{name}.bin"

    @property
    def weights_path(self) -> Path:
        """Where `weights` reads."""
        return self.root / "weights.npy"

    @property
    def weights(self) -> Floats:
        """[requests, 3] of the requests of MODEL."""
        return np.load(self.weights_path)

    @property
    def vectors_path(self) -> Path:
        """Where `vectors` reads."""
        return self.root / "vectors.npy"

    @property
    def vectors(self) -> Floats:
        """[items, dimension] of the index."""
        return np.load(self.vectors_path)

    @property
    def queries_path(self) -> Path:
        """[requests, dimension] fused query vectors of the requests of MODEL."""
        return self.root / "queries.npy"

    @property
    def queries(self) -> Floats:
        """What `queries_path` holds."""
        return np.load(self.queries_path)

    @property
    def neighbours_path(self) -> Path:
        """[requests, top_k] rows of the items nearest to `queries`, by brute force."""
        return self.root / "neighbours.npy"


def prepare(world: World, workdir: Path) -> Files:
    """Makes the files of a world, or finds those of an earlier run."""
    root = workdir / f"world-{world.key}"
    if not (root / "world.json").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        _make(world, Files(root))
        (root / "world.json").write_text(json.dumps(dataclasses.asdict(world), indent=2))
    return Files(root)


def link_version(saved_model: Path, base: Path, version: int) -> None:
    """Publishes a SavedModel as a version: hard links, made complete before they are seen."""
    hidden = base / f".tmp-{version}"
    shutil.copytree(saved_model, hidden, copy_function=os.link)
    hidden.rename(base / str(version))


def _make(world: World, files: Files) -> None:
    import tensorflow as tf

    transform = _transform(world, files.root / "transform")
    item_ids = np.array(transform.vocabulary_by_name("items"), dtype=object)
    vectors = world.vectors()
    for name, owned in (
        (MODEL, range(len(OBJECTIVES))),
        (OTHER, range(len(OBJECTIVES))),
        *((objective, [k]) for k, objective in enumerate(OBJECTIVES)),
    ):
        _export(world, files.servable(name), transform, item_ids, vectors, list(owned), name)
    exported = np.load(files.servable(MODEL) / names.VECTORS_FILE)
    np.save(files.vectors_path, exported["item_vectors"])

    requests, weights = _requests(world, item_ids)
    np.save(files.weights_path, weights)
    for name in (MODEL, ONE, *OBJECTIVES):
        write_frames(files.requests_path(name), [_serialised(r, name) for r in requests])
    loaded = tf.saved_model.load(str(files.servable(MODEL) / names.STOCK_FLAVOUR))
    blocks = _user_blocks(loaded, requests)
    queries = blocks * np.repeat(weights, world.block_sizes, axis=1)
    np.save(files.queries_path, queries)
    np.save(files.neighbours_path, nearest(queries, exported["item_vectors"], world.top_k))
    for name in (MODEL, OTHER, *OBJECTIVES):
        files.base(name).mkdir(parents=True)
        link_version(files.servable(name) / names.SCANN_FLAVOUR, files.base(name), 1)


def nearest(queries: Floats, vectors: Floats, n: int) -> npt.NDArray[np.int64]:
    """[Q, n] rows of the largest inner products, best first."""
    found = []
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ vectors.T
        top = np.argpartition(-scores, n, axis=1)[:, :n]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
        found.append(np.take_along_axis(top, order, axis=1))
    return np.concatenate(found)


def recall(found: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """Mean share of the rows of `exact` [Q, n] that are in the same row of `found` [Q, m]."""
    shares = [
        len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(found, exact, strict=True)
    ]
    return float(np.mean(shares))


# --- model ----------------------------------------------------------------------------------


def _transform(world: World, directory: Path) -> Any:
    """The pipeline's preprocessing over the ids; a row holds many of them to save Beam the work."""
    import functools

    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io, schema_utils

    from models.preprocessing import preprocessing_fn

    dtypes = {
        names.USER_ID: tf.string,
        names.ITEM_IDS: tf.string,
        names.LEVELS: tf.int64,
        names.TIMESTAMPS: tf.int64,
        names.TARGET_LEVELS: tf.int64,
        names.ITEM_ID: tf.string,
        names.ITEM_TITLE: tf.string,
    }
    empty: dict[str, list[bytes]] = {key: [] for key in dtypes}
    step = 1000
    rows = [
        empty | {key: [b"%s%d" % (prefix, i) for i in range(start, min(start + step, count))]}
        for key, prefix, count in (
            (names.ITEM_ID, b"i", world.items),
            (names.USER_ID, b"u", world.users),
        )
        for start in range(0, count, step)
    ]
    metadata = dataset_metadata.DatasetMetadata(
        schema_utils.schema_from_feature_spec(
            {key: tf.io.VarLenFeature(dtype) for key, dtype in dtypes.items()}
        )
    )
    with tft_beam.Context(temp_dir=str(directory / "tmp")):
        transform_fn = (rows, metadata) | tft_beam.AnalyzeDataset(
            functools.partial(preprocessing_fn, custom_config={"features": {}})
        )
        _ = transform_fn | tft_beam.WriteTransformFn(str(directory))
    metadata_io.write_metadata(metadata, str(directory / tft.TFTransformOutput.RAW_METADATA_DIR))
    return tft.TFTransformOutput(str(directory))


def _export(
    world: World,
    directory: Path,
    transform: Any,
    item_ids: npt.NDArray[np.object_],
    vectors: Floats,
    owned: Sequence[int],
    name: str,
) -> None:
    from models.catalogue import Catalogue
    from models.export import export
    from models.recommender import Profiles
    from models.settings import IndexSettings

    if name == OTHER:
        item_ids = np.array([b"%s%s" % (OTHER.encode(), item) for item in item_ids], dtype=object)
    items, levels = world.histories(np.random.default_rng([world.seed, 1]), world.users)
    counts = np.append(np.full(world.users, world.history), 0)  # the unknown user has none
    directory.mkdir()
    export(
        directory,
        _towers(world, vectors, owned),
        transform,
        {},
        Catalogue(item_ids, item_ids),
        Profiles(
            np.append(0, np.cumsum(counts)).astype(np.int64),
            items.ravel().astype(np.int32),
            levels.ravel().astype(np.int32),
            {},
        ),
        IndexSettings(top_k=world.top_k),
        list(OBJECTIVES),
        {},
    )


def _towers(world: World, vectors: Floats, owned: Sequence[int]) -> Any:
    """Towers whose index has the blocks of the objectives `owned`.

    A block of a user is the mean of the items that reached the objective, projected as the items
    are, and the user's own small part. A block's last coordinate holds rates.
    """
    from models.settings import TowerSettings
    from models.towers import HISTORY, ITEM_ID, OUTPUT, USER_ID, TowerSpec, TwoTower

    every = np.repeat(np.arange(len(OBJECTIVES)), world.block_sizes)
    ends = np.cumsum(world.block_sizes)
    kept = np.isin(every, owned) & ~np.isin(np.arange(world.dimension), ends - 1)
    settings = TowerSettings(
        dimension=int(kept.sum()) + len(OBJECTIVES), item_embedding=world.dimension
    )
    towers = TwoTower(
        TowerSpec(settings, len(OBJECTIVES), True, world.items, world.users, {}, {}), world.seed
    )
    towers.owners[OUTPUT] = every[kept].astype(np.int32)
    rng = np.random.default_rng([world.seed, 2])
    projection = np.linalg.qr(rng.normal(size=(world.dimension, world.dimension)))[0]
    reads = [
        projection * (every == level) for _ in range(_DECAYS) for level in range(len(OBJECTIVES))
    ]
    own = rng.normal(size=(settings.user_embedding, world.dimension))
    for weight, value in (
        (HISTORY, vectors),
        (ITEM_ID, vectors),
        (USER_ID, rng.normal(size=(world.users + 1, settings.user_embedding)) * 0.3),
        ("item_head/kernel", projection[:, kept]),
        ("user_head/kernel", np.concatenate([*reads, own])[:, kept]),
    ):
        towers.weights[weight].assign(value.astype(np.float32))
    for stage, rates in enumerate(rng.normal(size=(len(OBJECTIVES), world.items))):
        if stage in owned:
            towers.set_rates(stage, 0.1 * rates.astype(np.float32))
            towers.set_strengths(stage, 1.0, 1.0)
    return towers


# --- requests -------------------------------------------------------------------------------

Request = dict[str, npt.NDArray[Any]]  # input alias -> [1, ..]

_FIELDS = {
    "O": (messages.DT_STRING, "string_val"),
    "f": (messages.DT_FLOAT, "float_val"),
    "i": (messages.DT_INT64, "int64_val"),
}


def _requests(world: World, item_ids: npt.NDArray[np.object_]) -> tuple[list[Request], Floats]:
    rng = np.random.default_rng([world.seed, 3])
    histories, levels = world.histories(rng, world.requests)
    excluded = rng.integers(0, world.items, (world.requests, world.exclusions))
    users = rng.integers(0, world.users, world.requests)
    weights = rng.uniform(0.05, 2.0, (world.requests, len(OBJECTIVES))).astype(np.float32)
    requests = [
        {
            names.USER_ID: np.array([b"u%d" % users[i]], dtype=object),
            names.HISTORY_ITEM_IDS: item_ids[histories[i]][None, :],
            names.HISTORY_LEVELS: levels[i][None, :],
            names.EXCLUDE_ITEM_IDS: item_ids[excluded[i]][None, :],
            names.OBJECTIVE_WEIGHTS: weights[i][None, :],
        }
        for i in range(world.requests)
    ]
    return requests, weights


def _serialised(request: Request, name: str) -> bytes:
    """The values travel in the typed fields, as clients send them."""
    proto = messages.PredictRequest()
    proto.model_spec.name = MODEL if name == ONE else name
    for alias, value in request.items():
        if alias == names.OBJECTIVE_WEIGHTS and name != MODEL:
            level = 0 if name == ONE else OBJECTIVES.index(name)
            value = np.eye(len(OBJECTIVES), dtype=np.float32)[[level]]
        dtype, field = _FIELDS[value.dtype.kind]
        tensor = proto.inputs[alias]
        tensor.dtype = dtype
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)
        getattr(tensor, field).extend(value.ravel().tolist())
    return proto.SerializeToString()


def _user_blocks(loaded: Any, requests: Sequence[Request]) -> Floats:
    """[Q, D] the users' blocks as the graph computes them."""
    import tensorflow as tf

    embed = loaded.signatures[names.SIGNATURE_EMBED_USER]
    aliases = (names.USER_ID, names.HISTORY_ITEM_IDS, names.HISTORY_LEVELS)
    parts = []
    for start in range(0, len(requests), 256):
        batch = requests[start : start + 256]
        feeds = {a: tf.constant(np.concatenate([r[a] for r in batch])) for a in aliases}
        parts.append(embed(**feeds)[names.BLOCKS].numpy())
    return np.concatenate(parts)
