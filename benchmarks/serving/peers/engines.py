"""The two HNSW libraries behind one interface: maximum inner product, one thread per search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

M = 16  # links of a vector; twice as many at the lowest level
EF_CONSTRUCTION = 200


class Hnswlib:
    """hnswlib."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: np.ndarray) -> Hnswlib:
        """An index of `vectors` [n, d]."""
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), M=M, ef_construction=EF_CONSTRUCTION)
        index.add_items(vectors)
        return cls(index)

    @classmethod
    def load(cls, path: Path, dimension: int) -> Hnswlib:
        """What `save` wrote."""
        import hnswlib

        index = hnswlib.Index("ip", dimension)
        index.load_index(str(path))
        index.set_num_threads(1)
        return cls(index)

    def save(self, path: Path) -> None:
        """Writes the index."""
        self._index.save_index(str(path))

    def set_ef(self, ef: int) -> None:
        """Size of the list that a search keeps."""
        self._index.set_ef(ef)

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, inner products) [k], best first, of a query [d]."""
        rows, distances = self._index.knn_query(query, k, num_threads=1)
        return rows[0], 1.0 - distances[0]

    def parameters(self) -> dict[str, object]:
        """For the report."""
        import importlib.metadata

        return {
            "library": f"hnswlib {importlib.metadata.version('hnswlib')}",
            "M": M,
            "ef_construction": EF_CONSTRUCTION,
        }


class Faiss:
    """faiss-cpu, IndexHNSWFlat."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: np.ndarray) -> Faiss:
        """An index of `vectors` [n, d]."""
        import faiss

        index = faiss.IndexHNSWFlat(vectors.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.add(vectors)
        return cls(index)

    @classmethod
    def load(cls, path: Path, dimension: int) -> Faiss:
        """What `save` wrote."""
        import faiss

        faiss.omp_set_num_threads(1)
        return cls(faiss.read_index(str(path)))

    def save(self, path: Path) -> None:
        """Writes the index."""
        import faiss

        faiss.write_index(self._index, str(path))

    def set_ef(self, ef: int) -> None:
        """Size of the list that a search keeps."""
        self._index.hnsw.efSearch = ef

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, inner products) [k], best first, of a query [d]."""
        scores, rows = self._index.search(query[None, :], k)
        return rows[0], scores[0]

    def parameters(self) -> dict[str, object]:
        """For the report."""
        import faiss

        return {
            "library": f"faiss-cpu {faiss.__version__}",
            "M": M,
            "ef_construction": EF_CONSTRUCTION,
        }


ENGINES = {"hnswlib": Hnswlib, "faiss": Faiss}
