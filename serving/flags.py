"""TensorFlow Serving's command line: the same flags, and a few of our own.

A flag may be written with underscores, as TensorFlow Serving's are, or with dashes; a value follows
after `=` or a blank. A boolean flag means true if it stands alone. TensorFlow Serving's own flags
that would change nothing here are accepted, with a note in the log; those that ask for something
that this server cannot do, e.g. TensorFlow Lite models, are refused like a misspelt one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from serving import config_files
from serving.command import serve
from serving.config import ModelConfig
from serving.config_files import ConfigFileError
from serving.errors import ServingError
from serving.options import BatchingOptions, ServerOptions

_LOG = logging.getLogger(__name__)

_WITHOUT_EFFECT = {
    "grpc_max_threads": "one event loop per worker takes the calls; see --workers, --run_threads",
    "rest_api_num_threads": "one event loop per worker takes the calls; see --workers",
    "num_load_threads": "versions are loaded one after the other",
    "num_unload_threads": "every unload has a thread of its own",
    "flush_filesystem_caches": "caches are left to the operating system",
    "per_process_gpu_memory_fraction": "models run on the CPU",
    "enable_profiler": "there is no profiler service",
    "remove_unused_fields_from_bundle_metagraph": "only signatures are kept anyway",
    "xla_cpu_compilation_enabled": "TensorFlow's own settings (TF_XLA_FLAGS) decide",
}


def _flag(name: str, default: Any, text: str, kind: Any = None, **more: Any) -> click.Option:
    return click.Option([f"--{name}"], default=default, type=kind, help=text, **more)


def _switch(name: str, default: bool, text: str) -> click.Option:
    """`--name`, `--name=true`, `--name=false`."""
    return _flag(name, default, text, click.BOOL, is_flag=False, flag_value="true")


def _file(name: str, text: str) -> click.Option:
    return _flag(name, None, text, click.Path(dir_okay=False, path_type=Path))


def _parse_models(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    models: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not of the form NAME=BASE_PATH")
        if name in models:
            raise click.BadParameter(f"model {name!r} is given twice")
        models[name] = path
    return models


def _parse_channel_arguments(
    context: click.Context, parameter: click.Parameter, text: str
) -> tuple[tuple[str, str | int], ...]:
    arguments: list[tuple[str, str | int]] = []
    for argument in filter(None, text.split(",")):
        name, equals, value = argument.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{argument!r} is not of the form NAME=VALUE")
        is_number = value.removeprefix("-").isdecimal()
        arguments.append((name, int(value) if is_number else value))
    return tuple(arguments)


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"csmf: {version('csmf')}\nTensorFlow Library: {version('tensorflow')}")
        context.exit()


_COUNT = click.IntRange(min=0)

_FLAGS: list[click.Parameter] = [
    click.Option(
        ["--model", "models"],
        multiple=True,
        callback=_parse_models,
        metavar="NAME=BASE_PATH",
        help="A model and the directory of its numbered versions. May be repeated.",
    ),
    _flag("model_name", "default", "Name of the model of --model_base_path."),
    _flag("model_base_path", "", "Directory of the numbered versions of one model."),
    _file("model_config_file", "Text ModelServerConfig; the models named otherwise are ignored."),
    _flag(
        "model_config_file_poll_wait_seconds",
        0.0,
        "Time between two looks at the model config file; 0 reads it once.",
    ),
    _flag("host", ServerOptions.host, "Address to listen on."),
    _flag("port", ServerOptions.port, "Port of gRPC; 0 picks a free one.", _COUNT),
    _flag("rest_api_port", 0, "Port of REST and metrics; 0 = none.", _COUNT),
    _flag("grpc_socket_path", "", "Path of a Unix socket on which gRPC is served, too."),
    _file("port_file", "File to write the gRPC port to, once serving."),
    _flag("workers", 1, "Processes that share the ports.", click.IntRange(min=1)),
    _flag(
        "run_threads",
        None,
        "Calls or batches that run at the same time, in each process. Default: the cores.",
        click.IntRange(min=1),
    ),
    _flag("rest_api_timeout_in_ms", 30000, "Limit of a REST call.", click.IntRange(min=1)),
    _switch("rest_api_enable_cors_support", False, "Answer cross-origin calls of browsers."),
    _flag(
        "grpc_channel_arguments",
        "",
        "Channel arguments, e.g. grpc.max_connection_age_ms=2000,grpc.lb_policy_name=x.",
        callback=_parse_channel_arguments,
    ),
    _file("ssl_config_file", "Text SSLConfig: certificates of the gRPC port."),
    _file("monitoring_config_file", "Text MonitoringConfig: the Prometheus page."),
    _switch("enable_grpc_healthcheck_service", False, "Answer grpc.health.v1.Health."),
    _flag(
        "file_system_poll_wait_seconds",
        1.0,
        "Time between two looks at the base paths; 0 looks once, a negative time never.",
    ),
    _flag("max_num_load_retries", 5, "How often a failed load is tried again.", _COUNT),
    _flag("load_retry_interval_micros", 60_000_000, "Time between two attempts to load."),
    _switch("allow_version_labels_for_unavailable_models", False, "For labels that are new."),
    _switch("enable_model_warmup", True, "Replay recorded requests before a version serves."),
    _flag("num_request_iterations_for_warmup", 1, "How often each is replayed."),
    _switch("enable_batching", False, "Run concurrent calls together."),
    _file("batching_parameters_file", "Text BatchingParameters; needs --enable_batching."),
    _switch(
        "enable_signature_method_name_check", False, "Refuse Predict on signatures made for others."
    ),
    _flag("saved_model_tags", "serve", "Tags of the meta graph to load, comma-separated."),
    _flag("tensorflow_session_parallelism", 0, "For both of the next two.", _COUNT),
    _flag("tensorflow_intra_op_parallelism", 0, "Threads of one op; 0 = the cores.", _COUNT),
    _flag("tensorflow_inter_op_parallelism", 0, "Ops at the same time; 0 = the cores.", _COUNT),
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the versions and exit.",
    ),
    *(
        _flag(name, None, "", click.STRING, is_flag=False, flag_value="true", hidden=True)
        for name in _WITHOUT_EFFECT
    ),
]


@click.command(
    params=_FLAGS,
    context_settings={
        "show_default": True,
        "token_normalize_func": lambda flag: flag.replace("-", "_"),
    },
    epilog="Accepted without effect: "
    + "; ".join(f"--{name} ({why})" for name, why in _WITHOUT_EFFECT.items())
    + ".",
)
def main(port_file: Path | None, **given: Any) -> None:
    """Serves SavedModels over TensorFlow Serving's gRPC and REST interfaces.

    Flags are TensorFlow Serving's; underscores may be written as dashes.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(_options(given), port_file)


