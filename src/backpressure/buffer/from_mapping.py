"""Configs out of plain mappings: what a TOML file, a JSON document or logging's
dictConfig can say, made into frozen dataclasses.

A mapping's keys are the dataclass's fields. What plain data cannot say is taken as
text: an enum by its value ("drop_oldest"), a size by its unit ("64M", for fields that
end with `_bytes`), a config within a config as a table of its own. All else is left to
the config's own checks.

Every mistake becomes a ConfigError that names the table and the key, and for an unknown
key the nearest one that exists. Nothing is read from the environment here, and nothing
opened.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from backpressure.base.errors import ConfigError
from backpressure.base.validation import as_bool, as_int, as_member, as_number

__all__ = ["build", "format_size", "parse_size", "unknown_key"]

T = TypeVar("T")

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# In ASCII alone: without it the Kelvin sign is a K. Thirty digits are more than any
# size has, and less than int() refuses.
_SIZE = re.compile(
    r"(?P<digits>[0-9](?:_?[0-9]){0,29}) *(?:(?P<unit>[KMGT])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE
)


def build(kind: type[T], given: object, where: str = "", base: T | None = None) -> T:
    """The dataclass `kind` with the fields in `given`, a mapping; `where` is the
    table's name for messages. ConfigError.

    base: what the other fields are taken from; None: their defaults.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(where or kind.__name__, f"must be a table, not {given!r}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in hints:
            raise unknown_key(where, key, hints)
        values[key] = _value(hints[key], value, _join(where, key), _default(kind, key))  # type: ignore[arg-type]
    missing = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.init
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(_join(where, missing[0]), "is missing")
    try:
        return kind(**values) if base is None else dataclasses.replace(base, **values)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(
            _join(where, error.field), str(error).removeprefix(f"{error.field}: ")
        ) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(where or kind.__name__, str(error)) from None


def unknown_key(where: str, key: object, known: Iterable[str]) -> ConfigError:
    """The error for a key that nothing has, with the nearest that exists."""
    known = sorted(known)
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return ConfigError(_join(where, str(key)), f"there is no such key; {hint}")


def parse_size(text: str) -> int:
    """Bytes out of "4096", or with a unit out of "64K", "64M", "1G", "1T". ValueError,
    which says what is accepted.

    Units are powers of 1024, and "64M", "64MB" and "64MiB" are the same, in letters of
    either case. The digits may be grouped as in 1_000_000, and a blank may stand before
    the unit. For whatever takes a size as text: configs, and command lines.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no size: write bytes as a whole number, or with a unit of 1024 as "
            f"64K, 64M, 1G or 1T (64KB and 64KiB are the same)"
        )
    return int(match["digits"]) * (_UNITS[match["unit"].upper()] if match["unit"] else 1)


def format_size(nbytes: int) -> str:
    """Bytes for people, in the largest unit that fits, to four places."""
    for letter, unit in reversed(_UNITS.items()):
        text = f"{nbytes / unit:.4g}"
        if float(text) >= 1:  # as it is shown: 1,023.99 KiB is 1 MiB
            return f"{float(text):,.4g} {letter}iB"
    return f"{nbytes} bytes"


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    """The fields that can be set, and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


@lru_cache(maxsize=256)
def _default(kind: type, key: str) -> object:
    """What a field has if it is not given, where that is made by a factory: a config
    within a config has defaults of its own.
    """
    factory = next(field.default_factory for field in dataclasses.fields(kind) if field.name == key)
    return None if factory is dataclasses.MISSING else factory()


def _value(hint: Any, value: object, where: str, default: object = None) -> object:
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, Enum) and isinstance(value, str):
            return as_member(where, value, option)
        if (
            dataclasses.is_dataclass(option)
            and isinstance(option, type)
            and not isinstance(value, option)
        ):
            return build(option, value, where, default if isinstance(default, option) else None)
        if option is int and isinstance(value, str) and where.endswith("_bytes"):
            try:
                return parse_size(value)
            except ValueError as error:
                raise ConfigError(where, str(error)) from None
        if get_origin(option) is tuple and isinstance(value, (list, tuple)):
            return tuple(_value(get_args(option)[0], one, where) for one in value)
    _check_kind(hint, value, where)
    return value


def _check_kind(hint: Any, value: object, where: str) -> None:
    """ConfigError where the value is of a kind that the field cannot have. Ranges are
    the config's own business.
    """
    options = _options(hint)
    plain = [option for option in options if option in _WORDS]
    if not plain or (value is None and type(None) in options):
        return
    if not any(_SERVES[option](value) for option in plain):
        raise ConfigError(
            where, f"must be {' or '.join(_WORDS[one] for one in plain)}, not {value!r}"
        )


_SERVES: dict[Any, Callable[[object], bool]] = {
    bool: lambda value: as_bool(value) is not None,
    int: lambda value: as_int(value) is not None,
    float: lambda value: as_number(value, float) is not None or as_int(value) is not None,
    str: lambda value: isinstance(value, str),
}
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
