"""Lines in over sockets, batches out over HTTP and TCP.

At least once, bounded, and with backpressure that senders feel.
"""

from __future__ import annotations

import email.utils
import gzip
import os
import pickle
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from backpressure import Batch
from backpressure.buffer_manager import BufferManager
from backpressure.sinks import Sink
from backpressure.sinks.http import HttpSink, HttpSinkError
from backpressure.sinks.tcp import TcpSink
from backpressure.sources.base import ServiceSource
from backpressure.sources.sockets import SocketSource, tcp_listener, unix_listener
from tests.support.buffers import next_batch
from tests.support.threads import run_threads, until


def batch_of(*events: bytes) -> Batch:
    buffer = BufferManager()
    buffer.add_events(list(events))
    return next_batch(buffer)


# ---------------------------------------------------------------- in


class Collected:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.chunks: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False
        self.putting = 0

    def put(self, lines: memoryview) -> tuple[int, ...] | None:
        self.putting += 1
        self.gate.wait(10)
        with self.lock:
            if self.closed:
                return None
            self.chunks.append(bytes(lines))
        return (0, 0, 0, 0, 0)

    @property
    def lines(self) -> list[bytes]:
        with self.lock:
            return b"".join(
                chunk if chunk.endswith(b"\n") else chunk + b"\n" for chunk in self.chunks
            ).splitlines()


@contextmanager
def running(source: ServiceSource, collected: Collected) -> Iterator[threading.Event]:
    stopping = threading.Event()
    thread = threading.Thread(target=source.run, args=(collected.put, stopping), daemon=True)
    thread.start()
    try:
        yield stopping
    finally:
        collected.gate.set()
        stopping.set()
        thread.join(15)
        assert not thread.is_alive()


def tcp_source(**options: Any) -> tuple[SocketSource, tuple[str, int]]:
    listener = tcp_listener("127.0.0.1", 0)
    return SocketSource(listener, "tcp", **options), listener.getsockname()


def test_lines_over_tcp_in_pieces() -> None:
    source, address = tcp_source()
    collected = Collected()
    with running(source, collected):
        with socket.create_connection(address) as peer:
            for piece in (b"on", b"e\ntwo\nth", b"ree\n", b"\n", b"no newline"):
                peer.sendall(piece)
                time.sleep(0.01)
        until(lambda: len(collected.lines) == 5)
    assert collected.lines == [b"one", b"two", b"three", b"", b"no newline"]


def test_many_connections_at_once() -> None:
    source, address = tcp_source()
    collected = Collected()

    def send(name: int) -> None:
        with socket.create_connection(address) as peer:
            for number in range(200):
                peer.sendall(b"%d %d\n" % (name, number))

    with running(source, collected):
        run_threads([partial(send, name) for name in range(8)])
        until(lambda: len(collected.lines) == 1600)
    for name in range(8):
        assert [line for line in collected.lines if line.startswith(b"%d " % name)] == [
            b"%d %d" % (name, n) for n in range(200)
        ]


@pytest.mark.parametrize("limit", [10, 300_000])
def test_a_line_that_is_too_long_costs_only_itself(limit: int) -> None:
    source, address = tcp_source(max_line_bytes=limit)
    collected = Collected()
    with running(source, collected):
        with socket.create_connection(address) as peer:
            peer.sendall(
                b"a\n" + b"x" * limit + b"\n" + b"y" * (limit + 1) + b"\nb\n" + b"z" * (3 * limit)
            )
        until(lambda: source.oversized == 2)
        until(lambda: len(collected.lines) == 3)
    assert collected.lines == [b"a", b"x" * limit, b"b"]


def test_one_connection_too_many_is_closed() -> None:
    source, address = tcp_source(max_connections=1)
    with running(source, Collected()):
        with socket.create_connection(address) as first:
            first.sendall(b"x\n")
            until(lambda: source._connections)
            with socket.create_connection(address) as second:
                second.settimeout(10)
                assert second.recv(1) == b""
            assert source.refused_connections == 1
        until(lambda: not source._connections)
        with socket.create_connection(address) as third:
            third.sendall(b"y\n")
            until(lambda: source._connections)


def test_a_full_buffer_makes_the_sender_wait() -> None:
    source, address = tcp_source()
    collected = Collected()
    collected.gate.clear()
    with running(source, collected):
        with socket.create_connection(address) as peer:
            peer.settimeout(0.2)
            sent = 0
            try:
                while sent < 50_000_000:
                    sent += peer.send(b"x" * 99_999 + b"\n")
            except TimeoutError:
                pass
            assert sent < 50_000_000, "memory is bounded by the sockets' own"
        collected.gate.set()
        until(lambda: sum(map(len, collected.lines)) + len(collected.lines) >= sent)


