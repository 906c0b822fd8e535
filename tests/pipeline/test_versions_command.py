"""`csmf versions` and `csmf serve`: what is served of what was pushed, and going back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from components.pusher.push import publish
from pipeline import versions
from schemas.names import FLAVOURS, MANIFEST_FILE
from schemas.settings import ConfigError
from serving import messages
from serving.config import All, Latest, ModelConfig, Specific
from serving.config_files import MODELS_FILE, to_text

POLL_SECONDS = 0.2
MODELS = ("rec", "rec_stock")

# y = x + offset, so that an answer shows which model gave it.
_SAVE = """
import sys
import tensorflow as tf

class Add(tf.Module):
    def __init__(self, offset):
        super().__init__()
        self.offset = tf.Variable(float(offset))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def add(self, x):
        return {"y": x + self.offset}

for path, offset in zip(sys.argv[1::2], sys.argv[2::2]):
    module = Add(offset)
    tf.saved_model.save(module, path, signatures={"serving_default": module.add})
"""


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """SavedModels that add 1, 2, 3 and 4."""
    root = tmp_path_factory.mktemp("saved")
    paths = [root / str(offset) for offset in (1, 2, 3, 4)]
    arguments = [text for path in paths for text in (str(path), path.name)]
    subprocess.run([sys.executable, "-c", _SAVE, *arguments], check=True, capture_output=True)
    return paths


def push(workdir: Path, saved_model: Path, name: str = "rec") -> None:
    """Pushes a model as the Pusher does; the id of the model is the SavedModel's name."""
    model = workdir / "model"
    for flavour in FLAVOURS:
        target = model / flavour
        shutil.copytree(saved_model, target)
        files = {
            str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in target.rglob("*")
            if path.is_file()
        }
        manifest = {"flavour": flavour, "model_id": f"id-{saved_model.name}", "files": files}
        (target / MANIFEST_FILE).parent.mkdir(exist_ok=True)
        (target / MANIFEST_FILE).write_text(json.dumps(manifest))
    publish(model, workdir / "serving", name)
    shutil.rmtree(model)


def push_all(workdir: Path, saved_models: list[Path]) -> Path:
    workdir.mkdir()
    for saved_model in saved_models:
        push(workdir, saved_model)
    return workdir


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A workdir with versions 1, 2 and 3 that nobody has to load."""
    models = [tmp_path / str(number) for number in (1, 2, 3)]
    for model in models:
        model.mkdir()
        (model / "saved_model.pb").write_bytes(model.name.encode() * 100)
    return push_all(tmp_path / "work", models)


@pytest.fixture
def loadable(saved_models: list[Path], tmp_path: Path) -> Path:
    """A workdir with versions 1, 2 and 3, that add as much."""
    return push_all(tmp_path / "work", saved_models[:3])


def configured(workdir: Path) -> dict[str, ModelConfig]:
    """What the file says, read by TensorFlow Serving's own message."""
    text = (workdir / "serving" / MODELS_FILE).read_text()
    config = text_format.Parse(text, ModelServerConfig())
    assert [m.model_platform for m in config.model_config_list.config] == ["tensorflow"] * 2
    return versions.configured_models(workdir)


def policies(workdir: Path) -> list[Any]:
    return [model.policy for _, model in sorted(configured(workdir).items())]


def roll_back(workdir: Path, to: int | None = None) -> versions.Rollback:
    return versions.roll_back(workdir, None, to, timeout_seconds=1.0)


# --- without a server ---------------------------------------------------------------------------


def test_rollback_goes_one_back_at_a_time(workdir: Path) -> None:
    assert roll_back(workdir) == versions.Rollback(2, None)
    assert policies(workdir) == [Specific((2,))] * 2
    assert roll_back(workdir).version == 1
    with pytest.raises(ConfigError, match=r"no version older than 1.* on disk: 1, 2, 3"):
        roll_back(workdir)
    assert policies(workdir) == [Specific((1,))] * 2
    assert versions.serve_latest(workdir, None, 1.0) == versions.Rollback(3, None)
    assert policies(workdir) == [Latest()] * 2


def test_rollback_needs_both_flavours(workdir: Path) -> None:
    shutil.rmtree(workdir / "serving/rec_stock/2")
    with pytest.raises(ConfigError, match=r"version 2 is not on disk in both flavours; .* 1, 3"):
        roll_back(workdir, 2)
    assert not (workdir / "serving" / MODELS_FILE).exists()
    assert roll_back(workdir).version == 1


def test_rollback_keeps_what_else_the_file_says(workdir: Path) -> None:
    file = workdir / "serving" / MODELS_FILE
    file.write_text(
        to_text(
            {
                "other": ModelConfig("/other", All(), {"x": 4}),
                "rec": ModelConfig("/moved/away", All(), {"stable": 1, "canary": 3}),
            }
        )
    )
    roll_back(workdir, 1)
    assert versions.configured_models(workdir) == {
        "other": ModelConfig("/other", All(), {"x": 4}),
        # A label of a version that is not served any more would refuse the whole file.
        "rec": ModelConfig(str(workdir / "serving/rec"), Specific((1,)), {"stable": 1}),
        "rec_stock": ModelConfig(str(workdir / "serving/rec_stock"), Specific((1,))),
    }


