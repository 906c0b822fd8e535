"""What the right answer is: NumPy brute force over the exported item vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from components.serving_validator import spec

TOLERANCE = 1e-4


class Oracle:
    """Scores every item of the catalogue for a fused query.

    Attributes:
      item_ids: [n], row i belongs to vector i.
    """

    def __init__(self, item_ids: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> None:
        self.item_ids = list(item_ids)
        self._vectors = vectors
        self._rows = {item_id: row for row, item_id in enumerate(self.item_ids)}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads `vectors.npz`.

        Raises:
          OSError, KeyError, ValueError: it is missing or does not hold the two arrays.
        """
        with np.load(path) as arrays:
            item_ids = arrays[spec.ITEM_IDS_ARRAY].tolist()
            return cls(item_ids, arrays[spec.ITEM_VECTORS_ARRAY].astype(np.float32))

    def __contains__(self, item_id: bytes) -> bool:
        return item_id in self._rows

    def scores(
        self,
        blocks: npt.NDArray[np.float32],
        block_sizes: Sequence[int],
        weights: Sequence[float],
        excluded: Collection[bytes],
    ) -> npt.NDArray[np.float32]:
        """Fused scores [n], -inf for excluded items.

        Args:
          blocks: [D], the user's blocks.
          block_sizes: [K], summing up to D.
          weights: [K].
          excluded: ids that may not come back; unknown ones are ignored.

        Raises:
          ValueError: the sizes do not fit together.
        """
        if sum(block_sizes) != len(blocks) or len(blocks) != self._vectors.shape[1]:
            raise ValueError(
                f"embed_user gives {len(blocks)} numbers in blocks of {list(block_sizes)}, the "
                f"item vectors have {self._vectors.shape[1]}"
            )
        query = blocks * np.repeat(np.asarray(weights, np.float32), block_sizes)
        scores = self._vectors @ query
        scores[[self._rows[item_id] for item_id in excluded if item_id in self._rows]] = -np.inf
        return scores

    def best(self, scores: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
        """The `n` highest scores of items that are not excluded, descending; fewer if none left."""
        left = scores[np.isfinite(scores)]
        return np.sort(left)[::-1][:n]

    def score_of(self, scores: npt.NDArray[np.float32], item_id: bytes) -> float:
        """The score of one item, -inf if it is unknown."""
        row = self._rows.get(item_id)
        return float(scores[row]) if row is not None else -np.inf


def tolerance(scores: npt.NDArray[np.float32]) -> float:
    """Allowed difference: absolute up to scores of 1, relative above, where float32 is coarser."""
    finite = np.abs(scores[np.isfinite(scores)])
    return TOLERANCE * max(1.0, float(finite.max(initial=0.0)))
