"""The steps of the Beam job."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.shared import Shared

from pipeline.batch_recommend.model import AskedModel, Kind
from pipeline.batch_recommend.scorer import Scorer
from pipeline.batch_recommend.users import DeadLetter, Part, User, read

DEAD = "dead"
COUNTS = "counts"
# Names in COUNTS.
READ = "read"
WRITTEN = "written"
DEAD_PREFIX = "dead:"

_CHUNK_ROWS = 1024  # that travel together from reading to scoring
_SECONDS_BETWEEN_LOGS = 10.0
_LOG = logging.getLogger("csmf.batch_recommend")


class ReadUsers(beam.DoFn):
    """Part -> lists of users; dead letters and counts beside them.

    What is in a list depends on the file alone, so that another runner, or a second attempt, asks
    the model for the same users together.
    """

    def __init__(self, inputs: Mapping[str, Kind], levels: int, batch_size: int) -> None:
        self._inputs = dict(inputs)
        self._levels = levels
        self._size = max(_CHUNK_ROWS // batch_size, 1) * batch_size

    def process(self, part: Part) -> Iterator[list[User] | TaggedOutput]:
        """Reads a part from start to end."""
        chunk: list[User] = []
        for row in read(part, self._inputs, self._levels):
            yield TaggedOutput(COUNTS, (READ, 1))
            if isinstance(row, DeadLetter):
                yield TaggedOutput(DEAD, row)
                continue
            chunk.append(row)
            if len(chunk) == self._size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


class ScoreUsers(beam.DoFn):
    """Lists of users -> tables of recommendations; the model is loaded once in each process."""

    def __init__(
        self, model: AskedModel, weights: Sequence[float] | None, count: int, batch_size: int
    ) -> None:
        self._arguments = (model, weights, count, batch_size)
        self._shared = Shared()
        self._scored = 0
        self._logged = 0.0

    def setup(self) -> None:
        """Loads the model, or takes the one that is loaded."""
        self._scorer: Scorer = self._shared.acquire(lambda: Scorer(*self._arguments))
        self._logged = time.monotonic()

    def process(self, users: list[User]) -> Iterator[pa.Table | TaggedOutput]:
        """Asks for all of them."""
        table = self._scorer.answer(users)
        self._scored += table.num_rows
        if time.monotonic() - self._logged > _SECONDS_BETWEEN_LOGS:
            self._logged = time.monotonic()
            _LOG.info("%s users done by this worker", f"{self._scored:,}")
        yield TaggedOutput(COUNTS, (WRITTEN, table.num_rows))
        yield table


def dead_letter_line(letter: DeadLetter) -> str:
    """One line of dead_letters.jsonl."""
    return json.dumps(letter._asdict(), ensure_ascii=False)


def dead_letter_count(letter: DeadLetter) -> tuple[str, int]:
    """For COUNTS."""
    return DEAD_PREFIX + letter.reason, 1
