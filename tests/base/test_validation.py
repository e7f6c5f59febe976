"""Checks of config fields: what passes, and a message that names the field and says
what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from backpressure.base.errors import ConfigError
from backpressure.base.validation import (
    check_bool,
    check_fields,
    check_kind,
    check_number,
    check_outcomes,
    check_positive,
    timeout_seconds,
)


def message(check: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*arguments)
    assert caught.value.field == "field"
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def config(value: Any) -> SimpleNamespace:
    return SimpleNamespace(field=value)


@pytest.mark.parametrize("value", [1, 1000])
def test_an_int_within_its_bounds(value: int) -> None:
    check_number("field", value, int, 1, 1000)
    check_fields(config(value), int, 1, 1000, "field")
    check_number("field", value, float, 1, math.inf)


@pytest.mark.parametrize("value", [0, 1001, 1.0, True, "5", None, math.nan])
def test_what_is_no_int_within_its_bounds(value: Any) -> None:
    expected = f"field: must be an int from 1 to 1,000, not {value!r}"
    assert message(check_number, "field", value, int, 1, 1000) == expected
    assert message(check_fields, config(value), int, 1, 1000, "field") == expected


def test_numbers_without_an_upper_bound() -> None:
    check_number("field", 1 << 100, int, 1000, math.inf)
    said = message(check_number, "field", 1, int, 1000, math.inf)
    assert said == "field: must be an int of at least 1,000, not 1"


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, False, "0.5", None])
def test_what_is_no_number_within_its_bounds(value: Any) -> None:
    said = message(check_number, "field", value, float, 0.0, 1.0)
    assert said == f"field: must be a number from 0.0 to 1.0, not {value!r}"


def test_an_int_that_is_larger_than_any_float_is_no_number() -> None:
    for wrong in (10**400, -(10**400)):
        message(check_number, "field", wrong, float, -math.inf, math.inf)
    check_number("field", math.inf, float, 0.0, math.inf)


def test_positive_numbers() -> None:
    for value in (1e-300, 0.5, 1, 1e300):
        check_positive(config(value), math.inf, "field")
    check_positive(config(0.5), 0.5, "field")
    for wrong in (0, 0.0, -1, math.inf, math.nan, 10**400, True, "1", None):
        said = message(check_positive, config(wrong), math.inf, "field")
        assert said == f"field: must be a number above 0 and finite, not {wrong!r}"
    said = message(check_positive, config(0.6), 0.5, "field")
    assert said == "field: must be a number above 0 and at most 0.5, not 0.6"


def test_kinds() -> None:
    check_bool(config(True), "field")
    check_kind(config(ConfigError("a", "b")), ConfigError, "field")
    assert message(check_bool, config(1), "field") == "field: must be a bool, not 1"
    said = message(check_kind, config(None), ArithmeticError, "field")
    assert said == "field: must be an ArithmeticError, not None"


def test_outcomes() -> None:
    check_outcomes(0, 5)
    for ok, failed in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"0 or more, not {ok} and {failed}"):
            check_outcomes(ok, failed)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(None, math.inf), (0, 0.0), (2, 2.0), (0.5, 0.5), (math.inf, math.inf), (10**400, math.inf)],
)
def test_a_timeout_in_seconds(timeout: Any, seconds: float) -> None:
    assert timeout_seconds(timeout) == seconds
    assert isinstance(timeout_seconds(timeout), float)


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True, [], -(10**400)])
def test_what_is_no_timeout_is_named(timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"^patience must be a number of seconds from 0 on"):
        timeout_seconds(timeout, "patience")
