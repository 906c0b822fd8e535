"""Training batches against a slow oracle that walks through the events one by one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batches import Batch, BatchMaker
from models.settings import NegativeSettings, StageSettings, TowerSettings
from tests.models.logs import Log, offsets_of, timelines_of

N_ITEMS, UNKNOWN_USER = 9, 77
GONE = -1e8  # offsets below it mean "removed"


def _maker(
    logs: list[Log],
    ordered: bool,
    level: int,
    *,
    negatives: NegativeSettings | None = None,
    history_length: int = 4,
    n_items: int = N_ITEMS,
    seed: int = 0,
    **stage: Any,
) -> BatchMaker:
    common: dict[str, Any] = {
        "name": "stage",
        "batch_size": 3,
        "history_dropout": 0.0 if ordered else 0.5,
        "user_id_dropout": 0.0,
    }
    return BatchMaker(
        timelines_of(logs),
        ordered,
        level,
        TowerSettings(history_length=history_length),
        StageSettings(**(common | stage)),
        negatives or NegativeSettings(kind="exact"),
        n_items,
        UNKNOWN_USER,
        seed,
    )


@st.composite
def _ordered_logs(draw: st.DrawFn) -> list[Log]:
    """As ingested: ties, unknown items, context, items again at a higher level; first = target."""
    logs = []
    for _ in range(draw(st.integers(1, 4))):
        times = sorted(draw(st.lists(st.integers(0, 4), max_size=9)))
        log: Log = []
        for time in times:
            item = draw(st.integers(-1, N_ITEMS - 1))
            again = any(event[0] == item for event in log)
            target = -1 if again else draw(st.integers(-1, 2))
            log.append((item, draw(st.integers(0, 2)), time, target))
        logs.append(log)
    return logs


@st.composite
def _unordered_logs(draw: st.DrawFn) -> list[Log]:
    """As ingested: every item once, in one moment."""
    logs = []
    for _ in range(draw(st.integers(1, 4))):
        items = draw(st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=8))
        items += [-1] * draw(st.integers(0, 1))
        log: Log = []
        for item in items:
            level = draw(st.integers(0, 2))
            log.append((item, level, 0, draw(st.sampled_from([-1, level]))))
        logs.append(log)
    return logs


def _rows(batch: Batch) -> list[tuple[int, list[tuple[int, int, int]], list[int], np.ndarray]]:
    """(timeline, history as (item, level, rank), items of the positives, offsets) of each row."""
    rows, offsets = [], offsets_of(batch)
    for row, user in enumerate(batch.user_ids):
        known = np.flatnonzero(batch.history_items[row] >= 0)
        columns = batch.positives[row][batch.positives[row] >= 0]
        rows.append(
            (
                int(user) - 10,
                [
                    (
                        int(batch.history_items[row, h]),
                        int(batch.history_levels[row, h]),
                        int(h),
                    )
                    for h in known
                ],
                [int(item) for item in batch.candidates[columns]],
                offsets[row],
            )
        )
    return rows


def _best(log: Log, item: int) -> int:
    return max((max(event[1], event[3]) for event in log if event[0] == item), default=-1)


def _check_offsets(
    batch: Batch, offsets: np.ndarray, log: Log, seen: set[int], level: int, hard: float
) -> None:
    for item, offset in zip(batch.candidates.tolist(), offsets, strict=True):
        best = _best(log, item)
        if item in seen or best >= level:
            assert offset < GONE, item
        elif best == level - 1 and best >= 0:
            assert offset == pytest.approx(math.log(hard)), item
        else:
            assert offset == 0, item


def _epoch(maker: BatchMaker) -> list[Batch]:
    """Batches until every positive was there once."""
    batches, missing = [], len(maker.positives)
    for batch in maker.batches():
        batches.append(batch)
        missing -= int((batch.positives >= 0).sum())
        if missing <= 0:
            break
    assert missing == 0
    return batches


# --- ordered --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(_ordered_logs(), st.integers(0, 2), st.integers(1, 4), st.integers(1, 10), st.integers(0, 9))
def test_ordered_rows_against_the_oracle(
    logs: list[Log], level: int, width: int, length: int, seed: int
) -> None:
    maker = _maker(
        logs,
        True,
        level,
        history_length=length,
        targets_per_row=width,
        seed=seed,
        hard_negative_weight=3.0,
    )
    wanted = sorted(
        (t, item)
        for t, log in enumerate(logs)
        for item, _, _, target in log
        if item >= 0 and target >= level
    )
    if not wanted:
        return
    found = []
    for batch in _epoch(maker):
        assert np.array_equal(batch.candidates, np.arange(N_ITEMS))
        assert not batch.log_q.any()
        assert len(batch.user_ids) <= 3
        for row, (t, history, positives, offsets) in enumerate(_rows(batch)):
            log = logs[t]
            found += [(t, item) for item in positives]
            assert batch.features["city"][row].tolist() == [100 + t]
            places = [next(i for i, e in enumerate(log) if e[0] == p) for p in positives]
            assert places == sorted(places)
            assert max(places) - min(places) < width
            now = log[places[0]][2]
            past = [event for event in log if event[2] < now]
            assert history == [
                (event[0], event[1], rank)
                for rank, event in enumerate(reversed(past[-length:]))
                if event[0] >= 0
            ]
            assert not {item for item, _, _ in history} & set(positives)
            # Known is known, however short the window of the user tower is.
            seen = {event[0] for event in past}
            _check_offsets(batch, offsets, log, seen, level, 3.0)
            assert np.all(offsets[positives] < GONE), "no positive is a negative"
    assert sorted(found) == wanted, "every positive once, and nothing else"


def test_an_ordered_batch_by_hand() -> None:
    log = [(4, 0, 1, 0), (2, 1, 2, 1), (3, 0, 2, 0), (5, 0, 3, 0), (2, 2, 4, -1), (7, 2, 5, 2)]
    maker = _maker([log], True, 2, history_length=3, hard_negative_weight=5.0)
    batch = next(maker.batches())
    assert batch.positives.tolist() == [[7, -1]]
    assert batch.history_items.tolist() == [[2, 5, 3]]
    assert batch.history_levels.tolist() == [[2, 0, 0]]
    assert (offsets_of(batch)[0] < GONE).tolist() == [i in (2, 3, 4, 5, 7) for i in range(N_ITEMS)]
    # At level 1 item 2 is the one positive of its run, and items of its moment are no history.
    rows = [r for b in _epoch(_maker([log], True, 1, targets_per_row=1)) for r in _rows(b)]
    history = {positives[0]: items for _, items, positives, _ in rows}
    assert history[2] == [(4, 0, 0)]
    offsets = {positives[0]: offsets for _, _, positives, offsets in rows}[2]
    # Item 4 is seen; 7 is liked later; 3 and 5 only reach level 0: hard.
    assert np.flatnonzero(offsets < GONE).tolist() == [2, 4, 7]
    assert np.flatnonzero(np.isclose(offsets, math.log(5))).tolist() == [3, 5]
    assert np.flatnonzero(offsets == 0).tolist() == [0, 1, 6, 8]


def test_a_target_whose_level_is_reached_in_a_later_chunk_is_no_negative() -> None:
    """The targets of a chunk know more than its events: the purchase may lie in the next one."""
    batch = next(_maker([[(3, 0, 1, 2)]], True, 2).batches())
    ((_, _, positives, offsets),) = _rows(batch)
    assert positives == [3]
    assert np.flatnonzero(offsets < GONE).tolist() == [3]


def test_the_phase_of_the_runs_changes_from_epoch_to_epoch() -> None:
    log = [(item, 0, item, 0) for item in range(8)]
    maker = _maker([log], True, 0, targets_per_row=2, batch_size=99)
    starts = set()
    for batch in itertools.islice(maker.batches(), 12):
        rows = [positives for _, _, positives, _ in _rows(batch)]
        assert sorted(itertools.chain(*rows)) == list(range(8))
        starts.add(min(map(tuple, rows)))
    assert starts == {(0,), (0, 1)}


def test_dropout_hides_its_share_of_events_and_keeps_the_ranks_of_the_rest() -> None:
    logs = [[(i, 0, i, -1) for i in range(8)] + [(8, 0, 9, 0)] for _ in range(400)]
    maker = _maker(
        logs, True, 0, history_length=8, history_dropout=0.3, user_id_dropout=0.2, batch_size=400
    )
    batch = next(maker.batches())
    hidden = batch.history_items < 0
    assert hidden.mean() == pytest.approx(0.3, abs=0.04)
    assert np.all((batch.history_items == 7 - np.arange(8)) | hidden)
    assert (batch.user_ids == UNKNOWN_USER).mean() == pytest.approx(0.2, abs=0.08)
    assert np.all(offsets_of(batch) < GONE), "a hidden event is known all the same"


# --- without times --------------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(_unordered_logs(), st.integers(0, 2), st.integers(1, 9), st.integers(0, 9))
def test_unordered_rows_against_the_oracle(
    logs: list[Log], level: int, length: int, seed: int
) -> None:
    maker = _maker(logs, False, level, history_length=length, seed=seed, hard_negative_weight=3.0)
    if not len(maker.positives):
        return
    for batch in itertools.islice(maker.batches(), 4):
        users = batch.user_ids.tolist()
        assert len(users) == len(set(users)) <= 3
        for t, history, positives, offsets in _rows(batch):
            log = logs[t]
            levels = {item: at for item, at, _, _ in log}
            targets = {item for item, _, _, target in log if item >= 0 and target >= level}
            assert targets, "only users with a positive"
            items = [item for item, _, _ in history]
            assert len(items) == len(set(items))
            assert not set(items) & set(positives)
            assert max(batch.history_items.shape[1], batch.positives.shape[1]) <= length
            assert len(positives) == len(set(positives))
            assert set(positives) <= targets
            assert all(levels[item] == at for item, at, _ in history)
            assert np.all(offsets[positives] < GONE)
            _check_offsets(batch, offsets, log, set(items), level, 3.0)


def test_every_user_comes_once_an_epoch_and_dropout_decides_what_is_predicted() -> None:
    logs = [[(item, 0, 0, 0) for item in range(9)] for _ in range(300)]
    maker = _maker(logs, False, 0, history_length=9, history_dropout=0.3, batch_size=100)
    epoch = list(itertools.islice(maker.batches(), maker.steps()))
    users = np.concatenate([batch.user_ids for batch in epoch])
    assert sorted(users.tolist()) == list(range(10, 310))
    positives = sum(int((batch.positives >= 0).sum()) for batch in epoch)
    history = sum(int((batch.history_items >= 0).sum()) for batch in epoch)
    assert positives / 2700 == pytest.approx(0.3, abs=0.03)
    assert positives + history == 2700


def test_a_long_timeline_gives_another_choice_every_time() -> None:
    logs = [[(item, 0, 0, 0) for item in range(40)]]
    maker = _maker(logs, False, 0, history_length=5, n_items=40)
    chosen = [batch.history_items[0] for batch in itertools.islice(maker.batches(), 60)]
    assert all(np.all(items >= 0) and len(set(items.tolist())) == 5 for items in chosen)
    assert len(set(map(bytes, chosen))) > 50
    assert set(np.concatenate(chosen).tolist()) == set(range(40))


def test_without_times_and_without_dropout_nothing_could_be_predicted() -> None:
    with pytest.raises(ValueError, match="history_dropout must be positive"):
        _maker([[(1, 0, 0, 0)]], False, 0, history_dropout=0.0)


# --- sampled candidates ---------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(_ordered_logs(), st.integers(0, 2), st.integers(1, 6), st.booleans(), st.integers(0, 9))
def test_sampled_candidates_against_the_oracle(
    logs: list[Log], level: int, random: int, ordered: bool, seed: int
) -> None:
    negatives = NegativeSettings(kind="sampled", random=random)
    maker = _maker(logs, ordered, level, negatives=negatives, seed=seed, hard_negative_weight=4.0)
    events = [event for log in logs for event in log if event[0] >= 0 and event[3] >= level]
    if not events:
        return
    share = np.bincount([event[0] for event in events], minlength=N_ITEMS) / len(events)
    for batch in itertools.islice(maker.batches(), 3):
        columns = batch.candidates.tolist()
        assert columns == sorted(set(columns)), "each item has one column"
        assert min(columns) >= 0
        assert batch.history_items.min() >= -1
        rows = _rows(batch)
        targets = [item for _, _, positives, _ in rows for item in positives]
        assert set(targets) <= set(columns)
        np.testing.assert_allclose(
            batch.log_q, np.log(len(targets) * share[columns] + random / N_ITEMS), rtol=1e-5
        )
        in_batch = np.array([targets.count(item) for item in columns])
        # What is left of exp(offset) says how often an item was drawn.
        drawn = np.full(len(columns), -1.0)
        for t, history, _, offsets in rows:
            for column, item in enumerate(columns):
                log = logs[t]
                best = _best(log, item)
                if offsets[column] < GONE:
                    known = best >= level or item in [i for i, _, _ in history]
                    assert known or (ordered and best >= 0)
                    continue
                assert best < level
                count = math.exp(offsets[column]) / (4.0 if best == level - 1 >= 0 else 1.0)
                if drawn[column] < 0:
                    drawn[column] = count
                assert drawn[column] == pytest.approx(count, rel=1e-4), "the same in every row"
        told = drawn >= 0
        assert np.all(np.abs(drawn[told] - np.round(drawn[told])) < 1e-3)
        assert np.all(drawn[told] >= np.maximum(in_batch, 1)[told] - 1e-3)
        if told.all():
            assert round(drawn.sum()) == len(targets) + random


def test_repeated_in_batch_items_by_hand() -> None:
    # Ten users took item 1, one took item 2, one item 3; the catalogue is so large that the one
    # random item is none of them.
    logs = [[(1, 0, 1, 0)]] * 10 + [[(2, 0, 1, 0)], [(3, 0, 1, 0)]]
    negatives = NegativeSettings(kind="sampled", random=1)
    maker = _maker(logs, True, 0, negatives=negatives, n_items=100_000, batch_size=12)
    batch = next(maker.batches())
    assert batch.candidates[:3].tolist() == [1, 2, 3]
    assert len(batch.candidates) == 4
    np.testing.assert_allclose(
        np.exp(batch.log_q), [10 + 1e-5, 1 + 1e-5, 1 + 1e-5, 1e-5], rtol=1e-4
    )
    for t, _, (item,), offsets in _rows(batch):
        expected = [math.log(10), 0.0, 0.0, 0.0]
        assert item == (1 if t < 10 else t - 8)
        for column in range(4):
            if column == item - 1:
                assert offsets[column] < GONE
            else:
                assert offsets[column] == pytest.approx(expected[column])


def test_a_hard_negative_that_was_drawn_twice_weighs_twice() -> None:
    # To the third user item 1 is a hard negative, and two others make it a positive.
    logs = [[(1, 1, 1, 1)], [(1, 1, 1, 1)], [(2, 1, 1, 1), (1, 0, 2, 0)]]
    negatives = NegativeSettings(kind="sampled", random=1)
    maker = _maker(logs, True, 1, negatives=negatives, n_items=100_000, hard_negative_weight=5.0)
    batch = next(maker.batches())
    (offsets,) = [offsets for t, _, _, offsets in _rows(batch) if t == 2]
    assert offsets[0] == pytest.approx(math.log(5 * 2))


# --- seeds, epochs, subsets -----------------------------------------------------------------


LOGS = [[((t * 3 + i * 2) % N_ITEMS, i % 3, i, i % 3) for i in range(4)] for t in range(20)]


def _bytes(batches: Any, n: int = 8) -> list[bytes]:
    return [
        b"".join(
            np.ascontiguousarray(value).tobytes()
            for value in vars(batch).values()
            if isinstance(value, np.ndarray)
        )
        for batch in itertools.islice(batches, n)
    ]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_the_seed_decides_the_batches(ordered: bool, kind: str) -> None:
    def drawn(seed: int) -> list[bytes]:
        negatives = NegativeSettings.parse({"kind": kind, "random": 4})
        maker = _maker(
            LOGS,
            ordered,
            0,
            negatives=negatives,
            seed=seed,
            history_dropout=0.4,
            user_id_dropout=0.4,
        )
        return _bytes(maker.batches())

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_what_one_reader_drew_ahead_changes_nothing_for_the_next() -> None:
    """Batches are drawn ahead in a thread: how many of them depends on the clock."""

    def second(ahead: int) -> tuple[list[int], list[bytes]]:
        maker = _maker(LOGS, True, 0, history_dropout=0.4)
        first = maker.batches()
        for _ in range(ahead):
            next(first)
        maker.subset(0.5)
        return maker.positives.tolist(), _bytes(maker.batches())

    assert second(1) == second(7)
    maker = _maker(LOGS, True, 0, history_dropout=0.4)
    assert _bytes(maker.batches()) != _bytes(maker.batches()), "but no two readers read the same"


def test_a_subset_is_a_random_share_of_the_positives() -> None:
    maker = _maker(LOGS, True, 0)
    everything = set(maker.positives.tolist())
    maker.subset(0.25)
    assert len(maker.positives) == 20
    assert set(maker.positives.tolist()) < everything
    assert np.all(np.diff(maker.positives) > 0)
    assert sum(int((batch.positives >= 0).sum()) for batch in _epoch(maker)) == 20
    maker.subset(0.001)
    assert len(maker.positives) == 1


def test_lengths_of_an_epoch() -> None:
    assert _maker(LOGS, True, 0, targets_per_row=2).steps() == round(80 / 2 / 3)
    assert _maker(LOGS, False, 0).steps() == round(20 / 3)
    assert _maker(LOGS, False, 0, batch_size=500).steps() == 1
    shares = [_maker(LOGS, True, level).share for level in range(3)]
    assert shares == [1.0, 40 / 80, 20 / 80]