def test_several_models_in_one_directory(workdir: Path, tmp_path: Path) -> None:
    push(workdir, tmp_path / "1", "second")
    push(workdir, tmp_path / "2", "second")
    with pytest.raises(ConfigError, match="choose one of the models rec, second by --model"):
        roll_back(workdir)
    with pytest.raises(ConfigError, match=r"no model 'recc'. Did you mean 'rec'"):
        versions.list_versions(workdir, "recc")
    assert versions.roll_back(workdir, "second", None, 1.0).version == 1
    assert versions.configured_models(workdir)["rec"].policy == Latest()
    assert "`csmf versions rollback" in versions.rollback_note(workdir, "second")
    assert versions.rollback_note(workdir, "rec") == ""


def test_list_without_a_server(workdir: Path) -> None:
    started = time.time()
    roll_back(workdir, 2)
    listed = versions.list_versions(workdir)
    assert [(v.version, v.model_id, v.pinned, v.configured) for v in listed] == [
        (3, "id-3", False, False),
        (2, "id-2", True, True),
        (1, "id-1", False, False),
    ]
    for version in listed:
        assert set(version.bytes) == set(MODELS)
        assert version.states == {}
        assert 0 <= started - version.pushed_at.timestamp() < 120
        base = workdir / "serving/rec" / str(version.version)
        assert version.bytes["rec"] == sum(
            path.stat().st_size for path in base.rglob("*") if path.is_file()
        )


def test_missing_and_different_flavours_are_told(csmf: Any, workdir: Path) -> None:
    shutil.rmtree(workdir / "serving/rec_stock/3")
    manifest = workdir / "serving/rec_stock/2" / MANIFEST_FILE
    manifest.write_text('{"model_id": "another"}')
    shown = csmf("versions", "list", "--workdir", workdir)
    assert shown.code == 0, shown
    rows = [line.split("│")[1:-1] for line in shown.stdout.splitlines() if "│" in line]
    assert [(row[0].strip(), row[2].strip(), row[4].strip()) for row in rows] == [
        ("3", "no rec_stock", "newest"),
        ("2", "flavours differ", ""),
        ("1", "id-1", ""),
    ]
    assert "No server runs on this directory." in shown.stdout


@pytest.mark.parametrize("command", [["list"], ["rollback"], ["rollback", "--to", "latest"]])
def test_nothing_pushed_yet(csmf: Any, tmp_path: Path, command: list[str]) -> None:
    done = csmf("versions", *command, "--workdir", tmp_path)
    assert done.code == 1
    assert "Error: no pushed model under" in done.stderr
    assert "Traceback" not in done.text


@pytest.mark.slow
def test_broken_file_is_named(csmf: Any, workdir: Path) -> None:
    file = workdir / "serving" / MODELS_FILE
    file.write_text("improper")
    for command in (["versions", "list"], ["versions", "rollback"], ["serve"]):
        done = csmf(*command, "--workdir", workdir)
        assert done.code == 1
        assert f"Invalid protobuf file: '{file}'" in done.stderr
    assert file.read_text() == "improper"


@pytest.mark.slow
def test_pinned_version_that_is_gone_is_not_waited_for(csmf: Any, workdir: Path) -> None:
    roll_back(workdir, 1)
    for name in MODELS:
        shutil.rmtree(workdir / "serving" / name / "1")
    done = csmf("serve", "--workdir", workdir, "--port", "0")
    assert done.code == 1
    assert "asks for no version of rec that is on disk; there are 2, 3" in done.stderr
    assert f"csmf versions rollback --workdir {workdir} --to latest" in done.stderr
    shown = csmf("versions", "list", "--workdir", workdir)
    assert "The version to serve is not on disk" in shown.stdout


def test_bad_target(csmf: Any, workdir: Path) -> None:
    done = csmf("versions", "rollback", "--workdir", workdir, "--to", "newest")
    assert done.code == 2
    assert "'newest' is neither a version number nor 'latest'" in done.stderr
    done = csmf("versions", "rollback", "--workdir", workdir, "--to", "9")
    assert done.code == 1
    assert "version 9 is not on disk" in done.stderr


# --- with a server ------------------------------------------------------------------------------


@dataclass
class Served:
    """A running `csmf serve`."""

    command: Any
    channel: grpc.Channel

    def answer(self, model: str) -> tuple[float, int]:
        """What the model adds to 0, and the version that did it."""
        request = messages.PredictRequest()
        request.model_spec.name = model
        tensor = request.inputs["x"]
        tensor.dtype = messages.DT_FLOAT
        tensor.tensor_shape.dim.add(size=1)
        tensor.float_val.append(0.0)
        response = self.channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=messages.PredictRequest.SerializeToString,
            response_deserializer=messages.PredictResponse.FromString,
        )(request, timeout=10)
        return response.outputs["y"].float_val[0], response.model_spec.version.value

    def answers(self) -> set[tuple[float, int]]:
        return {self.answer(model) for model in MODELS}


