"""Batches on their way into the graph: those of several steps as one array, drawn ahead."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models.batches import Batch, BatchMaker

STEPS_PER_CHUNK = 4  # a few MB: malloc keeps no more than 32 in one piece

TensorBatch = dict[str, Any]  # the fields of a `Batch`, as tensors
TensorSpecs = dict[str, Any]  # their shapes and types

_SPECS = {
    "history_items": tf.TensorSpec([None, None], tf.int32),
    "history_levels": tf.TensorSpec([None, None], tf.int32),
    "user_ids": tf.TensorSpec([None], tf.int32),
    "candidates": tf.TensorSpec([None], tf.int32),
    "positives": tf.TensorSpec([None, None], tf.int32),
    "log_q": tf.TensorSpec([None], tf.float32),
    "offsets": tf.TensorSpec([None], tf.float32),
    "offset_places": tf.TensorSpec([None], tf.int32),
    "offsets_there": tf.TensorSpec([None], tf.float32),
}
# In numbers of 4 bytes: TensorFlow shares the memory of a slice that begins at a multiple of 64
# bytes, and copies any other.
_ALIGNMENT = 16
# Parameters of glibc's mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Chunk(NamedTuple):
    """The batches of n steps. All their arrays are of 4-byte numbers.

    A generator of tf.data would hand over every array by itself, under the interpreter's lock; that
    costs the step more than drawing the batch does.

    Attributes:
      contents: int32 [S] the arrays' bits.
      layout: int32 [n, L] for each step where its A arrays begin, their A sizes, and all shapes.
    """

    contents: tf.Tensor
    layout: tf.Tensor


def specs_of(makers: Sequence[BatchMaker]) -> tuple[TensorSpecs, ...]:
    """What a step reads: a batch of every maker."""
    return tuple(
        _SPECS | {"features": dict.fromkeys(maker.features, tf.TensorSpec([None, None], tf.int32))}
        for maker in makers
    )


def chunk_sizes(steps: int) -> list[int]:
    """Numbers of steps of the chunks that `steps` steps take."""
    return [min(STEPS_PER_CHUNK, steps - done) for done in range(0, steps, STEPS_PER_CHUNK)]


def chunks(makers: Sequence[BatchMaker], sizes: Iterable[int]) -> Generator[Chunk, None, None]:
    """Chunks of so many steps; the next one is drawn in a thread while one is used.

    Close the iterator if it is not read to its end.
    """
    _keep_freed_memory()
    drawn = zip(*(maker.batches() for maker in makers), strict=True)

    def draw(size: int) -> Chunk:
        return chunk_of(list(itertools.islice(drawn, size)))

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ahead: Future[Chunk] | None = None
        for size in sizes:
            ready, ahead = ahead, thread.submit(draw, size)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def _keep_freed_memory() -> None:
    """Lets a chunk have the memory of the one before, from now on in this process.

    glibc would give it back to the kernel, and get it anew page by page; that took longer than
    drawing the batches. Another C library is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def chunk_of(steps: Sequence[Sequence[Batch]]) -> Chunk:
    """Packs the batches of some steps, for each a batch of every maker."""
    arrays = [tf.nest.flatten([vars(batch) for batch in batches]) for batches in steps]
    sizes = np.array([[array.size for array in of_step] for of_step in arrays])
    shapes = [[size for array in of_step for size in array.shape] for of_step in arrays]
    ends = np.cumsum(-(-sizes // _ALIGNMENT) * _ALIGNMENT)
    begins = np.append(0, ends[:-1])
    contents = np.empty(ends[-1], np.int32)
    for begin, array in zip(begins, itertools.chain.from_iterable(arrays), strict=True):
        contents[begin : begin + array.size] = np.ascontiguousarray(array).view(np.int32).ravel()
    layout = np.concatenate([begins.reshape(sizes.shape), sizes, shapes], axis=1)
    return Chunk(tf.constant(contents), tf.constant(layout, tf.int32))


def unpacked(
    contents: tf.Tensor, layout: tf.Tensor, specs: tuple[TensorSpecs, ...]
) -> tuple[TensorBatch, ...]:
    """The batches of one step.

    Args:
      contents: of its chunk.
      layout: int32 [L] its row of the chunk's.
      specs: see `specs_of`.
    """
    flat = tf.nest.flatten(specs)
    ranks = [spec.shape.rank for spec in flat]
    parts = tf.split(layout, [1] * (2 * len(flat)) + ranks)
    begins, sizes, shapes = (parts[i * len(flat) :][: len(flat)] for i in range(3))
    arrays = [
        tf.bitcast(tf.reshape(tf.slice(contents, begin, size), shape), spec.dtype)
        for begin, size, shape, spec in zip(begins, sizes, shapes, flat, strict=True)
    ]
    result: tuple[TensorBatch, ...] = tf.nest.pack_sequence_as(specs, arrays)
    return result
