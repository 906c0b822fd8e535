"""A Python worker as TaskManagers start it: what `boot` does, which Beam's wheel does not hold."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

PROVISION_SECONDS = 60.0


def write_command(path: Path) -> Path:
    """Makes a file that `--environment_type=PROCESS` can name."""
    root = shlex.quote(str(Path(__file__).parents[2]))
    python = shlex.quote(sys.executable)
    path.write_text(f'#!/bin/sh\ncd {root} && exec {python} -m tests.distributed.sdk_worker "$@"\n')
    path.chmod(0o755)
    return path


def main() -> None:
    """Asks the TaskManager where its services are, and works until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--id")
    parser.add_argument("--provision_endpoint")
    arguments, _ = parser.parse_known_args()
    with grpc.insecure_channel(arguments.provision_endpoint) as channel:
        said = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel).GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", arguments.id)],
            timeout=PROVISION_SECONDS,
            wait_for_ready=True,
        )
    os.environ |= {
        "WORKER_ID": arguments.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(said.info.pipeline_options),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(said.info.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(said.info.logging_endpoint),
        "RUNNER_CAPABILITIES": " ".join(said.info.runner_capabilities),
    }
    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
