"""The training loop on a task whose every step can be computed by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import fitting
from models.batches import BatchMaker
from models.fitting import Fitted, Task, fit
from models.packing import TensorBatch
from models.settings import NegativeSettings, StageSettings, TowerSettings, ValidationSettings
from models.timelines import Timelines

N = 24


def _maker(level: int = 0, seed: int = 3, batch_size: int = 4) -> BatchMaker:
    """24 users with one event each, half of them at level 1; the first item is never taken."""
    return BatchMaker(
        Timelines(
            user_ids=np.arange(N, dtype=np.int32),
            offsets=np.arange(N + 1, dtype=np.int64),
            items=np.arange(1, N + 1, dtype=np.int32),
            levels=np.arange(N, dtype=np.int32) % 2,
            times=np.zeros(N, np.int64),
            targets=np.arange(N, dtype=np.int32) % 2,
            features={},
        ),
        True,
        level,
        TowerSettings(),
        StageSettings(name="s", batch_size=batch_size, targets_per_row=1, user_id_dropout=0.0),
        NegativeSettings(),
        N + 1,
        N,
        seed,
    )


class _Pull(Task):
    """loss = sum(weight * direction): the gradient is the direction, whatever the batch."""

    def __init__(self, frozen: bool = False):
        super().__init__(learning_rate=0.5)
        self.weight = tf.Variable([1.0, -1.0])
        self.still = tf.Variable([7.0])
        self.direction = tf.Variable([1.0, -2.0], trainable=False)
        self.frozen = frozen
        self.read: list[list[int]] = []

    @property
    def moving(self) -> list[tf.Variable]:
        return [self.weight, self.still]

    def masked(self, gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
        assert gradients[1] is None
        return [gradients[0] * [1.0, 0.0], None] if self.frozen else gradients

    def compute_loss(self, inputs: tuple[TensorBatch, ...], training: bool = False) -> tf.Tensor:
        assert training
        users = tf.concat([batch["user_ids"] for batch in inputs], axis=0)
        tf.py_function(lambda ids: self.read.append(ids.numpy().tolist()), [users], [])
        return tf.reduce_sum(self.weight * self.direction)


def _adam(gradient: float, steps: int, rate: float = 0.5) -> float:
    """Sum of Adam's steps from fresh moments (Kingma and Ba 2015)."""
    m = v = moved = 0.0
    for t in range(1, steps + 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        moved -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return moved


def _fit(
    task: Task,
    rounds: int,
    validate: Callable[[], float] | None = None,
    patience: int = 3,
    makers: Sequence[BatchMaker] | None = None,
    round_steps: int = 1,
    told: list[str] | None = None,
) -> Fitted:
    settings = ValidationSettings(round_steps=round_steps, patience=patience)
    tell = (told if told is not None else []).append
    return fit(task, makers or [_maker(batch_size=N)], rounds, settings, validate, tell)


class _Script:
    """A validation with known values, which notes the weights that it is shown."""

    def __init__(self, task: _Pull, values: list[float]):
        self.task, self.values, self.weights = task, iter(values), []

    def __call__(self) -> float:
        self.weights.append(self.task.weight.numpy().copy())
        return next(self.values)


@pytest.mark.parametrize(
    ("values", "patience", "rounds", "kept"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.2, 0.9], 3, 5, 2),  # three rounds without a better one
        ([0.1, 0.5, 0.4, 0.3, 0.6, 0.2], 3, 6, 5),  # a better one just in time
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 6, 6),
        ([0.5, 0.4, 0.9], 1, 2, 1),
        ([0.3, 0.5, 0.5, 0.5, 0.5, 0.5], 3, 5, 2),  # equal is not better
        ([0.0, 0.0, 0.0, 0.0], 3, 4, 1),
    ],
)
def test_the_best_round_is_kept_and_patience_ends_the_fit(
    values: list[float], patience: int, rounds: int, kept: int
) -> None:
    task = _Pull()
    script = _Script(task, values)
    fitted = _fit(task, 6, script, patience)
    assert fitted.recalls == values[:rounds]
    assert len(fitted.losses) == len(script.weights) == rounds
    assert fitted.kept_round == kept
    assert np.array_equal(task.weight, script.weights[kept - 1])
    assert len({tuple(weight) for weight in script.weights}) == rounds, "every round moved it"
    assert task.still.numpy().tolist() == [7.0]


def test_without_validation_all_rounds_are_trained_and_the_last_is_kept() -> None:
    task, told = _Pull(), []
    fitted = _fit(task, 5, told=told)
    assert (fitted.recalls, fitted.kept_round, fitted.steps) == ([], 5, 5)
    np.testing.assert_allclose(task.weight, [1 + _adam(1, 5), -1 + _adam(-2, 5)], rtol=1e-4)
    assert len(told) == 5
    assert told[0].startswith("round 1/5, loss 3.0000, ")