def parse(arguments: Sequence[str]) -> ServerOptions:
    """What a command line asks for; `--port_file` is left out.

    Raises:
      click.UsageError: a flag is unknown or its value is not understood.
      click.ClickException: the server could not start with it, e.g. a file that is not understood.
    """
    given = main.make_context("serving", list(arguments)).params
    del given["port_file"]
    return _options(given)


def _options(given: Mapping[str, Any]) -> ServerOptions:
    for name, why in _WITHOUT_EFFECT.items():
        if given[name] is not None:
            _LOG.info("--%s has no effect: %s", name, why)
    if given["rest_api_port"] and given["rest_api_port"] == given["port"]:
        raise click.UsageError("--rest_api_port cannot be the same as --port")
    if given["monitoring_config_file"] and not given["rest_api_port"]:
        _LOG.warning("--monitoring_config_file has no effect without --rest_api_port")
    both = given["tensorflow_session_parallelism"]
    more = {} if given["run_threads"] is None else {"run_threads": given["run_threads"]}
    try:
        return ServerOptions(
            models=_models(given),
            host=given["host"],
            port=given["port"],
            rest_port=given["rest_api_port"] or None,
            unix_socket=given["grpc_socket_path"],
            workers=given["workers"],
            rest_timeout_seconds=given["rest_api_timeout_in_ms"] / 1e3,
            cors=given["rest_api_enable_cors_support"],
            metrics_path=_read(given["monitoring_config_file"], config_files.read_metrics_path),
            health_service=given["enable_grpc_healthcheck_service"],
            tls=_read(given["ssl_config_file"], config_files.read_tls),
            channel_options=given["grpc_channel_arguments"],
            poll_seconds=given["file_system_poll_wait_seconds"],
            config_file=given["model_config_file"],
            config_poll_seconds=given["model_config_file_poll_wait_seconds"],
            allow_labels_for_unavailable=given["allow_version_labels_for_unavailable_models"],
            max_load_retries=given["max_num_load_retries"],
            load_retry_seconds=max(given["load_retry_interval_micros"], 0) / 1e6,
            warm_up=given["enable_model_warmup"],
            warm_up_iterations=max(given["num_request_iterations_for_warmup"], 1),
            batching=_batching(given["enable_batching"], given["batching_parameters_file"]),
            check_method_names=given["enable_signature_method_name_check"],
            tags=tuple(given["saved_model_tags"].split(",")),
            intra_op_threads=given["tensorflow_intra_op_parallelism"] or both,
            inter_op_threads=given["tensorflow_inter_op_parallelism"] or both,
            **more,
        )
    except (ConfigFileError, ServingError) as error:
        raise click.ClickException(f"Failed to start server. Error: {error}") from error


def _read(path: Path | None, read: Any) -> Any:
    return None if path is None else read(path)


def _batching(enabled: bool, file: Path | None) -> BatchingOptions | None:
    if not enabled and file is not None:
        raise ConfigFileError(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    if not enabled:
        return None
    return BatchingOptions() if file is None else config_files.read_batching(file)


def _models(given: Mapping[str, Any]) -> dict[str, ModelConfig]:
    named = dict(given["models"])
    if given["model_base_path"]:
        if given["model_name"] in named:
            raise click.UsageError(f"model {given['model_name']!r} is given twice")
        named[given["model_name"]] = given["model_base_path"]
    file = given["model_config_file"]
    if file is None:
        if not named:
            raise click.UsageError(
                "Missing option '--model', '--model_base_path' or '--model_config_file'."
            )
        return {name: ModelConfig(path) for name, path in named.items()}
    if named:
        _LOG.warning("--model_config_file is given: %s ignored", ", ".join(named))
    models = config_files.models_of(config_files.read_model_config(file))
    if not given["allow_version_labels_for_unavailable_models"]:
        _refuse_labels(models)
    return models


def _refuse_labels(models: Mapping[str, ModelConfig]) -> None:
    """At the start nothing is available yet."""
    for name, model in models.items():
        for label, number in model.labels.items():
            raise ConfigFileError(
                f"Request to assign label to version {number} of model {name}, which is not "
                f"currently available for inference (label {label!r} in the first configuration "
                "needs --allow_version_labels_for_unavailable_models)"
            )
