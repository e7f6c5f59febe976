"""HttpSink against servers that are slow, odd or gone: exchanges end in time.

An answer is never taken for that to another batch.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backpressure import BufferConfig, BufferManager
from backpressure.sinks.http import HttpSink, HttpSinkError, shown_url
from tests.edges.test_sinks import batch_of
from tests.support.threads import run_threads, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#: What a server does with a connection: takes it, and the number of it from 0.
Script = Callable[[socket.socket, int], None]


def read_request(peer: socket.socket) -> bytes:
    """The next request's body; b"" at the end."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = peer.recv(1 << 16)
        if not piece:
            return b""
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += peer.recv(1 << 16)
    return body


class Server:
    """Runs a script with each connection, in a thread of its own."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}/"
        self.peers: list[socket.socket] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            threading.Thread(
                target=self.serve, args=(peer, len(self.peers) - 1), daemon=True
            ).start()

    def serve(self, peer: socket.socket, number: int) -> None:
        with suppress(OSError):
            if self.tls is not None:
                peer = self.tls.wrap_socket(peer, server_side=True)
                self.peers.append(peer)
            self.script(peer, number)
        peer.close()

    def close(self) -> None:
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.peers:
            with suppress(OSError):
                peer.close()
        self.thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(script: Script, tls: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(script, tls))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def drip(text: bytes, server: Callable[[], Server]) -> Script:
    """Answers a byte at a time, each sooner than any time-out, and has no end."""

    def script(peer: socket.socket, number: int) -> None:
        read_request(peer)
        for byte in text:
            peer.sendall(bytes([byte]))
            if server().ended.wait(0.02):
                return
        while not server().ended.wait(0.02):
            peer.sendall(b"x")

    return script


@pytest.mark.parametrize("secure", [False, True])
def test_an_exchange_ends_at_its_deadline(
    serve: Callable[..., Server], secure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certified(tmp_path, monkeypatch) if secure else None
    server = serve(drip(b"HTTP/1.1 200 OK\r\nX: ", lambda: server), tls)
    sink = HttpSink(server.url, timeout=5.0, deadline=0.3)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.3 s \(deadline\)"):
        sink.send(batch_of(b"x"))
    assert time.monotonic() - started >= 0.3
    sink.close()


def test_a_server_that_reads_slowly_is_given_up_at_the_deadline(
    serve: Callable[..., Server],
) -> None:
    def script(peer: socket.socket, number: int) -> None:
        while not server.ended.wait(0.01):
            peer.recv(1000)

    server = serve(script)
    sink = HttpSink(server.url, timeout=5.0, deadline=0.5)
    with pytest.raises(TimeoutError, match="deadline"):
        sink.send(batch_of(*[b"x" * 1_000_000] * 16))
    sink.close()


@pytest.mark.parametrize("status", [200, 503])
def test_the_head_of_an_answer_is_the_answer(serve: Callable[..., Server], status: int) -> None:
    """What drips in after it is not waited for, nor is it the next answer."""
    head = b"HTTP/1.1 %d X\r\nContent-Length: 1000000\r\n\r\n" % status

    def script(peer: socket.socket, number: int) -> None:
        if number:
            read_request(peer)
            peer.sendall(OK)
            server.ended.wait()
            return
        read_request(peer)
        peer.sendall(head)
        while not server.ended.wait(0.02):
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    server = serve(script)
    sink = HttpSink(server.url, timeout=60.0)
    if status == 200:
        sink.send(batch_of(b"x"))
    else:
        with pytest.raises(HttpSinkError) as caught:
            sink.send(batch_of(b"x"))
        assert caught.value.status == 503
    sink.send(batch_of(b"y"))
    assert len(server.peers) == 2
    sink.close()


def test_another_thread_can_end_an_exchange(serve: Callable[..., Server]) -> None:
    asked = threading.Barrier(3)

    def script(peer: socket.socket, number: int) -> None:
        read_request(peer)
        asked.wait(30)
        server.ended.wait()

    server = serve(script)
    sink = HttpSink(server.url, timeout=600.0)

    def send() -> None:
        with pytest.raises(OSError, match=r"closed|reset"):
            sink.send(batch_of(b"x"))

    def abort() -> None:
        asked.wait(30)
        sink.abort()

    run_threads([send, send, abort])
    assert len(server.peers) == 2, "and it is not tried again"
    assert not sink._busy
    sink.close()


def test_a_stop_does_not_wait_for_a_server_that_drips(serve: Callable[..., Server]) -> None:
    server = serve(drip(b"HTTP/1.1 200 OK\r\nX: ", lambda: server))
    buffer = BufferManager()
    delivery = buffer.deliver_to(HttpSink(server.url, timeout=600.0))
    buffer.add_events([b"x"])
    until(lambda: server.peers and delivery.stats().in_flight == 1)
    assert not delivery.stop(0.1)
    assert delivery.wait(30), "the call was ended"
    assert buffer.stats().resident == 1
    buffer.close(timeout=0.0)


def test_what_comes_unasked_is_no_answer(serve: Callable[..., Server]) -> None:
    """As a proxy's 408, which ends a connection that was silent for too long."""

    def script(peer: socket.socket, number: int) -> None:
        read_request(peer)
        peer.sendall(OK)
        if not number:
            # Apart: what comes with the answer is dropped with it.
            taken.wait(30)
            peer.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            stale.set()
        server.ended.wait()

    taken, stale = threading.Event(), threading.Event()
    server = serve(script)
    sink = HttpSink(server.url)
    sink.send(batch_of(b"x"))
    taken.set()
    assert stale.wait(30)
    [kept] = sink._idle
    kept.socket.settimeout(30)
    assert kept.socket.recv(1, socket.MSG_PEEK)
    sink.send(batch_of(b"y"))
    assert len(server.peers) == 2
    sink.close()


