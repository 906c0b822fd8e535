"""A store with what happens to a pipeline over time: pushes, refusals, a failure, a deletion."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.metadata.recorder import NODES, Recorder, Recording

DATA_NODES = NODES[:5]  # from the schemas to Transform

OLD_LOGS = {
    "/logs/ratings.csv": ("interactions", 100, "ab" * 32),
    "/logs/items.csv": ("catalogue", 20, "cd" * 32),
}
NEW_LOGS = {
    "/logs/ratings.csv": ("interactions", 130, "ef" * 32),
    "/logs/items.csv": ("catalogue", 20, "cd" * 32),
    "/logs/users.csv": ("users", 9, "12" * 32),
}


@dataclass(frozen=True)
class History:
    """The store, and what was recorded of each run."""

    recorder: Recorder
    runs: dict[str, Recording]

    @property
    def path(self) -> Path:
        return self.recorder.path


def changed(stages: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Other settings of exposure, so that other slots are owned."""
    stages = copy.deepcopy(stages)
    stages["exposure"]["settings"]["tau"] = 0.4
    stages["exposure"]["owned"] = {"history": 16, "output": 24}
    stages["click"]["owned"] = {"history": 16, "output": 8}
    return stages


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """Read-only for the tests; versions 1, 2, 3 and 3 once more."""
    recorder = Recorder(tmp_path_factory.mktemp("history"))
    defaults = Recording()
    recorded = [
        Recording("run-1", version=1, model_id="aa01"),
        Recording(
            "run-2",
            version=None,
            checks=[{"name": "click: recall@50", "passed": False, "value": 0.1, "threshold": 0.2}],
            cached=DATA_NODES,
        ),
        Recording(
            "run-3",
            version=2,
            model_id="aa03",
            seed=8,
            csmf_version="0.3.0",
            config={
                "name": "csmf.ml",
                "objectives": [
                    {"name": "exposure", "tau": 0.4},
                    {"name": "click"},
                    {"name": "conversion"},
                ],
            },
            stages=changed(defaults.stages),
            metrics={
                "exposure": {"recall@50": 0.75, "queries": 90.0},
                "click": {"recall@50": 0.125, "queries": 40.0},
                "conversion": {"recall@50": 0.125, "queries": 10.0},
            },
            cached=DATA_NODES,
        ),
        Recording(
            "run-4",
            version=3,
            model_id="aa04",
            files=NEW_LOGS,
            schema="/schemas/timelines-aaaabbbbccccdddd.pbtxt",
            checks=[{"name": "click: recall@50", "passed": True, "value": 0.25, "threshold": 0.2}],
        ),
        Recording("run-5", version=3, model_id="aa05", files=NEW_LOGS, cached=DATA_NODES),
        Recording(
            "run-6",
            files=NEW_LOGS,
            cached=DATA_NODES,
            last="CascadedTrainer.click",
            last_state="FAILED",
        ),
    ]
    for recording in recorded:
        recorder.record(recording)
    shutil.rmtree(recorder.destination(recorded[0]))
    return History(recorder, {recording.run: recording for recording in recorded})
