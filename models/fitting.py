"""The training loop: rounds of steps, a look at the validation cut, the best round kept."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from models import replicas
from models.batches import BatchMaker
from models.packing import TensorBatch, TensorSpecs, chunk_sizes, chunks, specs_of, unpacked
from models.settings import ValidationSettings


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
            self._inputs = inputs
            self.steps = tf.function(
                self._steps,
                input_signature=(
                    tf.TensorSpec([None], tf.int32),
                    tf.TensorSpec([None, None], tf.int32),
                ),
            )
        for variable, value in zip(self.optimizer.variables(), self._fresh, strict=True):
            variable.assign(value)
        self.optimizer.learning_rate = self._learning_rate * rate

    def _steps(self, contents: tf.Tensor, layout: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The steps of a `Chunk` in one call, so that no Python runs between two of them.

        Returns:
          Sum of their global losses, float64; number of rows that they read, int64.
        """
        loss, rows = tf.zeros([], tf.float64), tf.zeros([], tf.int64)
        for step in layout:
            inputs = unpacked(contents, step, self._inputs)
            loss += tf.cast(self._global_step(inputs), tf.float64)
            rows += tf.add_n([tf.size(batch["user_ids"], tf.int64) for batch in inputs])
        return loss, rows

    # Nothing in a step branches on a tensor, and AutoGraph's rewriting of all that it calls takes
    # longer than tracing it does.
    @tf.autograph.experimental.do_not_convert
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
    task.start(specs_of(makers), rate)
    steps = max(
        max(maker.steps(), math.ceil(settings.round_steps * maker.share)) for maker in makers
    )
    sizes = chunk_sizes(steps)
    losses: list[float] = []
    recalls: list[float] = []
    round_seconds: list[float] = []
    step_seconds: list[float] = []
    round_rows: list[int] = []
    best: list[np.ndarray] = []
    with contextlib.closing(chunks(makers, itertools.cycle(sizes))) as ahead:
        for number in range(1, rounds + 1):
            began, loss, rows = time.monotonic(), 0.0, 0
            for chunk in itertools.islice(ahead, len(sizes)):
                summed, read = task.steps(*chunk)
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
