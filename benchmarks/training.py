"""Training of the tower baselines: the product's batches, loss, loop and validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from benchmarks.networks import BlockNetwork
from models import losses
from models.batches import BatchMaker
from models.fitting import Task, fit
from models.held_out import HeldOut, Vectors
from models.packing import TensorBatch
from models.settings import ModelSettings, StageSettings, ValidationSettings
from models.stages import RECALL_AT, TrainingData, offsets_of, user_inputs
from models.towers import TowerSpec

REFIT_SEED = 100  # added to the seed of the batches, so that a refit draws others
_LEAST_ROWS = 32


@dataclass(frozen=True)
class Goal:
    """One term of a joint loss: the positives of a level, scored by the sum of some blocks."""

    level: int
    blocks: tuple[int, ...]
    weight: float = 1.0


class JointTask(Task):
    """Moves all weights of a network towards the weighted sum of its goals."""

    def __init__(
        self,
        network: BlockNetwork,
        item_features: dict[str, npt.NDArray[np.int32]],
        goals: Sequence[Goal],
        settings: StageSettings,
    ):
        super().__init__(settings.learning_rate)
        self._network = network
        self._moving = network.moving()
        self._goals = goals
        self._settings = settings
        self._item_features = {name: tf.constant(ids) for name, ids in item_features.items()}

    @property
    def moving(self) -> list[tf.Variable]:
        """All weights of the network."""
        return self._moving

    def compute_loss(self, inputs: tuple[TensorBatch, ...], training: bool = False) -> tf.Tensor:
        """Sum over the goals of weight times softmax loss, each on a batch of its own level."""
        return tf.add_n(
            [
                goal.weight * self._loss(batch, goal)
                for batch, goal in zip(inputs, self._goals, strict=True)
            ]
        )

    def _loss(self, batch: TensorBatch, goal: Goal) -> tf.Tensor:
        users = self._network.user_blocks(user_inputs(batch))
        items = self._items(batch["candidates"])
        scores = tf.matmul(
            tf.concat([users[k] for k in goal.blocks], axis=1),
            tf.concat([items[k] for k in goal.blocks], axis=1),
            transpose_b=True,
        )
        return losses.softmax_loss(
            scores / self._settings.temperature,
            batch["positives"],
            batch["log_q"],
            offsets_of(batch),
        )

    def _items(self, ids: tf.Tensor) -> list[tf.Tensor]:
        features = {name: tf.gather(table, ids) for name, table in self._item_features.items()}
        return self._network.item_blocks(ids, features)

    def users(self, held_out: HeldOut) -> npt.NDArray[np.float32]:
        """[Q, D] all blocks of the users."""
        spec = self._network.spec
        return np.concatenate(
            [
                tf.concat(self._network.user_blocks(inputs), axis=1).numpy()
                for inputs in held_out.user_inputs(spec.towers.history_length, spec.n_users)
            ]
        )

    def items(self) -> npt.NDArray[np.float32]:
        """[N, D] all blocks of the items."""
        return tf.concat(self._items(tf.range(self._network.spec.n_items)), axis=1).numpy()


@dataclass
class Trained:
    """A network after all its training, and what it gave before it saw the validation events."""

    task: JointTask
    validation: tuple[Vectors, Vectors]  # blocks of its queries' users, and of the items
    chosen: list[npt.NDArray]  # the weights that moved, as they were then
    seconds: float  # of the processor


def train_jointly(
    network: BlockNetwork,
    data: TrainingData,
    goals: Sequence[Goal],
    settings: StageSettings,
    model: ModelSettings,
    seed: int,
) -> Trained:
    """Trains all weights; early stopping on the mean Recall@50 of the goals on validation.

    Then a refit on all events, as CSMF has one (`models.cascade`).
    """
    task = JointTask(network, data.item_features, goals, settings)
    makers = _makers(network.spec, data, goals, settings, model, seed)
    held_out = data.held_out
    assert held_out is not None

    def validate() -> float:
        users, items = task.users(held_out), task.items()
        recalls = []
        for goal in goals:
            query = users * block_mask(network.block_sizes, goal.blocks)
            recalls.append(np.nanmean(held_out.recall_of(query, items, goal.level, RECALL_AT)))
        return float(np.mean(recalls))

    fitted = fit(task, makers, settings.rounds, model.validation, validate, quiet)
    trained = Trained(
        task,
        (task.users(held_out), task.items()),
        [weight.numpy() for weight in task.moving],
        fitted.cpu_seconds,
    )
    if everything := data.refit():
        makers = _makers(network.spec, everything, goals, settings, model, seed + REFIT_SEED)
        trained.seconds += refit(task, makers, model.validation)
    return trained


def refit(task: JointTask, makers: Sequence[BatchMaker], settings: ValidationSettings) -> float:
    """Trains a few gentle rounds without validation; the processor's seconds."""
    return fit(
        task, makers, settings.refit_rounds, settings, None, quiet, settings.refit_rate
    ).cpu_seconds


def _makers(
    spec: TowerSpec,
    data: TrainingData,
    goals: Sequence[Goal],
    settings: StageSettings,
    model: ModelSettings,
    seed: int,
) -> list[BatchMaker]:
    """One per goal. All go through their positives equally fast, so that no goal is over-fitted
    while another is still under way: batches are as large as the goal's share of the rows.

    Raises:
      ValueError: an objective has no positive.
    """

    def maker(goal: Goal, stage: StageSettings) -> BatchMaker:
        return batch_maker(data, spec, goal.level, stage, model, seed + goal.level)

    rows = [maker(goal, settings).rows() for goal in goals]
    sizes = [max(_LEAST_ROWS, round(settings.batch_size * n / max(rows))) for n in rows]
    return [
        maker(goal, settings.model_copy(update={"batch_size": size}))
        for goal, size in zip(goals, sizes, strict=True)
    ]


def batch_maker(
    data: TrainingData,
    spec: TowerSpec,
    level: int,
    settings: StageSettings,
    model: ModelSettings,
    seed: int,
) -> BatchMaker:
    """`TrainingData.batch_maker`, for an objective that can be learnt.

    Raises:
      ValueError: the objective has no positive.
    """
    maker = data.batch_maker(spec, level, settings, model.negatives, seed)
    if not len(maker.positives):
        raise ValueError(f"objective {level} has no positive among the training events")
    return maker


def quiet(text: str) -> None:
    """Progress of a benchmark is told per training, not per round."""


def block_mask(block_sizes: Sequence[int], blocks: Sequence[int]) -> npt.NDArray[np.float32]:
    """[D] 1 in the coordinates of the given blocks."""
    return np.repeat([float(k in blocks) for k in range(len(block_sizes))], block_sizes).astype(
        np.float32
    )
