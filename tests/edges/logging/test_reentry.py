"""A finaliser or a signal's handler logs while its own thread is logging."""

from __future__ import annotations

import logging
import signal
from typing import Any

import pytest

from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler
from backpressure.logging.reentry import MAX_DEFERRED, here
from backpressure.logging.tally import Tally
from backpressure.testing import MemorySink
from tests.support.logging import logger_with, texts
from tests.support.processes import run_python
from tests.support.threads import in_thread, run_threads


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
    add = handler._events.try_add
    inner = ["first", "second"]

    def interrupted(text: str, priority: int) -> Any:
        while inner:
            logger.info(inner.pop(0))  # as a finaliser would
            assert buffer.stats().accepted == 0
        return add(text, priority)

    monkeypatch.setattr(handler._events, "try_add", interrupted)
    logger.info("outer")
    assert buffer.stats().accepted == 3
    assert texts(buffer) == ["outer", "first", "second"]


def test_a_close_within_a_logging_call_completes_that_call_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink = MemorySink()
    handler = BufferHandler(sink=sink)
    logger = logger_with(handler)
    add = handler._events.try_add

    def interrupted(text: str, priority: int) -> Any:
        if not handler._closing:
            handler.flush()
            logger.info("before it")
            logging.shutdown([lambda: handler])  # as a handler of SIGTERM would
            logger.info("after it")
        return add(text, priority)

    monkeypatch.setattr(handler._events, "try_add", interrupted)
    logger.info("outer")
    assert handler.buffer.stats().closed
    assert sink.events == [b"outer", b"before it"]
    assert handler.refused == {"closed": 1}
    handler.close()


def test_what_waits_for_the_outer_call_is_bounded_and_counted() -> None:
    handler = BufferHandler(BufferManager(BufferConfig(lane_bytes=4 << 20)))
    logger = logger_with(handler)
    here.thread.within = True
    try:
        for _ in range(MAX_DEFERRED + 7):
            logger.info("x")
    finally:
        here.thread.within = False
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
        patch.setattr(
            handler._events, "try_add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            logger.info("x")
    assert not here.thread.within
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
    with tally._reentry.lock:  # as in the middle of a count
        Inner()
    assert seen == [{"a": 15_000, "b": 1}]
    tally.counts()
    assert tally.counts() == {"a": 15_000, "b": 1, "c": 1}
