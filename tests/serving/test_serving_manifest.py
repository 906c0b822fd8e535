"""A directory that does not match its manifest must not be served."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.names import MANIFEST_FILE
from serving.manifest import ManifestError, verify_manifest
from serving.servable import Servable


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(model: Path, **changes: Any) -> None:
    """Writes the manifest that IndexBuilder would write; a change to None leaves the file out."""
    files: dict[str, Any] = {
        str(path.relative_to(model)): digest(path) for path in model.rglob("*") if path.is_file()
    }
    files.pop(MANIFEST_FILE, None)
    files.update(changes)
    listed = {name: sha256 for name, sha256 in files.items() if sha256 is not None}
    manifest = model / MANIFEST_FILE
    manifest.parent.mkdir(exist_ok=True)
    manifest.write_text(json.dumps({"model_id": "abc", "flavour": "stock", "files": listed}))


@pytest.fixture
def model(half_plus_two: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "1"
    shutil.copytree(half_plus_two, copy)
    write_manifest(copy)
    return copy


def test_untouched_model_loads(model: Path) -> None:
    servable = Servable("m", 1, str(model))
    assert servable.manifest is not None
    assert servable.manifest["model_id"] == "abc"
    servable.close()


def test_model_without_manifest_is_not_checked(half_plus_two: Path) -> None:
    assert verify_manifest(str(half_plus_two)) is None


def _swap_variables(model: Path, other: Path) -> None:
    for path in (other / "variables").iterdir():
        shutil.copy(path, model / "variables")


def _swap_graph(model: Path, other: Path) -> None:
    # Another graph over the same variables: TensorFlow would load it without a word.
    shutil.copy(other / "saved_model.pb", model)


def _remove_variables(model: Path, other: Path) -> None:
    (model / "variables" / "variables.index").unlink()


def _add_shard(model: Path, other: Path) -> None:
    shutil.copy(other / "saved_model.pb", model / "variables" / "variables.data-00001-of-00002")


def _leave_graph_out(model: Path, other: Path) -> None:
    write_manifest(model, **{"saved_model.pb": None})


def _point_outside(model: Path, other: Path) -> None:
    write_manifest(model, **{"../outside": "0" * 64})


def _break_json(model: Path, other: Path) -> None:
    (model / MANIFEST_FILE).write_text("{")


def _drop_files(model: Path, other: Path) -> None:
    (model / MANIFEST_FILE).write_text('{"model_id": "abc"}')


@pytest.mark.parametrize(
    ("tamper", "complaint"),
    [
        (_swap_variables, r"variables\S* has SHA-256 \w+, assets.extra/manifest.json says \w+"),
        (_swap_graph, r"saved_model.pb has SHA-256"),
        (_remove_variables, r"variables/variables.index is listed .* but missing"),
        (_add_shard, r"variables/variables.data-00001-of-00002 is not listed"),
        (_leave_graph_out, r"saved_model.pb is not listed"),
        (_point_outside, r"'../outside' outside the SavedModel"),
        (_break_json, r"is not JSON"),
        (_drop_files, r"no object 'files'"),
    ],
)
def test_tampered_model_is_refused(
    model: Path, half_plus_three: Path, tamper: Callable[[Path, Path], None], complaint: str
) -> None:
    tamper(model, half_plus_three)
    with pytest.raises(ManifestError, match=complaint) as caught:
        Servable("m", 1, str(model))
    assert "publish the model again" in caught.value.message


def test_server_keeps_the_old_version_when_a_file_was_swapped(
    model: Path,
    half_plus_two: Path,
    half_plus_three: Path,
    publish: Any,
    start_server: Any,
    wait_for: Any,
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"
    publish(half_plus_two, base, 1)
    versions = start_server({"m": base}).versions
    _swap_variables(model, half_plus_three)
    publish(model, base, 2)
    wait_for(lambda: [s.state.name for s in versions.statuses("m")] == ["END", "AVAILABLE"], "END")
    failed = versions.statuses("m", 2)[0]
    assert failed.error_code == 15  # DATA_LOSS
    assert "has SHA-256" in failed.error_message
    with versions.lease("m") as servable:
        assert servable.version == 1
