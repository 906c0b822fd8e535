"""The explorer's JSON with a real server: lists, shares, seen items, versions, what is missing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.names import MANIFEST_FILE
from serving.config import ModelConfig, Specific

pytestmark = pytest.mark.slow

USER = "u5"


@pytest.fixture(scope="module")
def server(world: Any, start_server: Callable[..., Any]) -> Any:
    return start_server(world.serving / "recommender")


@pytest.fixture(scope="module")
def site(world: Any, server: Any, explore: Callable[..., Any]) -> Any:
    return explore(world.workdir, f"127.0.0.1:{server.port}")


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["id"] for item in answer["items"]]


def weights_of(*values: float) -> dict[str, float]:
    return dict(zip(("exposure", "click", "conversion"), values, strict=True))


def test_what_there_is(site: Any, server: Any) -> None:
    status, state = site.get("/api/state")
    assert status == 200
    assert state["model"] == "recommender"
    assert state["address"] == f"127.0.0.1:{server.port}"
    assert (state["default"], state["missing"]) == (2, [])
    newest, older = state["versions"]
    assert (newest["version"], newest["served"], newest["on_disk"]) == (2, True, True)
    assert (older["version"], older["served"], older["on_disk"]) == (1, False, True)
    assert newest["objectives"] == ["exposure", "click", "conversion"]
    assert newest["presets"]["conversion"] == [0.5, 1.0, 1.5]
    assert newest["presets"]["exposure"] == [1.0, 0.0, 0.0]
    assert (newest["items"], newest["users"], newest["top_k"]) == (40, 12, 30)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.2, 1.0, 3.0), (-1.0, 0.5, 0.0)])
@pytest.mark.parametrize("user", [USER, "stranger", ""])
def test_lists_are_those_of_the_model_with_each_objectives_part(
    site: Any, world: Any, user: str, weights: tuple[float, ...]
) -> None:
    known = world.versions[2]
    status, answer = site.recommend(user=user, weights=weights_of(*weights), count=10)
    assert status == 200
    assert ids(answer) == known.best(user, list(weights))[:10]
    scores = known.scores(user)
    for item in answer["items"]:
        expected = scores[int(item["id"][1:])] * weights
        np.testing.assert_allclose(item["contributions"], expected, atol=1e-5)
        np.testing.assert_allclose(item["score"], expected.sum(), atol=1e-5)
        assert item["title"] == known.titles[item["id"]]
        assert not item["seen"]
    assert answer["weights"] == list(weights)


def test_a_slider_costs_two_calls_to_the_server(site: Any) -> None:
    site.recommend(user=USER, weights=weights_of(1, 1, 1))
    _, answer = site.recommend(user=USER, weights=weights_of(1, 1, 1))
    assert [call["signature"] for call in answer["calls"]] == ["serving_default", "score_items"]
    assert all(0 < call["ms"] < 3000 for call in answer["calls"])


def test_weights_that_are_left_out(site: Any, world: Any) -> None:
    _, answer = site.recommend(user=USER, weights={"click": 1.0})
    assert ids(answer) == world.versions[2].best(USER, [0, 1, 0])[:20]
    _, answer = site.recommend(user=USER)
    assert ids(answer) == world.versions[2].best(USER, [1, 1, 1])[:20]


def test_a_history_made_by_hand(site: Any, world: Any) -> None:
    history = [("i3", 2), ("i9", 0)]
    events = [{"item": item, "level": level} for item, level in history]
    _, answer = site.recommend(history=events, weights=weights_of(1, 1, 0.5))
    assert ids(answer) == world.versions[2].best("", [1, 1, 0.5], history)[:20]


def test_excluded_items_do_not_come_back(site: Any, world: Any) -> None:
    known = world.versions[2]
    excluded = (known.best(USER, [1, 1, 1])[0], known.histories[USER][0][0])
    for seen in (False, True):
        _, answer = site.recommend(user=USER, exclude=excluded, show_seen=seen)
        expected = known.best(USER, [1, 1, 1], exclude=excluded, seen=seen)
        assert ids(answer) == expected[:20]
        assert not set(excluded) & set(ids(answer))


@pytest.mark.parametrize("count", [5, 100])
@pytest.mark.parametrize("by_hand", [False, True])
def test_seen_items_take_their_places(site: Any, world: Any, count: int, by_hand: bool) -> None:
    known = world.versions[2]
    history = known.histories["u11"]
    query: dict[str, Any] = {"user": "u11"}
    if by_hand:
        # What is no item of the model has no place.
        events = [("nothing", 2), *history]
        query = {"history": [{"item": item, "level": level} for item, level in events]}
    _, answer = site.recommend(show_seen=True, count=count, weights=weights_of(1, 2, 0), **query)
    expected = known.best("u11", [1, 2, 0], seen=True)
    unseen = known.best("u11", [1, 2, 0])
    assert len(expected) - len(unseen) == 11
    # The model itself answers with no more than 30, which are more than there are here.
    assert len(unseen) == 29
    assert ids(answer) == expected[:count]
    seen = [item["id"] for item in answer["items"] if item["seen"]]
    assert seen == [item for item in expected[:count] if item not in unseen]
    assert answer["history_told"]


def test_the_stored_history(site: Any, world: Any) -> None:
    known = world.versions[2]
    _, answer = site.get(f"/api/history?user={USER}")
    assert (answer["version"], answer["known"]) == (2, True)
    assert [(event["id"], event["level"]) for event in answer["events"]] == (
        known.histories[USER][::-1]
    )
    assert answer["events"][0]["title"] == known.titles[answer["events"][0]["id"]]
    _, answer = site.get("/api/history?user=stranger")
    assert (answer["known"], answer["events"]) == (False, [])


def test_searches(site: Any) -> None:
    _, answer = site.get("/api/users?text=U1")
    assert [found["id"] for found in answer["found"]] == ["u1", "u10", "u11"]
    _, answer = site.get("/api/users?text=")
    assert (len(answer["found"]), answer["total"]) == (12, 12)
    _, answer = site.get("/api/items?text=script")
    assert answer["found"] == [{"id": "i3", "title": "<script>alert(1)</script>"}]
    _, answer = site.get("/api/items?text=title+of+1")
    assert answer["total"] == 11
    _, answer = site.get("/api/items?text=")
    assert (len(answer["found"]), answer["total"]) == (20, 40)
    _, answer = site.get("/api/items?text=no+such+thing")
    assert answer == {"found": [], "total": 0}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"weights": {"click": 1e9}}, "too large"),
        ({"user": 5}, "user"),
        ({"count": 0}, "count"),
        ({"user": "x" * 1001}, "user"),
        ({"exclude": ["x"] * 1001}, "exclude"),
        ({"history": [{"item": "i1", "level": -1}]}, "history.0.level"),
        ({"wieghts": {}}, "Did you mean 'weights'"),
        ([], "dictionary"),
    ],
)
def test_queries_that_are_not_understood(site: Any, query: Any, told: str) -> None:
    status, answer = site.post(json.dumps(query).encode(), **{"Content-Type": "application/json"})
    assert status == 400
    assert told in answer["error"]
    assert "Traceback" not in answer["error"]


def test_a_version_that_is_gone(site: Any) -> None:
    for status, answer in (
        site.recommend(user=USER, version=7),
        site.get("/api/history?user=u1&version=7"),
        site.get("/api/users?text=&version=7"),
    ):
        assert status == 404
        assert answer["error"] == (
            "Version 7 of recommender is neither served nor on disk: it was deleted, or never "
            "pushed. There are: 1, 2."
        )
    status, answer = site.get("/api/users?version=two")
    assert status == 400
    assert "expected a number" in answer["error"]


def test_an_older_version_is_started_when_it_is_asked_for(site: Any, world: Any) -> None:
    status, answer = site.recommend(user=USER, version=1)
    assert status == 202
    assert "Version 1 is on disk but not served: starting version 1 .." in answer["error"]
    deadline = time.monotonic() + 120
    while status == 202 and time.monotonic() < deadline:
        time.sleep(0.2)
        status, answer = site.recommend(user=USER, version=1, weights=weights_of(1, 1, 2))
    assert (status, answer["version"]) == (200, 1)
    assert ids(answer) == world.versions[1].best(USER, [1, 1, 2])[:20]
    _, newest = site.recommend(user=USER, weights=weights_of(1, 1, 2))
    assert newest["version"] == 2
    assert ids(newest) == world.versions[2].best(USER, [1, 1, 2])[:20]


# --- what is missing ------------------------------------------------------------------------


def without_history_signature(version: Path) -> None:
    """Makes the version one that was exported before histories were told."""
    import hashlib

    from tensorflow.core.protobuf import saved_model_pb2

    graph = version / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(graph.read_bytes())
    del model.meta_graphs[0].signature_def["user_history"]
    graph.write_bytes(model.SerializeToString())
    (version / "fingerprint.pb").unlink()
    (version / "assets.extra" / "tf_serving_warmup_requests").unlink()
    manifest = json.loads((version / MANIFEST_FILE).read_text())
    manifest["files"] = {
        name: hashlib.sha256((version / name).read_bytes()).hexdigest()
        for name in manifest["files"]
        if (version / name).exists()
    }
    (version / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_versions_from_before_histories_were_told(
    world: Any, tmp_path: Path, start_server: Callable[..., Any], explore: Callable[..., Any]
) -> None:
    workdir = tmp_path / "work"
    version = workdir / "serving/recommender/2"
    shutil.copytree(world.serving / "recommender/2", version)
    without_history_signature(version)
    server = start_server(workdir / "serving/recommender")
    site = explore(workdir, f"127.0.0.1:{server.port}")
    status, answer = site.get(f"/api/history?user={USER}")
    assert (status, answer["known"], answer["events"]) == (200, True, None)
    status, answer = site.recommend(user=USER, show_seen=True)
    assert (status, answer["history_told"]) == (200, False)
    assert ids(answer) == world.versions[2].best(USER, [1, 1, 1])[:20]


def test_a_workdir_that_is_missing_or_goes(
    world: Any, tmp_path: Path, start_server: Callable[..., Any], explore: Callable[..., Any]
) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(world.workdir, workdir)
    # It keeps what it has loaded when the files go.
    server = start_server(workdir / "serving/recommender", poll_seconds=0)
    address = f"127.0.0.1:{server.port}"
    early = explore(workdir, address)
    assert early.recommend(user=USER, weights=weights_of(0, 1, 1))[0] == 200
    shutil.rmtree(workdir)
    expected = world.versions[2].best(USER, [0, 1, 1])[:20]
    status, state = early.get("/api/state")
    assert status == 200
    assert f"The workdir {workdir} is missing" in state["missing"][0]
    _, answer = early.recommend(user=USER, weights=weights_of(0, 1, 1))
    assert ids(answer) == expected
    # One that has never seen it does not even know the names of the objectives.
    late = explore(workdir, address)
    _, state = late.get("/api/state")
    (version,) = state["versions"]
    assert version["objectives"] == ["objective 1", "objective 2", "objective 3"]
    assert (version["on_disk"], version["presets"]) == (False, {})
    _, answer = late.recommend(user=USER, weights={"objective 2": 1.0, "objective 3": 1.0})
    assert ids(answer) == expected
    assert answer["items"][0]["title"] == world.versions[2].titles[expected[0]]
    _, answer = late.get("/api/users?text=u")
    assert "cannot be searched" in answer["missing"]
    _, answer = late.get("/api/items?text=title")
    assert "cannot be searched" in answer["missing"]
    status, page = late.get("/lineage/2")
    assert status == 404
    assert "No lineage of version 2" in page
    assert "Traceback" not in page


def test_a_version_that_cannot_be_loaded(
    world: Any, tmp_path: Path, start_server: Callable[..., Any], explore: Callable[..., Any]
) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(world.workdir, workdir)
    (workdir / "serving/recommender/1/variables/variables.data-00000-of-00001").write_bytes(b"no")
    server = start_server(workdir / "serving/recommender")
    site = explore(workdir, f"127.0.0.1:{server.port}")
    status, answer = 202, {}
    deadline = time.monotonic() + 120
    while status == 202 and time.monotonic() < deadline:
        status, answer = site.recommend(user=USER, version=1)
        time.sleep(0.2)
    assert status == 404
    assert "Version 1" in answer["error"]
    assert "Traceback" not in answer["error"]
    assert site.recommend(user=USER)[0] == 200


def test_a_server_that_goes_and_comes_back(
    world: Any, start_server: Callable[..., Any], explore: Callable[..., Any]
) -> None:
    server = start_server(world.serving / "recommender")
    site = explore(world.workdir, f"127.0.0.1:{server.port}")
    assert site.recommend(user=USER)[0] == 200
    server.stop()
    for status, answer in (site.recommend(user=USER), site.get("/api/state")):
        assert status == 503
        assert answer["error"] == f"The server at 127.0.0.1:{server.port} cannot be reached."
    start_server(world.serving / "recommender", server.port)
    status, answer = site.recommend(user=USER)
    assert status == 200
    assert ids(answer) == world.versions[2].best(USER, [1, 1, 1])[:20]


def test_a_version_that_the_server_lets_go_is_started_elsewhere(
    world: Any, tmp_path: Path, start_server: Callable[..., Any], explore: Callable[..., Any]
) -> None:
    base = str(world.serving / "recommender")
    server = start_server(ModelConfig(base, Specific((1,))))
    site = explore(world.workdir, f"127.0.0.1:{server.port}")
    assert site.recommend(user=USER)[1]["version"] == 1
    server.stop()
    start_server(ModelConfig(base, Specific((2,))), server.port)
    # It is pinned to a version that has gone since, and is asked only once by the page.
    status, answer = site.recommend(user=USER)
    assert (status, answer["version"]) == (200, 2)
    assert site.recommend(user=USER, version=1)[0] == 202


@pytest.mark.parametrize("objectives", [("click",), ("see", "look", "like", "buy")])
def test_other_numbers_of_objectives(
    objectives: tuple[str, ...],
    tmp_path: Path,
    make_world: Callable[..., Any],
    start_server: Callable[..., Any],
    explore: Callable[..., Any],
) -> None:
    world = make_world(objectives, negative=True)
    server = start_server(world.serving / "recommender")
    site = explore(world.workdir, f"127.0.0.1:{server.port}")
    weights = [0.5 + k for k in range(len(objectives))]
    _, answer = site.recommend(user=USER, weights=dict(zip(objectives, weights, strict=True)))
    known = world.versions[1]
    assert answer["objectives"] == list(objectives)
    assert ids(answer) == known.best(USER, weights)[:20]
    worst = answer["items"][-1]
    expected = known.scores(USER)[int(worst["id"][1:])] * weights
    np.testing.assert_allclose(worst["contributions"], expected, atol=1e-5)
