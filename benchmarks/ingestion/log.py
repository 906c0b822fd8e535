"""A synthetic interaction log: Zipf items, power-law users, a funnel of three events.

Nothing in it was ever done by anybody; only its sizes and shares resemble those of a shop's log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LABEL = "synthetic: drawn from a seed, nobody's behaviour"
OBJECTIVES = ("exposure", "click", "conversion")
EVENTS = {"view": "exposure", "cart": "click", "purchase": "conversion"}
COLUMNS = ("user", "item", "time", "event")

_CHUNK_ROWS = 1_000_000
_START_MS = 1_700_000_000_000
_DAYS = 90
_SHARES = (0.15, 0.3)  # of the views that lead to a cart, of these that lead to a purchase


@dataclass(frozen=True)
class SyntheticLog:
    """Parameters of a log; the same ones give the same rows.

    Attributes:
      rows: in all.
      seed: of all draws.
      rows_per_user, rows_per_item: mean numbers, which say how many users and items there are.
      user_exponent: activity falls with the rank of the user to this power.
      item_exponent: popularity falls with the rank of the item to this power.
    """

    rows: int
    seed: int = 1
    rows_per_user: int = 20
    rows_per_item: int = 20
    user_exponent: float = 0.7
    item_exponent: float = 1.05

    def chunks(self) -> Iterator[pa.Table]:
        """Yields the rows, a span of time after the other."""
        users = _cumulative(self.rows // self.rows_per_user, self.user_exponent)
        items = _cumulative(self.rows // self.rows_per_item, self.item_exponent)
        span = _DAYS * 86_400_000
        for chunk, start in enumerate(range(0, self.rows, _CHUNK_ROWS)):
            rng = np.random.default_rng([self.seed, chunk])
            rows = min(_CHUNK_ROWS, self.rows - start)
            # A view, and maybe what follows it, in one go; what is too much falls off the end.
            carts = rng.random(rows) < _SHARES[0]
            steps = 1 + carts + (carts & (rng.random(rows) < _SHARES[1]))
            view = np.repeat(np.arange(rows), steps)[:rows]
            step = (np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps))[:rows]
            first = _START_MS + span * start // self.rows
            moments = first + rng.integers(0, max(1, span * rows // self.rows), rows)
            moments = moments[view] + step * rng.integers(1_000, 600_000, rows)
            order = np.argsort(moments, kind="stable")
            user = np.searchsorted(users, rng.random(rows))[view][order]
            item = np.searchsorted(items, rng.random(rows))[view][order]
            names = pa.array(list(EVENTS))
            yield pa.table(
                {
                    "user": numbered("u", user),
                    "item": numbered("i", item),
                    "time": pa.array(moments[order]),
                    "event": names.take(pa.array(step[order])),
                }
            )

    def write(self, directory: Path, csv_head_rows: int = 0) -> None:
        """Writes `log.parquet`, `log.csv`, and the first rows as `head/log.csv`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "head").mkdir(exist_ok=True)
        header = (",".join(COLUMNS) + "\n").encode()
        left = csv_head_rows
        parquet: pq.ParquetWriter | None = None
        with (
            open(directory / "log.csv", "wb") as whole,
            open(directory / "head" / "log.csv", "wb") as head,
        ):
            whole.write(header)
            head.write(header)
            for chunk in self.chunks():
                parquet = parquet or pq.ParquetWriter(directory / "log.parquet", chunk.schema)
                parquet.write_table(chunk, row_group_size=_CHUNK_ROWS)
                whole.write(csv_lines(chunk))
                head.write(csv_lines(chunk.slice(0, left)))
                left = max(0, left - len(chunk))
        assert parquet is not None
        parquet.close()


def data_section(path: Path) -> dict[str, Any]:
    """The `data:` section that reads a file of the log."""
    return {
        "interactions": [
            {
                "path": str(path),
                "format": "parquet" if path.suffix == ".parquet" else "csv",
                "columns": {"user_id": "user", "item_id": "item", "timestamp": "time"},
                "timestamp_unit": "ms",
                "event": {"column": "event", "values": EVENTS},
            }
        ],
        "split": {"kind": "time", "eval_share": 0.2},
    }


def _cumulative(number: int, exponent: float) -> npt.NDArray[np.float64]:
    """[number] cumulative shares of ranks."""
    weights = np.arange(1, max(2, number) + 1, dtype=np.float64) ** -exponent
    shares = np.cumsum(weights)
    result: npt.NDArray[np.float64] = shares / shares[-1]
    return result


def numbered(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.StringArray:
    """[N] texts of one length."""
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width=7, padding="0")
    return pc.binary_join_element_wise(pa.scalar(prefix), digits, "")


def csv_lines(table: pa.Table) -> bytes:
    """Rows as CSV without quotes and without a header."""
    fields = [table.column(name).cast(pa.string()) for name in table.column_names]
    lines = pc.binary_join_element_wise(*fields, ",")
    lines = pc.binary_join_element_wise(lines, pa.scalar("\n"), "")
    return b"".join(
        chunk.buffers()[2].to_pybytes()[_start(chunk) : _start(chunk, len(chunk))]
        for chunk in lines.chunks
        if len(chunk)
    )


def _start(chunk: pa.StringArray, index: int = 0) -> int:
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)
    return int(offsets[chunk.offset + index])
