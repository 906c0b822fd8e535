"""What may happen to the directories of the models while they are served."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.versions import State

AVAILABLE, END = int(State.AVAILABLE), int(State.END)
POLLS_SECONDS = 0.6  # several, see POLL_SECONDS in tests/serving/conftest.py


@pytest.fixture
def base(publish: Any, half_plus_two: Path, tmp_path: Path) -> Path:
    publish(half_plus_two, tmp_path / "disk" / "half", 1)
    return tmp_path / "disk" / "half"


@pytest.fixture
def caller(start_server: Any, connect: Any, base: Path) -> Any:
    return connect(start_server({"half": base}, load_retry_seconds=0.1).port)


def halved(caller: Any, x: float = 1.0) -> tuple[float, int]:
    answer = caller.predict("half", {"x": [x]})
    return answer.outputs["y"].float_val[0], answer.model_spec.version.value


@contextmanager
def calling(caller: Any) -> Iterator[list[Any]]:
    """Calls all the time and collects the answers; a failed call fails the test."""
    answers: list[Any] = []
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            try:
                answers.append(halved(caller))
            except grpc.RpcError as error:
                answers.append((error.code(), error.details()))

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()


def test_a_vanished_disk_changes_nothing_and_may_come_back(
    caller: Any, base: Path, publish: Any, half_plus_three: Path, wait_for: Any, tmp_path: Path
) -> None:
    with calling(caller) as answers:
        (tmp_path / "disk").rename(tmp_path / "gone")
        time.sleep(POLLS_SECONDS)
        assert caller.states("half") == {1: AVAILABLE}
        # As a mount point without its disk does: a file, then an empty parent.
        (tmp_path / "disk").write_text("stale")
        time.sleep(POLLS_SECONDS)
        (tmp_path / "disk").unlink()
        (tmp_path / "disk").mkdir()
        time.sleep(POLLS_SECONDS)
        assert caller.states("half") == {1: AVAILABLE}
        assert set(answers) == {(2.5, 1)}
        (tmp_path / "disk").rmdir()
        publish(half_plus_three, tmp_path / "gone" / "half", 2)
        (tmp_path / "gone").rename(tmp_path / "disk")
        wait_for(lambda: caller.states("half") == {2: AVAILABLE, 1: END}, "swapped")
    assert set(answers) == {(2.5, 1), (3.5, 2)}


def test_a_disk_that_cannot_be_read_changes_nothing(
    caller: Any, base: Path, publish: Any, half_plus_three: Path, wait_for: Any
) -> None:
    # A directory behind a loop of links cannot be read even by root.
    away = base.rename(base.with_name("away"))
    base.symlink_to(base.name)
    time.sleep(POLLS_SECONDS)
    assert halved(caller) == (2.5, 1)
    assert caller.states("half") == {1: AVAILABLE}
    base.unlink()
    away.rename(base)
    publish(half_plus_three, base, 2)
    wait_for(lambda: halved(caller) == (3.5, 2), "the disk is back")


def test_one_models_lost_disk_holds_no_other_model_down(
    start_server: Any, connect: Any, base: Path, publish: Any, zoo: Path, tmp_path: Path
) -> None:
    publish(zoo, tmp_path / "zoo", 1)
    caller = connect(start_server({"half": base, "zoo": tmp_path / "zoo"}).port)
    shutil.rmtree(base)
    time.sleep(POLLS_SECONDS)
    assert halved(caller) == (2.5, 1)
    assert list(caller.predict("zoo", {"x": [2.0]}).outputs["y"].float_val) == [3.0]


HALF_COPIES: dict[str, Callable[[Path], None]] = {
    "no graph yet": lambda path: (path / "saved_model.pb").unlink(),
    "half a graph": lambda path: (path / "saved_model.pb").write_bytes(
        (path / "saved_model.pb").read_bytes()[:1000]
    ),
    "an empty graph": lambda path: (path / "saved_model.pb").write_bytes(b""),
    "no variables": lambda path: shutil.rmtree(path / "variables"),
    "no index of variables": lambda path: (path / "variables" / "variables.index").unlink(),
    "half the variables": lambda path: next(path.glob("variables/*.data-*")).write_bytes(b"\1"),
}


@pytest.mark.parametrize("fault", HALF_COPIES)
def test_a_half_copied_version_is_not_served_until_it_is_whole(
    fault: str, caller: Any, base: Path, publish: Any, half_plus_three: Path, wait_for: Any
) -> None:
    whole = base.with_name("whole")
    shutil.copytree(half_plus_three, whole)
    HALF_COPIES[fault](whole)
    with calling(caller) as answers:
        whole.rename(base / "2")
        if fault == "no graph yet":
            time.sleep(POLLS_SECONDS)
            assert caller.states("half") == {1: AVAILABLE}
        else:
            wait_for(lambda: caller.states("half").get(2) == END, "given up")
            code, text = caller.status_error("half", 2)
            assert code
            assert text
        assert halved(caller) == (2.5, 1)
        if fault != "no graph yet":
            # TensorFlow Serving gives up until the version has been away; so copy it anew.
            shutil.rmtree(base / "2")
            wait_for(lambda: caller.states("half")[1] == AVAILABLE, "polled")
            time.sleep(POLLS_SECONDS)
            publish(half_plus_three, base, 2)
        else:
            shutil.copy(half_plus_three / "saved_model.pb", base / "2")
        wait_for(lambda: caller.states("half") == {2: AVAILABLE, 1: END}, "served")
    assert set(answers) <= {(2.5, 1), (3.5, 2)}


def test_a_copy_that_becomes_whole_while_it_is_retried_is_served(
    start_server: Any, connect: Any, base: Path, half_plus_three: Path, wait_for: Any
) -> None:
    server = start_server({"half": base}, max_load_retries=1000, load_retry_seconds=0.05)
    caller = connect(server.port)
    (base / "2").mkdir()
    shutil.copy(half_plus_three / "saved_model.pb", base / "2")  # the wrong way round
    wait_for(lambda: caller.states("half").get(2) == int(State.LOADING), "tried")
    assert halved(caller) == (2.5, 1)
    shutil.copytree(half_plus_three / "variables", base / "2" / "variables")
    wait_for(lambda: halved(caller) == (3.5, 2), "served")


@pytest.mark.slow
def test_a_version_overwritten_in_place_goes_on_as_it_was_loaded(
    caller: Any, base: Path, half_plus_three: Path, publish: Any, wait_for: Any
) -> None:
    with calling(caller) as answers:
        for path in sorted(half_plus_three.rglob("*")):
            if path.is_file():
                target = base / "1" / path.relative_to(half_plus_three)
                target.write_bytes(path.read_bytes())  # into the very file that was read
        time.sleep(POLLS_SECONDS)
        assert caller.states("half") == {1: AVAILABLE}
        for path in (base / "1").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        time.sleep(POLLS_SECONDS)
        assert caller.states("half") == {1: AVAILABLE}
    assert set(answers) == {(2.5, 1)}
    publish(half_plus_three, base, 2)
    wait_for(lambda: halved(caller) == (3.5, 2), "the next version is none the worse")


# --- real exports: the manifest -----------------------------------------------------------------


@pytest.fixture(scope="module")
def other_export(shop: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's model with other towers, so with another hash of them."""
    import dataclasses

    from models.export import export
    from models.settings import IndexSettings
    from models.towers import TwoTower

    directory = tmp_path_factory.mktemp("other")
    export(
        directory,
        TwoTower(dataclasses.replace(shop.towers.spec), seed=2),
        shop.transform,
        {"age": "numeric", "gender": "categorical"},
        shop.catalogue,
        shop.profiles,
        IndexSettings(top_k=8),
        ["exposure", "click", "conversion"],
        {},
    )
    return directory


