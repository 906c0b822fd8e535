"""The masked two-tower network: tables, layers, and who owns each of their neurons.

User tower: embeddings of the user's past items, pooled for every funnel level (all alike, and with
recent ones weighing more), then the user id and the user's features. Item tower: item id and item
features. Both end in a head whose outputs share one set of owners, so that the inner product
stays aligned (METHOD 1.2). Of the D coordinates of an index vector, each stage has one beside its
outputs, for what is counted and not learnt (`models.rates`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models import masks
from models.settings import PruneRule, TowerSettings

OUTPUT = "output"  # owners of the D - K outputs of the heads, one set for both towers
HISTORY = "history"
USER_ID = "user_id"
ITEM_ID = "item_id"
RATES = "rates"  # [N, K], a column for every stage: T log rate, see `models.rates`
STRENGTHS = "strengths"  # [K, 2] of what a stage has learnt, and of its rates

_TABLE_STDDEV = 0.05
_WEIGHTS_FILE = "weights.npz"
_SPEC_FILE = "spec.json"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TowerSpec:
    """Everything that fixes the shapes of a `TwoTower`.

    Feature sizes count the out-of-vocabulary bucket. Ids run from 0; -1 stands for padding or
    an unknown item. `n_users` is also the id of the unknown user.
    """

    towers: TowerSettings
    n_objectives: int
    ordered: bool  # False: the log has no times, so no item of a history is the most recent
    n_items: int
    n_users: int
    user_features: dict[str, int]
    item_features: dict[str, int]

    def to_json(self) -> str:
        """Inverse of `from_json`. Features keep their order: it is that of the kernels' rows."""
        return json.dumps(asdict(self) | {"towers": self.towers.model_dump()})

    @classmethod
    def from_json(cls, text: str) -> TowerSpec:
        """Inverse of `to_json`."""
        raw = json.loads(text)
        return cls(**(raw | {"towers": TowerSettings.parse(raw["towers"])}))


@dataclass(frozen=True)
class UserInputs:
    """A batch of users as the user tower reads them; ids are int32, -1 is padding."""

    history_items: tf.Tensor  # [B, H]
    history_levels: tf.Tensor  # [B, H]
    history_ranks: tf.Tensor  # [B, H] or [1, H], 0 = the most recent event
    user_ids: tf.Tensor  # [B]
    features: dict[str, tf.Tensor]  # name -> [B, F]


@dataclass(frozen=True)
class _Layer:
    """A weight matrix, and the names of the owner vectors at its two ends.

    A table has no input neurons: its rows are ids, its columns are the neurons.
    """

    weight: str
    inputs: tuple[str, ...]
    outputs: str
    bias: str | None = None


