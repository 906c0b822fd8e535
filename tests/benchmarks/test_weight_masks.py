"""Ownership of single weights: who may move what, what is read, and that nothing is forgotten."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.networks import equal_blocks
from benchmarks.weight_masks import (
    WeightMaskedNetwork,
    WeightMaskedTask,
    WeightRule,
    train_weight_masked,
)
from models.held_out import HeldOut
from models.settings import ModelSettings, StageSettings, TowerSettings
from models.stages import TrainingData
from models.timelines import Timelines
from models.towers import HISTORY, ITEM_ID, TowerSpec, UserInputs

CLUSTERS, PER_CLUSTER, USERS, SEEN = 3, 8, 36, 7
N_ITEMS = CLUSTERS * PER_CLUSTER
ITEM_FEATURES = {"colour": np.arange(N_ITEMS, dtype=np.int32)[:, None] % 4}
SETTINGS = StageSettings.parse(
    {"name": "all", "rounds": 2, "recovery_rounds": 1, "batch_size": 32, "learning_rate": 0.02}
)
MODEL = ModelSettings.parse({"towers": {"history_length": 8}, "validation": {"round_steps": 8}})


def _spec() -> TowerSpec:
    return TowerSpec(
        towers=TowerSettings(
            dimension=13,
            item_embedding=8,
            user_embedding=4,
            feature_embedding=4,
            history_length=8,
        ),
        n_objectives=3,
        ordered=True,
        n_items=N_ITEMS,
        n_users=USERS,
        user_features={"city": 3},
        item_features={"colour": 4},
    )


def _timelines(users: int, seed: int) -> Timelines:
    """Users see items of one cluster; every second one is clicked, every fourth bought."""
    rng = np.random.default_rng(seed)
    places = np.stack([rng.permutation(PER_CLUSTER)[:SEEN] for _ in range(users)])
    items = places + (np.arange(users) % CLUSTERS)[:, None] * PER_CLUSTER
    levels = ((places % 2 == 0).astype(np.int32) + (places % 4 == 0)).ravel()
    return Timelines(
        user_ids=np.arange(users, dtype=np.int32),
        offsets=np.arange(0, users * SEEN + 1, SEEN, dtype=np.int64),
        items=items.ravel().astype(np.int32),
        levels=levels.astype(np.int32),
        times=np.tile(np.arange(SEEN, dtype=np.int64), users),
        targets=levels.astype(np.int32),
        features={"city": np.arange(users, dtype=np.int32)[:, None] % 3},
    )


def _data() -> TrainingData:
    held_out = HeldOut.of(_timelines(18, seed=1), max_queries=60, seed=0)
    return TrainingData(_timelines(USERS, seed=0), True, ITEM_FEATURES, held_out)


def _network() -> WeightMaskedNetwork:
    return WeightMaskedNetwork(_spec(), 1, equal_blocks(13, 3))


def _users() -> UserInputs:
    return next(_data().held_out.user_inputs(8, USERS))


def _blocks(network: WeightMaskedNetwork) -> list[np.ndarray]:
    """Blocks of the users, then of the items."""
    features = {name: tf.constant(ids) for name, ids in ITEM_FEATURES.items()}
    parts = network.user_blocks(_users()) + network.item_blocks(tf.range(N_ITEMS), features)
    return [part.numpy() for part in parts]


def _tables(network: WeightMaskedNetwork) -> dict[str, np.ndarray]:
    return {name: network.tables.weights[name].numpy() for name in network.table_names}


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    return one.tobytes() == two.tobytes()


def test_only_tables_have_owners() -> None:
    network = _network()
    assert set(network.owners) == {HISTORY, "user_id", "user_city", ITEM_ID, "item_colour"}
    assert not any(weight.dtype == tf.int32 for weight in network.moving())


@pytest.mark.parametrize("rule", ["fixed", "cumulative"])
def test_release_frees_the_smallest_weights(rule: WeightRule) -> None:
    network = _network()
    before = _tables(network)
    network.release(0, 0.3, rule, seed=5)
    for name, table in before.items():
        owners = network.owners[name].numpy()
        sizes = np.sort(np.abs(table.astype(float)), axis=None)
        # By hand: the number of weights, or as many as hold 30 % of the mass.
        count = (
            round(0.3 * table.size)
            if rule == "fixed"
            else int(np.sum(np.cumsum(sizes) <= 0.3 * sizes.sum()))
        )
        freed = owners == 1
        assert set(np.unique(owners)) == {0, 1}
        assert freed.sum() == count
        assert np.abs(table[freed]).max() <= np.abs(table[~freed]).min()
        after = network.tables.weights[name].numpy()
        assert _same(after[~freed], table[~freed])
        assert not np.any(after[freed] == table[freed])
    # At initial scale, and not what it was: the freed ones were the smallest.
    fresh = _tables(network)[HISTORY][network.owners[HISTORY].numpy() == 1]
    assert 0.03 < fresh.std() < 0.07


def test_an_objective_reads_the_weights_up_to_its_own() -> None:
    network = _network()
    network.release(0, 0.5, "fixed", seed=5)
    network.release(1, 0.5, "fixed", seed=5)
    found = _blocks(network)
    tables = _tables(network)
    colours = ITEM_FEATURES["colour"][:, 0]
    for k in range(3):
        seen = {n: np.where(network.owners[n].numpy() <= k, t, 0.0) for n, t in tables.items()}
        inputs = np.concatenate([seen[ITEM_ID], seen["item_colour"][colours]], axis=1)
        head = network._heads["item"][k]
        outputs = inputs @ head.kernel.numpy() + head.bias.numpy()
        expected = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
        np.testing.assert_allclose(found[3 + k], expected, rtol=1e-4, atol=1e-6)
    # What a later objective owns is not read: block k moves only if a weight up to k does.
    for owner in range(3):
        moved = _network()
        moved.release(0, 0.5, "fixed", seed=5)
        moved.release(1, 0.5, "fixed", seed=5)
        for name in moved.table_names:
            weight = moved.tables.weights[name]
            weight.assign_add(tf.cast(moved.owners[name] == owner, tf.float32))
        same = [_same(a, b) for a, b in zip(found, _blocks(moved), strict=True)]
        assert same == [k < owner for k in (0, 1, 2, 0, 1, 2)]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_moves_its_own_weights_and_its_own_head(stage: int) -> None:
    network = _network()
    network.release(0, 0.5, "fixed", seed=5)
    network.release(1, 0.5, "fixed", seed=5)
    before = _tables(network)
    heads = {
        (tower, k): head.kernel.numpy()
        for tower, of_tower in network._heads.items()
        for k, head in enumerate(of_tower)
    }
    task = WeightMaskedTask(network, ITEM_FEATURES, stage, SETTINGS)
    task.start(())
    rng = np.random.default_rng(0)
    gradients = [tf.constant(rng.normal(size=w.shape), tf.float32) for w in task.moving]
    for _ in range(3):
        task.optimizer.apply_gradients(zip(task.masked(gradients), task.moving, strict=True))
    for name, table in _tables(network).items():
        own = network.owners[name].numpy() == stage
        assert own.any()
        assert np.all(table[own] != before[name][own])
        assert _same(table[~own], before[name][~own])
    for (tower, k), kernel in heads.items():
        assert _same(network._heads[tower][k].kernel.numpy(), kernel) == (k != stage)


@pytest.mark.parametrize("rule", ["fixed", "cumulative"])
def test_later_stages_change_no_bit_of_earlier_blocks(
    rule: WeightRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block k as it was when stage k + 1 began, after its pruning and recovery."""
    snapshots: list[list[np.ndarray]] = []
    start = WeightMaskedTask.__init__

    def spy(self: WeightMaskedTask, network: WeightMaskedNetwork, *arguments: object) -> None:
        snapshots.append(_blocks(network))
        start(self, network, *arguments)

    monkeypatch.setattr(WeightMaskedTask, "__init__", spy)
    network, trained = train_weight_masked(_spec(), _data(), SETTINGS, MODEL, 1, rule, 0.5)
    final = _blocks(network)
    assert len(snapshots) == 3
    for began in (1, 2):
        for k in range(3):
            for place in (k, 3 + k):
                assert _same(snapshots[began][place], final[place]) == (k < began)
    # The first stage did learn: its block is not the initial one.
    assert not np.allclose(snapshots[0][0], snapshots[1][0], atol=0.05)
    assert trained.seconds > 0
    assert trained.task.items().shape == (N_ITEMS, 13)
    owned = [int((network.owners[HISTORY].numpy() == k).sum()) for k in range(3)]
    assert min(owned) > 0
    if rule == "fixed":
        assert owned == [96, 48, 48]


