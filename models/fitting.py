"""The training loop: rounds of steps, a look at the validation cut, the best round kept."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_recommenders as tfrs

from models import replicas
from models.batches import BatchMaker
from models.settings import ValidationSettings

TensorBatch = dict[str, Any]  # the fields of a `Batch`, as tensors
TensorSpecs = dict[str, Any]  # their shapes and types

_STEPS_PER_CALL = 64  # Ctrl-C waits for the end of a call

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


@dataclass(frozen=True)
class Fitted:
    """What a call of `fit` did."""

    losses: list[float]  # mean of each round
    recalls: list[float]  # on the validation cut after each round; empty without one
    kept_round: int  # whose weights were kept, counted from 1
    steps: int
    seconds: float
    cpu_seconds: float  # of all threads of the process
    round_seconds: list[float]  # from the start to the end of each round
    step_seconds: list[float]  # of each round's steps alone, without the look at validation
    round_rows: list[int]  # rows that each round's steps read


class Task(tfrs.Model):
    """Weights that learn from batches; subclasses say which, and by which loss.

    Not an abc: its metaclass and that of Keras models exclude each other.
    """

    def __init__(self, learning_rate: float):
        super().__init__()
        self._learning_rate = learning_rate

    @property
    def moving(self) -> list[tf.Variable]:
        """The weights of which steps may move a part."""
        raise NotImplementedError

    def compute_loss(self, inputs: tuple[TensorBatch, ...], training: bool = False) -> tf.Tensor:
        """Scalar loss of one batch from each maker."""
        raise NotImplementedError

    def masked(self, gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The gradients of `moving`, 0 where a weight must not move."""
        return gradients

    def start(self, inputs: tuple[TensorSpecs, ...], rate: float = 1.0) -> None:
        """Forgets the optimiser's state (METHOD 1.1).

        Args:
          inputs: what every step will be given. Its sizes are left open there, so that the step
            is traced once per task, whatever the last batch of an epoch measures.
          rate: learning rate as a share of the task's.
        """
        if not self._is_compiled:
            # The dense moments of Adam leave a weight whose gradient is always zero untouched:
            # m = v = 0 gives a step of exactly 0. There is no weight decay that could move it.
            # This Adam runs in one fused op for each weight; tf.keras.optimizers.Adam takes some
            # ten passes over the weight and its moments.
            self.compile(optimizer=tf.keras.optimizers.legacy.Adam(self._learning_rate))
            self.optimizer._create_all_weights(self.moving)
            self._fresh = [variable.numpy() for variable in self.optimizer.variables()]
            self.steps = tf.function(
                self._steps,
                input_signature=(tf.data.IteratorSpec(inputs), tf.TensorSpec([], tf.int32)),
            )
        for variable, value in zip(self.optimizer.variables(), self._fresh, strict=True):
            variable.assign(value)
        self.optimizer.learning_rate = self._learning_rate * rate

    def _steps(
        self, batches: Iterator[tuple[TensorBatch, ...]], n: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`n` steps of all replicas in one call, so that no Python runs between two of them.

        Returns:
          Sum of their global losses, float64; number of rows that they read, int64.
        """
        loss, rows = tf.zeros([], tf.float64), tf.zeros([], tf.int64)
        for _ in tf.range(n):
            inputs = next(batches)
            loss += tf.cast(self._global_step(inputs), tf.float64)
            rows += tf.add_n([tf.size(batch["user_ids"], tf.int64) for batch in inputs])
        return loss, rows

    def _global_step(self, inputs: tuple[TensorBatch, ...]) -> tf.Tensor:
        """One step of all replicas on their shares of the global batches: the global loss."""
        strategy = tf.distribute.get_strategy()
        return strategy.reduce("SUM", strategy.run(self.train_step, (inputs,)), axis=None)

    def train_step(self, inputs: tuple[TensorBatch, ...]) -> tf.Tensor:
        """One optimiser step; replaces the step of tfrs.Model because gradients are masked."""
        inputs = tuple(replicas.rows_of_replica(batch) for batch in inputs)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
        gradients = [
            # A table's gradient comes as the rows that were looked up, most of them many times.
            # Summed first, it is no longer than the table; the moments are as long anyway.
            None if gradient is None else tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(loss, self.moving)
        ]
        self.optimizer.apply_gradients(
            [
                (gradient, weight)
                for gradient, weight in zip(self.masked(gradients), self.moving, strict=True)
                if gradient is not None
            ]
        )
        return loss


def fit(
    task: Task,
    makers: Sequence[BatchMaker],
    rounds: int,
    settings: ValidationSettings,
    validate: Callable[[], float] | None,
    tell: Callable[[str], None],
    rate: float = 1.0,
) -> Fitted:
    """Trains with a fresh optimiser until validation stops improving, and keeps the best round.

    Under the strategy in whose scope it is called, see `models.replicas`.

    Args:
      task: what learns.
      makers: every step takes a batch of each.
      rounds: at most.
      settings: length of a round, patience.
      validate: value of the weights as they are, larger is better; None = all rounds are trained.
      tell: called with a line of text after every round.
      rate: learning rate as a share of the task's.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    dataset = dataset_of(makers)
    task.start(dataset.element_spec, rate)
    steps = max(
        max(maker.steps(), math.ceil(settings.round_steps * maker.share)) for maker in makers
    )
    batches = iter(dataset)
    losses: list[float] = []
    recalls: list[float] = []
    round_seconds: list[float] = []
    step_seconds: list[float] = []
    round_rows: list[int] = []
    best: list[np.ndarray] = []
    for number in range(1, rounds + 1):
        began, loss, rows = time.monotonic(), 0.0, 0
        for done in range(0, steps, _STEPS_PER_CALL):
            summed, read = task.steps(batches, min(_STEPS_PER_CALL, steps - done))
            loss, rows = loss + float(summed), rows + int(read)
        losses.append(loss / steps)
        step_seconds.append(round(time.monotonic() - began, 3))
        round_rows.append(rows)
        seen = ""
        if validate is not None:
            recalls.append(float(replicas.chiefs(np.array(validate()))))
            seen = f", validation {recalls[-1]:.4f}"
            if len(recalls) == int(np.argmax(recalls)) + 1:
                best = [weight.numpy() for weight in task.moving]
        round_seconds.append(round(time.monotonic() - started, 3))
        tell(f"round {number}/{rounds}, loss {losses[-1]:.4f}{seen}, {round_seconds[-1]:.0f} s")
        if recalls and number - (int(np.argmax(recalls)) + 1) >= settings.patience:
            break
    for weight, value in zip(task.moving, best, strict=False):  # no best without validation
        weight.assign(value)
    return Fitted(
        losses=losses,
        recalls=recalls,
        kept_round=int(np.argmax(recalls)) + 1 if recalls else len(losses),
        steps=steps * len(losses),
        seconds=round(time.monotonic() - started, 3),
        cpu_seconds=round(time.process_time() - cpu_started, 3),
        round_seconds=round_seconds,
        step_seconds=step_seconds,
        round_rows=round_rows,
    )


def dataset_of(makers: Sequence[BatchMaker]) -> tf.data.Dataset:
    """Tuples of one batch per maker, drawn ahead while a step runs.

    A batch leaves Python as one array, cut up again in the graph: every array that a generator
    yields costs some 50 us on its way, under the interpreter's lock.
    """
    specs = tuple(
        _SPECS | {"features": dict.fromkeys(maker.features, tf.TensorSpec([None, None], tf.int32))}
        for maker in makers
    )

    def draw() -> Iterator[npt.NDArray[np.int32]]:
        for batches in zip(*(maker.batches() for maker in makers), strict=True):
            yield _packed(tf.nest.flatten([vars(batch) for batch in batches]))

    packed = tf.data.Dataset.from_generator(draw, output_signature=tf.TensorSpec([None], tf.int32))
    return packed.map(lambda batch: _unpacked(batch, specs)).prefetch(2)


def _packed(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int32]:
    """Arrays of 4-byte numbers in one: [n] where each begins, [n] sizes, all shapes, contents.

    Each begins at a multiple of 64 bytes: there TensorFlow shares a slice's memory, else it copies.
    """
    shapes = [size for array in arrays for size in array.shape]
    sizes = [array.size for array in arrays]
    aligned = (-(-size // 16) * 16 for size in [2 * len(arrays) + len(shapes), *sizes])
    *begins, end = itertools.islice(itertools.accumulate(aligned), len(arrays) + 1)
    packed = np.empty(end, np.int32)
    header = [*begins, *sizes, *shapes]
    packed[: len(header)] = header
    for begin, size, array in zip(begins, sizes, arrays, strict=True):
        packed[begin : begin + size] = np.ascontiguousarray(array).view(np.int32).ravel()
    return packed


def _unpacked(packed: tf.Tensor, specs: Any) -> Any:
    """What `_packed` was given, in the structure of the specs."""
    flat = tf.nest.flatten(specs)
    ranks = [spec.shape.rank for spec in flat]
    header = tf.split(packed[: 2 * len(flat) + sum(ranks)], [1] * (2 * len(flat)) + ranks)
    begins, sizes, shapes = (header[i * len(flat) :][: len(flat)] for i in range(3))
    arrays = [
        tf.bitcast(tf.reshape(tf.slice(packed, begin, size), shape), spec.dtype)
        for begin, size, shape, spec in zip(begins, sizes, shapes, flat, strict=True)
    ]
    return tf.nest.pack_sequence_as(specs, arrays)
