"""A service in this process: its feed, its life, its end, and a reload."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backpressure.base.errors import ConfigError
from backpressure.service.config import ServeConfig
from backpressure.service.feed import Feed
from backpressure.service.load import Mistakes, parse
from backpressure.service.reload import put_in_force
from backpressure.service.service import Service
from backpressure.sinks import SinkGone
from tests.support.threads import until


def make(tmp_path: Path, **tables: Any) -> ServeConfig:
    tables.setdefault(
        "source", [{"type": "file", "path": str(tmp_path / "in.log"), "start": "beginning"}]
    )
    tables.setdefault("sink", {"type": "file", "path": str(tmp_path / "out.log")})
    return parse(tables, {})


def test_a_feed_gives_priorities_and_marks() -> None:
    from backpressure.buffer_manager import BufferManager

    buffer = BufferManager()
    feed = Feed(buffer, 4, ["ERROR=1"])
    assert feed.put(memoryview(b"ERROR a\nb\nc\n")) == (1, 0, 0, 2, 0)
    assert feed.put(memoryview(b"d\n")) == (0, 0, 0, 3, 0)
    plain = Feed(buffer, 2, [])
    assert plain.put(memoryview(b"x\ny\n")) == (0, 2, 0, 0, 0)
    held = [buffer.get_batch() for _ in range(3)]
    assert [(batch.priority, batch.tolist()) for batch in held if batch is not None] == [
        (1, [b"ERROR a"]),
        (2, [b"x", b"y"]),
        (4, [b"b", b"c", b"d"]),
    ]


@pytest.mark.parametrize("rules", [[], ["never matches=1"]])
def test_a_feed_waits_for_room_and_ends_with_the_buffer(rules: list[str]) -> None:
    from backpressure.buffer.config import BufferConfig
    from backpressure.buffer_manager import BufferManager

    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    feed = Feed(buffer, 3, rules)
    results = []
    lines = memoryview((b"x" * 99 + b"\n") * 100)
    thread = threading.Thread(target=lambda: results.append(feed.put(lines)))
    thread.start()
    until(lambda: buffer.stats().waiting > 10)
    time.sleep(0.05)
    assert not results, "it waits"
    stats = buffer.close(timeout=0)
    thread.join(10)
    assert results == [None]
    assert feed.unaccepted == 100 - stats.accepted > 0
    assert feed.put(memoryview(b"x\n")) is None
    assert feed.unaccepted == 101 - stats.accepted


@pytest.mark.parametrize("rules", [[], ["never matches=1"]])
@pytest.mark.parametrize("waits", [True, False])
def test_a_feed_waits_for_the_sink_where_it_is_to(
    rules: list[str], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backpressure.buffer_manager import BufferManager

    buffer = BufferManager()
    told: list[tuple[object, object]] = []
    for name in ("add_events", "add_lines"):
        add = getattr(buffer, name)

        def spy(part: Any, *given: Any, add: Any = add, **named: Any) -> Any:
            told.append((given[1], named["wait_for_sink"]))
            return add(part, *given, **named)

        monkeypatch.setattr(buffer, name, spy)
    Feed(buffer, 3, rules, wait_for_sink=waits).put(memoryview(b"one\ntwo\n"))
    assert told == [(None, waits)], "for as long as it takes"


@pytest.mark.parametrize("waits", [True, False])
def test_sources_wait_for_the_sink_as_the_config_says(
    tmp_path: Path, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    real = Feed.__init__

    def spy(self: Feed, *given: Any, wait_for_sink: bool = False) -> None:
        told.append(wait_for_sink)
        real(self, *given, wait_for_sink=wait_for_sink)

    monkeypatch.setattr(Feed, "__init__", spy)
    settings = {} if waits else {"wait_for_sink": False}
    service = Service(make(tmp_path, service=settings))
    assert told == [waits]
    service.stop()


def test_a_service_from_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\ntwo\n")
    service = Service(make(tmp_path, service={"state_file": str(tmp_path / "state")}))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"one\ntwo\n")
    assert not service.finished
    assert service.stop() == 0
    assert service.errors == []
    with (tmp_path / "in.log").open("ab") as file:
        file.write(b"three\n")
    service = Service(make(tmp_path, service={"state_file": str(tmp_path / "state")}))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"one\ntwo\nthree\n")
    assert service.stop() == 0


def test_sources_are_in_the_metrics_and_take_datagrams(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    import httpx

    sources = [
        {"type": "udp", "port": 0, "max_line_bytes": 10},
        {"type": "tcp", "port": 0, "framing": "newline"},
    ]
    service = Service(make(tmp_path, source=sources, http={"port": 0}))
    service.start()
    udp, tcp, http = service.addresses
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for message in (b"<13>one", b"x" * 11, b"<13>two"):
            sender.sendto(message, ("127.0.0.1", int(udp.rpartition(":")[2])))
    until(lambda: (tmp_path / "out.log").read_bytes() == b"<13>one\n<13>two\n")
    shown = httpx.get(http.replace("/buffer/", "/metrics")).text.splitlines()
    assert f'backpressure_source_incidents_total{{reason="too_long",source="{udp}"}} 1.0' in shown
    assert f'backpressure_source_incidents_total{{reason="refused",source="{tcp}"}} 0.0' in shown
    assert f'backpressure_source_connections{{source="{tcp}"}} 0.0' in shown
    assert service.stop() == 0


def test_half_a_line_of_a_killed_service_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\n")
    (tmp_path / "out.log").write_bytes(b"zero\non")
    service = Service(make(tmp_path))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"zero\non\none\n")
    service.stop()


def test_what_is_not_delivered_is_counted_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\ntwo\n")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        down = {"type": "tcp", "host": "127.0.0.1", "port": port}
        settings = {"state_file": str(tmp_path / "state"), "drain_timeout": 0.2}
        service = Service(make(tmp_path, sink=down, service=settings))
        service.start()
        until(lambda: service.buffer.stats().batches_nacked)
        assert service.stop() == 2
    service = Service(make(tmp_path, service=settings))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"one\ntwo\n")
    service.stop()


def test_a_sink_that_is_gone_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.log").write_bytes(b"one\n")
    service = Service(make(tmp_path))

    def send(batch: object) -> None:
        raise SinkGone(32, "the reader is gone")

    monkeypatch.setattr(service._branches[0].sink, "send", send)
    service.start()
    until(lambda: service.finished)
    assert service.stop() == 1
    assert "the reader is gone" in service.errors[0]


class HttpReceiver:
    """A server that answers 503 until it is told to work, and keeps what it took."""

    def __init__(self) -> None:
        self.works = threading.Event()
        self.refused = 0
        self.taken: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = 204 if outer.works.is_set() else 503
                if status == 204:
                    outer.taken += body.splitlines()
                else:
                    outer.refused += 1
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def http() -> Iterator[HttpReceiver]:
    made = HttpReceiver()
    yield made
    made.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_sink_that_is_back_at_the_end_gets_everything(
    tmp_path: Path, http: HttpReceiver, workers: int
) -> None:
    lines = [b"line %d" % number for number in range(300)]
    (tmp_path / "in.log").write_bytes(b"".join(line + b"\n" for line in lines))
    sink = {"type": "http", "url": http.url, "workers": workers}
    service = Service(make(tmp_path, sink=sink))
    service.start()
    until(lambda: http.refused >= 8)
    http.works.set()
    assert service.stop() == 0, "who ends asks the sink, whatever the circuit says"
    assert service.errors == []
    assert sorted(set(http.taken)) == sorted(lines)


def test_a_second_signal_ends_the_drain_at_once(tmp_path: Path, http: HttpReceiver) -> None:
    (tmp_path / "in.log").write_bytes(b"one\n")
    service = Service(
        make(
            tmp_path,
            sink={"type": "http", "url": http.url},
            service={"drain_timeout": 60.0},
        )
    )
    service.start()
    until(lambda: http.refused)
    begun = time.monotonic()
    assert service.stop(lambda: time.monotonic() - begun > 0.1) == 1
    assert time.monotonic() - begun < 10.0


def test_a_file_is_opened_anew_also_where_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\n")
    out = tmp_path / "out.log"
    service = Service(make(tmp_path))
    service.start()
    until(lambda: out.read_bytes() == b"one\n")
    out.rename(tmp_path / "out.log.1")
    service.reopen()
    until(out.exists)
    assert service.stop() == 0


def test_a_reload_changes_what_it_can_and_opens_the_file_anew(tmp_path: Path) -> None:
    source, out = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\n")
    service = Service(make(tmp_path))
    service.start()
    until(lambda: out.read_bytes() == b"one\n")
    out.rename(tmp_path / "out.log.1")
    flow = {"max_events_per_second": 1234, "burst_size": 5000}
    new = make(
        tmp_path,
        buffer={"lane_bytes": "1M", "flow_control": flow, "batching": {"initial_batch_size": 2000}},
    )
    done, later = put_in_force(service, new)
    assert set(done) == {
        "buffer.flow_control.max_events_per_second",
        "buffer.flow_control.burst_size",
        "buffer.batching.initial_batch_size",
    }
    assert later == ["buffer.lane_bytes"]
    stats = service.buffer.stats()
    assert (stats.flow_control.rate_limit, stats.flow_control.burst, stats.batching.batch_size) == (
        1234,
        5000,
        2000,
    )
    with source.open("ab") as file:
        file.write(b"two\n")
    until(lambda: out.exists() and out.read_bytes() == b"two\n")
    assert put_in_force(service, new) == ([], ["buffer.lane_bytes"]), (
        "what is in force is not changed again"
    )
    beyond = {
        "initial_batch_size": 200_000,
        "max_batch_size": 200_000,
    }  # more than the running buffer's bounds
    new = make(tmp_path, buffer={"flow_control": {"max_events_per_second": 77}, "batching": beyond})
    with pytest.raises(Mistakes, match="must be from 1,000 to 100,000, until a restart"):
        put_in_force(service, new)
    assert service.buffer.stats().flow_control.rate_limit == 1234, "nothing was changed"
    service.stop()


@pytest.mark.parametrize(
    ("tables", "error", "message"),
    [
        ({"sink": {"type": "file", "path": "/nowhere/at/all"}}, OSError, "No such file"),
        ({"service": {"state_file": "/nowhere/state"}}, ConfigError, "service.state_file"),
        ({"http": {"port": 0, "token_file": "/nowhere/token"}}, ConfigError, "http"),
    ],
)
def test_what_cannot_be_opened(
    tmp_path: Path, tables: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Service(make(tmp_path, **tables))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            Service(
                make(tmp_path, source=[{"type": "tcp", "port": 0}, {"type": "tcp", "port": port}])
            )


class _Dies:
    """A source that fails, or ends, once it is told to."""

    def __init__(self, name: str, error: Exception | None) -> None:
        self.name, self._error = name, error
        self.now = threading.Event()

    def run(self, put: object, stopping: threading.Event) -> None:
        self.now.wait(10)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(5, "Input/output error", "x"), "x: Input/output error"),
        (MemoryError(), "MemoryError"),
        (None, "it ended before its time"),
    ],
)
def test_a_dead_source_is_in_health_metrics_and_status(
    tmp_path: Path, error: Exception | None, words: str
) -> None:
    http = pytest.importorskip("backpressure.http")
    exposition = pytest.importorskip("backpressure.metrics").exposition
    from backpressure.cli.serve import _status
    from backpressure.http.health import check_health

    service = Service(make(tmp_path))
    dies = _Dies("in.log", error)
    service._sources[0] = dies
    service._threads[0] = threading.Thread(
        target=service._run_source, args=(dies, service._feeds[0])
    )
    service.start()
    assert check_health(service.buffer, service.parts()).status == "ok"
    assert 'forebay_part_failed{part="in.log"} 0.0' in _text(exposition, service)
    dies.now.set()
    until(lambda: service.failures() == [f"in.log: {words}"])
    health = check_health(service.buffer, service.parts())
    assert (health.status, health.ready) == ("degraded", True)
    assert health.reasons == [f"in.log has ended: {words}"]
    assert 'forebay_part_failed{part="in.log"} 1.0' in _text(exposition, service)
    assert _status(service) == f"in.log: {words}"
    assert http.create_app(service.buffer, parts=service.parts)
    service.stop()


def _text(exposition: Any, service: Service) -> str:
    return str(exposition(service.buffer, parts=service.parts())[0].decode())


def test_with_the_durability_interval_a_position_waits_for_the_sync(tmp_path: Path) -> None:
    """In each run, as the numbers of events go on from one to the next."""
    buffer = {"directory": str(tmp_path / "b"), "lane_bytes": "64K", "durability": "interval"}
    state, followed = tmp_path / "state", tmp_path / "in.log"
    followed.touch()
    for _ in range(2):
        with followed.open("ab") as file:
            file.write(b"line\n" * 100)
        service = Service(make(tmp_path, buffer=buffer, service={"state_file": str(state)}))
        service.start()

        def is_saved(service: Service = service) -> bool:
            service.save_positions()
            saved = state.read_text() if state.exists() else ""
            return f'"offset": {followed.stat().st_size}' in saved

        until(is_saved)
        lane = service.buffer.stats().lanes[3]
        assert lane.disk is not None
        assert lane.disk.durable_seq == service.buffer.positions()[2]
        service.stop()


def test_marks_with_the_durability_interval_are_positions(tmp_path: Path) -> None:
    from backpressure.buffer.config import BufferConfig, Durability
    from backpressure.buffer_manager import BufferManager

    for durability, mark in ((Durability.PROCESS, 0), (Durability.INTERVAL, 2)):
        config = BufferConfig(
            directory=tmp_path / durability.value, lane_bytes=1 << 16, durability=durability
        )
        with BufferManager(config) as buffer:
            assert Feed(buffer, 3, []).put(memoryview(b"a\nb\n")) == (0, 0, mark, 0, 0)
            buffer.close(timeout=0)
