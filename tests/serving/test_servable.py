"""How a loaded version runs, and what it leaves behind."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.errors import ServingError
from serving.servable import Servable, Threads


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_closed_version_leaves_no_graph_for_the_garbage_collector(zoo: Path) -> None:
    servable = Servable("m", 1, str(zoo))
    left = [weakref.ref(servable._graph), weakref.ref(servable._session)]
    assert servable.close(timeout_seconds=5.0)
    del servable
    assert [reference() for reference in left] == [None, None]


@pytest.mark.usefixtures("no_collector")
def test_a_version_that_cannot_be_loaded_leaves_no_operations(zoo: Path, tmp_path: Path) -> None:
    """A server that tries again and again must not grow."""

    def operations() -> int:
        return sum(isinstance(thing, tf.Operation) for thing in gc.get_objects())

    broken = Path(shutil.copytree(zoo, tmp_path / "1"))
    for values in (broken / "variables").glob("variables.data*"):
        values.unlink()
    before = operations()
    with pytest.raises(tf.errors.OpError):
        Servable("m", 1, str(broken))
    assert operations() <= before


def _save_slow(path: Path, has_loop: bool) -> None:
    def loop(n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"n": tf.while_loop(lambda i: i < n, lambda i: i + 1, [tf.constant(0, tf.int64)])[0]}

    def sort(n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"n": tf.sort(tf.range(n), direction="DESCENDING")[0] + 1}

    spec = tf.TensorSpec([], tf.int64, "n")
    signature = tf.function(loop if has_loop else sort, input_signature=[spec])
    tf.saved_model.save(tf.Module(), str(path), {"slow": signature})


@pytest.mark.parametrize(
    ("has_loop", "inter_op", "can_be_cancelled"),
    [
        (False, 0, False),
        (False, 1, True),  # who asks for threads gets them
        (True, 0, True),  # it might never end
        (True, 1, True),
    ],
)
def test_a_run_can_be_cancelled_unless_the_last_one_was_short(
    tmp_path: Path, has_loop: bool, inter_op: int, can_be_cancelled: bool
) -> None:
    _save_slow(tmp_path / "1", has_loop)
    servable = Servable("m", 1, str(tmp_path / "1"), threads=Threads(inter_op=inter_op))
    signature = servable.signatures["slow"]

    def run() -> int:
        (counted,) = servable.run(signature, {"n": np.array(3_000_000)}, ["n"], timeout_ms=1)
        return int(counted)

    with pytest.raises(ServingError) as cancelled:  # nothing is known yet
        run()
    assert cancelled.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    signature.last_seconds = 0.001
    if can_be_cancelled:
        with pytest.raises(ServingError):
            run()
    else:
        assert run() == 3_000_000
        assert not signature.is_short
        with pytest.raises(ServingError):
            run()
    servable.close()
