"""The served network learns from all events, the chosen one never sees those that judge it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import cascade as cascades
from models import rates
from models.cascade import Cascade
from models.settings import ModelSettings, ValidationSettings
from models.stages import StageTask, TrainingData, frozen_sha256
from models.timelines import Timelines
from models.towers import RATES, STRENGTHS, TwoTower

REFIT_ROUNDS = 2


def _model(**changes: Any) -> ModelSettings:
    validation = {"share": 0.2, "round_steps": 4, "refit_rounds": REFIT_ROUNDS} | changes
    return ModelSettings(validation=ValidationSettings.parse(validation))


def _data(world: Any, model: ModelSettings) -> TrainingData:
    plain = world.data()
    return TrainingData.split(plain.timelines, True, plain.item_features, model, seed=1)


def _weights(towers: TwoTower) -> dict[str, np.ndarray]:
    return {name: weight.numpy().copy() for name, weight in towers.weights.items()}


def _same(one: TwoTower, two: TwoTower) -> bool:
    return all(np.array_equal(one.weights[name], two.weights[name]) for name in one.weights)


@pytest.fixture(scope="module")
def trained(world: Any) -> Any:
    """Both networks after three stages, the reports, and the frozen part before each stage."""
    model = _model()
    data, settings = _data(world, model), world.stages(rounds=3, recovery_rounds=1)
    both = Cascade.start(world.towers().spec, 1)
    reports, frozen, seen = [], [], []
    for stage in range(3):
        reports.append(both.train(data, stage, settings[stage], model, 1, lambda _: None))
        frozen.append([frozen_sha256(towers, stage + 1) for towers in (both.chosen, both.served)])
        seen.append({name: owners.copy() for name, owners in both.served.owners.items()})
    return both, data, reports, frozen, seen


def test_validation_events_are_withheld_from_the_choice_and_given_back_to_the_refit(
    world: Any,
) -> None:
    model = _model()
    data = _data(world, model)
    everything = data.refit()
    assert everything is not None
    assert everything.held_out is None
    before: Timelines = world.timelines()
    assert np.array_equal(everything.timelines.items, before.items)
    assert np.array_equal(everything.timelines.targets, before.targets)
    assert len(data.timelines.items) < len(before.items)
    assert (
        TrainingData.split(before, True, data.item_features, _model(share=0.0), seed=1).refit()
        is None
    )


def test_each_network_has_the_rates_of_the_events_it_may_know(trained: Any) -> None:
    both, data, reports, _, _ = trained
    n_items = both.served.spec.n_items
    for stage in (0, 1, 2):
        of = {
            towers: reports[stage].settings["temperature"]
            * rates.log_rates(*rates.counted(timelines, stage, n_items))
            for towers, timelines in (
                (both.chosen, data.timelines),
                (both.served, data.everything),
            )
        }
        for towers, expected in of.items():
            assert np.array_equal(towers.weights[RATES][:, stage], expected)
            strengths = towers.weights[STRENGTHS].numpy()[stage]
            assert strengths.tolist() == np.float32(reports[stage].strengths).tolist()
        assert not np.array_equal(of[both.chosen], of[both.served])
    assert reports[0].strengths[0] == 1


def test_owners_are_the_same_and_weights_are_not(trained: Any) -> None:
    both, _, reports, _, _ = trained
    assert both.chosen is not both.served
    for name, owners in both.chosen.owners.items():
        assert np.array_equal(both.served.owners[name], owners), name
    assert not _same(both.chosen, both.served)
    for report, rounds in zip(reports, (REFIT_ROUNDS, 1, 1), strict=True):
        refit = report.phases[-1]
        assert refit.name == "refit"
        assert refit.fitted.recalls == []
        assert len(refit.fitted.losses) == rounds
        assert refit.positives > report.phases[0].positives


def test_each_network_keeps_earlier_stages_to_the_bit(trained: Any) -> None:
    both, _, reports, frozen, _ = trained
    for stage in (1, 2):
        for place, towers in enumerate((both.chosen, both.served)):
            assert frozen_sha256(towers, stage) == frozen[stage - 1][place]
        assert reports[stage].upstream_sha256 == frozen[stage - 1][1]  # of what is served
    assert frozen[0][0] != frozen[0][1]


def test_a_refit_moves_the_weights_of_its_own_stage_only(world: Any, trained: Any) -> None:
    both, data, _, _, _ = trained
    towers = TwoTower(both.served.spec, 5)
    towers.adopt(both.served, 0)
    before = _weights(towers)
    task = StageTask(towers, data.item_features, 1, world.stages()[1])
    cascades.refit_stage(task, data.refit(), _model(), 3, lambda _: None)
    for name, mask in towers.trainable_masks(1).items():
        mask = np.broadcast_to(mask, before[name].shape)
        after = towers.weights[name].numpy()
        assert np.array_equal(after[~mask], before[name][~mask]), name
        if mask.any() and towers.weights[name].trainable:
            assert not np.array_equal(after[mask], before[name][mask]), name


def test_the_refit_is_that_of_the_served_network_though_the_step_of_the_chosen_one_does_it(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: a task of its own over the served network."""
    model, settings = _model(), world.stages(rounds=2, recovery_rounds=1)
    data = _data(world, model)
    both = Cascade.start(world.towers().spec, 1)
    both.train(data, 0, settings[0], model, 1, lambda _: None)
    alone = TwoTower(both.served.spec, 5)
    alone.adopt(both.served, 0)
    traced: list[int] = []
    refit_stage = cascades.refit_stage

    def noting(task: StageTask, *args: Any) -> Any:
        phase = refit_stage(task, *args)
        traced.append(task.steps.experimental_get_tracing_count())
        return phase

    monkeypatch.setattr(cascades, "refit_stage", noting)
    report = both.train(data, 1, settings[1], model, 1, lambda _: None)
    alone.adopt(both.chosen, 1)
    task = StageTask(alone, data.item_features, 1, settings[1])
    phase = refit_stage(task, data.refit(), model, 1, lambda _: None)
    assert _same(alone, both.served)
    assert not _same(alone, both.chosen)
    assert phase.fitted.losses == report.phases[-1].fitted.losses
    assert traced == [1]  # training, recovery and refit in one graph


