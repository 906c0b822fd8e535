"""`csmf compile`: what is in the YAML, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format
from kfp.components import load_component_from_text
from tfx.utils import import_utils

from pipeline.config import PipelineConfig
from pipeline.kubeflow.command import compile_command
from pipeline.kubeflow.compiler import compile_pipeline
from pipeline.kubeflow.dag import create_nodes_for_containers, resource_spec, task_name
from pipeline.kubeflow.settings import KubeflowSettings, Resources, node_names
from schemas.settings import ConfigError
from tests.pipeline.kubeflow.conftest import IMAGE, ROOT
from tests.pipeline.kubeflow.launcher import Deployment, read_pipeline

GOLDEN = Path(__file__).with_name("golden.yaml")
TRAINERS = ("cascaded-trainer-view", "cascaded-trainer-add-cart")
NODES = {
    "input-fingerprint",
    "interaction-gen",
    "statistics-gen",
    "schema-writer-timelines",
    "schema-writer-catalogue",
    "example-validator-timelines",
    "example-validator-catalogue",
    "transform",
    *TRAINERS,
    "index-builder",
    "retrieval-evaluator",
    "serving-validator",
    "pusher",
}


def compiled(raw: dict[str, Any]) -> str:
    return compile_pipeline(PipelineConfig.parse(raw), IMAGE, ROOT)


@pytest.fixture
def text(raw: dict[str, Any]) -> str:
    return compiled(raw)


@pytest.fixture
def spec(text: str) -> Any:
    return read_pipeline(text)[0]


@pytest.fixture
def containers(text: str) -> dict[str, Any]:
    """Task -> its container."""
    deployment: Deployment = read_pipeline(text)[1]
    return {
        label.removesuffix("_executor"): executor.container
        for label, executor in deployment.executors.items()
    }


# --- the file -------------------------------------------------------------------------------


def test_golden_file(text: str) -> None:
    body = text[text.index("components:") :]  # below the comment with the hash
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(body, encoding="utf-8")
    assert body == GOLDEN.read_text(encoding="utf-8"), "if meant: UPDATE_GOLDEN=1 pytest <this>"


def test_the_comment_names_the_configuration(raw: dict[str, Any], text: str) -> None:
    assert text.startswith("# Pipeline shop for Kubeflow Pipelines")
    assert PipelineConfig.parse(raw).sha256() in text[: text.index("components:")]


def test_it_is_a_pipeline_for_the_client_of_kubeflow(text: str) -> None:
    pipeline = load_component_from_text(text)
    assert pipeline.name == "shop"
    assert set(pipeline.pipeline_spec.root.dag.tasks) == NODES
    assert set(pipeline.platform_spec.platforms) == {"kubernetes"}


def test_an_unknown_field_would_be_noticed(text: str) -> None:
    with pytest.raises(json_format.ParseError, match="executorLabels"):
        read_pipeline(text.replace("executorLabel:", "executorLabels:"))


def test_version_name_and_root(spec: Any) -> None:
    assert spec.schema_version == "2.1.0"
    assert spec.pipeline_info.name == "shop"
    assert spec.default_pipeline_root == ROOT


# --- nodes and wiring -----------------------------------------------------------------------


def test_every_node_is_there_under_a_name_that_argo_takes(spec: Any) -> None:
    names = {*spec.root.dag.tasks, *spec.components}
    assert names == NODES
    assert all(re.fullmatch(r"[a-z0-9][-a-z0-9]*", name) for name in names)


def test_every_output_that_is_read_is_written(spec: Any) -> None:
    tasks = spec.root.dag.tasks
    for name, task in tasks.items():
        for key, source in task.inputs.artifacts.items():
            producer = source.task_output_artifact
            made = spec.components[producer.producer_task].output_definitions.artifacts
            taken = spec.components[name].input_definitions.artifacts[key]
            assert made[producer.output_artifact_key].artifact_type == taken.artifact_type
            assert producer.producer_task in task.dependent_tasks
        for source in task.inputs.parameters.values():
            if source.WhichOneof("kind") == "task_output_parameter":
                producer = source.task_output_parameter
                made = spec.components[producer.producer_task].output_definitions.parameters
                assert producer.output_parameter_key in made
                assert producer.producer_task in task.dependent_tasks


def test_stages_follow_each_other(spec: Any) -> None:
    first, second = (spec.root.dag.tasks[name] for name in TRAINERS)
    assert "previous" not in first.inputs.artifacts
    source = second.inputs.artifacts["previous"].task_output_artifact
    assert (source.producer_task, source.output_artifact_key) == (TRAINERS[0], "stage")


def test_the_container_can_import_what_is_named(spec: Any, containers: dict[str, Any]) -> None:
    assert containers.keys() == NODES
    for container in containers.values():
        path = container.args[[*container.args].index("--executor_class_path") + 1]
        assert callable(import_utils.import_class_by_path(path).Do)
    titles = {
        yaml.safe_load(artifact.artifact_type.instance_schema)["title"]
        for component in spec.components.values()
        for artifact in component.output_definitions.artifacts.values()
    }
    ours = {title for title in titles if not title.startswith("tfx.")}
    assert ours == {
        "components.CascadeStage",
        "components.DeadLetters",
        "components.IngestionSummary",
    }
    for title in ours:
        # The type itself, not what stood in for it: ML Metadata knows it by its short name.
        assert title.partition(".")[2] == import_utils.import_class_by_path(title).TYPE_NAME


def test_only_the_look_at_the_input_is_never_cached(spec: Any) -> None:
    tasks = spec.root.dag.tasks
    uncached = {name for name, task in tasks.items() if not task.caching_options.enable_cache}
    assert uncached == {"input-fingerprint"}
    fingerprint = tasks["interaction-gen"].inputs.parameters["fingerprint"].task_output_parameter
    assert fingerprint.producer_task == "input-fingerprint"
    assert fingerprint.output_parameter_key == "fingerprint"


def test_the_first_two_nodes_read_the_same_data(spec: Any) -> None:
    first, second = (
        spec.root.dag.tasks[name].inputs.parameters["data"].runtime_value.constant.string_value
        for name in ("input-fingerprint", "interaction-gen")
    )
    assert first == second
    assert "gs://shop-logs/events-*.csv" in first


# --- containers -----------------------------------------------------------------------------


def test_every_container_runs_tfx_with_keras_2(containers: dict[str, Any]) -> None:
    for container in containers.values():
        assert container.image == IMAGE
        assert [*container.command] == [
            "python",
            "-m",
            "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor",
        ]
        environment = {variable.name: variable.value for variable in container.env}
        assert environment == {"TF_USE_LEGACY_KERAS": "1"}


def test_beam_gets_its_options_once(containers: dict[str, Any]) -> None:
    for name in ("interaction-gen", "statistics-gen", "transform"):
        assert [*containers[name].args].count("--direct_num_workers=2") == 1, name


def test_resources(containers: dict[str, Any]) -> None:
    given = {
        name: (
            container.resources.resource_cpu_limit,
            container.resources.resource_memory_limit,
            container.resources.accelerator.resource_type,
            container.resources.accelerator.resource_count,
        )
        for name, container in containers.items()
    }
    assert given.pop("transform") == ("2.5", "4Gi", "", "")
    assert given.pop("cascaded-trainer-view") == ("8", "16G", "nvidia.com/gpu", "1")
    assert given.pop("cascaded-trainer-add-cart") == ("1", "16G", "nvidia.com/gpu", "1")
    assert set(given.values()) == {("1", "4Gi", "", "")}


def test_resources_as_numbers_for_older_readers() -> None:
    found = resource_spec(
        Resources.parse({"cpu": 0.5, "memory": "1.5Gi", "accelerator": {"type": "T4", "count": 2}})
    )
    assert (found.cpu_limit, found.memory_limit) == (0.5, 1.610612736)
    assert (found.accelerator.type, found.accelerator.count) == ("T4", 2)


def test_volumes_are_mounted_where_their_paths_are_used(text: str) -> None:
    platform = json_format.MessageToDict(read_pipeline(text)[2])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounted = {
        label.removesuffix("_executor"): [
            (mount["pvcNameParameter"]["runtimeValue"]["constant"], mount["mountPath"])
            for mount in executor["pvcMount"]
        ]
        for label, executor in executors.items()
    }
    tables, models = [("shop-tables", "/shop")], [("shop-models", "/models")]
    assert mounted == {
        "input-fingerprint": tables,
        "interaction-gen": tables,
        "retrieval-evaluator": models,
        "pusher": models,
    }


# --- settings -------------------------------------------------------------------------------


def test_names_of_nodes_are_those_of_the_pipeline(raw: dict[str, Any]) -> None:
    config = PipelineConfig.parse(raw)
    ids = {node.id for node in create_nodes_for_containers(config)}
    known = set(node_names(config.objective_names))
    assert known == ids | {one.partition(".")[0] for one in ids}
    assert {task_name(one) for one in ids} == NODES


def test_an_unknown_node_is_refused_with_the_nearest(raw: dict[str, Any]) -> None:
    raw["kubeflow"]["nodes"]["CascadedTrainer.veiw"] = {"cpu": 1}
    with pytest.raises(ConfigError, match=r"'CascadedTrainer\.veiw'.*mean 'CascadedTrainer\.view'"):
        PipelineConfig.parse(raw)


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("cpu", 0, "greater than 0"),
        ("memory", "8", "memory"),
        ("memory", "8 GB", "memory"),
        ("memroy", "8Gi", "Did you mean 'memory'"),
        ("accelerator", {"type": "nvidia.com/gpu", "count": 0}, "greater than 0"),
        ("accelerator", {"count": 1}, "required"),
    ],
)
def test_unusable_resources_are_refused(section: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        KubeflowSettings.parse({"nodes": {"Pusher": {section: value}}})


@pytest.mark.parametrize("path", ["models", "/", "gs://models"])
def test_a_volume_is_mounted_below_the_root(path: str) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        KubeflowSettings.parse({"volumes": [{"claim": "models", "path": path}]})


def test_what_a_node_leaves_open_comes_from_its_kind_then_from_all() -> None:
    settings = KubeflowSettings.parse(
        {
            "default": {"cpu": 1, "memory": "1Gi"},
            "nodes": {
                "CascadedTrainer": {"cpu": 2, "accelerator": {"type": "gpu"}},
                "CascadedTrainer.click": {"cpu": 3, "accelerator": None},
            },
        }
    )
    assert settings.resources("Pusher") == Resources(cpu=1, memory="1Gi")
    assert settings.resources("CascadedTrainer.exposure").accelerator is not None
    assert settings.resources("CascadedTrainer.click") == Resources(cpu=3, memory="1Gi")


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        (None, "name", "My_Shop", "name: 'My_Shop'.*'my-shop'"),
        ("serving", "directory", None, "serving.directory: not given"),
        ("serving", "directory", "serving", "serving.directory: 'serving' is no absolute path"),
        ("serving", "directory", "gs://b/models", "object stores cannot"),
        ("serving", "directory", "/other", r"lies on none.*/models \(shop-models\)"),
        ("serving", "directory", "/modelsx/shop", "lies on none"),
    ],
)
def test_what_kubeflow_cannot_run_is_refused(
    raw: dict[str, Any], section: str | None, key: str, value: Any, told: str
) -> None:
    (raw[section] if section else raw)[key] = value
    with pytest.raises(ConfigError, match=told):
        compiled(raw)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("items.csv", "data.catalogue.path: 'items.csv' is no absolute path.*gs://"),
        ("/elsewhere/items.csv", "data.catalogue.path.*claim: shop-data, path: /elsewhere"),
    ],
)
def test_a_path_that_no_container_sees_is_refused(
    raw: dict[str, Any], path: str, told: str
) -> None:
    raw["data"]["catalogue"]["path"] = path
    with pytest.raises(ConfigError, match=told):
        compiled(raw)


@pytest.mark.parametrize(
    "image", ["csmf", "csmf:latest", "host:5000/csmf", "host:5000/csmf:latest", ":1"]
)
def test_an_image_must_say_which_one_it_is(raw: dict[str, Any], image: str) -> None:
    with pytest.raises(ConfigError, match="--image"):
        compile_pipeline(PipelineConfig.parse(raw), image, ROOT)


@pytest.mark.parametrize("image", ["csmf:1", "host:5000/a/csmf:1.0", f"csmf@sha256:{'0' * 64}"])
def test_tags_and_digests_are_taken(raw: dict[str, Any], image: str) -> None:
    assert f"image: {image}" in compile_pipeline(PipelineConfig.parse(raw), image, ROOT)


@pytest.mark.parametrize("root", ["gs://", "s3://bucket/root", "minio://b/root", "/root", "root"])
def test_a_pipeline_root_that_tfx_cannot_write_to_is_refused(
    raw: dict[str, Any], root: str
) -> None:
    with pytest.raises(ConfigError, match="--pipeline-root"):
        compile_pipeline(PipelineConfig.parse(raw), IMAGE, root)


# --- the command ----------------------------------------------------------------------------


def compile_by_command(directory: Path, raw: dict[str, Any], **changed: str) -> Any:
    config = directory / "shop.yaml"
    config.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    options = {
        "--runner": "kubeflow",
        "--image": IMAGE,
        "--pipeline-root": ROOT,
        "-o": str(directory / "made" / "pipeline.yaml"),
        "--config": str(config),
    } | changed
    return CliRunner().invoke(compile_command, [word for pair in options.items() for word in pair])


def test_the_command_writes_the_file(tmp_path: Path, raw: dict[str, Any], text: str) -> None:
    result = compile_by_command(tmp_path, raw)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "made" / "pipeline.yaml").read_text(encoding="utf-8") == text
    assert "pipeline.yaml" in result.output


def test_the_command_knows_one_runner(tmp_path: Path, raw: dict[str, Any]) -> None:
    result = compile_by_command(tmp_path, raw, **{"--runner": "airflow"})
    assert result.exit_code == 2
    assert "kubeflow" in result.output


def test_nothing_is_written_if_it_is_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    result = compile_by_command(tmp_path, raw, **{"--image": "csmf"})
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "made").exists()


def test_the_command_needs_nothing_heavy_to_be_listed() -> None:
    program = (
        "import sys, pipeline.kubeflow.command;"
        "print([n for n in ('tensorflow', 'tfx', 'kfp', 'apache_beam') if n in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout.strip() == "[]"
