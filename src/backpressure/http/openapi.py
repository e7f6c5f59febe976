"""What the OpenAPI document says of every route: its error replies, and the token."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Security
from fastapi.security import HTTPBearer

from backpressure.http.models import Problem

__all__ = ["ALWAYS", "TOKEN", "Responses", "problems"]

#: What FastAPI takes as `responses`.
Responses = dict[int | str, dict[str, Any]]

_DESCRIPTIONS: Final = {
    400: "The request is not well-formed.",
    401: "The token is missing or wrong.",
    403: "The server was started without a token, or a page of another origin asks.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    421: "The Host header is not one of the allowed names.",
    422: "A value is not allowed; the message says which and why.",
    501: "What this needs is not installed.",
    503: "Not now.",
}


def problems(*statuses: int) -> Responses:
    """The error replies with these statuses, as FastAPI's `responses`."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}


#: What the Guard can answer to any request.
ALWAYS: Final = problems(403, 421)

#: A dependency that documents the token; the Guard is what checks it.
TOKEN: Final = Security(
    HTTPBearer(auto_error=False, description="The token that the server was started with.")
)
