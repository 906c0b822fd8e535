"""Timelines written down event by event."""

from __future__ import annotations

import numpy as np

from models.batches import Batch
from models.timelines import Timelines

Log = list[tuple[int, int, int, int]]  # (item, level, time, target) of a timeline's events


def timelines_of(logs: list[Log]) -> Timelines:
    """One timeline per log; the users are 10, 11, .., their cities 100, 101, ..."""
    flat = np.array([event for log in logs for event in log], np.int64).reshape(-1, 4)
    return Timelines(
        user_ids=np.arange(10, 10 + len(logs), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, logs)]).astype(np.int64),
        items=flat[:, 0].astype(np.int32),
        levels=flat[:, 1].astype(np.int32),
        times=flat[:, 2],
        targets=flat[:, 3].astype(np.int32),
        features={"city": np.arange(len(logs), dtype=np.int32)[:, None] + 100},
    )


def offsets_of(batch: Batch) -> np.ndarray:
    """[B, C] what the loss adds to the batch's negatives, cell by cell."""
    rows = np.array([batch.offsets for _ in batch.user_ids])
    assert len(set(batch.offset_places.tolist())) == len(batch.offset_places), "each place once"
    for place, there in zip(batch.offset_places.tolist(), batch.offsets_there, strict=True):
        rows[divmod(place, len(batch.candidates))] += there
    return rows
