"""Reads the configuration of `forebay serve`: one TOML file, and environment variables.

    [buffer]     fields of BufferConfig, with its policies as [buffer.flow_control] etc.
                 Without lane_bytes, lanes in a directory are as large as there is room
    [[source]]   type = "file" | "stdin" | "tcp" | "udp" | "unix"
    [sink]       type = "file" | "stdout" | "http" | "tcp"
    [http]       the admin API and POST /events; without this table there is none
    [service]    drain_timeout, state_file, log_level, wait_for_sink

Text may hold ${NAME} or ${NAME:-default}, which are environment variables. A variable
FOREBAY_TABLE__KEY takes the place of that key: FOREBAY_BUFFER__LANE_BYTES=16M,
FOREBAY_BUFFER__FLOW_CONTROL__BURST_SIZE=1000, FOREBAY_SOURCE__0__PATH=/var/log/a.log.
Its value is TOML where it can be read as that, else text.

Everything is checked before anything is opened. Of a buffer's directory it is looked at
how large its lanes are, or how much room there is for new ones. `Mistakes` lists all
that is wrong, each with its table and key.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from backpressure.base.errors import ConfigError
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.from_mapping import build, unknown_key
from backpressure.buffer.lane_size import lane_bytes_for
from backpressure.service.config import (
    FileFollow,
    FileTarget,
    HttpSettings,
    HttpTarget,
    ServeConfig,
    ServiceSettings,
    SinkConfig,
    SourceConfig,
    StdinLines,
    StdoutTarget,
    TcpLines,
    TcpTarget,
    UdpLines,
    UnixLines,
)
from backpressure.service.own_output import followed_output
from backpressure.sources.line_patterns import refuse_endless
from backpressure.sources.priority_rules import parse_rule

__all__ = ["Mistakes", "load", "parse"]

T = TypeVar("T")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_PREFIX = "FOREBAY_"
_SOURCES: dict[str, type[SourceConfig]] = {
    "file": FileFollow,
    "stdin": StdinLines,
    "tcp": TcpLines,
    "udp": UdpLines,
    "unix": UnixLines,
}
_SINKS: dict[str, type[SinkConfig]] = {
    "file": FileTarget,
    "stdout": StdoutTarget,
    "http": HttpTarget,
    "tcp": TcpTarget,
}
_TABLES = ("buffer", "source", "sink", "http", "service")


class Mistakes(Exception):
    """All that is wrong with a configuration, one line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lines,), self.__dict__


def load(path: str, environment: Mapping[str, str] | None = None) -> ServeConfig:
    """The configuration in the file `path`.

    OSError where it cannot be read, Mistakes where it is wrong.
    """
    with open(path, "rb") as file:
        try:
            given = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Mistakes([f"{path}: this is not TOML: {error}"]) from None
    return parse(given, os.environ if environment is None else environment)


