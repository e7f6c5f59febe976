"""BufferHandler delivers or counts, whatever its handlers, filters and sinks do."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time

import pytest

from backpressure import Batch
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler, BufferListener
from backpressure.testing import MemorySink
from tests.support.logging import logger_with
from tests.support.threads import until

# ---------------------------------------------------------------- handlers that raise


class Picky(logging.Handler):
    """Keeps what it gets, and raises `error` for what holds "bad"."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.seen: list[str] = []
        self.reports = 0

    def emit(self, record: logging.LogRecord) -> None:
        if "bad" in record.getMessage():
            raise self.error
        self.seen.append(record.getMessage())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        self.reports += 1


@pytest.mark.parametrize(
    "error", [KeyError("x"), SystemExit(3), KeyboardInterrupt(), RecursionError(), MemoryError()]
)
def test_a_handler_that_raises_ends_nothing(error: BaseException) -> None:
    picky, other = Picky(error), Picky(error)
    other.addFilter(lambda record: "bad" not in record.getMessage())
    handler = BufferHandler(sink=[picky, other])
    logger = logger_with(handler)
    for text in ("one", "bad", "two", "bad", "three"):
        logger.error(text)
        handler.flush()
    assert picky.seen == other.seen == ["one", "two", "three"]
    assert picky.reports == 1, "reported once, not for each record"
    assert handler.listener is not None
    assert handler.listener.handler_errors == 2
    handler.close()
    assert handler.listener.error is None
    assert handler.buffer.stats().acked == 5


def test_a_filter_that_raises_is_its_handlers_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError("in the filter")

    target = logging.StreamHandler(sys.stderr)
    target.addFilter(refuse)
    picky = Picky(KeyError())
    handler = BufferHandler(sink=[target, picky])
    logger = logger_with(handler)
    logger.error("one")
    logger.error("two")
    handler.close()
    assert picky.seen == ["one", "two"]
    assert capsys.readouterr().err.count("in the filter\n") == 1


def test_a_handler_that_cannot_report_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Worse(Picky):
        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
            raise SystemExit("really")

    handler = BufferHandler(sink=Worse(ValueError("x")))
    logger = logger_with(handler)
    logger.error("bad")
    handler.flush()
    logger.error("good")
    handler.close()
    assert "cannot report its error: SystemExit: really" in caplog.text
    assert handler.buffer.stats().acked == 2


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), KeyboardInterrupt()])
def test_a_sink_that_raises_anything_gets_its_lines_later(error: BaseException) -> None:
    class Failing(MemorySink):
        errors = [error]  # noqa: RUF012

        def send(self, batch: Batch) -> None:
            if self.errors:
                raise self.errors.pop()
            super().send(batch)

    sink = Failing()
    handler = BufferHandler(BufferConfig(retry_backoff=0.001), sink=sink)
    logger_with(handler).info("x")
    handler.flush()
    assert sink.events == [b"x"]
    handler.close()


