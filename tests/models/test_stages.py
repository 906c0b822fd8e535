"""The cascade on a checkerboard world: nothing upstream moves, and the known answer is learned."""

from __future__ import annotations

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
        changes.pop("negatives", cascade.negatives),
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


class _RecordingTask(StageTask):
    """Notes the state of every optimiser at the moment it is compiled and what becomes of it."""

    made: list[Any] = []

    def compile(self, optimizer: Any, **kwargs: Any) -> None:
        super().compile(optimizer=optimizer, **kwargs)
        moments = [v for v in optimizer.variables if "learning_rate" not in v.name]
        self.made.append((optimizer, [float(tf.norm(tf.cast(v, tf.float32))) for v in moments]))


def test_every_phase_gets_a_fresh_optimiser(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _RecordingTask.made = []
    monkeypatch.setattr(stages, "StageTask", _RecordingTask)
    world.train(n_stages=2, epochs=1, recovery_epochs=1, batch_size=256)
    optimisers = [optimiser for optimiser, _ in _RecordingTask.made]
    assert len(optimisers) == 4  # train and recover, twice
    assert len({id(optimiser) for optimiser in optimisers}) == 4
    for optimiser, norms in _RecordingTask.made:
        assert all(norm == 0.0 for norm in norms), "no step and no moment from before"
        positives_per_step = int(optimiser.iterations.numpy())
        assert positives_per_step in (1, 2), "only its own steps were counted"
        assert optimiser.weight_decay in (None, 0.0)


def test_frozen_slots_have_no_moments(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _RecordingTask.made = []
    monkeypatch.setattr(stages, "StageTask", _RecordingTask)
    trained = world.train(n_stages=2, epochs=1, recovery_share=0.0, batch_size=256)
    optimiser, _ = _RecordingTask.made[1]
    assert int(optimiser.iterations.numpy()) > 0
    # At its time stage 1 still owned what it has since handed over to stage 2.
    owners = {name: np.where(o == 2, 1, o) for name, o in trained.towers.owners.items()}
    owned = _masks(owners, trained.towers, 1)
    seen = 0
    for name, mask in owned.items():
        slots = [
            v.numpy()
            for v in optimiser.variables
            if v.shape == mask.shape and f"/{name.replace('/', '_')}" in f"/{v.name[5:]}"
        ]
        for moment in slots:
            assert np.all(moment[~mask] == 0.0), name
        seen += len(slots)
    assert seen >= 2 * len(owned)


# --- seeds ----------------------------------------------------------------------------------


def test_one_seed_gives_one_network_and_another_seed_another(world: Any) -> None:
    runs = [
        world.train(seed=seed, negatives=SAMPLED, epochs=1, recovery_epochs=1, batch_size=128)
        for seed in (5, 5, 6)
    ]
    first, again, other = (run.weights[-1] for run in runs)
    for name, weight in first.items():
        assert weight.tobytes() == again[name].tobytes(), name
    assert not np.array_equal(first["history"], other["history"])
    assert runs[0].reports[2].upstream_sha256 == runs[1].reports[2].upstream_sha256


# --- recovery -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1])
def test_recovery_moves_only_what_its_stage_keeps(
    world: Any, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    released: list[dict[str, np.ndarray]] = []
    release = TwoTower.release

    def spy(towers: TwoTower, *args: Any) -> None:
        release(towers, *args)
        released.append({name: weight.numpy().copy() for name, weight in towers.weights.items()})

    monkeypatch.setattr(TwoTower, "release", spy)
    trained = world.train(
        n_stages=stage + 1, epochs=1, recovery_epochs=2, recovery_share=1.0, user_id_dropout=0.0
    )
    kept = _masks(trained.towers.owners, trained.towers, stage)
    for name, after in trained.weights[-1].items():
        moved = after != released[stage][name]
        assert not np.any(moved & ~kept[name]), name
        assert np.any(moved[kept[name]]), name


def test_without_a_share_there_is_no_recovery(world: Any) -> None:
    report = world.train(n_stages=1, epochs=1, recovery_share=0.0).reports[0]
    assert [phase.name for phase in report.phases] == ["train"]


# --- faults ---------------------------------------------------------------------------------


class _LeakyTask(StageTask):
    """Forgets the mask, as a mistake in the masks would."""

    def masked_gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[Any]:
        return tape.gradient(loss, list(self._towers.weights.values()))


def test_a_stage_that_moves_frozen_weights_is_refused(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = world.train(n_stages=1, epochs=1, recovery_epochs=1, batch_size=256)
    monkeypatch.setattr(stages, "StageTask", _LeakyTask)
    fast = trained.settings[1].model_copy(update={"epochs": 1})
    with pytest.raises(FrozenWeightsMovedError, match="before 'click' changed"):
        train_stage(trained.towers, trained.data, 1, fast, trained.negatives, 1, lambda _: None)


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


def _batch_probabilities(cascade: Any, stage: int, negatives: NegativeSettings) -> Any:
    """Candidates, their probabilities [B, C] and the events of one batch, dropout off."""
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
    import dataclasses

    case = dataclasses.replace(cascade, data=world.data(timed))
    events, captured = _batch_probabilities(case, stage, NegativeSettings(kind="exact"))
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
    events, captured = _batch_probabilities(cascade, 1, SAMPLED)
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
    ("changes", "upto"),
    [
        ({"negatives": SAMPLED}, False),
        ({"head": "increment"}, True),
        ({"negatives": SAMPLED, "head": "increment"}, True),
        ({"timed": False}, False),
        ({"hidden": (24,)}, False),
        ({"gamma": 0.0}, False),
    ],
    ids=["sampled", "increment", "sampled increment", "untimed", "hidden layer", "no margin"],
)
def test_every_variant_recovers_the_checkerboard_and_keeps_upstream(
    world: Any, changes: dict[str, Any], upto: bool
) -> None:
    trained = world.train(**changes)
    recalls = [world.recall(trained.towers, trained.data, level, upto) for level in range(3)]
    assert min(recalls) > 0.85, recalls
    for side in ("users", "items"):
        assert np.array_equal(trained.blocks[0][side, 0], trained.blocks[2][side, 0])
        assert np.array_equal(trained.blocks[1][side, 1], trained.blocks[2][side, 1])
