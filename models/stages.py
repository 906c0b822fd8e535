"""One stage of the cascade: train, prune (CPP), recover (AR), freeze (CSMF, METHOD 1.1)."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models import losses, masks, rates, replicas
from models.batches import BatchMaker
from models.fitting import Fitted, Task, fit
from models.held_out import HeldOut, cut
from models.packing import TensorBatch
from models.settings import ModelSettings, NegativeSettings, StageSettings
from models.timelines import Timelines
from models.towers import OUTPUT, TowerSpec, TwoTower, UserInputs
from models.weighting import choose_strengths

Progress = Callable[[str], None]
RECALL_AT = 50
_IMPORTANCE_BATCHES = 8  # read by the importances that depend on data


@dataclass(frozen=True)
class TrainingData:
    """What every stage trains on."""

    timelines: Timelines
    ordered: bool  # False: the log has no times
    item_features: dict[str, npt.NDArray[np.int32]]  # name -> [n_items, F], -1 is padding
    held_out: HeldOut | None = None  # None: nothing is validated
    everything: Timelines | None = None  # the validation events, too; None: nothing is refitted

    @classmethod
    def split(
        cls,
        timelines: Timelines,
        ordered: bool,
        item_features: dict[str, npt.NDArray[np.int32]],
        model: ModelSettings,
        seed: int,
    ) -> TrainingData:
        """Sets the validation events aside, the same ones for every stage."""
        settings = model.validation
        if settings.share == 0:
            return cls(timelines, ordered, item_features)
        training, validation = cut(timelines, ordered, settings.share, seed)
        held_out = HeldOut.of(validation, settings.max_queries, seed)
        everything = timelines if settings.refit_rounds else None
        return cls(training, ordered, item_features, held_out, everything)

    def refit(self) -> TrainingData | None:
        """All training events and nothing held out; None where no stage is refitted."""
        if self.everything is None:
            return None
        return TrainingData(self.everything, self.ordered, self.item_features)

    def batch_maker(
        self,
        spec: TowerSpec,
        level: int,
        settings: StageSettings,
        negatives: NegativeSettings,
        seed: int,
    ) -> BatchMaker:
        """What draws the training batches of a level for a network of these shapes."""
        return BatchMaker(
            self.timelines,
            self.ordered,
            level,
            spec.towers,
            settings,
            negatives,
            spec.n_items,
            spec.n_users,
            seed,
        )


@dataclass(frozen=True)
class Phase:
    """One training run inside a stage."""

    name: str  # "train", "recover" or "refit"
    positives: int
    fitted: Fitted


@dataclass
class StageReport:
    """What a stage did, for the artifact, the lineage and the curves."""

    stage: int
    objective: str
    settings: dict[str, object]
    started: float  # seconds since the epoch
    layers: dict[str, int]  # neurons of every layer
    phases: list[Phase] = field(default_factory=list)
    # By layer, between the phases; empty for the last stage, which keeps everything.
    pruned: dict[str, masks.Pruned] = field(default_factory=dict)
    owned: dict[str, int] = field(default_factory=dict)  # neurons owned, by layer
    upstream_sha256: str = ""  # of all frozen weights, equal before and after the stage
    # In the stage's score: of its cosine, and of the items' rates.
    strengths: tuple[float, float] = (1.0, 0.0)
    # Objective -> request weights that serve it best; known after the last stage.
    weights: dict[str, list[float]] = field(default_factory=dict)


class FrozenWeightsMovedError(RuntimeError):
    """A stage changed a weight that an earlier stage owns. Never expected; nothing is saved."""


def train_stage(
    task: StageTask, data: TrainingData, model: ModelSettings, seed: int, progress: Progress
) -> StageReport:
    """Trains the task's stage in place; afterwards its neurons are final, the next has its own.

    Runs on all devices of the strategy in whose scope it is called and the towers were made.
    The last stage keeps everything it was given: no mask, no recovery.

    Args:
      task: over the network as the previous stage left it.
      data: training and validation events.
      model: what all objectives share.
      seed: of initial weights, shuffling, dropout and negatives.
      progress: called with a line of text after every round.

    Raises:
      ValueError: no positive at this level, training diverged, or too little room for a stage
        (`TwoTower.release`).
      FrozenWeightsMovedError: the bit-exact guarantee of METHOD 1.3 does not hold.
    """
    towers, stage, settings = task.towers, task.stage, task.settings
    report = StageReport(
        stage=stage,
        objective=settings.name,
        settings=settings.model_dump(mode="json"),
        started=time.time(),
        layers={name: len(owners) for name, owners in towers.owners.items()},
    )
    frozen = frozen_sha256(towers, stage)
    maker = data.batch_maker(towers.spec, stage, settings, model.negatives, seed + stage)
    if not len(maker.positives):
        raise ValueError(
            f"objective {settings.name!r} has no positive among the training events; "
            "check the levels of the data section, or drop the objective"
        )
    validate = _validator(task, data.held_out, stage)

    def run(name: str, rounds: int) -> None:
        fitted = fit(
            task,
            [maker],
            rounds,
            model.validation,
            validate,
            lambda text: progress(f"{settings.name}: {name} {text}"),
        )
        report.phases.append(Phase(name, len(maker.positives), fitted))

    # A later stage trains no longer than a round of the first takes.
    longest = settings.rounds if stage == 0 else math.ceil(1 / maker.share)
    run("train", min(settings.rounds, longest))
    if stage < towers.spec.n_objectives - 1:
        importance, before = task.importance(maker), towers.owners
        importance = {name: replicas.chiefs(values) for name, values in importance.items()}
        towers.release(stage, settings.tau, seed, importance, settings.prune)
        report.pruned = masks.pruned(before, towers.owners, importance, stage)
        task.take_ownership()
        if settings.recovery_share > 0:
            maker.subset(settings.recovery_share)
            run("recover", settings.recovery_rounds)

    _count_rates(task, data)
    report.strengths = _strengths(task, data)
    towers.set_strengths(stage, *report.strengths)

    _check_frozen(towers, stage, settings.name, frozen)
    report.upstream_sha256 = frozen
    report.owned = {name: int(np.sum(owners == stage)) for name, owners in towers.owners.items()}
    return report


def refit_stage(
    task: StageTask, data: TrainingData, model: ModelSettings, seed: int, progress: Progress
) -> Phase:
    """Goes on training what the stage owns, gently and without validation; owners stay as they are.

    The rates of items are counted anew; the strengths stay.

    Args:
      task: over a network whose stage is already trained.
      data: see `TrainingData.refit`.
      model: what all objectives share.
      seed: of shuffling, dropout and negatives.
      progress: called with a line of text after every round.

    Raises:
      ValueError: training diverged.
      FrozenWeightsMovedError: as in `train_stage`.
    """
    towers, stage, settings = task.towers, task.stage, task.settings
    validation = model.validation
    rounds = validation.refit_rounds if stage == 0 else min(validation.refit_rounds, 1)
    frozen = frozen_sha256(towers, stage)
    maker = data.batch_maker(
        towers.spec, stage, settings, model.negatives, seed + towers.spec.n_objectives + stage
    )
    fitted = fit(
        task,
        [maker],
        rounds,
        validation,
        None,
        lambda text: progress(f"{settings.name}: refit {text}"),
        validation.refit_rate,
    )
    _count_rates(task, data)
    _check_frozen(towers, stage, settings.name, frozen)
    return Phase("refit", len(maker.positives), fitted)


def _count_rates(task: StageTask, data: TrainingData) -> None:
    """In units of the cosine: T log p = cosine + T log rate + c. As long as a cosine, roughly, the
    rates take no more of the index's precision than they are worth."""
    n_items = task.towers.spec.n_items
    logs = rates.log_rates(*rates.counted(data.timelines, task.stage, n_items))
    task.towers.set_rates(task.stage, task.settings.temperature * logs)


