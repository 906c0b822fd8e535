from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.ablation import VARIANTS, run_variant
from benchmarks.methods import CHOSEN, methods
from benchmarks.networks import MixtureOfExperts, SharedBottom, equal_blocks
from benchmarks.outcome import METRICS, measure, rank
from benchmarks.pareto import Point, front, sweep
from benchmarks.quality import quality_trials, run_method
from benchmarks.split import Split
from benchmarks.training import Goal, JointTask, block_mask
from models.batches import BatchMaker
from models.settings import StageSettings
from models.towers import UserInputs
from schemas.settings import ConfigError
from tests.models.logs import offsets_of

OBJECTIVES = ["exposure", "click", "conversion"]
CLASSICAL = ("popularity", "item-knn", "ials", "ease")
TOWERS = [name for name in methods(OBJECTIVES) if name not in CLASSICAL]


def blocks_of(network, split: Split) -> list[np.ndarray]:
    inputs = next(iter(split.test.user_inputs(12, split.spec.n_users)))
    return [block.numpy() for block in network.user_blocks(inputs)]


def test_every_method_of_the_issue_is_there():
    assert list(methods(OBJECTIVES)) == [
        "csmf",
        "single-exposure",
        "single-click",
        "single-conversion",
        "pooled",
        "shared-bottom",
        "mmoe",
        "ple",
        "esmm",
        "sequential",
        "packnet",
        *CLASSICAL,
    ]


@pytest.mark.parametrize("name", ["single-conversion", "pooled", "mmoe"])
def test_an_objective_without_positives_is_refused(split: Split, name: str):
    clicks_at_most = dataclasses.replace(
        split.data.timelines, targets=np.minimum(split.data.timelines.targets, 1)
    )
    data = dataclasses.replace(split.data, timelines=clicks_at_most)
    with pytest.raises(ValueError, match="objective 2 has no positive"):
        run_method(name, dataclasses.replace(split, data=data), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TOWERS, *CLASSICAL])
def test_each_method_beats_chance_and_says_what_it_costs(split: Split, name: str):
    outcomes = run_method(name, split, seed=1)
    popularity = run_method("popularity", split, seed=1)[0].metrics["exposure"]["recall@10"]
    # Ten of a group's twenty items, some of them seen: chance within the right group is over .5.
    recall = outcomes[0].metrics["exposure"]["recall@10"]
    if name not in ("popularity", "single-conversion", "single-click", "sequential"):
        assert recall > 2 * popularity
    for outcome in outcomes:
        assert set(outcome.metrics) == set(OBJECTIVES)
        assert all(set(of) == set(METRICS) for of in outcome.metrics.values())
        assert all(0 <= value <= 1 for of in outcome.metrics.values() for value in of.values())
        assert outcome.cost.parameters > 0
        whole = outcome.weighting == "a copy per objective, K indexes"
        expected = {24 * 3} if whole else {24, None}
        assert outcome.cost.index_dimension in expected


@pytest.mark.slow
def test_the_first_head_of_csmf_is_what_its_exposure_block_gives_alone(split: Split):
    by_weighting = {outcome.weighting: outcome for outcome in run_method("csmf", split, seed=1)}
    chosen, first = by_weighting[CHOSEN], by_weighting["first head alone"]
    assert set(
        first.details["weights"].values() and [tuple(w) for w in first.details["weights"].values()]
    ) == {(1.0, 0.0, 0.0)}
    assert sum(chosen.details["blocks"]) == 24
    assert chosen.cost == first.cost


@pytest.mark.slow
def test_variants_change_what_they_say(split: Split):
    applied = VARIANTS["no margin"].applied(split)
    assert [stage.gamma for stage in applied.config.objectives] == [0.1, 0.0, 0.0]
    assert VARIANTS["no recency"].applied(split).spec.towers.recency == ()
    assert VARIANTS["sampled softmax"].applied(split).model.negatives.kind == "sampled"
    assert run_variant("no recovery", split, 1)[0].metrics["click"]["recall@50"] > 0


def test_every_variant_is_a_valid_configuration(split: Split):
    for variant in VARIANTS.values():
        variant.applied(split)


def test_trials_repeat_what_has_a_seed_and_refuse_unknown_methods():
    trials = quality_trials(OBJECTIVES, ["csmf", "ease"], [64, 128], seeds=3)
    assert [(t.row, t.dimension, t.seed) for t in trials] == [
        ("csmf", 64, 1),
        ("ease", 64, 1),
        ("csmf", 64, 2),
        ("csmf", 64, 3),
        ("csmf", 128, 1),
        ("ease", 128, 1),
        ("csmf", 128, 2),
        ("csmf", 128, 3),
    ]
    with pytest.raises(ConfigError, match=r"no method 'csfm'.*Did you mean 'csmf'"):
        quality_trials(OBJECTIVES, ["csfm"], [64], seeds=1)


def test_equal_blocks_share_the_dimension():
    assert equal_blocks(64, 3) == [22, 21, 21]
    assert sum(equal_blocks(128, 3)) == 128


