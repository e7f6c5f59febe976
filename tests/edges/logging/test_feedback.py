"""What a sink logs while it sends does not feed it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

from backpressure import Batch
from backpressure.logging import BufferHandler
from backpressure.testing import MemorySink
from tests.edges.logging.test_trouble import Picky


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
