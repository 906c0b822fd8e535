"""The pushed model, asked for many users."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.batch_recommend.model import AskedModel
from pipeline.batch_recommend.users import User
from schemas import names
from serving.servable import Servable
from serving.tensors import Array

SCHEMA = pa.schema(
    [
        pa.field(names.USER_ID, pa.string(), nullable=False),
        pa.field(names.ITEM_IDS, pa.list_(pa.string()), nullable=False),
        pa.field(names.SCORES, pa.list_(pa.float32()), nullable=False),
    ]
)


class Scorer:
    """Runs the model exactly as the server does: the same session, signature and feeds.

    Matrix products of one row and of several are computed by other kernels, whose sums differ in
    the last bits. A server that is asked for one user runs one row, and so does this, unless it is
    told otherwise; such runs are spread over threads.
    """

    def __init__(
        self, model: AskedModel, weights: Sequence[float] | None, count: int, batch_size: int
    ) -> None:
        """Loads the model.

        Args:
          model: what to ask.
          weights: one per objective; None = the model's defaults.
          count: items per list at most.
          batch_size: users in one run.

        Raises:
          ServingError: it cannot be loaded, e.g. files changed or ScaNN is missing.
        """
        self._servable = Servable(model.name, model.version, model.path)
        self._signature = self._servable.signatures[names.SIGNATURE_RECOMMEND]
        self._weights = None if weights is None else np.array([weights], np.float32)
        self._count = count
        self._batch_size = batch_size
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def answer(self, users: Sequence[User]) -> pa.Table:
        """The lists of the users, in their order, as `SCHEMA` says; shorter where items run out.

        Raises:
          ServingError: the model refused.
        """
        size = self._batch_size
        batches = [users[start : start + size] for start in range(0, len(users), size)]
        answers = list(self._threads.map(self._run, batches))
        lists = [row[row != b""][: self._count] for items, _ in answers for row in items]
        scores = [row for _, batch in answers for row in batch]
        return pa.Table.from_arrays(
            [
                pa.array([_text(user.inputs[names.USER_ID][0]) for user in users], pa.string()),
                pa.array([[_text(item) for item in row] for row in lists], SCHEMA.types[1]),
                pa.array(
                    [row[: len(items)] for row, items in zip(scores, lists, strict=True)],
                    SCHEMA.types[2],
                ),
            ],
            schema=SCHEMA,
        )

    def _run(self, users: Sequence[User]) -> tuple[Array, Array]:
        """(item ids [B, N], scores [B, N]); lists that are short end in b"" and 0."""
        feeds = dict(self._signature.defaults)
        feeds[names.USER_ID] = _objects([user.inputs[names.USER_ID][0] for user in users])
        for name, padding in self._signature.padding.items():
            values = [user.inputs.get(name, []) for user in users]
            if any(values):
                feeds[name] = _padded(values, padding, feeds[name].dtype)
        if self._weights is not None:
            feeds[names.OBJECTIVE_WEIGHTS] = self._weights
        items, scores = self._servable.run(self._signature, feeds, [names.ITEM_IDS, names.SCORES])
        return items, scores


def _objects(values: Sequence[bytes]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _padded(values: Sequence[Sequence[Any]], padding: Any, dtype: Any) -> Array:
    full = np.full((len(values), max(map(len, values))), padding, dtype)
    for row, given in zip(full, values, strict=True):
        row[: len(given)] = given
    return full


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")  # as serving.client does
