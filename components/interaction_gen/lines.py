"""Text files -> blocks of whole lines, and blocks -> numbered lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from components.interaction_gen.faults import RAW_CHARACTERS

UTF8_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line of a file."""

    number: int  # from 1
    raw: bytes  # without \n and \r; only the start where too_long
    too_long: bool


class Lines(Iterator[Line]):
    """Numbered lines; takes lines back, which a quoted csv field that never ends needs.

    Attributes:
      taken: lines given out and not taken back.
    """

    def __init__(self, source: Iterator[Line], encoding: str) -> None:
        self.taken = 0
        self._source = source
        self._returned: deque[Line] = deque()
        # A byte order mark may precede the first line.
        self._strip_bom = encoding.lower().replace("_", "-") in ("utf-8", "utf8")

    def __next__(self) -> Line:
        line = self._returned.popleft() if self._returned else next(self._source)
        self.taken += 1
        if line.number == 1 and self._strip_bom and line.raw.startswith(UTF8_BOM):
            return line._replace(raw=line.raw[len(UTF8_BOM) :])
        return line

    def give_back(self, lines: list[Line]) -> None:
        """Puts lines back in front, in their order."""
        self.taken -= len(lines)
        self._returned.extendleft(reversed(lines))


def read_blocks(
    handle: BinaryIO, limit: int, block_bytes: int, size: int | None = None
) -> Iterator[bytes]:
    r"""Reads whole lines, each with its \n, which only the last line of a file may lack.

    Of a line that is longer than `limit` and than a block, the first `limit` + 1 bytes remain, so
    memory is bounded and its length still says that it is too long.

    Args:
      handle: open for binary reading, at the start of a line.
      limit: bytes of a line.
      block_bytes: to read at a time.
      size: bytes to read in all; None up to the end.
    """
    carry = b""
    skipping = False  # the rest of a line that is too long
    left = size
    while block := handle.read(block_bytes if left is None else min(block_bytes, left)):
        if left is not None:
            left -= len(block)
        if skipping:
            stop = block.find(b"\n")
            if stop < 0:
                continue
            block = block[stop:]
            skipping = False
        if carry:
            block = carry + block
        border = block.rfind(b"\n") + 1
        carry = block[border:]
        if len(carry) > limit:
            carry = carry[: limit + 1]
            skipping = True
        if border:
            yield block[:border]
    if carry:
        yield carry


def lines_of(blocks: Iterator[bytes], limit: int) -> Iterator[Line]:
    """Splits blocks into lines."""
    number = 1
    for block in blocks:
        pieces = block.split(b"\n")
        if not pieces[-1]:
            pieces.pop()
        for piece in pieces:
            yield as_line(number, piece, limit)
            number += 1


def as_line(number: int, piece: bytes, limit: int) -> Line:
    """A line of its bytes without the line feed."""
    if len(piece) > limit:
        return Line(number, piece[: 4 * RAW_CHARACTERS], True)
    return Line(number, piece[:-1] if piece.endswith(b"\r") else piece, False)
