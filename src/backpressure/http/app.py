"""create_app: the routes, put together.

    GET  /buffer/stats  /buffer/backpressure  /buffer/flow-control  /buffer/health  /metrics     what there is
    GET  /buffer/  /buffer/static/…  /buffer/events  /buffer/openapi.json                        to look at
    POST /buffer/flow-control/rate  /buffer/batch-size  /buffer/circuit-breaker/reset            changes
    POST /events                                                                                 lines in

Every request passes the Guard first (guard.py). A change goes through the same method
of the buffer as in code, which announces and logs it. Routes run in the event loop:
each takes some microseconds, and what takes longer gives others their turn.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Annotated, Any, Final

from fastapi import FastAPI, Header, HTTPException, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

from backpressure.base.errors import ConfigError
from backpressure.base.events import Tuned
from backpressure.base.priority import Priority
from backpressure.buffer.config import WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.http import dashboard
from backpressure.http.config import HttpConfig, check_token
from backpressure.http.event_stream import EVENT_SCHEMA, EventStream, Streams, parse_id
from backpressure.http.guard import INGEST_PATH, Guard, client_of
from backpressure.http.ingest import Uploads, ingest
from backpressure.http.models import (
    BackpressureReply,
    BatchSizeChange,
    Change,
    FlowControlReply,
    Health,
    HealthQuery,
    IngestQuery,
    IngestReply,
    Nothing,
    Problem,
    RateChange,
    StatsReply,
    plain,
)
from backpressure.policies.circuit_breaker import State

__all__ = ["create_app"]

_TITLE: Final = "forebay"
_ABOUT: Final = (
    "A buffer with backpressure: what it holds, how it does, and its controls. Whatever changes something needs the token. "
    "Host and Origin of every request are checked; a request that is refused has changed nothing."
)
# A lane with less room than this (of its memory) takes nothing of ordinary size:
# records and alignment take their part.
_FULL: Final = 0.95

_Token = Security(
    HTTPBearer(auto_error=False, description="The token that the server was started with.")
)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    about = {
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
    return {status: {"model": Problem, "description": about[status]} for status in statuses}


_ALWAYS: Final = _problems(403, 421)
_WHEN_CHANGED: Final = {**_problems(400, 401, 413, 415, 422), **_ALWAYS}


class _App(FastAPI):
    """FastAPI, whose document knows the bounds of this very buffer."""

    def __init__(self, buffer: BufferManager, **options: Any) -> None:
        super().__init__(**options)
        self._batching = buffer.config.batching

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        size = document["components"]["schemas"][BatchSizeChange.__name__]["properties"]["size"]
        size |= {"minimum": self._batching.min_batch_size, "maximum": self._batching.max_batch_size}
        return document


def create_app(
    buffer: BufferManager, token: str | None = None, config: HttpConfig | None = None
) -> FastAPI:
    """An ASGI app over `buffer`: serve it alone (`backpressure.http.serve`), or mount
    it into an app of your own.

    token: what `Authorization: Bearer <token>` must carry to change anything, uploads
        included. None: nothing can be changed.
    config: None means all defaults, which answer to localhost only: see
        HttpConfig.allowed_hosts.

    Raises ConfigError, which names the field, where token or config can not work.
    """
    config = config if config is not None else HttpConfig()
    token = check_token(token)
    app = _App(
        buffer,
        title=_TITLE,
        version=_version(),
        description=_ABOUT,
        openapi_url="/buffer/openapi.json",
        # They load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(RequestValidationError, _not_valid)
    _add_views(app, buffer, config)
    _add_controls(app, buffer)
    _add_ingest(app, buffer, config)
    dashboard.add_routes(app)
    app.add_middleware(Guard, token=token, config=config)
    return app


# ---------------------------------------------------------------- to look at


def _add_views(app: FastAPI, buffer: BufferManager, config: HttpConfig) -> None:
    streams = Streams(config.max_streams)
    # For whoever stops the server: see server.py.
    app.state.streams = streams

    @app.get("/buffer/stats", response_model=StatsReply, responses=_ALWAYS)
    async def stats() -> JSONResponse:
        """Everything at one moment; both conservation lines hold within it."""
        return JSONResponse(plain(buffer.stats()))

    @app.get("/buffer/backpressure", response_model=BackpressureReply, responses=_ALWAYS)
    async def backpressure() -> JSONResponse:
        """Whether the buffer is overloaded, how badly, and which signal says so."""
        snapshot, monitor = buffer.stats(), buffer.config.monitor
        thresholds = {
            "depth": monitor.queue_depth_threshold,
            "delay": monitor.delay_threshold,
            "latency": monitor.latency_threshold,
            "error_rate": monitor.error_rate_threshold,
        }
        own = {"backpressure_seconds": snapshot.backpressure_seconds, "thresholds": thresholds}
        return JSONResponse({**plain(snapshot.pressure), **own})

    @app.get("/buffer/flow-control", response_model=FlowControlReply, responses=_ALWAYS)
    async def flow_control() -> JSONResponse:
        """The admitted rate, as set, as in force and as used."""
        return JSONResponse(plain(buffer.stats().flow_control))

    @app.get(
        "/buffer/health",
        response_model=Health,
        responses={
            503: {"model": Health, "description": "It can take no events."},
            **_problems(422),
            **_ALWAYS,
        },
    )
    async def health(query: Annotated[HealthQuery, Query()]) -> JSONResponse:
        """Whether the buffer can take events, and why not: 200 or 503, for a load
        balancer.
        """
        found = _health(buffer)
        return JSONResponse(
            found.model_dump(), 200 if found.ready or query.probe == "live" else 503
        )

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **_problems(501),
            **_ALWAYS,
        },
    )
    async def metrics(request: Request) -> Response:
        """The same for Prometheus."""
        try:
            exposition = import_module("backpressure.metrics").exposition
            body, content_type = exposition(buffer, request.headers.get("accept", ""))
        except ImportError:
            raise HTTPException(
                501, "metrics need the Prometheus client: pip install 'forebay[prometheus]'"
            ) from None
        return Response(body, headers={"Content-Type": content_type})

    @app.get(
        "/buffer/events",
        response_class=Response,
        responses={
            200: {
                "description": "Server-sent events.",
                "content": {"text/event-stream": {"itemSchema": EVENT_SCHEMA}},
            },
            **_problems(422, 503),
            **_ALWAYS,
        },
    )
    async def events(last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """The buffer's events as they happen, as server-sent events; `Last-Event-ID`
        resumes.
        """
        if not streams.free:
            problem = Problem(
                detail=f"there are {streams.limit} event streams already, and no more are served"
            )
            return JSONResponse(problem.model_dump(), 503, {"Retry-After": "5"})
        return EventStream(buffer, config, streams, parse_id(last_event_id, buffer))


def _health(buffer: BufferManager) -> Health:
    """Ready: what is sent with priority 3, the default, or more urgent is accepted. The
    rest is worth a look, not an alarm.
    """
    stats = buffer.stats()
    unready: list[str] = []
    degraded: list[str] = []
    if buffer.closing:
        unready.append("the buffer is closed" if stats.closed else "the buffer is closing")
    if buffer.config.when_full in (WhenFull.REJECT, WhenFull.BLOCK):
        for priority, lane in stats.lanes.items():
            if lane.used_bytes >= _FULL * lane.capacity_bytes:
                kind = unready if priority <= Priority.NORMAL else degraded
                kind.append(
                    f"lane {priority} is full: {lane.used_bytes:,} of {lane.capacity_bytes:,} bytes"
                )
    if stats.circuit_breaker.state not in (State.CLOSED, State.DISABLED):
        state = stats.circuit_breaker.state.value.replace("_", " ")
        degraded.append(f"the circuit is {state}: the sink is not, or hardly, called")
    if stats.backpressure_active:
        pressure = stats.pressure
        degraded.append(
            f"backpressure: {pressure.signal} is {pressure.value:.3g}, above {pressure.threshold:g}"
        )
    if stats.flow_control.emergency:
        degraded.append(
            f"emergency mode: {stats.flow_control.failure_rate:.0%} of what the sink was given failed"
        )
    status = "unready" if unready else "degraded" if degraded else "ok"
    return Health(status=status, live=True, ready=not unready, reasons=unready + degraded)  # type: ignore[arg-type]


# ---------------------------------------------------------------- changes


def _add_controls(app: FastAPI, buffer: BufferManager) -> None:
    @app.post(
        "/buffer/flow-control/rate",
        response_model=Change,
        responses=_WHEN_CHANGED,
        dependencies=[_Token],
    )
    async def rate(body: RateChange, request: Request) -> JSONResponse:
        """Set the admitted rate; in force at once."""
        return _applied(
            lambda: buffer.adjust_flow_control_rate(body.rate, by=client_of(request.scope))
        )

    @app.post(
        "/buffer/batch-size", response_model=Change, responses=_WHEN_CHANGED, dependencies=[_Token]
    )
    async def batch_size(body: BatchSizeChange, request: Request) -> JSONResponse:
        """Set the batch size, within the configured bounds; the adaptive law goes on
        from there.
        """
        return _applied(lambda: buffer.adjust_batch_size(body.size, by=client_of(request.scope)))

    @app.post(
        "/buffer/circuit-breaker/reset",
        response_model=Change,
        responses=_WHEN_CHANGED,
        dependencies=[_Token],
    )
    async def reset(request: Request, body: Nothing | None = None) -> JSONResponse:
        """Close the circuit and forget its failures."""
        return _applied(lambda: buffer.reset_circuit_breaker(by=client_of(request.scope)))


def _applied(change: Callable[[], Tuned]) -> JSONResponse:
    try:
        tuned = change()
    except ConfigError as error:
        raise HTTPException(422, str(error)) from None
    return JSONResponse(plain({"setting": tuned.setting, "old": tuned.old, "new": tuned.new}))


async def _not_valid(request: Request, error: Exception) -> JSONResponse:
    """One sentence for each mistake, without an echo of what came: that may be
    anything.
    """
    assert isinstance(error, RequestValidationError)
    details = []
    for one in error.errors():
        if one["type"] == "json_invalid":
            details.append(f"the body is not JSON: {one['ctx']['error']}")
            continue
        place = [str(part) for part in one["loc"]]
        details.append(f"{'.'.join(place[1:]) or place[0]}: {one['msg']}")
    return JSONResponse(Problem(detail="; ".join(details)).model_dump(), 422)


# ---------------------------------------------------------------- lines in


def _add_ingest(app: FastAPI, buffer: BufferManager, config: HttpConfig) -> None:
    uploads = Uploads(buffer)
    # For whoever stops the server: see server.py.
    app.state.uploads = uploads

    def replies(*statuses: int) -> dict[int | str, dict[str, Any]]:
        about = {
            400: "The body is not what Content-Encoding says, or broke off.",
            408: "The client stopped sending.",
            413: "The body, what it unpacks to, or a line is too large.",
            415: "Content-Encoding is neither gzip nor zstd.",
            429: "Rate limited; Retry-After says when to go on.",
            503: "The buffer is full or closed; Retry-After says when to try again.",
        }
        return {status: {"model": IngestReply, "description": about[status]} for status in statuses}

    @app.post(
        INGEST_PATH,
        status_code=202,
        response_model=IngestReply,
        responses={**_problems(401, 422), **_ALWAYS, **replies(400, 408, 413, 415, 429, 503)},
        dependencies=[_Token],
        openapi_extra={
            "requestBody": {
                "description": "Lines, each one event; as it is, or packed as Content-Encoding (gzip or zstd) says.",
                "content": {
                    kind: {}
                    for kind in ("text/plain", "application/x-ndjson", "application/octet-stream")
                },
            }
        },
    )
    async def events_in(query: Annotated[IngestQuery, Query()], request: Request) -> JSONResponse:
        """Put lines into the buffer. Whatever the answer: exactly the first `accepted`
        of them were accepted.
        """
        return await ingest(request, query, buffer, config, uploads)


def _version() -> str:
    try:
        return metadata.version("forebay")
    except metadata.PackageNotFoundError:
        return "0"
