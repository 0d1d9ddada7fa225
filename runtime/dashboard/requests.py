"""What the requests of the API have in common: parameters, refusals and answers."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response


class Refused(Exception):
    """A request that cannot be answered. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def number(request: Request, name: str, default: int) -> int:
    """The parameter as a whole number."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise Refused(400, f"{name} must be a number, not {text!r}") from None


def one_of(request: Request, name: str, choices: tuple[str, ...]) -> str:
    """The parameter's value, by default the first choice."""
    given = request.query_params.get(name, choices[0])
    if given not in choices:
        raise Refused(400, f"{name} must be one of {', '.join(choices)}, not {given!r}")
    return given


def as_json(answer: Any) -> Response:
    """The answer as JSON."""
    return Response(msgspec.json.encode(answer), media_type="application/json")
