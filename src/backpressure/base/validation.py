"""Checks of config fields: one message for one kind of mistake, always naming the field."""

from __future__ import annotations

from backpressure.base.errors import ConfigError

__all__ = ["check_bool", "check_fields", "check_number"]


def check_fields(
    config: object, kind: type[int] | type[float], low: float, high: float, *names: str
) -> None:
    """ConfigError where one of these fields is not a number of that kind from `low` to `high`."""
    for name in names:
        check_number(name, getattr(config, name), kind, low, high)


def check_number(
    name: str, value: object, kind: type[int] | type[float], low: float, high: float
) -> None:
    """ConfigError where `value` is not a number of that kind from `low` to `high`; an int serves as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not low <= value <= high:
        what = "an int" if kind is int else "a number"
        raise ConfigError(name, f"must be {what} from {low:,} to {high:,}, not {value!r}")


def check_bool(config: object, name: str) -> None:
    """ConfigError where this field is not a bool."""
    if not isinstance(getattr(config, name), bool):
        raise ConfigError(name, f"must be a bool, not {getattr(config, name)!r}")
