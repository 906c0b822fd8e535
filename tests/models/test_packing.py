"""Batches reach the graph as they were drawn, whatever they measure."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import tensorflow as tf

from models.batches import BatchMaker
from models.packing import Chunk, chunk_of, chunk_sizes, chunks, specs_of, unpacked
from models.settings import NegativeSettings, StageSettings, TowerSettings
from tests.models.logs import timelines_of


def _makers() -> list[BatchMaker]:
    """Two makers of batches whose every array changes its size."""
    timelines = timelines_of([[(4, 0, 1, 0), (2, 1, 2, 1), (3, 2, 3, 2)], [(1, 1, 1, 1)]])
    return [
        BatchMaker(
            timelines,
            True,
            level,
            TowerSettings(history_length=5),
            StageSettings(name="s", batch_size=2, history_dropout=0.0),
            NegativeSettings(kind="sampled", random=3),
            6,
            77,
            seed=level,
        )
        for level in (0, 1)
    ]


def _assert_equal(found: tf.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


def test_a_batch_reaches_the_step_as_it_was_drawn() -> None:
    """Every field of every maker's batches, in all steps of all chunks."""
    drawn = zip(*(maker.batches() for maker in _makers()), strict=True)
    specs = specs_of(_makers())
    sizes = [3, 1, 5]
    made = list(chunks(_makers(), sizes))
    assert [len(chunk.layout) for chunk in made] == sizes
    for chunk in made:
        for layout in chunk.layout:
            read = unpacked(chunk.contents, layout, specs)
            for found, batch in zip(read, next(drawn), strict=True):
                assert found.keys() == vars(batch).keys()
                tf.nest.map_structure(_assert_equal, found, vars(batch))


def test_arrays_begin_where_tensorflow_need_not_copy_them() -> None:
    drawn = zip(*(maker.batches() for maker in _makers()), strict=True)
    chunk = chunk_of(list(itertools.islice(drawn, 4)))
    arrays = len(tf.nest.flatten(specs_of(_makers())))
    assert np.all(chunk.layout[:, :arrays].numpy() % 16 == 0)


@pytest.mark.parametrize(("steps", "sizes"), [(1, [1]), (4, [4]), (10, [4, 4, 2])])
def test_steps_are_divided_among_chunks(steps: int, sizes: list[int]) -> None:
    assert chunk_sizes(steps) == sizes


def test_what_is_not_read_to_its_end_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    made = chunks(_makers(), itertools.repeat(2))
    assert isinstance(next(made), Chunk)
    made.close()
    assert threading.active_count() == before


def test_an_error_while_drawing_reaches_who_reads() -> None:
    makers = _makers()
    makers[0]._timelines = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        next(chunks(makers, [1]))
