"""The command line: TensorFlow Serving's flags, and what they become."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from serving import flags
from serving.config import All, Latest, ModelConfig
from serving.config_files import to_text
from serving.options import BatchingOptions, ServerOptions

BASE = "--model_base_path=/models/m"


def parse(*arguments: str) -> ServerOptions:
    return flags.parse([BASE, *arguments])


def refused(*arguments: str) -> str:
    with pytest.raises(click.ClickException) as caught:
        flags.parse(arguments)
    return caught.value.format_message()


def test_defaults_are_those_of_tensorflow_serving() -> None:
    assert parse() == ServerOptions(models={"default": ModelConfig("/models/m")})
    options = parse()
    assert (options.host, options.port, options.rest_port) == ("0.0.0.0", 8500, None)
    assert (options.poll_seconds, options.config_poll_seconds) == (1.0, 0.0)
    assert (options.max_load_retries, options.load_retry_seconds) == (5, 60.0)
    assert (options.warm_up, options.batching, options.tags) == (True, None, ("serve",))


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("--port=0", "port", 0),
        ("--rest_api_port=8501", "rest_port", 8501),
        ("--rest_api_port=0", "rest_port", None),
        ("--rest_api_timeout_in_ms=1500", "rest_timeout_seconds", 1.5),
        ("--rest_api_enable_cors_support", "cors", True),
        ("--grpc_socket_path=/run/s", "unix_socket", "/run/s"),
        ("--host=127.0.0.1", "host", "127.0.0.1"),
        ("--workers=2", "workers", 2),
        ("--run_threads=3", "run_threads", 3),
        (
            "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.x=y=z,grpc.n=-1",
            "channel_options",
            (("grpc.max_connection_age_ms", 2000), ("grpc.x", "y=z"), ("grpc.n", -1)),
        ),
        ("--file_system_poll_wait_seconds=0", "poll_seconds", 0.0),
        ("--file_system_poll_wait_seconds=-1", "poll_seconds", -1.0),
        ("--max_num_load_retries=0", "max_load_retries", 0),
        ("--load_retry_interval_micros=250000", "load_retry_seconds", 0.25),
        ("--load_retry_interval_micros=-1", "load_retry_seconds", 0.0),
        ("--allow_version_labels_for_unavailable_models", "allow_labels_for_unavailable", True),
        ("--enable_model_warmup=false", "warm_up", False),
        ("--num_request_iterations_for_warmup=3", "warm_up_iterations", 3),
        ("--num_request_iterations_for_warmup=0", "warm_up_iterations", 1),
        ("--enable_batching", "batching", BatchingOptions()),
        ("--enable_grpc_healthcheck_service", "health_service", True),
        ("--enable_signature_method_name_check", "check_method_names", True),
        ("--saved_model_tags=serve,gpu", "tags", ("serve", "gpu")),
        ("--tensorflow_intra_op_parallelism=3", "intra_op_threads", 3),
        ("--tensorflow_inter_op_parallelism=3", "inter_op_threads", 3),
    ],
)
def test_flag_sets_one_option(flag: str, field: str, value: Any) -> None:
    options = parse(flag)
    assert getattr(options, field) == value
    # And no other.
    assert {**vars(options), field: None} == {**vars(parse()), field: None}


def test_session_parallelism_is_for_both() -> None:
    options = parse("--tensorflow_session_parallelism=2", "--tensorflow_intra_op_parallelism=5")
    assert (options.intra_op_threads, options.inter_op_threads) == (5, 2)


def test_dashes_and_blanks() -> None:
    assert parse("--rest-api-port=8501") == parse("--rest_api_port", "8501")
    assert parse("--enable-batching") == parse("--enable_batching")
    assert parse("--tensorflow-intra_op-parallelism", "2").intra_op_threads == 2


@pytest.mark.parametrize("value", ["true", "1", "True"])
@pytest.mark.parametrize("opposite", ["false", "0", "False"])
def test_booleans(value: str, opposite: str) -> None:
    assert parse(f"--enable_batching={value}").batching is not None
    assert parse(f"--enable_batching={opposite}").batching is None
    assert parse("--enable_batching", "--port=1").batching is not None
    assert parse("--enable_batching", "--enable_batching=false").batching is None
    assert "'perhaps'" in refused(BASE, "--enable_batching=perhaps")


# --- models -------------------------------------------------------------------------------------


def test_models_by_flags() -> None:
    options = flags.parse(
        ["--model=a=/a", "--model", "b=/b=c", "--model_name=d", "--model_base_path=/d"]
    )
    assert options.models == {
        "a": ModelConfig("/a"),
        "b": ModelConfig("/b=c"),
        "d": ModelConfig("/d"),
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing option '--model'"),
        (["--model_name=m"], "Missing option '--model'"),
        (["--model=no-path"], "'no-path' is not of the form NAME=BASE_PATH"),
        (["--model=m=/a", "--model=m=/b"], "model 'm' is given twice"),
        (["--model=default=/a", BASE], "model 'default' is given twice"),
        ([BASE, "--rest_api_port=8500"], "cannot be the same as --port"),
        ([BASE, "--rest_api_prot=1"], "'--rest_api_port'"),
        ([BASE, "--prot=1"], "'--port'"),
        ([BASE, "--port=http"], "'http' is not a valid integer"),
        ([BASE, "--prefer_tflite_model=true"], "No such option '--prefer_tflite_model'"),
        ([BASE, "--grpc_channel_arguments=x"], "'x' is not of the form NAME=VALUE"),
        ([BASE, "extra"], "unexpected extra argument"),
    ],
)
def test_refused_command_lines(arguments: list[str], complaint: str) -> None:
    assert complaint in refused(*arguments)


def test_config_file_wins_over_named_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "models.config"
    file.write_text(to_text({"m": ModelConfig("/file", All())}))
    options = parse(f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=2")
    assert options.models == {"m": ModelConfig("/file", All())}
    assert (options.config_file, options.config_poll_seconds) == (file, 2.0)
    assert "default ignored" in caplog.text


def test_config_file_that_cannot_be_served(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(to_text({"m": ModelConfig("relative", Latest())}))
    assert refused(f"--model_config_file={file}") == (
        "Failed to start server. Error: Expected model m to have an absolute path or URI; "
        "got base_path()=relative"
    )


def test_labels_in_the_first_configuration_need_the_flag(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    models = {"m": ModelConfig("/m", labels={"stable": 1})}
    file.write_text(to_text(models))
    assert (
        "Request to assign label to version 1 of model m, which is not currently available for "
        "inference"
    ) in refused(f"--model_config_file={file}")
    allowed = "--allow_version_labels_for_unavailable_models"
    assert flags.parse([f"--model_config_file={file}", allowed]).models == models


# --- files --------------------------------------------------------------------------------------


def test_batching_parameters_file(tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 32 }")
    given = f"--batching_parameters_file={file}"
    assert parse("--enable_batching", given).batching == BatchingOptions(32)
    assert refused(BASE, given) == (
        "Failed to start server. Error: server_options.batching_parameters_file is set without "
        "setting server_options.enable_batching to true."
    )
    assert "is set without" in refused(BASE, given, "--enable_batching=false")
    assert "cannot read" in refused(BASE, "--enable_batching", f"{given}.not")


def test_monitoring_and_tls_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    monitoring, tls = tmp_path / "monitoring", tmp_path / "tls"
    monitoring.write_text("prometheus_config { enable: true }")
    tls.write_text('server_key: "-----BEGIN key" server_cert: "-----BEGIN cert" ')
    options = parse(
        f"--monitoring_config_file={monitoring}", f"--ssl_config_file={tls}", "--rest_api_port=1"
    )
    assert options.metrics_path == "/monitoring/prometheus/metrics"
    assert options.tls is not None
    assert options.tls.server_cert == "-----BEGIN cert"
    assert not caplog.records
    parse(f"--monitoring_config_file={monitoring}")
    assert "no effect without --rest_api_port" in caplog.text


@pytest.mark.parametrize(
    "flag", ["--grpc_max_threads=4", "--num-load-threads=2", "--flush_filesystem_caches"]
)
def test_flags_without_effect_are_noted(flag: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert parse(flag) == parse()
    name = flag.partition("=")[0].replace("-", "_").replace("__", "--", 1)
    assert f"{name} has no effect" in caplog.text


# --- the command --------------------------------------------------------------------------------


def test_help_names_every_flag_and_what_has_no_effect() -> None:
    shown = CliRunner().invoke(flags.main, ["--help"])
    assert shown.exit_code == 0
    for name in ("model_config_file", "rest_api_port", "ssl_config_file", "grpc_max_threads"):
        assert f"--{name}" in shown.output


def test_version() -> None:
    shown = CliRunner().invoke(flags.main, ["--version"])
    assert shown.exit_code == 0
    assert version("tensorflow") in shown.output
