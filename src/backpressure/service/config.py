"""The configuration of `forebay serve`: a dataclass for each table of its file.

load.py reads them from TOML and environment variables, and says there what the file
looks like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from backpressure.base.errors import ConfigError
from backpressure.base.priority import PRIORITY_LEVELS, default_priority
from backpressure.base.validation import check_bool, check_fields, check_number
from backpressure.buffer.config import BufferConfig
from backpressure.buffer.from_mapping import QUOTED, SECRET
from backpressure.sinks.file_rotation import RotationConfig
from backpressure.sources.framing import FRAMINGS
from backpressure.sources.line_patterns import compile_pattern
from backpressure.sources.patterns import PathPattern
from backpressure.sources.priority_rules import parse_rule
from ringbuf import MessageRing

__all__ = [
    "FileFollow",
    "FileTarget",
    "HttpSettings",
    "HttpTarget",
    "NamedSink",
    "Route",
    "ServeConfig",
    "ServiceSettings",
    "SinkConfig",
    "SourceConfig",
    "StdinLines",
    "StdoutTarget",
    "TcpLines",
    "TcpTarget",
    "UdpLines",
    "UnixLines",
]

_LONGEST_SECONDS = 86_400.0
_LOG_LEVELS = ("debug", "info", "warning", "error")
_MOST_WORKERS = 256
# Sixteen characters of base64 are 96 bits: beyond guessing.
_LEAST_TOKEN = 16
# Longer than any sensible log line; small enough that a thousand connections with one
# each are no danger.
_DEFAULT_LINE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lines:
    """What all sources have.

    name: by which the routes of several sinks name it.
    priority_by: rules "REGEX=N", of which the first that matches a line wins.
    priority: for the other lines; None: 3, or the least urgent where
        `buffer.flow_control.priority_levels` is less.
    max_line_bytes: longer lines are skipped, counted and logged. None: 1 MiB, or what
        fits into a lane where that is less.
    """

    name: str | None = None
    priority: int | None = None
    priority_by: tuple[str, ...] = ()
    max_line_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_text(self, "name")
        if self.priority is not None:
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
    """Follow the files of that name or pattern: *, ?, [], **, {a,b} and ~, as in a
    shell.

    path: of a file, or a pattern of them, as "/var/log/*.log".
    start: "end" or "beginning", for files that were never read before.
    """

    path: str
    start: str = "end"

    def __post_init__(self) -> None:
        _Lines.__post_init__(self)
        _check_text(self, "path")
        try:
            PathPattern(self.path)
        except ValueError as error:
            raise ConfigError("path", str(error)) from None
        if self.start not in ("end", "beginning"):
            raise ConfigError("start", f'must be "end" or "beginning", not {self.start!r}')


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinLines(_Lines):
    """Read stdin to its end.

    Without another source and without HTTP the service ends with it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Connections(_Lines):
    """What sources with connections have.

    max_connections: at a time; a further one is closed at once.
    framing: "newline", "octet-counting" (RFC 6587), or "auto": which of the two it is,
        is seen by each connection's first bytes.
    idle_timeout: seconds after which a connection that sends nothing is closed; without
        it, only a peer that has vanished is noticed (TCP keepalive).
    """

    max_connections: int = 256
    framing: str = "auto"
    idle_timeout: float | None = None

    def __post_init__(self) -> None:
        _Lines.__post_init__(self)
        check_fields(self, int, 1, 1 << 16, "max_connections")
        if self.framing not in FRAMINGS:
            raise ConfigError(
                "framing", f"must be one of {', '.join(FRAMINGS)}, not {self.framing!r}"
            )
        if self.idle_timeout is not None:
            check_fields(self, float, 0.001, _LONGEST_SECONDS, "idle_timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpLines(_Connections):
    """Listen for lines over TCP; on this machine only, unless `host` says otherwise.

    port: 0 lets the system choose one; the log says which.
    host: the address to listen on; "0.0.0.0" or "::" for all.
    """

    port: int
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        _Connections.__post_init__(self)
        _check_text(self, "host")
        check_fields(self, int, 0, 65535, "port")


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpLines(_Lines):
    """Take a line from each datagram, as of syslog over UDP; on this machine only,
    unless `host` says otherwise.

    port: 0 lets the system choose one; the log says which.
    host: the address to listen on; "0.0.0.0" or "::" for all.
    """

    port: int
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        _Lines.__post_init__(self)
        _check_text(self, "host")
        check_fields(self, int, 0, 65535, "port")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixLines(_Connections):
    """Listen for lines over a Unix socket.

    path: of the socket.
    mode: of the socket's file, in octal and in quotes.
    """

    path: str
    mode: str = field(default="0660", metadata=QUOTED)

    def __post_init__(self) -> None:
        _Connections.__post_init__(self)
        _check_text(self, "path")
        if not re.fullmatch(r"0?[0-7]{3}", self.mode):
            raise ConfigError("mode", f'must be octal, as "0660", not {self.mode!r}')


SourceConfig: TypeAlias = FileFollow | StdinLines | TcpLines | UdpLines | UnixLines


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTarget:
    """Append to a file, which is opened anew at each reload.

    path: of the file; it is made where it is not there.
    rotate_bytes: a file of that size is put aside.
    rotate_period: seconds; what is of an earlier period (86400: of another day, UTC) is
        put aside by the next line.
    rotate_keep: how many are kept.
    rotate_compression: "none", "gzip" or "zstd".
    """

    path: str
    rotate_bytes: int | None = None
    rotate_period: float | None = None
    rotate_keep: int | None = None
    rotate_compression: str = "none"

    def __post_init__(self) -> None:
        _check_text(self, "path")
        try:
            due = self.rotation is not None
        except ConfigError as error:
            name = error.field.removeprefix("max_")
            raise ConfigError(
                f"rotate_{name}", str(error).removeprefix(f"{error.field}: ")
            ) from None
        if not due and (self.rotate_keep is not None or self.rotate_compression != "none"):
            raise ConfigError(
                "rotate_keep" if self.rotate_keep is not None else "rotate_compression",
                "nothing is rotated: give rotate_bytes or rotate_period too",
            )

    @property
    def rotation(self) -> RotationConfig | None:
        """For the sink; None: the file is never put aside by this process."""
        config = RotationConfig(
            max_bytes=self.rotate_bytes,
            period=self.rotate_period,
            keep=self.rotate_keep,
            compression=self.rotate_compression,
        )
        return None if config.max_bytes is None and config.period is None else config


@dataclass(frozen=True, slots=True, kw_only=True)
class StdoutTarget:
    """Write to stdout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpTarget:
    """Send lines over TCP.

    host: name or address of the receiver.
    port: of the receiver.
    timeout: seconds that connecting, and each wait for the receiver, may take.
    """

    host: str
    port: int
    timeout: float = 10.0

    def __post_init__(self) -> None:
        _check_text(self, "host")
        check_fields(self, int, 1, 65535, "port")
        check_fields(self, float, 0.001, _LONGEST_SECONDS, "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """Post batches of lines.

    url: http://… or https://…, without user and password. Logs, health and `--check`
        show it without its query.
    headers: are added to each request, as Authorization. No message shows a value.
    compression: "none", "gzip" or "zstd".
    timeout: seconds that one wait for the server may take.
    deadline: seconds for a whole request with its answer; without it, six times
        `timeout`.
    workers: requests under way at once, at most; above 1, lines of a priority may
        arrive out of order.
    """

    url: str = field(repr=False, metadata=SECRET)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, metadata=SECRET)
    compression: str = "none"
    timeout: float = 10.0
    deadline: float | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        from backpressure.sinks.http import HttpSink

        check_fields(self, float, 0.001, _LONGEST_SECONDS, "timeout")
        if self.deadline is not None:
            check_fields(self, float, 0.001, _LONGEST_SECONDS, "deadline")
        check_fields(self, int, 1, _MOST_WORKERS, "workers")
        if not isinstance(self.headers, Mapping):
            raise ConfigError("headers", "must be a table of texts")
        try:
            HttpSink(self.url, headers=self.headers, compression=self.compression)
        except ValueError as error:
            field = re.match(r"\w+", str(error))
            assert field is not None
            if field[0] == "url" and not {"@", "?"}.isdisjoint(self.url):
                # A password or a key may be in it, and where that ends is not clear.
                raise ConfigError(
                    "url", "must be http://host… or https://host…, without user and password"
                ) from None
            raise ConfigError(field[0], str(error).removeprefix(f"{field[0]}: ")) from None


#: Of these only HttpTarget has `workers`: all others are one place, where lines stand
#: in their order.
SinkConfig: TypeAlias = FileTarget | StdoutTarget | TcpTarget | HttpTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which lines one of several sinks gets: those that fit all that is given.

    priority: of these priorities; none given: of all.
    source: of the sources with these names; none given: of all.
    match: a regular expression that is searched in the line. None: any line.
    """

    priority: tuple[int, ...] = ()
    source: tuple[str, ...] = ()
    match: str | None = None

    def __post_init__(self) -> None:
        for one in self.priority:
            check_number("priority", one, int, 1, PRIORITY_LEVELS)
        if self.match is not None:
            try:
                compile_pattern(self.match)
            except ValueError as error:
                raise ConfigError("match", str(error)) from None

    @property
    def takes_all(self) -> bool:
        """Whether every line fits."""
        return not self.priority and not self.source and self.match is None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSink:
    """One sink of several, with the buffer that it has for itself."""

    name: str
    target: SinkConfig
    route: Route
    buffer: BufferConfig

    def __post_init__(self) -> None:
        # A folder's name, a label of metrics and a part of a URL.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise ConfigError(
                "name",
                f"must be up to 64 letters, digits and _.- that begin with a letter or digit, "
                f"not {self.name!r}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The HTTP server.

    host: the address to listen on; "0.0.0.0" or "::" for all.
    port: 0 lets the system choose one; the log says which.
    keep_alive: seconds that a connection may be silent between two requests; more than
        a proxy or load balancer in front keeps one.
    token: what a client sends to change anything, uploads included, in 16 characters
        or more. Without one, nothing can be changed. No message shows it.
    token_file: a file with the token.
    allowed_hosts: names in the Host header that are answered besides localhost and
        `host`, without port; "*.example.com" for all below one, "*" for all.
    allowed_origins: origins besides its own whose pages may call it, as
        "https://ops.example.com".
    """

    host: str = "127.0.0.1"
    port: int = 8127
    keep_alive: float = 75.0
    token: str | None = field(default=None, repr=False, metadata=SECRET)
    token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text(self, "host")
        check_fields(self, int, 0, 65535, "port")
        check_fields(self, float, 0.001, _LONGEST_SECONDS, "keep_alive")
        if self.token is not None and self.token_file is not None:
            raise ConfigError("token_file", "give it or token, not both")
        if self.token is not None and len(self.token) < _LEAST_TOKEN:
            raise ConfigError("token", f"must have {_LEAST_TOKEN} characters or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How the service ends, and what it writes down.

    drain_timeout: seconds that the end may take to deliver what is buffered.
    state_file: where the positions of followed files are kept; without one they are
        forgotten at the end.
    log_level: debug, info, warning or error.
    wait_for_sink: for a buffer with a directory: whether sources wait for a sink that
        takes, before what they read goes to disk and back. It goes to disk all the same
        where the sink does not take: see buffer/sink_wait.py. False where urgent lines
        of a source are to overtake more than half a lane of its others. With several
        sinks none waits: a slow one must not hold up the others.
    """

    drain_timeout: float = 10.0
    state_file: str | None = None
    log_level: str = "info"
    wait_for_sink: bool = True

    def __post_init__(self) -> None:
        check_bool(self, "wait_for_sink")
        check_fields(self, float, 0.0, _LONGEST_SECONDS, "drain_timeout")
        if self.log_level not in _LOG_LEVELS:
            raise ConfigError(
                "log_level", f"must be one of {', '.join(_LOG_LEVELS)}, not {self.log_level!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The whole file.

    buffer: of the one sink; or what the buffers of several have in common.
    sink: the one of [sink], or those of [[sink]].
    """

    buffer: BufferConfig
    source: tuple[SourceConfig, ...]
    sink: SinkConfig | tuple[NamedSink, ...]
    http: HttpSettings | None
    service: ServiceSettings

    @property
    def is_single(self) -> bool:
        """Whether there is one sink without a name."""
        return not isinstance(self.sink, tuple)

    @property
    def sinks(self) -> tuple[NamedSink, ...]:
        """All of them; that of [sink] as one by the name of "sink"."""
        if isinstance(self.sink, tuple):
            return self.sink
        return (NamedSink(name="sink", target=self.sink, route=Route(), buffer=self.buffer),)

    @property
    def waits_for_sink(self) -> bool:
        """Whether sources wait for a sink that takes, before lines go to disk and back.

        Not with several: there the disk is what keeps a slow one from holding up the
        others.
        """
        return self.service.wait_for_sink and self.is_single

    def line_limit(self, source: SourceConfig) -> int:
        """The longest line that this source takes, in bytes."""
        return source.max_line_bytes or min(_DEFAULT_LINE_BYTES, self.lane_limit)

    @property
    def priority_levels(self) -> int:
        """How many priorities there are."""
        return self.buffer.flow_control.priority_levels

    def priority_of(self, source: SourceConfig) -> int:
        """The priority of those of the source's lines that no rule matches."""
        given = source.priority
        return default_priority(self.priority_levels) if given is None else given

    @property
    def lane_limit(self) -> int:
        """The longest line that a lane of every sink takes, in bytes.

        A ring of the same size says so; its memory is never touched.
        """
        return MessageRing(min(sink.buffer.lane_bytes for sink in self.sinks)).max_message_bytes


def _check_text(config: object, name: str) -> None:
    if not getattr(config, name):
        raise ConfigError(name, "must not be empty")
