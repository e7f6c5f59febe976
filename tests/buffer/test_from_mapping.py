"""Configs out of plain mappings: every mistake names its table and key."""

from __future__ import annotations

from typing import Any

import pytest

from backpressure.base.errors import ConfigError
from backpressure.buffer.config import BufferConfig, WhenFull
from backpressure.buffer.from_mapping import build
from backpressure.policies.circuit_breaker import CircuitBreakerConfig


def test_what_plain_data_can_not_say() -> None:
    config = build(
        BufferConfig,
        {
            "lane_bytes": "64K",
            "when_full": "DROP_OLDEST",
            "retry_backoff": 1,
            "max_age": 3600,
            "circuit_breaker": {"failure_threshold": 0.5},
            "flow_control": {"emergency_mode": {"enabled": False}},
        },
    )
    assert config.lane_bytes == 65536
    assert config.when_full is WhenFull.DROP_OLDEST
    assert config.max_age == 3600
    assert config.circuit_breaker.failure_threshold == 0.5
    assert config.flow_control.emergency_mode.enabled is False
    assert config.monitor == BufferConfig().monitor
    assert (
        build(BufferConfig, {"directory": None, "when_full": WhenFull.BLOCK}).when_full
        is WhenFull.BLOCK
    )


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"lane_byte": 1}, "buffer.lane_byte", "did you mean 'lane_bytes'"),
        ({"zzz": 1}, "buffer.zzz", "known are"),
        ({"lane_bytes": 1}, "buffer.lane_bytes", "from 4,096"),
        ({"lane_bytes": "64X"}, "buffer.lane_bytes", "64M"),
        ({"lane_bytes": 5.0}, "buffer.lane_bytes", "a whole number"),
        ({"lane_bytes": True}, "buffer.lane_bytes", "a whole number"),
        ({"retry_backoff": "1s"}, "buffer.retry_backoff", "a number"),
        ({"when_full": "drop"}, "buffer.when_full", "one of block, reject"),
        ({"when_full": 3}, "buffer.when_full", "WhenFull"),
        ({"circuit_breaker": 3}, "buffer.circuit_breaker", "a table"),
        (
            {"circuit_breaker": {"reset_timeot": 3}},
            "buffer.circuit_breaker.reset_timeot",
            "did you mean 'reset_timeout'",
        ),
        (
            {"circuit_breaker": {"reset_timeout": -3}},
            "buffer.circuit_breaker.reset_timeout",
            "must be a number",
        ),
        (
            {"flow_control": {"throttle_enabled": 1}},
            "buffer.flow_control.throttle_enabled",
            "true or false",
        ),
        (
            {"flow_control": {"emergency_mode": {"x": 1}}},
            "buffer.flow_control.emergency_mode.x",
            "no such key",
        ),
    ],
)
def test_mistakes(given: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(BufferConfig, given, "buffer")
    assert caught.value.field == field
    assert str(caught.value).startswith(field + ": ")
    assert str(caught.value).count(field.rpartition(".")[2]) <= 2, (
        "the name is said once, and once in a hint"
    )


def test_no_mapping() -> None:
    with pytest.raises(ConfigError, match="buffer: must be a table"):
        build(BufferConfig, [1], "buffer")


def test_a_table_within_a_table_keeps_the_other_defaults_of_its_place() -> None:
    """A buffer's breaker has canaries, a breaker by itself has not."""
    buffer = build(BufferConfig, {"circuit_breaker": {"reset_timeout": 5.0}}, "buffer")
    assert (buffer.circuit_breaker.reset_timeout, buffer.circuit_breaker.canary) == (5.0, True)
    assert not build(CircuitBreakerConfig, {"reset_timeout": 5.0}).canary
    assert not build(BufferConfig, {"circuit_breaker": {"canary": False}}).circuit_breaker.canary
    with pytest.raises(ConfigError, match=r"^buffer\.circuit_breaker\.reset_timeout: must be"):
        build(BufferConfig, {"circuit_breaker": {"reset_timeout": -5.0}}, "buffer")
