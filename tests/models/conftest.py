"""What the tests of the method share: fresh processes and a world whose right answers are known."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.settings import (
    ModelSettings,
    NegativeSettings,
    StageSettings,
    TowerSettings,
    ValidationSettings,
)
from models.stages import StageReport, StageTask, TrainingData, train_stage
from models.timelines import Timelines
from models.towers import TowerSpec, TwoTower, UserInputs
from schemas import names

OBJECTIVES = ("exposure", "click", "conversion")
CLUSTERS, PER_CLUSTER, USERS = 4, 12, 48
N_ITEMS = CLUSTERS * PER_CLUSTER

RunPython = Callable[..., str]


@pytest.fixture(scope="session")
def run_python(pytestconfig: pytest.Config) -> RunPython:
    """run_python(code, *arguments): what a fresh interpreter prints."""

    def run(code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=pytestconfig.rootpath,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@dataclass(frozen=True)
class StartedOptimiser:
    """The optimiser of one phase, and the norms of its variables when the phase began."""

    stage: int
    optimiser: Any
    norms: list[float]


@dataclass
class Cascade:
    """A trained cascade, and what the towers looked like after each stage."""

    towers: TwoTower
    data: TrainingData
    settings: list[StageSettings]
    model: ModelSettings
    reports: list[StageReport] = field(default_factory=list)
    weights: list[dict[str, np.ndarray]] = field(default_factory=list)
    owners: list[dict[str, np.ndarray]] = field(default_factory=list)
    blocks: list[dict[tuple[str, int], np.ndarray]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    released: list[dict[str, np.ndarray]] = field(default_factory=list)
    optimisers: list[StartedOptimiser] = field(default_factory=list)


@dataclass(frozen=True)
class ClusterWorld:
    """A checkerboard: users see only items of their own cluster, and the funnel is a rule.

    Item i lies in cluster i // 12. In each cluster every second item is clicked by all who see
    it, and every fourth is bought. So the right answer for a user of cluster c is known for
    every objective.
    """

    def items_at(self, cluster: int, level: int) -> set[int]:
        """Items of the cluster that reach the level."""
        step = 2**level
        return {cluster * PER_CLUSTER + i for i in range(0, PER_CLUSTER, step)}

    def level_of(self, item: int) -> int:
        """Highest level that an item reaches."""
        return max(k for k in range(3) if (item % PER_CLUSTER) % 2**k == 0)

    def timelines(self, timed: bool = True, seed: int = 0) -> Timelines:
        """Every user sees ten of the twelve items of the cluster in an order of their own."""
        rng = np.random.default_rng(seed)
        seen = 10
        items = np.concatenate(
            [
                (user % CLUSTERS) * PER_CLUSTER + rng.permutation(PER_CLUSTER)[:seen]
                for user in range(USERS)
            ]
        ).astype(np.int32)
        levels = np.array([self.level_of(item) for item in items], np.int32)
        times = np.tile(np.arange(seen, dtype=np.int64), USERS)
        targets = levels.copy()
        # The start of every timeline is context, as in a chunk that continues another one.
        targets[times == 0] = names.CONTEXT
        return Timelines(
            user_ids=np.arange(USERS, dtype=np.int32),
            offsets=np.arange(0, USERS * seen + 1, seen, dtype=np.int64),
            items=items,
            levels=levels,
            times=times if timed else np.zeros_like(times),
            targets=targets,
            features={"shoe": np.arange(USERS, dtype=np.int32)[:, None] % 5},
        )

    def data(self, timed: bool = True) -> TrainingData:
        """Training data with a feature of users and of items that tell nothing."""
        return TrainingData(
            timelines=self.timelines(timed),
            ordered=timed,
            item_features={"colour": np.arange(N_ITEMS, dtype=np.int32)[:, None] % 3},
        )

    def towers(self, seed: int = 1, hidden: tuple[int, ...] = (), ordered: bool = True) -> TwoTower:
        """An untrained network of a fitting size."""
        return TwoTower(
            TowerSpec(
                towers=TowerSettings(
                    dimension=24,
                    item_embedding=24,
                    user_embedding=6,
                    feature_embedding=6,
                    hidden=hidden,
                    history_length=10,
                    minimum_block=2,
                ),
                n_objectives=3,
                ordered=ordered,
                n_items=N_ITEMS,
                n_users=USERS,
                user_features={"shoe": 5},
                item_features={"colour": 3},
            ),
            seed,
        )

    def stages(self, **changes: object) -> list[StageSettings]:
        """Settings under which each objective is learned in a few seconds."""
        common = {
            "rounds": 12,
            "learning_rate": 0.02,
            "batch_size": 64,
            "tau": 0.6,
            "recovery_rounds": 3,
            "user_id_dropout": 0.7,
        }
        return [StageSettings(**({"name": name} | common | changes)) for name in OBJECTIVES]

    def users(self) -> tuple[UserInputs, list[int]]:
        """New users who have seen three items of their cluster, and the users' clusters."""
        clusters = [cluster for cluster in range(CLUSTERS) for _ in range(5)]
        rng = np.random.default_rng(11)
        items = np.stack(
            [cluster * PER_CLUSTER + rng.permutation(PER_CLUSTER)[:3] for cluster in clusters]
        ).astype(np.int32)
        levels = np.vectorize(self.level_of)(items).astype(np.int32)
        return (
            UserInputs(
                history_items=tf.constant(items),
                history_levels=tf.constant(levels),
                history_ranks=tf.constant([[2, 1, 0]] * len(items)),
                user_ids=tf.fill([len(items)], USERS),
                features={"shoe": tf.fill([len(items), 1], -1)},
            ),
            clusters,
        )

    def outputs(self, towers: TwoTower, data: TrainingData) -> dict[str, tf.Tensor]:
        """Raw outputs of both towers: all items, and the new users."""
        features = {name: tf.constant(ids) for name, ids in data.item_features.items()}
        return {
            "users": towers.users(self.users()[0]),
            "items": towers.items(tf.range(N_ITEMS), features),
        }

    def recall(self, towers: TwoTower, data: TrainingData, level: int, upto: bool) -> float:
        """Share of the right answers at the top of new users' lists, seen items left out.

        Args:
          towers: trained.
          data: its item features are read.
          level: the objective whose right answers are wanted.
          upto: rank by the sum of the blocks up to `level` instead of by its own block.
        """
        outputs = self.outputs(towers, data)
        users, clusters = self.users()
        scores = sum(
            towers.learnt(outputs["users"], k).numpy()
            @ towers.learnt(outputs["items"], k).numpy().T
            for k in (range(level + 1) if upto else [level])
        )
        shares = []
        for row, cluster, seen in zip(scores, clusters, users.history_items.numpy(), strict=True):
            wanted = self.items_at(cluster, level) - set(seen.tolist())
            if wanted:
                row[seen] = -np.inf
                found = set(np.argsort(-row)[: len(wanted)].tolist())
                shares.append(len(found & wanted) / len(wanted))
        return float(np.mean(shares))

    def train(
        self,
        seed: int = 1,
        negatives: NegativeSettings | None = None,
        timed: bool = True,
        hidden: tuple[int, ...] = (),
        n_stages: int = 3,
        **changes: object,
    ) -> Cascade:
        """Trains the cascade stage by stage and looks at it in between."""
        cascade = Cascade(
            self.towers(seed, hidden, timed),
            self.data(timed),
            self.stages(**changes),
            # Nothing is held out: the right answers are known, and every round is trained.
            ModelSettings(
                negatives=negatives or NegativeSettings(),
                validation=ValidationSettings(share=0.0, round_steps=8),
            ),
        )
        for stage in range(n_stages):
            cascade.reports.append(
                train_stage(
                    StageTask(
                        cascade.towers, cascade.data.item_features, stage, cascade.settings[stage]
                    ),
                    cascade.data,
                    cascade.model,
                    seed,
                    cascade.told.append,
                )
            )
            towers = cascade.towers
            cascade.weights.append({n: w.numpy().copy() for n, w in towers.weights.items()})
            cascade.owners.append({n: o.copy() for n, o in towers.owners.items()})
            outputs = self.outputs(towers, cascade.data)
            cascade.blocks.append(
                {
                    (side, k): towers.learnt(value, k).numpy()
                    for side, value in outputs.items()
                    for k in range(3)
                }
            )
        return cascade


