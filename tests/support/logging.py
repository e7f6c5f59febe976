"""What the tests of backpressure.logging share."""

from __future__ import annotations

import logging
import logging.config

from backpressure.buffer_manager import BufferManager
from tests.support.buffers import drain

PATTERN = "%(asctime)s %(levelname)s %(name)s %(message)s"


def logger_with(handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger("app")
    logger.addHandler(handler)
    return logger


def texts(buffer: BufferManager) -> list[str]:
    return [event.decode() for event in drain(buffer)]
