"""What the tests of backpressure.http share: the app without a socket, and on one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from backpressure import BufferManager
from backpressure.http import HttpConfig, create_app, make_server
from tests.support.threads import until

TOKEN = "correct-horse"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def request(app: Any, method: str, url: str, **options: Any) -> httpx.Response:
    """One request to an ASGI app, without a socket.

    With the token unless `headers` say otherwise.
    """

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, url, **{"headers": AUTH, **options})

    return asyncio.run(main())


class Client:
    """Requests to one app."""

    def __init__(
        self, buffer: BufferManager, token: str | None = TOKEN, config: HttpConfig | None = None
    ) -> None:
        self.app = create_app(buffer, token, config)

    def get(self, url: str, **options: Any) -> httpx.Response:
        return request(self.app, "GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return request(self.app, "POST", url, **options)


@contextmanager
def serving(
    buffer: BufferManager | Mapping[str, BufferManager],
    *,
    token: str | None = TOKEN,
    config: HttpConfig | None = None,
    port: int = 0,
) -> Iterator[str]:
    """The app on a socket of this machine, in a thread; gives its address."""
    server = make_server(buffer, port=port, token=token, config=config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        number = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{number}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


#: For a call of the app itself, without a client: `method`, `path` and `headers` are to
#: be added.
SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "scheme": "http",
    "root_path": "",
    "query_string": b"",
    "client": None,
    "server": None,
}