def parse(given: Mapping[str, Any], environment: Mapping[str, str]) -> ServeConfig:
    """The configuration in the content of a TOML file and in environment variables.

    Mistakes where it is wrong.
    """
    mistakes: list[str] = []

    def checked(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ConfigError as error:
            mistakes.append(str(error))
            return None

    tables = checked(
        lambda: _expand_variables(_apply_overrides(given, environment), environment, "")
    )
    if tables is None:
        raise Mistakes(mistakes)
    mistakes += [str(unknown_key("", key, _TABLES)) for key in tables if key not in _TABLES]
    buffer = checked(lambda: build(BufferConfig, tables.get("buffer", {}), "buffer"))
    given_sources = _source_tables(tables, mistakes)
    sources = [
        checked(partial(_build_typed, _SOURCES, one, f"source[{number}]"))
        for number, one in enumerate(given_sources)
    ]
    sink = checked(partial(_build_typed, _SINKS, tables.get("sink"), "sink"))
    http = (
        checked(lambda: build(HttpSettings, tables["http"], "http")) if "http" in tables else None
    )
    service = checked(lambda: build(ServiceSettings, tables.get("service", {}), "service"))
    if not sources and "http" not in tables and not mistakes:
        mistakes.append("source: there is none, and no [http] either: nothing could ever come in")
    if mistakes or buffer is None or sink is None or service is None:
        raise Mistakes(mistakes)
    config = ServeConfig(
        buffer=buffer,
        source=tuple(one for one in sources if one is not None),
        sink=sink,
        http=http,
        service=service,
    )
    if "lane_bytes" not in tables.get("buffer", {}):
        config = _with_lane_bytes(config)
    mistakes += _contradictions(config)
    if mistakes:
        raise Mistakes(mistakes)
    return config


def _with_lane_bytes(config: ServeConfig) -> ServeConfig:
    """Lanes as large as there is room for, since the configuration leaves it open."""
    longest = max((source.max_line_bytes or 0 for source in config.source), default=0)
    lane_bytes = lane_bytes_for(config.buffer, longest)
    return replace(config, buffer=replace(config.buffer, lane_bytes=lane_bytes))


def _contradictions(config: ServeConfig) -> list[str]:
    """What is wrong between tables that are right each by itself."""
    found = []
    try:
        config.buffer.check_disk_room()
    except ConfigError as error:
        found.append(f"buffer.{error}")
    for number, source in enumerate(config.source):
        try:
            refuse_endless(parse_rule(rule)[0] for rule in source.priority_by)
        except ValueError as error:
            found.append(f"source[{number}].priority_by: {error}")
    limit, levels = config.lane_limit, config.priority_levels
    for number, source in enumerate(config.source):
        beyond = [(source.priority, "priority")] if source.priority is not None else []
        beyond += [(parse_rule(rule)[1], "priority_by") for rule in source.priority_by]
        found += [
            f"source[{number}].{key}: there is no priority {priority}: "
            f"buffer.flow_control.priority_levels is {levels}"
            for priority, key in beyond
            if priority > levels
        ]
        if (source.max_line_bytes or 0) > limit:
            found.append(
                f"source[{number}].max_line_bytes: a lane of {config.buffer.lane_bytes:,} bytes "
                f"takes lines of at most {limit:,}: make buffer.lane_bytes larger, or this smaller"
            )
        output = followed_output(source, config.sink)
        if output is not None:
            path = getattr(config.sink, "path", None)
            verb = "reads" if isinstance(source, StdinLines) else "follows"
            named = "" if output in (path, "stdin") else f", as {output}"
            found.append(
                f"sink{'' if path is None else '.path'}: source[{number}] {verb} "
                f"{path or 'what stdout leads to'} as well{named}: it would eat its own output"
            )
    if sum(isinstance(source, StdinLines) for source in config.source) > 1:
        found.append("source: stdin can be read once only")
    return found


def _source_tables(tables: Mapping[str, Any], mistakes: list[str]) -> list[Any]:
    sources = tables.get("source", [])
    if isinstance(sources, list):
        return sources
    mistakes.append("source: must be an array of tables: write [[source]], with two brackets")
    return []


def _build_typed(kinds: Mapping[str, type[T]], given: Any, where: str) -> T:
    """The other keys as the dataclass that the key `type` names."""
    allowed = ", ".join(kinds)
    if given is None:
        raise ConfigError(where, f'is missing: add [{where}] with type = "…", one of {allowed}')
    if not isinstance(given, Mapping):
        raise ConfigError(where, f"must be a table, not {given!r}")
    kind = kinds.get(given["type"]) if isinstance(given.get("type"), str) else None
    if kind is None:
        raise ConfigError(f"{where}.type", f"must be one of {allowed}, not {given.get('type')!r}")
    return build(kind, {key: value for key, value in given.items() if key != "type"}, where)


def _apply_overrides(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What is given, with FOREBAY_TABLE__KEY variables in their places."""
    tables: dict[str, Any] = _copied(given)
    for name, text in sorted(environment.items()):
        if not name.startswith(_PREFIX) or "__" not in name:
            continue
        keys = name.removeprefix(_PREFIX).lower().split("__")
        if keys[0] not in _TABLES:
            raise ConfigError(name, str(unknown_key("", keys[0], _TABLES)))
        place: Any = tables
        for key, following in zip(keys, [*keys[1:], None], strict=True):
            if isinstance(place, list):
                if not key.isdecimal() or int(key) >= len(place):
                    raise ConfigError(
                        name, f"there is no number {key} of {len(place)} (they count from 0)"
                    )
                key = int(key)  # type: ignore[assignment]
            elif not isinstance(place, dict):
                raise ConfigError(name, "it goes into a key that is no table")
            if following is None:
                place[key] = _toml_value(text)
            elif isinstance(place, dict):
                place = place.setdefault(key, {})
            else:
                place = place[key]
    return tables


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _expand_variables(value: Any, environment: Mapping[str, str], where: str) -> Any:
    """`value` with each ${NAME} in its texts replaced."""
    if isinstance(value, dict):
        return {
            key: _expand_variables(one, environment, f"{where}.{key}" if where else key)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [
            _expand_variables(one, environment, f"{where}[{number}]")
            for number, one in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def replacement(found: re.Match[str]) -> str:
        name, default = found.groups()
        text = environment.get(name, default)
        if text is None:
            raise ConfigError(
                where, f"the environment has no variable {name}; write ${{{name}:-…}} for a default"
            )
        return text

    return _VARIABLE.sub(replacement, value)
