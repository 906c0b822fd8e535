"""Ownership of single weights instead of neurons: an ablation of CSMF, and PackNet as a baseline.

Every weight of the tables belongs to a stage, every objective has a linear head of its own.
Objective k reads the weights owned up to k, so the tables differ by objective and every objective
needs a forward pass: what the ownership of neurons saves (METHOD 1.2, 1.3).
PackNet (Mallya and Lazebnik, CVPR 2018) prunes a fixed share of each layer's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from benchmarks.networks import TOWERS, Blocks, SharedBottom, equal_blocks, normalised
from benchmarks.training import (
    REFIT_SEED,
    Goal,
    JointTask,
    Trained,
    batch_maker,
    block_mask,
    quiet,
    refit,
)
from models import masks
from models.fitting import fit
from models.held_out import HeldOut
from models.settings import ModelSettings, StageSettings
from models.stages import RECALL_AT, TrainingData
from models.towers import TowerSpec, TwoTower, UserInputs, initial_weights

WeightRule = Literal["fixed", "cumulative"]


class WeightMaskedNetwork(SharedBottom):
    """Tables whose weights are owned one by one; head k belongs to objective k."""

    def __init__(self, spec: TowerSpec, seed: int, block_sizes: list[int]):
        """Draws all weights; stage 0 owns every weight of the tables.

        Args:
          spec: shapes; no hidden layers.
          seed: of the initial weights.
          block_sizes: of the K blocks.
        """
        super().__init__(spec, seed, block_sizes)
        self.table_names = [
            name for name, w in self.tables.weights.items() if "/" not in name and w.trainable
        ]
        # Variables, so that a step is traced once although pruning changes the owners.
        self.owners = {
            name: tf.Variable(tf.zeros(self.tables.weights[name].shape, tf.int32), trainable=False)
            for name in self.table_names
        }

    def user_blocks(self, inputs: UserInputs) -> Blocks:
        """See `BlockNetwork`; one pass per objective."""
        return self._blocks("user", [tables.embed_users(inputs) for tables in self._views()])

    def item_blocks(self, ids: tf.Tensor, features: dict[str, tf.Tensor]) -> Blocks:
        """See `BlockNetwork`; one pass per objective."""
        return self._blocks("item", [tables.embed_items(ids, features) for tables in self._views()])

    def _blocks(self, tower: str, inputs: list[tf.Tensor]) -> Blocks:
        return normalised([head(x) for head, x in zip(self._heads[tower], inputs, strict=True)])

    def _views(self) -> list[TwoTower]:
        """The tables as each objective reads them: zeros where a later one owns the weight."""
        views = []
        for k in range(len(self.block_sizes)):
            view = copy.copy(self.tables)
            view.weights = {
                name: tf.where(self.owners[name] <= k, self.tables.weights[name], 0.0)
                for name in self.table_names
            }
            views.append(view)
        return views

    def moved_by(self, stage: int) -> list[tuple[tf.Variable, tf.Variable | None]]:
        """(weight, owners): what a stage may move; where there are owners, only its own part."""
        heads = [self._heads[tower][stage] for tower in TOWERS]
        return [(self.tables.weights[name], self.owners[name]) for name in self.table_names] + [
            (weight, None) for head in heads for weight in (head.kernel, head.bias)
        ]

    def release(self, stage: int, share: float, rule: WeightRule, seed: int) -> None:
        """Gives the weights of `stage` with the smallest magnitudes to the next stage.

        The stage reads zeros in their place; for the next one they are drawn anew.

        Args:
          stage: the stage that was just trained.
          share: of each table's weights (fixed) or of their L1 mass (cumulative), as in
            `masks.freed_share` and `masks.freed_slots`.
          rule: which of the two.
          seed: of the new weights.
        """
        weights = {name: self.tables.weights[name] for name in self.table_names}
        after = masks.hand_over(
            {name: self.owners[name].numpy().ravel() for name in weights},
            {name: np.abs(w.numpy().astype(float)).ravel() for name, w in weights.items()},
            stage,
            share,
            rule,
        )
        rng = np.random.default_rng([seed, stage + 2])  # [seed, 1] drew the heads
        for name, weight in weights.items():
            owners = after[name].reshape(weight.shape)
            fresh = initial_weights(rng, tuple(weight.shape), is_table=True)
            weight.assign(np.where(owners == stage + 1, fresh, weight.numpy()))
            self.owners[name].assign(owners)


class WeightMaskedTask(JointTask):
    """Trains one stage: its weights of the tables and its head."""

    def __init__(
        self,
        network: WeightMaskedNetwork,
        item_features: dict[str, npt.NDArray[np.int32]],
        stage: int,
        settings: StageSettings,
    ):
        super().__init__(network, item_features, [Goal(stage, (stage,))], settings)
        moved = network.moved_by(stage)
        self._moving = [weight for weight, _ in moved]
        self._owners = [owners for _, owners in moved]
        self._stage = stage

    def masked(self, gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The gradients of `moving`, exactly 0 for weights of other stages."""
        return [
            gradient if owners is None else tf.where(owners == self._stage, gradient, 0.0)
            for gradient, owners in zip(gradients, self._owners, strict=True)
        ]

    def validator(self, held_out: HeldOut | None) -> Callable[[], float] | None:
        """Recall@50 of the stage's block at its level; None where no target reaches it."""
        if held_out is None:
            return None
        reaching = held_out.only(held_out.reaching(self._stage))
        own = block_mask(self._network.block_sizes, (self._stage,))

        def recall() -> float:
            query = self.users(reaching) * own
            return float(np.mean(reaching.recall_of(query, self.items(), self._stage, RECALL_AT)))

        return recall if len(reaching) else None


