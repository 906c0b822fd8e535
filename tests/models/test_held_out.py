"""The validation cut and the ranking of held-out moments against brute force."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import metrics
from models.held_out import HeldOut, cut
from models.timelines import Timelines
from tests.models.logs import Log, timelines_of

N_ITEMS, D = 12, 5


def _logs_of(timelines: Timelines) -> list[Log]:
    columns = (timelines.items, timelines.levels, timelines.times, timelines.targets)
    return [
        list(zip(*(column[a:b].tolist() for column in columns), strict=True))
        for a, b in zip(timelines.offsets[:-1], timelines.offsets[1:], strict=True)
    ]


@st.composite
def _logs(draw: st.DrawFn) -> list[Log]:
    """As ingested: ties, unknown items, context; an item is a target at its first event only."""
    logs = []
    for _ in range(draw(st.integers(1, 5))):
        times = sorted(draw(st.lists(st.integers(0, 5), max_size=9)))
        log: Log = []
        for time in times:
            item = draw(st.integers(-1, N_ITEMS - 1))
            again = item >= 0 and any(event[0] == item for event in log)
            level = draw(st.integers(0, 2))
            log.append((item, level, time, -1 if again else draw(st.integers(-1, level))))
        logs.append(log)
    return logs


# --- cut ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(_logs(), st.sampled_from([0.1, 0.3, 0.49]))
def test_an_ordered_cut_is_a_moment(logs: list[Log], share: float) -> None:
    timelines = timelines_of(logs)
    training, validation = cut(timelines, True, share, seed=0)
    train_logs, valid_logs = _logs_of(training), _logs_of(validation)
    targets = sorted(event[2] for log in logs for event in log if event[3] >= 0)
    assert len(train_logs) == len(valid_logs) == len(logs)
    for part in (training, validation):
        assert np.array_equal(part.user_ids, timelines.user_ids)
        assert np.array_equal(part.features["city"], timelines.features["city"])
    if not targets:
        assert train_logs == valid_logs == logs
        return
    border = targets[int(len(targets) * (1 - share))]
    for log, before, everything in zip(logs, train_logs, valid_logs, strict=True):
        assert before == [event for event in log if event[2] < border]
        assert everything == [
            (item, level, time, target if time >= border else -1)
            for item, level, time, target in log
        ]
    held = sum(event[3] >= 0 for log in valid_logs for event in log)
    assert held >= len(targets) * share, "and more only because of ties"
    assert held - targets.count(border) < len(targets) * share + 1


def test_an_ordered_cut_by_hand() -> None:
    logs = [
        [(1, 0, 1, 0), (2, 2, 5, 2), (3, 0, 9, 0)],
        [(4, 1, 2, 1), (1, 0, 8, 0), (4, 2, 9, -1)],
    ]
    training, validation = cut(timelines_of(logs), True, 0.4, seed=0)
    # Targets at 1, 2, 5, 8, 9: the last two of five are held out.
    assert _logs_of(training) == [[(1, 0, 1, 0), (2, 2, 5, 2)], [(4, 1, 2, 1)]]
    assert _logs_of(validation) == [
        [(1, 0, 1, -1), (2, 2, 5, -1), (3, 0, 9, 0)],
        [(4, 1, 2, -1), (1, 0, 8, 0), (4, 2, 9, -1)],
    ]


def _unordered_logs(n: int, size: int) -> list[Log]:
    rng = np.random.default_rng(3)
    return [
        [
            (int(item), level := int(rng.integers(0, 3)), 0, level if rng.random() < 0.9 else -1)
            for item in rng.choice(N_ITEMS, size, replace=False)
        ]
        for _ in range(n)
    ]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_an_unordered_cut_holds_out_random_targets_of_every_user(size: int) -> None:
    logs = _unordered_logs(300, size)
    training, validation = cut(timelines_of(logs), False, 0.3, seed=5)
    held = targets = 0
    for log, kept, everything in zip(logs, _logs_of(training), _logs_of(validation), strict=True):
        assert kept, "every user keeps an event"
        out = [event for event in log if event not in kept]
        assert kept == [event for event in log if event not in out], "order and values stay"
        assert all(event[3] >= 0 for event in out)
        assert everything == [
            *((item, level, 0, -1) for item, level, _, _ in kept),
            *((item, level, 1, target) for item, level, _, target in out),
        ]
        held += len(out)
        targets += sum(event[3] >= 0 for event in log)
    expected = {1: 0.0, 2: 0.24, 8: 0.3}[size]  # of two, one at most: .9 (.3 .7 + ..) and so on
    assert held / targets == pytest.approx(expected, abs=0.04)


def test_the_seed_decides_what_an_unordered_cut_holds_out() -> None:
    timelines = timelines_of(_unordered_logs(20, 6))
    one, same, other = (_logs_of(cut(timelines, False, 0.3, seed)[0]) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_cut_of_nothing() -> None:
    for ordered in (True, False):
        for logs in ([], [[]], [[(3, 0, 1, -1)]]):
            training, validation = cut(timelines_of(logs), ordered, 0.2, 0)
            assert len(HeldOut.of(validation, 10, 0)) == 0
            assert len(training.items) == sum(map(len, logs))


# --- moments --------------------------------------------------------------------------------


def _moments(logs: list[Log]) -> list[tuple[int, list[int], list[tuple[int, int]]]]:
    """(timeline, items before, [(target, level)]) of every moment with a target."""
    moments = []
    for t, log in enumerate(logs):
        for time in sorted({event[2] for event in log}):
            targets = [(i, target) for i, _, at, target in log if at == time]
            targets = [(i, target) for i, target in targets if i >= 0 and target >= 0]
            if targets:
                moments.append((t, [event[0] for event in log if event[2] < time], targets))
    return moments


def _found(held: HeldOut) -> list[tuple[int, list[int], list[tuple[int, int]]]]:
    return [
        (
            int(owner),
            held.timelines.items[held.timelines.offsets[owner] : end].tolist(),
            [
                (i, level)
                for i, level in zip(items.tolist(), levels.tolist(), strict=True)
                if i >= 0
            ],
        )
        for owner, end, items, levels in zip(
            held.owner, held.history_end, held.targets, held.target_levels, strict=True
        )
    ]


@settings(deadline=None)
@given(_logs(), st.integers(1, 6), st.integers(0, 3))
def test_moments_against_the_oracle(logs: list[Log], limit: int, seed: int) -> None:
    timelines = timelines_of(logs)
    everything = _moments(logs)
    assert _found(HeldOut.of(timelines, 1000, 0)) == everything
    sample = _found(HeldOut.of(timelines, limit, seed))
    assert len(sample) == min(limit, len(everything))
    remaining = iter(everything)
    assert all(moment in remaining for moment in sample), "a part of them, in their order"
    assert sample == _found(HeldOut.of(timelines, limit, seed))


def test_another_seed_is_another_sample() -> None:
    timelines = timelines_of([[(i, 0, i, 0) for i in range(12)] for _ in range(5)])
    owners = [HeldOut.of(timelines, 20, seed).history_end.tolist() for seed in (1, 2)]
    assert owners[0] != owners[1]


@settings(deadline=None, max_examples=50)
@given(_logs(), st.integers(1, 10))
def test_user_inputs_against_the_oracle(logs: list[Log], length: int) -> None:
    held = HeldOut.of(timelines_of(logs), 1000, 0)
    rows = []
    for inputs in held.user_inputs(length, n_users=99):
        assert inputs.history_items.shape[1] <= length
        for row in range(len(inputs.user_ids)):
            known = inputs.history_items[row].numpy() >= 0
            rows.append(
                (
                    int(inputs.user_ids[row]) - 10,
                    inputs.history_items[row].numpy()[known].tolist(),
                    inputs.history_levels[row].numpy()[known].tolist(),
                    inputs.history_ranks[row].numpy()[known].tolist(),
                    inputs.features["city"][row].numpy().tolist(),
                )
            )
    expected = []
    for t, before, _ in _moments(logs):
        window = list(enumerate(reversed(logs[t][: len(before)])))[:length]
        window = [(rank, event) for rank, event in window if event[0] >= 0]
        expected.append(
            (
                t,
                [event[0] for _, event in window],
                [event[1] for _, event in window],
                [rank for rank, _ in window],
                [100 + t],
            )
        )
    assert rows == expected


# --- ranking --------------------------------------------------------------------------------


def _vectors(n_queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n_queries, D)).astype(np.float32),
        rng.normal(size=(N_ITEMS, D)).astype(np.float32),
    )


def _brute_force(held: HeldOut, users: np.ndarray, items: np.ndarray, k: int) -> list[list[int]]:
    lists = []
    for (_, seen, _), user in zip(_found(held), users, strict=True):
        scores = items.astype(float) @ user.astype(float)
        ranking = [int(i) for i in np.argsort(-scores) if i not in seen]
        lists.append((ranking + [-1] * k)[:k])
    return lists


@settings(deadline=None, max_examples=60)
@given(_logs(), st.integers(1, N_ITEMS))
def test_top_against_brute_force(logs: list[Log], k: int) -> None:
    held = HeldOut.of(timelines_of(logs), 1000, 0)
    users, items = _vectors(len(held))
    top = held.top(users, items, k)
    assert top.shape == (len(held), k)
    assert top.tolist() == _brute_force(held, users, items, k)


def test_lists_are_padded_where_fewer_items_remain() -> None:
    held = HeldOut.of(timelines_of([[(i, 0, i, 0 if i == 10 else -1) for i in range(11)]]), 9, 0)
    users, items = _vectors(1)
    top = held.top(users, items, 4)
    assert set(top[0, :2].tolist()) == {10, 11}
    assert top[0, 2:].tolist() == [-1, -1]
    assert held.recall(top, 0, 4).tolist() == [1.0]


def test_more_queries_than_a_batch_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    logs: list[Log] = [
        [(int(i), 0, t, 0) for t, i in enumerate(rng.choice(N_ITEMS, 4, replace=False))]
        for _ in range(300)
    ]
    held = HeldOut.of(timelines_of(logs), 2000, 0)
    assert len(held) == 1200
    users, items = _vectors(1200)
    assert held.top(users, items, 5).tolist() == _brute_force(held, users, items, 5)
    batches = list(held.user_inputs(3, 99))
    assert len(batches) > 1
    assert np.concatenate([b.user_ids for b in batches]).tolist() == (held.owner + 10).tolist()
    places = np.array([1100, 3, 700])
    part = held.only(places)
    assert _found(part) == [_found(held)[place] for place in places]
    np.testing.assert_array_equal(
        part.top(users[places], items, 5), held.top(users, items, 5)[places]
    )


@settings(deadline=None, max_examples=60)
@given(_logs(), st.integers(0, 2), st.integers(1, N_ITEMS))
def test_recall_and_ndcg_equal_the_metrics(logs: list[Log], level: int, k: int) -> None:
    held = HeldOut.of(timelines_of(logs), 1000, 0)
    users, items = _vectors(len(held), seed=1)
    top = held.top(users, items, N_ITEMS)
    recalls, ndcgs = held.recall(top, level, k), held.ndcg(top, level, k)
    for query, (_, _, targets) in enumerate(_found(held)):
        relevant = {b"%d" % item for item, at in targets if at >= level}
        ranking = [b"%d" % item for item in top[query] if item >= 0]
        if relevant:
            assert recalls[query] == pytest.approx(metrics.recall_at(ranking, relevant, k))
            assert ndcgs[query] == pytest.approx(metrics.ndcg_at(ranking, relevant, k))
        else:
            assert np.isnan(recalls[query])
            assert np.isnan(ndcgs[query])


@settings(deadline=None, max_examples=60)
@given(_logs(), st.integers(0, 2), st.integers(1, N_ITEMS + 3), st.integers(0, 9))
def test_recall_without_lists_is_that_of_the_lists(
    logs: list[Log], level: int, k: int, seed: int
) -> None:
    """Small whole numbers, so that many items score alike."""
    held = HeldOut.of(timelines_of(logs), 1000, 0)
    rng = np.random.default_rng(seed)
    users = rng.integers(-1, 2, (len(held), D)).astype(np.float32)
    items = rng.integers(-1, 2, (N_ITEMS, D)).astype(np.float32)
    expected = held.recall(held.top(users, items, min(k, N_ITEMS)), level, k)
    np.testing.assert_array_equal(held.recall_of(users, items, level, k), expected)


def test_recall_without_lists_of_many_queries_and_of_none() -> None:
    rng = np.random.default_rng(0)
    logs: list[Log] = [
        [(int(i), int(rng.integers(0, 3)), t // 2, 1) for t, i in enumerate(rng.permutation(8))]
        for _ in range(300)
    ]
    held = HeldOut.of(timelines_of(logs), 2000, 0)
    assert len(held) == 1200
    users, items = _vectors(1200)
    for level in (1, 2):
        expected = held.recall(held.top(users, items, 3), level, 3)
        np.testing.assert_array_equal(held.recall_of(users, items, level, 3), expected)
    nothing = held.only(np.zeros(0, np.int64))
    assert nothing.recall_of(users[:0], items, 0, 3).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_hits(bad: float) -> None:
    held = HeldOut.of(timelines_of([[(3, 0, 1, 0)], [(4, 0, 1, 0)]]), 9, 0)
    scores = np.zeros((2, N_ITEMS), np.float32)
    scores[0, 3] = bad
    scores[1, 4] = 1.0
    assert held.recall_by(scores, 0, 0, 5).tolist() == [0.0, 1.0]


def test_nearness_by_hand() -> None:
    """Of the query's three targets two reach the level, in places 0 and 3 of four."""
    held = HeldOut.of(timelines_of([[(5, 0, 1, 0), (6, 2, 1, 2), (7, 1, 1, 1)]]), 9, 0)
    scores = np.full((1, N_ITEMS), -1.0, np.float32)
    scores[0, [6, 1, 2, 7]] = [4.0, 3.0, 2.0, 1.0]
    scores[0, 5] = -np.inf
    assert held.nearness_by(scores, 0, 1, 2)[0] == pytest.approx((1 + 2 / 5) / 2)
    # What may not be found is as far away as can be; who ties comes last.
    assert held.nearness_by(scores, 0, 0, 2)[0] == pytest.approx((0 + 1 + 2 / 5) / 3)
    scores[0, 8] = 4.0
    assert held.nearness_by(scores, 0, 2, 2)[0] == pytest.approx(2 / 3)


def test_a_training_target_knows_no_level_of_a_held_out_event():
    log = timelines_of([[(5, 0, 1, 2), (6, 0, 2, 0), (7, 0, 8, 0), (5, 2, 9, -1)]])
    training, validation = cut(log, ordered=True, share=0.3, seed=0)
    assert training.items.tolist() == [5, 6]
    assert training.targets.tolist() == [0, 0]  # the purchase at time 9 is not known yet
    assert validation.targets.tolist() == [-1, -1, 0, -1]


def test_a_held_out_item_is_no_context_of_a_later_chunk():
    chunks = [[(1, 0, 0, 0), (2, 0, 0, 0)], [(2, 0, 0, -1), (3, 0, 0, 0), (4, 0, 0, 0)]]
    log = dataclasses.replace(timelines_of(chunks), user_ids=np.array([10, 10], np.int32))
    for seed in range(30):
        training, validation = cut(log, ordered=False, share=0.4, seed=seed)
        held = set(validation.items[validation.targets >= 0].tolist())
        assert not held & set(training.items.tolist())
        history = validation.items[validation.targets < 0]
        assert not held & set(history.tolist())
