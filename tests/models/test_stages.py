"""The cascade on a checkerboard world: nothing upstream moves, and the known answer is learned."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import losses, stages
from models.batches import Batch, BatchMaker
from models.held_out import HeldOut
from models.packing import TensorBatch
from models.settings import ModelSettings, NegativeSettings, StageSettings, ValidationSettings
from models.stages import FrozenWeightsMovedError, StageTask, TrainingData, train_stage
from models.towers import RATES, STRENGTHS, TwoTower
from tests.models.logs import offsets_of

SAMPLED = NegativeSettings(kind="sampled", random=24)


def _masks(owners_of: Any, towers: TwoTower, stage: int) -> dict[str, np.ndarray]:
    """What `stage` owned when the owners were `owners_of`, in the shape of the weights."""
    now = towers.owners
    towers.owners = owners_of
    try:
        return {
            name: np.broadcast_to(mask, towers.weights[name].shape).copy()
            for name, mask in towers.trainable_masks(stage).items()
        }
    finally:
        towers.owners = now


def _task(cascade: Any, stage: int, **changes: Any) -> StageTask:
    settings = cascade.settings[stage].model_copy(update=changes)
    return StageTask(cascade.towers, cascade.data.item_features, stage, settings)


def _batch(cascade: Any, stage: int, kind: str = "exact") -> TensorBatch:
    towers = cascade.towers
    maker = BatchMaker(
        cascade.data.timelines,
        cascade.data.ordered,
        stage,
        towers.spec.towers,
        cascade.settings[stage].model_copy(update={"user_id_dropout": 0.0}),
        NegativeSettings.parse({"kind": kind, "random": 16}),
        towers.spec.n_items,
        towers.spec.n_users,
        seed=3,
    )
    batch: Batch = next(maker.batches())
    return tf.nest.map_structure(tf.constant, vars(batch))


# --- nothing upstream moves -----------------------------------------------------------------


@pytest.mark.parametrize("earlier", [0, 1])
def test_blocks_of_a_finished_stage_are_bit_identical_after_every_later_one(
    cascade: Any, earlier: int
) -> None:
    for later in range(earlier + 1, 3):
        for side in ("users", "items"):
            before = cascade.blocks[earlier][side, earlier]
            after = cascade.blocks[later][side, earlier]
            assert before.shape == after.shape
            assert before.shape[1] > 0
            assert before.tobytes() == after.tobytes(), (side, earlier, later)


@pytest.mark.parametrize("earlier", [0, 1])
def test_weights_of_a_finished_stage_are_bit_identical_after_every_later_one(
    cascade: Any, earlier: int
) -> None:
    finished = _masks(cascade.owners[earlier], cascade.towers, earlier)
    for later in range(earlier + 1, 3):
        for name, mask in finished.items():
            before, after = cascade.weights[earlier][name], cascade.weights[later][name]
            assert np.array_equal(before[mask], after[mask]), (name, later)
        for name, owners in cascade.owners[earlier].items():
            kept = owners == earlier
            assert np.array_equal(cascade.owners[later][name][kept], owners[kept])


def test_each_stage_did_move_what_it_owns(cascade: Any) -> None:
    """Guards the two tests above: frozen must not mean that nothing was trained."""
    for stage in (1, 2):
        before, after = cascade.blocks[stage - 1], cascade.blocks[stage]
        owned = _masks(cascade.owners[stage], cascade.towers, stage)
        for name, mask in owned.items():
            if not cascade.towers.weights[name].trainable:  # counted or chosen
                continue
            assert mask.any(), name
            # Ids are hidden often and a row may never be drawn: most of it has to move.
            moved = cascade.weights[stage - 1][name][mask] != cascade.weights[stage][name][mask]
            assert moved.mean() > 0.5, name
        kept = cascade.owners[stage]["output"] == stage
        assert kept.any()
        assert not np.array_equal(before["users", stage][:, :1], after["users", stage][:, :1])


def test_blocks_share_the_dimension(cascade: Any) -> None:
    sizes = cascade.towers.block_sizes()
    assert sum(sizes) == 24
    assert min(sizes) >= 2
    # Beside what it owns of the outputs, every stage has a coordinate for rates.
    assert [report.owned["output"] + 1 for report in cascade.reports] == sizes


def test_reports_tell_what_happened(cascade: Any) -> None:
    for stage, report in enumerate(cascade.reports):
        assert (report.stage, report.objective) == (stage, cascade.settings[stage].name)
        assert report.settings["tau"] == 0.6
    first, second, third = cascade.reports
    assert [phase.name for phase in first.phases] == ["train", "recover"]
    assert [phase.name for phase in second.phases] == ["train", "recover"]
    assert [len(phase.fitted.losses) for phase in first.phases] == [12, 3]
    positives = [len(cascade.data.timelines.positives(stage)) for stage in range(3)]
    for level, report in enumerate(cascade.reports):
        for phase in report.phases:
            # A round is eight batches, of later objectives the share that their positives are.
            steps = math.ceil(8 * positives[level] / positives[0])
            assert phase.fitted.steps == steps * len(phase.fitted.losses)
            assert phase.fitted.recalls == [], "nothing was held out"
            assert phase.fitted.kept_round == len(phase.fitted.losses)
            assert phase.positives == positives[level], "recovery_share is 1 by default"
            seconds = phase.fitted.round_seconds
            assert len(seconds) == len(phase.fitted.losses)
            assert sorted(seconds) == seconds
            assert seconds[0] > 0
            assert seconds[-1] <= phase.fitted.seconds
        losses = report.phases[0].fitted.losses
        assert np.all(np.isfinite(losses))
        assert losses[-1] < losses[0]
    assert len({first.upstream_sha256, second.upstream_sha256, third.upstream_sha256}) == 3
    trained = [12, *(min(12, math.ceil(positives[0] / positives[k])) for k in (1, 2))]
    assert [len(report.phases[0].fitted.losses) for report in cascade.reports] == trained
    assert len(cascade.told) == sum(trained) + 3 * 2
    assert cascade.told[0].startswith("exposure: train round 1/12, loss ")


def test_reports_tell_when_stages_started(cascade: Any) -> None:
    moments = [report.started for report in cascade.reports]
    assert 0 < time.time() - moments[2] < 3600, "seconds since the epoch"
    for report, later in itertools.pairwise(cascade.reports):
        assert report.started + sum(p.fitted.seconds for p in report.phases) <= later.started


def test_reports_tell_what_was_pruned(cascade: Any) -> None:
    for stage, report in enumerate(cascade.reports[:2]):
        owners, before = cascade.owners[stage], cascade.owners[stage - 1] if stage else None
        assert set(report.pruned) == set(report.layers) == set(owners)
        for name, layer in report.pruned.items():
            assert report.layers[name] == len(owners[name])
            owned = len(owners[name]) if before is None else int(np.sum(before[name] == stage))
            assert len(layer.importance) == owned
            assert layer.importance == sorted(layer.importance)
            assert layer.freed == int(np.sum(owners[name] == stage + 1))
            assert layer.freed + report.owned[name] == owned
            # CPP: what was freed is a prefix of the importances, and at most tau of their sum.
            mass = sum(layer.importance[: layer.freed])
            assert mass <= 0.6 * sum(layer.importance) * (1 + 1e-9)
            assert mass + layer.importance[layer.freed] > 0.6 * sum(layer.importance)
    json.dumps([dataclasses.asdict(report) for report in cascade.reports])  # it becomes stage.json


def test_the_last_stage_is_neither_pruned_nor_recovered(cascade: Any) -> None:
    assert cascade.reports[2].pruned == {}
    assert [phase.name for phase in cascade.reports[2].phases] == ["train"]
    for name, owners in cascade.owners[2].items():
        assert np.array_equal(owners, cascade.owners[1][name])
        assert owners.max() == 2


# --- gradients and the optimiser ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "sampled"])
@pytest.mark.parametrize("head", ["standalone", "increment"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_are_exactly_zero_for_frozen_slots_and_reach_the_owned(
    cascade: Any, stage: int, head: str, kind: str
) -> None:
    towers = cascade.towers
    task = _task(cascade, stage, head=head)
    with tf.GradientTape() as tape:
        loss = task.compute_loss((_batch(cascade, stage, kind),), training=True)
    gradients = task.masked(tape.gradient(loss, task.moving))
    learnt = {name: weight for name, weight in towers.weights.items() if weight.trainable}
    assert towers.weights.keys() - learnt.keys() == {RATES, STRENGTHS}
    owned = _masks(towers.owners, towers, stage)
    for (name, weight), gradient in zip(learnt.items(), gradients, strict=True):
        assert gradient is not None, name
        dense = tf.convert_to_tensor(gradient).numpy()
        assert dense.shape == weight.shape
        assert np.all(dense[~owned[name]] == 0.0), name
        assert np.any(dense[owned[name]] != 0.0), name


def test_every_phase_starts_with_a_fresh_optimiser(cascade: Any) -> None:
    started = cascade.optimisers
    assert [phase.stage for phase in started] == [0, 0, 1, 1, 2]  # train and recover; the last
    assert len({id(phase.optimiser) for phase in started}) == 3, "one for each stage"
    for note in started:
        assert len(note.norms) > 2
        assert all(norm == 0.0 for norm in note.norms), "no step and no moment from before"
    for stage, report in enumerate(cascade.reports):
        optimiser = [note for note in started if note.stage == stage][-1].optimiser
        last = report.phases[-1].fitted.steps
        assert int(optimiser.iterations.numpy()) == last, "only the last phase's were counted"


@pytest.mark.parametrize("stage", [0, 1])
def test_frozen_slots_have_no_moments(cascade: Any, stage: int) -> None:
    """Of recovery, when the stage owns only what it keeps."""
    optimiser = next(p for p in reversed(cascade.optimisers) if p.stage == stage).optimiser
    owned = _masks(cascade.owners[stage], cascade.towers, stage)
    moments = 0
    learnt = [name for name, weight in cascade.towers.weights.items() if weight.trainable]
    for name in learnt:
        mask = owned[name]
        for slot in ("m", "v"):
            moment = optimiser.get_slot(cascade.towers.weights[name], slot).numpy()
            assert np.all(moment[~mask] == 0.0), name
            moments += int(np.any(moment[mask] != 0.0))
    assert moments == 2 * len(learnt)


# --- seeds ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_seed_gives_one_network_and_another_seed_another(world: Any, cascade: Any) -> None:
    again, other = world.train(seed=1), world.train(seed=2, n_stages=1)
    for name, weight in cascade.weights[-1].items():
        assert weight.tobytes() == again.weights[-1][name].tobytes(), name
    assert not np.array_equal(cascade.weights[0]["history"], other.weights[0]["history"])
    hashes = [report.upstream_sha256 for report in cascade.reports]
    assert [report.upstream_sha256 for report in again.reports] == hashes


@pytest.mark.slow
def test_sampled_negatives_and_untimed_histories_follow_the_seed(world: Any) -> None:
    """These draw from the generator of the stage, which must be rebuilt from the seed."""
    runs = [
        world.train(seed=seed, negatives=SAMPLED, timed=False, n_stages=1, rounds=2)
        for seed in (5, 5, 6)
    ]
    first, again, other = (run.weights[-1] for run in runs)
    for name, weight in first.items():
        assert weight.tobytes() == again[name].tobytes(), name
    assert not np.array_equal(first["history"], other["history"])


# --- recovery -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
def test_recovery_moves_only_what_its_stage_keeps(cascade: Any, stage: int) -> None:
    kept = _masks(cascade.owners[stage], cascade.towers, stage)
    assert len(cascade.released) == 2, "nothing is released after the last stage"
    for name, after in cascade.weights[stage].items():
        moved = after != cascade.released[stage][name]
        assert not np.any(moved & ~kept[name]), name
        # Rates are counted after recovery. The first stage's count nothing without validation.
        assert np.any(moved[kept[name]]) == (name != STRENGTHS or stage > 0), name


def test_without_a_share_there_is_no_recovery(world: Any) -> None:
    report = world.train(n_stages=1, rounds=1, recovery_share=0.0).reports[0]
    assert [phase.name for phase in report.phases] == ["train"]


def test_recovery_trains_on_a_share_of_the_positives(world: Any) -> None:
    report = world.train(n_stages=1, rounds=1, recovery_rounds=1, recovery_share=0.3).reports[0]
    everything = len(world.data().timelines.positives(0))
    assert [phase.positives for phase in report.phases] == [everything, round(0.3 * everything)]


# --- validation -----------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False])
def test_a_split_sets_the_same_events_aside_for_every_stage(world: Any, timed: bool) -> None:
    whole = world.data(timed)
    model = ModelSettings(validation=ValidationSettings(share=0.2, max_queries=30))
    parts = [
        TrainingData.split(whole.timelines, timed, whole.item_features, model, seed)
        for seed in (1, 1, 2)
    ]
    first, again, other = parts
    assert np.array_equal(first.timelines.items, again.timelines.items)
    assert np.array_equal(first.held_out.targets, again.held_out.targets)
    assert not np.array_equal(first.held_out.owner, other.held_out.owner)
    for data in parts:
        assert data.ordered is timed
        assert data.item_features is whole.item_features
        assert len(data.held_out) == 30
        shown = data.timelines
        held = len(whole.timelines.positives(0)) - len(shown.positives(0))
        assert held / len(whole.timelines.positives(0)) == pytest.approx(0.2, abs=0.06)
        for owner, targets in zip(data.held_out.owner, data.held_out.targets, strict=True):
            left = shown.items[shown.offsets[owner] : shown.offsets[owner + 1]]
            assert not set(left.tolist()) & set(targets[targets >= 0].tolist())


def test_without_a_share_nothing_is_set_aside(world: Any) -> None:
    whole = world.data()
    model = ModelSettings(validation=ValidationSettings(share=0.0))
    data = TrainingData.split(whole.timelines, True, whole.item_features, model, 1)
    assert data.held_out is None
    assert data.timelines is whole.timelines


def test_validation_ranks_by_the_blocks_so_far_and_keeps_the_best_round(
    world: Any, cascade: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recall of the kept round is that of the network which the stage leaves behind."""
    monkeypatch.setattr(stages, "RECALL_AT", 2)  # of 48 items all would be found among 50
    whole = world.data()
    model = ModelSettings(
        validation=ValidationSettings(share=0.2, max_queries=40, round_steps=2, patience=2)
    )
    data = TrainingData.split(whole.timelines, True, whole.item_features, model, 1)
    # Every item that is met counts as bought, which nobody can foresee: no round is perfect.
    held: HeldOut = dataclasses.replace(
        data.held_out, target_levels=np.full_like(data.held_out.target_levels, 2)
    )
    data = dataclasses.replace(data, held_out=held)
    towers = world.towers()
    towers.owners = {name: owners.copy() for name, owners in cascade.owners[1].items()}
    for name, weight in towers.weights.items():
        weight.assign(cascade.weights[1][name])
    settings = cascade.settings[2].model_copy(update={"rounds": 8})
    task = StageTask(towers, data.item_features, 2, settings)
    fitted = train_stage(task, data, model, 1, lambda _: None).phases[0].fitted
    assert fitted.kept_round == int(np.argmax(fitted.recalls)) + 1
    maker = data.batch_maker(towers.spec, 2, settings, model.negatives, 0)
    most = min(8, math.ceil(1 / maker.share))  # a later stage trains no longer than that
    assert len(fitted.recalls) == min(most, fitted.kept_round + 2)
    recalls = []
    (inputs,) = held.user_inputs(10, 48)
    features = {name: tf.constant(ids) for name, ids in data.item_features.items()}
    outputs = towers.users(inputs), towers.items(tf.range(48), features)
    users, items = (
        np.concatenate([towers.learnt(side, k) for k in range(3)], axis=1) for side in outputs
    )
    for query, (owner, end) in enumerate(zip(held.owner, held.history_end, strict=True)):
        wanted = set(held.targets[query].tolist()) - {-1}
        scores = items @ users[query]
        scores[held.timelines.items[held.timelines.offsets[owner] : end]] = -np.inf
        found = set(np.argsort(-scores)[:2].tolist())
        recalls.append(len(found & wanted) / min(2, len(wanted)))
    assert len(set(fitted.recalls)) > 1, "this test needs rounds that differ"
    assert 0 < np.mean(recalls) < 1
    assert max(fitted.recalls) == pytest.approx(np.mean(recalls))


