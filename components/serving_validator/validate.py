"""Starts the server on a candidate and checks what it answers. Needs no TFX.

Whatever the candidate or the server does ends in a report: a failing check is a result.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from components.serving_validator import spec
from components.serving_validator.asking import Answer, Asker, UserRequest, weightings
from components.serving_validator.oracle import Oracle, tolerance
from components.serving_validator.process import (
    ServerFailedError,
    ServerProcess,
    log_tail,
    running_server,
)
from components.serving_validator.sample import Timeline
from schemas.names import (
    FLAVOURS,
    MANIFEST_FILE,
    SCANN_FLAVOUR,
    STOCK_FLAVOUR,
    STOCK_SUFFIX,
    VECTORS_FILE,
)

_MODEL_NAME = "recommender"
_SERVED_NAMES = {
    SCANN_FLAVOUR: _MODEL_NAME,
    STOCK_FLAVOUR: f"{_MODEL_NAME}{STOCK_SUFFIX}",
}
_UNKNOWN_USER = b"\xff\x00 no such user"  # not UTF-8: ids may be any bytes
_UNKNOWN_ITEMS = (b"\xff\x00 no such item", b"no such item either")
_CALL_TIMEOUT_SECONDS = 20.0
_SHOWN_FAULTS = 3
# Excluding all but a few items is asked only where the request stays small.
_LARGEST_CATALOGUE_TO_EXCLUDE = 20_000


@dataclass(frozen=True)
class Check:
    """Outcome of one check; `detail` says what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """Outcome of a validation.

    Attributes:
      blessed: every check passed.
      checks: in the order of `spec.CHECKS`.
      seconds: wall time.
      ann_recall: mean share of the exact top list that the scann flavour found; None if not asked.
      server_log_tail: last lines of the server's output if not blessed.
    """

    blessed: bool
    checks: tuple[Check, ...]
    seconds: float
    ann_recall: float | None
    server_log_tail: str | None

    def to_json(self) -> str:
        """The report as it is written to `report.json`."""
        content = asdict(self)
        if self.server_log_tail is None:
            del content["server_log_tail"]
        return json.dumps(content, indent=2) + "\n"


