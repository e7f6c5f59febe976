"""`forebay top URL`: rates from two readings, and a screen that shows what is wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.cli import main, top
from backpressure.cli.top import cells
from backpressure.cli.top import server as top_server
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.sinks import SinkGone, SinkUnavailable
from backpressure.testing import FailingSink, FakeClock, MemorySink
from tests.support.buffers import next_batch
from tests.support.threads import until

rich_console = pytest.importorskip("rich.console")


def plain(value: Any) -> Any:
    """A snapshot as the HTTP server sends it."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stats_of(buffer: BufferManager) -> dict[str, Any]:
    stats: dict[str, Any] = json.loads(json.dumps(plain(buffer.stats())))
    return stats


class Server(ThreadingHTTPServer):
    answers: list[dict[str, Any] | bytes]


@pytest.fixture
def server() -> Iterator[Server]:
    """Answers GET /buffer/stats with what `answers` gives, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/buffer/stats":
                self.send_error(404)
                return
            answers = answering.answers
            answer = answers[0] if len(answers) == 1 else answers.pop(0)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    answering = server = Server(("127.0.0.1", 0), Handler)
    server.answers = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def shown(renderable: object) -> str:
    out = io.StringIO()
    rich_console.Console(file=out, width=200).print(renderable)
    return out.getvalue()


def test_rates_are_over_the_clock_of_the_buffer() -> None:
    clock = FakeClock(10.0)
    buffer = BufferManager(BufferConfig(lane_bytes=4096), clock=clock)
    before = top_server.Reading(stats_of(buffer))
    assert before.rate("offered") is None
    buffer.add_events([b"x" * 100] * 100, priority=2)
    next_batch(buffer, 10).ack()
    clock.advance(2.0)
    reading = top_server.Reading(stats_of(buffer), before)
    assert reading.rate("offered") == 50.0
    assert reading.rate("offered", "2") == 50.0
    assert reading.rate("offered", "1") == 0.0
    assert reading.rate("acked", "2") == 5.0
    assert reading.rate("rejected", "2") == buffer.stats().rejected["full"] / 2.0
    assert reading.rate("no such", "2") is None


def test_a_new_process_starts_anew() -> None:
    clock = FakeClock(1000.0)
    old = BufferManager(clock=clock)
    old.add_events([b"x"] * 100)
    before = top_server.Reading(stats_of(old))
    clock.advance(1.0)
    assert top_server.Reading(stats_of(BufferManager(clock=clock)), before).rate("offered") is None
    assert (
        top_server.Reading(stats_of(BufferManager(clock=FakeClock(5.0))), before).rate("offered")
        is None
    )
    assert (
        top_server.Reading(stats_of(old), top_server.Reading(stats_of(old))).rate("offered") is None
    ), "no time has passed"


def test_the_screen_says_what_is_wrong() -> None:
    clock = FakeClock()
    config = BufferConfig(
        lane_bytes=4096, circuit_breaker=CircuitBreakerConfig(min_requests=1), retry_backoff=0.0
    )
    buffer = BufferManager(config, clock=clock)
    buffer.add_events([b"x" * 100] * 100, priority=2)
    clock.advance(3.0)
    next_batch(buffer, 1).nack("down")
    text = shown(top_server.screen(top_server.Reading(stats_of(buffer)), "http://here", None))
    assert "circuit open" in text
    assert f"refused so far: full {buffer.stats().rejected['full']}" in text
    assert "3.00 s" in text  # the oldest, and the delay
    assert "96%" in text or "100%" in text
    buffer.close(timeout=0)
    text = shown(
        top_server.screen(top_server.Reading(stats_of(buffer)), "http://here", "no answer")
    )
    assert "closed" in text
    assert "no answer; what follows is old" in text
    assert f"dropped so far: closed {buffer.stats().dropped['closed']}" in text


def test_the_screen_tells_of_the_delivery() -> None:
    buffer = BufferManager()
    sink = FailingSink(MemorySink(), 1.0, error=lambda batch: error)
    error: Exception = SinkUnavailable("maintenance")
    delivery = buffer.deliver_to(sink)

    def line() -> str:
        text = shown(top_server.screen(top_server.Reading(stats_of(buffer)), "http://here", None))
        [found] = [one for one in text.splitlines() if "batches in flight" in one]
        return found.strip()

    assert line() == "sink FailingSink: 0 of 1 batches in flight, taken 0, failures 0"
    buffer.add_events([b"x"])
    until(lambda: delivery.stats().failing_for)
    assert "; fails for " in line()
    assert line().endswith(": SinkUnavailable: maintenance")
    error = SinkGone("torn down")
    buffer.flush()
    assert delivery.wait(30.0)
    assert line().endswith("; ended: torn down")
    buffer.close(timeout=0)


def test_what_the_server_does_not_tell_is_a_dash() -> None:
    stats = {"at": 1.0, "offered": 1, "lanes": {"1": {"offered": 1}}}
    assert "-" in shown(top_server.screen(top_server.Reading(stats), "http://here", None))


def test_quantiles_of_all_lanes_together() -> None:
    buckets = {"bounds": [1.0, 2.0], "sum": 0}
    both = [{**buckets, "counts": [9, 0, 0]}, {**buckets, "counts": [0, 11, 0]}]
    assert top_server._quantile(both, 0.95) == pytest.approx(1.9, abs=0.02)
    assert top_server._quantile([{**buckets, "counts": [0, 0, 0]}], 0.95) is None
    assert top_server._quantile([None], 0.95) is None


@pytest.mark.parametrize(
    ("where", "url"),
    [
        ("http://127.0.0.1:8127", "http://127.0.0.1:8127/buffer/stats"),
        ("127.0.0.1:8127", "http://127.0.0.1:8127/buffer/stats"),
        ("localhost:8127/buffer/", "http://localhost:8127/buffer/stats"),
        ("https://ops.example.com/ingest/", "https://ops.example.com/ingest/buffer/stats"),
        ("http://[::1]:8127/buffer/stats", "http://[::1]:8127/buffer/stats"),
    ],
)
def test_urls(where: str, url: str) -> None:
    assert top_server.stats_url(where) == url


@pytest.mark.parametrize("where", ["ftp://x", "http://", "http://x:port", ""])
def test_no_urls(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", where]) == 2
    assert "is neither a directory nor the URL" in capsys.readouterr().err


def test_once(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [stats_of(BufferManager())]
    assert main(["top", f"127.0.0.1:{server.server_port}", "--once"]) == 0
    assert "circuit closed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b"null", b'{"lanes": 3, "at": 1, "offered": 1}', b"<html>"]
)
def test_an_answer_that_is_none(
    server: Server, answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [answer]
    assert main(["top", f"127.0.0.1:{server.server_port}", "--once"]) == 1
    assert "no statistics" in capsys.readouterr().err


def test_no_server_and_the_wrong_path(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", f"http://127.0.0.1:{server.server_port}/elsewhere"]) == 1
    assert "404" in capsys.readouterr().err
    server.server_close()
    assert main(["top", "http://127.0.0.1:1"]) == 1
    assert "refused" in capsys.readouterr().err


def test_live_it_survives_a_server_that_goes_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = BufferManager()
    first = stats_of(buffer)
    buffer.add_events([b"x"] * 1234)
    server.answers = [first, stats_of(buffer), b"gone"]
    out = io.StringIO()
    console = rich_console.Console(file=out, force_terminal=True, width=200, height=50)
    looks = iter(range(3))

    def sleep(seconds: float) -> None:
        assert 0 <= seconds <= 1
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        top._watch(console, top_server.ServerView(f"127.0.0.1:{server.server_port}"), 1.0)
    assert "1,234" in out.getvalue()
    assert "what follows is old" in out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (None, "-"),
            (0, "0"),
            (-3.4, "-3"),
            (99_999, "99,999"),
            (99_999.6, "100k"),
            (123_456, "123.5k"),
            (999_949, "999.9k"),
        ),
        *((999_951, "1M"), (12_345_678, "12.35M"), (2**64, "18.45E"), (1e24, "1e+06E")),
    ],
)
def test_numbers_of_a_table_are_short(value: float | None, text: str) -> None:
    assert cells.short(value) == text
    assert len(text) <= 7


def test_the_screen_fits_80_columns() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 20), clock=clock)
    buffer.add_events([b"x"] * 10_000, priority=2)
    stats = stats_of(buffer)
    stats["lanes"]["2"].update(
        waiting=123_456_789, dropped={"oldest": 123_456_789}, in_flight=123_456, retrying=99_999
    )
    out = io.StringIO()
    rich_console.Console(file=out, width=80).print(
        top_server.screen(top_server.Reading(stats), "http://here", None)
    )
    assert "…" not in out.getvalue()
    assert "123.5M" in out.getvalue()


def test_one_of_several_sinks(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("backpressure.http")
    from tests.support.http import serving

    buffers = {"a": BufferManager(), "b&c": BufferManager()}
    buffers["b&c"].add_events([b"x"] * 4321)
    with serving(buffers) as address:
        assert main(["top", address, "--once", "--sink", "b&c"]) == 0
        assert "4,321" in capsys.readouterr().out
        assert main(["top", address, "--once"]) == 1
        assert (
            "404 there are several sinks: add ?sink= and one of a, b&c" in capsys.readouterr().err
        )
        assert main(["top", address, "--once", "--sink", "d"]) == 1
        assert "there is no such sink" in capsys.readouterr().err
