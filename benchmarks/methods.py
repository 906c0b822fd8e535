"""Every method of the quality table: trains on a split, ranks its test queries.

All towers have the same tables, inputs, negatives, loss, optimiser, early stopping and total index
dimension. The settings of the first objective hold for every tower; CSMF's later stages have
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from benchmarks.classical import fit_classical
from benchmarks.networks import BlockNetwork, MixtureOfExperts, SharedBottom, equal_blocks
from benchmarks.outcome import Cost, Outcome, measure, rank
from benchmarks.split import Split
from benchmarks.training import Goal, Trained, quiet, train_jointly
from benchmarks.weight_masks import WeightRule, train_weight_masked
from models.cascade import Cascade
from models.held_out import Vectors
from models.weighting import choose_weights, default_weights, item_blocks, user_blocks

Method = Callable[[Split, int], list[Outcome]]  # (split, seed)

CHOSEN = "weights chosen on validation"
_OWN = "own head"
_ONE = "one vector"
_WEIGHT_RECOVERY = 4  # rounds; here half of a stage's weights go, of CSMF's neurons a third


# --- CSMF --------------------------------------------------------------------------------------


def csmf(split: Split, seed: int) -> list[Outcome]:
    """The product's cascade at weights chosen on validation, at plain ones, its first head alone,
    and at weights chosen for it without the rates of items (`models.rates`)."""
    trained, seconds = train_cascade(split, seed)
    towers, names = trained.served, split.config.objective_names
    sizes = towers.block_sizes()
    cost = Cost(_size(towers.weights.values()), sum(sizes), seconds)
    items = item_blocks(towers, split.data.item_features)

    def at(test: Vectors, name: str, weights: Mapping[str, Sequence[float]]) -> Outcome:
        return _fused(split, test, items, sizes, [weights[n] for n in names], name, cost)

    test = user_blocks(towers, split.test)
    plain = default_weights(names)
    outcomes = [
        at(test, CHOSEN, plain | trained.weights(split.data, names)),
        at(test, "weights 1 up to the objective", plain),
        at(test, "first head alone", dict.fromkeys(names, plain[names[0]])),
    ]
    for network in (trained.chosen, trained.served):
        for stage in range(len(names)):
            network.set_strengths(stage, 1.0, 0.0)
    test = user_blocks(towers, split.test)
    weights = plain | trained.weights(split.data, names)
    return [*outcomes, at(test, f"{CHOSEN}, no rates", weights)]


def train_cascade(split: Split, seed: int) -> tuple[Cascade, float]:
    """(both networks after all stages, processor seconds)."""
    trained = Cascade.start(split.spec, seed)
    seconds = 0.0
    for stage, settings in enumerate(split.config.objectives):
        report = trained.train(split.data, stage, settings, split.model, seed, quiet)
        seconds += sum(phase.fitted.cpu_seconds for phase in report.phases)
    return trained, seconds


# --- tower baselines ---------------------------------------------------------------------------


def single_task(split: Split, seed: int, level: int) -> list[Outcome]:
    """One tower of the full dimension for one objective."""
    return _one_vector(split, seed, [Goal(level, (0,))])


def pooled(split: Split, seed: int) -> list[Outcome]:
    """One tower on the positives of all objectives together, an event counting at every level."""
    counts = [len(split.data.timelines.positives(k)) for k in range(split.spec.n_objectives)]
    goals = [Goal(k, (0,), n / sum(counts)) for k, n in enumerate(counts)]
    return _one_vector(split, seed, goals)


def sequential(split: Split, seed: int) -> list[Outcome]:
    """One tower, fine-tuned on one objective after the other, without masks."""
    network = _two_tower(split, seed)
    seconds = 0.0
    kept: list[tuple[Vectors, Vectors]] = []
    for level in range(split.spec.n_objectives):
        trained = _train(network, split, [Goal(level, (0,))], seed + level)
        seconds += trained.seconds
        kept.append((trained.task.users(split.test), trained.task.items()))
        # The next one starts from weights that have not seen the validation events.
        for weight, value in zip(trained.task.moving, trained.chosen, strict=True):
            weight.assign(value)
    last = _cost(network, seconds)
    every = Cost(last.parameters * len(kept), split.spec.towers.dimension * len(kept), seconds)
    sizes = network.block_sizes

    def final(level: int) -> npt.NDArray[np.int32]:
        return rank(split.test, *kept[-1], sizes, [1.0])

    def after_own_stage(level: int) -> npt.NDArray[np.int32]:
        return rank(split.test, *kept[level], sizes, [1.0])

    names = split.config.objective_names
    return [
        Outcome(_ONE, measure(split.test, names, final), last),
        Outcome(
            "a copy per objective, K indexes", measure(split.test, names, after_own_stage), every
        ),
    ]


def multi_task(
    split: Split, seed: int, make: Callable[[Split, int], BlockNetwork], sums: bool
) -> list[Outcome]:
    """A network with a block per objective, trained on all objectives at once.

    Args:
      split: the events.
      seed: of the training.
      make: the network.
      sums: objective k is scored by the sum of the blocks up to k, as in ESMM's product of
        probabilities (Ma et al., SIGIR 2018); else by its own block.
    """
    k = split.spec.n_objectives
    mixes = [tuple(range(level + 1)) if sums else (level,) for level in range(k)]
    network = make(split, seed)
    trained = _train(network, split, [Goal(i, mix) for i, mix in enumerate(mixes)], seed)
    own = [[float(block in mix) for block in range(k)] for mix in mixes]
    return _blocks_outcomes(split, network, trained, own)


def shared_bottom(split: Split, seed: int) -> BlockNetwork:
    """Shared tables, a head per objective."""
    return SharedBottom(split.spec, seed, _equal(split))


def mmoe(split: Split, seed: int) -> BlockNetwork:
    """Three shared experts, a gate and a head per objective."""
    return MixtureOfExperts(split.spec, seed, _equal(split), shared=3, specific=0)


def ple(split: Split, seed: int) -> BlockNetwork:
    """One shared expert and one per objective."""
    return MixtureOfExperts(split.spec, seed, _equal(split), shared=1, specific=1)


def packnet(split: Split, seed: int) -> list[Outcome]:
    """PackNet: single weights are pruned, a fixed share per layer, one objective after another."""
    return weight_level(split, seed, "fixed", share=0.5)


def weight_level(split: Split, seed: int, rule: WeightRule, share: float) -> list[Outcome]:
    """The cascade with owners of single weights; needs a forward pass per objective."""
    settings = split.config.objectives[0].model_copy(update={"recovery_rounds": _WEIGHT_RECOVERY})
    network, trained = train_weight_masked(
        split.spec, split.data, settings, split.model, seed, rule, share
    )
    own = np.eye(len(network.block_sizes)).tolist()
    return _blocks_outcomes(split, network, trained, own)


# --- outside the family ------------------------------------------------------------------------


def classical(split: Split, seed: int, name: str) -> list[Outcome]:
    """A method of `benchmarks.classical`, swept on the same validation events."""
    dimension = split.spec.towers.dimension
    result = fit_classical(
        name,
        split.data.timelines,
        split.validation,
        split.full,
        split.spec.n_items,
        dimension,
        seed,
    )
    metrics = measure(
        split.test,
        split.config.objective_names,
        lambda level: result.rankings(level, split.test),
    )
    cost = Cost(result.parameters, result.index_dimension, result.seconds)
    return [Outcome("settings chosen on validation", metrics, cost, {"settings": result.settings})]


def methods(objectives: Sequence[str]) -> dict[str, Method]:
    """Name -> method, in the order of the table."""
    networks: dict[str, tuple[Callable[[Split, int], BlockNetwork], bool]] = {
        "shared-bottom": (shared_bottom, False),
        "mmoe": (mmoe, False),
        "ple": (ple, False),
        "esmm": (shared_bottom, True),
    }
    table: dict[str, Method] = {"csmf": csmf}
    table |= {
        f"single-{name}": partial(single_task, level=level) for level, name in enumerate(objectives)
    }
    table["pooled"] = pooled
    table |= {
        name: partial(multi_task, make=make, sums=sums) for name, (make, sums) in networks.items()
    }
    table |= {"sequential": sequential, "packnet": packnet}
    table |= {
        name: partial(classical, name=name) for name in ("popularity", "item-knn", "ials", "ease")
    }
    return table


# --- shared ------------------------------------------------------------------------------------


def _train(network: BlockNetwork, split: Split, goals: Sequence[Goal], seed: int) -> Trained:
    settings = split.config.objectives[0]
    return train_jointly(network, split.data, goals, settings, split.model, seed)


def _two_tower(split: Split, seed: int) -> BlockNetwork:
    return SharedBottom(split.spec, seed, [split.spec.towers.dimension])


def _equal(split: Split) -> list[int]:
    return equal_blocks(split.spec.towers.dimension, split.spec.n_objectives)


def _one_vector(split: Split, seed: int, goals: Sequence[Goal]) -> list[Outcome]:
    network = _two_tower(split, seed)
    trained = _train(network, split, goals, seed)
    task = trained.task
    top = rank(split.test, task.users(split.test), task.items(), network.block_sizes, [1.0])
    metrics = measure(split.test, split.config.objective_names, lambda level: top)
    return [Outcome(_ONE, metrics, _cost(network, trained.seconds))]


def _blocks_outcomes(
    split: Split, network: BlockNetwork, trained: Trained, own: list[list[float]]
) -> list[Outcome]:
    """The heads as the method uses them, and with weights chosen as CSMF's are."""
    users, items = trained.task.users(split.test), trained.task.items()
    sizes = network.block_sizes
    chosen = [
        choose_weights(split.validation, *trained.validation, sizes, level)[0]
        for level in range(split.spec.n_objectives)
    ]
    cost = _cost(network, trained.seconds)
    return [
        _fused(split, users, items, sizes, weights, name, cost)
        for name, weights in ((_OWN, own), (CHOSEN, chosen))
    ]


def _fused(
    split: Split,
    users: Vectors,
    items: Vectors,
    sizes: Sequence[int],
    weights: Sequence[Sequence[float]],
    name: str,
    cost: Cost,
) -> Outcome:
    objectives = split.config.objective_names
    metrics = measure(
        split.test,
        objectives,
        lambda level: rank(split.test, users, items, sizes, weights[level]),
    )
    by_objective = dict(zip(objectives, weights, strict=True))
    return Outcome(name, metrics, cost, {"blocks": sizes, "weights": by_objective})


def _cost(network: BlockNetwork, seconds: float) -> Cost:
    return Cost(_size(network.moving()), sum(network.block_sizes), seconds)


def _size(weights: Iterable[tf.Variable]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)
