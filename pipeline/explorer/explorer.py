"""What the page can ask for: versions, users, items, histories, and lists with their shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from pipeline.explorer.catalogue import Catalogue, Matches
from pipeline.explorer.errors import ExplorerError, UnavailableError
from pipeline.explorer.servers import Servers, unavailable
from schemas import names
from schemas.settings import Settings
from serving.client import ItemScores, RecommenderClient, RecommenderError

_MATCHES = 20  # shown of a search
_HISTORIES = 1000  # kept, so that a slider does not ask for the same one again
_MAX_TEXT, _MAX_EVENTS, _MAX_OBJECTIVES, _MAX_WEIGHT = 1000, 1000, 64, 1e6
_PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED", "NOT_FOUND")

_Result = TypeVar("_Result")
_Id = Field(max_length=_MAX_TEXT)


class Event(Settings):
    """One entry of a history that was put together by hand.

    Attributes:
      item: its id.
      level: index of the objective that it reached.
    """

    item: str = _Id
    level: int = Field(default=0, ge=0, lt=_MAX_OBJECTIVES)


class Query(Settings):
    """A list to recommend.

    Attributes:
      user: any id; unknown ones are answered too.
      history: instead of the stored one, oldest first; empty = the stored one.
      weights: objective -> weight; those left out weigh 0, none at all = the model's defaults.
      exclude: items not to be shown.
      count: items to show.
      show_seen: put the items of the history at their places in the list.
      version: None = the newest that is served.
    """

    user: str = Field(default="", max_length=_MAX_TEXT)
    history: tuple[Event, ...] = Field(default=(), max_length=_MAX_EVENTS)
    weights: dict[str, float] = Field(default={}, max_length=_MAX_OBJECTIVES)
    exclude: tuple[str, ...] = Field(default=(), max_length=_MAX_EVENTS)
    count: int = Field(default=20, ge=1, le=1000)
    show_seen: bool = False
    version: int | None = Field(default=None, ge=0, lt=2**63)


class Place(NamedTuple):
    """One item of a list, before it has a title."""

    item: str
    score: float
    contributions: list[float]
    seen: bool


@dataclass
class Calls:
    """The gRPC calls behind one answer, and what each took."""

    made: list[dict[str, Any]] = field(default_factory=list)

    def time(self, signature: str, call: Callable[..., _Result], *args: Any) -> _Result:
        """Calls and notes the milliseconds."""
        started = time.perf_counter()
        try:
            return call(*args)
        finally:
            took = 1000 * (time.perf_counter() - started)
            self.made.append({"signature": signature, "ms": round(took, 3)})


class _Asked(NamedTuple):
    """Whom to ask about which version, and where the time goes."""

    client: RecommenderClient
    version: int
    catalogue: Catalogue
    calls: Calls


class Explorer:
    """Answers the page, in plain data that JSON can hold. Safe to share between threads.

    Attributes:
      model: name of the served model.

    Every method raises:
      ExplorerError: there is no answer, with the text for the page.
    """

    def __init__(self, workdir: Path, servers: Servers) -> None:
        self._workdir = workdir
        self._servers = servers
        self.model = servers.model
        self._catalogues: dict[int, Catalogue] = {}
        self._objectives: dict[int, list[str]] = {}
        self._histories: dict[tuple[int, str], list[tuple[str, int]] | None] = {}

    def state(self) -> dict[str, Any]:
        """The model, its server and its versions, newest first."""
        served, on_disk = self._servers.served(), self._servers.on_disk()
        missing = []
        if not self._workdir.is_dir():
            missing.append(
                f"The workdir {self._workdir} is missing. What the server still answers is shown; "
                "users and items cannot be searched, lineage and other versions are unknown."
            )
        elif not on_disk:
            missing.append(
                f"No version of {self.model} is on disk under {self._workdir}: users and "
                "items cannot be searched, and only what the server holds can be asked."
            )
        elif unfounded := sorted(served - on_disk.keys()):
            listed = ", ".join(map(str, unfounded))
            missing.append(f"Served, but not on disk under {self._workdir}: version {listed}.")
        return {
            "model": self.model,
            "address": self._servers.address(),
            "default": max(served),
            "missing": missing,
            "versions": [
                self._version(version, version in served, version in on_disk)
                for version in sorted(served | on_disk.keys(), reverse=True)
            ],
        }

    def users(self, text: str, version: int | None) -> dict[str, Any]:
        """Users known from training whose id holds the text."""
        _, version = self._servers.find(version)
        users = self._catalogue(version).users
        if users is None:
            return _unknown("users", version)
        return _matches(users.search(text, _MATCHES))

    def items(self, text: str, version: int | None) -> dict[str, Any]:
        """Items whose id or title holds the text."""

        def search(asked: _Asked) -> dict[str, Any]:
            items = asked.catalogue.items(_titles(asked))
            if items is None:
                return _unknown("items", asked.version)
            return _matches(items.search(text, _MATCHES))

        return self._ask(version, search)

    def history(self, user: str, version: int | None) -> dict[str, Any]:
        """What the model has stored of a user, newest first."""

        def ask(asked: _Asked) -> dict[str, Any]:
            users = asked.catalogue.users
            stored = self._stored(asked, user)
            answer: dict[str, Any] = {
                "version": asked.version,
                "known": None if users is None else user in users,
                "events": None,
                "calls": asked.calls.made,
            }
            if stored is not None:
                newest_first = stored[::-1]
                found = asked.catalogue.titles([item for item, _ in newest_first], _titles(asked))
                answer["events"] = [
                    {"id": item, "title": title, "level": level}
                    for (item, level), title in zip(newest_first, found, strict=True)
                ]
            return answer

        return self._ask(version, ask)

    def recommend(self, query: Query) -> dict[str, Any]:
        """The list for a query: items, best first, and what each objective adds to their scores."""
        return self._ask(query.version, lambda asked: self._recommend(asked, query))

    def _recommend(self, asked: _Asked, query: Query) -> dict[str, Any]:
        client, version, catalogue, calls = asked
        objectives = self._objectives_of(asked)
        weights = [query.weights.get(name, 0.0) for name in objectives]
        if not query.weights:
            weights = [1.0] * len(objectives)
        elif worst := next((w for w in weights if abs(w) > _MAX_WEIGHT), None):
            raise ExplorerError(f"A weight of {worst:g} is too large: at most {_MAX_WEIGHT:g}.")
        history = [(event.item, min(event.level, len(objectives) - 1)) for event in query.history]
        answer = calls.time(
            names.SIGNATURE_RECOMMEND,
            lambda: client.recommend(
                query.user, weights, query.exclude, query.count, history, version
            ),
        )
        best = [item for item, _ in answer.items]
        seen, told = self._seen(asked, query) if query.show_seen else ([], True)
        places: list[Place] = []
        if best or seen:
            scores = calls.time(
                names.SIGNATURE_SCORE_ITEMS,
                lambda: client.score_items(query.user, best + seen, weights, history, version),
            )
            places = _merge(best, seen, scores, weights)[: query.count]
        titles = catalogue.titles([place.item for place in places], _titles(asked))
        return {
            "model": answer.model,
            "version": version,
            "address": client.address,
            "objectives": objectives,
            "weights": weights,
            "items": [
                {
                    "id": place.item,
                    "title": title,
                    "score": round(place.score, 6),
                    "contributions": [round(value, 6) for value in place.contributions],
                    "seen": place.seen,
                }
                for place, title in zip(places, titles, strict=True)
            ],
            "history_told": told,
            "calls": calls.made,
        }

    def _seen(self, asked: _Asked, query: Query) -> tuple[list[str], bool]:
        """Items of the history that may be shown; and whether the history is known."""
        stored: list[tuple[str, int]] | None = [(e.item, e.level) for e in query.history]
        if not stored:
            stored = self._stored(asked, query.user)
        known, excluded = asked.catalogue.item_ids, set(query.exclude)
        items = [
            item
            for item in dict.fromkeys(item for item, _ in stored or ())
            if item not in excluded and (known is None or item in known)
        ]
        return items, stored is not None

    # --- asking a server --------------------------------------------------------------------

    def _ask(self, version: int | None, question: Callable[[_Asked], _Result]) -> _Result:
        """Puts a question to the server of a version; once more if it has just changed versions."""
        for last in (False, True):
            client, number = self._servers.find(version)
            try:
                return question(_Asked(client, number, self._catalogue(number), Calls()))
            except RecommenderError as error:
                if error.status != "NOT_FOUND" or last:
                    raise _explained(error) from error
                self._servers.forget()
        raise AssertionError("the second attempt returns or raises")

    def _stored(self, asked: _Asked, user: str) -> list[tuple[str, int]] | None:
        """The stored history of a user, oldest first; None if the version does not tell it."""
        key = (asked.version, user)
        if key not in self._histories:
            try:
                stored = asked.calls.time(
                    names.SIGNATURE_USER_HISTORY, asked.client.user_history, user, asked.version
                )
            except RecommenderError as error:
                if error.status != "FAILED_PRECONDITION":  # it has no such signature
                    raise
                stored = None
            if len(self._histories) >= _HISTORIES:
                self._histories.clear()
            self._histories[key] = stored
        return self._histories[key]

    # --- what is known of a version ---------------------------------------------------------

    def _catalogue(self, version: int) -> Catalogue:
        known = self._catalogues.get(version)
        if known is not None and known.manifest:
            return known
        directory = self._servers.on_disk().get(version)
        if known is None or directory is not None:
            known = self._catalogues[version] = Catalogue(directory)
        return known

    def _objectives_of(self, asked: _Asked) -> list[str]:
        """Names of the objectives; numbers where the manifest is not at hand."""
        if named := asked.catalogue.manifest.get("objectives"):
            return list(named)
        if asked.version not in self._objectives:
            embedding = asked.calls.time(
                names.SIGNATURE_EMBED_USER,
                lambda: asked.client.embed_user("", version=asked.version),
            )
            self._objectives[asked.version] = [
                f"objective {k + 1}" for k in range(len(embedding.block_sizes))
            ]
        return self._objectives[asked.version]

    def _version(self, version: int, served: bool, on_disk: bool) -> dict[str, Any]:
        manifest = self._catalogue(version).manifest
        objectives = manifest.get("objectives")
        if objectives is None and served:
            objectives = self._ask(version, self._objectives_of)
        return {
            "version": version,
            "served": served,
            "on_disk": on_disk,
            "objectives": objectives or [],
            "presets": manifest.get("weights", {}),
            "top_k": manifest.get("top_k"),
            "items": manifest.get("n_items"),
            "users": manifest.get("n_users"),
            "model_id": manifest.get("model_id", ""),
        }


def _merge(
    best: Sequence[str], seen: Sequence[str], scores: ItemScores, weights: Sequence[float]
) -> list[Place]:
    """The list in the model's order, with the seen items before the first that scores less.

    Args:
      best: what the model recommends, best first.
      seen: items that it left out.
      scores: of `best` and then `seen`.
      weights: of the objectives.
    """
    contributions = scores.objective_scores.astype(np.float64) * np.asarray(weights)
    places = [
        Place(item, float(score), row.tolist(), index >= len(best))
        for index, (item, score, row) in enumerate(
            zip([*best, *seen], scores.scores, contributions, strict=True)
        )
    ]
    merged = places[: len(best)]
    for place in sorted(places[len(best) :], key=lambda place: place.score):
        after = (at for at, other in enumerate(merged) if place.score > other.score)
        merged.insert(next(after, len(merged)), place)
    return merged


def _titles(asked: _Asked) -> Callable[[Sequence[str]], list[str]]:
    return lambda ids: asked.calls.time(
        names.SIGNATURE_ITEM_TITLES, asked.client.titles, ids, asked.version
    )


def _matches(matches: Matches) -> dict[str, Any]:
    return {"found": [found._asdict() for found in matches.found], "total": matches.total}


def _unknown(what: str, version: int) -> dict[str, Any]:
    """No search, and why."""
    return {
        "found": [],
        "total": None,
        "missing": f"The {what} of version {version} cannot be searched: its files are not on disk "
        "here. An id that is typed in full works.",
    }


def _explained(error: RecommenderError) -> ExplorerError:
    if error.status in _PASSING:
        return unavailable(error)
    if error.status == "INVALID_ARGUMENT":
        return ExplorerError(f"The model does not take this: {error.details}")
    fault = UnavailableError(
        f"The server at {error.address} answered {error.status}: {error.details}"
    )
    fault.status = HTTPStatus.BAD_GATEWAY
    return fault
