"""create_app: the routes, put together.

    views.py      GET  /buffer/stats  /buffer/backpressure  /buffer/flow-control
                       /buffer/health  /buffer/events  /buffer/sinks  /metrics
    controls.py   POST /buffer/flow-control/rate  /buffer/batch-size
                       /buffer/circuit-breaker/reset
    ingest.py     POST /events
    dashboard/    GET  /  /buffer/  /buffer/static/…
    FastAPI       GET  /buffer/openapi.json

`?sink=name` says which of several buffers a request is about (chosen.py).

Every request passes the Guard first (guard.py). Routes run in the event loop: each
takes some microseconds, and what takes longer yields to others in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from backpressure.base.errors import ConfigError
from backpressure.base.version import version
from backpressure.base.wording import as_text
from backpressure.buffer_manager import BufferManager
from backpressure.http import dashboard
from backpressure.http.chosen import Buffers, document_sinks
from backpressure.http.config import HttpConfig, check_token
from backpressure.http.controls import add_controls
from backpressure.http.event_stream import Streams
from backpressure.http.guard import Guard
from backpressure.http.health import Parts
from backpressure.http.ingest import add_ingest
from backpressure.http.models import BatchSizeChange, Problem
from backpressure.http.uploads import Uploads
from backpressure.http.views import add_views
from backpressure.sources.base import SourceStats

__all__ = ["create_app"]

_TITLE: Final = "forebay"
_DESCRIPTION: Final = (
    "A buffer with backpressure: what it holds, how it does, and its controls. "
    "Whatever changes something needs the token. Host and Origin of every request are "
    "checked; a request that is refused has changed nothing."
)


class _App(FastAPI):
    """FastAPI, with a document that has the bounds of these very buffers."""

    def __init__(self, buffers: Buffers, **options: Any) -> None:
        super().__init__(**options)
        self._buffers = buffers

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        size = document["components"]["schemas"][BatchSizeChange.__name__]["properties"]["size"]
        bounds = [buffer.config.batching for buffer in self._buffers.all()]
        size["minimum"] = min(one.min_batch_size for one in bounds)
        size["maximum"] = max(one.max_batch_size for one in bounds)
        if self._buffers.named:
            document_sinks(document, list(self._buffers.named))
        return document


def create_app(
    buffer: BufferManager | Mapping[str, BufferManager],
    token: str | None = None,
    config: HttpConfig | None = None,
    *,
    source_stats: Callable[[], Sequence[SourceStats]] = tuple,
    parts: Parts | None = None,
) -> FastAPI:
    """An ASGI app over `buffer`.

    Serve it alone (`backpressure.http.serve`), or mount it into an app of your own.

    buffer: one, or several by name: then each request says by `?sink=name` which it is
        about, and metrics have a label `buffer`.
    token: what `Authorization: Bearer <token>` must carry to change anything, uploads
        included. None: nothing can be changed.
    config: None means all defaults, which answer to localhost only: see
        HttpConfig.allowed_hosts.
    source_stats: of what puts into the buffer, as of sockets; /metrics shows it.
    parts: a function that gives, by name, the parts of the program around the buffer,
        as its sources, with what ended each before its time, or None: for health and
        the metrics.

    Raises ConfigError, which names the field, where token or config cannot work.
    """
    config = config if config is not None else HttpConfig()
    token = check_token(token)
    buffers = Buffers(buffer)
    if not buffers.all():
        raise ConfigError("buffer", "must be a buffer, or a mapping with one or more")
    app = _App(
        buffers,
        title=_TITLE,
        version=version(),
        description=_DESCRIPTION,
        openapi_url="/buffer/openapi.json",
        # They load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    # server.py ends them when the server stops.
    app.state.streams = streams = Streams(config.max_streams)
    app.state.uploads = uploads = Uploads(buffers.all())
    app.state.buffers = buffers
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    add_views(app, buffers, config, streams, source_stats, parts)
    add_controls(app)
    add_ingest(app, buffers, config, uploads)
    dashboard.add_routes(app)
    app.add_middleware(Guard, token=token, config=config, routes=app.router.routes)
    return app


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """One sentence for each mistake, without an echo of what came."""
    assert isinstance(error, RequestValidationError)
    details = []
    for one in error.errors():
        if one["type"] == "json_invalid":
            details.append(f"the body is not JSON: {one['ctx']['error']}")
            continue
        place = [str(part) for part in one["loc"]]
        details.append(f"{'.'.join(place[1:]) or place[0]}: {one['msg']}")
    return JSONResponse(Problem(detail=as_text("; ".join(details))).model_dump(), 422)
