"""The GET routes: statistics, pressure, flow control, health, metrics, events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse

from backpressure.http.chosen import Buffers, Chosen
from backpressure.http.config import HttpConfig
from backpressure.http.event_stream import EVENT_SCHEMA, EventStream, Streams, parse_id
from backpressure.http.health import Parts, check_all, check_health
from backpressure.http.models import (
    BackpressureReply,
    FlowControlReply,
    Health,
    HealthQuery,
    Problem,
    SinkHealthQuery,
    SinksReply,
    StatsReply,
    plain,
)
from backpressure.http.openapi import ALWAYS, problems
from backpressure.sources.base import SourceStats

__all__ = ["add_views"]


def add_views(
    app: FastAPI,
    buffers: Buffers,
    config: HttpConfig,
    streams: Streams,
    source_stats: Callable[[], Sequence[SourceStats]],
    parts: Parts | None = None,
) -> None:
    """Add the routes that only read to `app`."""
    query_of_health: Any = SinkHealthQuery if buffers.named else HealthQuery

    @app.get("/buffer/stats", response_model=StatsReply, responses=ALWAYS)
    async def stats(buffer: Chosen) -> JSONResponse:
        """Everything at one moment; both conservation lines hold within it."""
        return JSONResponse(plain(buffer.stats()))

    @app.get("/buffer/backpressure", response_model=BackpressureReply, responses=ALWAYS)
    async def backpressure(buffer: Chosen) -> JSONResponse:
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

    @app.get("/buffer/flow-control", response_model=FlowControlReply, responses=ALWAYS)
    async def flow_control(buffer: Chosen) -> JSONResponse:
        """The admitted rate, as set, as in force and as used."""
        return JSONResponse(plain(buffer.stats().flow_control))

    async def health(query: HealthQuery) -> JSONResponse:
        """Whether the buffer can take events, and why not: 200 or 503.

        Of several buffers all of them, or that of one sink.
        """
        others = {} if parts is None else parts()
        sink = getattr(query, "sink", None)
        if buffers.named and sink is None:
            found = check_all(buffers.named, others)
        else:
            found = check_health(buffers.choose(sink), others)
        answers_200 = found.ready or query.probe == "live"
        return JSONResponse(found.model_dump(), 200 if answers_200 else 503)

    # What FastAPI reads, as in ingest.py.
    health.__annotations__["query"] = Annotated[query_of_health, Query()]
    app.get(
        "/buffer/health",
        response_model=Health,
        responses={
            503: {"model": Health, "description": "It can take no events."},
            **problems(422),
            **ALWAYS,
        },
    )(health)

    @app.get("/buffer/sinks", response_model=SinksReply, responses=ALWAYS)
    async def sinks() -> SinksReply:
        """The names for `?sink=`; none where there is one sink without a name."""
        return SinksReply(sinks=list(buffers.named))

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **problems(501),
            **ALWAYS,
        },
    )
    async def metrics(request: Request) -> Response:
        """The statistics for Prometheus."""
        try:
            exposition = import_module("backpressure.metrics").exposition
            accept = ",".join(request.headers.getlist("accept"))
            given: dict[str, Any] = {}
            if sources := source_stats():
                given["sources"] = sources
            if parts is not None:
                given["parts"] = parts()
            body, content_type = exposition(buffers.exported, accept, **given)
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
            **problems(422, 503),
            **ALWAYS,
        },
    )
    async def events(
        buffer: Chosen, last_event_id: Annotated[str | None, Header()] = None
    ) -> Response:
        """The buffer's events as server-sent events; `Last-Event-ID` resumes."""
        if not streams.free:
            problem = Problem(
                detail=f"there are {streams.limit} event streams already, and no more are served"
            )
            return JSONResponse(problem.model_dump(), 503, {"Retry-After": "5"})
        return EventStream(buffer, config, streams, parse_id(last_event_id, buffer))
