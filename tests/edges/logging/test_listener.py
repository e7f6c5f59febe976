"""BufferHandler with a sink: the listener that delivers, and how it is configured."""

from __future__ import annotations

import logging
import logging.config
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from backpressure import Batch
from backpressure.base.errors import ConfigError
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler, BufferListener
from backpressure.policies.circuit_breaker import CircuitBreakerConfig
from backpressure.sinks import SinkGone
from backpressure.testing import MemorySink
from tests.support.logging import logger_with
from tests.support.threads import until


class SlowSink(MemorySink):
    """Takes nothing before it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def send(self, batch: Batch) -> None:
        self.gate.wait(30)
        super().send(batch)


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

        def send(self, batch: Batch) -> None:
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
        def send(self, batch: Batch) -> None:
            raise SinkGone(32, "the reader is gone")

    handler = BufferHandler(sink=Gone(), drain_timeout=0.5)
    logger_with(handler).info("x")
    listener = handler.listener
    assert listener is not None
    until(lambda: listener.error)
    until(lambda: "the reader is gone" in caplog.text)
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


class Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


KEEP = f"{__name__}.Keep"


@pytest.mark.parametrize(
    "sink",
    ["{0}", ["{0}", "{1}"], ("{0}",), "cfg://handlers.{0}", ["cfg://handlers.{0}", "{1}"]],
    ids=str,
)
@pytest.mark.parametrize("ours", ["aa", "mm", "zz"])
@pytest.mark.parametrize("factory", ["class", "()"])
def test_dict_config_with_other_handlers_as_targets(sink: Any, ours: str, factory: str) -> None:
    # Before, between and behind the targets in the alphabet.
    names = "kk", "pp"
    lines = (
        sink.format(*names)
        if isinstance(sink, str)
        else type(sink)(one.format(*names) for one in sink)
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
            "filters": {"own": {"name": "app"}},
            "handlers": {
                "kk": {"class": KEEP},
                "pp": {"class": KEEP},
                ours: {
                    factory: "backpressure.logging.BufferHandler",
                    "formatter": "plain",
                    "level": "INFO",
                    "filters": ["own"],
                    "sink": lines,
                },
            },
            "loggers": {"app.t": {"handlers": [ours], "level": "DEBUG", "propagate": False}},
        }
    )
    logger = logging.getLogger("app.t")
    [handler] = logger.handlers
    assert isinstance(handler, BufferHandler)
    assert handler.level == logging.INFO
    assert len(handler.filters) == 1
    logger.info("x")
    handler.close()
    logger.removeHandler(handler)
    targets = handler._target
    assert isinstance(targets, tuple)
    assert [target.name for target in targets] == ["kk", "pp"][: len(targets)]
    assert len(targets) == (1 if isinstance(sink, str) else len(sink))
    assert all(target.seen == ["INFO x"] for target in targets)


@pytest.mark.parametrize(
    ("sink", "message"),
    [("b", "its own target"), (["b"], "its own target"), (["nowhere"], "no logging handler")],
)
def test_dict_config_refuses_targets_that_cannot_be(sink: Any, message: str) -> None:
    with pytest.raises(ValueError, match="handler 'b'") as caught:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"b": {"class": "backpressure.logging.BufferHandler", "sink": sink}},
            }
        )
    assert message in str(caught.value.__cause__)


def test_a_string_that_names_a_handler_is_that_handler(tmp_path: Path) -> None:
    target = Keep()
    target.name = str(tmp_path / "app.log")
    handler = BufferHandler(sink=target.name)
    logger_with(handler).info("x")
    handler.close()
    assert target.seen == ["x"]
    assert not (tmp_path / "app.log").exists()
    handler = BufferHandler(sink=tmp_path / "app.log")
    logger_with(handler).info("y")
    handler.close()
    assert target.seen == ["x"]
    assert (tmp_path / "app.log").read_text() == "y\n"
