"""HttpConfig: what the HTTP app answers, and how much of anything it takes."""

from __future__ import annotations

import string
from dataclasses import dataclass

from backpressure.base.errors import ConfigError
from backpressure.base.validation import check_fields

__all__ = ["HttpConfig", "check_token"]

# A year: a longer time is a mistake in the unit.
_LONGEST_SECONDS = 31_536_000.0
# What RFC 6750 lets a bearer token consist of.
_TOKEN_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._~+/=")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Limits and names; the defaults are safe on a developer's machine."""

    #: Names in the Host header that are answered, without port; "*.example.com" for all
    #: names below one, "*" for all. A request with any other may come from a page
    #: elsewhere whose name was pointed at this address (DNS rebinding).
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    #: Origins other than the app's own whose pages may call it, as
    #: "https://ops.example.com"; also the app's own where a proxy rewrites Host.
    allowed_origins: tuple[str, ...] = ()
    #: Bytes in the body of a control request; sensible ones have less than a hundred.
    max_control_bytes: int = 4096
    #: Bytes in the body of an upload as they come, and as they unpack to.
    max_body_bytes: int = 1 << 30
    max_unpacked_bytes: int = 4 << 30
    #: Bytes in one line of an upload: what an upload may keep in memory besides its
    #: buffer. A lane may set a lower limit.
    max_event_bytes: int = 1 << 20
    #: For `make_server` and `serve`: connections at a time, bytes in the head of a
    #: request, seconds from a connection's begin or the first byte of a further request
    #: to the end of its head, and seconds that a connection may be silent between two
    #: requests. Where the app is mounted in one of your own, its server has to set such
    #: limits.
    max_connections: int = 512
    max_head_bytes: int = 1 << 16
    head_timeout: float = 10.0
    #: More than the 60 s for which common proxies and load balancers keep a connection:
    #: where the server ends it first, a request that is on its way then fails.
    keep_alive: float = 75.0
    #: Seconds that an upload may be silent.
    read_timeout: float = 60.0
    #: Event streams (`GET /buffer/events`) at a time.
    max_streams: int = 32
    #: Seconds after which a stream ends and its client connects again, so that a stream
    #: without a client does not stay.
    stream_seconds: float = 3600.0
    #: Seconds of silence on a stream after which a comment shows that it lives; half of
    #: what proxies commonly bear.
    heartbeat: float = 15.0
    #: Seconds that a client may take to read before it is dropped.
    send_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("allowed_hosts", "allowed_origins"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(
                isinstance(one, str) and one for one in value
            ):
                raise ConfigError(name, f"must be a tuple of names, not {value!r}")
        for host in self.allowed_hosts:
            bare = host.partition("]")[2] if host.startswith("[") else host
            if ":" in bare or "/" in host or "*" in host.removeprefix("*."[: len(host)]):
                raise ConfigError(
                    "allowed_hosts",
                    f"{host!r} must be a name without scheme and port, '*.name' or '*'",
                )
        for origin in self.allowed_origins:
            scheme, separator, rest = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not rest or "/" in rest:
                raise ConfigError(
                    "allowed_origins",
                    f"{origin!r} must look like 'https://name' or 'https://name:port'",
                )
        check_fields(self, int, 1, 1 << 20, "max_control_bytes", "max_streams", "max_connections")
        check_fields(self, int, 1, 1 << 50, "max_body_bytes", "max_unpacked_bytes")
        check_fields(self, int, 1, 1 << 30, "max_event_bytes")
        check_fields(self, int, 1 << 10, 1 << 20, "max_head_bytes")
        check_fields(
            self, float, 1e-3, _LONGEST_SECONDS, "head_timeout", "read_timeout", "send_timeout"
        )
        check_fields(
            self, float, 1e-3, _LONGEST_SECONDS, "stream_seconds", "heartbeat", "keep_alive"
        )


def check_token(token: str | None) -> str | None:
    """`token`, or ConfigError where no client could ever send it.

    None: nothing can be changed over HTTP.
    """
    if token is None:
        return None
    if not isinstance(token, str) or not token or not _TOKEN_CHARACTERS.issuperset(token):
        raise ConfigError(
            "token",
            "must be None or a text of letters, digits and -._~+/= (it is sent in a header)",
        )
    return token
