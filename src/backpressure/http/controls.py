"""The POST routes that change a setting: rate, batch size, circuit breaker.

A change goes through the same method of the buffer as in code, which announces and logs
it. A request that is refused has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from backpressure.base.errors import ConfigError
from backpressure.base.events import Tuned
from backpressure.http.chosen import Chosen
from backpressure.http.guard import client_of
from backpressure.http.models import BatchSizeChange, Change, Nothing, RateChange, plain
from backpressure.http.openapi import ALWAYS, TOKEN, problems

__all__ = ["add_controls"]

_RESPONSES: Final = {**problems(400, 401, 413, 415, 422), **ALWAYS}


def add_controls(app: FastAPI) -> None:
    """Add the routes that change a setting of a buffer to `app`."""

    @app.post(
        "/buffer/flow-control/rate",
        response_model=Change,
        responses=_RESPONSES,
        dependencies=[TOKEN],
    )
    async def rate(body: RateChange, request: Request, buffer: Chosen) -> JSONResponse:
        """Set the admitted rate; in force at once."""
        return _apply(
            lambda: buffer.adjust_flow_control_rate(body.rate, by=client_of(request.scope))
        )

    @app.post(
        "/buffer/batch-size", response_model=Change, responses=_RESPONSES, dependencies=[TOKEN]
    )
    async def batch_size(body: BatchSizeChange, request: Request, buffer: Chosen) -> JSONResponse:
        """Set the batch size, within the configured bounds.

        The adaptive law goes on from there.
        """
        return _apply(lambda: buffer.adjust_batch_size(body.size, by=client_of(request.scope)))

    @app.post(
        "/buffer/circuit-breaker/reset",
        response_model=Change,
        responses=_RESPONSES,
        dependencies=[TOKEN],
    )
    async def reset(request: Request, buffer: Chosen, body: Nothing | None = None) -> JSONResponse:
        """Close the circuit and forget its failures."""
        return _apply(lambda: buffer.reset_circuit_breaker(by=client_of(request.scope)))


def _apply(change: Callable[[], Tuned]) -> JSONResponse:
    """Make the change and answer with the old and the new value; 422 where it fails."""
    try:
        tuned = change()
    except ConfigError as error:
        raise HTTPException(422, str(error)) from None
    return JSONResponse(plain({"setting": tuned.setting, "old": tuned.old, "new": tuned.new}))
