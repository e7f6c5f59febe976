"""BufferHandler delivers or counts, whatever its handlers, filters and sinks do."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import sys
import threading
import time
from typing import Any

import pytest

from backpressure import Batch
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler, BufferListener
from backpressure.logging.reentry import MAX_DEFERRED, here
from backpressure.logging.tally import Tally
from backpressure.testing import MemorySink
from tests.support.logging import logger_with, texts
from tests.support.processes import run_python
from tests.support.threads import in_thread, run_threads

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
    get_batch = buffer.get_batch

    def stumble() -> Batch | None:
        if errors:
            raise errors.pop()
        return get_batch()

    monkeypatch.setattr(buffer, "get_batch", stumble)
    listener = BufferListener(buffer, sink)
    listener.start()
    buffer.add_events([b"x"])
    assert listener.flush(10.0)
    assert listener.stop()
    assert sink.events == [b"x"]


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


# ---------------------------------------------------------------- feedback


class Chatty(MemorySink):
    """Its library logs each request, as HTTP clients do."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.logger = logger

    def send(self, batch: Batch) -> None:
        self.logger.debug("connected")
        super().send(batch)
        asyncio.run(self.speak())

    async def speak(self) -> None:
        self.logger.debug("from a coroutine")
        await asyncio.to_thread(self.logger.debug, "from its thread")
        # A context of its own: the thread is known.
        contextvars.Context().run(self.logger.debug, "in another context")


def chatty(logger: logging.Logger, **options: Any) -> tuple[BufferHandler, Chatty]:
    sink = Chatty(logger)
    handler = BufferHandler(sink=sink, **options)
    logger.addHandler(handler)
    return handler, sink


def test_what_a_sink_logs_does_not_feed_it() -> None:
    logger = logging.Logger("all")
    other: list[str] = []
    watcher = logging.Handler()
    watcher.emit = lambda record: other.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(watcher)
    handler, sink = chatty(logger)
    logger.info("hello")
    handler.flush()
    logger.info("again")
    handler.close()
    assert sink.events == [b"hello", b"again"]
    assert handler.refused == {"feedback": 8}
    assert len(other) == 10, "other handlers get it all"


def test_two_handlers_whose_sinks_log_do_not_feed_each_other() -> None:
    logger = logging.Logger("all")
    pairs = [chatty(logger) for _ in range(2)]
    quiet = MemorySink()
    plain = BufferHandler(sink=quiet)
    logger.addHandler(plain)
    logger.info("hello")
    for _ in range(5):
        for handler, _ in pairs:
            handler.flush()
    sent = [len(sink.batch_ids) for _, sink in pairs]
    assert max(sent) <= 3
    for handler, _ in pairs:
        handler.close()
    plain.close()
    # One whose sink is quiet gets what the others' sinks log.
    assert quiet.events.count(b"connected") == sum(len(sink.batch_ids) for _, sink in pairs)


def test_a_handler_behind_a_handler_gets_its_records_and_does_not_feed_the_first() -> None:
    logger = logging.Logger("all")
    sink = Chatty(logger)
    second = BufferHandler(sink=sink)
    first = BufferHandler(sink=second)
    logger.addHandler(first)
    for text in ("one", "two"):
        logger.info(text)
        first.flush()
        second.flush()
    first.close()
    second.close()
    assert sink.events == [b"one", b"two"]
    assert first.refused == {"feedback": 8}


def test_a_target_handler_that_logs_does_not_feed_itself() -> None:
    logger = logging.Logger("all")

    class Logs(Picky):
        def emit(self, record: logging.LogRecord) -> None:
            logger.warning("sending")
            super().emit(record)

    target = Logs(KeyError())
    handler = BufferHandler(sink=target)
    logger.addHandler(handler)
    logger.info("hello")
    handler.close()
    assert target.seen == ["hello"]
    assert handler.refused == {"feedback": 1}


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


# ---------------------------------------------------------------- formatters


def test_a_formatter_that_is_set_or_patched_later_is_used() -> None:
    handler = BufferHandler(BufferManager())
    record = logging.LogRecord("n", 20, "f", 1, "m", (), None)
    old = logging.Formatter("%(asctime)s %(message)s")
    handler.setFormatter(old)
    assert handler.format(record) == old.format(record)
    handler.formatter = logging.Formatter("NEW %(message)s")
    assert handler.format(record) == "NEW m"
    handler.formatter = old
    old.formatTime = lambda record, datefmt=None: "then"  # type: ignore[method-assign]
    assert handler.format(record) == "then m"
    old.format = lambda record: "patched"  # type: ignore[method-assign]
    assert handler.format(record) == "patched"
    handler.formatter = None
    assert handler.format(record) == "m"


# ---------------------------------------------------------------- re-entrancy


