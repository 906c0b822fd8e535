"""The Kubernetes manifests: strictly of the API's types, consistent, and of flags we understand.

The types are those of the package `kubernetes`, made from the API's OpenAPI document. Like
`kubeconform -strict`, the check refuses unknown fields, missing ones and wrong types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client as api
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import flags
from serving.config import Latest, as_model_config
from serving.options import ServerOptions
from serving.service import SERVICES

MANIFESTS = Path(__file__).parents[2] / "serving" / "kubernetes"

Object = dict[str, Any]

_SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float)}


class InvalidManifestError(ValueError):
    """A manifest is not of its type; the text says where."""


def check(manifest: Object) -> None:
    """Raises InvalidManifestError unless the API would accept the manifest's shape."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    kind = manifest["kind"]
    group_api = f"{(group or 'core').split('.')[0].capitalize()}{version.capitalize()}Api"
    create = "create_namespaced_" + re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    if not hasattr(getattr(api, group_api, None), create):
        raise InvalidManifestError(f"there is no {kind} in {manifest['apiVersion']}")
    _build(f"{version.capitalize()}{kind}", manifest, kind)


def _build(kind: str, value: Any, where: str) -> Any:
    if kind == "object":
        return value
    if kind in _SCALARS:
        if not isinstance(value, _SCALARS[kind]) or (kind != "bool" and isinstance(value, bool)):
            raise InvalidManifestError(f"{where} must be of type {kind}, not {value!r}")
        return value
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise InvalidManifestError(f"{where} must be a list, not {value!r}")
        return [_build(kind[5:-1], one, f"{where}[{n}]") for n, one in enumerate(value)]
    if not isinstance(value, dict):
        raise InvalidManifestError(f"{where} must be an object, not {value!r}")
    if kind.startswith("dict("):
        inner = kind[5:-1].partition(", ")[2]
        return {key: _build(inner, one, f"{where}.{key}") for key, one in value.items()}
    return _build_model(getattr(api, kind), value, where)


def _build_model(model: Any, value: Object, where: str) -> Any:
    attributes = {field: name for name, field in model.attribute_map.items()}
    fields = {}
    for field, one in value.items():
        if field not in attributes:
            raise InvalidManifestError(f"{where} has no field {field!r}")
        name = attributes[field]
        fields[name] = _build(model.openapi_types[name], one, f"{where}.{field}")
    try:
        return model(**fields)
    except ValueError as error:  # a required field is missing
        raise InvalidManifestError(f"{where}: {error}") from error


def _documents() -> Iterator[Object]:
    for path in sorted(MANIFESTS.glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


@pytest.fixture
def objects() -> dict[tuple[str, str], Object]:
    """(kind, name) -> manifest, read anew."""
    found = list(_documents())
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


@pytest.fixture
def deployment(objects: dict[tuple[str, str], Object]) -> Object:
    return objects["Deployment", "recommender"]


@pytest.fixture
def pod(deployment: Object) -> Object:
    return deployment["spec"]["template"]["spec"]


@pytest.fixture
def server(pod: Object) -> Object:
    (container,) = pod["containers"]
    return container


def test_what_is_deployed(objects: dict[tuple[str, str], Object]) -> None:
    assert {kind for kind, _ in objects} == {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
    }


@pytest.mark.parametrize("manifest", _documents(), ids=lambda one: one["kind"])
def test_manifests_are_of_the_apis_types(manifest: Object) -> None:
    check(manifest)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("kind", "Deploymint", "there is no Deploymint in apps/v1"),
        ("apiVersion", "app/v1", "there is no Deployment in app/v1"),
        ("spec.replica", 2, "Deployment.spec has no field 'replica'"),
        ("spec.selector", None, "Deployment.spec: .*selector.* must not be `None`"),
        ("spec.replicas", "2", "Deployment.spec.replicas must be of type int, not '2'"),
        ("spec.replicas", True, "Deployment.spec.replicas must be of type int, not True"),
        (
            "spec.template.spec.containers.0.readinessProbe.grpc.prot",
            8500,
            r"containers\[0\].readinessProbe.grpc has no field 'prot'",
        ),
        (
            "spec.template.spec.containers.0.livenessProbe.grpc.port",
            None,
            r"livenessProbe.grpc: .*port.* must not be `None`",
        ),
        (
            "spec.template.spec.containers.0.resources.limits.memory",
            4,
            "limits.memory must be of type str, not 4",
        ),
        (
            "spec.template.spec.containers.0.args",
            "--port=8500",
            r"containers\[0\].args must be a list",
        ),
        ("spec.template.spec.securityContext", [], "securityContext must be an object"),
        (
            "spec.template.spec.volumes.0.name",
            None,
            r"volumes\[0\]: .*name.* must not be `None`",
        ),
    ],
)
def test_the_check_finds_mistakes(deployment: Object, path: str, value: Any, text: str) -> None:
    *parents, last = path.split(".")
    place: Any = deployment
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(InvalidManifestError, match=text):
        check(deployment)


