"""The configuration of `forebay serve`: one TOML file, and environment variables over
it.

    [buffer]                                  fields of BufferConfig, with its policies as [buffer.flow_control] and so on
    [[source]]  type = "file" | "stdin" | "tcp" | "unix"
    [sink]      type = "file" | "stdout" | "http" | "tcp"
    [http]      the admin API and POST /events; without this table there is none
    [service]   drain_timeout, state_file, log_level

Text may hold ${NAME} or ${NAME:-default}, which are environment variables. A variable
FOREBAY_TABLE__KEY takes the place of that key: FOREBAY_BUFFER__LANE_BYTES=16M,
FOREBAY_BUFFER__FLOW_CONTROL__BURST_SIZE=1000, FOREBAY_SOURCE__0__PATH=/var/log/a.log.
Its value is read as TOML where it is some, else as text.

Everything is checked before anything is opened; `Mistakes` has all that is wrong, each
with its table and key.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

from backpressure.base.errors import ConfigError
from backpressure.base.priority import PRIORITY_LEVELS, Priority
from backpressure.base.validation import check_fields
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.from_mapping import build, unknown_key
from backpressure.sources.priority_rules import parse_rule
from ringbuf import MessageRing

__all__ = [
    "FileFollow",
    "FileTarget",
    "HttpSettings",
    "HttpTarget",
    "Mistakes",
    "ServeConfig",
    "ServiceSettings",
    "SinkConfig",
    "SourceConfig",
    "StdinLines",
    "StdoutTarget",
    "TcpLines",
    "TcpTarget",
    "UnixLines",
    "load",
    "parse",
]

T = TypeVar("T")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_PREFIX = "FOREBAY_"
_LONGEST_SECONDS = 86_400.0
_LOG_LEVELS = ("debug", "info", "warning", "error")


class Mistakes(Exception):
    """What is wrong with a configuration: all of it, one line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lines,), self.__dict__


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """What all sources have. priority_by: rules "REGEX=N", the first that matches a
    line wins; `priority` is for the rest.
    """

    priority: int = int(Priority.NORMAL)
    priority_by: tuple[str, ...] = ()
    max_line_bytes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, int, 1, PRIORITY_LEVELS, "priority")
        for rule in self.priority_by:
            try:
                parse_rule(rule)
            except ValueError as error:
                raise ConfigError("priority_by", str(error)) from None
        if self.max_line_bytes is not None:
            check_fields(self, int, 1, 1 << 30, "max_line_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFollow(_Lines):
    """Follow the files of that name or pattern. start: "end" or "beginning", for files
    that were never read before.
    """

    path: str
    start: str = "end"

    def __post_init__(self) -> None:
        _Lines.__post_init__(self)
        _check_text(self, "path")
        if self.start not in ("end", "beginning"):
            raise ConfigError("start", f'must be "end" or "beginning", not {self.start!r}')


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinLines(_Lines):
    """Read stdin to its end; where there is nothing else to wait for, the service ends
    with it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpLines(_Lines):
    """Listen for lines over TCP; on this machine only, unless `host` says otherwise."""

    port: int
    host: str = "127.0.0.1"
    max_connections: int = 256

    def __post_init__(self) -> None:
        _Lines.__post_init__(self)
        _check_text(self, "host")
        check_fields(self, int, 0, 65535, "port")
        check_fields(self, int, 1, 1 << 16, "max_connections")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixLines(_Lines):
    """Listen for lines over a Unix socket. mode: who may connect, in octal."""

    path: str
    mode: str = "0660"
    max_connections: int = 256

    def __post_init__(self) -> None:
        _Lines.__post_init__(self)
        _check_text(self, "path")
        check_fields(self, int, 1, 1 << 16, "max_connections")
        if not re.fullmatch(r"0?[0-7]{3}", self.mode):
            raise ConfigError("mode", f'must be octal, as "0660", not {self.mode!r}')


SourceConfig: TypeAlias = FileFollow | StdinLines | TcpLines | UnixLines


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTarget:
    """Add to a file, which is opened anew at each reload."""

    path: str

    def __post_init__(self) -> None:
        _check_text(self, "path")


@dataclass(frozen=True, slots=True, kw_only=True)
class StdoutTarget:
    """Write to stdout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpTarget:
    """Send lines over TCP. timeout: seconds."""

    host: str
    port: int
    timeout: float = 10.0

    def __post_init__(self) -> None:
        _check_text(self, "host")
        check_fields(self, int, 1, 65535, "port")
        check_fields(self, float, 0.001, _LONGEST_SECONDS, "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """Post batches of lines. compression: "none", "gzip" or "zstd". timeout: seconds."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    compression: str = "none"
    timeout: float = 10.0

    def __post_init__(self) -> None:
        from backpressure.sinks.http import HttpSink

        check_fields(self, float, 0.001, _LONGEST_SECONDS, "timeout")
        if not isinstance(self.headers, Mapping) or not all(
            isinstance(value, str) for value in self.headers.values()
        ):
            raise ConfigError("headers", f"must be a table of texts, not {self.headers!r}")
        try:
            HttpSink(self.url, compression=self.compression)
        except ValueError as error:
            raise ConfigError(
                "compression" if "compression" in str(error) else "url", str(error)
            ) from None


SinkConfig: TypeAlias = FileTarget | StdoutTarget | TcpTarget | HttpTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The HTTP server. token, or the content of token_file: what changes need; without
    one, nothing can be changed.
    """

    host: str = "127.0.0.1"
    port: int = 8127
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text(self, "host")
        check_fields(self, int, 0, 65535, "port")
        if self.token is not None and self.token_file is not None:
            raise ConfigError("token_file", "give it or token, not both")
        if self.token is not None and len(self.token) < _LEAST_TOKEN:
            raise ConfigError("token", f"must have {_LEAST_TOKEN} characters or more")


# Sixteen characters of base64 are 96 bits: beyond guessing.
_LEAST_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """drain_timeout: seconds that the end may take to deliver what is buffered.
    state_file: where the positions of followed files are kept; without one they are
    forgotten at the end. log_level: debug, info, warning or error.
    """

    drain_timeout: float = 10.0
    state_file: str | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        check_fields(self, float, 0.0, _LONGEST_SECONDS, "drain_timeout")
        if self.log_level not in _LOG_LEVELS:
            raise ConfigError(
                "log_level", f"must be one of {', '.join(_LOG_LEVELS)}, not {self.log_level!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """All of it."""

    buffer: BufferConfig
    source: tuple[SourceConfig, ...]
    sink: SinkConfig
    http: HttpSettings | None
    service: ServiceSettings

    def line_limit(self, source: SourceConfig) -> int:
        """The longest line that this source takes, in bytes."""
        return source.max_line_bytes or min(_DEFAULT_LINE_BYTES, self.lane_limit)

    @property
    def lane_limit(self) -> int:
        """The longest line that a lane takes: asked of a ring like its own, whose
        memory is never touched.
        """
        return MessageRing(self.buffer.lane_bytes).max_message_bytes


# Longer than any sensible log line; small enough that a thousand connections of one
# each are no danger.
_DEFAULT_LINE_BYTES = 1 << 20

_SOURCES: dict[str, type[SourceConfig]] = {
    "file": FileFollow,
    "stdin": StdinLines,
    "tcp": TcpLines,
    "unix": UnixLines,
}
_SINKS: dict[str, type[SinkConfig]] = {
    "file": FileTarget,
    "stdout": StdoutTarget,
    "http": HttpTarget,
    "tcp": TcpTarget,
}
_TABLES = ("buffer", "source", "sink", "http", "service")


def load(path: str, environment: Mapping[str, str] | None = None) -> ServeConfig:
    """The configuration in the file `path`. OSError where it can not be read, Mistakes
    where it is wrong.
    """
    with open(path, "rb") as file:
        try:
            given = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Mistakes([f"{path}: this is not TOML: {error}"]) from None
    return parse(given, os.environ if environment is None else environment)


def parse(given: Mapping[str, Any], environment: Mapping[str, str]) -> ServeConfig:
    """The configuration in what a TOML file holds, and in these environment variables.
    Mistakes.
    """
    mistakes: list[str] = []

    def checked(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ConfigError as error:
            mistakes.append(str(error))
            return None

    tables = checked(lambda: _expand(_override(given, environment), environment, ""))
    if tables is None:
        raise Mistakes(mistakes)
    mistakes += [str(unknown_key("", key, _TABLES)) for key in tables if key not in _TABLES]
    buffer = checked(lambda: build(BufferConfig, tables.get("buffer", {}), "buffer"))
    given_sources = _array(tables, mistakes)
    sources = [
        checked(partial(_typed, _SOURCES, one, f"source[{number}]"))
        for number, one in enumerate(given_sources)
    ]
    sink = checked(partial(_typed, _SINKS, tables.get("sink"), "sink"))
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
    mistakes += _contradictions(config)
    if mistakes:
        raise Mistakes(mistakes)
    return config


def _contradictions(config: ServeConfig) -> list[str]:
    """Tables that are right each by itself, and not together."""
    found = []
    limit = config.lane_limit
    for number, source in enumerate(config.source):
        if (source.max_line_bytes or 0) > limit:
            found.append(
                f"source[{number}].max_line_bytes: a lane of {config.buffer.lane_bytes:,} bytes takes lines of at most "
                f"{limit:,}: make buffer.lane_bytes larger, or this smaller"
            )
        if isinstance(source, FileFollow) and isinstance(config.sink, FileTarget):
            sink, pattern = os.path.abspath(config.sink.path), os.path.abspath(source.path)
            if sink == pattern or fnmatch.fnmatchcase(sink, pattern):
                found.append(
                    f"sink.path: source[{number}] follows {config.sink.path} as well: it would eat its own output"
                )
    if sum(isinstance(source, StdinLines) for source in config.source) > 1:
        found.append("source: stdin can be read once only")
    return found


def _array(tables: Mapping[str, Any], mistakes: list[str]) -> list[Any]:
    sources = tables.get("source", [])
    if isinstance(sources, list):
        return sources
    mistakes.append("source: must be an array of tables: write [[source]], with two brackets")
    return []


def _typed(kinds: Mapping[str, type[T]], given: Any, where: str) -> T:
    """The dataclass that the key `type` names, out of the other keys."""
    allowed = ", ".join(kinds)
    if given is None:
        raise ConfigError(where, f'is missing: add [{where}] with type = "…", one of {allowed}')
    if not isinstance(given, Mapping):
        raise ConfigError(where, f"must be a table, not {given!r}")
    kind = kinds.get(given["type"]) if isinstance(given.get("type"), str) else None
    if kind is None:
        raise ConfigError(f"{where}.type", f"must be one of {allowed}, not {given.get('type')!r}")
    return build(kind, {key: value for key, value in given.items() if key != "type"}, where)


def _override(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """What is given, with the keys that FOREBAY_TABLE__KEY variables name in the place
    of its own.
    """
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


def _expand(value: Any, environment: Mapping[str, str], where: str) -> Any:
    """`value` with each ${NAME} in its texts replaced."""
    if isinstance(value, dict):
        return {
            key: _expand(one, environment, f"{where}.{key}" if where else key)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_expand(one, environment, f"{where}[{number}]") for number, one in enumerate(value)]
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


def _check_text(config: object, name: str) -> None:
    if not getattr(config, name):
        raise ConfigError(name, "must not be empty")
