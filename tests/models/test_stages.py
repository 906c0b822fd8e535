"""The cascade on a checkerboard world: nothing upstream moves, and the known answer is learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import stages
from models.settings import NegativeSettings, StageSettings
from models.stages import FrozenWeightsMovedError, StageTask, train_stage
from models.towers import TwoTower

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
    data = cascade.data
    return StageTask(
        cascade.towers,
        data,
        stage,
        cascade.settings[stage].model_copy(update=changes),
        cascade.negatives,
        data.timelines.positives(stage),
        seed=3,
    )


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
    assert [report.owned["output"] for report in cascade.reports] == sizes


def test_reports_tell_what_happened(cascade: Any) -> None:
    for stage, report in enumerate(cascade.reports):
        assert (report.stage, report.objective) == (stage, cascade.settings[stage].name)
        assert report.settings["tau"] == 0.6
    first, second, third = cascade.reports
    assert [phase.name for phase in first.phases] == ["train", "recover"]
    assert [phase.name for phase in second.phases] == ["train", "recover"]
    assert [len(phase.losses) for phase in first.phases] == [12, 3]
    positives = [len(cascade.data.timelines.positives(stage)) for stage in range(3)]
    assert [report.phases[0].positives for report in cascade.reports] == positives
    assert first.phases[1].positives == round(0.3 * positives[0])
    for report in cascade.reports:
        assert np.all(np.isfinite(report.phases[0].losses))
        assert report.phases[0].losses[-1] < report.phases[0].losses[0]
    assert len({first.upstream_sha256, second.upstream_sha256, third.upstream_sha256}) == 3
    assert len(cascade.told) == 12 * 3 + 3 * 2
    assert cascade.told[0].startswith("exposure: train epoch 1/12, loss ")


def test_the_last_stage_is_neither_pruned_nor_recovered(cascade: Any) -> None:
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
    task = StageTask(
        towers,
        cascade.data,
        stage,
        cascade.settings[stage].model_copy(update={"head": head, "user_id_dropout": 0.0}),
        NegativeSettings(kind=kind, random=16),
        cascade.data.timelines.positives(stage),
        seed=3,
    )
    with tf.GradientTape() as tape:
        loss = task.compute_loss(
            tf.constant(cascade.data.timelines.positives(stage)[:64], tf.int32), training=True
        )
    gradients = task.masked_gradients(tape, loss)
    assert len(gradients) == len(towers.weights)
    owned = _masks(towers.owners, towers, stage)
    for (name, weight), gradient in zip(towers.weights.items(), gradients, strict=True):
        assert gradient is not None, name
        dense = tf.convert_to_tensor(gradient).numpy()
        assert dense.shape == weight.shape
        assert np.all(dense[~owned[name]] == 0.0), name
        assert np.any(dense[owned[name]] != 0.0), name


def test_every_phase_gets_a_fresh_optimiser(cascade: Any) -> None:
    compiled = cascade.optimisers
    assert [phase.stage for phase in compiled] == [0, 0, 1, 1, 2]  # train and recover; the last
    assert len({id(phase.optimiser) for phase in compiled}) == 5
    phases = [(phase, report.settings) for report in cascade.reports for phase in report.phases]
    for note, (phase, settings) in zip(compiled, phases, strict=True):
        assert all(norm == 0.0 for norm in note.norms), "no step and no moment from before"
        steps = -(-phase.positives // settings["batch_size"]) * len(phase.losses)
        assert int(note.optimiser.iterations.numpy()) == steps, "only its own steps were counted"
        assert note.optimiser.weight_decay in (None, 0.0)


@pytest.mark.parametrize("stage", [0, 1])
def test_frozen_slots_have_no_moments(cascade: Any, stage: int) -> None:
    """Of recovery, when the stage owns only what it keeps."""
    optimiser = next(p for p in reversed(cascade.optimisers) if p.stage == stage).optimiser
    owned = _masks(cascade.owners[stage], cascade.towers, stage)
    moments = 0
    for name, mask in owned.items():
        for variable in optimiser.variables:
            # Named Adam/m/<weight>:0 and Adam/v/<weight>:0.
            if variable.name.split("/", 2)[-1] == f"{name.replace('/', '_')}:0":
                assert np.all(variable.numpy()[~mask] == 0.0), name
                moments += int(np.any(variable.numpy()[mask] != 0.0))
    assert moments == 2 * len(owned)


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
        world.train(seed=seed, negatives=SAMPLED, timed=False, n_stages=1, epochs=2)
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
        assert np.any(moved[kept[name]]), name


def test_without_a_share_there_is_no_recovery(world: Any) -> None:
    report = world.train(n_stages=1, epochs=1, recovery_share=0.0, batch_size=256).reports[0]
    assert [phase.name for phase in report.phases] == ["train"]


# --- faults ---------------------------------------------------------------------------------


class _LeakyTask(StageTask):
    """Forgets the mask, as a mistake in the masks would."""

    def masked_gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[Any]:
        return tape.gradient(loss, list(self._towers.weights.values()))


def test_a_stage_that_moves_frozen_weights_is_refused(
    world: Any, cascade: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = world.towers()
    towers.owners = {name: owners.copy() for name, owners in cascade.owners[0].items()}
    for name, weight in towers.weights.items():
        weight.assign(cascade.weights[0][name])
    monkeypatch.setattr(stages, "StageTask", _LeakyTask)
    fast = cascade.settings[1].model_copy(
        update={"epochs": 1, "recovery_share": 0.0, "batch_size": 512}
    )
    with pytest.raises(FrozenWeightsMovedError, match="before 'click' changed"):
        train_stage(towers, cascade.data, 1, fast, cascade.negatives, 1, lambda _: None)


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
    with pytest.raises(ValueError, match="objective 'click' has no positive"):
        train_stage(
            world.towers(),
            data,
            1,
            StageSettings(name="click"),
            NegativeSettings(),
            1,
            lambda _: None,
        )


# --- the loss of a batch --------------------------------------------------------------------


def _candidates(cascade: Any, stage: int, negatives: NegativeSettings) -> Any:
    """The events of one batch, and what its loss is computed from; dropout off."""
    task = StageTask(
        cascade.towers,
        cascade.data,
        stage,
        cascade.settings[stage],
        negatives,
        cascade.data.timelines.positives(stage),
        seed=4,
    )
    captured: dict[str, Any] = {}

    def capture(logits: Any, positives: Any, removed: Any, log_q: Any = None) -> tf.Tensor:
        captured.update(logits=logits, positives=positives, removed=removed, log_q=log_q)
        return tf.constant(0.0)

    events = cascade.data.timelines.positives(stage)[::7]
    original = stages.losses.softmax_loss
    stages.losses.softmax_loss = capture
    try:
        task.compute_loss(tf.constant(events, tf.int32))
    finally:
        stages.losses.softmax_loss = original
    return events, captured


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_no_item_the_user_knows_is_a_negative(
    cascade: Any, world: Any, stage: int, timed: bool
) -> None:
    case = dataclasses.replace(cascade, data=world.data(timed))
    events, captured = _candidates(case, stage, NegativeSettings(kind="exact"))
    timelines = case.data.timelines
    assert captured["log_q"] is None
    assert np.array_equal(captured["positives"], timelines.items[events])
    removed = captured["removed"].numpy()
    best = timelines.best_levels()
    for event, row in zip(events, removed, strict=True):
        mine = timelines.timeline_of == timelines.timeline_of[event]
        seen = mine & (timelines.times < timelines.times[event]) if timed else mine
        known = set(timelines.items[seen | (mine & (best >= stage))].tolist())
        assert set(np.flatnonzero(row).tolist()) == known


def test_sampled_candidates_are_the_batch_and_random_items(cascade: Any) -> None:
    events, captured = _candidates(cascade, 1, SAMPLED)
    timelines = cascade.data.timelines
    n = len(events)
    assert captured["logits"].shape == (n, n + 24)
    assert captured["positives"].numpy().tolist() == list(range(n))
    targets = timelines.items[events]
    # logQ of the in-batch columns: B * p_j + R / N, p_j the item's share of the positives.
    positives = timelines.items[timelines.positives(1)]
    share = np.array([np.mean(positives == item) for item in targets])
    np.testing.assert_allclose(
        captured["log_q"].numpy()[:n], np.log(n * share + 24 / 48), rtol=1e-5
    )
    # A positive of another row that is the row's own target, or known to it, is no negative.
    removed = captured["removed"].numpy()[:, :n]
    best = timelines.best_levels()
    for row, event in enumerate(events):
        mine = timelines.timeline_of == timelines.timeline_of[event]
        known = timelines.items[
            mine & ((timelines.times < timelines.times[event]) | (best >= 1))
        ].tolist()
        expected = [item in known or item == targets[row] for item in targets]
        assert removed[row].tolist() == expected


def test_a_target_whose_level_is_reached_in_a_later_chunk_is_no_negative(
    cascade: Any, world: Any
) -> None:
    """The targets of a chunk know more than its events: the purchase may lie in the next one."""
    data = world.data()
    data.timelines.levels[:] = 0
    case = dataclasses.replace(cascade, data=data)
    events, captured = _candidates(case, 2, SAMPLED)
    targets = data.timelines.items[events]
    removed = captured["removed"].numpy()[:, : len(events)]
    same = targets[:, None] == targets[None, :]
    assert same.sum() > len(events), "this test needs a target that occurs twice"
    assert np.all(removed[same])


def test_margins_raise_negatives_and_never_the_positive(cascade: Any) -> None:
    plain = _scores(cascade, 1, gamma=0.0)
    with_margin = _scores(cascade, 1, gamma=0.2)
    difference = (with_margin - plain).numpy()
    positives = cascade.data.timelines.items[cascade.data.timelines.positives(1)[:8]]
    rows = np.arange(8)
    assert np.all(difference[rows, positives] == 0.0)
    negatives = np.ones_like(difference, bool)
    negatives[rows, positives] = False
    assert np.all((difference[negatives] > 0) & (difference[negatives] < 0.2))


def test_an_increment_head_adds_the_upstream_scores(cascade: Any) -> None:
    standalone = _scores(cascade, 2, gamma=0.0)
    increment = _scores(cascade, 2, gamma=0.0, head="increment")
    users, items = _outputs(cascade, 2)
    towers = cascade.towers
    upstream = sum(
        towers.block(users, k).numpy() @ towers.block(items, k).numpy().T for k in (0, 1)
    )
    np.testing.assert_allclose(increment - standalone, upstream, atol=1e-5)


def test_the_first_stage_knows_no_margin_and_no_upstream(cascade: Any) -> None:
    plain = _scores(cascade, 0, gamma=0.0)
    assert np.array_equal(plain, _scores(cascade, 0, gamma=0.5, head="increment"))


def _outputs(cascade: Any, stage: int) -> tuple[tf.Tensor, tf.Tensor]:
    task = _task(cascade, stage)
    events = tf.constant(cascade.data.timelines.positives(1)[:8], tf.int32)
    users = cascade.towers.users(task._user_inputs(events, training=False))
    features = {n: tf.constant(ids) for n, ids in cascade.data.item_features.items()}
    return users, cascade.towers.items(tf.range(48), features)


def _scores(cascade: Any, stage: int, **changes: Any) -> tf.Tensor:
    users, items = _outputs(cascade, stage)
    positives = cascade.data.timelines.items[cascade.data.timelines.positives(1)[:8]]
    return _task(cascade, stage, **changes)._scores(users, items, tf.constant(positives))


def test_dropout_hides_events_and_ids_only_in_training(cascade: Any) -> None:
    task = _task(cascade, 0, history_dropout=0.5, user_id_dropout=0.25)
    events = tf.constant(cascade.data.timelines.positives(0), tf.int32)
    calm, noisy = (task._user_inputs(events, training) for training in (False, True))
    known = calm.history_items.numpy() >= 0
    hidden = noisy.history_items.numpy()[known] == -1
    assert hidden.mean() == pytest.approx(0.5, abs=0.06)
    kept = known & (noisy.history_items.numpy() >= 0)
    assert np.array_equal(noisy.history_items.numpy()[kept], calm.history_items.numpy()[kept])
    assert np.mean(noisy.user_ids.numpy() == 48) == pytest.approx(0.25, abs=0.07)
    assert np.all(calm.user_ids.numpy() < 48)


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
