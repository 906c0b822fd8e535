"""What a loaded version leaves behind."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from serving.servable import Servable


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
