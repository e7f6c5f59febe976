"""Reads the configuration of `forebay serve`: one TOML file, and environment variables.

    [buffer]     fields of BufferConfig, with its policies as [buffer.flow_control] etc.
                 Without lane_bytes, lanes in a directory are as large as there is room
    [[source]]   type = "file" | "stdin" | "tcp" | "udp" | "unix"
    [sink]       type = "file" | "stdout" | "http" | "tcp"
    [[sink]]     several: each with a name, a [sink.route], and a [sink.buffer] that
                 goes over [buffer]
    [http]       the admin API and POST /events; without this table there is none
    [service]    drain_timeout, state_file, log_level, wait_for_sink

Text may hold ${NAME} or ${NAME:-default}, which are environment variables. A variable
FOREBAY_TABLE__KEY takes the place of that key: FOREBAY_BUFFER__LANE_BYTES=16M,
FOREBAY_BUFFER__FLOW_CONTROL__BURST_SIZE=1000, FOREBAY_SOURCE__0__PATH=/var/log/a.log.
For a key that is text its value is that text, so a token of digits is a token; for any
other key it is TOML where it can be read as that, else text.

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
from backpressure.buffer.from_mapping import Untyped, build, kind_of, unknown_key
from backpressure.buffer.lane_size import lane_bytes_for
from backpressure.service.config import (
    FileFollow,
    FileTarget,
    HttpSettings,
    HttpTarget,
    NamedSink,
    Route,
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
from backpressure.sources.line_patterns import compile_pattern, refuse_endless
from backpressure.sources.priority_rules import parse_rule

__all__ = ["SINKS", "SOURCES", "Mistakes", "load", "parse"]

T = TypeVar("T")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_PREFIX = "FOREBAY_"
SOURCES: dict[str, type[SourceConfig]] = {
    "file": FileFollow,
    "stdin": StdinLines,
    "tcp": TcpLines,
    "udp": UdpLines,
    "unix": UnixLines,
}
SINKS: dict[str, type[SinkConfig]] = {
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
        except UnicodeDecodeError:
            raise Mistakes([f"{path}: this is not TOML: it is not UTF-8"]) from None
        except tomllib.TOMLDecodeError as error:
            raise Mistakes([f"{path}: this is not TOML: {error}"]) from None
        except (ValueError, RecursionError):
            raise Mistakes(
                [f"{path}: a number has too many digits, or tables are nested too deep"]
            ) from None
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
    if isinstance(tables.get("sink"), list):
        tables["sink"] = [_plain_table(one) for one in tables["sink"]]
    mistakes += [str(unknown_key("", key, _TABLES)) for key in tables if key not in _TABLES]
    buffer = checked(lambda: build(BufferConfig, tables.get("buffer", {}), "buffer"))
    given_sources = _source_tables(tables, mistakes)
    sources = [
        checked(partial(_build_typed, SOURCES, one, f"source[{number}]"))
        for number, one in enumerate(given_sources)
    ]
    sink = _sinks(tables, buffer, checked, mistakes)
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
    config = _with_lane_bytes(config, tables)
    mistakes += _contradictions(config)
    if mistakes:
        raise Mistakes(mistakes)
    return config


def _sinks(
    tables: Mapping[str, Any],
    buffer: BufferConfig | None,
    checked: Callable[[Callable[[], Any]], Any],
    mistakes: list[str],
) -> SinkConfig | tuple[NamedSink, ...] | None:
    """The one of [sink], or those of [[sink]]; None: there is a mistake."""
    given = tables.get("sink")
    if not isinstance(given, list):
        one: SinkConfig | None = checked(partial(_build_typed, SINKS, given, "sink"))
        return one
    if not given:
        mistakes.append("sink: there is none")
    common = tables.get("buffer", {})
    found: list[NamedSink | None] = [
        checked(partial(_named_sink, one, f"sink[{number}]", common))
        for number, one in enumerate(given)
        # Of a common part that is wrong itself that is said once.
        if buffer is not None
    ]
    sinks = tuple(one for one in found if one is not None)
    folded = [one.name.lower() for one in sinks]
    for number, name in enumerate(folded):
        if name in folded[:number]:
            mistakes.append(
                f"sink[{number}].name: there is a {sinks[number].name!r} already; "
                "names that differ only in their case are one folder on some systems"
            )
    return sinks


def _named_sink(given: Any, where: str, common: Mapping[str, Any]) -> NamedSink:
    """One table of [[sink]]."""
    if not isinstance(given, Mapping):
        raise ConfigError(where, f"must be a table, not {kind_of(given)}")
    own = {key: value for key, value in given.items() if key not in ("name", "route", "buffer")}
    target = _build_typed(SINKS, own, where)
    name = given.get("name")
    if isinstance(name, Untyped):
        name = name.as_text()
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name", 'must be text, as "audit": it names folder and metrics')
    route = build(Route, given.get("route", {}), f"{where}.route")
    buffer_table = given.get("buffer", {})
    if not isinstance(buffer_table, Mapping):
        raise ConfigError(f"{where}.buffer", f"must be a table, not {kind_of(buffer_table)}")
    buffer = build(BufferConfig, _merged(common, buffer_table), f"{where}.buffer")
    if buffer.directory is not None and "directory" not in buffer_table:
        buffer = replace(buffer, directory=os.path.join(os.fspath(buffer.directory), name))
    try:
        return NamedSink(name=name, target=target, route=route, buffer=buffer)
    except ConfigError as error:
        raise ConfigError(
            f"{where}.{error.field}", str(error).removeprefix(f"{error.field}: ")
        ) from None


def _plain_table(value: Any) -> Any:
    """A table of [[sink]]; a variable may have given the whole, or its `buffer`."""
    table = value.parsed() if isinstance(value, Untyped) else value
    if isinstance(table, dict) and isinstance(table.get("buffer"), Untyped):
        table["buffer"] = table["buffer"].parsed()
    return table


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables, key by key, where they are tables too; what is own goes first."""
    merged = dict(common)
    for key, value in own.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _with_lane_bytes(config: ServeConfig, tables: Mapping[str, Any]) -> ServeConfig:
    """Lanes as large as there is room for, where the configuration leaves it open."""
    longest = max((source.max_line_bytes or 0 for source in config.source), default=0)
    is_open = "lane_bytes" not in tables.get("buffer", {})
    if not isinstance(config.sink, tuple):
        if not is_open:
            return config
        lane_bytes = lane_bytes_for(config.buffer, longest)
        return replace(config, buffer=replace(config.buffer, lane_bytes=lane_bytes))
    sinks = []
    for sink, given in zip(config.sink, tables["sink"], strict=True):
        if is_open and "lane_bytes" not in given.get("buffer", {}):
            size = lane_bytes_for(sink.buffer, longest, len(config.sink))
            sink = replace(sink, buffer=replace(sink.buffer, lane_bytes=size))
        sinks.append(sink)
    return replace(config, sink=tuple(sinks))


