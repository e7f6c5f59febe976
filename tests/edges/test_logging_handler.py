"""BufferHandler and BufferListener: a drop-in for QueueHandler that is bounded, never waits, and counts."""

from __future__ import annotations

import logging
import logging.config
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backpressure.base.errors import ConfigError
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler, BufferListener, priority_of
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.sinks import SinkGone
from backpressure.testing import FakeClock, MemorySink
from tests.support.buffers import drain
from tests.support.processes import run_python
from tests.support.threads import run_threads, until

PATTERN = "%(asctime)s %(levelname)s %(name)s %(message)s"


def logger_with(handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger("app")
    logger.addHandler(handler)
    return logger


def texts(buffer: BufferManager) -> list[str]:
    return [event.decode() for event in drain(buffer)]


class SlowSink(MemorySink):
    """Takes nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def send(self, batch) -> None:
        self.gate.wait(30)
        super().send(batch)


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
    # What had been admitted ahead was given back, and the buffer is its owner's.
    assert sum(buffer.stats().flow_control.admitted) == 200
    assert not buffer.stats().closed


def test_its_arrival_is_noted_and_wakes_whoever_waits() -> None:
    clock = FakeClock()
    buffer = BufferManager(clock=clock)
    logger = logger_with(BufferHandler(buffer, priority=3))
    logger.info("x")
    clock.advance(5.0)
    assert buffer.stats().oldest_age == 5.0
    buffer.get_batch().ack()
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
def test_own_priorities(priority, expected: dict[int, int]) -> None:
    buffer = BufferManager()
    logger = logger_with(BufferHandler(buffer, priority=priority))
    for level in (10, 20, 30, 40, 50):
        logger.log(level, "x")
    assert {
        number: lane.accepted for number, lane in buffer.stats().lanes.items() if lane.accepted
    } == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        BufferHandler(**arguments)


# ---------------------------------------------------------------- the same text


FORMATS = [
    logging.Formatter(PATTERN),
    logging.Formatter(PATTERN, "%H:%M:%S"),
    logging.Formatter("{asctime} {message:>20}", style="{"),
    logging.Formatter("$asctime $message", style="$"),
    logging.Formatter("%(message)s"),
    logging.Formatter(),
]


def elsewhere(seconds: float | None) -> time.struct_time:
    """A time zone that is no test machine's."""
    return time.gmtime((seconds or 0.0) + 12_345)


@given(
    moments=st.lists(st.floats(-1e6, 4e9), min_size=1, max_size=5),
    which=st.sampled_from(FORMATS),
    converters=st.lists(
        st.sampled_from([time.gmtime, time.localtime, elsewhere]), min_size=5, max_size=5
    ),
)
# The sum that the converter makes is rounded to a second that its moments are not in.
@example(moments=[-1.0, -1e-60], which=FORMATS[0], converters=[elsewhere] * 5)
@example(moments=[0.5, 1 - 2**-53], which=FORMATS[0], converters=[elsewhere] * 5)
def test_the_text_is_what_the_formatter_makes(
    moments: list[float], which: logging.Formatter, converters: list
) -> None:
    handler = BufferHandler(BufferManager(BufferConfig(lane_bytes=4096)))
    handler.setFormatter(which)
    before = which.converter
    try:
        # Each moment twice, and a converter that changes: what is kept from one record must never show in the next.
        for moment, converter in zip(moments * 2, converters * 2, strict=False):
            which.converter = converter
            record = logging.LogRecord("n", 20, "f", 1, "m %s", ("x",), None)
            record.created, record.msecs = moment, float(int(moment * 1000) % 1000)
            assert handler.format(record) == which.format(record)
    finally:
        which.converter = before


def test_formatters_of_ones_own() -> None:
    class Mine(logging.Formatter):
        def formatTime(self, record, datefmt=None):  # noqa: N802
            return "then"

    patched = logging.Formatter("%(asctime)s")
    patched.formatTime = lambda record, datefmt=None: "never"  # type: ignore[method-assign]
    record = logging.LogRecord("n", 20, "f", 1, "m", (), None)
    handler = BufferHandler(BufferManager())
    for formatter, expected in ((Mine("%(asctime)s"), "then"), (patched, "never"), (None, "m")):
        handler.setFormatter(formatter)
        assert handler.format(record) == expected


def test_filters_may_refuse_and_replace() -> None:
    buffer = BufferManager()
    handler = BufferHandler(buffer)
    handler.addFilter(lambda record: "no" not in record.msg)
    logger = logger_with(handler)
    logger.info("yes")
    logger.info("no")
    assert texts(buffer) == ["yes"]
    if sys.version_info >= (3, 12):
        handler.addFilter(lambda record: logging.makeLogRecord({**vars(record), "msg": "other"}))
        logger.info("yes")
        assert texts(buffer) == ["other"]


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
    # The urgent ones have room of their own.
    logger.error("x" * 100)
    assert buffer.stats().lanes[2].accepted == 1
    # What flow control had admitted and the lane did not take was given back.
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
    batch = buffer.get_batch(max_events=1)
    threading.Timer(0.02, batch.ack).start()
    logger.info("x" * 10)  # waits for the room that comes
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


def test_what_can_not_be_logged_goes_to_handle_error(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    handler = BufferHandler(buffer)
    seen = []
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
        # A part of a burst is other priorities' share, and time may have given a token or two.
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


# ---------------------------------------------------------------- the listener


def test_lines_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("before\n")
    handler = BufferHandler(sink=str(path), priority=3)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logger_with(handler)
    for number in range(1000):
        logger.info("%d", number)
    handler.flush()
    assert path.read_text().splitlines() == ["before", *map(str, range(1000))]
    logger.info("after the flush")
    handler.close()
    assert path.read_text().endswith("after the flush\n")
    assert handler.buffer.stats().closed


def test_handlers_get_records() -> None:
    class Keep(logging.Handler):
        def __init__(self, level: int = 0) -> None:
            super().__init__(level)
            self.seen: list[tuple[int, str]] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.seen.append((record.levelno, record.getMessage()))
            record.msg = "spoilt"

    every, errors = Keep(), Keep(logging.ERROR)
    handler = BufferHandler(sink=[every, errors])
    logger = logger_with(handler)
    logger.error("100%% of %s", "it")
    logger.debug("d")
    handler.close()
    assert sorted(every.seen) == [(10, "d"), (40, "100% of it")]
    assert errors.seen == [(40, "100% of it")]


def test_a_sink_that_fails_gets_its_lines_later_and_the_application_waits_for_nothing() -> None:
    class Failing(MemorySink):
        failing = True

        def send(self, batch) -> None:
            if self.failing:
                raise OSError("no space")
            super().send(batch)

    sink = Failing()
    config = BufferConfig(
        retry_backoff=0.001,
        max_retry_backoff=0.01,
        circuit_breaker=CircuitBreakerConfig(reset_timeout=0.05),
    )
    handler = BufferHandler(config, sink=sink, priority=3)
    logger = logger_with(handler)
    for number in range(100):
        logger.info("%d", number)
    until(lambda: handler.buffer.stats().batches_nacked)
    sink.failing = False
    handler.close()
    assert sink.events == [b"%d" % number for number in range(100)]
    assert sink.closed


def test_a_sink_that_is_gone_ends_the_delivery_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Gone(MemorySink):
        def send(self, batch) -> None:
            raise SinkGone(32, "nobody reads")

    handler = BufferHandler(sink=Gone(), drain_timeout=0.5)
    logger_with(handler).info("x")
    assert handler.listener is not None
    until(lambda: handler.listener.error)
    assert "nobody reads" in caplog.text
    begun = time.monotonic()
    handler.flush()
    handler.close()
    assert time.monotonic() - begun < 5.0
    assert handler.buffer.stats().dropped == {"closed": 1}


def test_a_sink_that_hangs_keeps_neither_the_application_nor_the_end_waiting() -> None:
    sink = SlowSink()
    handler = BufferHandler(BufferConfig(lane_bytes=4096), sink=sink, drain_timeout=0.1)
    logger = logger_with(handler)
    begun = time.monotonic()
    for _ in range(300):
        logger.info("x" * 50)
    handler.flush()
    handler.close()
    assert time.monotonic() - begun < 5.0
    assert handler.refused["full"] > 0
    stats = handler.buffer.stats()
    stats.check()
    assert stats.dropped["closed"] == stats.accepted
    sink.gate.set()


def test_a_listener_of_its_own_with_a_buffer_that_others_use() -> None:
    sink = MemorySink()
    buffer = BufferManager()
    listener = BufferListener(buffer, sink, linger=0.0)
    listener.start()
    with pytest.raises(RuntimeError):
        listener.start()
    buffer.add_events([b"a", b"b"])
    assert listener.flush()
    assert sink.events == [b"a", b"b"]
    buffer.add_events([b"c"])
    assert listener.stop()
    assert sink.events == [b"a", b"b", b"c"]


def test_a_closed_buffer_ends_its_listener() -> None:
    buffer = BufferManager()
    listener = BufferListener(buffer, MemorySink())
    listener.start()
    buffer.close()
    assert listener.stop(5.0)
    assert listener.error is None


def test_flush_counts_what_is_resident_only() -> None:
    sink = SlowSink()
    handler = BufferHandler(sink=sink, drain_timeout=0.05, priority=3)
    logger_with(handler).info("x")
    assert handler.listener is not None
    assert not handler.listener.flush(0.05)
    sink.gate.set()
    assert handler.listener.flush(5.0)
    handler.close()


# ---------------------------------------------------------------- configuration


def test_dict_config(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
            "handlers": {
                "buffered": {
                    "class": "backpressure.logging.BufferHandler",
                    "formatter": "plain",
                    "level": "INFO",
                    "sink": str(path),
                    "buffer": {
                        "lane_bytes": "1M",
                        "when_full": "drop_oldest",
                        "circuit_breaker": {"reset_timeout": 5.0},
                    },
                    "priority": {"ERROR": 1, "INFO": 4},
                }
            },
            "loggers": {
                "app.dict": {"handlers": ["buffered"], "level": "DEBUG", "propagate": False}
            },
        }
    )
    logger = logging.getLogger("app.dict")
    [handler] = logger.handlers
    assert isinstance(handler, BufferHandler)
    assert handler.buffer.config.lane_bytes == 1 << 20
    assert handler.buffer.config.when_full is WhenFull.DROP_OLDEST
    assert handler.buffer.config.circuit_breaker.reset_timeout == 5.0
    logger.debug("no")
    logger.info("yes")
    handler.close()
    logger.removeHandler(handler)
    assert path.read_text() == "INFO yes\n"


def test_dict_config_names_the_mistake() -> None:
    with pytest.raises(ValueError, match="handler") as caught:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {
                    "b": {
                        "class": "backpressure.logging.BufferHandler",
                        "buffer": {"circuit_breaker": {"reset": 1}},
                    }
                },
            }
        )
    assert isinstance(caught.value.__cause__, ConfigError)
    assert "buffer.circuit_breaker.reset" in str(caught.value.__cause__)


