"""Evaluation queries and the popularity baseline, by hand and against brute force."""

from __future__ import annotations

import itertools

import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from models.queries import Query, build_queries, popularity_lists
from schemas import names

C = names.CONTEXT


def _record(
    user: bytes,
    items: str,
    levels: list[int],
    times: list[int],
    targets: list[int],
    age: float | None = None,
) -> bytes:
    example = tf.train.Example()
    features = example.features.feature
    features[names.USER_ID].bytes_list.value.append(user)
    features[names.ITEM_IDS].bytes_list.value.extend(c.encode() for c in items)
    features[names.LEVELS].int64_list.value.extend(levels)
    features[names.TIMESTAMPS].int64_list.value.extend(times)
    features[names.TARGET_LEVELS].int64_list.value.extend(targets)
    features[names.user_feature("city")].bytes_list.value.extend([b"x", b"y"])
    if age is not None:
        features[names.user_feature("age")].float_list.value.append(age)
    return example.SerializeToString()


KINDS = {"city": "categorical", "age": "numeric"}


def test_one_query_for_every_held_out_moment() -> None:
    record = _record(
        b"u", "abcdeaf", [0, 1, 0, 2, 0, 1, 0], [1, 2, 5, 5, 5, 6, 9], [C, C, 0, 2, C, C, 1], 30
    )
    first, second = build_queries([record], KINDS)
    assert first == Query(
        user_id=b"u",
        history=(b"a", b"b"),
        history_levels=(0, 1),
        targets=(b"c", b"d"),  # e happens at that moment too, but is no target
        target_levels=(0, 2),
        features={"city": (b"x", b"y"), "age": (30.0,)},
    )
    # Time 6 has no target: no query. Its event is history of time 9.
    assert second.history == (b"a", b"b", b"c", b"d", b"e", b"a")
    assert second.history_levels == (0, 1, 0, 2, 0, 1)
    assert second.targets == (b"f",)
    assert second.target_levels == (1,)


def test_targets_of_a_level_are_those_that_reach_it() -> None:
    (query,) = build_queries([_record(b"u", "abc", [0, 0, 0], [1, 1, 1], [0, 1, 2])], KINDS)
    assert query.targets_at(0) == [b"a", b"b", b"c"]
    assert query.targets_at(1) == [b"b", b"c"]
    assert query.targets_at(2) == [b"c"]
    assert query.history == ()
    assert query.features["age"] == ()


def test_an_untimed_log_has_one_query_per_user() -> None:
    record = _record(b"u", "abcd", [0, 2, 1, 0], [0, 0, 1, 1], [C, C, 1, 0])
    (query,) = build_queries([record], KINDS)
    assert query.history == (b"a", b"b")
    assert query.targets == (b"c", b"d")


def test_queries_are_sorted_by_user_and_time() -> None:
    records = [
        _record(b"v", "ab", [0, 0], [4, 8], [0, 0]),
        _record(b"u", "ab", [0, 0], [9, 10], [0, 0]),
        _record(b"u", "ab", [0, 0], [2, 3], [0, 0]),
    ]
    expected = build_queries(records, KINDS)
    assert [query.user_id for query in expected] == [b"u"] * 4 + [b"v"] * 2
    for order in itertools.permutations(records):
        assert build_queries(order, KINDS) == expected


def test_queries_of_one_moment_cut_in_two_chunks_do_not_depend_on_the_order() -> None:
    one = _record(b"u", "ab", [0, 0], [4, 8], [C, 0])
    two = _record(b"u", "abc", [0, 0, 0], [4, 8, 8], [C, C, 0])
    assert build_queries([one, two], KINDS) == build_queries([two, one], KINDS)


def test_no_records_no_queries() -> None:
    assert build_queries([], KINDS) == []


# --- popularity -----------------------------------------------------------------------------


def _query(history: tuple[bytes, ...]) -> Query:
    return Query(b"u", history, (0,) * len(history), (), (), {})


def test_popularity_by_hand() -> None:
    counts = {b"b": 3, b"a": 3, b"c": 7, b"d": 1}
    lists = list(popularity_lists(counts, [_query(()), _query((b"c", b"a"))], 3))
    assert lists == [[b"c", b"a", b"b"], [b"b", b"d"]]  # ties by id; the second runs out


@given(
    st.dictionaries(st.sampled_from([b"%d" % i for i in range(10)]), st.integers(0, 3)),
    st.lists(st.lists(st.sampled_from([b"%d" % i for i in range(10)])), max_size=4),
    st.integers(1, 12),
)
def test_popularity_against_brute_force(
    counts: dict[bytes, int], histories: list[list[bytes]], n: int
) -> None:
    found = list(popularity_lists(counts, [_query(tuple(h)) for h in histories], n))
    for answer, history in zip(found, histories, strict=True):
        remaining = {item: count for item, count in counts.items() if item not in history}
        expected = []
        while remaining and len(expected) < n:
            top = min(remaining, key=lambda item: (-remaining[item], item))
            expected.append(top)
            del remaining[top]
        assert answer == expected