def _contradictions(config: ServeConfig) -> list[str]:
    """What is wrong between tables that are right each by itself."""
    found = []
    for place, sink in zip(_places(config), config.sinks, strict=True):
        where = "buffer" if config.is_single else f"{place}.buffer"
        try:
            sink.buffer.check_disk_room()
        except ConfigError as error:
            found.append(f"{where}.{error}")
        try:
            if sink.route.match is not None:
                refuse_endless([compile_pattern(sink.route.match)])
        except ValueError as error:
            found.append(f"{place}.route.match: {error}")
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
            smallest = min(sink.buffer.lane_bytes for sink in config.sinks)
            found.append(
                f"source[{number}].max_line_bytes: a lane of {smallest:,} bytes "
                f"takes lines of at most {limit:,}: make buffer.lane_bytes larger, or this smaller"
            )
        for place, one in zip(_places(config), config.sinks, strict=True):
            output = followed_output(source, one.target)
            if output is not None:
                path = getattr(one.target, "path", None)
                verb = "reads" if isinstance(source, StdinLines) else "follows"
                named = "" if output in (path, "stdin") else f", as {output}"
                found.append(
                    f"{place}{'' if path is None else '.path'}: source[{number}] {verb} "
                    f"{path or 'what stdout leads to'} as well{named}: it would eat its own output"
                )
    if sum(isinstance(source, StdinLines) for source in config.source) > 1:
        found.append("source: stdin can be read once only")
    return found + _contradictions_of_sinks(config) + _strangers(config)


