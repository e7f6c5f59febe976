"""serve: the HTTP app on a socket of its own, for a program without a web server.

For a server of your own there is `create_app`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import uvicorn

from backpressure.buffer_manager import BufferManager
from backpressure.http.app import create_app
from backpressure.http.config import HttpConfig
from backpressure.http.connection_limits import limited
from backpressure.http.event_stream import Streams
from backpressure.http.health import Parts
from backpressure.http.uploads import Uploads
from backpressure.sources.base import SourceStats

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "make_server", "serve"]

#: This machine only: an admin API that listens on all addresses is soon found.
DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8127

# When the server is told to end: seconds until it does, and until it ends the uploads
# that are still under way.
_GRACE: Final = 2
_UPLOAD_GRACE: Final = 1


class _Server(uvicorn.Server):
    """Ends event streams and uploads before it waits for its connections to end."""

    def __init__(self, config: uvicorn.Config, streams: Streams, uploads: Uploads) -> None:
        super().__init__(config)
        self._streams = streams
        self._uploads = uploads

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.end()
        asyncio.get_running_loop().call_later(_UPLOAD_GRACE, self._uploads.end)
        await super().shutdown(sockets)


def make_server(
    buffer: BufferManager | Mapping[str, BufferManager],
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    token: str | None = None,
    config: HttpConfig | None = None,
    source_stats: Callable[[], Sequence[SourceStats]] = tuple,
    parts: Parts | None = None,
) -> uvicorn.Server:
    """A uvicorn server over `buffer`, not yet running.

    `server.run()` or `await server.serve()` runs it, `server.should_exit = True` ends
    it. The address that it listens on is added to the allowed hosts, unless that is all
    addresses ("0.0.0.0"): then name in `HttpConfig.allowed_hosts` those by which it is
    to be reached.

    source_stats: of what puts into the buffer, for /metrics. `buffer` and `parts` are
    as for `create_app`.
    """
    config = config if config is not None else HttpConfig()
    if not _is_wildcard(host):
        name = f"[{host}]" if ":" in host else host
        config = replace(config, allowed_hosts=tuple(dict.fromkeys((*config.allowed_hosts, name))))
    app = create_app(buffer, token, config, source_stats=source_stats, parts=parts)
    return _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            lifespan="off",
            http=limited(config),
            # It has no web sockets. Without this each request for one is a line in the
            # log.
            ws="none",
            access_log=False,
            server_header=False,
            # connection_limits.py logs what clients do wrong, at a limited rate.
            log_level="error",
            # The client's address in the audit log must be the one that connected, not
            # one that it claims.
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE,
            # uvicorn only hands it to the loop's call_later, which takes a fraction.
            timeout_keep_alive=config.keep_alive,  # type: ignore[arg-type]
        ),
        app.state.streams,
        app.state.uploads,
    )


def serve(
    buffer: BufferManager | Mapping[str, BufferManager],
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    token: str | None = None,
    config: HttpConfig | None = None,
) -> None:
    """Serve `buffer` until SIGINT or SIGTERM. Parameters as for `make_server`."""
    make_server(buffer, host=host, port=port, token=token, config=config).run()


def _is_wildcard(host: str) -> bool:
    if not host:
        return True
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