def _strengths(task: StageTask, data: TrainingData) -> tuple[float, float]:
    """Chosen on validation. Without it 1 and 1; of the first stage 1 and 0: its softmax has learnt
    what is met how often."""
    held_out, stage = data.held_out, task.stage
    if held_out is None or not len(held_out.reaching(stage)):
        return 1.0, float(stage > 0)
    chosen = choose_strengths(task.towers, held_out, data.item_features, stage)
    of_learnt, of_rates = replicas.chiefs(np.array(chosen)).tolist()
    return of_learnt, of_rates


def _check_frozen(towers: TwoTower, stage: int, objective: str, before: str) -> None:
    towers.check_finite()
    if frozen_sha256(towers, stage) != before:
        raise FrozenWeightsMovedError(f"weights owned by stages before {objective!r} changed")


def frozen_sha256(towers: TwoTower, stage: int) -> str:
    """Hash of every weight that enters a neuron owned by a stage before `stage`."""
    digest = hashlib.sha256()
    for earlier in range(stage):
        for name, mask in towers.trainable_masks(earlier).items():
            weight = towers.weights[name].numpy()
            digest.update(weight[np.broadcast_to(mask, weight.shape)].tobytes())
    return digest.hexdigest()


def _validator(task: StageTask, held_out: HeldOut | None, stage: int) -> Callable[[], float] | None:
    """Recall@50 at the stage's level, all blocks up to its own weighing 1."""
    if held_out is None:
        return None
    reaching = held_out.only(held_out.reaching(stage))
    if not len(reaching):
        return None

    def validate() -> float:
        users, items = task.vectors(reaching)
        return float(np.nanmean(reaching.recall_of(users, items, stage, RECALL_AT)))

    return validate