@dataclass
class _Findings:
    """Faults by check, and how often each check was made. A check never made did not pass."""

    faults: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in spec.CHECKS})
    made: dict[str, int] = field(default_factory=lambda: dict.fromkeys(spec.CHECKS, 0))
    recalls: list[float] = field(default_factory=list)

    def expect(self, check: str, holds: bool, fault: str) -> bool:
        self.made[check] += 1
        if not holds:
            self.faults[check].append(fault)
        return holds

    def checks(self) -> tuple[Check, ...]:
        return tuple(self._check(name) for name in spec.CHECKS)

    def _check(self, name: str) -> Check:
        faults, made = self.faults[name], self.made[name]
        if faults:
            # Spread over the questions, so that both flavours are seen if both fail.
            step = max(1, (len(faults) - 1) // (_SHOWN_FAULTS - 1))
            shown = faults[::step][:_SHOWN_FAULTS]
            more = [f"and {len(faults) - len(shown)} more"] if len(faults) > len(shown) else []
            return Check(name, False, "; ".join(shown + more))
        if not made:
            return Check(name, False, "not reached, because of the failures above")
        return Check(name, True, f"{spec.CHECKS[name]} (checked {made} times)")


def validate(
    model_dir: Path,
    timelines: Sequence[Timeline],
    objectives: Sequence[str],
    timeout_seconds: float = spec.DEFAULT_TIMEOUT_SECONDS,
    minimum_recall: float = spec.DEFAULT_MINIMUM_RECALL,
) -> Report:
    """Serves both flavours of a model and checks the answers.

    Args:
      model_dir: holds `scann/`, `stock/` and `vectors.npz`.
      timelines: users to ask for, at least one.
      objectives: names the model must have, in order.
      timeout_seconds: for everything together; also bounds each call.
      minimum_recall: least mean recall of the scann flavour against brute force.
    """
    started = time.monotonic()
    deadline = started + timeout_seconds
    findings = _Findings()
    tail: str | None = None
    manifest = _check_manifests(model_dir, objectives, findings)
    # On local disk beside nothing else: the server must see exactly one version.
    with tempfile.TemporaryDirectory(prefix="serving-validator-") as scratch:
        log_file = Path(scratch) / "server.log"
        oracle = _load_oracle(model_dir / VECTORS_FILE, findings)
        if manifest is not None and oracle is not None:
            bases = _stage(model_dir, Path(scratch))
            try:
                with running_server(bases, log_file, deadline - time.monotonic()) as server:
                    _Examination(
                        server, oracle, manifest["top_k"], objectives, deadline, findings
                    ).run(timelines)
                    server.check_alive()
                    findings.expect(spec.CHECK_SERVER, True, "")
            except ServerFailedError as error:
                findings.expect(spec.CHECK_SERVER, False, str(error))
        recall = float(np.mean(findings.recalls)) if findings.recalls else None
        if recall is not None:
            findings.expect(
                spec.CHECK_ANN_RECALL,
                recall >= minimum_recall,
                f"mean recall is {recall:.4f}, at least {minimum_recall:g} is required: raise "
                "index.reorder or index.leaves_to_search_share",
            )
        checks = findings.checks()
        blessed = all(check.passed for check in checks)
        if not blessed:
            tail = log_tail(log_file)
    return Report(blessed, checks, round(time.monotonic() - started, 3), recall, tail)


def _check_manifests(
    model_dir: Path, objectives: Sequence[str], findings: _Findings
) -> dict[str, Any] | None:
    """Reads both flavours' manifests; None if they cannot be used."""
    manifests: dict[str, dict[str, Any]] = {}
    for flavour in FLAVOURS:
        path = model_dir / flavour / MANIFEST_FILE
        try:
            manifests[flavour] = json.loads(path.read_text(encoding="utf-8"))
            top_k = manifests[flavour]["top_k"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = f"{path} cannot be used: {type(error).__name__}: {error}"
            findings.expect(spec.CHECK_MANIFEST, False, fault)
            return None
        if not isinstance(top_k, int) or top_k < 1:
            findings.expect(spec.CHECK_MANIFEST, False, f"{path}: top_k is {top_k!r}")
            return None
        named = manifests[flavour].get("objectives")
        findings.expect(
            spec.CHECK_MANIFEST,
            named == list(objectives),
            f"{flavour} has the objectives {named}, the pipeline {list(objectives)}",
        )
    ids = {flavour: manifests[flavour].get("model_id") for flavour in FLAVOURS}
    findings.expect(
        spec.CHECK_MANIFEST,
        len(set(ids.values())) == 1 and all(ids.values()),
        f"the flavours name the model ids {ids}",
    )
    return None if findings.faults[spec.CHECK_MANIFEST] else manifests[STOCK_FLAVOUR]


def _load_oracle(path: Path, findings: _Findings) -> Oracle | None:
    try:
        return Oracle.load(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        fault = f"{path} cannot be used: {type(error).__name__}: {error}"
        findings.expect(spec.CHECK_EXACTNESS, False, fault)
        return None


def _stage(model_dir: Path, scratch: Path) -> dict[str, Path]:
    """Makes each flavour version 1 of a served directory, without a copy where links work."""
    bases = {}
    for flavour, served in _SERVED_NAMES.items():
        bases[served] = scratch / served
        bases[served].mkdir()
        source = (model_dir / flavour).absolute()
        try:
            (bases[served] / "1").symlink_to(source, target_is_directory=True)
        except OSError:
            shutil.copytree(source, bases[served] / "1")
    return bases


class _Examination:
    """Asks both flavours the same questions and notes every fault."""

    def __init__(
        self,
        server: ServerProcess,
        oracle: Oracle,
        top_k: int,
        objectives: Sequence[str],
        deadline: float,
        findings: _Findings,
    ) -> None:
        self._server = server
        self._oracle = oracle
        self._top_k = top_k
        self._weightings = weightings(len(objectives))
        self._deadline = deadline
        self._findings = findings

    def run(self, timelines: Sequence[Timeline]) -> None:
        """Asks everything. Raises ServerFailedError when the server is gone or time is over."""
        for flavour, served in _SERVED_NAMES.items():
            with Asker(self._server.address, served, self._call_seconds) as asker:
                for timeline in timelines:
                    self._ask_user(flavour, asker, timeline)
                self._ask_unknown(flavour, asker, timelines[0])
                self._ask_with_exclusions(flavour, asker, timelines[0])

    def _call_seconds(self) -> float:
        return min(_CALL_TIMEOUT_SECONDS, self._deadline - time.monotonic())

    def _ask_user(self, flavour: str, asker: Asker, timeline: Timeline) -> None:
        # What the model itself knows of the user is excluded too, but not known here: the list
        # may be short only by that much, so its length and ranking are not compared.
        self._ask(spec.CHECK_KNOWN_USER, flavour, asker, UserRequest(timeline.user_id), False)
        for weights in self._weightings:
            request = UserRequest(timeline.user_id, timeline.history, weights=weights)
            self._ask(spec.CHECK_HISTORIES, flavour, asker, request)

    def _ask_unknown(self, flavour: str, asker: Asker, timeline: Timeline) -> None:
        ones = self._weightings[0]
        stranger = UserRequest(_UNKNOWN_USER, weights=ones)
        self._ask(spec.CHECK_UNKNOWN_USER, flavour, asker, stranger)
        strange = tuple((item_id, 0) for item_id in _UNKNOWN_ITEMS)
        for history in (strange, strange + timeline.history):
            request = UserRequest(timeline.user_id, history, _UNKNOWN_ITEMS, ones)
            self._ask(spec.CHECK_UNKNOWN_ITEMS, flavour, asker, request)

    def _ask_with_exclusions(self, flavour: str, asker: Asker, timeline: Timeline) -> None:
        """Excludes what was recommended, then all but fewer items than a list holds."""
        ones = self._weightings[0]
        request = UserRequest(timeline.user_id, timeline.history, weights=ones)
        first = self._ask(spec.CHECK_EXCLUSIONS, flavour, asker, request)
        exclusions = []
        if first is not None:
            exclusions.append(tuple(item_id for item_id in first.item_ids if item_id))
        if len(self._oracle.item_ids) <= _LARGEST_CATALOGUE_TO_EXCLUDE:
            exclusions.append(tuple(self._oracle.item_ids[max(1, self._top_k // 2) :]))
        for exclude in exclusions:
            request = UserRequest(timeline.user_id, timeline.history, exclude, ones)
            self._ask(spec.CHECK_EXCLUSIONS, flavour, asker, request)

    def _ask(
        self, check: str, flavour: str, asker: Asker, request: UserRequest, complete: bool = True
    ) -> Answer | None:
        """Asks once and examines the answer.

        Args:
          check: what this request is part of.
          complete: the request holds everything that the answer depends on.

        Raises:
          ServerFailedError: the server is gone, or no time is left.
        """
        where = f"{flavour}, user {request.user_id!r}, weights {request.weights}"
        if time.monotonic() >= self._deadline:
            raise ServerFailedError("the time for the validation ran out; raise timeout_seconds")
        try:
            answer = asker.recommend(request)
            blocks, sizes = asker.embed(request) if complete else (None, [])
        except grpc.RpcError as error:
            self._server.check_alive()
            fault = f"{where}: {error.code().name} {error.details()}"
            self._findings.expect(check, False, fault)
            return None
        except ValueError as error:
            self._findings.expect(check, False, f"{where}: {error}")
            return None
        found = sum(1 for item_id in answer.item_ids if item_id)
        self._findings.expect(check, found > 0 or bool(request.exclude), f"{where}: empty list")
        excluded = {item_id for item_id, _ in request.history} | set(request.exclude)
        self._examine_list(where, answer, excluded, complete)
        if blocks is not None and request.weights is not None:
            try:
                exact = self._oracle.scores(blocks, sizes, request.weights, excluded)
            except ValueError as error:
                self._findings.expect(spec.CHECK_EXACTNESS, False, f"{where}: {error}")
                return answer
            self._compare(flavour, where, answer, exact)
        return answer

    def _examine_list(
        self, where: str, answer: Answer, excluded: Collection[bytes], complete: bool
    ) -> None:
        expect = self._findings.expect
        given = [item_id for item_id in answer.item_ids if item_id]
        back = sorted(set(given) & set(excluded))
        expect(spec.CHECK_EXCLUSIONS, not back, f"{where}: {back[:5]} came back")
        expect(
            spec.CHECK_UNIQUE_IDS,
            len(set(given)) == len(given) and all(item_id in self._oracle for item_id in given),
            f"{where}: repeated or unknown ids among {given[:10]}",
        )
        padding = answer.scores[len(given) :]
        padded_last = not any(answer.item_ids[len(given) :]) and not np.any(padding)
        remaining = sum(1 for item_id in self._oracle.item_ids if item_id not in excluded)
        wanted = min(self._top_k, remaining)
        expect(
            spec.CHECK_FULL_LISTS,
            len(answer.item_ids) == self._top_k
            and padded_last
            and (len(given) == wanted or not complete),
            f"{where}: {len(given)} items in {len(answer.item_ids)} places, "
            f"expected {wanted} in {self._top_k}, the rest '' with score 0",
        )
        scores = answer.scores[: len(given)]
        expect(
            spec.CHECK_SCORES,
            bool(np.isfinite(answer.scores).all() and (np.diff(scores) <= 0).all()),
            f"{where}: scores {scores[:10].tolist()}",
        )

    def _compare(self, flavour: str, where: str, answer: Answer, exact: Any) -> None:
        """Compares with brute force; items of equal score may stand for each other."""
        allowed = tolerance(exact)
        best = self._oracle.best(exact, self._top_k)
        given = [i for i in answer.item_ids if i]
        true_scores = np.asarray([self._oracle.score_of(exact, i) for i in given], np.float32)
        if flavour == SCANN_FLAVOUR:
            if len(best):
                hits = int(np.sum(true_scores >= best[-1] - allowed))
                self._findings.recalls.append(min(1.0, hits / len(best)))
            return
        returned = answer.scores[: len(given)]
        same = (
            len(given) == len(best)
            and np.allclose(returned, best, rtol=0, atol=allowed)
            and np.allclose(true_scores, best, rtol=0, atol=allowed)
        )
        self._findings.expect(
            spec.CHECK_EXACTNESS,
            bool(same),
            f"{where}: best scores {returned[:3].tolist()}, brute force {best[:3].tolist()}",
        )
