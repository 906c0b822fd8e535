from __future__ import annotations

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.interaction_gen.faults import shown
from components.interaction_gen.levels import IGNORED_EVENT, NO_LEVEL, event_parser
from components.interaction_gen.readers import BLANK_LINE, Row
from components.interaction_gen.values import (
    UnusableError,
    identifier,
    iso,
    number,
    texts,
    timestamp_reader,
)
from schemas.logs import InteractionSource
from tests.components.interaction_gen.row_by_row import open_rows

LIMIT = 1024


def log(**given: object) -> InteractionSource:
    settings: dict[str, object] = {"path": "log", "level": "exposure"}
    return InteractionSource.parse(settings | given)


def rows(content: bytes, table: InteractionSource) -> list[Row]:
    return list(open_rows(io.BytesIO(content), "log", table, LIMIT)[1])


HEADERLESS = log(header=False, fields=["user_id", "item_id"])


def test_quotes_delimiters_and_line_numbers() -> None:
    content = b'a,b\n"a,1","b ""x"""\n\n"a\nb",c\r\nlast,row'
    assert [(row.line, row.values) for row in rows(content, HEADERLESS)] == [
        (1, ["a", "b"]),
        (2, ["a,1", 'b "x"']),
        (3, None),
        (4, ["a\nb", "c"]),
        (6, ["last", "row"]),
    ]


def test_an_open_quote_gives_the_following_lines_back() -> None:
    found = rows(b'"open,1\n' + b"a,b\n" * 300 + b'"x","y"\n', HEADERLESS)
    assert len(found) == 302
    assert found[0].fault is not None
    assert found[0].fault.kind == "bad_quoting"
    assert [row.line for row in found] == list(range(1, 303))
    assert all(row.values for row in found[1:])


def test_lines_at_the_limit() -> None:
    fits = b"a," + b"x" * (LIMIT - 2)
    found = rows(fits + b"\n" + fits + b"x\n" + b"a,b\n" + b"z" * 5000, HEADERLESS)
    assert [(row.line, row.fault.kind if row.fault else None) for row in found] == [
        (1, None),
        (2, "line_too_long"),
        (3, None),
        (4, "line_too_long"),
    ]
    assert all(len(row.raw) <= 2000 for row in found)


def test_memory_does_not_grow_with_a_long_line() -> None:
    class Endless(io.RawIOBase):
        """64 MB without a line break; remembers nothing."""

        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            given = min(size, self.left)
            self.left -= given
            return b"x" * given

    tracemalloc.start()
    (row,) = open_rows(Endless(), "log", HEADERLESS, LIMIT)[1]  # type: ignore[arg-type]  # has read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert row.fault is not None
    assert row.fault.kind == "line_too_long"
    assert peak < 4 << 20


@given(st.binary(max_size=400))
def test_every_line_of_any_file_is_accounted_for(content: bytes) -> None:
    without_quotes = content.replace(b'"', b"'")
    found = rows(without_quotes, HEADERLESS)
    assert len(found) == len(without_quotes.removesuffix(b"\n").split(b"\n")) * bool(content)
    for row in rows(content, HEADERLESS):
        assert (row.values is None) == (row.fault is not None)
        assert shown(row.raw).isprintable()
    for row in rows(content, log(format="jsonl")):
        assert (row.values is None) == (row.fault is not None)