def test_a_refit_moves_every_stage_and_keeps_the_owners() -> None:
    data = dataclasses.replace(_data(), everything=_timelines(USERS, seed=0))
    plain, _ = train_weight_masked(_spec(), _data(), SETTINGS, MODEL, 1, "fixed", 0.5)
    network, trained = train_weight_masked(_spec(), data, SETTINGS, MODEL, 1, "fixed", 0.5)
    for name in network.table_names:
        assert np.array_equal(network.owners[name], plain.owners[name])
    for before, after in zip(_blocks(plain), _blocks(network), strict=True):
        assert not _same(before, after)
    # What chooses the request weights is the network before the refit.
    assert np.allclose(trained.validation[1], np.concatenate(_blocks(plain)[3:], axis=1))


def test_every_objective_is_learned() -> None:
    settings = StageSettings.parse(
        SETTINGS.model_dump() | {"rounds": 8, "recovery_rounds": 3, "user_id_dropout": 0.9}
    )
    data = _data()
    network, trained = train_weight_masked(_spec(), data, settings, MODEL, 1, "fixed", 0.5)
    task = trained.task
    users, items = task.users(data.held_out), task.items()
    ends = np.cumsum([0, *network.block_sizes])
    for level in range(3):
        own = slice(ends[level], ends[level + 1])
        top = data.held_out.top(users[:, own], items[:, own], 8)
        recall = np.nanmean(data.held_out.recall(top, level, 8))
        # Eight of up to 24 items: a third by chance.
        assert recall > 0.75, (level, recall)


def test_an_objective_without_positives_is_refused() -> None:
    data = _data()
    data.timelines.targets[:] = np.minimum(data.timelines.targets, 1)
    with pytest.raises(ValueError, match="objective 2 has no positive"):
        train_weight_masked(_spec(), data, SETTINGS, MODEL, 1, "fixed", 0.5)