@pytest.fixture(scope="session")
def world() -> ClusterWorld:
    return ClusterWorld()


@pytest.fixture(scope="session")
def cascade(world: ClusterWorld) -> Cascade:
    """Three stages with the default kind of negatives (exact) and standalone heads. Read only.

    Also notes the weights after each release and the optimiser of each phase.
    """
    released: list[dict[str, np.ndarray]] = []
    optimisers: list[StartedOptimiser] = []
    release, start = TwoTower.release, StageTask.start

    def noting_release(towers: TwoTower, *args: Any) -> None:
        release(towers, *args)
        released.append({name: weight.numpy().copy() for name, weight in towers.weights.items()})

    def noting_start(task: StageTask, *args: Any) -> None:
        start(task, *args)
        norms = [float(tf.norm(tf.cast(v, tf.float32))) for v in task.optimizer.variables()]
        optimisers.append(StartedOptimiser(task.stage, task.optimizer, norms))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwoTower, "release", noting_release)
        patch.setattr(StageTask, "start", noting_start)
        trained = world.train()
    trained.released, trained.optimisers = released, optimisers
    return trained


# --- a servable -----------------------------------------------------------------------------

SHOP_ITEMS, SHOP_USERS, TOP_K = 40, 25, 8
CLICK_WEIGHTS = [1.0, 0.3, 0.05]
HISTORY_LENGTH = 6
USER_KINDS = {"age": "numeric", "gender": "categorical"}
ITEM_KINDS = {"genres": "categorical"}