def recommended(caller: Any) -> tuple[tuple[bytes, ...], int]:
    answer = caller.predict("shop", {"user_id": [b"u1"]})
    return tuple(answer.outputs["item_ids"].string_val), answer.model_spec.version.value


SWAPS = {
    "a graph of another model": ["saved_model.pb"],
    "variables of another model": ["variables/variables.data-00000-of-00001"],
    "all variables of another model": [
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
    ],
    "a manifest of another model": ["assets.extra/manifest.json"],
}


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["stock", "scann"])
def test_files_of_another_model_are_refused_and_the_old_version_stays(
    flavour: str,
    exported: Any,
    other_export: Path,
    start_server: Any,
    connect: Any,
    publish: Any,
    wait_for: Any,
    tmp_path: Path,
) -> None:
    mine, other = exported.directory / flavour, other_export / flavour
    assert exported.manifest["tower_sha256"] not in (
        (other / "assets.extra" / "manifest.json").read_text()
    )
    base = tmp_path / "shop"
    publish(mine, base, 1)
    caller = connect(start_server({"shop": base}).port)
    before = recommended(caller)
    for version, files in enumerate(SWAPS.values(), start=2):
        mixed = tmp_path / f"mixed-{version}"
        shutil.copytree(mine, mixed)
        for file in files:
            shutil.copy(other / file, mixed / file)
        mixed.rename(base / str(version))
        wait_for(lambda v=version: caller.states("shop").get(v) == END, "refused", seconds=30.0)
        code, text = caller.status_error("shop", version)
        assert code == grpc.StatusCode.DATA_LOSS.value[0]
        assert "were not exported together" in text
        assert recommended(caller) == before
    # The whole directory of another model is a model like any other.
    publish(other, base, 9)
    wait_for(lambda: caller.states("shop").get(9) == AVAILABLE, "swapped", seconds=30.0)
    assert recommended(caller)[1] == 9
    wait_for(lambda: caller.states("shop")[1] == END, "unloaded", seconds=30.0)


@pytest.mark.slow
def test_a_served_version_swapped_in_place_serves_on_and_never_mixes(
    exported: Any, other_export: Path, start_server: Any, connect: Any, publish: Any, tmp_path: Path
) -> None:
    """Until a restart: then the mix is refused."""
    base = tmp_path / "shop"
    publish(exported.directory / "scann", base, 1)
    caller = connect(start_server({"shop": base}).port)
    before = recommended(caller)
    for file in SWAPS["all variables of another model"]:
        shutil.copy(other_export / "scann" / file, base / "1" / file)
    time.sleep(POLLS_SECONDS)
    assert recommended(caller) == before
    from serving.errors import StartupError

    with pytest.raises(StartupError, match="were not exported together"):
        start_server({"shop": base})
