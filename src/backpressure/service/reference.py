"""The reference of a service's configuration, as Markdown, out of the dataclasses.

What a key means is what its dataclass says of it: a paragraph "name: text" of the
docstring, or the `#:` comment before the field. docs/configuration.md is its output.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin, get_type_hints

from backpressure.buffer.config import BufferConfig
from backpressure.buffer.from_mapping import options_of
from backpressure.service.config import HttpSettings, Route, ServiceSettings
from backpressure.service.load import SINKS, SOURCES

__all__ = ["reference"]

_HEAD = """\
# Configuration

Every key of the file that `forebay serve --config` reads. This page is the output of
`forebay serve --print-config-reference`; [operations](operations.md#forebay-serve) says
how the service behaves, and [deploy/forebay.toml](../deploy/forebay.toml) is an
example.

- `FOREBAY_TABLE__KEY` in the environment goes over a key: the names of its tables and
  its own, in capitals, with two underscores between them, as
  `FOREBAY_BUFFER__FLOW_CONTROL__BURST_SIZE=1000`. Of the sources, and
  of several sinks, the number comes second, from 0:
  `FOREBAY_SOURCE__0__PATH=/var/log/a.log`.
- A text is written in quotes in the file, and without them in the environment, where
  nothing in it has a meaning: `FOREBAY_HTTP__TOKEN=1234567890123456` is a token. A
  whole number in the place of a text is taken as its digits.
- `${NAME}` and `${NAME:-default}` within a text are variables of the environment.
- A size is a whole number of bytes, or text with a unit of 1024, as `"64M"`.
- What has no default has to be given. A default of `-` is the key that is not given,
  which the last column calls None.
- The values of secret keys are in no message, log or `--check`.
"""

_SEVERAL = """\
## `[[sink]]`, several

Each has the keys of `[sink]` above, and these. In the environment `FOREBAY_SINK__0__…`.

| key | type | default | |
|---|---|---|---|
| `name` | text |  | up to 64 letters, digits and `_.-`: of its folder below \
`buffer.directory`, in metrics, and in `?sink=name` |
| `route` | table | `{}` | which lines it gets, see below |
| `buffer` | table | `{}` | the keys of `[buffer]` that are others for this sink, its \
policies included; `priority_levels` is the same for all |
"""


def reference() -> str:
    """The page, which ends with a newline."""
    parts = [_HEAD]
    parts += _tables(BufferConfig, "[buffer]", "buffer")
    for name, kind in SOURCES.items():
        parts += _tables(kind, "[[source]]", "source.0", f"{name}")
    for name, sink in SINKS.items():
        parts += _tables(sink, "[sink]", "sink", f"{name}")
    parts.append(_SEVERAL)
    parts += _tables(Route, "[sink.route]", "sink.0.route")
    parts += _tables(HttpSettings, "[http]", "http")
    parts += _tables(ServiceSettings, "[service]", "service")
    return "\n".join(parts)


def _tables(kind: type, title: str, place: str, type_name: str | None = None) -> Iterator[str]:
    """The table of a dataclass, and those of the configs within it."""
    said = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    chosen = "" if type_name is None else f', type = "{type_name}"'
    yield f"## `{title}`{chosen}\n"
    variable = "FOREBAY_" + place.upper().replace(".", "__")
    yield f"{textwrap.fill(said, 88)}\n\nIn the environment `{variable}__…`.\n"
    hints, words = get_type_hints(kind), _meanings(kind)
    rows, within = [], []
    for field in dataclasses.fields(kind):
        options = options_of(hints[field.name])
        config = next(
            (one for one in options if isinstance(one, type) and dataclasses.is_dataclass(one)),
            None,
        )
        if config is not None:
            within.append((config, field.name))
        elif (type_word := _type_word(options, field)) is not None:
            row = (f"`{field.name}`", type_word, _default_word(field), words.get(field.name, ""))
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    if rows:
        yield "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows, ""])
    for config, name in within:
        yield from _tables(config, f"{title[:-1]}.{name}]", f"{place}.{name}")


def _type_word(options: tuple[Any, ...], field: dataclasses.Field[Any]) -> str | None:
    """The type in words; None: a file cannot say it."""
    secret = ", secret" if field.metadata.get("secret") else ""
    for option in options:
        origin, args = get_origin(option), get_args(option)
        if isinstance(option, type) and issubclass(option, Enum):
            return "one of " + ", ".join(f'`"{one.value}"`' for one in option)
        if origin is Literal:
            return "one of " + ", ".join(f'`"{one}"`' for one in args)
        if origin is tuple:
            kinds = {str: f"array of texts{secret}", int: "array of whole numbers"}
            return kinds.get(args[0])
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return f"table of texts{secret}"
        if option is int and field.name.endswith("_bytes"):
            return "size"
        if option in _TYPES:
            return _TYPES[option] + secret
    return None


_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
}


def _default_word(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "`{}`" if field.default_factory is dict else "`[]`"
    value = field.default
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, int) and field.name.endswith("_bytes"):
        return f"`{_as_size(value)}`"
    return f"`{value:_}`" if value >= 10_000 else f"`{value}`"


def _as_size(nbytes: int) -> str:
    for letter, shift in (("G", 30), ("M", 20), ("K", 10)):
        if nbytes and nbytes % (1 << shift) == 0:
            return f'"{nbytes >> shift}{letter}"'
    return str(nbytes)


# ---------------------------------------------------------------- what a key means

_PARAGRAPH = re.compile(r"(\w+(?:, \w+)*): (.*)")
_FIELD = re.compile(r"    (\w+): ")


def _meanings(kind: type) -> dict[str, str]:
    """What the dataclass and those that it extends say of each field, on one line."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if dataclasses.is_dataclass(one):
            found |= _from_docstring(one) | _from_comments(one)
    return found


def _from_docstring(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        if match := _PARAGRAPH.fullmatch(line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _from_comments(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        if line.startswith("    #:"):
            comment.append(line.removeprefix("    #:").strip())
        else:
            if comment and (match := _FIELD.match(line)):
                found[match[1]] = " ".join(comment)
            comment = []
    return found