def test_adopting_takes_a_stage_and_leaves_the_ones_before(trained: Any) -> None:
    both = trained[0]
    for stage in range(3):
        taker = TwoTower(both.served.spec, 5)
        taker.adopt(both.served, 0)
        assert _same(taker, both.served)
        for weight in taker.weights.values():
            weight.assign(weight + 1)
        own = _weights(taker)
        taker.adopt(both.chosen, stage)
        for name, weight in taker.weights.items():
            earlier = np.zeros(weight.shape, bool)
            for k in range(stage):
                earlier |= both.chosen.trainable_masks(k)[name]
            assert np.array_equal(weight.numpy()[earlier], own[name][earlier]), (name, stage)
            assert np.array_equal(
                weight.numpy()[~earlier], both.chosen.weights[name].numpy()[~earlier]
            ), (name, stage)


def test_without_a_refit_there_is_one_network(world: Any) -> None:
    for changes in ({"refit_rounds": 0}, {"share": 0.0}):
        model = _model(**changes)
        both = Cascade.start(world.towers().spec, 1)
        settings = world.stages(rounds=1, recovery_rounds=1)
        report = both.train(_data(world, model), 0, settings[0], model, 1, lambda _: None)
        assert both.served is both.chosen
        assert "refit" not in [phase.name for phase in report.phases]


def test_a_refit_that_begins_at_a_later_stage_starts_from_what_was_there(
    world: Any, trained: Any
) -> None:
    plain, settings = _model(refit_rounds=0), world.stages(rounds=1, recovery_rounds=1)
    both = Cascade.start(world.towers().spec, 1)
    both.train(_data(world, plain), 0, settings[0], plain, 1, lambda _: None)
    before = frozen_sha256(both.served, 1)
    both.train(_data(world, _model()), 1, settings[1], _model(), 1, lambda _: None)
    assert both.served is not both.chosen
    assert frozen_sha256(both.served, 1) == frozen_sha256(both.chosen, 1) == before


def test_saved_and_loaded_both_are_the_same_bits(trained: Any, tmp_path: Path) -> None:
    both = trained[0]
    both.save(tmp_path / "both")
    again = Cascade.load(tmp_path / "both")
    assert _same(again.chosen, both.chosen)
    assert _same(again.served, both.served)
    assert _same(TwoTower.load(tmp_path / "both"), both.served)  # what everybody else reads
    Cascade(both.served, both.served).save(tmp_path / "one")
    one = Cascade.load(tmp_path / "one")
    assert one.chosen is one.served


def test_request_weights_are_chosen_by_the_network_that_has_not_seen_the_events(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, data, _, _, _ = trained
    asked = []
    monkeypatch.setattr(cascades, "chosen_weights", lambda *given: asked.append(given) or {})
    both.weights(data, ["exposure", "click", "conversion"])
    assert asked[0][0] is both.chosen
    assert asked[0][1] is data


def test_the_refit_learns_what_only_the_withheld_events_tell(world: Any) -> None:
    """Item 47 is met in the last events alone, which validation withholds."""
    timelines: Timelines = world.timelines()
    items = np.where(timelines.items == 47, 45, timelines.items).astype(np.int32)
    last = timelines.offsets[1:] - 1
    newest = last[np.flatnonzero(np.arange(len(last)) % 4 == 3)]  # users of the last cluster
    items[newest] = 47
    changed = dataclasses.replace(timelines, items=items)
    model = _model(share=0.15, refit_rounds=6, refit_rate=1.0)
    features = world.data().item_features
    data = TrainingData.split(changed, True, features, model, seed=1)
    assert 47 not in data.timelines.items
    settings = world.stages(rounds=4, recovery_rounds=1)
    both = Cascade.start(world.towers().spec, 1)
    both.train(data, 0, settings[0], model, 1, lambda _: None)
    (inputs,) = data.held_out.user_inputs(10, 48)
    of_cluster = data.held_out.owner % 4 == 3
    ranks = []
    for towers in (both.chosen, both.served):
        outputs = world.outputs(towers, data)
        users = towers.learnt(towers.users(inputs), 0).numpy()[of_cluster]
        scores = users @ towers.learnt(outputs["items"], 0).numpy().T
        ranks.append(float(np.mean((scores > scores[:, [47]]).sum(axis=1))))
    assert ranks[1] < ranks[0] / 2