def test_an_interim_answer_is_not_taken_for_the_next_batch_s(
    serve: Callable[..., Server],
) -> None:
    def script(peer: socket.socket, number: int) -> None:
        while body := read_request(peer):
            if body == b"hinted\n":
                peer.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
            else:
                peer.sendall(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")

    server = serve(script)
    sink = HttpSink(server.url)
    for body, status in ((b"hinted", 103), (b"other", 503), (b"hinted", 103)):
        with pytest.raises(HttpSinkError) as caught:
            sink.send(batch_of(body))
        assert caught.value.status == status
    sink.close()


def test_a_batch_that_is_too_large_comes_again_in_halves(serve: Callable[..., Server]) -> None:
    bodies: list[bytes] = []

    def script(peer: socket.socket, number: int) -> None:
        while body := read_request(peer):
            bodies.append(body)
            status = 200 if len(body) <= 8 else 413
            peer.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)

    server = serve(script)
    buffer = BufferManager(BufferConfig())
    buffer.add_events([b"%d" % number for number in range(8)])
    with buffer.deliver_to(HttpSink(server.url)) as delivery:
        assert delivery.flush(30)
    assert bodies[0] == b"0\n1\n2\n3\n4\n5\n6\n7\n"
    assert [body for body in bodies if len(body) <= 8] == [b"0\n1\n2\n3\n", b"4\n5\n6\n7\n"]
    assert not buffer.stats().dead_lettered


def test_over_tls_a_connection_is_kept(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(peer: socket.socket, number: int) -> None:
        while read_request(peer):
            peer.sendall(OK)

    server = serve(script, certified(tmp_path, monkeypatch))
    sink = HttpSink(server.url)
    for number in range(5):
        sink.send(batch_of(b"x" * 10 ** (number + 2)))
    assert len(server.peers) == 2, "the socket, and TLS over it"
    sink.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certified(tmp_path, monkeypatch)
    monkeypatch.delenv("SSL_CERT_FILE")
    server = serve(lambda peer, number: None, tls)
    sink = HttpSink(server.url)
    with pytest.raises(ssl.SSLCertVerificationError):
        sink.send(batch_of(b"x"))
    sink.close()


def certified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS, with a certificate for localhost that this process trusts."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


# ---------------------------------------------------------------- what can never work


def test_headers_merge_whatever_their_case(serve: Callable[..., Server]) -> None:
    heads: list[bytes] = []

    def script(peer: socket.socket, number: int) -> None:
        heads.append(peer.recv(1 << 16))
        peer.sendall(OK)

    server = serve(script)
    given = {"authorization": "Bearer old", "Authorization": "Bearer new", "content-type": "a/b"}
    sink = HttpSink(server.url, headers=given)
    sink.send(batch_of(b"x"))
    sink.close()
    lines = heads[0].lower().split(b"\r\n")
    for name, value in ((b"authorization", b"bearer new"), (b"content-type", b"a/b")):
        assert [line for line in lines if line.startswith(name)] == [name + b": " + value]


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"a b": "x"},
        {"a:": "x"},
        {"ä": "x"},
        {"a": "x\ny"},
        {"a": "x\r\nb: c"},
        {"a": "x\0"},
        {"a": "€"},
        {"a": 1},
        {"Content-Length": "3"},
        {"TRANSFER-ENCODING": "chunked"},
        {"Content-Encoding": "br"},
        {"Idempotency-Key": "x"},
        {"Expect": "100-continue"},
    ],
    ids=repr,
)
def test_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^headers") as caught:
        HttpSink("http://localhost/", headers=headers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a b",
        "http://localhost/ä",
        "http://localhost/?q=ä b",
        "http://localhost:99999/",
        "http://localhost:0/",
        "http://localhost:x/",
        "http://a..b/",
        f"http://{'a' * 64}.example/",
        "http://[::1",
    ],
)
def test_urls_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url"):
        HttpSink(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/in?key=s3cr3t", "https://a.example/in"),
        ("http://user:s3cr3t@a.example:80/in/x@y", "http://a.example:80/in/x@y"),
        ("http://a.example", "http://a.example"),
        ("nonsense?s3cr3t", "nonsense"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    if url.startswith("https"):
        assert HttpSink(url).name == shown


@pytest.mark.parametrize(
    "url", ["ftp://u:s3cr3t@a/", "http://u:s3cr3t@a/", "http://a b/?s3cr3t", "http://a/ ?s3cr3t"]
)
def test_a_refused_url_shows_no_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url") as caught:
        HttpSink(url)
    assert "s3cr3t" not in str(caught.value)


def test_a_refusal_shows_no_secret() -> None:
    with pytest.raises(ValueError, match="Authorization") as caught:
        HttpSink("http://localhost/", headers={"Authorization": "Bearer s3cr3t\n"})
    assert "s3cr3t" not in str(caught.value)
