"""Importance of neurons by activations and by gradients, against NumPy and finite differences."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import tensorflow as tf

from models import stages
from models.batches import BatchMaker
from models.packing import TensorBatch
from models.settings import (
    Importance,
    ModelSettings,
    NegativeSettings,
    PruneRule,
    StageSettings,
    TowerSettings,
)
from models.stages import StageTask, TrainingData, train_stage, user_inputs
from models.timelines import Timelines
from models.towers import HISTORY, ITEM_ID, OUTPUT, USER_ID, TowerSpec, TwoTower

N_ITEMS, N_USERS = 7, 4
COLOURS = {"colour": np.array([[0, 1], [1, -1], [2, -1], [-1, -1], [0, -1], [1, 2], [2, 0]])}
ITEM_FEATURES = {name: ids.astype(np.int32) for name, ids in COLOURS.items()}


def _towers(hidden: tuple[int, ...] = (5,)) -> TwoTower:
    towers = TwoTower(
        TowerSpec(
            towers=TowerSettings(
                dimension=8,  # 6 outputs and two rates
                item_embedding=4,
                user_embedding=3,
                feature_embedding=2,
                hidden=hidden,
                history_length=5,
                recency=(3.0,),
                minimum_block=1,
            ),
            n_objectives=2,
            ordered=True,
            n_items=N_ITEMS,
            n_users=N_USERS,
            user_features={"city": 3},
            item_features={"colour": 3},
        ),
        seed=4,
    )
    rng = np.random.default_rng(8)
    for weight in towers.weights.values():
        weight.assign_add(rng.normal(0, 0.3, weight.shape).astype(np.float32))
    return towers


def _data() -> TrainingData:
    rng = np.random.default_rng(5)
    items = np.concatenate([rng.permutation(N_ITEMS)[:5] for _ in range(N_USERS)])
    levels = rng.integers(0, 2, len(items)).astype(np.int32)
    timelines = Timelines(
        user_ids=np.arange(N_USERS, dtype=np.int32),
        offsets=np.arange(0, 5 * N_USERS + 1, 5, dtype=np.int64),
        items=items.astype(np.int32),
        levels=levels,
        times=np.tile(np.arange(5, dtype=np.int64), N_USERS),
        targets=levels,
        features={"city": np.array([[0], [1], [-1], [2]], np.int32)},
    )
    return TrainingData(timelines, True, ITEM_FEATURES)


def _settings(**changes: object) -> StageSettings:
    return StageSettings.parse({"name": "see", "batch_size": 8} | changes)


def _maker(settings: StageSettings) -> BatchMaker:
    return BatchMaker(
        _data().timelines,
        True,
        0,
        TowerSettings(history_length=5),
        settings,
        NegativeSettings(kind="exact"),
        N_ITEMS,
        N_USERS,
        seed=6,
    )


def _one_batch() -> TensorBatch:
    batch = next(_maker(_settings()).batches())
    return cast(TensorBatch, tf.nest.map_structure(tf.constant, vars(batch)))


def test_activations_against_numpy() -> None:
    towers, batch = _towers(), _one_batch()
    weights = {name: value.numpy().astype(float) for name, value in towers.weights.items()}
    colours = {name: tf.constant(ids) for name, ids in ITEM_FEATURES.items()}
    found = towers.activations(user_inputs(batch), batch["candidates"], colours)

    def mean_of_rows(name: str, ids: np.ndarray) -> np.ndarray:
        return np.mean([np.abs(weights[name][i]) for i in ids.ravel() if i >= 0], axis=0)

    expected = {
        HISTORY: mean_of_rows(HISTORY, batch["history_items"].numpy()),
        USER_ID: mean_of_rows(USER_ID, batch["user_ids"].numpy()),
        ITEM_ID: mean_of_rows(ITEM_ID, batch["candidates"].numpy()),
        "user_city": mean_of_rows("user_city", batch["features"]["city"].numpy()),
        "item_colour": mean_of_rows("item_colour", COLOURS["colour"]),
        OUTPUT: np.zeros(6),
    }
    for tower, inputs in (
        ("user", towers.embed_users(user_inputs(batch))),
        ("item", towers.embed_items(batch["candidates"], colours)),
    ):
        hidden = np.maximum(
            inputs.numpy() @ weights[f"{tower}/hidden_0/kernel"]
            + weights[f"{tower}/hidden_0/bias"],
            0,
        )
        expected[f"{tower}/hidden_0"] = hidden.mean(axis=0)
        outputs = hidden @ weights[f"{tower}_head/kernel"] + weights[f"{tower}_head/bias"]
        expected[OUTPUT] = expected[OUTPUT] + np.abs(outputs).mean(axis=0)
    assert found.keys() == expected.keys() == towers.owners.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_table_that_no_batch_looks_up_has_no_activation() -> None:
    towers, batch = _towers(), _one_batch()
    unknown = tf.fill(batch["features"]["city"].shape, -1)
    users = user_inputs(batch | {"features": {"city": unknown}})
    colours = {name: tf.constant(ids) for name, ids in ITEM_FEATURES.items()}
    found = towers.activations(users, batch["candidates"], colours)
    assert found["user_city"].tolist() == [0.0, 0.0]


def test_gradients_against_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without hidden layers the loss is smooth. One batch, so that it can be drawn again.
    monkeypatch.setattr(stages, "_IMPORTANCE_BATCHES", 1)
    towers, settings = _towers(hidden=()), _settings(importance="gradient", temperature=1.0)
    task = StageTask(towers, ITEM_FEATURES, 0, settings)
    found = task.importance(_maker(settings))
    batch = _one_batch()

    def products(name: str) -> np.ndarray:
        """|gradient x weight| of every weight, by central differences."""
        weight, step = towers.weights[name], 1e-2
        value = weight.numpy()
        result = np.zeros(value.shape)
        for place in np.ndindex(*value.shape):
            changed = []
            for sign in (1, -1):
                moved = value.copy()
                moved[place] += sign * step
                weight.assign(moved)
                changed.append(float(task.compute_loss((batch,))))
            result[place] = abs((changed[0] - changed[1]) / (2 * step) * value[place])
        weight.assign(value)
        return result

    heads = products("user_head/kernel").sum(axis=0) + products("item_head/kernel").sum(axis=0)
    np.testing.assert_allclose(found[OUTPUT], heads, rtol=0.02, atol=2e-4)
    for name in (HISTORY, ITEM_ID, "item_colour"):
        np.testing.assert_allclose(
            found[name], products(name).sum(axis=0), rtol=0.02, atol=2e-4, err_msg=name
        )


def test_a_neuron_that_nobody_reads_has_no_gradient_importance() -> None:
    towers, settings = _towers(), _settings(importance="gradient")
    kernel = towers.weights["user_head/kernel"].numpy()
    kernel[2] = 0.0
    towers.weights["user_head/kernel"].assign(kernel)
    found = StageTask(towers, ITEM_FEATURES, 0, settings).importance(_maker(settings))
    assert found["user/hidden_0"][2] == 0.0
    assert towers.importance()["user/hidden_0"][2] > 0.1


def test_what_depends_on_data_is_a_mean_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    towers, settings = _towers(), _settings(importance="activation")
    task = StageTask(towers, ITEM_FEATURES, 0, settings)
    maker, both = _maker(settings), _maker(settings)
    monkeypatch.setattr(stages, "_IMPORTANCE_BATCHES", 2)
    mean = task.importance(both)
    # The two batches are those that a maker of the same seed draws.
    drawn = maker.batches()
    colours = {name: tf.constant(ids) for name, ids in ITEM_FEATURES.items()}
    single = []
    for _ in range(2):
        batch = tf.nest.map_structure(tf.constant, vars(next(drawn)))
        single.append(towers.activations(user_inputs(batch), batch["candidates"], colours))
    for name, values in mean.items():
        np.testing.assert_allclose(values, (single[0][name] + single[1][name]) / 2, rtol=1e-6)
    assert not np.allclose(single[0][HISTORY], single[1][HISTORY])


def test_the_l1_norm_reads_no_batch() -> None:
    towers, settings = _towers(), _settings()
    maker = _maker(settings)
    found = StageTask(towers, ITEM_FEATURES, 0, settings).importance(maker)
    for name, values in towers.importance().items():
        assert np.array_equal(found[name], values)
    untouched = _maker(settings)
    assert np.array_equal(next(maker.batches()).user_ids, next(untouched.batches()).user_ids)


@pytest.mark.parametrize("kind", ["l1", "activation", "gradient"])
@pytest.mark.parametrize("rule", ["cumulative", "fixed", "global"])
def test_a_stage_releases_by_its_settings(
    kind: Importance, rule: PruneRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = _towers(hidden=())
    released: list[tuple[dict[str, np.ndarray], PruneRule]] = []
    measured: list[dict[str, np.ndarray]] = []
    release, importance = TwoTower.release, StageTask.importance

    def spy_release(
        self: TwoTower, stage: int, tau: float, seed: int, by: dict, rule: PruneRule
    ) -> None:
        released.append((by, rule))
        release(self, stage, tau, seed, by, rule)

    def spy_importance(self: StageTask, maker: BatchMaker) -> dict[str, np.ndarray]:
        measured.append(importance(self, maker))
        return measured[-1]

    monkeypatch.setattr(TwoTower, "release", spy_release)
    monkeypatch.setattr(StageTask, "importance", spy_importance)
    settings = _settings(importance=kind, prune=rule, tau=0.5, rounds=1, recovery_rounds=1)
    model = ModelSettings.parse(
        {"towers": towers.spec.towers.model_dump(), "validation": {"share": 0, "round_steps": 2}}
    )
    task = StageTask(towers, ITEM_FEATURES, 0, settings)
    train_stage(task, _data(), model, 3, lambda text: None)
    assert released == [(measured[0], rule)]
    owned = np.bincount(towers.owners[OUTPUT], minlength=2)
    assert owned.min() >= 1
    if rule == "fixed":
        # Half of 6 outputs, of 4 item columns, of 3 user columns (1.5 rounds to 2).
        assert owned.tolist() == [3, 3]
        assert towers.owners[ITEM_ID].sum() == 2
        assert towers.owners[USER_ID].sum() == 2


def test_release_frees_by_the_importance_it_is_given() -> None:
    towers = _towers()
    importance = {name: np.arange(len(o), dtype=float) + 1 for name, o in towers.owners.items()}
    towers.release(0, 0.5, 2, importance, "fixed")
    # The first half of every layer, and of 5 hidden neurons 2 (2.5 rounds to even).
    assert towers.owners[OUTPUT].tolist() == [1, 1, 1, 0, 0, 0]
    assert towers.owners["user/hidden_0"].tolist() == [1, 1, 0, 0, 0]
