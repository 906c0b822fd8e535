"""Long work outside the event loop, which other calls need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")

LARGE_BYTES = 2**20
"""Decoding a request of more bytes than this is long work."""


async def aside(is_long: bool, function: Callable[..., _Result], *values: Any) -> _Result:
    """Calls the function in a thread if that is long work, else at once."""
    return await asyncio.to_thread(function, *values) if is_long else function(*values)