def _places(config: ServeConfig) -> list[str]:
    """How the file calls each sink."""
    if config.is_single:
        return ["sink"]
    return [f"sink[{number}]" for number in range(len(config.sinks))]


def _contradictions_of_sinks(config: ServeConfig) -> list[str]:
    """What is wrong between several sinks, and between them and the sources."""
    found: list[str] = []
    if config.is_single:
        return found
    names = {source.name for source in config.source if source.name is not None}
    directories: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for place, sink in zip(_places(config), config.sinks, strict=True):
        levels = sink.buffer.flow_control.priority_levels
        if levels != config.priority_levels:
            found.append(
                f"{place}.buffer.flow_control.priority_levels: must be that of [buffer], "
                f"{config.priority_levels}: lines have one priority for all sinks"
            )
        found += [
            f"{place}.route.priority: there is no priority {one}: "
            f"buffer.flow_control.priority_levels is {config.priority_levels}"
            for one in sink.route.priority
            if one > config.priority_levels
        ]
        found += [
            f"{place}.route.source: no [[source]] has the name {one!r}; "
            f"there are {', '.join(sorted(names)) or 'none with a name'}"
            for one in sink.route.source
            if one not in names
        ]
        if sink.buffer.directory is not None:
            path = os.path.realpath(sink.buffer.directory)
            if (other := directories.setdefault(path, place)) != place:
                found.append(f"{place}.buffer.directory: {other} has it already: {path}")
        target = sink.target
        if isinstance(target, (FileTarget, StdoutTarget)):
            path = os.path.realpath(target.path) if isinstance(target, FileTarget) else "stdout"
            if (other := outputs.setdefault(path, place)) != place:
                found.append(f"{place}: {other} writes to {path} already")
    return found


def _strangers(config: ServeConfig) -> list[str]:
    """Buffers that lie in the directory, and that nothing would ever deliver: those of
    a configuration with one sink instead of several, or with other names.
    """
    directory = config.buffer.directory
    if directory is None:
        return []
    if not config.is_single:
        known = {
            os.path.realpath(one.buffer.directory) for one in config.sinks if one.buffer.directory
        }
    else:
        known = {os.path.realpath(directory)}
    paths = [os.fspath(directory)]
    try:
        paths += [entry.path for entry in os.scandir(directory) if entry.is_dir()]
    except OSError:
        pass  # it is not there yet, or whoever opens it says what is wrong
    return [
        f"buffer.directory: {path} holds the buffer of another [sink] or [[sink]], and nothing "
        f"would deliver what is in it: give it a sink, see 'forebay inspect {path}', or move it "
        "away"
        for path in paths
        if os.path.realpath(path) not in known and _holds_buffer(path)
    ]


def _holds_buffer(path: str) -> bool:
    return os.path.exists(os.path.join(path, "manifest"))


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
    if isinstance(given, Untyped):
        given = given.parsed()
    if not isinstance(given, Mapping):
        raise ConfigError(where, f"must be a table, not {kind_of(given)}")
    name = given.get("type")
    if isinstance(name, Untyped):
        name = name.as_text()
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"{where}.type", f"must be one of {allowed}, not {name!r}")
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
                place[key] = Untyped(text)
                continue
            inner = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
            if isinstance(inner, Untyped):  # a table from another variable
                inner = place[key] = inner.parsed()
            place = inner
    return tables


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


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

    return type(value)(_VARIABLE.sub(replacement, value))
