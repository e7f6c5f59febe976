"""Checks of config fields and arguments: one message for one kind of mistake, always
naming what is wrong.
"""

from __future__ import annotations

import math
import sys
from enum import Enum
from typing import Final, TypeGuard

from backpressure.base.errors import ConfigError

__all__ = [
    "NOT_GIVEN",
    "NotGiven",
    "check_bool",
    "check_fields",
    "check_kind",
    "check_number",
    "check_outcomes",
    "check_positive",
    "timeout_seconds",
]


def check_fields(
    config: object, kind: type[int] | type[float], low: float, high: float, *names: str
) -> None:
    """ConfigError where one of these fields is not a number of that kind from `low` to
    `high`.
    """
    for name in names:
        check_number(name, getattr(config, name), kind, low, high)


def check_number(
    name: str, value: object, kind: type[int] | type[float], low: float, high: float
) -> None:
    """ConfigError where `value` is not a number of that kind from `low` to `high`; an
    int serves as a float.
    """
    if not _is_number(value, kind) or not low <= value <= high:
        what = "an int" if kind is int else "a number"
        allowed = f"from {low:,} to {high:,}" if high < math.inf else f"of at least {low:,}"
        raise ConfigError(name, f"must be {what} {allowed}, not {value!r}")


def check_positive(config: object, most: float, *names: str) -> None:
    """ConfigError where one of these fields is not a finite number above 0 and at most
    `most`, which may be inf.
    """
    for name in names:
        value = getattr(config, name)
        if not _is_number(value, float) or not 0.0 < value <= most or value == math.inf:
            allowed = f"and at most {most:,g}" if most < math.inf else "and finite"
            raise ConfigError(name, f"must be a number above 0 {allowed}, not {value!r}")


def _is_number(value: object, kind: type[int] | type[float]) -> TypeGuard[float]:
    """Whether `value` serves as that kind: an int serves as a float, unless no float is
    as large.
    """
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        return False
    return kind is int or isinstance(value, float) or abs(value) <= sys.float_info.max


def check_bool(config: object, *names: str) -> None:
    """ConfigError where one of these fields is not a bool."""
    check_kind(config, bool, *names)


def check_kind(config: object, kind: type, *names: str) -> None:
    """ConfigError where one of these fields is not an instance of `kind`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, kind):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            raise ConfigError(name, f"must be {article} {kind.__name__}, not {value!r}")


def timeout_seconds(timeout: object, name: str = "timeout") -> float:
    """A timeout as seconds, infinite for None. ValueError for what is none: nan, a
    negative one, a text, a bool.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ValueError(
            f"{name} must be a number of seconds from 0 on, or None for no limit, not {timeout!r}"
        )
    return float(timeout) if timeout <= sys.float_info.max else math.inf


class NotGiven(Enum):
    """The type of `NOT_GIVEN`."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "NOT_GIVEN"


#: A timeout that the caller leaves to the callee.
NOT_GIVEN: Final = NotGiven.NOT_GIVEN


def check_outcomes(ok: int, failed: int) -> None:
    """ValueError where one of these counts is negative."""
    if ok < 0 or failed < 0:
        raise ValueError(f"ok and failed must be 0 or more, not {ok!r} and {failed!r}")