def test_a_finaliser_that_logs_at_any_allocation_blocks_nothing() -> None:
    # In a process of its own, as a deadlock here could not be ended.
    done = run_python(
        """
        import gc, logging
        from backpressure.logging import BufferHandler
        from backpressure.testing import MemorySink
        handler = BufferHandler({"lane_bytes": 65536}, sink=MemorySink(), priority="level")
        logger = logging.Logger("x")
        logger.addHandler(handler)
        logged = 0
        class Noisy:
            def __init__(self):
                self.me = self
            def __del__(self):
                global logged
                logged += 1
                logger.error("from a finaliser")
        gc.set_threshold(1)
        for n in range(3000):
            Noisy()
            logged += 1
            logger.info("line %d", n)
            if n % 500 == 0:
                handler.refused, handler.flush()
        gc.set_threshold(0)
        gc.collect()
        handler.close()
        stats = handler.buffer.stats()
        assert logged == stats.accepted + sum(handler.refused.values()), (logged, handler.refused)
        assert stats.accepted == stats.acked + sum(stats.dropped.values())
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.platform
def test_a_signal_handler_that_logs_blocks_nothing_and_loses_nothing() -> None:
    done = run_python(
        """
        import logging, signal, sys, time
        from backpressure.logging import BufferHandler
        from backpressure.testing import MemorySink
        sink = MemorySink()
        handler = BufferHandler(sink=sink)
        logger = logging.Logger("x")
        logger.addHandler(handler)
        rung = 0
        def ring(number, frame):
            global rung
            rung += 1
            logger.warning("ring %d", rung)
            if rung % 50 == 0:
                handler.flush()
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        end = time.monotonic() + 3
        lines = 0
        while time.monotonic() < end or rung < 200:
            logger.info("line %d", lines)
            lines += 1
            if lines % 1000 == 0:
                handler.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)
        handler.close()
        assert handler.refused == {}, handler.refused
        assert len(sink.events) == lines + rung
        mine = [event for event in sink.events if event.startswith(b"line")]
        assert mine == [b"line %d" % n for n in range(lines)]
        """
    )
    assert done.returncode == 0, done.stderr


def test_what_is_logged_within_the_buffer_is_added_when_the_outer_call_is_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = BufferManager()
    handler = BufferHandler(buffer, priority=3)
    logger = logger_with(handler)
    add = handler._events.add
    inner = ["first", "second"]

    def interrupted(text: str, priority: int) -> Any:
        while inner:
            logger.info(inner.pop(0))  # as a finaliser would
            assert buffer.stats().accepted == 0
        return add(text, priority)

    monkeypatch.setattr(handler._events, "add", interrupted)
    logger.info("outer")
    assert buffer.stats().accepted == 3
    assert texts(buffer) == ["outer", "first", "second"]


def test_a_close_within_a_logging_call_completes_that_call_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = MemorySink()
    handler = BufferHandler(sink=sink)
    logger = logger_with(handler)
    add = handler._events.add

    def interrupted(text: str, priority: int) -> Any:
        if not handler._closing:
            handler.flush()
            logger.info("before it")
            logging.shutdown([lambda: handler])  # as a handler of SIGTERM would
            logger.info("after it")
        return add(text, priority)

    monkeypatch.setattr(handler._events, "add", interrupted)
    logger.info("outer")
    assert handler.buffer.stats().closed
    assert sink.events == [b"outer", b"before it"]
    assert handler.refused == {"closed": 1}
    handler.close()


def test_what_waits_for_the_outer_call_is_bounded_and_counted() -> None:
    handler = BufferHandler(BufferManager(BufferConfig(lane_bytes=4 << 20)))
    logger = logger_with(handler)
    here.within = True
    try:
        for _ in range(MAX_DEFERRED + 7):
            logger.info("x")
    finally:
        here.within = False
    assert handler.refused == {"full": 7}
    logger.info("x")
    assert handler.buffer.stats().accepted == MAX_DEFERRED + 1
    # Another thread is not within it.
    in_thread(lambda: logger.info("x"))
    assert handler.buffer.stats().accepted == MAX_DEFERRED + 2


def test_an_interrupted_call_leaves_the_thread_able_to_log(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BufferManager()
    handler = BufferHandler(buffer)
    logger = logger_with(handler)
    with monkeypatch.context() as patch:
        patch.setattr(handler._events, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            logger.info("x")
    assert not here.within
    logger.info("y")
    assert texts(buffer) == ["y"]


def test_a_tally_counts_each_one_once() -> None:
    tally = Tally()

    def add() -> None:
        for _ in range(5000):
            tally.add("a")

    run_threads([add] * 3)
    tally.add("b")
    assert tally.counts() == {"a": 15_000, "b": 1}

    class Inner:
        def __del__(self) -> None:
            tally.add("c")
            seen.append(tally.counts())

    seen: list[dict[str, int]] = []
    with tally._lock:  # as in the middle of a sum
        tally._folding = True
        tally._new.append("b")
        Inner()
        tally._folding = False
    assert seen == [{"a": 15_000, "b": 2, "c": 1}]
    assert tally.counts() == seen[0]
