"""TensorFlow Serving's text protocol buffers: what to serve, batching, certificates, monitoring.

The messages of `--model_config_file` come with tensorflow-serving-api; the small ones of the other
files do not, so their descriptors are built here. Imports no TensorFlow.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.config import All, Latest, ModelConfig, Specific, VersionPolicy
from serving.errors import invalid_argument
from serving.options import BatchingOptions, TlsOptions

_LOG = logging.getLogger(__name__)

MODELS_FILE = "models.config"  # in a serving directory: what is served of it

_PLATFORM = "tensorflow"
_OTHER_PLATFORM = "other"
_DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"

_Field = descriptor_pb2.FieldDescriptorProto
_Message = TypeVar("_Message", bound=Message)

# Messages of session_bundle_config.proto, ssl_config.proto and monitoring_config.proto:
# name -> fields (name, number, type).
_INT64 = ".google.protobuf.Int64Value"
_BOOL = ".google.protobuf.BoolValue"
_MESSAGES: dict[str, list[tuple[str, int, Any]]] = {
    "BatchingParameters": [
        ("max_batch_size", 1, _INT64),
        ("batch_timeout_micros", 2, _INT64),
        ("max_enqueued_batches", 3, _INT64),
        ("num_batch_threads", 4, _INT64),
        ("thread_pool_name", 5, ".google.protobuf.StringValue"),
        ("allowed_batch_sizes", 6, _Field.TYPE_INT64),
        ("pad_variable_length_inputs", 7, _Field.TYPE_BOOL),
        ("enable_large_batch_splitting", 8, _BOOL),
        ("max_execution_batch_size", 9, _INT64),
    ],
    "SSLConfig": [
        ("server_key", 1, _Field.TYPE_STRING),
        ("server_cert", 2, _Field.TYPE_STRING),
        ("custom_ca", 3, _Field.TYPE_STRING),
        ("client_verify", 4, _Field.TYPE_BOOL),
    ],
    "PrometheusConfig": [("enable", 1, _Field.TYPE_BOOL), ("path", 2, _Field.TYPE_STRING)],
    "MonitoringConfig": [("prometheus_config", 1, ".tensorflow.serving.PrometheusConfig")],
}
_REPEATED = {"allowed_batch_sizes"}


def _build_messages() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/config_files.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            label = _Field.LABEL_REPEATED if field in _REPEATED else _Field.LABEL_OPTIONAL
            entry = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                entry.type, entry.type_name = _Field.TYPE_MESSAGE, kind
            else:
                entry.type = kind
    # A pool of our own: a process may hold TensorFlow Serving's own messages, too.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.serving.{name}")
        )
        for name in _MESSAGES
    }


_CLASSES = _build_messages()


class ConfigFileError(ValueError):
    """A configuration file cannot be read or understood; the text says where."""


def _parse(text: str, message: _Message, source: str) -> _Message:
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ConfigFileError(
            f"Invalid protobuf file: '{source}'. "
            f"Error parsing text-format {message.DESCRIPTOR.full_name}: {error}"
        ) from error


def _read(path: Path, message: _Message) -> _Message:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"cannot read {path}: {error}") from error
    return _parse(text, message, str(path))


# --- what to serve ------------------------------------------------------------------------------


def read_model_config(path: Path) -> ModelServerConfig:
    """Reads a text ModelServerConfig, the content of `--model_config_file`.

    Raises:
      ConfigFileError: there is no such file, or it is not understood.
    """
    return _read(path, ModelServerConfig())


def models_of(
    config: ModelServerConfig, served: Mapping[str, ModelConfig] | None = None
) -> dict[str, ModelConfig]:
    """What a ModelServerConfig asks for.

    Args:
      config: its `model_config_list`; a `custom_model_config` is not supported.
      served: what is served now; a served model cannot change its platform.

    Returns:
      model name -> what to serve.

    Raises:
      ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("ModelServer does not yet support custom model config.")
    models: dict[str, ModelConfig] = {}
    for model in config.model_config_list.config:
        if model.name in models:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        models[model.name] = ModelConfig(
            model.base_path, _policy_of(model.model_version_policy), dict(model.version_labels)
        )
    for model in config.model_config_list.config:
        if not (model.base_path.startswith("/") or "://" in model.base_path):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; "
                f"got base_path()={model.base_path}"
            )
    for model in config.model_config_list.config:
        _check_platform(model, model.name in (served or {}))
        if model.HasField("logging_config"):
            _LOG.warning("%s: logging_config has no effect, requests are not logged", model.name)
    return models


