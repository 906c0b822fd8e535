"""The request weights that the last stage chooses, on towers whose right answers are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from models.settings import ModelSettings, TowerSettings, ValidationSettings
from models.stages import TrainingData
from models.timelines import Timelines
from models.towers import HISTORY, ITEM_ID, OUTPUT, USER_ID, TowerSpec, TwoTower
from models.weighting import chosen_weights, default_weights

OBJECTIVES = ["exposure", "click", "conversion"]
N_USERS, N_ITEMS = 40, 160
EVENTS = 4  # per user, the last one with another item than all before it
BLOCK = 4


def towers() -> TwoTower:
    """A block of four coordinates per stage, all of them random: the second one is overwritten.

    In the second block the user points to the item right after the one seen last, so that it
    alone puts the next item on top; the two others know nothing.
    """
    made = TwoTower(
        TowerSpec(
            towers=TowerSettings(
                dimension=3 * (BLOCK + 1),  # beside a block's outputs, one for rates
                item_embedding=2 + 2 * BLOCK,
                user_embedding=2,
                recency=(0.01,),
                history_length=EVENTS,
                minimum_block=2,
            ),
            n_objectives=3,
            ordered=True,
            n_items=N_ITEMS,
            n_users=N_USERS,
            user_features={},
            item_features={},
        ),
        seed=5,
    )
    rng = np.random.default_rng(3)
    for name in (HISTORY, USER_ID, ITEM_ID):
        made.weights[name].assign(rng.normal(size=made.weights[name].shape))
    places = rng.normal(size=(N_ITEMS, BLOCK))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    history, items = made.weights[HISTORY].numpy(), made.weights[ITEM_ID].numpy()
    items[:, :BLOCK] = places
    history[:, :BLOCK] = np.roll(places, -1, axis=0)
    made.weights[HISTORY].assign(history)
    made.weights[ITEM_ID].assign(items)
    made.owners[OUTPUT] = np.repeat(np.arange(3, dtype=np.int32), BLOCK)
    second = slice(BLOCK, 2 * BLOCK)
    for tower in ("user", "item"):
        kernel = made.weights[f"{tower}_head/kernel"].numpy()
        kernel[:, second] = 0.0
        # The sharply recency-weighted histories of all levels come after the three plain ones.
        first_row = 3 * history.shape[1] if tower == "user" else 0
        kernel[first_row : first_row + BLOCK, second] = np.eye(BLOCK)
        made.weights[f"{tower}_head/kernel"].assign(kernel)
    return made


def timelines(last_level: int) -> Timelines:
    """Every user sees item after item in the order of their ids; the last one by far the latest."""
    first = np.random.default_rng(9).integers(0, N_ITEMS, N_USERS)
    times = np.tile(np.arange(EVENTS, dtype=np.int64), N_USERS)
    times[times == EVENTS - 1] = 1000
    levels = np.where(times == 1000, last_level, 0).astype(np.int32)
    return Timelines(
        user_ids=np.arange(N_USERS, dtype=np.int32),
        offsets=np.arange(0, N_USERS * EVENTS + 1, EVENTS, dtype=np.int64),
        items=((first[:, None] + np.arange(EVENTS)) % N_ITEMS).ravel().astype(np.int32),
        levels=levels,
        times=times,
        targets=levels,
        features={},
    )


def data(last_level: int, share: float = 0.25) -> TrainingData:
    model = ModelSettings(validation=ValidationSettings(share=share))
    return TrainingData.split(timelines(last_level), True, {}, model, seed=1)


def test_the_block_that_knows_the_answer_is_weighted_up() -> None:
    chosen = chosen_weights(towers(), data(last_level=2), OBJECTIVES)
    assert list(chosen) == OBJECTIVES
    for weights in chosen.values():
        assert weights[0] == 1.0
        assert weights[1] >= 1.0
        assert weights[2] < weights[1]


def test_an_objective_without_a_held_out_event_is_left_out() -> None:
    assert list(chosen_weights(towers(), data(last_level=1), OBJECTIVES)) == OBJECTIVES[:2]


def test_nothing_is_chosen_where_nothing_is_held_out() -> None:
    split = data(last_level=2)
    assert split.held_out is not None
    nothing = split.held_out.only(np.zeros(0, np.int64))
    assert chosen_weights(towers(), dataclasses.replace(split, held_out=nothing), OBJECTIVES) == {}
    assert chosen_weights(towers(), data(last_level=2, share=0.0), OBJECTIVES) == {}


@pytest.mark.parametrize(
    ("objectives", "weights"),
    [
        (["a"], {"a": [1.0]}),
        (["b", "a", "c"], {"b": [1.0, 0.0, 0.0], "a": [1.0, 1.0, 0.0], "c": [1.0, 1.0, 1.0]}),
    ],
)
def test_default_weights(objectives: list[str], weights: dict[str, list[float]]) -> None:
    assert default_weights(objectives) == weights
