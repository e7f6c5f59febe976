"""What senders over sockets do wrong, and what the system lacks: counted, never silent.

Nothing of it ends the source.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backpressure.sources.datagrams import DatagramSource, udp_socket
from backpressure.sources.sockets import SocketSource, tcp_listener, unix_listener
from tests.edges.test_network import Collected, running, tcp_source
from tests.support.threads import until


def incidents(source: SocketSource | DatagramSource) -> dict[str, int]:
    """Those that there were."""
    return {name: count for name, count in source.stats().incidents.items() if count}


# ---------------------------------------------------------------- framing


def test_octet_counting_is_found_by_itself() -> None:
    source, address = tcp_source(max_line_bytes=100)
    collected = Collected()
    messages = [b"<34>1 2026-01-01T00:00:00Z h app - - - %d" % number for number in range(100)]
    with running(source, collected):
        with socket.create_connection(address) as peer:
            for message in messages:
                peer.sendall(b"%d %s" % (len(message), message))
            peer.sendall(b"101 <1>" + b"x" * 98 + b"5 <1>ab")
        with socket.create_connection(address) as peer:
            peer.sendall(b"5 apples\nand a line\n")
        until(lambda: len(collected.lines) == 103)
    assert set(collected.lines) == {*messages, b"<1>ab", b"5 apples", b"and a line"}
    assert incidents(source) == {"too_long": 1}


def test_a_broken_count_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    source, address = tcp_source()
    collected = Collected()
    with running(source, collected), socket.create_connection(address) as other:
        with socket.create_connection(address) as peer:
            peer.sendall(b"6 <1>one7 <1>two2and no count")
            peer.settimeout(30)
            with suppress(ConnectionError):  # or its end
                assert peer.recv(1) == b""
        other.sendall(b"a line\n")
        until(lambda: len(collected.lines) == 3)
    assert sorted(collected.lines) == [b"<1>one", b"<1>two2", b"a line"]
    assert incidents(source) == {"no_count": 1}
    assert "there is no count of bytes in b'and no cou'" in caplog.text


def test_a_framing_that_is_none_is_refused() -> None:
    with (
        tcp_listener("127.0.0.1", 0) as listener,
        pytest.raises(ValueError, match="auto, newline, octet-counting"),
    ):
        SocketSource(listener, "x", framing="lf")


# ---------------------------------------------------------------- what the system lacks


def test_without_a_thread_a_connection_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backpressure.sources.sockets._ACCEPT_SECONDS", 0.01)
    source, address = tcp_source()
    collected = Collected()
    start, refusals = threading.Thread.start, iter(range(5))

    def start_later(thread: threading.Thread) -> None:
        if thread.name == "forebay-tcp" and next(refusals, None) is not None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    with running(source, collected):
        for line in (b"one\n", b"two\n"):
            with socket.create_connection(address) as peer:
                peer.sendall(line)
        until(lambda: len(collected.lines) == 2)
    assert incidents(source) == {"no_thread": 5}
    assert "a connection waits: can't start new thread" in caplog.text


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EPROTO, errno.EPERM])
def test_what_accept_says_ends_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backpressure.sources.sockets._ACCEPT_SECONDS", 0.01)
    listener, refusals = FailingListener(tcp_listener("127.0.0.1", 0)), 3
    listener.errors = [OSError(number, os.strerror(number))] * refusals
    source, collected = SocketSource(listener, "tcp"), Collected()  # type: ignore[arg-type]
    with running(source, collected):
        with socket.create_connection(listener.getsockname()) as peer:
            peer.sendall(b"one\n")
        until(lambda: collected.lines)
    assert incidents(source) == {"no_descriptor": refusals}


class FailingListener:
    """A listener whose `accept` fails as told."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.errors: list[OSError] = []

    def accept(self) -> Any:
        if self.errors:
            raise self.errors.pop()
        return self.listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.listener, name)


def test_a_silent_connection_is_closed_and_makes_room() -> None:
    source, address = tcp_source(max_connections=1, idle_timeout=0.1)
    collected = Collected()
    with running(source, collected):
        with socket.create_connection(address) as peer:
            peer.sendall(b"half a line")
            peer.settimeout(30)
            assert peer.recv(1) == b""
        until(lambda: not source.stats().connections)
        with socket.create_connection(address) as peer:
            peer.sendall(b"one\n")
            until(lambda: len(collected.lines) == 2)
    assert collected.lines == [b"half a line", b"one"]
    assert incidents(source)["idle"] >= 1


def test_time_in_which_the_buffer_takes_nothing_is_not_idle() -> None:
    source, address = tcp_source(idle_timeout=0.1)
    collected = Collected()
    collected.gate.clear()
    with running(source, collected), socket.create_connection(address) as peer:
        peer.sendall(b"one\n")
        until(lambda: collected.putting)
        peer.sendall(b"two\n")
        peer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        assert not incidents(source)
        collected.gate.set()
        until(lambda: collected.lines == [b"one", b"two"])


