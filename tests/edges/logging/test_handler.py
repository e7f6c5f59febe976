"""BufferHandler: records become events, and nothing blocks the application.

What is refused is counted.
"""

from __future__ import annotations

import logging
import logging.config
import threading
import time
from functools import partial
from typing import Any

import pytest

from backpressure import Batch
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler, priority_of
from backpressure.testing import FakeClock, MemorySink
from tests.support.buffers import next_batch
from tests.support.logging import PATTERN, logger_with, texts
from tests.support.threads import run_threads, until

# ---------------------------------------------------------------- records


def test_a_record_is_in_the_buffer_when_the_call_returns() -> None:
    buffer = BufferManager()
    handler = BufferHandler(buffer)
    handler.setFormatter(logging.Formatter("%(levelname)s:%(message)s"))
    logger = logger_with(handler)
    for number in range(200):  # beyond what flow control admits at once
        logger.info("line %d", number)
        assert buffer.stats().accepted == number + 1
    assert texts(buffer) == [f"INFO:line {number}" for number in range(200)]
    stats = buffer.stats()
    stats.check()
    handler.close()
    # What was admitted ahead is given back, and the buffer stays its owner's.
    assert sum(buffer.stats().flow_control.admitted) == 200
    assert not buffer.stats().closed


def test_its_arrival_is_noted_and_wakes_a_waiting_consumer() -> None:
    clock = FakeClock()
    buffer = BufferManager(clock=clock)
    logger = logger_with(BufferHandler(buffer, priority=3))
    logger.info("x")
    clock.advance(5.0)
    assert buffer.stats().oldest_age == 5.0
    next_batch(buffer).ack()
    waited = []

    def wait() -> None:
        begun = time.monotonic()
        waited.append((buffer.get_batch(timeout=30.0), time.monotonic() - begun))

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: buffer._ready._waiting)
    logger.info("y")
    thread.join(30)
    [(batch, seconds)] = waited
    assert batch is not None
    assert batch.tolist() == [b"y"]
    assert seconds < 0.9, "by the record, and not by the longest sleep"


def test_arguments_are_merged_when_it_is_logged() -> None:
    buffer = BufferManager()
    logger = logger_with(BufferHandler(buffer))
    things = [1]
    logger.warning("%s", things)
    things.append(2)
    assert texts(buffer) == ["[1]"]


def test_an_exception_is_formatted_with_its_traceback() -> None:
    buffer = BufferManager()
    handler = BufferHandler(buffer)
    handler.setFormatter(logging.Formatter(PATTERN))
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError:
        logger_with(handler).exception("failed")
    [text] = texts(buffer)
    assert "Traceback" in text
    assert text.endswith("ZeroDivisionError: by nothing")


def test_levels_are_priorities() -> None:
    assert [priority_of(level) for level in (100, 50, 49, 40, 30, 25, 20, 19, 10, 1, 0)] == [
        1,
        1,
        2,
        2,
        3,
        4,
        4,
        5,
        5,
        5,
        5,
    ]
    buffer = BufferManager()
    logger = logger_with(BufferHandler(buffer))
    for level in (10, 20, 30, 40, 50):
        logger.log(level, "%d", level)
    assert texts(buffer) == ["50", "40", "30", "20", "10"], "the most urgent comes first"
    for priority, lane in buffer.stats().lanes.items():
        assert lane.accepted == 1, priority


@pytest.mark.parametrize(
    ("priority", "expected"),
    [(2, {2: 5}), ({"ERROR": 1, "INFO": 4}, {1: 2, 4: 3}), ({40: 1, "debug": 5}, {1: 2, 5: 3})],
)
def test_own_priorities(priority: Any, expected: dict[int, int]) -> None:
    buffer = BufferManager()
    logger = logger_with(BufferHandler(buffer, priority=priority))
    for level in (10, 20, 30, 40, 50):
        logger.log(level, "x")
    assert {
        number: lane.accepted for number, lane in buffer.stats().lanes.items() if lane.accepted
    } == expected


