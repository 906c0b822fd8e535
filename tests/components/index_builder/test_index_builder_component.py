from __future__ import annotations

import json
from typing import Any

import pytest
from tfx.types import channel_utils, standard_artifacts
from tfx.types.channel import BaseChannel

from components.artifacts import CascadeStage
from components.index_builder import executor, spec
from components.index_builder.component import IndexBuilder
from models.features import FeatureKinds
from models.settings import IndexSettings

FEATURES = FeatureKinds(user={"age": "numeric"}, item={"genres": "categorical"})


def channel(artifact: Any) -> BaseChannel:
    return channel_utils.as_channel([artifact()])


def make_node(**changes: Any) -> IndexBuilder:
    arguments = {
        "transform_graph": channel(standard_artifacts.TransformGraph),
        "transformed_examples": channel(standard_artifacts.Examples),
        "stage": channel(CascadeStage),
        "settings": IndexSettings(),
        "objectives": ["exposure", "click"],
        "features": FEATURES,
    }
    return IndexBuilder(**(arguments | changes))


def test_node_makes_a_model_that_standard_components_understand() -> None:
    node = make_node()
    assert node.id == "IndexBuilder"
    assert node.outputs[spec.MODEL_KEY].type is standard_artifacts.Model
    assert node.executor_spec.executor_class is executor.Executor


def test_executor_reads_back_the_settings_that_were_given() -> None:
    settings = IndexSettings(top_k=250, kind="tree", leaves_to_search_share=0.25, reorder=77)
    properties = make_node(settings=settings).exec_properties
    assert IndexSettings.parse(json.loads(properties[spec.SETTINGS_KEY])) == settings
    assert json.loads(properties[spec.OBJECTIVES_KEY]) == ["exposure", "click"]
    assert FeatureKinds.parse(json.loads(properties[spec.FEATURES_KEY])) == FEATURES


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": IndexSettings(top_k=101)},
        {"objectives": ["click", "exposure"]},
        {"features": FeatureKinds()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_changes_the_index_changes_its_cache_key(changes: dict[str, Any]) -> None:
    assert make_node(**changes).exec_properties != make_node().exec_properties


def test_only_a_stage_of_the_cascade_can_be_indexed() -> None:
    with pytest.raises(TypeError, match="CascadeStage"):
        make_node(stage=channel(standard_artifacts.Model))
