from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tfx.types import channel_utils, standard_artifacts
from tfx.types.channel import BaseChannel

from components.artifacts import CascadeStage
from components.cascaded_trainer import executor, spec
from components.cascaded_trainer.component import CascadedTrainer, CascadedTrainerSpec
from models.features import FeatureKinds
from models.fitting import Fitted
from models.settings import (
    ModelSettings,
    NegativeSettings,
    StageSettings,
    TowerSettings,
    ValidationSettings,
)
from models.stages import Phase, StageReport

FEATURES = FeatureKinds(user={"age": "numeric"}, item={"genres": "categorical"})


def channel(artifact: Any) -> BaseChannel:
    return channel_utils.as_channel([artifact()])


def make_node(previous: BaseChannel | None = None, **changes: Any) -> CascadedTrainer:
    arguments = {
        "transform_graph": channel(standard_artifacts.TransformGraph),
        "transformed_examples": channel(standard_artifacts.Examples),
        "previous": previous,
        "stage_index": 0,
        "objectives": ["exposure", "click", "conversion"],
        "settings": StageSettings(name="exposure"),
        "model": ModelSettings(),
        "features": FEATURES,
        "ordered": True,
        "seed": 7,
    }
    return CascadedTrainer(**(arguments | changes))


def test_node_is_named_after_its_objective() -> None:
    assert make_node().id == "CascadedTrainer.exposure"
    assert make_node(settings=StageSettings(name="buy")).id == "CascadedTrainer.buy"


def test_first_stage_reads_no_stage_and_later_ones_the_one_before() -> None:
    first = make_node()
    assert spec.PREVIOUS_KEY not in first.inputs
    second = make_node(first.outputs[spec.STAGE_KEY], settings=StageSettings(name="click"))
    assert second.inputs[spec.PREVIOUS_KEY].type is CascadeStage
    assert second.outputs[spec.STAGE_KEY].type is CascadeStage


def test_another_artifact_is_refused_as_the_stage_before() -> None:
    with pytest.raises(TypeError, match="CascadeStage"):
        make_node(channel(standard_artifacts.Model))


def test_executor_reads_back_the_settings_that_were_given() -> None:
    settings = StageSettings(name="click", tau=0.37, rounds=11, head="increment")
    model = ModelSettings(
        towers=TowerSettings(dimension=48, hidden=(16, 8)),
        negatives=NegativeSettings(kind="sampled", random=99),
        validation=ValidationSettings(share=0.3, patience=9),
    )
    node = make_node(settings=settings, model=model, ordered=False, stage_index=1, seed=3)
    properties = node.exec_properties
    assert StageSettings.parse(json.loads(properties[spec.SETTINGS_KEY])) == settings
    assert ModelSettings.parse(json.loads(properties[spec.MODEL_KEY])) == model
    assert FeatureKinds.parse(json.loads(properties[spec.FEATURES_KEY])) == FEATURES
    assert properties[spec.ORDERED_KEY] == 0
    assert properties[spec.STAGE_INDEX_KEY] == 1
    assert json.loads(properties[spec.OBJECTIVES_KEY]) == ["exposure", "click", "conversion"]
    assert properties[spec.SEED_KEY] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": StageSettings(name="exposure", learning_rate=0.5)},
        {"model": ModelSettings(towers=TowerSettings(dimension=48))},
        {"model": ModelSettings(validation=ValidationSettings(share=0.0))},
        {"features": FeatureKinds()},
        {"ordered": False},
        {"seed": 8},
        {"distribution": "mirrored"},
        {"stage_index": 1},
        {"objectives": ["exposure", "click"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_changes_the_stage_changes_its_cache_key(changes: dict[str, Any]) -> None:
    assert make_node(**changes).exec_properties != make_node().exec_properties


def test_a_later_stage_does_not_enter_the_cache_key_of_an_earlier_one() -> None:
    # All that the node is told of the others are their names.
    assert set(CascadedTrainerSpec.PARAMETERS) == {
        spec.STAGE_INDEX_KEY,
        spec.OBJECTIVES_KEY,
        spec.SETTINGS_KEY,
        spec.MODEL_KEY,
        spec.FEATURES_KEY,
        spec.ORDERED_KEY,
        spec.SEED_KEY,
        spec.DISTRIBUTION_KEY,
    }
    settings = json.loads(make_node().exec_properties[spec.SETTINGS_KEY])
    assert settings["name"] == "exposure"


def make_report(**changes: Any) -> StageReport:
    fitted = Fitted([3.0, 2.5], [], 2, 8, 1.25, 2.5, [0.5, 1.25], [0.4, 0.7], [64, 64])
    report = StageReport(
        stage=1,
        objective="click",
        settings=StageSettings(name="click", tau=0.4).model_dump(mode="json"),
        started=1.0,
        layers={"output": 8},
        phases=[Phase("train", 7, fitted)],
        owned={"output": 3},
        upstream_sha256="ab12",
    )
    return dataclasses.replace(report, **changes)


def test_a_stage_is_described_in_ml_metadata() -> None:
    artifact = CascadeStage()
    executor._describe(artifact, make_report())
    assert (artifact.stage, artifact.objective) == (1, "click")
    assert json.loads(artifact.get_string_custom_property("owned")) == {"output": 3}
    settings = json.loads(artifact.get_string_custom_property("settings"))
    assert StageSettings.parse(settings) == StageSettings(name="click", tau=0.4)
    assert artifact.get_string_custom_property("upstream_sha256") == "ab12"
    assert artifact.get_float_custom_property("loss") == 2.5
    assert not artifact.has_custom_property("weights")


def test_the_last_stage_names_the_weights_that_it_chose() -> None:
    artifact = CascadeStage()
    weights = {"exposure": [1.0, 0.0], "click": [1.0, 0.5]}
    executor._describe(artifact, make_report(weights=weights))
    assert json.loads(artifact.get_string_custom_property("weights")) == weights


def test_component_runs_the_executor_of_its_package() -> None:
    assert make_node().executor_spec.executor_class is executor.Executor