def _check_platform(model: model_server_config_pb2.ModelConfig, is_served: bool) -> None:
    platform = model.model_platform
    if model.model_type != model_server_config_pb2.MODEL_TYPE_UNSPECIFIED:
        if platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform"
            )
        is_tensorflow = model.model_type == model_server_config_pb2.TENSORFLOW
        platform = _PLATFORM if is_tensorflow else _OTHER_PLATFORM
    if not platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if platform != _PLATFORM and is_served:
        raise invalid_argument(
            f"Illegal to change a model's platform. For model {model.name} platform was "
            f"{_PLATFORM} and new platform requested is {platform}"
        )
    if platform != _PLATFORM:
        raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def _policy_of(policy: Any) -> VersionPolicy:
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return All()
    if kind == "specific":
        if not policy.specific.versions:
            _LOG.warning("a version policy `specific` without versions serves nothing")
        return Specific(tuple(policy.specific.versions))
    return Latest(policy.latest.num_versions or 1)


def pinned_versions(path: Path, model: str) -> set[int]:
    """The versions of a model that a text ModelServerConfig names; none without the file.

    Raises:
      ConfigFileError: it is not understood.
    """
    if not path.exists():
        return set()
    entries = read_model_config(path).model_config_list.config
    return {
        version
        for entry in entries
        if entry.name == model
        for version in entry.model_version_policy.specific.versions
    }


def to_text(models: Mapping[str, ModelConfig]) -> str:
    """Writes what to serve as a text ModelServerConfig; the inverse of `models_of`."""
    config = ModelServerConfig()
    config.model_config_list.SetInParent()
    for name, model in models.items():
        entry = config.model_config_list.config.add(
            name=name,
            base_path=model.base_path,
            model_platform=_PLATFORM,
            version_labels=model.labels,
        )
        policy = entry.model_version_policy
        match model.policy:
            case Latest(count):
                policy.latest.num_versions = count
            case Specific(versions):
                policy.specific.SetInParent()
                policy.specific.versions.extend(versions)
            case All():
                policy.all.SetInParent()
    return text_format.MessageToString(config)


# --- how to serve -------------------------------------------------------------------------------


def read_batching(path: Path) -> BatchingOptions:
    """Reads a text BatchingParameters, the content of `--batching_parameters_file`.

    `thread_pool_name` and `allowed_batch_sizes` have no effect: there is one pool, and no
    accelerator that would gain from batches of few sizes. Lists are padded by the defaults of the
    signature, with or without `pad_variable_length_inputs`.

    Raises:
      ConfigFileError: there is no such file, it is not understood, or a number is out of range.
    """
    parameters: Any = _read(path, _CLASSES["BatchingParameters"]())
    given = {
        name: getattr(parameters, name).value
        for name in (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        )
        if parameters.HasField(name)
    }
    for name, value in given.items():
        if name == "batch_timeout_micros" and value < 0:
            raise ConfigFileError(f"{path}: {name} must not be negative; was {value}")
        if name != "batch_timeout_micros" and value < 1:
            raise ConfigFileError(f"{path}: {name} must be positive; was {value}")
    sizes = list(parameters.allowed_batch_sizes)
    if sizes != sorted(set(sizes)):
        raise ConfigFileError(
            f"{path}: allowed_batch_sizes entries must be monotonically increasing"
        )
    options = BatchingOptions(**given)
    if sizes and sizes[-1] != options.max_batch_size:
        raise ConfigFileError(
            f"{path}: last entry in allowed_batch_sizes must match max_batch_size; last entry was "
            f"{sizes[-1]}; expected {options.max_batch_size}"
        )
    if parameters.enable_large_batch_splitting.value:
        _LOG.warning("%s: enable_large_batch_splitting has no effect", path)
    return options


def read_tls(path: Path) -> TlsOptions:
    """Reads a text SSLConfig, the content of `--ssl_config_file`: PEM texts, not paths.

    Raises:
      ConfigFileError: there is no such file, it is not understood, or key or certificate are
        missing.
    """
    config: Any = _read(path, _CLASSES["SSLConfig"]())
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(config, name):
            raise ConfigFileError(f"{path}: {name} must hold the PEM text itself")
    if config.client_verify and not config.custom_ca:
        raise ConfigFileError(f"{path}: client_verify needs custom_ca, which signs the clients")
    return TlsOptions(config.server_key, config.server_cert, config.custom_ca, config.client_verify)


def read_metrics_path(path: Path) -> str | None:
    """Reads a text MonitoringConfig, the content of `--monitoring_config_file`.

    Returns:
      the path of the Prometheus page, None if it is not enabled.

    Raises:
      ConfigFileError: there is no such file, or it is not understood.
    """
    config: Any = _read(path, _CLASSES["MonitoringConfig"]())
    if not config.prometheus_config.enable:
        return None
    return config.prometheus_config.path or _DEFAULT_METRICS_PATH
