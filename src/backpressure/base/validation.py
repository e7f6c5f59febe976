"""Checks of config fields and arguments: one message for one kind of mistake, always
naming what is wrong.

Numbers of numpy and of other libraries serve as Python's own do: an integer is an int,
a real a float, numpy's bool a bool and no number. What a config keeps is Python's own.
"""

from __future__ import annotations

import math
import sys
from enum import Enum
from numbers import Integral, Real
from typing import TypeVar, cast

import numpy as np

from backpressure.base.errors import ConfigError
from ringbuf._core.not_given import NOT_GIVEN, NotGiven

__all__ = [
    "NOT_GIVEN",
    "NotGiven",
    "as_bool",
    "as_int",
    "as_member",
    "as_number",
    "check_bool",
    "check_fields",
    "check_kind",
    "check_number",
    "check_outcomes",
    "check_positive",
    "count",
    "limit",
    "timeout_seconds",
]

E = TypeVar("E", bound=Enum)


def check_fields(
    config: object, kind: type[int] | type[float], low: float, high: float, *names: str
) -> None:
    """ConfigError where one of these fields is not a number of that kind from `low` to
    `high`; the field is Python's own number then.
    """
    for name in names:
        value = getattr(config, name)
        _keep(config, name, value, check_number(name, value, kind, low, high))


def check_number(
    name: str, value: object, kind: type[int] | type[float], low: float, high: float
) -> int | float:
    """`value` as a number of that kind; ConfigError where it is none, or not from `low`
    to `high`. An int serves as a float, and stays one.
    """
    number = as_number(value, kind)
    if number is None or not low <= number <= high:
        what = "an int" if kind is int else "a number"
        allowed = f"from {low:,} to {high:,}" if high < math.inf else f"of at least {low:,}"
        raise ConfigError(name, f"must be {what} {allowed}, not {value!r}")
    return number


def check_positive(config: object, most: float, *names: str) -> None:
    """ConfigError where one of these fields is not a finite number above 0 and at most
    `most`, which may be inf.
    """
    for name in names:
        value = getattr(config, name)
        number = as_number(value, float)
        if number is None or not 0.0 < number <= most or number == math.inf:
            allowed = f"and at most {most:,g}" if most < math.inf else "and finite"
            raise ConfigError(name, f"must be a number above 0 {allowed}, not {value!r}")
        _keep(config, name, value, number)


def check_bool(config: object, *names: str) -> None:
    """ConfigError where one of these fields is not a bool."""
    for name in names:
        value = getattr(config, name)
        flag = as_bool(value)
        if flag is None:
            raise ConfigError(name, f"must be a bool, not {value!r}")
        _keep(config, name, value, flag)


def _keep(config: object, name: str, given: object, plain: object) -> None:
    """Let a field, of a frozen dataclass too, be what a check has made of it."""
    if plain is not given:
        object.__setattr__(config, name, plain)


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
    if isinstance(timeout, (int, float, Real)) and not isinstance(timeout, bool):
        try:
            seconds = float(timeout)
        except OverflowError:  # an int
            seconds = math.inf if cast(int, timeout) > 0 else -math.inf
        if seconds >= 0:
            return seconds
    raise ValueError(
        f"{name} must be a number of seconds from 0 on, or None for no limit, not {timeout!r}"
    )


def as_int(value: object) -> int | None:
    """`value` as a plain int, where it is an integer of any type, numpy's too, and no
    bool; else None.
    """
    if type(value) is int:  # nearly always; to ask an abstract class takes ten times as long
        return value
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        return None
    return int(value)


def as_number(value: object, kind: type[int] | type[float]) -> int | float | None:
    """`value` as a plain number of that kind, or None. An int serves as a float, unless
    no float is as large.
    """
    number = as_int(value)
    if number is not None:
        return number if kind is int or abs(number) <= sys.float_info.max else None
    if kind is int or isinstance(value, bool) or not isinstance(value, (float, Real)):
        return None
    return float(value)


def as_bool(value: object) -> bool | None:
    """`value` as a plain bool, where it is Python's or numpy's; else None."""
    return bool(value) if isinstance(value, (bool, np.bool_)) else None


def as_member(name: str, value: object, kind: type[E]) -> E:
    """A member of that enum; text that says its value or its name, in letters of either
    case, serves. ConfigError for anything else.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, str):
        raise ConfigError(name, f"must be a {kind.__name__}, not {value!r}")
    for member in kind:
        if value.lower() in (str(member.value).lower(), member.name.lower()):
            return member
    allowed = ", ".join(str(member.value) for member in kind)
    raise ConfigError(name, f"must be one of {allowed}, not {value!r}")


def limit(name: str, value: object) -> int | None:
    """`value` as a plain int that is 1 or more, or None for no limit; ValueError where
    it is neither.
    """
    if value is None:
        return None
    number = as_int(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be an int from 1 on, or None, not {value!r}")
    return number


def count(name: str, value: object) -> int:
    """`value` as a plain int that is 0 or more; ValueError where it is none."""
    number = as_int(value)
    if number is None or number < 0:
        raise ValueError(f"{name} must be 0 or more, and an int, not {value!r}")
    return number


def check_outcomes(ok: object, failed: object) -> tuple[int, int]:
    """These counts as plain ints; ValueError where one is negative, or no int."""
    # For each batch: what is an int already needs no more.
    if type(ok) is int and type(failed) is int and ok >= 0 and failed >= 0:
        return ok, failed
    plain = as_int(ok), as_int(failed)
    if plain[0] is None or plain[1] is None or plain[0] < 0 or plain[1] < 0:
        raise ValueError(f"ok and failed must be ints of 0 or more, not {ok!r} and {failed!r}")
    return plain[0], plain[1]
