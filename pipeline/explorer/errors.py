"""What the page is told when it cannot have what it asked for."""

from __future__ import annotations

from http import HTTPStatus


class ExplorerError(Exception):
    """A request of the page cannot be answered; the text is for people.

    Attributes:
      status: of the HTTP answer.
    """

    status = HTTPStatus.BAD_REQUEST


class UnavailableError(ExplorerError):
    """There is no answer now, but there may be one in a moment."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class StartingError(ExplorerError):
    """What answers is being started; ask again."""

    status = HTTPStatus.ACCEPTED


class GoneError(ExplorerError):
    """There is no such version, or no longer."""

    status = HTTPStatus.NOT_FOUND
