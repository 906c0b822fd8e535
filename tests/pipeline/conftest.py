"""The command line as a user runs it, and a small shop whose logs the end-to-end tests feed it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

OBJECTIVES = ("exposure", "click", "conversion")
EVENT_LEVEL = {"view": 0, "cart": 1, "purchase": 2}

N_USERS = 300
N_ITEMS = 200
N_CLUSTERS = 4
EVENTS_PER_USER = 24
FIRST_SECOND = 1_700_000_000
SPAN_SECONDS = 60 * 86_400

# The rows that no run may use: what they hold, by the kind of fault that must be counted.
BAD_ROWS = {
    "no_item_id": b"u001,,view,1700000300\n",
    "bad_timestamp": b"u002,i003,view,yesterday\n",
    "unknown_event": b"u003,i004,wishlist,1700000300\n",
    "column_count": b"u004,i005,view\n",
    "undecodable": b"u005,i0\xff\xfe6,view,1700000300\n",
}
N_DUPLICATES = 7
N_PINGS = 9


@dataclass(frozen=True)
class Shop:
    """SYNTHETIC logs of a shop: users of four tastes who look at, collect and buy items."""

    directory: Path
    events: list[tuple[str, str, str, int]]  # user, item, event, second; what can be used
    titles: dict[str, str]  # items of the catalogue

    def seen_by(self, user: str) -> set[str]:
        """Items of all the user's events."""
        return {item for who, item, _, _ in self.events if who == user}

    def title_of(self, item: str) -> str:
        """What the table of recommendations must show for an item."""
        return self.titles.get(item, item)

    def config(self, **sections: Any) -> dict[str, Any]:
        """A configuration that trains in seconds; `sections` replace top-level keys."""
        fast = {
            "rounds": 3,
            "batch_size": 128,
            "learning_rate": 0.01,
            "recovery_rounds": 1,
            "tau": 0.5,  # 32 outputs are few for three objectives
        }
        return {
            "name": "synthetic-shop",
            "seed": 11,
            "objectives": [{"name": name, **fast} for name in OBJECTIVES],
            "model": {
                "towers": {
                    "dimension": 32,
                    "item_embedding": 32,
                    "user_embedding": 8,
                    "history_length": 20,
                },
                "validation": {"round_steps": 24},
            },
            "data": self.data(),
            "evaluation": {
                # The first block alone, which no later stage may change.
                "weights": {"exposure": [1.0, 0.0, 0.0]},
                "ann_queries": 200,
                "minimum_lift": 1.3,
                "max_drop": 0.3,
            },
            "serving": {"sample_size": 5},
        } | sections

    def data(self) -> dict[str, Any]:
        """The `data` section."""
        return {
            "interactions": [
                {
                    "path": str(self.directory / "log.csv"),
                    "columns": {"user_id": "who", "item_id": "what", "timestamp": "when"},
                    "timestamp_unit": "s",
                    "event": {
                        "column": "event",
                        "values": dict(zip(EVENT_LEVEL, OBJECTIVES, strict=True)),
                        "ignore": ["ping"],
                    },
                }
            ],
            "catalogue": {
                "path": str(self.directory / "items.csv"),
                "columns": {"item_id": "item_id", "title": "title"},
                "features": [
                    {
                        "name": "genres",
                        "column": "genres",
                        "kind": "categorical",
                        "separator": "|",
                    }
                ],
            },
            "users": {
                "path": str(self.directory / "users.csv"),
                "columns": {"user_id": "user_id"},
                "features": [
                    {"name": "age", "column": "age", "kind": "numeric", "min": 1, "max": 120},
                    {
                        "name": "gender",
                        "column": "gender",
                        "kind": "categorical",
                        "values": ["F", "M"],
                    },
                ],
            },
            "split": {"kind": "time", "eval_share": 0.2},
        }