def train_weight_masked(
    spec: TowerSpec,
    data: TrainingData,
    settings: StageSettings,
    model: ModelSettings,
    seed: int,
    rule: WeightRule,
    share: float,
) -> tuple[WeightMaskedNetwork, Trained]:
    """Trains, prunes and recovers one objective after the other, in equal blocks.

    A stage stops early by the Recall@50 of its own block on validation. The last one is neither
    pruned nor recovered. In the end every stage is refitted on all events, the first one first, as
    those of CSMF are (`models.cascade`).

    Args:
      spec: shapes; no hidden layers.
      data: training and validation events.
      settings: of every stage.
      model: what all stages share.
      seed: of initial weights, shuffling, dropout and negatives.
      rule: fixed = PackNet; cumulative = CPP.
      share: see `WeightMaskedNetwork.release`.

    Returns:
      (the network, what training it gave).

    Raises:
      ValueError: an objective has no positive.
    """
    k = spec.n_objectives
    network = WeightMaskedNetwork(spec, seed, equal_blocks(spec.towers.dimension, k))
    seconds = 0.0
    assert data.held_out is not None
    for stage in range(k):
        task = WeightMaskedTask(network, data.item_features, stage, settings)
        maker = batch_maker(data, spec, stage, settings, model, seed + stage)
        run = partial(
            fit,
            task,
            [maker],
            settings=model.validation,
            validate=task.validator(data.held_out),
            tell=quiet,
        )
        seconds += run(rounds=settings.rounds).cpu_seconds
        if stage < k - 1:
            network.release(stage, share, rule, seed)
            if settings.recovery_share > 0:
                maker.subset(settings.recovery_share)
                seconds += run(rounds=settings.recovery_rounds).cpu_seconds
    trained = Trained(
        task,
        (task.users(data.held_out), task.items()),
        [weight.numpy() for weight in task.moving],
        seconds,
    )
    if everything := data.refit():
        for stage in range(k):
            maker = everything.batch_maker(
                spec, stage, settings, model.negatives, seed + REFIT_SEED + stage
            )
            refitted = WeightMaskedTask(network, data.item_features, stage, settings)
            trained.seconds += refit(refitted, [maker], model.validation)
    return network, trained