@pytest.mark.parametrize(("shared", "specific"), [(3, 0), (1, 1)])
def test_expert_networks_against_numpy(split: Split, shared: int, specific: int):
    network = MixtureOfExperts(split.spec, 5, [8, 8, 8], shared, specific)
    inputs = next(iter(split.test.user_inputs(12, split.spec.n_users)))
    x = network.tables.embed_users(inputs).numpy()

    def layer(dense, value):
        return value @ dense.kernel.numpy() + dense.bias.numpy()

    for k, block in enumerate(blocks_of(network, split)):
        experts = [*network._shared["user"], *network._specific["user"][k]]
        gate = np.exp(layer(network._gates["user"][k], x))
        gate /= gate.sum(axis=1, keepdims=True)
        mixed = sum(
            gate[:, [e]] * np.maximum(layer(expert, x), 0) for e, expert in enumerate(experts)
        )
        raw = layer(network._heads["user"][k], mixed)
        np.testing.assert_allclose(
            block, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-5
        )


def test_networks_do_not_train_the_heads_they_do_not_use(split: Split):
    network = SharedBottom(split.spec, 1, [8, 8, 8])
    moving = {id(weight) for weight in network.moving()}
    assert id(network.tables.weights["user_head/kernel"]) not in moving
    assert id(network.tables.weights["history"]) in moving
    hidden = split.spec.towers.model_copy(update={"hidden": (8,)})
    with pytest.raises(ValueError, match="no hidden layers"):
        SharedBottom(dataclasses.replace(split.spec, towers=hidden), 1, [8, 8, 8])


def test_a_joint_loss_is_the_weighted_sum_of_its_goals(split: Split, stage: StageSettings):
    network = SharedBottom(split.spec, 1, [8, 8, 8])
    batches = []
    for level in (0, 1):
        maker = BatchMaker(
            split.data.timelines, True, level, split.spec.towers, stage,
            split.model.negatives, split.spec.n_items, split.spec.n_users, seed=level,
        )  # fmt: skip
        batch = next(maker.batches())
        offsets = offsets_of(batch)
        batches.append(
            {f.name: tf.nest.map_structure(tf.constant, getattr(batch, f.name))
             for f in dataclasses.fields(batch)}
        )  # fmt: skip

    def loss(goals: list[Goal], inputs: list) -> float:
        return float(JointTask(network, {}, goals, stage).compute_loss(tuple(inputs)))

    own, summed = Goal(0, (0,), 2.0), Goal(1, (0, 1), 0.5)
    together = loss([own, summed], batches)
    apart = loss([own], batches[:1]) + loss([summed], batches[1:])
    assert together == pytest.approx(apart, rel=1e-6)

    # The sum of two blocks' scores, by hand.
    batch = batches[1]
    users = network.user_blocks(UserInputs(
        history_ranks=tf.range(batch["history_items"].shape[1])[None, :],
        **{
            name: batch[name]
            for name in ("history_items", "history_levels", "user_ids", "features")
        },
    ))  # fmt: skip
    items = network.item_blocks(batch["candidates"], {})
    scores = sum(users[k].numpy() @ items[k].numpy().T for k in (0, 1)) / stage.temperature
    losses, weights = [], []
    for row, positives in enumerate(batch["positives"].numpy()):
        kept = positives[positives >= 0]
        against = np.log(np.exp(scores[row] + offsets[row]).sum())
        losses += list(np.log1p(np.exp(against - scores[row][kept])) / np.sqrt(max(len(kept), 1)))
        weights += [1 / np.sqrt(len(kept))] * len(kept)
    assert loss([summed], batches[1:]) == pytest.approx(0.5 * sum(losses) / sum(weights), rel=1e-4)


def test_rankings_weigh_blocks_inside_one_inner_product(split: Split):
    rng = np.random.default_rng(0)
    users = rng.normal(size=(len(split.test), 5)).astype(np.float32)
    items = rng.normal(size=(split.spec.n_items, 5)).astype(np.float32)
    top = rank(split.test, users, items, [3, 2], [1.0, 2.5])
    scores = users[:, :3] @ items[:, :3].T + 2.5 * users[:, 3:] @ items[:, 3:].T
    rows, seen = split.test.seen(0, len(split.test))
    scores[rows, seen] = -np.inf
    np.testing.assert_array_equal(top[:, :10], np.argsort(-scores, axis=1)[:, :10])
    assert block_mask([3, 2], (1,)).tolist() == [0, 0, 0, 1, 1]
    metrics = measure(split.test, OBJECTIVES, lambda level: top)
    assert metrics["exposure"]["recall@10"] == pytest.approx(
        np.nanmean(split.test.recall(top, 0, 10))
    )


def test_the_front_is_what_nothing_beats():
    points = [
        Point("csmf", (1.0,), *xy) for xy in ((0.1, 0.9), (0.2, 0.8), (0.15, 0.7), (0.3, 0.1))
    ]
    assert [(p.first, p.second) for p in front(points)] == [(0.1, 0.9), (0.2, 0.8), (0.3, 0.1)]


@pytest.mark.slow
def test_the_sweep_starts_at_the_first_head(split: Split, tmp_path):
    from benchmarks.pareto import plot

    points = sweep(split, seed=1)
    assert points[0].weights == (1.0, 0.0, 0.0)
    first = next(o for o in run_method("csmf", split, seed=1) if o.weighting == "first head alone")
    assert points[0].first == pytest.approx(first.metrics["click"]["recall@50"])
    others = [Point("ease (x)", (), 0.4, 0.5)]
    plot(points, others, OBJECTIVES, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