def make_shop(directory: Path) -> Shop:
    """Writes log.csv, items.csv and users.csv; the same bytes every time."""
    rng = np.random.default_rng(20240501)
    directory.mkdir(parents=True)
    items = [f"i{n:03d}" for n in range(N_ITEMS)]
    cluster = {item: n % N_CLUSTERS for n, item in enumerate(items)}
    appeal = 1.0 / (5.0 + np.arange(N_ITEMS) // N_CLUSTERS)  # the same in every cluster
    events = []
    for n in range(N_USERS):
        user, taste = f"u{n:03d}", int(rng.integers(N_CLUSTERS))
        weights = appeal * [1.0 if cluster[item] == taste else 0.06 for item in items]
        chosen = rng.choice(N_ITEMS, EVENTS_PER_USER, replace=False, p=weights / weights.sum())
        seconds = FIRST_SECOND + rng.integers(0, SPAN_SECONDS, EVENTS_PER_USER)
        for item, second in zip((items[i] for i in chosen), seconds, strict=True):
            keen = 0.6 if cluster[item] == taste else 0.1
            level = int(rng.random() < keen) + int(rng.random() < keen)
            events.append((user, item, list(EVENT_LEVEL)[level], int(second)))
    rows = [",".join(map(str, event)).encode() + b"\n" for event in events]
    rows += [rows[int(i)] for i in rng.choice(len(rows), N_DUPLICATES, replace=False)]
    rows += [f"u{n:03d},i000,ping,{FIRST_SECOND}\n".encode() for n in range(N_PINGS)]
    rows += list(BAD_ROWS.values())
    rng.shuffle(rows)
    (directory / "log.csv").write_bytes(b"who,what,event,when\n" + b"".join(rows))

    # Every tenth item is sold without being listed.
    titles = {item: f"Title of {item}" for n, item in enumerate(items) if n % 10 != 9}
    with (directory / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "genres"])
        for item, title in titles.items():
            genres = "" if item.endswith("0") else f"taste {cluster[item]}|all"
            writer.writerow([item, title, genres])
    with (directory / "users.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "age", "gender"])
        for n in range(N_USERS - 20):  # the last twenty never filled the form
            writer.writerow([f"u{n:03d}", "" if n % 7 == 0 else 18 + n % 60, "FM"[n % 2]])
    return Shop(directory, events, titles)


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def text(self) -> str:
        """Everything that was printed."""
        return self.stdout + self.stderr

    def __str__(self) -> str:
        """For the message of a failed assertion."""
        command = " ".join(self.arguments)
        return f"`{command}` exit {self.code} after {self.seconds:.0f} s\n{self.text[-6000:]}"


@dataclass(frozen=True)
class Csmf:
    """Runs the console script of this environment, in an empty directory as a user would."""

    directory: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, *arguments: str | Path, cwd: Path | None = None) -> Running:
        """Starts `csmf ARGUMENTS`."""
        # Wide, so that rich does not wrap what the tests look for.
        environment = os.environ | {"COLUMNS": "400", "PYTHONWARNINGS": "ignore"} | self.env
        for name in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL"):
            environment.pop(name, None)  # set by tests/conftest.py; users have no such thing
        script = Path(sys.executable).with_name("csmf")
        words = (str(script), *map(str, arguments))
        logs = [self.directory / f"{time.monotonic_ns()}.{stream}" for stream in ("out", "err")]
        with logs[0].open("wb") as out, logs[1].open("wb") as err:
            process = subprocess.Popen(
                words, cwd=cwd or self.directory, env=environment, stdout=out, stderr=err
            )
        return Running(("csmf", *words[1:]), process, logs[0], logs[1], time.monotonic())

    def __call__(self, *arguments: str | Path, cwd: Path | None = None) -> Finished:
        """Runs `csmf ARGUMENTS` to its end."""
        return self.start(*arguments, cwd=cwd).wait()

    def run(self, config: Path, workdir: Path, *options: str) -> Finished:
        """`csmf run`."""
        return self("run", "--config", config, "--workdir", workdir, *options)


@dataclass(frozen=True)
class Running:
    """A command that was started."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    started: float

    def wait(self, timeout_seconds: float = 900.0) -> Finished:
        """Waits for the end."""
        try:
            code = self.process.wait(timeout_seconds)
        finally:
            self.process.kill()
        return Finished(
            self.arguments,
            code,
            self.out.read_text(encoding="utf-8", errors="replace"),
            self.err.read_text(encoding="utf-8", errors="replace"),
            time.monotonic() - self.started,
        )

    def interrupt(self, timeout_seconds: float = 60.0) -> Finished:
        """Ctrl-C, then waits for the end."""
        self.process.send_signal(signal.SIGINT)
        return self.wait(timeout_seconds)


WriteConfig = Callable[[str, dict[str, Any]], Path]


@pytest.fixture(scope="module")
def csmf(tmp_path_factory: pytest.TempPathFactory) -> Csmf:
    return Csmf(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("data") / "shop")


@pytest.fixture(scope="module")
def write_config(tmp_path_factory: pytest.TempPathFactory) -> WriteConfig:
    """Writes a configuration file and returns its path."""
    directory = tmp_path_factory.mktemp("configs")

    def write(name: str, content: dict[str, Any]) -> Path:
        path = directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def read_summary() -> Callable[[Path], dict[str, Any]]:
    """Reads summary.json of a workdir."""

    def read(workdir: Path) -> dict[str, Any]:
        return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="module")
def running() -> Iterator[list[Running]]:
    """Commands put in here are ended with the module, whatever happens in its tests."""
    started: list[Running] = []
    yield started
    for command in started:
        command.process.kill()
        command.process.wait()