@pytest.mark.parametrize(
    "error", [OSError("x"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_a_sink_that_raises_anything_is_left_alone_for_a_while(error: BaseException) -> None:
    class Failing(MemorySink):
        sends = 0

        def send(self, batch: Batch) -> None:
            self.sends += 1
            raise error

    sink = Failing()
    buffer = BufferManager(BufferConfig(retry_backoff=60.0, max_retry_backoff=60.0))
    listener = BufferListener(buffer, sink, linger=0.0)
    listener.start()
    buffer.add_events([b"x"])
    until(lambda: buffer.stats().retrying)
    buffer.add_events([b"y"], priority=1)
    until(lambda: buffer.stats().retrying == 2)
    assert sink.sends == 2, "the first one pauses while the second one is tried"
    assert not listener.stop(0.0)


def test_a_sink_that_settles_its_batch_itself_is_let() -> None:
    class Own(MemorySink):
        def send(self, batch: Batch) -> None:
            super().send(batch)
            batch.ack()

    sink = Own()
    handler = BufferHandler(sink=sink)
    logger = logger_with(handler)
    for number in range(3):
        logger.info("%d", number)
        handler.flush()
    handler.close()
    assert sink.events == [b"0", b"1", b"2"]
    assert handler.listener is not None
    assert handler.listener.error is None


def test_an_error_of_the_buffer_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, sink = BufferManager(), MemorySink()
    errors: list[BaseException] = [OSError("disk"), SystemExit()]
    next_batch = buffer._outlet.next_batch

    def stumble(max_events: int | None, patient: bool) -> Batch | None:
        if errors:
            raise errors.pop()
        return next_batch(max_events, patient)

    monkeypatch.setattr(buffer._outlet, "next_batch", stumble)
    listener = BufferListener(buffer, sink)
    listener.start()
    buffer.add_events([b"x"])
    assert listener.flush(10.0)
    assert listener.stop()
    assert sink.events == [b"x"]
    assert sink.closed


def test_a_report_that_cannot_be_logged_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(MemorySink):
        failing = True

        def send(self, batch: Batch) -> None:
            if self.failing:
                self.failing = False
                raise OSError("no space")
            super().send(batch)

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError("a filter of the application's")

    log = logging.getLogger("backpressure")
    log.addFilter(refuse)
    try:
        sink = Failing()
        handler = BufferHandler(BufferConfig(retry_backoff=0.001), sink=sink)
        logger_with(handler).info("x")
        handler.flush()
        assert sink.events == [b"x"]
        handler.close()
    finally:
        log.removeFilter(refuse)


# ---------------------------------------------------------------- the end


class Down(MemorySink):
    def send(self, batch: Batch) -> None:
        raise ConnectionRefusedError("away")


def test_shutdown_takes_drain_timeout_once_and_accepts_nothing_meanwhile() -> None:
    handler = BufferHandler(sink=Down(), drain_timeout=0.4)
    logger = logger_with(handler)
    logger.error("last words")
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            logger.info("more")
            time.sleep(0.005)

    thread = threading.Thread(target=go_on)
    thread.start()
    begun = time.monotonic()
    accepted = handler.buffer.stats().accepted
    logging.shutdown([lambda: handler])
    seconds = time.monotonic() - begun
    over.set()
    thread.join()
    assert 0.3 < seconds < 0.75
    stats = handler.buffer.stats()
    assert stats.accepted <= accepted + 5
    assert handler.refused["closed"] > 10
    assert stats.dropped == {"closed": stats.accepted}


def test_a_flush_that_failed_and_the_close_behind_it_wait_once() -> None:
    handler = BufferHandler(sink=Down(), drain_timeout=0.4)
    logger_with(handler).error("x")
    begun = time.monotonic()
    handler.flush()
    handler.close()
    assert 0.3 < time.monotonic() - begun < 0.75


def test_a_target_that_shuts_logging_down_does_not_wait_for_itself() -> None:
    class Ends(Picky):
        def emit(self, record: logging.LogRecord) -> None:
            handler.flush()
            super().emit(record)

    target = Ends(KeyError())
    handler = BufferHandler(sink=target, drain_timeout=20.0)
    logger_with(handler).error("x")
    begun = time.monotonic()
    handler.close()
    assert time.monotonic() - begun < 10.0
    assert target.seen == ["x"]


# ---------------------------------------------------------------- an outage


def test_a_sink_that_is_away_for_a_while_costs_no_line() -> None:
    class Away(MemorySink):
        away = True

        def send(self, batch: Batch) -> None:
            if self.away:
                raise ConnectionRefusedError("away")
            super().send(batch)

    sink = Away()
    handler = BufferHandler(sink=sink, priority=3)
    logger = logger_with(handler)
    lines = [b"line %d" % number for number in range(300)]
    for number, line in enumerate(lines):
        logger.info(line.decode())
        if number < 150:
            time.sleep(0.003)  # what fails has time to come again, and to be refused
    sink.away = False
    handler.flush()
    handler.close()
    assert handler.refused == {}
    assert sorted(sink.events) == sorted(lines)
    assert handler.buffer.stats().dropped == {}
