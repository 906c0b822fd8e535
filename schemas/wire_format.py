"""What hand-written protobuf messages are made of (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1 << 16)
def varint(value: int) -> bytes:
    """A number of 0 or more, seven bits a byte, the lowest first."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)