class StageTask(Task):
    """The training step of one stage: its loss, and gradients only for what it owns."""

    def __init__(
        self,
        towers: TwoTower,
        item_features: dict[str, npt.NDArray[np.int32]],
        stage: int,
        settings: StageSettings,
    ):
        super().__init__(settings.learning_rate)
        self.towers = towers
        self.stage = stage
        self.settings = settings
        self._item_features = {name: tf.constant(ids) for name, ids in item_features.items()}
        # Variables, so that the step is traced once although CPP changes what the stage owns. The
        # scores are computed from the stage's own outputs alone, which are a few of all.
        self._block = tf.Variable(
            self._selection(stage), trainable=False, shape=[len(towers.owners[OUTPUT]), None]
        )
        self._upstream = [tf.constant(self._selection(k)) for k in range(stage)]
        self._masks = {
            name: tf.Variable(mask, trainable=False)
            for name, mask in towers.trainable_masks(stage).items()
        }
        self._names = [name for name, weight in towers.weights.items() if weight.trainable]

    def take_ownership(self) -> None:
        """Reads anew from the towers what the stage owns."""
        self._block.assign(self._selection(self.stage))
        for name, mask in self.towers.trainable_masks(self.stage).items():
            self._masks[name].assign(mask)

    def _selection(self, stage: int) -> npt.NDArray[np.float32]:
        """[O, O_k] takes the stage's columns out of outputs [N, O] by a product, to the bit."""
        owners = self.towers.owners[OUTPUT]
        return np.eye(len(owners), dtype=np.float32)[:, owners == stage]

    @property
    def moving(self) -> list[tf.Variable]:
        """The weights of which the stage may move a part."""
        return [self.towers.weights[name] for name in self._names]

    def masked(self, gradients: list[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The gradients of `moving`, exactly 0 where the stage owns nothing."""
        return [
            None if gradient is None else tf.where(self._masks[name], gradient, 0.0)
            for name, gradient in zip(self._names, gradients, strict=True)
        ]

    def compute_loss(self, inputs: tuple[TensorBatch, ...], training: bool = False) -> tf.Tensor:
        """Softmax loss of a `batches.Batch` at this stage's level (METHOD 1.1, 1.5, 1.6)."""
        (batch,), settings = inputs, self.settings
        users = self.towers.users(user_inputs(batch))
        items = self.items(batch["candidates"])
        scores = tf.matmul(
            _normalised(users, self._block), _normalised(items, self._block), transpose_b=True
        )
        common = batch["positives"], batch["log_q"], offsets_of(batch)
        if not self._upstream:
            return losses.softmax_loss(scores / settings.temperature, *common)
        upstream = tf.stop_gradient(
            tf.matmul(self._frozen(users), self._frozen(items), transpose_b=True)
        )
        if settings.head == "increment":
            scores = settings.scale * scores + upstream
        logits = scores / settings.temperature
        if settings.gamma == 0 or settings.margin == "depth":  # those are in the offsets
            return losses.softmax_loss(logits, *common)
        return losses.margin_loss(
            logits, upstream, *common, settings.gamma, settings.temperature, settings.margin
        )

    def importance(self, maker: BatchMaker) -> dict[str, masks.Importances]:
        """Importance of every neuron as the settings define it, by owner vector.

        What depends on data is a mean over a few batches of the maker.
        """
        if self.settings.importance == "l1":
            return self.towers.importance()
        measure = {"activation": self._activations, "gradient": self._sensitivities}[
            self.settings.importance
        ]
        measured = [
            measure(tf.nest.map_structure(tf.constant, vars(batch)))
            for batch in itertools.islice(maker.batches(), _IMPORTANCE_BATCHES)
        ]
        return {name: np.mean([m[name] for m in measured], axis=0) for name in measured[0]}

    def _activations(self, batch: TensorBatch) -> dict[str, masks.Importances]:
        """Mean absolute output of every neuron."""
        ids = batch["candidates"]
        return self.towers.activations(user_inputs(batch), ids, self._features_of(ids))

    def _sensitivities(self, batch: TensorBatch) -> dict[str, masks.Importances]:
        """Sum over the incoming weights of every neuron of |gradient x weight|."""
        with tf.GradientTape() as tape:
            loss = self.compute_loss((batch,))
        gradients = tape.gradient(loss, self.moving, unconnected_gradients="zero")
        return self.towers.incoming(
            {
                name: np.abs(tf.convert_to_tensor(gradient).numpy() * weight.numpy())
                for name, gradient, weight in zip(self._names, gradients, self.moving, strict=True)
            }
        )

    def items(self, ids: tf.Tensor) -> tf.Tensor:
        """Raw outputs [C, O] of the item tower for the items [C]."""
        return self.towers.items(ids, self._features_of(ids))

    def _features_of(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(table, ids) for name, table in self._item_features.items()}

    def _frozen(self, outputs: tf.Tensor) -> tf.Tensor:
        """[N, O_up] what the stages before have learnt, each L2-normalised."""
        return tf.concat([_normalised(outputs, block) for block in self._upstream], axis=1)

    def vectors(self, held_out: HeldOut) -> tuple[npt.NDArray, npt.NDArray]:
        """(queries [Q, d], items [N, d]): what all stages up to this one learnt, weighing 1."""
        spec = self.towers.spec
        users = [
            self._vector(self.towers.users(inputs))
            for inputs in held_out.user_inputs(spec.towers.history_length, spec.n_users)
        ]
        return np.concatenate(users), self._vector(self.items(tf.range(spec.n_items)))

    def _vector(self, outputs: tf.Tensor) -> npt.NDArray[np.float32]:
        blocks = [*self._upstream, self._block]
        return tf.concat([_normalised(outputs, block) for block in blocks], axis=1).numpy()


def user_inputs(batch: TensorBatch) -> UserInputs:
    """The part of a batch that the user tower reads."""
    return UserInputs(
        history_items=batch["history_items"],
        history_levels=batch["history_levels"],
        history_ranks=tf.range(tf.shape(batch["history_items"])[1])[None, :],
        user_ids=batch["user_ids"],
        features=batch["features"],
    )


def offsets_of(batch: TensorBatch) -> tf.Tensor:
    """[B, C] what is added to the batch's negatives."""
    return losses.negative_offsets(
        batch["offsets"],
        batch["offset_places"],
        batch["offsets_there"],
        tf.shape(batch["positives"])[0],
    )


def _normalised(outputs: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
    """[N, O_k] the outputs that a block [O, O_k] selects, L2-normalised by themselves."""
    return tf.math.l2_normalize(tf.matmul(outputs, block), axis=1, epsilon=1e-12)
