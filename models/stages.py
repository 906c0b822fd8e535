"""One stage of the cascade: train, prune (CPP), recover (AR), freeze (CSMF, METHOD 1.1)."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_recommenders as tfrs

from models import losses
from models.settings import NegativeSettings, StageSettings
from models.timelines import Histories, Timelines
from models.towers import TwoTower, UserInputs

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TrainingData:
    """What every stage trains on."""

    timelines: Timelines
    ordered: bool  # False: the log has no times
    item_features: dict[str, npt.NDArray[np.int32]]  # name -> [n_items, F], -1 is padding


@dataclass(frozen=True)
class Phase:
    """One training run inside a stage."""

    name: str  # "train" or "recover"
    positives: int
    losses: list[float]  # one per epoch
    seconds: float


@dataclass
class StageReport:
    """What a stage did, for the artifact, the lineage and the curves."""

    stage: int
    objective: str
    settings: dict[str, object]
    phases: list[Phase] = field(default_factory=list)
    owned: dict[str, int] = field(default_factory=dict)  # neurons owned, by layer
    upstream_sha256: str = ""  # of all frozen weights, equal before and after the stage


class FrozenWeightsMovedError(RuntimeError):
    """A stage changed a weight that an earlier stage owns. Never expected; nothing is saved."""


def train_stage(
    towers: TwoTower,
    data: TrainingData,
    stage: int,
    settings: StageSettings,
    negatives: NegativeSettings,
    seed: int,
    progress: Progress,
) -> StageReport:
    """Trains `stage` in place; afterwards its neurons are final and the next stage has its own.

    The last stage keeps everything it was given: no mask, no recovery.

    Args:
      towers: the network as the previous stage left it.
      data: training timelines.
      stage: index of the objective, 0 first.
      settings: of this objective.
      negatives: shared by all objectives.
      seed: of initial weights, shuffling, dropout and negatives.
      progress: called with a line of text after every epoch.

    Raises:
      ValueError: no positive at this level, training diverged, or too little room for a stage
        (`TwoTower.release`).
      FrozenWeightsMovedError: the bit-exact guarantee of METHOD 1.3 does not hold.
    """
    positives = data.timelines.positives(stage)
    if not len(positives):
        raise ValueError(
            f"objective {settings.name!r} has no positive among the training events; "
            "check the levels of the data section, or drop the objective"
        )
    report = StageReport(stage, settings.name, settings.model_dump(mode="json"))
    frozen = frozen_sha256(towers, stage)

    def run(name: str, events: npt.NDArray[np.int64], epochs: int) -> None:
        task = StageTask(towers, data, stage, settings, negatives, positives, seed)
        report.phases.append(_fit(task, name, events, epochs, settings, seed, progress))

    run("train", positives, settings.epochs)
    if stage < towers.spec.n_objectives - 1:
        towers.release(stage, settings.tau, seed)
        if settings.recovery_share > 0:
            subset = np.random.default_rng([seed, stage]).choice(
                positives, max(1, round(settings.recovery_share * len(positives))), replace=False
            )
            run("recover", subset, settings.recovery_epochs)

    towers.check_finite()
    if frozen_sha256(towers, stage) != frozen:
        raise FrozenWeightsMovedError(f"weights owned by stages before {settings.name!r} changed")
    report.upstream_sha256 = frozen
    report.owned = {name: int(np.sum(owners == stage)) for name, owners in towers.owners.items()}
    return report


def frozen_sha256(towers: TwoTower, stage: int) -> str:
    """Hash of every weight that enters a neuron owned by a stage before `stage`."""
    digest = hashlib.sha256()
    for earlier in range(stage):
        for name, mask in towers.trainable_masks(earlier).items():
            weight = towers.weights[name].numpy()
            digest.update(weight[np.broadcast_to(mask, weight.shape)].tobytes())
    return digest.hexdigest()


def _fit(
    task: StageTask,
    name: str,
    events: npt.NDArray[np.int64],
    epochs: int,
    settings: StageSettings,
    seed: int,
    progress: Progress,
) -> Phase:
    """Runs the epochs of one phase with a fresh optimiser (METHOD 1.1)."""
    # The dense moments of the Keras Adam leave a weight whose gradient is always zero untouched:
    # m = v = 0 gives a step of exactly 0. There is no weight decay that could move it.
    task.compile(optimizer=tf.keras.optimizers.Adam(settings.learning_rate))
    batches = (
        tf.data.Dataset.from_tensor_slices(events.astype(np.int32))
        .shuffle(len(events), seed=seed, reshuffle_each_iteration=True)
        .batch(settings.batch_size)
        .prefetch(2)
    )
    started = time.monotonic()

    def tell(epoch: int, logs: dict[str, float]) -> None:
        progress(
            f"{settings.name}: {name} epoch {epoch + 1}/{epochs}, loss {logs['total_loss']:.4f}, "
            f"{time.monotonic() - started:.0f} s"
        )

    history = task.fit(
        batches,
        epochs=epochs,
        verbose=0,
        callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_end=tell)],
    )
    return Phase(
        name, len(events), history.history["total_loss"], round(time.monotonic() - started, 3)
    )


class StageTask(tfrs.Model):
    """The training step of one stage: its loss, and gradients only for what it owns.

    A batch is an int32 [B] tensor of event indices; histories are cut inside the graph.
    """

    def __init__(
        self,
        towers: TwoTower,
        data: TrainingData,
        stage: int,
        settings: StageSettings,
        negatives: NegativeSettings,
        positives: npt.NDArray[np.int64],
        seed: int,
    ):
        super().__init__()
        self._towers = towers
        self._stage = stage
        self._settings = settings
        self._histories = Histories(data.timelines, towers.spec.towers.history_length, data.ordered)
        self._item_features = {name: tf.constant(ids) for name, ids in data.item_features.items()}
        n_items = towers.spec.n_items
        self._n_items = n_items
        self._exact = negatives.kind == "exact" or (
            negatives.kind == "auto" and n_items <= negatives.exact_limit
        )
        self._n_random = negatives.random
        counts = np.bincount(data.timelines.items[positives], minlength=n_items)
        self._probability = tf.constant(counts / len(positives), tf.float32)
        self._masks = {name: tf.constant(m) for name, m in towers.trainable_masks(stage).items()}
        self._names = list(towers.weights)
        self._generator = tf.random.Generator.from_seed([seed, stage], alg="philox")
        self._loss_mean = tf.keras.metrics.Mean(name="total_loss")

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        """Reset by Keras at the start of every epoch."""
        return [self._loss_mean]

    def train_step(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """One optimiser step; replaces the step of tfrs.Model because gradients are masked."""
        weights = [self._towers.weights[name] for name in self._names]
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
        gradients = self.masked_gradients(tape, loss)
        self.optimizer.apply_gradients(
            [(g, w) for g, w in zip(gradients, weights, strict=True) if g is not None]
        )
        self._loss_mean.update_state(loss, tf.size(inputs))
        return {"total_loss": self._loss_mean.result()}

    def masked_gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor | None]:
        """Gradients in the order of `TwoTower.weights`, exactly 0 where the stage owns nothing."""
        weights = [self._towers.weights[name] for name in self._names]
        return [
            None if gradient is None else _masked(gradient, self._masks[name])
            for name, gradient in zip(self._names, tape.gradient(loss, weights), strict=True)
        ]

    def compute_loss(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Softmax loss of the batch of events [B] at this stage's level (METHOD 1.1, 1.5, 1.6)."""
        users = self._towers.users(self._user_inputs(inputs, training))
        targets = self._histories.targets(inputs)
        if self._exact:
            candidates = tf.range(self._n_items)
            positives = targets
            removed = self._removed_from_catalogue(inputs)
            log_q = None
        else:
            random = self._generator.uniform([self._n_random], 0, self._n_items, tf.int32)
            candidates = tf.concat([targets, random], axis=0)
            positives = tf.range(tf.size(targets))
            removed = self._removed_from(inputs, targets, candidates)
            log_q = losses.log_expected_count(
                tf.gather(self._probability, candidates),
                tf.size(targets),
                self._n_random,
                self._n_items,
            )
        features = {name: tf.gather(ids, candidates) for name, ids in self._item_features.items()}
        items = self._towers.items(candidates, features)
        logits = self._scores(users, items, positives) / self._settings.temperature
        return losses.softmax_loss(logits, positives, removed, log_q)

    def _scores(self, users: tf.Tensor, items: tf.Tensor, positives: tf.Tensor) -> tf.Tensor:
        """[B, C] this stage's scores, with margins and, for an increment head, upstream added."""
        towers, stage, settings = self._towers, self._stage, self._settings
        scores = tf.matmul(towers.block(users, stage), towers.block(items, stage), transpose_b=True)
        if stage == 0:
            return scores
        upstream = tf.stop_gradient(
            tf.add_n(
                [
                    tf.matmul(towers.block(users, k), towers.block(items, k), transpose_b=True)
                    for k in range(stage)
                ]
            )
        )
        if settings.head == "increment":
            scores += upstream
        if settings.gamma > 0:
            of_positive = tf.gather(upstream, positives, axis=1, batch_dims=1)[:, None]
            margins = losses.adaptive_margins(upstream, of_positive, settings.gamma)
            is_positive = tf.one_hot(positives, tf.shape(scores)[1])
            scores += margins * (1.0 - is_positive)
        return scores

    def _user_inputs(self, events: tf.Tensor, training: bool) -> UserInputs:
        inputs = self._histories.user_inputs(events, self._generator)
        if not training:
            return inputs
        hidden = self._uniform(inputs.history_items) < self._settings.history_dropout
        anonymous = self._uniform(inputs.user_ids) < self._settings.user_id_dropout
        return dataclasses.replace(
            inputs,
            history_items=tf.where(hidden, -1, inputs.history_items),
            user_ids=tf.where(anonymous, self._towers.spec.n_users, inputs.user_ids),
        )

    def _uniform(self, like: tf.Tensor) -> tf.Tensor:
        return self._generator.uniform(tf.shape(like))

    def _removed_from_catalogue(self, events: tf.Tensor) -> tf.Tensor:
        """[B, n_items] True where the item is no negative for the event."""
        items, valid = self._histories.known(events, self._stage)
        rows = tf.broadcast_to(tf.range(tf.size(events))[:, None], tf.shape(items))
        hits = tf.boolean_mask(tf.stack([rows, items], axis=-1), valid)
        shape = [tf.size(events), self._n_items]
        return tf.scatter_nd(hits, tf.ones(tf.shape(hits)[0], tf.int32), shape) > 0

    def _removed_from(
        self, events: tf.Tensor, targets: tf.Tensor, candidates: tf.Tensor
    ) -> tf.Tensor:
        """[B, C] True where the candidate is no negative: known to the user, or the target."""
        items, valid = self._histories.known(events, self._stage)
        ordered = tf.sort(tf.where(valid, items, -1), axis=1)
        wanted = tf.broadcast_to(candidates[None, :], [tf.size(events), tf.size(candidates)])
        place = tf.minimum(tf.searchsorted(ordered, wanted), tf.shape(ordered)[1] - 1)
        known = tf.gather(ordered, place, axis=1, batch_dims=1) == wanted
        return known | (wanted == targets[:, None])


def _masked(gradient: tf.Tensor | tf.IndexedSlices, mask: tf.Tensor) -> tf.Tensor:
    """The gradient where the mask is true, exactly 0 elsewhere."""
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.where(mask, gradient.values, 0.0)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.where(mask, gradient, 0.0)
