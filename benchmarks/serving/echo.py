"""The floor: a grpc.aio service that answers any bytes with bytes of a fixed size.

python -m benchmarks.serving.echo --port PORT --size BYTES --workers N --port-file FILE
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import click
import grpc

from benchmarks.serving.load import ECHO


async def _serve(port: int, size: int) -> None:
    answer = bytes(size)

    async def echo(request: bytes, context: Any) -> bytes:
        return answer

    _, service, method = ECHO.split("/")
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _run(port: int, size: int) -> None:
    asyncio.run(_serve(port, size))


@click.command()
@click.option("--size", type=int, required=True)
@click.option("--workers", type=int, required=True)
@click.option("--port-file", type=click.Path(path_type=Path), required=True)
def main(size: int, workers: int, port_file: Path) -> None:
    """Serves until it is terminated."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for _ in range(workers - 1):
            context.Process(target=_run, args=(port, size), daemon=True).start()
        port_file.write_text(str(port))
        _run(port, size)


if __name__ == "__main__":
    main()