# --- what no schema knows -------------------------------------------------------------------


def test_selectors_find_the_pods(objects: dict[tuple[str, str], Object]) -> None:
    template = objects["Deployment", "recommender"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    selectors = [
        objects["Deployment", "recommender"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget", "recommender"]["spec"]["selector"]["matchLabels"],
        *(one["spec"]["selector"] for (kind, _), one in objects.items() if kind == "Service"),
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in template["spec"]["topologySpreadConstraints"]
        ),
    ]
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= labels.items()


def test_references_lead_somewhere(
    objects: dict[tuple[str, str], Object], pod: Object, server: Object
) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in server["volumeMounts"]} == set(volumes)
    assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in objects
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in objects
    target = objects["HorizontalPodAutoscaler", "recommender"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in objects
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    for (kind, _), one in objects.items():
        if kind == "Service":
            for port in one["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]


def test_the_autoscaler_and_the_budget_leave_a_replica(
    objects: dict[tuple[str, str], Object],
) -> None:
    scaler = objects["HorizontalPodAutoscaler", "recommender"]["spec"]
    budget = objects["PodDisruptionBudget", "recommender"]["spec"]
    assert scaler["minReplicas"] > budget["maxUnavailable"]
    assert "replicas" not in objects["Deployment", "recommender"]["spec"]


def test_the_container_can_do_no_more_than_it_needs(pod: Object, server: Object) -> None:
    context = server["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    writable = [m["mountPath"] for m in server["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["/tmp"]
    assert {"cpu", "memory"} <= server["resources"]["requests"].keys()
    assert server["resources"]["limits"]["memory"] == server["resources"]["requests"]["memory"]


@pytest.fixture
def options(
    objects: dict[tuple[str, str], Object], server: Object, tmp_path: Path
) -> ServerOptions:
    """What the server makes of the arguments and of the files of the config map."""
    for name, text in objects["ConfigMap", "recommender"]["data"].items():
        (tmp_path / name).write_text(text)
    # The image's entry point opens the ports.
    image = ["--port=8500", "--rest_api_port=8501"]
    arguments = [argument.replace("/config/", f"{tmp_path}/") for argument in server["args"]]
    return flags.parse([*image, *arguments])


def test_the_server_understands_its_arguments(
    options: ServerOptions, objects: dict[tuple[str, str], Object]
) -> None:
    assert set(options.models) == {"recommender"}
    model = as_model_config(options.models["recommender"])
    assert model.base_path == "/models/recommender"
    assert model.policy == Latest(1)
    assert options.config_poll_seconds == 10
    assert options.batching is not None
    assert options.batching.max_batch_size == 64
    text = objects["ConfigMap", "recommender"]["data"]["models.config"]
    text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def test_the_roll_back_of_the_comment_is_a_configuration() -> None:
    """What an operator pastes at three in the morning."""
    text = (MANIFESTS / "configmap.yaml").read_text()
    (policy,) = re.findall(r"#\s+(model_version_policy .*)", text)
    latest = "model_version_policy { latest { num_versions: 1 } }"
    config = yaml.safe_load(text.replace(latest, policy))["data"]["models.config"]
    parsed = text_format.Parse(config, model_server_config_pb2.ModelServerConfig())
    assert parsed.model_config_list.config[0].model_version_policy.specific.versions


def test_probes_and_metrics_ask_what_is_served(
    options: ServerOptions, deployment: Object, server: Object
) -> None:
    assert options.health_service
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = server[probe]["grpc"]
        assert asked["port"] == options.port
        assert asked.get("service", "") in ("", *SERVICES)
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(options.rest_port)
    assert annotations["prometheus.io/path"] == options.metrics_path


def test_there_is_time_to_stop(options: ServerOptions, pod: Object, server: Object) -> None:
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + options.stop_grace_seconds
