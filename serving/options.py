"""How to serve: everything that the command line decides. Imports no TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.config import ModelConfig


def _cores() -> int:
    return os.cpu_count() or 1


@dataclass(frozen=True)
class BatchingOptions:
    """Dynamic batching of concurrent calls; names and meaning of TensorFlow Serving's
    `BatchingParameters` (session_bundle_config.proto).

    Attributes:
      max_batch_size: rows run together at most.
      batch_timeout_micros: how long a batch that is not full waits for more; 0 takes what is there.
      max_enqueued_batches: further full batches that may wait; a call beyond is refused.
      num_batch_threads: batches run at the same time.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=_cores)


@dataclass(frozen=True)
class TlsOptions:
    """TensorFlow Serving's `SSLConfig`; all texts are PEM.

    Attributes:
      server_key, server_cert: of this server.
      custom_ca: what signs the clients' certificates.
      client_verify: refuse clients without such a certificate (mutual TLS).
    """

    server_key: str
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False


@dataclass(frozen=True)
class ServerOptions:
    """How to serve. Defaults are TensorFlow Serving's where it has the option.

    Attributes:
      models: model name -> base path, or a ModelConfig with policy and labels.
      host: address to listen on.
      port: of gRPC; 0 picks a free one.
      rest_port: of REST and metrics; 0 picks a free one, None = no REST.
      unix_socket: path of a socket on which gRPC is served too.
      workers: processes that share the ports, each with the models in its own memory.
      rest_timeout_seconds: limit of a REST call.
      cors: answer cross-origin requests of browsers.
      metrics_path: path of the Prometheus page on the REST port; None = no page.
      health_service: answer grpc.health.v1.Health.
      tls: certificates of the gRPC port; None = clear text.
      channel_options: further gRPC channel arguments.
      poll_seconds: time between two looks at the base paths; 0 = look once, negative = never.
      config_file: a text ModelServerConfig, read again every `config_poll_seconds`.
      config_poll_seconds: 0 = read once, at the start.
      allow_labels_for_unavailable: new labels may name versions that are not loaded.
      max_load_retries: how often a failed load is tried again.
      load_retry_seconds: time between two attempts.
      warm_up: replay `assets.extra/tf_serving_warmup_requests` before a version is available.
      warm_up_iterations: how often each recorded request is replayed.
      batching: how concurrent calls are batched; None = each runs alone.
      run_threads: calls or batches that run at the same time.
      max_concurrent_calls: calls running or waiting; further ones get RESOURCE_EXHAUSTED.
      check_method_names: refuse Predict on signatures of another method.
      tags: of the meta graph to load.
      intra_op_threads, inter_op_threads: of TensorFlow, see `servable.Threads`.
      stop_grace_seconds: time that running calls get to finish when the server stops.
    """

    models: Mapping[str, ModelConfig | str | os.PathLike[str]] = field(default_factory=dict)
    host: str = "0.0.0.0"
    port: int = 8500
    rest_port: int | None = None
    unix_socket: str = ""
    workers: int = 1
    rest_timeout_seconds: float = 30.0
    cors: bool = False
    metrics_path: str | None = None
    health_service: bool = False
    tls: TlsOptions | None = None
    channel_options: tuple[tuple[str, str | int], ...] = ()
    poll_seconds: float = 1.0
    config_file: Path | None = None
    config_poll_seconds: float = 0.0
    allow_labels_for_unavailable: bool = False
    max_load_retries: int = 5
    load_retry_seconds: float = 60.0
    warm_up: bool = True
    warm_up_iterations: int = 1
    batching: BatchingOptions | None = None
    run_threads: int = field(default_factory=_cores)
    max_concurrent_calls: int = 4096
    check_method_names: bool = False
    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    stop_grace_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not self.models and self.config_file is None:
            raise ValueError("no model to serve was given; name at least one as NAME=BASE_PATH")
