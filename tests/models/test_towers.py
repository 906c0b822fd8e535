"""The towers against a NumPy re-implementation; what CPP does to weights; persistence."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models import masks
from models.settings import TowerSettings
from models.towers import (
    HISTORY,
    ITEM_ID,
    OUTPUT,
    RATES,
    STRENGTHS,
    USER_ID,
    TowerSpec,
    TwoTower,
    UserInputs,
)

N_ITEMS, N_USERS, K = 11, 5, 3


RECENCY = (2.0, 7.0)


def _spec(
    hidden: tuple[int, ...] = (),
    minimum_block: int = 1,
    dimension: int = 13,  # 10 outputs and a rate for each stage
    ordered: bool = True,
) -> TowerSpec:
    return TowerSpec(
        towers=TowerSettings(
            dimension=dimension,
            item_embedding=10,
            user_embedding=6,
            feature_embedding=8,
            hidden=hidden,
            recency=RECENCY,
            minimum_block=minimum_block,
        ),
        n_objectives=K,
        ordered=ordered,
        n_items=N_ITEMS,
        n_users=N_USERS,
        user_features={"age": 10, "city": 4},
        item_features={"genre": 6},
    )


def _users(seed: int = 0, n: int = 7) -> UserInputs:
    rng = np.random.default_rng(seed)
    items = rng.integers(-1, N_ITEMS, (n, 4)).astype(np.int32)
    items[0] = -1  # a user without history
    return UserInputs(
        history_items=tf.constant(items),
        history_levels=tf.constant(rng.integers(0, K, (n, 4)), tf.int32),
        # Not the order of the columns, and with gaps, as dropout leaves them.
        history_ranks=tf.constant(np.stack([rng.permutation(9)[:4] for _ in range(n)]), tf.int32),
        user_ids=tf.constant(rng.integers(0, N_USERS + 1, n), tf.int32),
        features={
            "city": tf.constant(rng.integers(-1, 4, (n, 3)), tf.int32),
            "age": tf.constant(rng.integers(-1, 10, (n, 1)), tf.int32),
        },
    )


def _items() -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    rng = np.random.default_rng(9)
    ids = tf.constant([*range(N_ITEMS), -1], tf.int32)
    genres = rng.integers(-1, 6, (N_ITEMS + 1, 2)).astype(np.int32)
    genres[-1] = -1
    return ids, {"genre": tf.constant(genres)}


def _shake(towers: TwoTower, seed: int = 5) -> None:
    """Moves every weight, biases too, as training would."""
    rng = np.random.default_rng(seed)
    for weight in towers.weights.values():
        weight.assign_add(rng.normal(0, 0.1, weight.shape).astype(np.float32))


def _snapshot(towers: TwoTower) -> dict[str, np.ndarray]:
    return {name: weight.numpy().copy() for name, weight in towers.weights.items()}


def _mean_rows(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    rows = [table[i] for i in ids if i >= 0]
    return np.mean(rows, axis=0) if rows else np.zeros(table.shape[1])


def _dense(towers: TwoTower, tower: str, x: np.ndarray) -> np.ndarray:
    weights = {name: value.numpy().astype(float) for name, value in towers.weights.items()}
    for depth in range(len(towers.spec.towers.hidden)):
        name = f"{tower}/hidden_{depth}"
        x = np.maximum(x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"], 0.0)
    return x @ weights[f"{tower}_head/kernel"] + weights[f"{tower}_head/bias"]


def _user_tower(towers: TwoTower, users: UserInputs) -> np.ndarray:
    """What METHOD 1.1 and 1.7 say, one user at a time, in float64."""
    weights = {name: value.numpy().astype(float) for name, value in towers.weights.items()}
    rows = []
    for row in range(len(users.user_ids)):
        parts = []
        # Beside the plain pooling, one for each recency; without times there is no recency.
        for recency in (np.inf, *(RECENCY if towers.spec.ordered else ())):
            for level in range(K):
                total, squares = np.zeros(weights[HISTORY].shape[1]), 0.0
                for item, at, rank in zip(
                    users.history_items.numpy()[row],
                    users.history_levels.numpy()[row],
                    users.history_ranks.numpy()[row],
                    strict=True,
                ):
                    if item >= 0 and at >= level:
                        weight = np.exp(-rank / recency)
                        total += weight * weights[HISTORY][item]
                        squares += weight**2
                parts.append(total / np.sqrt(squares) if squares else total)
        parts.append(weights[USER_ID][users.user_ids.numpy()[row]])
        for name in ("age", "city"):
            parts.append(_mean_rows(weights[f"user_{name}"], users.features[name].numpy()[row]))
        rows.append(_dense(towers, "user", np.concatenate(parts)))
    return np.stack(rows)


def _item_tower(towers: TwoTower, ids: np.ndarray, genres: np.ndarray) -> np.ndarray:
    weights = {name: value.numpy().astype(float) for name, value in towers.weights.items()}
    return np.stack(
        [
            _dense(
                towers,
                "item",
                np.concatenate(
                    [
                        _mean_rows(weights[ITEM_ID], [item]),
                        _mean_rows(weights["item_genre"], genre),
                    ]
                ),
            )
            for item, genre in zip(ids, genres, strict=True)
        ]
    )


@pytest.fixture(params=[(), (9,), (9, 8)], ids=["linear", "one hidden", "two hidden"])
def towers(request: pytest.FixtureRequest) -> TwoTower:
    built = TwoTower(_spec(hidden=request.param), seed=1)
    _shake(built)
    return built


# --- forward --------------------------------------------------------------------------------


def test_the_user_tower_equals_numpy(towers: TwoTower) -> None:
    users = _users()
    np.testing.assert_allclose(
        towers.users(users), _user_tower(towers, users), rtol=1e-4, atol=1e-6
    )


def test_the_item_tower_equals_numpy(towers: TwoTower) -> None:
    ids, features = _items()
    expected = _item_tower(towers, ids.numpy(), features["genre"].numpy())
    np.testing.assert_allclose(towers.items(ids, features), expected, rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing(towers: TwoTower) -> None:
    users = _users()
    pad = [[0, 0], [2, 3]]
    padded = UserInputs(
        history_items=tf.pad(users.history_items, pad, constant_values=-1),
        history_levels=tf.pad(users.history_levels, pad, constant_values=2),
        history_ranks=tf.pad(users.history_ranks, pad, constant_values=0),
        user_ids=users.user_ids,
        features={
            name: tf.pad(ids, pad, constant_values=-1) for name, ids in users.features.items()
        },
    )
    np.testing.assert_allclose(towers.users(padded), towers.users(users), rtol=1e-5, atol=1e-7)


def _pooled(towers: TwoTower, items: list[int], levels: list[int], ranks: list[int]) -> np.ndarray:
    """[P, E] the pooled histories of one user, the plain ones first."""
    users = UserInputs(
        history_items=tf.constant([items]),
        history_levels=tf.constant([levels]),
        history_ranks=tf.constant([ranks]),
        user_ids=tf.constant([0]),
        features={name: tf.constant([[-1]]) for name in ("age", "city")},
    )
    columns = towers.weights[HISTORY].shape[1]
    whole = towers.embed_users(users).numpy()[0]
    assert np.array_equal(whole[-22:-16], towers.weights[USER_ID].numpy()[0])
    return whole[:-22].reshape(-1, columns)


def test_pooling_of_levels_by_hand() -> None:
    towers = TwoTower(_spec(), seed=1)
    table = towers.weights[HISTORY].numpy()
    pooled = _pooled(towers, [3, 4, -1, 5, 6], [0, 1, 2, 2, 0], [0, 1, 2, 3, 4])
    assert len(pooled) == 3 * K
    # Level 0 is reached by all four known items, level 1 by items 4 and 5, level 2 by item 5.
    np.testing.assert_allclose(
        pooled[0], (table[3] + table[4] + table[5] + table[6]) / 2, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(pooled[1], (table[4] + table[5]) / np.sqrt(2), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pooled[2], table[5], rtol=1e-6)
    # Recency 2: the ranks of items 4 and 5 are 1 and 3, so they weigh e^-.5 and e^-1.5, that is
    # 1 and e^-1 after scaling to length one. Of a single item nothing but its vector remains.
    expected = (table[4] + table[5] / np.e) / np.sqrt(1 + np.e**-2)
    np.testing.assert_allclose(pooled[K + 1], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pooled[K + 2], table[5], rtol=1e-5)


def test_rank_decides_what_is_recent_and_not_the_column() -> None:
    towers = TwoTower(_spec(), seed=1)
    one = _pooled(towers, [3, 4, 5], [2, 2, 2], [0, 5, 9])
    same = _pooled(towers, [5, 3, 4], [2, 2, 2], [9, 0, 5])
    other = _pooled(towers, [3, 4, 5], [2, 2, 2], [9, 5, 0])
    np.testing.assert_allclose(one, same, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one[:K], other[:K], rtol=1e-5, atol=1e-7)
    assert not np.allclose(one[K:], other[K:], atol=1e-3)
    # All a step older changes nothing: what counts is how much older one is than another.
    older = _pooled(towers, [3, 4, 5], [2, 2, 2], [1, 6, 10])
    np.testing.assert_allclose(one, older, rtol=1e-4, atol=1e-6)
    # The most recent item outweighs the rest, the more so the shorter the recency.
    table = towers.weights[HISTORY].numpy()
    distances = [np.linalg.norm(one[K * place] - table[3]) for place in range(3)]
    assert distances[1] < distances[2] < distances[0]


def test_without_times_there_is_no_recency() -> None:
    towers = TwoTower(_spec(ordered=False), seed=1)
    assert towers.weights["user_head/kernel"].shape[0] == K * 10 + 6 + 2 * 8
    users = _users()
    np.testing.assert_allclose(
        towers.users(users), _user_tower(towers, users), rtol=1e-4, atol=1e-6
    )
    shuffled = dataclasses.replace(users, history_ranks=8 - users.history_ranks)
    assert np.array_equal(towers.users(users), towers.users(shuffled))
    assert not np.array_equal(
        TwoTower(_spec(), seed=1).users(users), TwoTower(_spec(), seed=1).users(shuffled)
    )


def test_blocks_are_the_owned_outputs_each_of_length_one_and_the_rates(towers: TwoTower) -> None:
    towers.owners[OUTPUT] = np.array([2, 0, 1, 0, 2, 0, 1, 0, 1, 0], np.int32)
    rates = np.linspace(-1, 1, K * N_ITEMS).reshape(K, N_ITEMS).astype(np.float32)
    strengths = np.array([[1, -0.5], [2, 0.25], [0.5, 0.75]], np.float32)
    for stage in range(K):
        towers.set_rates(stage, rates[stage])
        towers.set_strengths(stage, *strengths[stage])
    ids, features = _items()
    users = _users()
    assert towers.block_sizes() == [6, 4, 3]

    def expected(outputs: tf.Tensor, lengths: np.ndarray, beside: np.ndarray) -> np.ndarray:
        parts = []
        for stage in range(K):
            columns = outputs.numpy()[:, towers.owners[OUTPUT] == stage]
            norms = np.linalg.norm(columns, axis=1, keepdims=True)
            parts += [lengths[stage] * columns / norms, beside[:, stage : stage + 1]]
        return np.concatenate(parts, axis=1)

    of_users = expected(towers.users(users), strengths[:, 0], np.tile(strengths[:, 1], (7, 1)))
    np.testing.assert_allclose(towers.user_blocks(users), of_users, rtol=1e-5, atol=1e-6)
    # The last item of `ids` is unknown, and nothing is known of it.
    known = np.append(rates.T, np.zeros((1, K)), axis=0)
    of_items = expected(towers.items(ids, features), np.ones(K), known)
    np.testing.assert_allclose(towers.item_blocks(ids, features), of_items, rtol=1e-5, atol=1e-6)


# --- ownership ------------------------------------------------------------------------------


def _check_triangular(towers: TwoTower) -> None:
    for layer in towers._layers:
        if layer.inputs:
            inputs = np.concatenate([towers.owners[name] for name in layer.inputs])
            outputs = towers.owners[layer.outputs]
            kernel = towers.weights[layer.weight].numpy()
            for i, j in np.argwhere(inputs[:, None] > outputs[None, :]):
                assert kernel[i, j] == 0.0, (layer.weight, i, j)


def test_every_neuron_begins_with_the_first_stage(towers: TwoTower) -> None:
    assert all(np.all(owners == 0) for owners in towers.owners.values())
    assert towers.block_sizes() == [11, 1, 1]
    counted = {RATES, STRENGTHS}  # row or column k belongs to stage k
    for stage in range(K):
        for name, mask in towers.trainable_masks(stage).items():
            whole = np.broadcast_to(mask, towers.weights[name].shape)
            if name in counted:
                of_stage = whole[stage] if name == STRENGTHS else whole[:, stage]
                assert of_stage.all()
                assert whole.sum() == of_stage.size
            else:
                assert whole.all() if stage == 0 else not whole.any(), name


def test_importance_is_the_l1_norm_and_adds_the_towers_in_the_head(towers: TwoTower) -> None:
    importance = towers.importance()
    table = towers.weights[HISTORY].numpy().astype(float)
    for column in range(table.shape[1]):
        expected = sum(abs(value) for value in table[:, column])
        assert importance[HISTORY][column] == pytest.approx(expected)
    heads = [np.abs(towers.weights[f"{t}_head/kernel"].numpy()).sum(0) for t in ("user", "item")]
    np.testing.assert_allclose(importance[OUTPUT], heads[0] + heads[1], rtol=1e-5)


def test_release_frees_what_cpp_says_in_every_layer(towers: TwoTower) -> None:
    importance = towers.importance()
    towers.release(0, 0.5, seed=2)
    for name, owners in towers.owners.items():
        expected = masks.freed_slots(importance[name], 0.5).astype(int)
        assert owners.tolist() == expected.tolist(), name
    assert sum(towers.block_sizes()) == 13
    assert towers.block_sizes()[2] == 1, "the rates of a stage that owns nothing yet"


def test_release_redraws_what_is_freed_cuts_what_is_forbidden_and_keeps_the_rest(
    towers: TwoTower,
) -> None:
    before = _snapshot(towers)
    for stage, tau in ((0, 0.6), (1, 0.5)):
        previous = _snapshot(towers)
        towers.release(stage, tau, seed=20 + stage)
        _check_triangular(towers)
        for layer in towers._layers:
            old, new = previous[layer.weight], towers.weights[layer.weight].numpy()
            outputs = towers.owners[layer.outputs]
            freed = outputs == stage + 1
            assert freed.any(), f"{layer.weight}: this test needs something freed"
            permitted = np.ones(new.shape, bool)
            if layer.inputs:
                inputs = np.concatenate([towers.owners[name] for name in layer.inputs])
                permitted = inputs[:, None] <= outputs[None, :]
            kept = permitted & ~freed[None, :]
            assert new[kept].tobytes() == old[kept].tobytes(), "bit for bit"
            redrawn = permitted & freed[None, :]
            assert np.all(new[redrawn] != old[redrawn])
            assert np.all(new[~permitted] == 0.0)
            if layer.bias:
                old, new = previous[layer.bias], towers.weights[layer.bias].numpy()
                assert np.all(new[freed] == 0.0)
                assert new[~freed].tobytes() == old[~freed].tobytes()
    assert sum(towers.block_sizes()) == 13
    assert min(towers.block_sizes()) >= 1
    assert set(before) == set(towers.weights), "no extra parameters"
    assert all(before[name].shape == towers.weights[name].shape for name in before)


def test_what_is_redrawn_has_the_initial_scale() -> None:
    spec = _spec(dimension=200)
    towers = TwoTower(spec, seed=1)
    initial = {name: value.std() for name, value in _snapshot(towers).items()}
    for weight in towers.weights.values():
        weight.assign(weight * 50.0)
    towers.release(0, 0.5, seed=2)
    for layer in towers._layers:
        freed = np.flatnonzero(towers.owners[layer.outputs] == 1)
        redrawn = towers.weights[layer.weight].numpy()[:, freed]
        assert redrawn.std() == pytest.approx(initial[layer.weight], rel=0.5), layer.weight


def test_what_is_redrawn_differs_from_all_draws_before_under_one_seed() -> None:
    """The trainer has one seed for the initial weights and for every release."""
    towers = TwoTower(_spec(), seed=7)
    drawn = [_snapshot(towers)]
    for stage in (0, 1):
        _shake(towers)
        towers.release(stage, 0.5, seed=7)
        freed = towers.owners[HISTORY] == stage + 1
        table = towers.weights[HISTORY].numpy()[:, freed]
        for before in drawn:
            assert not np.any(table == before[HISTORY][:, freed])
        drawn.append(_snapshot(towers))


def test_masks_of_the_stages_partition_what_may_be_non_zero(towers: TwoTower) -> None:
    towers.release(0, 0.6, seed=2)
    towers.release(1, 0.5, seed=3)
    stages = [towers.trainable_masks(stage) for stage in range(K)]
    for name, weight in towers.weights.items():
        trained = sum(np.broadcast_to(mask[name], weight.shape).astype(int) for mask in stages)
        assert trained.max() == 1, "no weight belongs to two stages"
        assert np.all(weight.numpy()[trained == 0] == 0.0), "what nobody trains is cut"


def test_a_later_stage_may_move_all_it_owns_without_changing_a_bit_upstream(
    towers: TwoTower,
) -> None:
    """METHOD 1.3, the reason for the block-triangular rule, without any training."""
    towers.release(0, 0.6, seed=2)
    towers.release(1, 0.5, seed=3)
    users, (ids, features) = _users(), _items()

    def blocks() -> list[np.ndarray]:
        outputs = (towers.users(users), towers.items(ids, features))
        return [towers.learnt(o, stage).numpy() for stage in range(K) for o in outputs]

    before = blocks()
    rng = np.random.default_rng(0)
    for stage in (1, 2):
        for name, mask in towers.trainable_masks(stage).items():
            weight = towers.weights[name]
            noise = rng.normal(0, 10, weight.shape).astype(np.float32)
            weight.assign_add(np.where(mask, noise, np.float32(0)))
    after = blocks()
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert all(not np.array_equal(b, a) for b, a in zip(before[2:], after[2:], strict=True))


def test_swapping_exchanges_weights_and_owners_in_place(towers: TwoTower) -> None:
    other = TwoTower(towers.spec, 99)
    towers.release(0, 0.3, 1)
    assert not np.array_equal(other.owners[OUTPUT], towers.owners[OUTPUT])
    before = [
        ({n: w.numpy() for n, w in network.weights.items()}, dict(network.owners))
        for network in (towers, other)
    ]
    variables = dict(towers.weights)
    towers.swap(other)
    for network, (weights, owners) in zip((other, towers), before, strict=True):
        for name, weight in network.weights.items():
            assert np.array_equal(weight.numpy(), weights[name]), name
        for name, owner in network.owners.items():
            assert np.array_equal(owner, owners[name]), name
    assert all(towers.weights[name] is variable for name, variable in variables.items())


def test_a_stage_with_too_few_dimensions_is_refused_with_advice() -> None:
    towers = TwoTower(_spec(minimum_block=4), seed=1)
    with pytest.raises(ValueError, match="minimum_block") as error:
        towers.release(0, 0.05, seed=2)
    assert str(error.value) == (
        "stage 1 would own 0 of 10 outputs, fewer than minimum_block = 4. "
        "Now tau of stage 0 is 0.05: raise it, or raise towers.dimension."
    )
    towers = TwoTower(_spec(minimum_block=4), seed=1)
    with pytest.raises(ValueError, match="stage 0 would own") as error:
        towers.release(0, 0.95, seed=2)
    assert "tau of stage 0 is 0.95: lower it, or raise towers.dimension." in str(error.value)


def test_fewer_dimensions_than_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension is 5, but 3 objectives divide it"):
        TwoTower(_spec(dimension=5), seed=1)


# --- seeds and persistence ------------------------------------------------------------------


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (_snapshot(TwoTower(_spec((9,)), seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one[HISTORY], other[HISTORY])
    assert not np.array_equal(one[HISTORY], one[ITEM_ID]), "tables are drawn independently"


def test_the_spec_survives_json() -> None:
    for ordered in (True, False):
        spec = _spec(hidden=(9, 8), ordered=ordered)
        assert TowerSpec.from_json(spec.to_json()) == spec


def _hash(towers: TwoTower) -> str:
    digest = hashlib.sha256()
    for name in sorted(towers.weights):
        digest.update(towers.weights[name].numpy().tobytes())
    for name in sorted(towers.owners):
        digest.update(towers.owners[name].tobytes())
    digest.update(towers.users(_users()).numpy().tobytes())
    return digest.hexdigest()


def test_save_and_load_are_bit_identical(towers: TwoTower, tmp_path: Path) -> None:
    towers.release(0, 0.6, seed=2)
    towers.save(tmp_path / "made" / "on demand")
    loaded = TwoTower.load(tmp_path / "made" / "on demand")
    assert loaded.spec == towers.spec
    assert list(loaded.weights) == list(towers.weights)
    for name, weight in towers.weights.items():
        assert loaded.weights[name].numpy().tobytes() == weight.numpy().tobytes()
    for name, owners in towers.owners.items():
        assert loaded.owners[name].dtype == owners.dtype
        assert np.array_equal(loaded.owners[name], owners)
    assert _hash(loaded) == _hash(towers)
    # And the next stage goes on as if nothing had happened.
    towers.release(1, 0.5, seed=3)
    loaded.release(1, 0.5, seed=3)
    assert _hash(loaded) == _hash(towers)


def test_features_keep_the_order_in_which_they_were_declared(tmp_path: Path) -> None:
    spec = dataclasses.replace(_spec(), user_features={"city": 4, "age": 10})
    towers = TwoTower(spec, seed=1)
    _shake(towers)
    towers.save(tmp_path)
    assert np.array_equal(TwoTower.load(tmp_path).users(_users()), towers.users(_users()))


_HASH_IN_FRESH_PROCESS = """
import hashlib, sys
from pathlib import Path
import tensorflow as tf
from models.towers import TwoTower, UserInputs
towers = TwoTower.load(Path(sys.argv[1]))
users = UserInputs(
    tf.constant([[0, 3, -1]]), tf.constant([[2, 0, 0]]), tf.constant([[0, 1, 2]]),
    tf.constant([1]), {"city": tf.constant([[0, 1]]), "age": tf.constant([[-1]])},
)
digest = hashlib.sha256()
for name in sorted(towers.weights):
    digest.update(towers.weights[name].numpy().tobytes())
digest.update(towers.user_blocks(users).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_a_fresh_process_loads_the_same_bits(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    towers = TwoTower(_spec((9,)), seed=1)
    _shake(towers)
    towers.release(0, 0.6, seed=2)
    towers.release(1, 0.5, seed=2)
    towers.save(tmp_path)
    users = UserInputs(
        tf.constant([[0, 3, -1]]),
        tf.constant([[2, 0, 0]]),
        tf.constant([[0, 1, 2]]),
        tf.constant([1]),
        {"city": tf.constant([[0, 1]]), "age": tf.constant([[-1]])},
    )
    digest = hashlib.sha256()
    for name in sorted(towers.weights):
        digest.update(towers.weights[name].numpy().tobytes())
    digest.update(towers.user_blocks(users).numpy().tobytes())
    answer = run_python(_HASH_IN_FRESH_PROCESS, str(tmp_path))
    assert answer.strip() == digest.hexdigest()
