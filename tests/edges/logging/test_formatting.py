"""BufferHandler: a record's text is the one that logging would have made."""

from __future__ import annotations

import logging
import logging.config
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.logging import BufferHandler
from tests.support.logging import PATTERN, logger_with, texts

FORMATS = [
    logging.Formatter(PATTERN),
    logging.Formatter(PATTERN, "%H:%M:%S"),
    logging.Formatter("{asctime} {message:>20}", style="{"),
    logging.Formatter("$asctime $message", style="$"),
    logging.Formatter("%(message)s"),
    logging.Formatter(),
]


def elsewhere(seconds: float | None) -> time.struct_time:
    """A time zone that no test machine has."""
    return time.gmtime((seconds or 0.0) + 12_345)


@given(
    moments=st.lists(st.floats(-1e6, 4e9), min_size=1, max_size=5),
    which=st.sampled_from(FORMATS),
    converters=st.lists(
        st.sampled_from([time.gmtime, time.localtime, elsewhere]), min_size=5, max_size=5
    ),
)
# The converter's sum is rounded to another second than its terms are in.
@example(moments=[-1.0, -1e-60], which=FORMATS[0], converters=[elsewhere] * 5)
@example(moments=[0.5, 1 - 2**-53], which=FORMATS[0], converters=[elsewhere] * 5)
def test_the_text_is_what_the_formatter_makes(
    moments: list[float], which: logging.Formatter, converters: list[Any]
) -> None:
    handler = BufferHandler(BufferManager(BufferConfig(lane_bytes=4096)))
    handler.setFormatter(which)
    before = which.converter
    try:
        # Each moment twice, and a converter that changes: what is kept from one record
        # must never show in the next.
        for moment, converter in zip(moments * 2, converters * 2, strict=False):
            which.converter = converter
            record = logging.LogRecord("n", 20, "f", 1, "m %s", ("x",), None)
            record.created, record.msecs = moment, float(int(moment * 1000) % 1000)
            assert handler.format(record) == which.format(record)
    finally:
        which.converter = before


def test_formatters_of_ones_own() -> None:
    class Mine(logging.Formatter):
        def formatTime(  # noqa: N802
            self, record: logging.LogRecord, datefmt: str | None = None
        ) -> str:
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


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f, _: setattr(f._style, "_fmt", "B %(message)s"), id="a pattern"),
        pytest.param(lambda f, _: setattr(f, "_style", logging.PercentStyle("B")), id="a style"),
        pytest.param(
            lambda f, _: setattr(f._style, "_defaults", {"levelname": "D"}), id="defaults"
        ),
        pytest.param(lambda f, _: setattr(f, "format", lambda record: "B"), id="its format"),
        pytest.param(
            lambda f, _: setattr(f, "formatTime", lambda record, datefmt: "B"), id="its times"
        ),
        pytest.param(
            lambda _, patch: patch(logging.Formatter, "formatMessage", lambda *_: "B"),
            id="all formatters' messages",
        ),
        pytest.param(
            lambda _, patch: patch(logging.Formatter, "formatTime", lambda *_: "B"),
            id="all formatters' times",
        ),
        pytest.param(
            lambda _, patch: patch(logging.Formatter, "converter", staticmethod(elsewhere)),
            id="all formatters' converter",
        ),
    ],
)
def test_a_formatter_may_be_changed_at_any_time(
    change: Callable[[Any, Callable[..., None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = BufferHandler(BufferManager(BufferConfig(lane_bytes=4096)))
    formatter = logging.Formatter(PATTERN)
    handler.setFormatter(formatter)
    record = logging.LogRecord("n", 20, "f", 1, "m %s", ("x",), None)
    before = handler.format(record)
    assert before == formatter.format(record)
    change(formatter, monkeypatch.setattr)
    assert handler.format(record) == formatter.format(record)


def test_a_field_that_no_record_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = BufferHandler(BufferManager(BufferConfig(lane_bytes=4096)))
    handler.setFormatter(logging.Formatter("%(message)s %(user)s"))
    record = logging.LogRecord("n", 20, "f", 1, "m", (), None)
    with pytest.raises(ValueError, match="'user'"):
        handler.format(record)
    record.user = "ann"
    assert handler.format(record) == "m ann"