def test_many_refusals_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    source, address = tcp_source(max_connections=1)
    with running(source, Collected()), socket.create_connection(address):
        until(lambda: source.stats().connections == 1)
        for _ in range(50):
            with socket.create_connection(address) as peer:
                peer.settimeout(30)
                assert peer.recv(1) == b""
        until(lambda: incidents(source) == {"refused": 50})
    [line] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "raise max_connections" in line.getMessage()


def test_a_peer_that_vanished_is_asked_for_soon() -> None:
    source, address = tcp_source()
    with running(source, Collected()), socket.create_connection(address):
        until(lambda: source.stats().connections == 1)
        [connection] = source._connections
        until(lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        if hasattr(socket, "TCP_KEEPIDLE"):
            until(lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60)


# ---------------------------------------------------------------- whose socket it is


@pytest.mark.platform
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
class TestUnixSockets:
    def test_the_end_leaves_a_socket_of_another(self, tmp_path: Path) -> None:
        path = str(tmp_path / "in.sock")
        source = SocketSource(unix_listener(path), "unix", path=path)
        with running(source, Collected()):
            os.unlink(path)
            other = unix_listener(path)
        assert os.path.exists(path)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
        other.close()

    def test_one_that_nobody_listens_on_is_replaced(self, tmp_path: Path) -> None:
        path = str(tmp_path / "in.sock")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
        with unix_listener(path), socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
    def test_one_of_another_user_is_not(self, tmp_path: Path) -> None:
        path = str(tmp_path / "in.sock")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
        os.chown(path, 65534, -1)
        with pytest.raises(OSError, match="another user"):
            unix_listener(path)
        assert os.path.exists(path)

    def test_one_that_is_busy_is_in_use(self, tmp_path: Path) -> None:
        """A listener that accepts nobody: a connection would wait for ever."""
        path = str(tmp_path / "in.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(0)
            peers = [socket.socket(socket.AF_UNIX) for _ in range(4)]
            for peer in peers:
                peer.setblocking(False)
                peer.connect_ex(path)
            with pytest.raises(OSError, match="another process listens"):
                unix_listener(path)
            for peer in peers:
                peer.close()

    @pytest.mark.parametrize("kind", ["datagrams", "a link", "a link to nothing"])
    def test_what_is_something_else_stays(self, kind: str, tmp_path: Path) -> None:
        path = str(tmp_path / "in.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(path if kind == "datagrams" else str(tmp_path / "other"))
            if kind != "datagrams":
                os.symlink("other" if kind == "a link" else "nothing", path)
            with pytest.raises(OSError, match=r"not removed|another process"):
                unix_listener(path)
        assert os.path.lexists(path)


# ---------------------------------------------------------------- datagrams


def udp_source(**options: Any) -> tuple[DatagramSource, tuple[str, int], socket.socket]:
    bound = udp_socket("127.0.0.1", 0)
    return DatagramSource(bound, "udp", **options), bound.getsockname(), bound


def test_each_datagram_is_a_line() -> None:
    source, address, _ = udp_source(max_line_bytes=1000)
    collected = Collected()
    with (
        running(source, collected),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        for message in (b"<34>1 - - - - - - one", b"<13>two\n", b"", b"x" * 1001, b"three"):
            peer.sendto(message, address)
        until(lambda: len(collected.lines) == 3)
    assert collected.lines == [b"<34>1 - - - - - - one", b"<13>two", b"three"]
    assert incidents(source) == {"too_long": 1}


def test_what_came_before_the_end_is_still_taken() -> None:
    source, address, _ = udp_source()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for number in range(100):
            peer.sendto(b"%d" % number, address)
    collected, stopping = Collected(), threading.Event()
    stopping.set()
    source.run(collected.put, stopping)
    assert collected.lines == [b"%d" % number for number in range(100)]


@pytest.mark.platform
@pytest.mark.skipif(not hasattr(os, "fork"), reason="only Linux counts them")
def test_what_the_system_drops_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    source, address, bound = udp_source()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    collected = Collected()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for number in range(1000):
            peer.sendto(b"%0100d" % number, address)
        with running(source, collected):
            until(lambda: collected.lines)
            # The count comes with the next one.
            until(lambda: peer.sendto(b"last", address) and incidents(source))
            until(lambda: b"last" in collected.lines)
    first = [line for line in collected.lines if line != b"last"]
    assert incidents(source) == {"dropped": 1000 - len(first)}
    assert "net.core.rmem_max" in caplog.text


def test_a_port_of_datagrams_that_is_taken_is_named() -> None:
    with udp_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            udp_socket("127.0.0.1", port)
