"""Requests that offer another protocol, and bodies that do not come.

A body behind `Connection: Upgrade` is read, or the request refused and its connection
ended: it is never dropped in silence, and never taken for a request.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httptools")

import uvicorn

from backpressure import BufferConfig, BufferManager
from backpressure.http import create_app
from tests.support.buffers import drain
from tests.support.http import SCOPE, TOKEN, serving
from tests.support.threads import until

OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
    "nonsense": b"connection: upgrade\r\nupgrade: TLS/1.0, \xfc\r\nupgrade: x\r\n",
    "none": b"Connection: keep-alive\r\n",
}
# A request of its own, if it is taken for one: this must not change anything.
LINES = b"POST /buffer/batch-size HTTP/1.1\r\nHost: localhost\r\n\r\nsecond\nthird"
BODIES = {
    "length": b"Content-Length: %d\r\n\r\n%s" % (len(LINES), LINES),
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n3\r\n\nx\n\r\n0\r\n\r\n"
    % (len(LINES), LINES),
}
HEAD = b"Host: localhost\r\nAuthorization: Bearer %s\r\n" % TOKEN.encode()
LAST = b"GET /buffer/health?probe=live HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n"


@pytest.fixture
def buffer() -> BufferManager:
    return BufferManager(BufferConfig(lane_bytes=1 << 16))


@contextmanager
def plain_server(buffer: BufferManager, http: str) -> Iterator[str]:
    """The app in a user's own uvicorn."""
    config = uvicorn.Config(
        create_app(buffer, TOKEN), port=0, http=http, ws="none", lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def send(address: str, packets: list[bytes]) -> list[int]:
    """The statuses of all answers until the server ends the connection."""
    host, port = address.removeprefix("http://").split(":")
    received = b""
    with closing(socket.create_connection((host, int(port)), timeout=30)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for packet in packets:
                connection.sendall(packet)
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", received)]


def cut(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]


CASES = list(itertools.product(OFFERS, BODIES))


@pytest.mark.parametrize(("offer", "body"), CASES)
def test_a_body_behind_an_offer_is_read(buffer: BufferManager, offer: str, body: str) -> None:
    upload = b"POST /events HTTP/1.1\r\n" + HEAD + OFFERS[offer] + BODIES[body]
    expected = [*LINES.split(b"\n"), *([b"x"] if body == "chunks" else [])]
    with serving(buffer) as address:
        for packets in (
            [upload + upload + LAST],
            [upload, upload, LAST],
            [*upload.partition(b"\r\n\r\n"), upload + LAST],
            cut(upload + upload + LAST, 7),
        ):
            assert send(address, packets) == [202, 202, 200]
            assert drain(buffer) == expected * 2


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_without_a_body_is_a_request(buffer: BufferManager, offer: str) -> None:
    ask = b"GET /buffer/health HTTP/1.1\r\n" + HEAD + OFFERS[offer] + b"\r\n"
    with serving(buffer) as address:
        for packets in ([ask * 3 + LAST], [ask, ask, LAST], cut(ask + LAST, 5)):
            assert set(send(address, packets)) == {200}
        assert len(send(address, [ask * 3 + LAST])) == 4


def test_offers_wait_in_line_like_other_requests(buffer: BufferManager) -> None:
    ask = b"GET /buffer/health HTTP/1.1\r\n" + HEAD + OFFERS["h2c"] + b"\r\n"
    with serving(buffer) as address:
        assert send(address, [ask * 31 + LAST]) == [200] * 32
        assert len(send(address, [ask * 5000 + LAST])) < 32
        assert send(address, [LAST]) == [200]


def test_a_tunnel_is_refused(buffer: BufferManager) -> None:
    with serving(buffer) as address:
        for packets in ([b"CONNECT a:1 HTTP/1.1\r\n" + HEAD + b"\r\n" + LAST], [LAST]):
            assert len(send(address, packets)) == 1
        assert send(address, [b"CONNECT a:1 HTTP/1.1\r\n" + HEAD + b"\r\n"]) == [405]


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize(("offer", "body"), CASES)
def test_another_server_loses_nothing_in_silence(
    buffer: BufferManager, offer: str, body: str, http: str
) -> None:
    pytest.importorskip(http)
    upload = b"POST /events HTTP/1.1\r\n" + HEAD + OFFERS[offer] + BODIES[body]
    before = buffer.stats().batching.batch_size
    with plain_server(buffer, http) as address:
        for packets in ([upload + LAST], [*upload.partition(b"\r\n\r\n"), LAST]):
            statuses = send(address, packets)
            taken = drain(buffer)
            if offer == "none":
                assert statuses == [202, 200]
            if statuses[:1] == [202]:
                assert taken[: LINES.count(b"\n") + 1] == LINES.split(b"\n")
            else:
                # Its end is the connection's: nothing of the body is a request. Where
                # that lies unread, the end may overtake the answer.
                assert (statuses, taken) in (([400], []), ([], []))
    assert buffer.stats().batching.batch_size == before


def call(app: Any, scope: dict[str, Any], body: bytes, sent: list[dict[str, Any]]) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def take(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, take))


@pytest.mark.parametrize(
    ("path", "length", "body", "status"),
    [
        ("/events", b"9", b"ab\n", 400),
        ("/events", b"3", b"ab\n", 202),
        ("/buffer/circuit-breaker/reset", b"9", b"{}", 400),
        ("/buffer/circuit-breaker/reset", b"2", b"{}", 200),
    ],
)
def test_a_body_is_as_long_as_announced(
    path: str, length: bytes, body: bytes, status: int, buffer: BufferManager
) -> None:
    """Whatever server gave it to the app."""
    sent: list[dict[str, Any]] = []
    scope = {
        **SCOPE,
        "method": "POST",
        "path": path,
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", f"Bearer {TOKEN}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", length),
        ],
    }
    call(create_app(buffer, TOKEN), scope, body, sent)
    assert sent[0]["status"] == status
    ends = (b"connection", b"close") in sent[0]["headers"]
    assert ends == (status == 400)
