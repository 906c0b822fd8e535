"""A synthetic catalogue: as many titles as items, and three features of different kinds.

Nothing in it was ever sold by anybody; only its sizes and shares resemble those of a shop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.ingestion.log import SyntheticLog, csv_lines, data_section, numbered

ITEMS = "items"  # files of this name hold a catalogue
_LOG_ROWS = 2000  # so that what is measured is the catalogue
_BRANDS = 20_000
_GENRES = 300
_WORDS = 5_000  # of titles


@dataclass(frozen=True)
class SyntheticCatalogue:
    """Parameters of a catalogue; the same ones give the same rows."""

    items: int
    seed: int = 1

    def table(self) -> pa.Table:
        """The items: an id, a title of four words, a brand, one to three genres, a price."""
        rng = np.random.default_rng([self.seed, 7])
        brands, genres, words = (
            _names(prefix, count)
            for prefix, count in (("brand ", _BRANDS), ("genre-", _GENRES), ("word", _WORDS))
        )
        title = [words.take(pa.array(rng.integers(0, _WORDS, self.items))) for _ in range(4)]
        several = [genres.take(pa.array(rng.integers(0, _GENRES, self.items))) for _ in range(3)]
        count = pa.array(rng.choice(3, self.items, p=(0.5, 0.3, 0.2)))
        joined = [pc.binary_join_element_wise(*several[: n + 1], "|") for n in range(3)]
        return pa.table(
            {
                "item": numbered("i", np.arange(self.items)),
                "title": pc.binary_join_element_wise(*title, " "),
                "brand": brands.take(pa.array(rng.zipf(1.3, self.items) % _BRANDS)),
                "genres": pc.choose(count, *joined),
                "price": np.round(rng.lognormal(3.0, 1.0, self.items), 2),
            }
        )

    def write(self, directory: Path) -> None:
        """Writes `items.parquet`, `items.csv` and a short log."""
        directory.mkdir(parents=True, exist_ok=True)
        table = self.table()
        pq.write_table(table, directory / f"{ITEMS}.parquet")
        header = (",".join(table.column_names) + "\n").encode()
        (directory / f"{ITEMS}.csv").write_bytes(header + csv_lines(table))
        SyntheticLog(_LOG_ROWS, self.seed).write(directory / "few")


def catalogue_section(path: Path) -> dict[str, Any]:
    """The `data:` section that reads a file of the catalogue."""
    return data_section(path.parent / "few" / "log.csv") | {
        "catalogue": {
            "path": str(path),
            "format": "parquet" if path.suffix == ".parquet" else "csv",
            "columns": {"item_id": "item", "title": "title"},
            "features": [
                {"name": "brand", "column": "brand", "kind": "categorical"},
                {"name": "genres", "column": "genres", "kind": "categorical", "separator": "|"},
                {"name": "price", "column": "price", "kind": "numeric"},
            ],
        }
    }


def _names(prefix: str, count: int) -> pa.StringArray:
    return pa.array([f"{prefix}{number}" for number in range(count)])