def test_at_the_end_what_was_received_is_still_read() -> None:
    source, address = tcp_source()
    collected = Collected()
    with running(source, collected) as stopping:
        peer = socket.create_connection(address)
        peer.sendall(b"one\n")
        until(lambda: collected.lines)
        collected.gate.clear()
        peer.sendall(b"two\n")
        until(lambda: collected.putting == 2)
        peer.sendall(b"three\n")  # not read before the end has begun
        stopping.set()
        until(lambda: source._listener.fileno() == -1)
        time.sleep(0.05)
        collected.gate.set()
    assert collected.lines == [b"one", b"two", b"three"]
    peer.close()


def test_a_port_that_is_taken_is_named() -> None:
    with tcp_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            tcp_listener("127.0.0.1", port)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
@pytest.mark.platform
def test_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "in.sock")
    listener = unix_listener(path, 0o600)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    source, collected = SocketSource(listener, "unix", path=path), Collected()
    with running(source, collected):
        with pytest.raises(OSError, match="another process listens"):
            unix_listener(path)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            peer.sendall(b"one\ntwo\n")
            until(lambda: len(collected.lines) == 2)
    assert not os.path.exists(path)
    # One that a dead process left behind is replaced; a file is not.
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    unix_listener(path).close()
    os.unlink(path)
    Path(path).write_text("precious")
    with pytest.raises(OSError, match="something else"):
        unix_listener(path)
    assert Path(path).read_text() == "precious"


# ---------------------------------------------------------------- out: HTTP


class Server:
    """An HTTP server that answers as told.

    `answers` are (status, body), or None to break the connection.
    """

    def __init__(self) -> None:
        outer = self
        self.answers: list[tuple[int, bytes] | None] = []
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers), body))
                answer = outer.answers.pop(0) if outer.answers else (200, b"ok")
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer[1])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/in?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def test_batches_are_posted_over_one_connection(server: Server) -> None:
    sink = HttpSink(server.url, headers={"Authorization": "Bearer x"})
    assert isinstance(sink, Sink)
    first, second = batch_of(b"one", b"two"), batch_of(b"three")
    sink.send(first)
    sink.send(second)
    sink.close()
    sink.close()
    assert [(path, body) for path, _, body in server.requests] == [
        ("/in?x=1", b"one\ntwo\n"),
        ("/in?x=1", b"three\n"),
    ]
    assert server.requests[0][1]["Authorization"] == "Bearer x"
    assert server.requests[0][1]["Idempotency-Key"] == first.id
    assert server.connections == 1


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_compression(server: Server, compression: str) -> None:
    sink = HttpSink(server.url, compression=compression)
    sink.send(batch_of(b"x" * 10_000))
    sink.close()
    _, headers, body = server.requests[0]
    assert headers["Content-Encoding"] == compression
    assert len(body) < 1000
    unpack = gzip.decompress if compression == "gzip" else zstandard.ZstdDecompressor().decompress
    assert unpack(body) == b"x" * 10_000 + b"\n"


@pytest.mark.parametrize("status", [302, 400, 429, 500, 503])
def test_anything_but_2xx_is_no_delivery(server: Server, status: int) -> None:
    sink = HttpSink(server.url)
    server.answers = [(status, b"not today")]
    with pytest.raises(HttpSinkError, match="not today") as caught:
        sink.send(batch_of(b"x"))
    assert caught.value.status == status
    sink.send(batch_of(b"y"))
    assert server.connections == 1, "a refusal is no reason to connect anew"
    sink.close()


def test_a_kept_connection_that_was_ended_is_made_anew(server: Server) -> None:
    sink = HttpSink(server.url)
    sink.send(batch_of(b"one"))
    server.answers = [None]
    sink.send(batch_of(b"two"))
    assert [body for _, _, body in server.requests] == [b"one\n", b"two\n", b"two\n"]
    server.answers = [None, None]
    with pytest.raises(OSError, match="closed connection"):
        sink.send(batch_of(b"three"))
    sink.send(batch_of(b"four"))
    sink.close()


def test_a_new_connection_that_fails_is_a_failure_at_once(server: Server) -> None:
    sink = HttpSink(server.url)
    server.answers = [None]
    with pytest.raises(OSError, match="closed connection"):
        sink.send(batch_of(b"one"))
    assert len(server.requests) == 1, "the buffer decides when to try again"
    sink.close()