# ---------------------------------------------------------------- processes


def test_at_the_end_of_the_interpreter_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import atexit, logging, sys, threading
        from backpressure.logging import BufferHandler
        handler = BufferHandler(sink=sys.argv[1], priority=3)
        logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
        class Late:
            def __del__(self, info=logging.info):
                try:
                    info("from a finaliser")
                except AttributeError:
                    pass  # on some builds logging itself is gone by then
        late = Late()
        def background():
            for n in range(1000):
                logging.info("thread %d", n)
        threading.Thread(target=background).start()
        atexit.register(logging.info, "from atexit")
        for n in range(1000):
            logging.info("main %d", n)
        """,
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("main")] == [f"main {n}" for n in range(1000)]
    assert [line for line in lines if line.startswith("thread")] == [
        f"thread {n}" for n in range(1000)
    ]
    assert "from atexit" in lines


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_children_log_as_well(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import logging, os, sys, threading, warnings
        warnings.simplefilter("ignore")  # that a process with threads forks is the point
        from backpressure.logging import BufferHandler
        handler = BufferHandler(sink=sys.argv[1], priority=3)
        logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
        over = threading.Event()
        def busy():  # so that locks are held at the moment of the fork
            while not over.is_set():
                handler.buffer.stats()
                logging.debug("x")
        threads = [threading.Thread(target=busy) for _ in range(3)]
        [thread.start() for thread in threads]
        logging.info("parent before")
        children = []
        for child in range(5):
            pid = os.fork()
            if pid == 0:
                for n in range(100):
                    logging.info("child %d %d", child, n)
                logging.shutdown()
                os._exit(0 if handler.refused == {} else 3)
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        over.set()
        logging.info("parent after")
        """,
        str(path),
    )
    assert done.returncode == 0, done.stderr
    lines = path.read_text().splitlines()
    assert lines.count("parent before") == lines.count("parent after") == 1, (
        "what the parent had is the parent's"
    )
    for child in range(5):
        mine = [line for line in lines if line.startswith(f"child {child} ")]
        assert mine == [f"child {child} {n}" for n in range(100)]
    assert len(lines) == 502


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_the_directory_is_the_parents(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import logging, os, sys, warnings
        warnings.simplefilter("ignore")
        from backpressure.logging import BufferHandler
        config = {"directory": sys.argv[2], "lane_bytes": "1M", "durability": "commit", "when_full": "drop_lowest_priority"}
        handler = BufferHandler(config, sink=sys.argv[1], priority=3)
        logging.basicConfig(handlers=[handler], format="%(message)s", level="INFO")
        logging.info("parent before")
        pid = os.fork()
        logging.info("%s after", "parent" if pid else "child")
        assert (handler.buffer.config.directory is None) == (pid == 0)
        if pid == 0:
            logging.shutdown()
            os._exit(0 if handler.refused == {} else 3)
        assert os.waitpid(pid, 0)[1] == 0
        logging.info("parent at last")
        handler.flush()
        assert handler.buffer.stats().accepted == handler.buffer.stats().acked == 3
        """,
        str(path),
        str(tmp_path / "buffer"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.read_text().splitlines()) == [
        "child after",
        "parent after",
        "parent at last",
        "parent before",
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.platform
def test_children_of_multiprocessing_log_as_well(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    done = run_python(
        """
        import logging, multiprocessing, sys, warnings
        warnings.simplefilter("ignore")
        from backpressure.logging import BufferHandler
        logging.basicConfig(handlers=[BufferHandler(sink=sys.argv[1])], format="%(message)s", level="INFO")
        def work(n):
            logging.info("child %d", n)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=work, args=(n,)) for n in range(4)]
        [child.start() for child in children]
        [child.join() for child in children]
        """,
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.read_text().splitlines()) == [f"child {n}" for n in range(4)]
