from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from components.pusher import push as push_module
from components.pusher.push import (
    PushError,
    local_directory,
    prune,
    publish,
)
from schemas.versions import versions_in


def write_model(root: Path, model_id: str = "m1", stock_id: str | None = None) -> Path:
    for flavour in ("scann", "stock"):
        folder = root / flavour
        (folder / "variables").mkdir(parents=True)
        contents = {
            "saved_model.pb": f"graph {flavour} {model_id}".encode(),
            "variables/variables.index": b"index",
        }
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        (folder / "assets.extra").mkdir()
        manifest = {
            "model_id": stock_id if stock_id and flavour == "stock" else model_id,
            "flavour": flavour,
            "files": {n: hashlib.sha256(d).hexdigest() for n, d in contents.items()},
        }
        (folder / "assets.extra" / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return tmp_path / "served"


def visible(served: Path) -> dict[str, set[str]]:
    return {b: {p.name for p in (served / b).iterdir()} for b in ("rec", "rec_stock")}


def test_first_push_is_version_one_with_both_flavours(model: Path, served: Path) -> None:
    done = publish(model, served, "rec")
    assert (done.version, done.model_id) == (1, "m1")
    assert done.destination == served / "rec" / "1"
    assert done.stock_destination == served / "rec_stock" / "1"
    assert (done.destination / "saved_model.pb").read_bytes() == b"graph scann m1"
    assert (done.stock_destination / "saved_model.pb").read_bytes() == b"graph stock m1"
    assert visible(served) == {"rec": {"1"}, "rec_stock": {"1"}}


@pytest.mark.parametrize(
    ("scann", "stock", "expected"),
    [
        ((1, 2), (1, 2), 3),
        ((1,), (1, 7), 8),  # a crash between the two renames left stock ahead
        (("0009",), (), 10),  # TensorFlow Serving reads leading zeros as the same number
        ((".5", "6x", "x7"), ("²",), 1),
    ],
)
def test_version_is_one_above_the_highest_of_both(
    model: Path, served: Path, scann: tuple, stock: tuple, expected: int
) -> None:
    for base, names in (("rec", scann), ("rec_stock", stock)):
        for name in names:
            (served / base / str(name)).mkdir(parents=True)
    (served / "rec").mkdir(exist_ok=True)
    (served / "rec" / "99").write_text("a file is not a version")
    assert publish(model, served, "rec").version == expected


def test_leftovers_of_a_crashed_push_are_removed(model: Path, served: Path) -> None:
    for name in ("rec/.tmp-1", "rec_stock/.tmp-1", "rec/.trash-4"):
        (served / name).mkdir(parents=True)
        (served / name / "junk").write_text("x")
    publish(model, served, "rec")
    assert visible(served) == {"rec": {"1"}, "rec_stock": {"1"}}
    assert not (served / "rec" / "1" / "junk").exists()


def test_stock_appears_before_scann(
    model: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (order.append(Path(to).parent.name), rename(self, to))[1]
    )
    publish(model, served, "rec")
    assert order == ["rec_stock", "rec"]


def test_nothing_is_visible_when_the_second_rename_fails(model: Path, served: Path) -> None:
    # A file in the way makes the rename of the scann directory fail, after stock's succeeded.
    (served / "rec").mkdir(parents=True)
    (served / "rec" / "1").write_text("in the way")
    with pytest.raises(OSError, match="1"):
        publish(model, served, "rec")
    assert visible(served) == {"rec": {"1"}, "rec_stock": set()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "scann/saved_model.pb").write_bytes(b"other"), "SHA-256"),
        (lambda m: (m / "stock/variables/variables.index").unlink(), "missing"),
        (lambda m: (m / "stock/variables/more").write_text("x"), "not listed"),
        (lambda m: (m / "stock/assets.extra/manifest.json").unlink(), "IndexBuilder"),
        (lambda m: (m / "stock/assets.extra/manifest.json").write_text("{"), "not valid JSON"),
        (lambda m: (m / "stock/assets.extra/manifest.json").write_text("[]"), "JSON object"),
        (
            lambda m: shutil.copytree(m / "scann", m / "stock", dirs_exist_ok=True),
            "flavour is 'scann'",
        ),
    ],
)
def test_damaged_models_are_refused_and_leave_no_trace(
    model: Path, served: Path, damage, message: str
) -> None:
    damage(model)
    with pytest.raises(PushError, match=message):
        publish(model, served, "rec")
    for base in ("rec", "rec_stock"):
        assert not (served / base).exists() or not list((served / base).iterdir())


def test_flavours_of_different_models_are_refused(tmp_path: Path, served: Path) -> None:
    model = write_model(tmp_path / "mixed", "m1", stock_id="m2")
    with pytest.raises(PushError, match=r"m1.*m2"):
        publish(model, served, "rec")


def test_prune_keeps_the_newest_and_the_protected(model: Path, served: Path) -> None:
    for _ in range(5):
        publish(model, served, "rec")
    assert prune(served, "rec", 2, protected={5}) == (1, 2, 3)
    assert visible(served) == {"rec": {"4", "5"}, "rec_stock": {"4", "5"}}
    assert prune(served, "rec", 1, protected={4}) == ()
    assert prune(served, "rec", 1, protected={5}) == (4,)
    assert prune(served, "rec", 1, protected={5, 9}) == ()


def test_prune_removes_orphans_and_both_names_of_one_number(served: Path) -> None:
    for name in ("rec/7", "rec/007", "rec/8", "rec_stock/6", "rec_stock/8"):
        (served / name).mkdir(parents=True)
    assert prune(served, "rec", 1, protected={8}) == (6, 7)
    assert visible(served) == {"rec": {"8"}, "rec_stock": {"8"}}


def test_prune_leaves_other_names_alone(served: Path) -> None:
    for name in ("rec/1", "rec/2", "rec/notes", "rec/canary-1"):
        (served / name).mkdir(parents=True)
    (served / "rec_stock").mkdir()
    prune(served, "rec", 1, protected={2})
    assert {p.name for p in (served / "rec").iterdir()} == {"2", "notes", "canary-1"}


def test_keep_versions_below_one_is_refused(served: Path) -> None:
    with pytest.raises(PushError, match="at least 1"):
        prune(served, "rec", 0, protected={1})


def _publish_many(model: Path, served: Path, count: int, results) -> None:
    results.put([publish(model, served, "rec").version for _ in range(count)])


def test_two_pushers_never_take_the_same_number(model: Path, served: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [
        context.Process(target=_publish_many, args=(model, served, 8, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    taken = [version for _ in workers for version in results.get(timeout=30)]
    for worker in workers:
        worker.join(timeout=30)
    assert sorted(taken) == list(range(1, 17))


def test_a_held_lock_ends_in_an_error_not_a_hang(model: Path, served: Path) -> None:
    with (
        push_module._locked(served, "rec", 1.0),
        pytest.raises(PushError, match="another pusher"),
    ):
        publish(model, served, "rec", lock_timeout_seconds=0.1)


def test_versions_in_a_missing_directory(tmp_path: Path) -> None:
    assert versions_in(tmp_path / "nowhere") == {}


def test_remote_directories_are_refused() -> None:
    with pytest.raises(PushError, match="not a local directory"):
        local_directory("gs://bucket/served")
    assert local_directory("file:///srv/models") == Path("/srv/models")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
def test_bad_model_names_are_refused(model: Path, served: Path, name: str) -> None:
    with pytest.raises(PushError, match="model name"):
        publish(model, served, name)