@pytest.fixture
def serve(csmf: Any, running: list[Any], loadable: Path) -> Iterator[Callable[..., Served]]:
    """serve(*options): starts `csmf serve` on the workdir and waits until it answers."""
    channels: list[grpc.Channel] = []

    def start(*options: str) -> Served:
        arguments = ("--workdir", loadable, "--port", "0", "--poll-seconds", str(POLL_SECONDS))
        command = csmf.start("serve", *arguments, *options)
        running.append(command)
        address = loadable / "server.address"
        deadline = time.monotonic() + 60
        while not address.exists():
            assert command.process.poll() is None, command.wait()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        channels.append(grpc.insecure_channel(f"127.0.0.1:{address.read_text()}"))
        return Served(command, channels[-1])

    yield start
    for channel in channels:
        channel.close()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_rollback_of_a_running_server(
    csmf: Any, serve: Any, loadable: Path, saved_models: list[Path]
) -> None:
    server = serve()
    assert server.answers() == {(3.0, 3)}
    stop = threading.Event()

    def loop(model: str) -> list[tuple[float, int]]:
        seen = []
        while not stop.is_set():
            seen.append(server.answer(model))
        return seen

    with ThreadPoolExecutor(2) as pool:
        loops = [pool.submit(loop, model) for model in MODELS]
        try:
            done = csmf("versions", "rollback", "--workdir", loadable, "--to", "1")
            assert done.code == 0, done
            assert "Version 1 is served, after" in done.stdout
            assert "Rolled back to version 1: later pushes are not served" in done.stdout
            # Said, and done.
            assert server.answers() == {(1.0, 1)}
            # Neither polls nor a push undo it.
            push(loadable, saved_models[3])
            time.sleep(5 * POLL_SECONDS)
            assert server.answers() == {(1.0, 1)}
            shown = csmf("versions", "list", "--workdir", loadable)
            done = csmf("versions", "rollback", "--workdir", loadable, "--to", "latest")
            assert done.code == 0, done
            assert server.answers() == {(4.0, 4)}
            assert "Rolled back" not in done.stdout
        finally:
            stop.set()
        seen = [future.result(timeout=10) for future in loops]  # no call has failed
    for answers in seen:
        assert list(dict.fromkeys(answers)) == [(3.0, 3), (1.0, 1), (4.0, 4)]
    rows = [line.split("│")[1:-1] for line in shown.stdout.splitlines() if "│" in line]
    assert [[cell.strip() for cell in (row[0], *row[4:])] for row in rows] == [
        ["4", "", ""],
        ["3", "", "END"],
        ["2", "", ""],
        ["1", "pinned", "AVAILABLE"],
    ]
    # A push is served again.
    push(loadable, saved_models[0])
    assert within(10, lambda: server.answers() == {(1.0, 5)})


@pytest.mark.slow
def test_rollback_takes_effect_within_two_polls(serve: Any, loadable: Path) -> None:
    server = serve()
    started = time.monotonic()
    models = versions.configured_models(loadable)
    pinned = {n: ModelConfig(m.base_path, Specific((2,))) for n, m in models.items()}
    versions.write_models(loadable, pinned)
    assert within(10, lambda: server.answers() == {(2.0, 2)})
    # Beside the polls the loading of two small models, on a machine that may be busy.
    assert time.monotonic() - started < 2 * POLL_SECONDS + 2.0


@pytest.mark.slow
def test_rollback_outlives_a_restart(serve: Any, loadable: Path) -> None:
    roll_back(loadable, 2)
    server = serve()
    assert server.answers() == {(2.0, 2)}
    stopped = server.command.interrupt()
    assert stopped.code == 0, stopped
    assert "Rolled back to version 2" in stopped.stdout
    assert not (loadable / "server.address").exists()
    assert serve("--no-batching").answers() == {(2.0, 2)}


@pytest.mark.slow
def test_rollback_to_a_version_that_cannot_be_loaded(csmf: Any, serve: Any, loadable: Path) -> None:
    server = serve()
    (loadable / "serving/rec/2/variables/variables.index").write_bytes(b"")
    arguments = ("--workdir", loadable, "--to", "2", "--timeout-seconds", "3")
    done = csmf("versions", "rollback", *arguments)
    assert done.code == 1
    assert "does not serve version 2 after 3 s and goes on with what it served" in done.stderr
    assert "variables.index" in done.stderr
    assert server.answer("rec") == (3.0, 3)
    done = csmf("versions", "rollback", "--workdir", loadable, "--to", "1")
    assert done.code == 0, done
    assert server.answers() == {(1.0, 1)}
