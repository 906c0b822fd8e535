"""The server as a process of its own: command line, signals, and which libraries it loads."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from serving import messages
from serving.flags import main
from serving.options import ServerOptions
from serving.server import spare_what_is_imported

ROOT = Path(__file__).parents[2]

# Loads a stock model and says what that imported, then exports two ScaNN indices whose nearest
# neighbour of e_i is i and 7 - i.
_EXPORT = """
import sys
from serving.servable import Servable
Servable("m", 1, sys.argv[1]).close()
print(sorted({"scann", "tfx", "tensorflow_recommenders"} & set(sys.modules)))

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

class Index(tf.Module):
    def __init__(self, vectors):
        super().__init__()
        builder = scann_ops.builder(vectors, 1, "dot_product").score_brute_force()
        self.state = builder.build().serialize_to_module()

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="x")])
    def search(self, x):
        index, distance = scann_ops.searcher_from_module(self.state).search_batched(x)
        return {"index": tf.cast(index, tf.int64), "distance": distance}

vectors = np.eye(8, dtype=np.float32)
options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
for path, rows in ((sys.argv[2], vectors), (sys.argv[3], vectors[::-1].copy())):
    index = Index(rows)
    tf.saved_model.save(index, path, {"serving_default": index.search}, options)
"""


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def nearest(port: int, model: str, row: int) -> tuple[int, int]:
    """Asks for the nearest neighbour of unit vector `row`; returns it and the version."""
    request = messages.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs["x"]
    tensor.dtype = messages.DT_FLOAT
    tensor.tensor_shape.dim.add(size=1)
    tensor.tensor_shape.dim.add(size=8)
    tensor.float_val.extend(float(column == row) for column in range(8))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=messages.PredictRequest.SerializeToString,
            response_deserializer=messages.PredictResponse.FromString,
        )(request, timeout=10)
    return response.outputs["index"].int64_val[0], response.model_spec.version.value


@pytest.mark.slow
def test_process_serves_and_swaps_scann_models_and_stops_on_sigterm(
    half_plus_two: Path, publish: Any, wait_for: Any, tmp_path: Path
) -> None:
    straight, reversed_ = tmp_path / "straight", tmp_path / "reversed"
    imported = run_python("-c", _EXPORT, str(half_plus_two), str(straight), str(reversed_))
    # A stock model needs none of the heavy libraries.
    assert imported.splitlines()[0] == "[]"

    publish(straight, tmp_path / "scann", 1)
    publish(half_plus_two, tmp_path / "stock", 1)
    port_file = tmp_path / "port"
    arguments = ["--model", f"scann={tmp_path / 'scann'}", "--model", f"stock={tmp_path / 'stock'}"]
    arguments += ["--host", "127.0.0.1", "--port", "0", "--port-file", str(port_file)]
    arguments += ["--file-system-poll-wait-seconds", "0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: port_file.exists() or process.poll() is not None, "serving", seconds=60.0)
        assert process.poll() is None, process.communicate()[1]
        port = int(port_file.read_text())
        assert nearest(port, "scann", 2) == (2, 1)
        publish(reversed_, tmp_path / "scann", 2)
        wait_for(lambda: nearest(port, "scann", 2)[1] == 2, "swapped")
        # Both indices were in one process: the new version must not search the old one's.
        assert nearest(port, "scann", 2) == (5, 2)
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output.splitlines() == [f"Serving scann, stock on 127.0.0.1:{port}"]


def test_full_garbage_collections_spare_what_was_imported() -> None:
    spare_what_is_imported()
    try:
        assert gc.get_freeze_count() > 100_000, "TensorFlow alone is more"
        assert not any(module is gc for module in gc.get_objects())
    finally:
        gc.unfreeze()


def test_command_line_refuses_bad_models() -> None:
    for given, complaint in (
        (["--model", "no-path"], "'no-path' is not of the form NAME=BASE_PATH"),
        (["--model", "m=/a", "--model", "m=/b"], "model 'm' is given twice"),
        ([], "Missing option '--model'"),
    ):
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 2
        assert complaint in result.output


def test_failed_start_exits_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\xff")
    handler = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(
        main, ["--model", f"m={tmp_path}", "--max-num-load-retries", "0", "--port", "0"]
    )
    assert signal.getsignal(signal.SIGTERM) is handler
    assert result.exit_code == 1
    assert "Failed to start server. Error: 1 servable(s) did not become available" in result.output


def test_options_without_models_are_refused() -> None:
    with pytest.raises(ValueError, match="no model to serve"):
        ServerOptions(models={})
