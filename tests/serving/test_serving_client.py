"""The thin client: its messages, its calls, its errors, and what it must not import."""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving import messages
from serving.client import RecommenderClient, RecommenderError, Tls
from serving.config import ModelConfig
from serving.options import ServerOptions, TlsOptions
from serving.server import ModelServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(
    recommender: Path, publish: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    base = tmp_path_factory.mktemp("recommender_base")
    publish(recommender, base, 3)
    models = {"recommender": ModelConfig(str(base), labels={"stable": 3})}
    options = ServerOptions(
        models=models, host="127.0.0.1", port=0, allow_labels_for_unavailable=True
    )
    with ModelServer(options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[RecommenderClient]:
    with RecommenderClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        (messages.TensorProto, tensor_pb2.TensorProto),
        (messages.PredictRequest, predict_pb2.PredictRequest),
        (messages.PredictResponse, predict_pb2.PredictResponse),
        (messages.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
        (messages.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
    ],
)
def test_messages_are_a_subset_of_the_originals(ours: Any, original: Any) -> None:
    assert_subset(ours.DESCRIPTOR, original.DESCRIPTOR)


def assert_subset(ours: Any, original: Any) -> None:
    for field in ours.fields:
        theirs = original.fields_by_name[field.name]
        assert (field.number, field.label) == (theirs.number, theirs.label), field.full_name
        if theirs.type == theirs.TYPE_ENUM:
            assert field.type == field.TYPE_INT32  # the same bytes
        else:
            assert field.type == theirs.type, field.full_name
        if field.message_type:
            assert_subset(field.message_type, theirs.message_type)


def test_dtype_numbers() -> None:
    assert messages.DT_FLOAT == types_pb2.DT_FLOAT
    assert messages.DT_STRING == types_pb2.DT_STRING
    assert messages.DT_INT64 == types_pb2.DT_INT64


def test_recommend_by_id_alone_uses_the_models_defaults(client: RecommenderClient) -> None:
    answer = client.recommend("ann")
    assert (answer.model, answer.version) == ("recommender", 3)
    # The fourth entry of the model's answer is padding.
    assert answer.items == [("ann", 0.75), ("no history", 0.0), ("none", 0.5)]


def test_recommend_sends_everything(client: RecommenderClient) -> None:
    answer = client.recommend(
        b"\xc3\xbc",
        weights=[1.0, 2.0, 4.0],
        history=[("shoes", 1), ("hat", 2)],
        exclude=["coat", "sock"],
    )
    assert answer.items == [("ü", 7.0), ("shoes", 3.0), ("coat", 0.5)]


def test_what_is_asked_most_needs_no_names(client: RecommenderClient) -> None:
    answer = client.recommend("ann", [1.0, 2.0], ["coat"], 3)
    assert answer.items == [("ann", 3.0), ("no history", 0.0), ("coat", 0.5)]


def test_recommend_at_most_n(client: RecommenderClient) -> None:
    assert [item for item, _ in client.recommend("ann", n=1).items] == ["ann"]
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        client.recommend("ann", n=0)


def test_recommend_from_a_version(client: RecommenderClient) -> None:
    assert client.recommend("ann", version=3).version == 3
    with pytest.raises(RecommenderError) as caught:
        client.recommend("ann", version=4)
    assert caught.value.status == "NOT_FOUND"
    assert caught.value.details == "Servable not found for request: Specific(recommender, 4)"
    assert caught.value.address == client.address
    assert client.address in str(caught.value)


def test_recommend_from_a_labelled_version(client: RecommenderClient) -> None:
    assert client.recommend("ann", version="stable").version == 3
    assert client.titles(["a"], version="stable") == ["Title of a"]
    assert client.embed_user("ann", version="stable").version == 3
    with pytest.raises(RecommenderError, match="Unrecognized servable version label: canary"):
        client.recommend("ann", version="canary")


def test_version_zero_is_sent(client: RecommenderClient) -> None:
    with pytest.raises(RecommenderError, match=r"Specific\(recommender, 0\)"):
        client.recommend("ann", version=0)


def test_titles(client: RecommenderClient) -> None:
    assert client.titles(["a", "ü"]) == ["Title of a", "Title of ü"]
    assert client.titles([]) == []


def test_score_items(client: RecommenderClient) -> None:
    scored = client.score_items("ann", ["a", "bcd"], weights=[1.0, 2.0])
    assert (scored.model, scored.version) == ("recommender", 3)
    # What the model answers: the lengths of user and item, weighed.
    np.testing.assert_array_equal(scored.objective_scores, [[3.0, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(scored.scores, [5.0, 9.0])
    by_default = client.score_items("ann", ["a"], history=[("hat", 2)], version=3)
    np.testing.assert_array_equal(by_default.objective_scores, [[5.0, 1.0]])
    np.testing.assert_array_equal(by_default.scores, [5.0 * 0.25 + 1.0 * 0.5])
    with pytest.raises(ValueError, match="at least one item"):
        client.score_items("ann", [])


def test_user_history(client: RecommenderClient) -> None:
    # The model answers with the user, an unknown item, the user again; then comes padding.
    assert client.user_history("ü") == [("ü", 2), ("ü", 1)]
    assert client.user_history("", version="stable") == []


def test_a_version_that_tells_no_histories_is_told_apart(
    zoo: Path, publish: Any, start_server: Any, tmp_path: Path
) -> None:
    publish(zoo, tmp_path, 1)
    server = start_server({"recommender": tmp_path})
    with (
        RecommenderClient(f"127.0.0.1:{server.port}") as client,
        pytest.raises(RecommenderError, match="user_history") as caught,
    ):
        client.user_history("ann")
    assert caught.value.status == "FAILED_PRECONDITION"


def test_embed_user(client: RecommenderClient) -> None:
    embedding = client.embed_user("four", history=[("shoes", 1), ("hat", 1)])
    assert embedding.blocks.dtype == np.float32
    np.testing.assert_array_equal(embedding.blocks, [4.0, 2.0, 3.0])
    assert embedding.block_sizes == (1, 2)
    assert embedding.version == 3


def test_user_features(client: RecommenderClient) -> None:
    embedding = client.embed_user("four", features={"city": "Oslo", "age": 30})
    np.testing.assert_array_equal(embedding.blocks, [8.0, 0.0, 30.0])
    as_lists = client.embed_user("four", features={"city": ["Oslo"], "age": [30.0]})
    np.testing.assert_array_equal(as_lists.blocks, embedding.blocks)


def test_unknown_feature_is_the_servers_error(client: RecommenderClient) -> None:
    with pytest.raises(RecommenderError, match="user_shoe_size"):
        client.embed_user("four", features={"shoe_size": 40})


def test_status(client: RecommenderClient) -> None:
    assert client.status() == [(3, "AVAILABLE", "")]


def test_model_that_is_no_recommender(
    half_plus_two: Path, publish: Any, start_server: Any, tmp_path: Path
) -> None:
    publish(half_plus_two, tmp_path, 1)
    server = start_server({"recommender": tmp_path})
    with (
        RecommenderClient(f"127.0.0.1:{server.port}") as client,
        pytest.raises(RecommenderError, match="INVALID_ARGUMENT"),
    ):
        client.recommend("ann")


def test_unavailable_server_is_an_error_within_the_timeout(free_port: int) -> None:
    started = time.monotonic()
    with (
        RecommenderClient(f"127.0.0.1:{free_port}", timeout_seconds=0.5) as client,
        pytest.raises(RecommenderError, match="Is the server running there") as caught,
    ):
        client.recommend("ann")
    assert caught.value.status == "UNAVAILABLE"
    assert time.monotonic() - started < 2.0


def test_call_waits_for_a_starting_server(
    recommender: Path, publish: Any, free_port: int, tmp_path: Path
) -> None:
    publish(recommender, tmp_path, 1)
    options = ServerOptions(models={"recommender": tmp_path}, host="127.0.0.1", port=free_port)
    server = ModelServer(options)
    starter = threading.Timer(0.5, server.start)
    starter.start()
    try:
        with RecommenderClient(f"127.0.0.1:{free_port}", timeout_seconds=20.0) as client:
            assert client.recommend("ann").version == 1
    finally:
        starter.join()
        server.stop()


@dataclass(frozen=True)
class Party:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


@pytest.fixture(scope="module")
def sign() -> Callable[[], Party]:
    """sign(): a new key for localhost with a certificate that the key itself signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def make() -> Party:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return Party(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    return make


def test_tls(
    recommender: Path, publish: Any, start_server: Any, tmp_path: Path, sign: Callable[[], Party]
) -> None:
    publish(recommender, tmp_path, 1)
    us = sign()
    server = start_server(
        {"recommender": tmp_path}, tls=TlsOptions(us.key.decode(), us.certificate.decode())
    )
    address = f"localhost:{server.port}"
    path = tmp_path / "root.pem"
    path.write_bytes(us.certificate)
    for root in (us.certificate, path, str(path)):
        with RecommenderClient(address, tls=Tls(root)) as client:
            assert client.recommend("ann").version == 1
    stranger = Tls(sign().certificate)
    for tls in (None, Tls(), stranger):
        with (
            RecommenderClient(address, timeout_seconds=0.5, tls=tls) as client,
            pytest.raises(RecommenderError, match="UNAVAILABLE"),
        ):
            client.recommend("ann")


def test_mutual_tls(
    recommender: Path, publish: Any, start_server: Any, tmp_path: Path, sign: Callable[[], Party]
) -> None:
    publish(recommender, tmp_path, 1)
    us, known, unknown = sign(), sign(), sign()
    options = TlsOptions(
        us.key.decode(), us.certificate.decode(), known.certificate.decode(), client_verify=True
    )
    address = f"localhost:{start_server({'recommender': tmp_path}, tls=options).port}"
    with RecommenderClient(
        address, tls=Tls(us.certificate, known.certificate, known.key)
    ) as client:
        assert client.recommend("ann").version == 1
    for tls in (Tls(us.certificate), Tls(us.certificate, unknown.certificate, unknown.key)):
        with (
            RecommenderClient(address, timeout_seconds=0.5, tls=tls) as client,
            pytest.raises(RecommenderError, match="UNAVAILABLE"),
        ):
            client.recommend("ann")


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        RecommenderClient("localhost:1", tls=Tls(tmp_path / "missing.pem"))


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_importing_the_client_does_not_import_tensorflow() -> None:
    script = (
        "import sys, serving.client; "
        "heavy = {'tensorflow', 'tensorflow_serving', 'tfx', 'scann', 'pydantic'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
