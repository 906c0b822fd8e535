"""A synthetic log in vocabulary ids: users of four tastes, items of four groups."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.split import Split
from models.held_out import HeldOut
from models.settings import ModelSettings, StageSettings
from models.stages import TrainingData
from models.timelines import Timelines
from models.towers import TowerSpec
from pipeline.config import PipelineConfig

N_GROUPS = 4
N_ITEMS = 80
N_USERS = 120
EVENTS = 20
OBJECTIVES = ("exposure", "click", "conversion")

FAST = {"rounds": 6, "batch_size": 64, "learning_rate": 0.02, "recovery_rounds": 2, "tau": 0.4}
MODEL = {
    "towers": {
        "dimension": 24,
        "item_embedding": 16,
        "user_embedding": 4,
        "history_length": 12,
        "minimum_block": 2,
    },
    "validation": {"round_steps": 10, "share": 0.2},
}


def tastes(seed: int) -> Timelines:
    """Every user meets items of one group; even items are clicked, multiples of four bought."""
    rng = np.random.default_rng(seed)
    per_group = N_ITEMS // N_GROUPS
    items = np.concatenate(
        [
            rng.permutation(per_group)[:EVENTS] + per_group * (user % N_GROUPS)
            for user in range(N_USERS)
        ]
    ).astype(np.int32)
    levels = ((items % 2 == 0).astype(np.int32) + (items % 4 == 0)).astype(np.int32)
    return Timelines(
        user_ids=np.arange(N_USERS, dtype=np.int32),
        offsets=np.arange(N_USERS + 1, dtype=np.int64) * EVENTS,
        items=items,
        levels=levels,
        times=np.tile(np.arange(EVENTS, dtype=np.int64), N_USERS),
        targets=levels.copy(),
        features={},
    )


def config() -> PipelineConfig:
    """Settings that train in seconds; the files that it names do not exist."""
    return PipelineConfig.parse(
        {
            "name": "tastes",
            "objectives": [{"name": name, **FAST} for name in OBJECTIVES],
            "model": MODEL,
            "data": {
                "interactions": [
                    {
                        "path": f"{name}.csv",
                        "columns": {"user_id": "u", "item_id": "i", "timestamp": "t"},
                        "level": name,
                    }
                    for name in OBJECTIVES
                ],
                "split": {"kind": "time", "eval_share": 0.2},
            },
        }
    )


@pytest.fixture(scope="session")
def split() -> Split:
    """Training events before the 15th of each user, test events from then on."""
    settings = config()
    log = tastes(seed=3)
    late = log.times >= 15
    kept = np.bincount(log.timeline_of[~late], minlength=N_USERS)
    full = Timelines(
        user_ids=log.user_ids,
        offsets=np.append(0, np.cumsum(kept)),
        items=log.items[~late],
        levels=log.levels[~late],
        times=log.times[~late],
        targets=log.targets[~late],
        features={},
    )
    held = Timelines(**{**log.__dict__, "targets": np.where(late, log.targets, -1)})
    model = ModelSettings.parse(MODEL)
    return Split(
        config=settings,
        spec=TowerSpec(model.towers, 3, True, N_ITEMS, N_USERS, {}, {}),
        full=full,
        data=TrainingData.split(full, True, {}, model, settings.seed),
        test=HeldOut.of(held, 1000, settings.seed),
    )


@pytest.fixture(scope="session")
def stage() -> StageSettings:
    """Settings of one training."""
    return StageSettings.parse({"name": "exposure", **FAST})
