"""Means and deviations of records, as a table for the terminal and for Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

SHOWN = ("recall@50", "ndcg@50")
Cells = list[str]


def rows(content: dict[str, Any], objectives: Sequence[str]) -> tuple[Cells, list[Cells]]:
    """(header, rows) of a results file: one row per method, weighting and dimension.

    Values are `mean ± standard deviation` over the seeds; a single seed has no deviation.
    """
    header = ["method", "weighting", "D"]
    header += [f"{objective} {metric}" for objective in objectives for metric in SHOWN]
    header += ["parameters", "index", "seconds", "seeds"]
    values: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for record in content["records"]:
        values[
            record["method"],
            record["weighting"],
            record["dimension"],
            record["objective"],
            record["metric"],
        ].append(record["value"])
    costs: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for trial in content["trials"]:
        for outcome in trial["outcomes"]:
            key = trial["method"], outcome["weighting"], trial["dimension"]
            costs[key].append(outcome)
    lines = []
    for (method, weighting, dimension), outcomes in sorted(
        costs.items(), key=lambda entry: entry[0][2]
    ):
        cells = [method, weighting, str(dimension)]
        for objective in objectives:
            for metric in SHOWN:
                cells.append(_mean(values[method, weighting, dimension, objective, metric], 4))
        index = outcomes[0]["index_dimension"]
        cells += [
            f"{outcomes[0]['parameters']:,}",
            "none" if index is None else str(index),
            _mean([outcome["training_seconds"] for outcome in outcomes], 1),
            str(len(outcomes)),
        ]
        lines.append(cells)
    return header, lines


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def terminal(title: str, header: Cells, lines: list[Cells]) -> Table:
    """A table that rich can print."""
    table = Table(title=title)
    table.add_column("method: weighting", min_width=28, max_width=38)
    for name in header[2:]:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for method, weighting, *cells in lines:
        table.add_row(f"{method}: {weighting}", *(cell.replace(" ± ", "\n±") for cell in cells))
    return table


def markdown(header: Cells, lines: list[Cells], texts: int = 2) -> str:
    """The same as Markdown; all columns but the first `texts` are numbers."""
    ruler = ["---" if place < texts else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *lines)) + "\n"
