"""Networks of the tower baselines, on the input tables of the product's `TwoTower`.

Each maps users and items to blocks, one per objective (or a single one for all); together they
are D long, and each is L2-normalised by itself, as those of CSMF are.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from models.towers import TowerSpec, TwoTower, UserInputs

Blocks = list[tf.Tensor]  # [N, D_k] each


class BlockNetwork(tf.Module):
    """Base: the tables of a `TwoTower`; subclasses add heads (`outputs`).

    Not an abc: its metaclass and that of tf.Module exclude each other.
    """

    def __init__(self, spec: TowerSpec, seed: int, block_sizes: list[int]):
        super().__init__()
        if spec.towers.hidden:
            raise ValueError(
                f"model.towers.hidden is {list(spec.towers.hidden)}; the tower baselines have no "
                "hidden layers, so a comparison with them needs hidden: []"
            )
        self.spec = spec
        self.block_sizes = block_sizes
        self.tables = TwoTower(spec, seed)
        self.rng = np.random.default_rng([seed, 1])
        self.widths = {
            tower: self.tables.weights[f"{tower}_head/kernel"].shape[0] for tower in TOWERS
        }

    def user_blocks(self, inputs: UserInputs) -> Blocks:
        """Blocks of the users."""
        return normalised(self.outputs("user", self.tables.embed_users(inputs)))

    def item_blocks(self, ids: tf.Tensor, features: dict[str, tf.Tensor]) -> Blocks:
        """Blocks of the items [N]; features as in `TwoTower.items`."""
        return normalised(self.outputs("item", self.tables.embed_items(ids, features)))

    def outputs(self, tower: str, x: tf.Tensor) -> Blocks:
        """Raw blocks from a tower's inputs [N, F]."""
        raise NotImplementedError

    def moving(self) -> list[tf.Variable]:
        """The weights that take part in the forward pass."""
        own_heads = {id(weight) for name, weight in self.tables.weights.items() if "head/" in name}
        return [weight for weight in self.trainable_variables if id(weight) not in own_heads]

    def dense(self, n_in: int, n_out: int) -> Dense:
        """A new layer with initial weights from the network's seed."""
        return Dense(n_in, n_out, self.rng)


TOWERS = ("user", "item")


class Dense(tf.Module):
    """A linear layer, Glorot uniform."""

    def __init__(self, n_in: int, n_out: int, rng: np.random.Generator):
        super().__init__()
        limit = np.sqrt(6.0 / (n_in + n_out))
        self.kernel = tf.Variable(rng.uniform(-limit, limit, (n_in, n_out)).astype(np.float32))
        self.bias = tf.Variable(tf.zeros([n_out]))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """[N, n_out] from [N, n_in]."""
        return tf.matmul(x, self.kernel) + self.bias


class SharedBottom(BlockNetwork):
    """Shared tables; a linear head per objective and tower. One block = an ordinary two-tower."""

    def __init__(self, spec: TowerSpec, seed: int, block_sizes: list[int]):
        super().__init__(spec, seed, block_sizes)
        self._heads = {
            tower: [self.dense(self.widths[tower], size) for size in block_sizes]
            for tower in TOWERS
        }

    def outputs(self, tower: str, x: tf.Tensor) -> Blocks:
        """See `BlockNetwork`."""
        return [head(x) for head in self._heads[tower]]


class MixtureOfExperts(BlockNetwork):
    """MMoE (Ma et al., KDD 2018), and PLE's extraction layer (Tang et al., RecSys 2020).

    Experts are ReLU layers of width D. Every objective mixes the shared experts and its own ones
    (PLE; MMoE has none) by a softmax gate, and has a linear head on the mixture.
    """

    def __init__(
        self, spec: TowerSpec, seed: int, block_sizes: list[int], shared: int, specific: int
    ):
        super().__init__(spec, seed, block_sizes)
        width = spec.towers.dimension
        objectives = range(len(block_sizes))

        def experts(tower: str, n: int) -> list[Dense]:
            return [self.dense(self.widths[tower], width) for _ in range(n)]

        self._shared = {tower: experts(tower, shared) for tower in TOWERS}
        self._specific = {tower: [experts(tower, specific) for _ in objectives] for tower in TOWERS}
        self._gates = {
            tower: [self.dense(self.widths[tower], shared + specific) for _ in objectives]
            for tower in TOWERS
        }
        self._heads = {tower: [self.dense(width, size) for size in block_sizes] for tower in TOWERS}

    def outputs(self, tower: str, x: tf.Tensor) -> Blocks:
        """See `BlockNetwork`."""
        shared = [tf.nn.relu(expert(x)) for expert in self._shared[tower]]
        blocks = []
        for own, gate, head in zip(
            self._specific[tower], self._gates[tower], self._heads[tower], strict=True
        ):
            experts = tf.stack([*shared, *(tf.nn.relu(expert(x)) for expert in own)], axis=1)
            blocks.append(head(tf.einsum("ne,new->nw", tf.nn.softmax(gate(x)), experts)))
        return blocks


def equal_blocks(dimension: int, n: int) -> list[int]:
    """`n` block sizes that add up to `dimension` and differ by at most one."""
    return [dimension // n + (k < dimension % n) for k in range(n)]


def normalised(blocks: Blocks) -> Blocks:
    """The blocks, each L2-normalised by itself."""
    return [tf.math.l2_normalize(block, axis=1, epsilon=1e-12) for block in blocks]
