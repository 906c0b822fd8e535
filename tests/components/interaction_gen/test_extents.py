"""Ranges of large text files."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.interaction_gen import extents
from components.interaction_gen.extents import line_ranges
from schemas.logs import InteractionSource


def source(**given: object) -> InteractionSource:
    return InteractionSource.parse({"path": "log", "level": "exposure", **given})


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "_BLOCK_BYTES", 400)


@given(st.lists(st.binary(max_size=20), max_size=300), st.integers(1, 1000), st.booleans())
def test_ranges_are_whole_lines_one_after_the_other(lines, size, end) -> None:
    content = b"\n".join(lines) + b"\n" * end
    found = line_ranges(io.BytesIO(content), source(format="jsonl"), size)
    assert found[0].start == 0
    assert found[0].first_line == 1
    for one, following in pairwise(found):
        assert one.end == following.start
        assert following.start - one.start >= size
        before = content[: following.start]
        assert before.endswith(b"\n")
        assert following.first_line == before.count(b"\n") + 1
    assert found[-1].end in (None, len(content))
    assert found[-1].start < len(content) or not content


@pytest.mark.parametrize(
    ("quote", "line", "several"),
    [
        ('"', lambda n: f"u,i{n}\n", True),
        ('"', lambda n: f'u,"i{n}"\n', False),
        (None, lambda n: f'u,"i{n}"\n', True),
        ('"', lambda n: f'u,"i{n}"\n' if n % 300 == 0 else f"u,{n}\n", True),
    ],
)
def test_no_range_begins_where_a_quoted_field_might_reach(
    quote: str | None, line: Callable[[int], str], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents, "_BLOCK_BYTES", 1000)
    lines = [line(n) for n in range(2000)]
    found = line_ranges(io.BytesIO("".join(lines).encode()), source(quote=quote), 1000)
    assert (len(found) > 1) == several
    if quote:
        for extent in found[1:]:
            near = lines[max(0, extent.first_line - 102) : extent.first_line - 1]
            assert not any(quote in text for text in near)