@given(
    st.lists(
        st.tuples(
            *[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2
        ),
        max_size=5,
    )
)
def test_what_the_csv_module_writes_is_read_back(records) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(records)
    found = rows(text.getvalue().encode(), HEADERLESS)
    # \r before \n is the end of a line, also inside quotes.
    assert [tuple(row.values or ()) for row in found] == [
        tuple(value.replace("\r\n", "\n") for value in record) for record in records
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_name() -> None:
    content = io.BytesIO(b"\xef\xbb\xbfuser_id,item_id\na,b\n")
    positions, found = open_rows(content, "log", log(), LIMIT)
    assert positions == {"user_id": 0, "item_id": 1}
    assert [row.values for row in found] == [["a", "b"]]


def test_json_lines() -> None:
    content = "\n".join(
        [json.dumps({"user_id": 1, "item_id": "é", "x": 0}), "{", "3", "", '{"user_id": null}']
    )
    found = rows(content.encode(), log(format="jsonl"))
    assert [row.values for row in found] == [[1, "é"], None, None, None, [None, None]]
    assert [row.fault.kind for row in found if row.fault] == ["bad_json", "bad_json", BLANK_LINE]


def test_identifiers() -> None:
    assert identifier(" a b ", "item_id") == b"a b"
    assert identifier(7, "item_id") == b"7"
    assert identifier(7.0, "item_id") == b"7"
    assert identifier("7.0", "item_id") == b"7.0"
    assert identifier("日本", "item_id") == "日本".encode()
    for bad in ("", "  ", None, True, [1], 7.5, "a\nb", "a\0", "\ud800", "x" * 1025):
        with pytest.raises(UnusableError):
            identifier(bad, "item_id")


@pytest.mark.parametrize(
    ("unit", "value", "milliseconds"),
    [
        ("s", "881250949", 881_250_949_000),
        ("s", 881250949, 881_250_949_000),
        ("s", "881250949.25", 881_250_949_250),
        ("ms", "881250949001", 881_250_949_001),
        ("us", "881250949001999", 881_250_949_001),
        ("iso8601", "1997-12-04T15:55:49Z", 881_250_949_000),
        ("iso8601", "1997-12-04 15:55:49.001", 881_250_949_001),
        ("iso8601", "1997-12-04T16:55:49+01:00", 881_250_949_000),
    ],
)
def test_timestamps(unit: str, value: object, milliseconds: int) -> None:
    assert timestamp_reader(unit)(value) == milliseconds


@pytest.mark.parametrize(
    ("unit", "value", "reason"),
    [
        ("s", "881250949000", "in milliseconds it would fit (timestamp_unit: ms)"),
        ("ms", "881250949", "in seconds it would fit (timestamp_unit: s)"),
        ("ms", "881250949000000", "in microseconds it would fit"),
        ("s", "5", "outside 1990..2100 when read as seconds"),
        ("s", True, "not a number"),
        ("s", "1997-12-04", "set `timestamp_unit: iso8601`"),
        ("s", "inf", "not a number"),
        ("s", None, "empty"),
        ("iso8601", "881250949", "in seconds it would fit"),
        ("iso8601", "yesterday", "not ISO 8601"),
        ("iso8601", "1912-06-23", "outside 1990..2100"),
    ],
)
def test_bad_timestamps_say_what_would_fit(unit: str, value: object, reason: str) -> None:
    with pytest.raises(UnusableError) as error:
        timestamp_reader(unit)(value)
    assert reason in str(error.value)


@given(st.integers(631_152_000_000, 4_102_444_799_999))
def test_iso_is_the_inverse_of_reading_iso(milliseconds: int) -> None:
    assert timestamp_reader("iso8601")(iso(milliseconds)) == milliseconds


def test_numbers_and_texts() -> None:
    assert number(" 4 ") == 4.0
    assert number("") is None
    assert number(None) is None
    with pytest.raises(ValueError, match="finite"):
        number("inf")
    assert texts("a| b  c ||d", "|") == [b"a", b"b c", b"d"]
    assert texts("a|b", None) == [b"a|b"]
    assert texts(["a", None, 3.0, "b|c"], "|") == [b"a", b"3", b"b", b"c"]
    assert texts(None, None) == []


OBJECTIVES = ["exposure", "click", "conversion"]


def levels_of(source: InteractionSource, *values: object) -> tuple[int, bool]:
    columns = list(source.required_columns())
    parse = event_parser(source, {name: i for i, name in enumerate(columns)}, OBJECTIVES, False)
    event = parse(["u", "i", *values])
    return event.level, event.closed


def test_levels_by_rules() -> None:
    source = log(
        level=None,
        levels={"click": {"column": "c"}, "conversion": {"column": ["b", "l"], "at_least": 2}},
    )
    assert levels_of(source, "0", "0", "1") == (0, False)
    assert levels_of(source, "1", "", "") == (1, False)
    assert levels_of(source, "1", "0", "2") == (2, False)
    assert levels_of(source, "0", "3", "0") == (2, True)  # closed downwards
    with pytest.raises(UnusableError, match="column 'l' holds 'x'"):
        levels_of(source, "1", "2", "x")


def test_rows_below_the_first_rule_have_no_level() -> None:
    source = log(level=None, levels={name: {"column": name} for name in OBJECTIVES})
    assert levels_of(source, 0, 0, 0) == (NO_LEVEL, False)
    assert levels_of(source, 0, 1, 0) == (1, True)


def test_levels_by_event() -> None:
    source = log(
        level=None, event={"column": "e", "values": {"view": "exposure", 2: "click"}, "ignore": [3]}
    )
    assert levels_of(source, "view") == (0, False)
    assert levels_of(source, 2) == (1, False)
    assert levels_of(source, " 2 ") == (1, False)
    assert levels_of(source, "3") == (IGNORED_EVENT, False)
    with pytest.raises(UnusableError, match=r"unknown event 'views'\. Did you mean 'view'"):
        levels_of(source, "views")