def test_several_threads_have_a_connection_each_and_share_those_that_are_kept(
    server: Server,
) -> None:
    sink = HttpSink(server.url, max_concurrency=3)
    assert sink.max_concurrency == 3
    together = threading.Barrier(3)

    def send() -> None:
        for number in range(20):
            together.wait(30)
            sink.send(batch_of(b"%d" % number))

    run_threads([send] * 3)
    assert len(server.requests) == 60
    assert 1 <= server.connections <= 3
    sink.close()
    sink.send(batch_of(b"after the close"))
    assert server.requests[-1][2] == b"after the close\n"
    sink.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), (" 120 ", 120.0), ("99999999", 3600.0), ("soon", None), (None, None)],
)
def test_the_time_that_a_server_asks_for(
    server: Server, header: str | None, seconds: float | None
) -> None:
    sink = HttpSink(server.url)
    server.answers = [(503, b"")]
    server.headers = {} if header is None else {"Retry-After": header}
    with pytest.raises(HttpSinkError) as caught:
        sink.send(batch_of(b"x"))
    assert caught.value.retry_after == seconds
    assert pickle.loads(pickle.dumps(caught.value)).retry_after == seconds
    sink.close()


def test_the_time_that_a_server_asks_for_as_a_date(server: Server) -> None:
    sink = HttpSink(server.url)
    server.answers = [(429, b"")]
    server.headers = {"Retry-After": email.utils.formatdate(time.time() + 60.0, usegmt=True)}
    with pytest.raises(HttpSinkError) as caught:
        sink.send(batch_of(b"x"))
    assert caught.value.retry_after is not None
    assert 50.0 < caught.value.retry_after <= 61.0
    sink.close()


def test_no_server_there() -> None:
    with tcp_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    sink = HttpSink(f"http://127.0.0.1:{port}/")
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            sink.send(batch_of(b"x"))


def test_a_server_that_hangs_is_given_up() -> None:
    with tcp_listener("127.0.0.1", 0) as listener:
        sink = HttpSink(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.1)
        with pytest.raises(TimeoutError):
            sink.send(batch_of(b"x"))


def test_what_is_no_http_is_an_os_error() -> None:
    with tcp_listener("127.0.0.1", 0) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        sink = HttpSink(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        with pytest.raises(OSError, match="BadStatusLine"):
            sink.send(batch_of(b"x"))
        thread.join()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x/", "http"),
        ("x", "http"),
        ("http://", "http"),
        ("http://user:pw@host/", "Authorization"),
    ],
)
def test_urls_that_cannot_work(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        HttpSink(url)
    assert "pw" not in str(caught.value)


# ---------------------------------------------------------------- out: TCP


def read_all(listener: socket.socket, into: list[bytes]) -> threading.Thread:
    def read() -> None:
        connection, _ = listener.accept()
        with connection:
            while piece := connection.recv(1 << 16):
                into.append(piece)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_lines_over_tcp() -> None:
    got: list[bytes] = []
    with tcp_listener("127.0.0.1", 0) as listener:
        thread = read_all(listener, got)
        sink = TcpSink("127.0.0.1", listener.getsockname()[1])
        assert isinstance(sink, Sink)
        large = b"L" * 400_000  # larger than what is joined at once
        sink.send(batch_of(b"one", large, b"two"))
        sink.send(batch_of(b"three"))
        sink.close()
        sink.close()
        thread.join(10)
    assert b"".join(got) == b"one\n" + large + b"\ntwo\nthree\n"


def test_a_peer_that_closed_is_noticed_before_anything_is_lost() -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    with tcp_listener("127.0.0.1", 0) as listener:
        sink = TcpSink("127.0.0.1", listener.getsockname()[1])

        def accept_and_close() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hello, I am chatty\n")
                first.append(connection.recv(100))

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        sink.send(batch_of(b"one"))
        thread.join(10)
        time.sleep(0.05)
        again = read_all(listener, second)
        sink.send(batch_of(b"two"))
        sink.close()
        again.join(10)
    assert (first, second) == ([b"one\n"], [b"two\n"])


def test_a_peer_that_does_not_read_is_given_up() -> None:
    with tcp_listener("127.0.0.1", 0) as listener:
        sink = TcpSink("127.0.0.1", listener.getsockname()[1], timeout=0.2)
        batch = batch_of(*[b"x" * 100_000] * 500)
        with pytest.raises(TimeoutError):
            sink.send(batch)
    with pytest.raises(OSError, match="refused"):
        sink.send(batch_of(b"x"))