class TwoTower(tf.Module):
    """Weights of both towers and the owners of their neurons."""

    def __init__(self, spec: TowerSpec, seed: int):
        """Draws all weights; every neuron belongs to stage 0.

        Args:
          spec: shapes.
          seed: of the initial weights.

        Raises:
          ValueError: fewer than two dimensions for each objective.
        """
        super().__init__(name="two_tower")
        if spec.towers.dimension < 2 * spec.n_objectives:
            raise ValueError(
                f"model.towers.dimension is {spec.towers.dimension}, but {spec.n_objectives} "
                "objectives divide it among themselves, and each needs two: raise it"
            )
        self.spec = spec
        rng = np.random.default_rng(seed)
        towers = spec.towers
        tables = {HISTORY: (spec.n_items, towers.item_embedding)}
        tables[USER_ID] = (spec.n_users + 1, towers.user_embedding)
        tables |= {
            f"user_{name}": (size, towers.feature_embedding)
            for name, size in spec.user_features.items()
        }
        tables[ITEM_ID] = (spec.n_items, towers.item_embedding)
        tables |= {
            f"item_{name}": (size, towers.feature_embedding)
            for name, size in spec.item_features.items()
        }
        self._decays = (0.0, *(1 / r for r in towers.recency if spec.ordered))
        user_inputs = (HISTORY,) * (spec.n_objectives * len(self._decays)) + (
            USER_ID,
            *(f"user_{name}" for name in spec.user_features),
        )
        item_inputs = (ITEM_ID, *(f"item_{name}" for name in spec.item_features))

        self.owners: dict[str, masks.Owners] = {
            name: np.zeros(columns, np.int32) for name, (_, columns) in tables.items()
        }
        self.owners[OUTPUT] = np.zeros(towers.dimension - spec.n_objectives, np.int32)
        self._layers = [_Layer(weight=name, inputs=(), outputs=name) for name in tables]
        self._user_layers = self._stack("user", user_inputs)
        self._item_layers = self._stack("item", item_inputs)
        self._layers += self._user_layers + self._item_layers

        self.weights: dict[str, tf.Variable] = {}
        for layer in self._layers:
            shape = tables.get(layer.weight) or (
                self._fan_in(layer),
                len(self.owners[layer.outputs]),
            )
            self._add_weight(layer.weight, initial_weights(rng, shape, is_table=not layer.inputs))
            if layer.bias:
                self._add_weight(layer.bias, np.zeros(shape[1], np.float32))
        stages = spec.n_objectives
        self._add_weight(RATES, np.zeros((spec.n_items, stages), np.float32), trainable=False)
        self._add_weight(
            STRENGTHS, np.tile(np.array([1, 0], np.float32), (stages, 1)), trainable=False
        )

    def _stack(self, tower: str, inputs: tuple[str, ...]) -> list[_Layer]:
        stack = []
        for depth, width in enumerate(self.spec.towers.hidden):
            name = f"{tower}/hidden_{depth}"  # a slash, which no feature has in its name
            self.owners[name] = np.zeros(width, np.int32)
            stack.append(_Layer(f"{name}/kernel", inputs, name, f"{name}/bias"))
            inputs = (name,)
        stack.append(_Layer(f"{tower}_head/kernel", inputs, OUTPUT, f"{tower}_head/bias"))
        return stack

    def _fan_in(self, layer: _Layer) -> int:
        return sum(len(self.owners[name]) for name in layer.inputs)

    def _add_weight(self, name: str, value: Array, trainable: bool = True) -> None:
        self.weights[name] = tf.Variable(
            value, name=name.replace("/", "_"), dtype=tf.float32, trainable=trainable
        )

    # --- forward ----------------------------------------------------------------------------

    def users(self, inputs: UserInputs) -> tf.Tensor:
        """Raw outputs [B, O] of the user tower, not normalised, columns in storage order."""
        return self._run(self._user_layers, self.embed_users(inputs))[-1]

    def embed_users(self, inputs: UserInputs) -> tf.Tensor:
        """[B, F] what the user tower's layers read: pooled histories, user id, features."""
        parts = [self._pooled_histories(inputs), tf.gather(self.weights[USER_ID], inputs.user_ids)]
        parts += [
            _pooled(self.weights[f"user_{name}"], inputs.features[name])
            for name in self.spec.user_features
        ]
        return tf.concat(parts, axis=1)

    def items(self, item_ids: tf.Tensor, features: dict[str, tf.Tensor]) -> tf.Tensor:
        """Raw outputs [N, O] of the item tower.

        Args:
          item_ids: int32 [N]; -1 (an unknown item) reads as a zero embedding.
          features: name -> int32 [N, F], -1 is padding.
        """
        return self._run(self._item_layers, self.embed_items(item_ids, features))[-1]

    def embed_items(self, item_ids: tf.Tensor, features: dict[str, tf.Tensor]) -> tf.Tensor:
        """[N, F] what the item tower's layers read: item id and features."""
        parts = [_pooled(self.weights[ITEM_ID], item_ids[:, None])]
        parts += [
            _pooled(self.weights[f"item_{name}"], features[name])
            for name in self.spec.item_features
        ]
        return tf.concat(parts, axis=1)

    def _pooled_histories(self, inputs: UserInputs) -> tf.Tensor:
        """[B, P * E] for each decay and each objective k: the past items that reached k, pooled.

        The r-th most recent event weighs exp(-r * decay); weights are scaled to unit L2 norm,
        which for equal weights is the sum divided by sqrt(count). The scaling stops at 1e-6, so
        events that a decay has all but forgotten give a vector near zero.
        """
        known = inputs.history_items >= 0
        embedded = tf.gather(self.weights[HISTORY], tf.maximum(inputs.history_items, 0))
        reached = tf.stack(
            [
                tf.cast(known & (inputs.history_levels >= level), tf.float32)
                for level in range(self.spec.n_objectives)
            ],
            axis=1,
        )  # [B, K, H]
        ranks = tf.cast(inputs.history_ranks, tf.float32)[:, None, :]
        weights = tf.concat([reached * tf.exp(-decay * ranks) for decay in self._decays], axis=1)
        pooled = tf.matmul(tf.math.l2_normalize(weights, axis=2, epsilon=1e-12), embedded)
        return tf.reshape(pooled, [tf.shape(pooled)[0], pooled.shape[1] * pooled.shape[2]])

    def _run(self, layers: list[_Layer], x: tf.Tensor) -> list[tf.Tensor]:
        """Outputs of every layer of a tower, the head's last."""
        outputs = []
        for depth, layer in enumerate(layers):
            x = tf.matmul(x, self.weights[layer.weight]) + self.weights[layer.bias or ""]
            if depth < len(layers) - 1:
                x = tf.nn.relu(x)
            outputs.append(x)
        return outputs

    def user_blocks(self, inputs: UserInputs) -> tf.Tensor:
        """[B, D] the blocks of users, the counterpart of `item_blocks`.

        What a stage has learnt is as long as its strength, beside the strength of its rates.
        """
        outputs, strengths = self.users(inputs), self.weights[STRENGTHS]
        parts = []
        for stage in range(self.spec.n_objectives):
            rates = tf.fill([tf.shape(outputs)[0], 1], strengths[stage, 1])
            parts += [strengths[stage, 0] * self.learnt(outputs, stage), rates]
        return tf.concat(parts, axis=1)

    def item_blocks(self, item_ids: tf.Tensor, features: dict[str, tf.Tensor]) -> tf.Tensor:
        """[N, D] the blocks of items, one after the other, stage 0 first.

        A block is what the stage's outputs give, L2-normalised by itself, and the item's rate
        (`models.rates`; 0 for an unknown item).

        Args:
          item_ids: see `items`.
          features: see `items`.
        """
        rates = tf.gather(self.weights[RATES], tf.maximum(item_ids, 0))
        rates *= tf.cast(item_ids >= 0, tf.float32)[:, None]
        outputs = self.items(item_ids, features)
        parts = []
        for stage in range(self.spec.n_objectives):
            parts += [self.learnt(outputs, stage), rates[:, stage : stage + 1]]
        return tf.concat(parts, axis=1)

    def learnt(self, outputs: tf.Tensor, stage: int) -> tf.Tensor:
        """[N, O_k]: the raw outputs [N, O] that `stage` owns, L2-normalised by themselves."""
        columns = np.flatnonzero(self.owners[OUTPUT] == stage)
        return tf.math.l2_normalize(tf.gather(outputs, columns, axis=1), axis=1, epsilon=1e-12)

    def block_sizes(self) -> list[int]:
        """Number of coordinates of each stage's block; they sum up to D."""
        outputs = np.bincount(self.owners[OUTPUT], minlength=self.spec.n_objectives)
        return (outputs + 1).tolist()

    def set_rates(self, stage: int, rates: Array) -> None:
        """Sets the rates [N] of all items for a stage."""
        value = self.weights[RATES].numpy()
        value[:, stage] = rates
        self.weights[RATES].assign(value)

    def set_strengths(self, stage: int, learnt: float, rates: float) -> None:
        """Sets what the score of a stage makes of its cosine and of the rates."""
        value = self.weights[STRENGTHS].numpy()
        value[stage] = learnt, rates
        self.weights[STRENGTHS].assign(value)

    # --- ownership --------------------------------------------------------------------------

    def trainable_masks(self, stage: int) -> dict[str, masks.Mask]:
        """For each weight, True where `stage` may move it; broadcasts to the weight's shape."""
        result = {}
        for layer in self._layers:
            owned = self.owners[layer.outputs] == stage
            mask = (
                masks.trainable(self._input_owners(layer), self.owners[layer.outputs], stage)
                if layer.inputs
                else owned[None, :]
            )
            result[layer.weight] = mask
            if layer.bias:
                result[layer.bias] = owned
        of_stage = np.arange(self.spec.n_objectives) == stage
        return result | {RATES: of_stage[None, :], STRENGTHS: of_stage[:, None]}

    def importance(self) -> dict[str, masks.Importances]:
        """L1 norm of the incoming weights of every neuron, by owner vector.

        The head adds both towers, as they share their output neurons.
        """
        return self.incoming({name: np.abs(w.numpy()) for name, w in self.weights.items()})

    def incoming(self, values: dict[str, Array]) -> dict[str, masks.Importances]:
        """Sum of a quantity over the incoming weights of every neuron, by owner vector.

        Args:
          values: the quantity by weight, in the weight's shape; biases are not read.
        """
        result = {name: np.zeros(len(owners)) for name, owners in self.owners.items()}
        for layer in self._layers:
            result[layer.outputs] += values[layer.weight].astype(float).sum(0)
        return result

    def activations(
        self, users: UserInputs, item_ids: tf.Tensor, features: dict[str, tf.Tensor]
    ) -> dict[str, masks.Importances]:
        """Mean absolute output of every neuron over users and items, by owner vector.

        A table's column is averaged over the rows that are looked up, once per look-up; a hidden
        neuron counts after its ReLU. The head adds both towers.

        Args:
          users: as `users` reads them.
          item_ids: as `items` reads them.
          features: as `items` reads them.
        """
        looked_up = {HISTORY: users.history_items, USER_ID: users.user_ids, ITEM_ID: item_ids}
        looked_up |= {f"user_{name}": users.features[name] for name in self.spec.user_features}
        looked_up |= {f"item_{name}": features[name] for name in self.spec.item_features}
        outputs = [
            (name, tf.gather(self.weights[name], tf.boolean_mask(ids, ids >= 0)))
            for name, ids in looked_up.items()
        ]
        for layers, x in (
            (self._user_layers, self.embed_users(users)),
            (self._item_layers, self.embed_items(item_ids, features)),
        ):
            outputs += [
                (layer.outputs, output)
                for layer, output in zip(layers, self._run(layers, x), strict=True)
            ]
        result = {name: np.zeros(len(owners)) for name, owners in self.owners.items()}
        for name, output in outputs:
            absolute = np.abs(output.numpy().astype(float))
            result[name] += absolute.sum(axis=0) / max(1, len(absolute))
        return result

    def release(
        self,
        stage: int,
        tau: float,
        seed: int,
        importance: dict[str, masks.Importances] | None = None,
        rule: PruneRule = "cumulative",
    ) -> None:
        """CPP at neuron level: gives the least important neurons of `stage` to the next stage.

        Their incoming weights are drawn anew at initial scale, and what the neurons that stay
        would read from them is cut (METHOD 1.1 to 1.3).

        Args:
          stage: the stage that was just trained.
          tau: share to free, of each layer's L1 mass by default.
          seed: of the new weights.
          importance: of every neuron, by owner vector; None = `importance()`.
          rule: what `tau` is a share of.

        Raises:
          ValueError: a stage would own fewer outputs than `minimum_block`.
        """
        after = masks.hand_over(self.owners, importance or self.importance(), stage, tau, rule)
        self._check_room(after[OUTPUT], stage, tau)
        self.owners = after
        # The stage goes in, too: the seed alone would draw anew what __init__ drew.
        rng = np.random.default_rng([seed, stage + 1])
        for layer in self._layers:
            weight = self.weights[layer.weight]
            fresh = initial_weights(rng, tuple(weight.shape), is_table=not layer.inputs)
            freed = self.owners[layer.outputs] == stage + 1
            value = np.where(freed[None, :], fresh, weight.numpy())
            if layer.inputs:
                value *= masks.allowed(self._input_owners(layer), self.owners[layer.outputs])
            weight.assign(value)
            if layer.bias:
                bias = self.weights[layer.bias]
                bias.assign(np.where(freed, 0.0, bias.numpy()))

    def adopt(self, other: TwoTower, stage: int) -> None:
        """Takes from a network of the same spec what `stage` learnt there, and all owners.

        The weights of the stages before stay this network's own; those of the stages after, not
        trained yet, come along.
        """
        earlier = {
            name: np.logical_or.reduce(
                [np.zeros_like(mask), *(self.trainable_masks(k)[name] for k in range(stage))]
            )
            for name, mask in other.trainable_masks(stage).items()
        }
        self.owners = {name: owners.copy() for name, owners in other.owners.items()}
        for name, weight in self.weights.items():
            weight.assign(np.where(earlier[name], weight.numpy(), other.weights[name].numpy()))

    def swap(self, other: TwoTower) -> None:
        """Exchanges the values of all weights, and the owners, with a network of the same spec."""
        self.owners, other.owners = other.owners, self.owners
        for name, weight in self.weights.items():
            value = weight.numpy()
            weight.assign(other.weights[name].numpy())
            other.weights[name].assign(value)

    def _input_owners(self, layer: _Layer) -> masks.Owners:
        return np.concatenate([self.owners[name] for name in layer.inputs])

    def _check_room(self, outputs: masks.Owners, stage: int, tau: float) -> None:
        least = self.spec.towers.minimum_block
        sizes = {k: int(np.sum(outputs == k)) for k in (stage, stage + 1)}
        for k, size in sizes.items():
            if size < least:
                raise ValueError(
                    f"stage {k} would own {size} of {len(outputs)} outputs, "
                    f"fewer than minimum_block = {least}. Now tau of stage {stage} is {tau}: "
                    f"{'raise' if k > stage else 'lower'} it, or raise towers.dimension."
                )

    def check_finite(self) -> None:
        """Raises ValueError if training has diverged."""
        broken = [n for n, w in self.weights.items() if not np.isfinite(w.numpy()).all()]
        if broken:
            raise ValueError(
                f"weights are not finite after training ({', '.join(broken)}): lower the stage's "
                "learning_rate or raise its temperature"
            )

    # --- persistence ------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Writes weights, owners and spec; `load` gives back the same bits."""
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {f"weights/{name}": value.numpy() for name, value in self.weights.items()}
        arrays |= {f"owners/{name}": owners for name, owners in self.owners.items()}
        with (directory / _WEIGHTS_FILE).open("wb") as file:
            np.savez(file, **arrays)
        (directory / _SPEC_FILE).write_text(self.spec.to_json())

    @classmethod
    def load(cls, directory: Path) -> TwoTower:
        """Reads what `save` wrote."""
        model = cls(TowerSpec.from_json((directory / _SPEC_FILE).read_text()), seed=0)
        with np.load(directory / _WEIGHTS_FILE) as arrays:
            for name, weight in model.weights.items():
                weight.assign(arrays[f"weights/{name}"])
            model.owners = {name: arrays[f"owners/{name}"] for name in model.owners}
        return model


def initial_weights(rng: np.random.Generator, shape: tuple[int, ...], is_table: bool) -> Array:
    """Normal for tables, Glorot uniform for layers."""
    if is_table:
        return rng.normal(0.0, _TABLE_STDDEV, shape).astype(np.float32)
    limit = np.sqrt(6.0 / (shape[0] + shape[1]))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def _pooled(table: tf.Variable, ids: tf.Tensor) -> tf.Tensor:
    """[N, E]: mean of the rows `ids` [N, F]; -1 is left out, a row without ids gives zeros."""
    known = tf.cast(ids >= 0, tf.float32)
    total = tf.einsum("nf,nfe->ne", known, tf.gather(table, tf.maximum(ids, 0)))
    return total / tf.maximum(tf.reduce_sum(known, axis=1, keepdims=True), 1.0)
