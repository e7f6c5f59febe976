"""Configs out of plain mappings: what a TOML file, a JSON document or logging's
dictConfig can say, made into frozen dataclasses.

A mapping's keys are the dataclass's fields. What plain data cannot say is taken as
text: an enum by its value ("drop_oldest"), a size by its unit ("64M", for fields that
end with `_bytes`), a config within a config as a table of its own. A field that is text
takes a whole number as its digits, and an `Untyped` as it stands. All else is left to
the config's own checks.

Every mistake becomes a ConfigError that names the table and the key, and for an unknown
key the nearest one that exists. It never shows a table, nor the value of a field with
`SECRET` as its metadata: a token that stands in the wrong place stays out of the log.
Nothing is read from the environment here, and nothing opened.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from backpressure.base.errors import ConfigError
from backpressure.base.validation import as_bool, as_int, as_member, as_number

__all__ = [
    "QUOTED",
    "SECRET",
    "Untyped",
    "build",
    "format_size",
    "kind_of",
    "options_of",
    "parse_size",
    "unknown_key",
]

T = TypeVar("T")

#: The metadata of a field that no message shows.
SECRET: Final = types.MappingProxyType({"secret": True})
#: The metadata of a text whose digits mean something else as a number: 0o660 is 432.
QUOTED: Final = types.MappingProxyType({"quoted": True})

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# In ASCII alone: without it the Kelvin sign is a K. Thirty digits are more than any
# size has, and less than int() refuses.
_SIZE = re.compile(
    r"(?P<digits>[0-9](?:_?[0-9]){0,29}) *(?:(?P<unit>[KMGT])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE
)


class Untyped(str):
    """Text from a place that knows no types, as the environment: TOML for a field that
    is no text, where it can be read as that.
    """

    __slots__ = ()

    def parsed(self) -> Any:
        """Its value as TOML, else the text."""
        try:
            found = tomllib.loads(f"value = {self}")
        # No number has thousands of digits, and nothing is nested as deep.
        except (ValueError, RecursionError):
            return str(self)
        return found["value"] if len(found) == 1 else str(self)

    def as_text(self) -> str:
        """Itself, without the quotes of a TOML string."""
        value = self.parsed()
        return value if isinstance(value, str) else str(self)


def build(kind: type[T], given: object, where: str = "", base: T | None = None) -> T:
    """The dataclass `kind` with the fields in `given`, a mapping; `where` is the
    table's name for messages. ConfigError.

    base: what the other fields are taken from; None: their defaults.
    """
    if isinstance(given, Untyped):
        given = given.parsed()
    if not isinstance(given, Mapping):
        raise ConfigError(where or kind.__name__, f"must be a table, not {kind_of(given)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in hints:
            raise unknown_key(where, key, hints)
        field = _field(kind, key)  # type: ignore[arg-type]
        place = _join(where, key)
        values[key] = _value(hints[key], value, place, _default(kind, key), field.metadata)  # type: ignore[arg-type]
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


@lru_cache(maxsize=256)
def _field(kind: type, key: str) -> dataclasses.Field[Any]:
    return next(field for field in dataclasses.fields(kind) if field.name == key)


_NO_METADATA: Final[Mapping[str, Any]] = types.MappingProxyType({})


def _value(
    hint: Any,
    value: object,
    where: str,
    default: object = None,
    metadata: Mapping[str, Any] = _NO_METADATA,
) -> object:
    options = options_of(hint)
    if isinstance(value, Untyped):
        value = value.as_text() if str in options else value.parsed()
    if value is None and type(None) in options:
        return None
    for option in options:
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
        if get_origin(option) is tuple:
            if not isinstance(value, (list, tuple)):
                raise ConfigError(where, f"must be an array, not {kind_of(value)}")
            return tuple(_value(get_args(option)[0], one, where, None, metadata) for one in value)
        if get_origin(option) is Mapping:
            if not isinstance(value, Mapping):
                raise ConfigError(where, f"must be a table of texts, not {kind_of(value)}")
            return {
                key: _value(get_args(option)[1], one, _join(where, key), None, metadata)
                for key, one in value.items()
            }
        if option is str and not metadata.get("quoted") and (number := as_int(value)) is not None:
            return str(number)
    _check_kind(options, value, where, shown=not metadata.get("secret"))
    return value


def kind_of(value: object) -> str:
    """What kind of value it is, in words: for a message that must not show it."""
    for kind, word in _WORDS.items():
        if _SERVES[kind](value):
            return word
    if isinstance(value, Mapping):
        return "a table"
    return "an array" if isinstance(value, (list, tuple)) else type(value).__name__


def _check_kind(options: tuple[Any, ...], value: object, where: str, shown: bool) -> None:
    """ConfigError where the value is of a kind that the field cannot have. Ranges are
    the config's own business.

    shown: whether the message may show the value.
    """
    plain = [option for option in options if option in _WORDS]
    if plain and not any(_SERVES[option](value) for option in plain):
        found = repr(value) if shown else kind_of(value)
        raise ConfigError(
            where, f"must be {' or '.join(_WORDS[one] for one in plain)}, not {found}"
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


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have: those of a union, or its only one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
