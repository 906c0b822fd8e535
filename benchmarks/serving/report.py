"""What `csmf bench serving` prints, and the same as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks import tables
from benchmarks.tables import Cells

_TARGETS = ["", "asked", "measured", "met"]
_LOADS = ["", "calls/s", "p50 ms", "p99 ms", "failed"]


def terminal(content: dict[str, Any]) -> Iterator[Table]:
    """The tables, for rich.

    Args:
      content: of the JSON file.
    """
    for title, header, rows in _tables(content):
        table = Table(title=title)
        for name in header:
            table.add_column(name, justify="right" if name else "left")
        for row in rows:
            table.add_row(*(_COLOURED.get(cell, cell) for cell in row))
        yield table


def markdown(content: dict[str, Any]) -> str:
    """The tables, for a page; what misses its aim is bold."""
    return "\n".join(
        tables.markdown(header, [[_BOLD.get(cell, cell) for cell in row] for row in rows], texts=1)
        for _, header, rows in _tables(content)
    )


_COLOURED = {"yes": "[green]yes[/]", "no": "[bold red]no[/]"}
_BOLD = {"no": "**no**"}


def _tables(content: dict[str, Any]) -> Iterator[tuple[str, Cells, list[Cells]]]:
    yield (
        "what was asked",
        _TARGETS,
        [
            [line["what"], line["asked"], line["shown"], "yes" if line["met"] else "no"]
            for line in content["targets"]
        ],
    )
    yield "behind it: medians, smallest and largest", _LOADS, list(_loads(content["parts"]))


def _loads(parts: dict[str, Any]) -> Iterator[Cells]:
    """What was called, and how fast."""
    called = {
        ("latency", "grpc"): "gRPC, one client",
        ("latency", "grpc_of_grpcio"): "the same by grpcio's client",
        ("throughput", "grpc"): "gRPC",
        ("throughput", "grpc_of_grpcio"): "the same by grpcio's client",
        ("throughput", "rest"): "REST",
        ("throughput", "echo"): "echo: grpc.aio, empty, messages of the same size",
        ("throughput", "echo_of_grpcio"): "the same by grpcio's client",
        ("peers", "ours"): "gRPC, in turn with the peers",
        ("peers", "hnswlib"): "FastAPI + hnswlib",
        ("peers", "faiss"): "FastAPI + faiss",
        ("objectives", "fused"): "gRPC, in turn with three indexes",
        ("objectives", "separate"): "three indexes, merged by the client",
    }
    if alone := parts.get("latency", {}).get("in_process"):
        p50, p99 = _spread(alone, "p50_ms"), _spread(alone, "p99_ms")
        yield ["Session::Run, in process", "", p50, p99, ""]
    if rows := parts.get("throughput", {}).get("in_process_rows_per_second"):
        for threads in rows:
            text = f"the same in batches of 32, threads: {threads.split()[0]}"
            yield [text, _spread(rows, threads), "", "", ""]
    for (part, name), text in called.items():
        if run := parts.get(part, {}).get(name):
            yield [
                text,
                *(_spread(run, key) for key in ("rate", "p50_ms", "p99_ms")),
                _failed(run),
            ]
    if swap := parts.get("swap"):
        text = (
            f"16 clients, hot swaps: {swap['versions_seen']} of the {swap['published']} versions "
            "published every 2 s came to serve, then each when the one before served, "
            f"{swap['seconds_per_swap']:.1f} s a swap"
        )
        yield [text, *_whole(swap)]
    if soak := parts.get("soak"):
        yield ["peak before the soak", *_whole(soak["peak"])]
        yield ["soak at 80 % of it", *_whole(soak)]


def _whole(run: dict[str, Any]) -> Cells:
    return [
        f"{run['rate']:,.0f}",
        f"{run['p50_ms']:.2f}",
        f"{run['p99_ms']:.2f}",
        _failed(run),
    ]


def _failed(run: dict[str, Any]) -> str:
    return f"{run['failed']:,} of {run['units']:,}"


def _spread(figures: dict[str, Any], key: str) -> str:
    digits = 2 if key.endswith("_ms") else 0
    median, least, most = (f"{figures[key][of]:,.{digits}f}" for of in ("median", "min", "max"))
    return f"{median} ({least} to {most})"