# --- the schedule ---------------------------------------------------------------------------


def _rounds(
    world: Any, cascade: Any, monkeypatch: pytest.MonkeyPatch, step: int, stage: int, **changes: Any
) -> list[int]:
    """Rounds of every phase of a stage, should validation move by `step` after every round."""
    monkeypatch.setattr(stages, "_validator", lambda *_: itertools.count(0, step).__next__)
    towers, data = world.towers(), world.data()
    if stage:
        owners = cascade.owners[stage - 1]
        towers.owners = {name: owner.copy() for name, owner in owners.items()}
    model = ModelSettings(validation=ValidationSettings(round_steps=1, patience=3))
    settings = cascade.settings[stage].model_copy(update={"rounds": 9, "recovery_rounds": 9})
    task = StageTask(towers, data.item_features, stage, settings.model_copy(update=changes))
    report = train_stage(task, data, model, 1, lambda _: None)
    return [len(phase.fitted.losses) for phase in report.phases]


def test_a_later_stage_trains_no_longer_than_a_round_of_the_first(
    world: Any, cascade: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timelines = world.data().timelines
    exposed, bought = (len(timelines.positives(level)) for level in (0, 2))
    longest = math.ceil(exposed / bought)
    assert 1 < longest < 9
    of = partial(_rounds, world, cascade, monkeypatch, 1)
    assert of(2) == [longest]
    assert of(2, rounds=1) == [1]
    assert of(0, recovery_share=0.0) == [9]


# --- faults ---------------------------------------------------------------------------------


class _LeakyTask(StageTask):
    """Forgets the mask, as a mistake in the masks would."""

    def masked(self, gradients: list[Any]) -> list[Any]:
        return gradients


def test_a_stage_that_moves_frozen_weights_is_refused(world: Any, cascade: Any) -> None:
    towers = world.towers()
    towers.owners = {name: owners.copy() for name, owners in cascade.owners[0].items()}
    for name, weight in towers.weights.items():
        weight.assign(cascade.weights[0][name])
    fast = cascade.settings[1].model_copy(update={"rounds": 1, "recovery_share": 0.0})
    task = _LeakyTask(towers, cascade.data.item_features, 1, fast)
    with pytest.raises(FrozenWeightsMovedError, match="before 'click' changed"):
        train_stage(task, cascade.data, cascade.model, 1, lambda _: None)


def test_the_hash_of_what_is_frozen_sees_one_changed_bit_and_only_there(cascade: Any) -> None:
    towers = cascade.towers
    before = stages.frozen_sha256(towers, 2)
    owned = _masks(towers.owners, towers, 1)
    for name, mask in owned.items():
        weight = towers.weights[name]
        value = weight.numpy().copy()
        changed = value.copy()
        place = tuple(np.argwhere(mask)[0])
        changed[place] = np.nextafter(changed[place], np.float32(np.inf))
        weight.assign(changed)
        assert stages.frozen_sha256(towers, 2) != before, name
        weight.assign(value)
    for name, mask in _masks(towers.owners, towers, 2).items():
        weight = towers.weights[name]
        value = weight.numpy().copy()
        weight.assign(np.where(mask, value + 1, value))
        assert stages.frozen_sha256(towers, 2) == before, name
        weight.assign(value)
    assert stages.frozen_sha256(towers, 2) == before


def test_an_objective_without_positives_is_refused_by_name(world: Any) -> None:
    data = world.data()
    data.timelines.targets[:] = np.minimum(data.timelines.targets, 0)
    task = StageTask(world.towers(), data.item_features, 1, StageSettings(name="click"))
    with pytest.raises(ValueError, match="objective 'click' has no positive"):
        train_stage(task, data, ModelSettings(), 1, lambda _: None)


# --- the loss of a batch --------------------------------------------------------------------


def _outputs(cascade: Any, batch: TensorBatch) -> tuple[np.ndarray, ...]:
    """Scores [B, C] of each block, from the towers' own blocks."""
    towers = cascade.towers
    features = {
        name: tf.gather(ids, batch["candidates"])
        for name, ids in cascade.data.item_features.items()
    }
    users = towers.users(stages.user_inputs(batch))
    items = towers.items(batch["candidates"], features)
    return tuple(
        towers.learnt(users, k).numpy() @ towers.learnt(items, k).numpy().T for k in range(3)
    )


@pytest.mark.parametrize("kind", ["exact", "sampled"])
@pytest.mark.parametrize("head", ["standalone", "increment"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_loss_of_a_stage_is_that_of_its_block_its_upstream_and_its_batch(
    cascade: Any, stage: int, gamma: float, head: str, kind: str
) -> None:
    batch = _batch(cascade, stage, kind)
    assert (len(batch["candidates"]) == 48) == (kind == "exact")
    task = _task(cascade, stage, gamma=gamma, head=head, scale=0.7, temperature=0.2)
    scores = _outputs(cascade, batch)
    upstream = sum(scores[:stage])
    own = scores[stage]
    if stage and head == "increment":
        own = 0.7 * own + upstream
    drawn = Batch(**tf.nest.map_structure(lambda value: value.numpy(), batch))
    common = batch["positives"], batch["log_q"], offsets_of(drawn)
    expected = losses.softmax_loss(own / 0.2, *common)
    if stage and gamma:
        plain = expected
        expected = losses.margin_loss(own / 0.2, tf.constant(upstream), *common, gamma, 0.2)
        assert float(expected) > float(plain)
    assert float(task.compute_loss((batch,))) == pytest.approx(float(expected), rel=1e-4)


def test_vectors_are_the_blocks_so_far(cascade: Any) -> None:
    timelines = cascade.data.timelines
    held = HeldOut.of(timelines, 20, 0)
    (inputs,) = held.user_inputs(10, 48)
    towers = cascade.towers
    features = {name: tf.constant(ids) for name, ids in cascade.data.item_features.items()}
    outputs = towers.users(inputs), towers.items(tf.range(48), features)
    for stage in range(3):
        users, items = _task(cascade, stage).vectors(held)
        blocks = [[towers.learnt(side, k).numpy() for k in range(stage + 1)] for side in outputs]
        expected = sum(u @ i.T for u, i in zip(*blocks, strict=True))
        np.testing.assert_allclose(users @ items.T, expected, rtol=1e-4, atol=1e-5)


def test_vectors_lose_what_is_given_away(cascade: Any) -> None:
    """The step, traced once, reads no more of the outputs that were freed since."""
    held = HeldOut.of(cascade.data.timelines, 20, 0)
    towers = TwoTower(cascade.towers.spec, seed=5)
    task = StageTask(towers, cascade.data.item_features, 0, cascade.settings[0])
    towers.release(0, 0.5, seed=2)
    task.take_ownership()
    fresh = StageTask(towers, cascade.data.item_features, 0, cascade.settings[0])
    assert 0 < towers.block_sizes()[0] < 24
    for vectors, expected in zip(task.vectors(held), fresh.vectors(held), strict=True):
        assert vectors.shape[1] == towers.block_sizes()[0] - 1  # the rates are not learnt
        np.testing.assert_array_equal(vectors, expected)


# --- the known answer is found --------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_objective_recovers_the_checkerboard(world: Any, cascade: Any, level: int) -> None:
    assert world.recall(cascade.towers, cascade.data, level, upto=False) > 0.9


def test_an_untrained_network_does_not_know_the_checkerboard(world: Any) -> None:
    assert world.recall(world.towers(), world.data(), 0, upto=False) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "upto", "least"),
    [
        ({"negatives": SAMPLED}, False, 0.85),
        ({"head": "increment"}, True, 0.85),
        ({"negatives": SAMPLED, "head": "increment"}, True, 0.85),
        # Without times all of a user's items are removed from the negatives: only the two of
        # twelve that the user lacks tell what is bought. By chance a quarter would be right.
        ({"timed": False}, False, 0.7),
        ({"hidden": (24,)}, False, 0.85),
        ({"gamma": 0.0}, False, 0.85),
    ],
    ids=["sampled", "increment", "sampled increment", "untimed", "hidden layer", "no margin"],
)
def test_every_variant_recovers_the_checkerboard_and_keeps_upstream(
    world: Any, changes: dict[str, Any], upto: bool, least: float
) -> None:
    trained = world.train(**changes)
    recalls = [world.recall(trained.towers, trained.data, level, upto) for level in range(3)]
    assert min(recalls) > least, recalls
    for side in ("users", "items"):
        assert np.array_equal(trained.blocks[0][side, 0], trained.blocks[2][side, 0])
        assert np.array_equal(trained.blocks[1][side, 1], trained.blocks[2][side, 1])