def test_the_seconds_of_every_round_count_from_the_start_of_the_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Asked at the start, before the steps of each of three rounds, after them and after the
    # validation, and at the end of it all.
    rounds = [(100.5, 101.25, 101.5), (101.5, 104.0, 104.25), (104.25, 109.12349, 110.12349)]
    clock = iter([100.0, *itertools.chain(*rounds), 111.0])
    # Of this module only: other threads look at the time, too.
    processor = iter([7.0, 12.5])
    own = SimpleNamespace(monotonic=lambda: next(clock), process_time=lambda: next(processor))
    monkeypatch.setattr(fitting, "time", own)
    fitted = _fit(_Pull(), 3)
    assert fitted.round_seconds == [1.5, 4.25, 10.123]
    assert fitted.step_seconds == [0.75, 2.5, 4.873]
    assert fitted.round_rows == [N, N, N]
    assert fitted.seconds == 11.0
    assert fitted.cpu_seconds == 5.5


def test_a_line_of_progress_tells_the_validation() -> None:
    task, told = _Pull(), []
    _fit(task, 2, lambda: 0.25, told=told)
    assert told[1].startswith("round 2/2, loss ")
    assert ", validation 0.2500, " in told[1]


def test_the_loss_of_a_round_is_the_mean_of_its_steps() -> None:
    task = _Pull()
    fitted = _fit(task, 2, round_steps=3)
    losses = [(1 + _adam(1, n)) - 2 * (-1 + _adam(-2, n)) for n in range(6)]
    np.testing.assert_allclose(fitted.losses, [np.mean(losses[:3]), np.mean(losses[3:])], rtol=1e-4)
    assert fitted.steps == 6


def test_every_fit_starts_with_a_fresh_optimiser() -> None:
    task = _Pull()
    for direction in ([1.0, -2.0], [-1.0, 2.0]):  # forth, and back by the same steps
        task.direction.assign(direction)
        _fit(task, 7)
        assert int(task.optimizer.iterations) == 7
        if direction[0] > 0:
            np.testing.assert_allclose(task.weight, [1 + _adam(1, 7), -1 + _adam(-2, 7)], rtol=1e-4)
    np.testing.assert_allclose(task.weight, [1.0, -1.0], atol=1e-4)
    task.start(())
    assert len(task.optimizer.variables()) == 5, "steps, and two moments of two weights"
    assert all(not v.numpy().any() for v in task.optimizer.variables())


def test_a_masked_weight_stays_bit_for_bit() -> None:
    task = _Pull(frozen=True)
    _fit(task, 9)
    assert task.weight[1] == -1.0
    assert task.weight[0] < 0.0


@pytest.mark.parametrize(("round_steps", "steps"), [(1, 6), (6, 6), (7, 7), (20, 20)])
def test_a_round_is_round_steps_or_an_epoch(round_steps: int, steps: int) -> None:
    task = _Pull()
    assert _fit(task, 2, makers=[_maker(batch_size=4)], round_steps=round_steps).steps == 2 * steps
    epoch = list(itertools.chain(*task.read[:6]))
    assert sorted(epoch) == list(range(N)), "every row once before one comes again"


def test_an_objective_with_fewer_positives_takes_its_share_of_the_steps() -> None:
    assert _fit(_Pull(), 1, makers=[_maker(level=1)], round_steps=20).steps == 10
    assert _fit(_Pull(), 1, makers=[_maker(level=1)], round_steps=4).steps == 3, "an epoch"


def test_the_step_is_traced_once_whatever_a_batch_measures() -> None:
    task = _Pull()
    fitted = _fit(task, 3, makers=[_maker(batch_size=7)])
    assert sorted({len(ids) for ids in task.read}) == [3, 7]
    assert sum(fitted.round_rows) == sum(map(len, task.read))
    _fit(task, 1, makers=[_maker(batch_size=5)])
    assert task.steps.experimental_get_tracing_count() == 1


def test_a_step_reads_a_batch_of_every_maker() -> None:
    task = _Pull()
    makers = [_maker(level=0, batch_size=8), _maker(level=1, batch_size=4)]
    assert _fit(task, 1, makers=makers).steps == 3
    for ids in task.read:
        assert len(ids) == 12
        assert all(user % 2 == 1 for user in ids[8:])


def test_equal_seeds_read_equal_batches_in_every_fit() -> None:
    """Batches are drawn ahead in a thread; how far it got must not decide what is read next."""

    def read(seed: int) -> list[list[int]]:
        task, maker = _Pull(), _maker(seed=seed)
        _fit(task, 2, makers=[maker])
        maker.subset(0.5)
        _fit(task, 2, makers=[maker])
        return task.read

    first = read(1)
    assert all(read(1) == first for _ in range(3))
    assert read(2) != first


class _Counting(_Pull):
    """Notes how many steps each call of `steps` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def start(self, inputs: Any, rate: float = 1.0) -> None:
        super().start(inputs, rate)
        run = self.steps

        def counting(contents: tf.Tensor, layout: tf.Tensor) -> Any:
            self.calls.append(len(layout))
            return run(contents, layout)

        self.steps = counting


def test_many_steps_are_run_in_calls_of_which_ctrl_c_waits_for_one() -> None:
    task = _Counting()
    fitted = _fit(task, 2, round_steps=10)
    assert task.calls == [4, 4, 2] * 2
    assert (fitted.steps, fitted.round_rows) == (20, [10 * N, 10 * N])
    losses = [(1 + _adam(1, n)) - 2 * (-1 + _adam(-2, n)) for n in range(20)]
    np.testing.assert_allclose(fitted.losses, np.reshape(losses, [2, 10]).mean(1), rtol=1e-3)
