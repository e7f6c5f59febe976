"""What a connection may take before a request is complete.

Memory, time, descriptors, lines in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httptools")

import httpx

from backpressure import BufferManager
from backpressure.http import HttpConfig
from backpressure.sources.sockets import tcp_listener
from tests.support.http import AUTH, serving
from tests.support.threads import until

# One limit of each kind, which a test reaches soon.
QUICK = HttpConfig(
    head_timeout=0.3, keep_alive=0.3, send_timeout=0.3, max_head_bytes=4096, max_connections=8
)


@pytest.fixture
def buffer() -> BufferManager:
    return BufferManager()


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return received


def one_answer(connection: socket.socket) -> bytes:
    """The next answer, whose connection stays."""
    received = b""
    while not (found := re.match(rb"(?s).*?content-length: (\d+)\r\n.*?\r\n\r\n", received)):
        received += connection.recv(1 << 16)
    while len(received) < found.end() + int(found[1]):
        received += connection.recv(1 << 16)
    return received


def pour(connection: socket.socket, parts: Iterator[bytes], limit: int) -> int:
    """Send until the server takes no more; returns how many bytes that were."""
    sent = 0
    try:
        for part in parts:
            connection.sendall(part)
            sent += len(part)
            if sent > limit:
                break
    except OSError:
        pass
    return sent


def forever(part: bytes) -> Iterator[bytes]:
    while True:
        yield part


def is_well(address: str) -> bool:
    return httpx.get(f"{address}/buffer/health").status_code == 200


HEAD = b"GET /buffer/health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"x" * 4096),
        (HEAD + b"X: ", b"x" * 4096),
        (HEAD, b"A: b\r\n" * 700),
    ],
    ids=["a long path", "a long header", "many headers"],
)
def test_a_head_is_limited(buffer: BufferManager, begin: bytes, more: bytes) -> None:
    with serving(buffer, config=QUICK) as address, closing(connect(address)) as connection:
        connection.sendall(begin)
        assert pour(connection, forever(more), 64 << 20) < 64 << 20, "it took all of it"
        assert answer(connection)[:12] in (b"HTTP/1.1 431", b""), (
            "or the rest of what was sent made the system break it off"
        )
        assert is_well(address)


def test_a_head_that_is_just_too_large_is_told_so(buffer: BufferManager) -> None:
    with serving(buffer, config=QUICK) as address:
        for extra, status in ((3000, b"200"), (4096, b"431")):
            with closing(connect(address)) as connection:
                # Not ended: that it is too large is known before its end.
                connection.sendall(HEAD + b"X: " + b"x" * extra)
                if status == b"200":
                    connection.sendall(b"\r\nConnection: close\r\n\r\n")
                assert answer(connection)[9:12] == status


@pytest.mark.parametrize(
    "flood", [b"A: b\r\n" * 700, b"x" * 4096], ids=["trailers", "a chunk's extension"]
)
def test_what_is_neither_head_nor_body_is_limited(buffer: BufferManager, flood: bytes) -> None:
    begin = b"GET /buffer/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(buffer, config=QUICK) as address, closing(connect(address)) as connection:
        connection.sendall(begin + (b"0\r\n" if flood[:1] == b"A" else b"1;"))
        assert pour(connection, forever(flood), 64 << 20) < 64 << 20
        assert is_well(address)


def test_a_body_of_small_chunks_is_no_head(buffer: BufferManager) -> None:
    lines = [b"%d\n" % number for number in range(5000)]
    with serving(buffer, config=QUICK) as address:
        reply = httpx.post(f"{address}/events", headers=AUTH, content=iter(lines))
    assert reply.json()["accepted"] == 5000


@pytest.mark.parametrize(
    "begin",
    [b"", HEAD, HEAD + b"\r\n" + HEAD, HEAD + b"Content-Length: 10\r\n\r\nabc"],
    ids=[
        "silent",
        "within the head",
        "within the second head",
        "within a body that no route waits for",
    ],
)
def test_a_silent_client_is_dropped(buffer: BufferManager, begin: bytes) -> None:
    with serving(buffer, config=QUICK) as address, closing(connect(address)) as connection:
        connection.sendall(begin)
        assert answer(connection).count(b"HTTP/1.1 ") == begin.count(b"\r\n\r\n")
        assert is_well(address)


def test_a_connection_that_is_used_stays(buffer: BufferManager) -> None:
    with (
        serving(buffer, config=QUICK) as address,
        httpx.HTTPTransport() as transport,
        httpx.Client(transport=transport) as client,
        closing(connect(address)) as silent,
    ):
        client.get(f"{address}/buffer/health")
        # As long as it takes until the one that says nothing is let go, and the time is
        # up several times over.
        opened = len(transport._pool.connections)
        done = False
        while not done:
            silent.settimeout(0.01)
            try:
                done = silent.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionError:
                done = True
            assert client.get(f"{address}/buffer/health").status_code == 200
        assert len(transport._pool.connections) == opened == 1


def test_a_connection_is_kept_between_requests(buffer: BufferManager) -> None:
    """For `keep_alive`, which `head_timeout` does not shorten."""
    config = HttpConfig(head_timeout=0.1, keep_alive=60.0)
    with serving(buffer, config=config) as address, closing(connect(address)) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"\r\n")
            assert one_answer(connection).startswith(b"HTTP/1.1 200")
            with closing(connect(address)) as silent:
                assert answer(silent) == b"", "it has sent nothing within the time for a head"
        connection.sendall(b"GET /")
        assert answer(connection) == b"", "this head did not end"


@pytest.mark.parametrize("rest", [b"", b"\r\n", b"defghij"], ids=["", "line ends", "a body"])
def test_a_connection_is_not_kept_for_ever(buffer: BufferManager, rest: bytes) -> None:
    with serving(buffer, config=QUICK) as address, closing(connect(address)) as connection:
        connection.sendall(HEAD + (b"Content-Length: 10\r\n\r\nabc" if rest else b"\r\n"))
        assert one_answer(connection).startswith(b"HTTP/1.1 ")
        connection.sendall(rest)
        assert answer(connection) == b""


def test_a_new_connection_takes_the_place_of_a_silent_one(buffer: BufferManager) -> None:
    config = HttpConfig(max_connections=3)
    with serving(buffer, config=config) as address:
        kept = [connect(address) for _ in range(3)]
        for one in kept:
            one.sendall(HEAD + b"\r\n")
            assert one_answer(one).startswith(b"HTTP/1.1 200")
        kept[0].sendall(HEAD + b"\r\n")
        assert one_answer(kept[0]).startswith(b"HTTP/1.1 200")
        assert is_well(address)
        assert answer(kept[1]) == b"", "the one that was silent for longest"
        kept[0].sendall(HEAD + b"Connection: close\r\n\r\n")
        assert answer(kept[0]).startswith(b"HTTP/1.1 200")
        for one in kept:
            one.close()


def test_an_upload_that_takes_its_time_is_not_given_up(buffer: BufferManager) -> None:
    """`read_timeout` is for bodies, not `head_timeout`."""
    with serving(buffer, config=QUICK) as address, closing(connect(address)) as silent:

        def content() -> Iterator[bytes]:
            yield b"one\n"
            answer(silent)  # until that one is dropped
            yield b"two\n"

        assert (
            httpx.post(f"{address}/events", headers=AUTH, content=content()).json()["accepted"] == 2
        )


def test_a_client_that_does_not_read_is_dropped(buffer: BufferManager) -> None:
    with serving(buffer, config=QUICK) as address, closing(connect(address)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /buffer/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert pour(connection, forever(request * 100), 64 << 20) < 64 << 20
        assert is_well(address)


def test_requests_that_wait_on_one_connection_are_limited(buffer: BufferManager) -> None:
    request, last = (
        b"GET /buffer/health HTTP/1.1\r\nHost: localhost\r\n",
        b"Connection: close\r\n\r\n",
    )
    with serving(buffer, config=QUICK) as address:
        for many, most in ((32, 32), (5000, 31)):
            with closing(connect(address)) as connection:
                connection.sendall((request + b"\r\n") * (many - 1) + request + last)
                answers = answer(connection).count(b"HTTP/1.1 200")
            assert answers == many if many == most else answers <= most
        assert is_well(address)


def test_the_number_of_connections_is_limited(buffer: BufferManager) -> None:
    config = HttpConfig(max_connections=8)
    with serving(buffer, config=config) as address:
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        silent = [connect(address) for _ in range(40)]
        refused = [answer(one) for one in silent[8:]]
        assert {reply.split(b"\r\n")[0] for reply in refused} == {
            b"HTTP/1.1 503 Service Unavailable"
        }
        for one in silent[8:]:
            one.close()
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) <= before + 2 * 8
        for one in silent[:8]:
            one.close()
        until(lambda: is_well(address))


def test_rubbish_does_not_flood_the_log(
    buffer: BufferManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upgrade = HEAD + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    with serving(buffer, config=QUICK) as address:
        caplog.clear()
        for sent in [b"rubbish\r\n\r\n"] * 10 + [upgrade] * 10:
            with closing(connect(address)) as connection:
                connection.sendall(sent)
                assert answer(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 200")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage().partition(": ")[2] for record in warnings] == [
        "no HTTP (1 such since the last line)"
    ]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """The listener of `forebay serve` accepts without Nagle's algorithm."""

    async def main() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.set_result(
                writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            )
            writer.close()

        async with await asyncio.start_server(
            on_connection, sock=tcp_listener("127.0.0.1", 0)
        ) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            nodelay = await accepted
            writer.close()
            return nodelay

    assert asyncio.run(main()) != 0