@pytest.mark.parametrize(
    ("priority", "expected"), [(None, "10 50 20 40 30"), ("level", "50 40 30 20 10")]
)
def test_a_sink_gets_its_lines_in_order_unless_asked(priority: Any, expected: str) -> None:
    gate = threading.Event()

    class Slow(MemorySink):
        def send(self, batch: Batch) -> None:
            gate.wait(30)
            super().send(batch)

    sink = Slow()
    handler = BufferHandler(sink=sink, priority=priority)
    logger = logger_with(handler)
    logger.critical("first")  # while it is being sent, the others come
    until(lambda: handler.buffer.stats().in_flight)
    for level in (10, 50, 20, 40, 30):
        logger.log(level, "%d", level)
    gate.set()
    handler.close()
    assert b" ".join(sink.events).decode() == f"first {expected}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priority": "levels"}, "priority"),
        ({"sink": ["console"]}, "no logging handler has the name 'console'"),
        ({"sink": {"class": "x"}}, "sink"),
        ({"priority": 6}, "priority"),
        ({"priority": {"LOUD": 1}}, "no level 'LOUD'"),
        ({"priority": {}}, "empty"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"sink": 3}, "sink"),
        ({"sink": [3]}, "sink"),
        ({"sink": MemorySink}, "sink"),
        ({"buffer": {"lane_byte": 4096}}, "did you mean 'lane_bytes'"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        BufferHandler(**arguments)


# ---------------------------------------------------------------- refusals and errors


@pytest.mark.parametrize("when_full", [WhenFull.REJECT, WhenFull.BLOCK])
def test_a_full_buffer_never_blocks_and_counts(when_full: WhenFull) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=when_full))
    handler = BufferHandler(buffer)
    logger = logger_with(handler)
    begun = time.monotonic()
    for _ in range(200):
        logger.info("x" * 100)
    assert time.monotonic() - begun < 5.0
    stats = buffer.stats()
    stats.check()
    assert handler.refused == {"full": 200 - stats.accepted}
    assert stats.rejected["full"] == 200 - stats.accepted > 0
    # Urgent ones have room of their own.
    logger.error("x" * 100)
    assert buffer.stats().lanes[2].accepted == 1
    # What flow control admitted and the lane did not take is given back.
    handler.close()
    stats = buffer.stats()
    assert sum(stats.flow_control.admitted) == stats.accepted


def test_a_timeout_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    handler = BufferHandler(buffer, timeout=0.1)
    logger = logger_with(handler)
    while not handler.refused:
        begun = time.monotonic()
        logger.info("x" * 100)
    assert 0.1 <= time.monotonic() - begun < 5.0
    batch = next_batch(buffer, 1)
    threading.Timer(0.02, batch.ack).start()
    logger.info("x" * 10)  # waits until there is room
    assert handler.refused == {"full": 1}


def test_dropping_the_oldest() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=WhenFull.DROP_OLDEST))
    handler = BufferHandler(buffer)
    logger = logger_with(handler)
    for number in range(200):
        logger.info("%0100d", number)
    assert handler.refused == {}
    assert int(texts(buffer)[-1]) == 199
    buffer.stats().check()
    assert buffer.stats().dropped["oldest"] > 0


def test_what_cannot_be_logged_goes_to_handle_error(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    handler = BufferHandler(buffer)
    seen: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", seen.append)
    logger = logger_with(handler)
    logger.info("%d", "no number")
    logger.info("x" * 1_000_000)  # larger than the lane
    assert len(seen) == 2
    assert handler.refused == {"error": 2}
    logger.info("still here")
    assert texts(buffer) == ["still here"]
    buffer.stats().check()


def test_handle_error_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    logger_with(BufferHandler(BufferManager())).info("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_half_a_surrogate_pair_is_shown_and_not_lost() -> None:
    buffer = BufferManager()
    logger_with(BufferHandler(buffer)).info("caf\udce9 \U0001f600")
    assert texts(buffer) == ["caf\\udce9 \U0001f600"]


def test_a_recursion_is_no_logging_error() -> None:
    class Deep:
        def __str__(self) -> str:
            raise RecursionError

    with pytest.raises(RecursionError):
        logger_with(BufferHandler(BufferManager())).info(Deep())


def test_after_close_records_are_counted() -> None:
    handler = BufferHandler(sink=MemorySink())
    begun = time.monotonic()
    handler.close()
    handler.close()
    assert time.monotonic() - begun < 0.5, "there is nothing to wait for"
    logger_with(handler).info("late")
    assert handler.refused == {"closed": 1}


def test_a_rate_limit_is_kept_also_with_a_small_burst() -> None:
    from backpressure.policies.flow_control_manager import FlowControlConfig

    for burst in (10, 300, 3000):
        flow = FlowControlConfig(max_events_per_second=1, burst_size=burst)
        buffer = BufferManager(BufferConfig(flow_control=flow))
        handler = BufferHandler(buffer, priority=3)
        logger = logger_with(handler)
        for _ in range(burst + 50):
            logger.info("x")
        stats = buffer.stats()
        stats.check()
        assert sum(handler.refused.values()) == burst + 50 - stats.accepted
        # A part of a burst is other priorities' share, and time may have given a token
        # or two.
        assert burst * 0.2 <= stats.accepted <= burst + 5
        handler.close()
        assert sum(buffer.stats().flow_control.admitted) == stats.accepted


def test_threads_lose_and_double_nothing() -> None:
    buffer = BufferManager()
    handler = BufferHandler(buffer, priority=3)
    logger = logger_with(handler)

    def work(name: int) -> None:
        for number in range(500):
            logger.info("%d %d", name, number)

    run_threads([partial(work, name) for name in range(4)])
    lines = [tuple(map(int, line.split())) for line in texts(buffer)]
    for name in range(4):
        assert [number for one, number in lines if one == name] == list(range(500))
    handler.close()
    assert sum(buffer.stats().flow_control.admitted) == 2000
    buffer.stats().check()
