"""Large text files -> ranges of lines that several workers read at a time.

The file is read once for that, only to count its lines: a dead letter names its line in the file.
"""

from __future__ import annotations

from typing import BinaryIO

from components.interaction_gen.batches import Extent
from components.interaction_gen.readers import MAX_QUOTED_LINES
from schemas.logs import Table

RANGE_BYTES = 64 << 20
_BLOCK_BYTES = 4 << 20


def line_ranges(handle: BinaryIO, table: Table, range_bytes: int = RANGE_BYTES) -> list[Extent]:
    """Cuts a text file into ranges of about `range_bytes`.

    Args:
      handle: open for binary reading, at the start.
      table: how its rows are written.
      range_bytes: a range is longer where a shorter one could cut through a quoted field.
    """
    quote = None
    if table.format == "csv" and table.quote is not None:
        quote = table.quote.encode(table.encoding)
    ranges: list[Extent] = []
    start, first_line = 0, 1
    position, lines = 0, 0  # read so far
    while block := handle.read(_BLOCK_BYTES):
        border = block.rfind(b"\n") + 1
        if position + border - start >= range_bytes and _outside_of_quotes(block, border, quote):
            end_line = lines + block.count(b"\n") + 1
            ranges.append(Extent(None, start, position + border, first_line))
            start, first_line = position + border, end_line
        position += len(block)
        lines += block.count(b"\n")
    if start < position or not ranges:
        ranges.append(Extent(None, start, None, first_line))
    return ranges


def _outside_of_quotes(block: bytes, border: int, quote: bytes | None) -> bool:
    """Whether no quoted field can reach over a border: none is near enough before it."""
    if quote is None:
        return True
    start = border - 1
    for _ in range(MAX_QUOTED_LINES + 2):
        start = block.rfind(b"\n", 0, start)
        if start < 0:
            return False
    return quote not in block[start:border]
