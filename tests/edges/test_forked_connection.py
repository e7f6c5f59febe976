"""A connection that crosses a fork is the parent's: the child makes its own."""

from __future__ import annotations

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backpressure.sinks.connection import ConnectionOwner
from backpressure.sinks.http import HttpSink, HttpSinkError
from backpressure.sinks.http_connection import TimedSocket
from backpressure.sinks.tcp import TcpSink
from backpressure.sources.sockets import tcp_listener
from tests.edges.test_sinks import batch_of
from tests.support.processes import ended_well, forked

pytestmark = [
    pytest.mark.platform,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]


class Server(ThreadingHTTPServer):
    """Refuses what begins with C, and notes each request by its connection."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.client_address[1], body))
                self.send_response(503 if body.startswith(b"C") else 200)
                self.send_header("Content-Length", "0")
                if body.startswith(b"end"):
                    self.send_header("Connection", "close")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


def test_a_child_never_reads_the_answers_to_its_parent() -> None:
    server = Server()
    sink = HttpSink(f"http://127.0.0.1:{server.server_port}/", timeout=10)
    sink.send(batch_of(b"P0"))

    def child() -> None:
        for _ in range(20):
            with pytest.raises(HttpSinkError):
                sink.send(batch_of(b"C"))
        sink.close()

    pid = forked(child)
    for number in range(20):
        sink.send(batch_of(b"P%d" % number))
    assert ended_well(pid)
    sink.send(batch_of(b"P last"))
    sink.close()
    connections = {
        name: {c for c, body in server.requests if body[:1] == name} for name in (b"P", b"C")
    }
    assert len(connections[b"P"]) == len(connections[b"C"]) == 1, "each has one, and keeps it"
    assert connections[b"P"] != connections[b"C"]
    server.shutdown()
    server.server_close()


def test_a_connection_that_the_server_ends_is_made_anew_before_the_next_batch() -> None:
    server = Server()
    sink = HttpSink(f"http://127.0.0.1:{server.server_port}/", timeout=10)
    sink.send(batch_of(b"end"))
    assert ended_well(forked(lambda: sink.send(batch_of(b"child"))))
    sink.send(batch_of(b"parent"))
    sink.close()
    assert len({connection for connection, _ in server.requests}) == 3
    server.shutdown()
    server.server_close()


def test_a_child_that_is_forked_while_a_connection_is_made_makes_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    sink = HttpSink(f"http://127.0.0.1:{server.server_port}/", timeout=10)
    connect = TimedSocket.connect
    children: list[int] = []
    to_fork = [True]  # once: the child connects as well

    def connect_and_fork(connection: TimedSocket, address: Any) -> None:
        connect(connection, address)  # a TLS handshake would come next
        if to_fork:
            to_fork.clear()
            children.append(forked(lambda: sink.send(batch_of(b"child"))))

    monkeypatch.setattr(TimedSocket, "connect", connect_and_fork)
    sink.send(batch_of(b"parent"))
    assert ended_well(children[0])
    sink.close()
    assert {body for _, body in server.requests} == {b"parent\n", b"child\n"}
    assert len({connection for connection, _ in server.requests}) == 2
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("sends", [True, False])
def test_lines_over_tcp_of_parent_and_child_do_not_mix(sends: bool) -> None:
    got: list[bytes] = []
    with tcp_listener("127.0.0.1", 0) as listener:

        def read() -> None:
            connection, _ = listener.accept()
            with connection:
                got.append(b"".join(iter(lambda: connection.recv(1 << 16), b"")))

        readers = [threading.Thread(target=read) for _ in range(1 + sends)]
        readers[0].start()
        sink = TcpSink("127.0.0.1", listener.getsockname()[1])
        sink.send(batch_of(b"parent"))
        if sends:
            readers[1].start()

        def child(sink: TcpSink = sink, sends: bool = sends) -> None:
            if sends:
                sink.send(batch_of(b"child"))
            sink.close()

        pid = forked(child)
        assert ended_well(pid)
        sink.send(batch_of(b"parent again"))
        sink.close()
        for reader in readers:
            reader.join(10)
    expected = {b"parent\nparent again\n"} | ({b"child\n"} if sends else set())
    assert set(got) == expected


def test_what_is_abandoned_says_no_goodbye_and_closes_no_other_file() -> None:
    mine, peer = socket.socketpair()
    owner = ConnectionOwner(mine)
    assert owner.is_here()

    def child() -> None:
        assert not owner.is_here()
        fd = mine.fileno()
        os.close(fd)  # as code does that makes a daemon …
        os.dup2(os.open(os.devnull, os.O_RDONLY), fd)  # … and the number goes on
        owner.abandon()
        os.fstat(fd)

    assert ended_well(forked(child))
    assert ended_well(forked(owner.abandon))
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    mine.send(b"x")
    assert peer.recv(1) == b"x"
    mine.close()
    peer.close()
