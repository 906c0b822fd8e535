"""Text protocol buffers of TensorFlow Serving: what they mean to us, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving import config_files
from serving.config import All, Latest, ModelConfig, Specific
from serving.config_files import ConfigFileError
from serving.options import BatchingOptions, TlsOptions

KEY = "-----BEGIN PRIVATE KEY-----\nkey\n-----END PRIVATE KEY-----\n"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\ncert\n-----END CERTIFICATE-----\n"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "file.config"
        path.write_text(text)
        return path

    return write


def models_of(text: str) -> dict[str, ModelConfig]:
    return config_files.models_of(text_format.Parse(text, ModelServerConfig()))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("model_version_policy { }", Latest(1)),
        ("model_version_policy { latest { } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 0 } }", Latest(1)),
        ("model_version_policy { latest { num_versions: 3 } }", Latest(3)),
        ("model_version_policy { all { } }", All()),
        ("model_version_policy { specific { versions: 4 versions: 2 } }", Specific((4, 2))),
        ("model_version_policy { specific { } }", Specific(())),
    ],
)
def test_version_policies(text: str, policy: Any) -> None:
    entry = f'name: "m" base_path: "/m" model_platform: "tensorflow" {text}'
    assert models_of(f"model_config_list {{ config {{ {entry} }} }}") == {
        "m": ModelConfig("/m", policy)
    }


def test_labels_and_remote_base_paths() -> None:
    models = models_of(
        """
        model_config_list { config {
          name: "m" base_path: "gs://bucket/m" model_platform: "tensorflow"
          version_labels { key: "stable" value: 41 }
          version_labels { key: "canary" value: 42 }
        } }
        """
    )
    assert models == {"m": ModelConfig("gs://bucket/m", labels={"stable": 41, "canary": 42})}


_versions = st.integers(0, 2**63 - 1)
_policies = st.one_of(
    st.just(All()),
    st.integers(1, 2**32 - 1).map(Latest),
    st.lists(_versions, max_size=4).map(lambda versions: Specific(tuple(versions))),
)
_models = st.builds(
    ModelConfig,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda path: f"/{path}"),
    _policies,
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), _versions),
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), _models))
def test_written_models_are_read_back(models: dict[str, ModelConfig]) -> None:
    assert models_of(config_files.to_text(models)) == models


@pytest.mark.parametrize("text", ["improper", "model_config_list { config { nome: 'm' } }", "{"])
def test_broken_text_says_file_and_message(written: Any, text: str) -> None:
    path = written(text)
    with pytest.raises(ConfigFileError) as caught:
        config_files.read_model_config(path)
    assert str(caught.value).startswith(
        f"Invalid protobuf file: '{path}'. "
        "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:"
    )


def test_missing_or_binary_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("none", "binary"):
        with pytest.raises(ConfigFileError, match=f"cannot read {tmp_path / name}"):
            config_files.read_model_config(tmp_path / name)


def test_pinned_versions_of_one_model(written: Any, tmp_path: Path) -> None:
    models = {
        "a": ModelConfig("/a", Specific((3, 4))),
        "b": ModelConfig("/b", Specific((9,))),
        "c": ModelConfig("/c", Latest(2)),
    }
    path = written(config_files.to_text(models))
    assert [config_files.pinned_versions(path, name) for name in "abcd"] == [
        {3, 4},
        {9},
        set(),
        set(),
    ]
    assert config_files.pinned_versions(tmp_path / "none", "a") == set()


# --- batching -----------------------------------------------------------------------------------


def test_batching_parameters(written: Any) -> None:
    path = written(
        """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 0 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "batch" }
        allowed_batch_sizes: 32
        allowed_batch_sizes: 128
        pad_variable_length_inputs: true
        """
    )
    assert config_files.read_batching(path) == BatchingOptions(128, 0, 1_000_000, 8)


def test_batching_defaults_are_those_of_tensorflow_serving(written: Any) -> None:
    options = config_files.read_batching(written(""))
    assert options == BatchingOptions()
    assert (options.max_batch_size, options.batch_timeout_micros) == (1000, 0)
    assert options.max_enqueued_batches == 10
    assert config_files.read_batching(written("max_batch_size { value: 7 }")).max_batch_size == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_batch_size: 128", "Error parsing text-format tensorflow.serving.BatchingParameters"),
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("max_batch_size { }", "max_batch_size must be positive; was 0"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be positive; was -1"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must not be negative; was -1"),
        (
            "allowed_batch_sizes: 4 allowed_batch_sizes: 4",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
    ],
)
def test_refused_batching_parameters(written: Any, text: str, complaint: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        config_files.read_batching(written(text))
    assert complaint in str(caught.value)


# --- TLS and monitoring -------------------------------------------------------------------------


def quoted(pem: str) -> str:
    return '"' + pem.replace("\n", "\\n") + '"'


def test_tls(written: Any) -> None:
    text = f"server_key: {quoted(KEY)} server_cert: {quoted(CERTIFICATE)}"
    assert config_files.read_tls(written(text)) == TlsOptions(KEY, CERTIFICATE)
    text += f" custom_ca: {quoted(CERTIFICATE)} client_verify: true"
    assert config_files.read_tls(written(text)) == TlsOptions(KEY, CERTIFICATE, CERTIFICATE, True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "server_key must hold the PEM text itself"),
        (f"server_key: {quoted(KEY)}", "server_cert must hold the PEM text itself"),
        ("server_key: '/etc/key.pem'", "server_key must hold the PEM text itself"),
        (
            f"server_key: {quoted(KEY)} server_cert: {quoted(CERTIFICATE)} client_verify: true",
            "client_verify needs custom_ca",
        ),
        ("server_kay: ''", "Error parsing text-format tensorflow.serving.SSLConfig"),
    ],
)
def test_refused_tls(written: Any, text: str, complaint: str) -> None:
    with pytest.raises(ConfigFileError, match=complaint):
        config_files.read_tls(written(text))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ("prometheus_config { enable: false path: '/x' }", None),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ("prometheus_config { enable: true path: '/metrics' }", "/metrics"),
    ],
)
def test_monitoring(written: Any, text: str, path: str | None) -> None:
    assert config_files.read_metrics_path(written(text)) == path


def test_reading_needs_no_tensorflow() -> None:
    program = "import sys, serving.config_files, serving.flags; print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