@dataclass(frozen=True)
class Shop:
    """Raw logs, what the real Transform made of them, and towers of the fitting shape."""

    timelines: dict[bytes, list[tuple[bytes, int]]]  # user -> (item, level), chronological
    user_features: dict[bytes, dict[str, Any]]
    transform: Any
    transform_directory: Path
    train: Timelines
    catalogue: Any
    profiles: Any
    towers: TwoTower
    transformed_catalogue: list[bytes]
    transformed_timelines: list[bytes]

    def row_of(self, item: bytes) -> int:
        """Row of the item in the vocabulary, -1 if it is unknown."""
        ids = self.catalogue.item_ids.tolist()
        return ids.index(item) if item in ids else -1

    def user_row(self, user: bytes) -> int:
        """Row of the user in the vocabulary; the unknown user comes last."""
        users = self.transform.vocabulary_by_name("users")
        return users.index(user) if user in users else len(users)


def _example(row: dict[str, Any]) -> bytes:
    example = tf.train.Example()
    for key, value in row.items():
        values = list(value)
        if values and isinstance(values[0], bytes):
            example.features.feature[key].bytes_list.value.extend(values)
        else:
            example.features.feature[key].int64_list.value.extend(int(v) for v in values)
    return example.SerializeToString()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Runs the real preprocessing_fn in Beam and reads its output with the real readers."""
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io, schema_utils

    from models.catalogue import read_catalogue
    from models.features import FeatureKinds
    from models.preprocessing import preprocessing_fn
    from models.recommender import build_profiles
    from models.timelines import read_timelines

    kinds = FeatureKinds(user=USER_KINDS, item=ITEM_KINDS)
    rng = np.random.default_rng(0)
    dtypes = {
        names.USER_ID: tf.string,
        names.ITEM_IDS: tf.string,
        names.LEVELS: tf.int64,
        names.TIMESTAMPS: tf.int64,
        names.TARGET_LEVELS: tf.int64,
        names.ITEM_ID: tf.string,
        names.ITEM_TITLE: tf.string,
        "user_age": tf.float32,
        "user_gender": tf.string,
        "item_genres": tf.string,
    }
    empty: dict[str, list] = {key: [] for key in dtypes}
    timelines, features, rows = {}, {}, []
    for number in range(SHOP_USERS):
        user = b"u%d" % number
        n = int(rng.integers(3, 10))
        items = [b"i%d" % item for item in rng.choice(SHOP_ITEMS, n, replace=False)]
        levels = rng.integers(0, 3, n).tolist()
        timelines[user] = list(zip(items, levels, strict=True))
        features[user] = {"age": [20.0 + number], "gender": [b"MF"[number % 2 : number % 2 + 1]]}
        if number == SHOP_USERS - 1:
            features[user] = {"age": [], "gender": []}
        rows.append(
            empty
            | {
                names.USER_ID: [user],
                names.ITEM_IDS: items,
                names.LEVELS: levels,
                names.TIMESTAMPS: list(range(100, 100 + n)),
                names.TARGET_LEVELS: levels,
                "user_age": features[user]["age"],
                "user_gender": features[user]["gender"],
            }
        )
    for item in range(SHOP_ITEMS):
        rows.append(
            empty
            | {
                names.ITEM_ID: [b"i%d" % item],
                names.ITEM_TITLE: [b"Title of %d" % item],
                "item_genres": [b"g%d" % (item % 5), b"g%d" % (item % 3)][: item % 3],
            }
        )
    metadata = dataset_metadata.DatasetMetadata(
        schema_utils.schema_from_feature_spec(
            {key: tf.io.VarLenFeature(dtype) for key, dtype in dtypes.items()}
        )
    )
    directory = tmp_path_factory.mktemp("transform")
    with tft_beam.Context(temp_dir=str(tmp_path_factory.mktemp("beam"))):
        (data, _), transform_fn = (rows, metadata) | tft_beam.AnalyzeAndTransformDataset(
            functools.partial(preprocessing_fn, custom_config={"features": kinds.by_key()})
        )
        _ = transform_fn | tft_beam.WriteTransformFn(str(directory))
    metadata_io.write_metadata(metadata, str(directory / tft.TFTransformOutput.RAW_METADATA_DIR))
    transform = tft.TFTransformOutput(str(directory))
    users = [_example(row) for row in data if len(row[names.ITEM_IDS])]
    items = [_example(row) for row in data if len(row[names.ITEM_ID])]
    catalogue = read_catalogue(items, transform, kinds.item)
    train = read_timelines(users, SHOP_ITEMS, SHOP_USERS, kinds.user)
    towers = TwoTower(
        TowerSpec(
            towers=TowerSettings(
                dimension=18, item_embedding=12, history_length=HISTORY_LENGTH, minimum_block=2
            ),
            n_objectives=3,
            ordered=True,
            n_items=SHOP_ITEMS,
            n_users=SHOP_USERS,
            user_features=kinds.user_sizes(transform),
            item_features=kinds.item_sizes(transform),
        ),
        seed=1,
    )
    towers.release(0, 0.6, 2)
    towers.release(1, 0.5, 3)
    for weight in towers.weights.values():  # far from zero, so that everything has an effect
        weight.assign(weight * 3.0)
    return Shop(
        timelines,
        features,
        transform,
        directory,
        train,
        catalogue,
        build_profiles([train], SHOP_USERS),
        towers,
        items,
        users,
    )


@dataclass(frozen=True)
class Exported:
    """A servable on disk, and its manifest."""

    directory: Path
    manifest: dict[str, Any]


@pytest.fixture(scope="session")
def exported(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Both flavours of the shop's model."""
    from models.export import export
    from models.settings import IndexSettings

    directory = tmp_path_factory.mktemp("servable")
    manifest = export(
        directory,
        shop.towers,
        shop.transform,
        USER_KINDS,
        shop.catalogue,
        shop.profiles,
        IndexSettings(top_k=TOP_K),
        list(OBJECTIVES),
        {"click": CLICK_WEIGHTS},
    )
    return Exported(directory, manifest)
