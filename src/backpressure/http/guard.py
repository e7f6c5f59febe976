"""Guard: what every request has to pass before any route sees it.

    Host       one of the allowed names, else 421: a page elsewhere may have pointed its
               own name at this address (DNS rebinding)
    Origin     absent, the app's own, or an allowed one, else 403: a page elsewhere must
               not act with the user's browser
    token      for every method but GET, HEAD and OPTIONS: 403 where none is configured,
               401 where it is missing or wrong
    body       of control requests: JSON only (415), small (413), however its length is
               announced, and whole (400)

It goes by method and not by route, so a route that is added later is guarded from the
start. A path that no route has is the router's business: it gets 404. The Guard also
answers HEAD wherever there is a GET, and OPTIONS, and gives every response the headers
that keep a browser from doing anything unexpected with it. Refused attempts to change
something are in the audit log.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from backpressure.base.log_limiter import LogLimiter
from backpressure.http.body_length import missing_body
from backpressure.http.config import HttpConfig

__all__ = ["INGEST_PATHS", "Guard", "client_of"]

_audit = logging.getLogger("backpressure.audit")

#: The one route whose body is not a control request, as people write it.
INGEST_PATHS: Final = ("/events", "/events/")

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Nothing from elsewhere, nothing inline, no frames: the dashboard, the only page, needs
# no more.
_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NO_STORE: Final = (b"cache-control", b"no-store")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Refused(Exception):
    def __init__(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers


class Guard:
    """ASGI middleware. Keeps no state of a request; safe for any number of them."""

    def __init__(
        self, app: App, *, token: str | None, config: HttpConfig, routes: Iterable[BaseRoute] = ()
    ) -> None:
        """routes: those of the app, also ones that are added later."""
        self._app = app
        self._routes = routes
        self._token = None if token is None else _digest(token.encode())
        self._config = config
        self._hosts = frozenset(
            host.lower() for host in config.allowed_hosts if not host.startswith("*")
        )
        self._suffixes = tuple(
            host[1:].lower() for host in config.allowed_hosts if host.startswith("*")
        )
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)
        # A client that guesses tokens must not fill the disk with log lines.
        self._few_lines = LogLimiter(1.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            send = _without_body(send)
        try:
            self._check_host(scope["headers"])
            self._check_origin(scope["headers"])
            if method not in _SAFE_METHODS:
                self._check_token(scope["headers"])
            if _route_path(scope) not in INGEST_PATHS:
                self._check_control_body(scope)
                receive = self._count_body(scope["headers"], receive)
        except _Refused as refused:
            if method not in _SAFE_METHODS:
                self._log_refusal(scope, refused)
            await _send_refusal(send, refused)
            return
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        elif method == "OPTIONS" and (allowed := self._allowed(scope)):
            await _send_allowed(send, allowed)
            return
        await self._app(scope, receive, self._with_allowed(scope, _with_headers(send)))

    def _allowed(self, scope: Scope) -> str:
        """The methods of the routes with this path, as for Allow; "" without one."""
        methods: set[str] = set()
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                methods |= getattr(route, "methods", None) or set()
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods | {"OPTIONS"})) if methods else ""

    def _with_allowed(self, scope: Scope, send: Send) -> Send:
        """`send`; where the router refuses a method, all that are allowed are named."""

        async def with_allowed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 405:
                kept = [one for one in message.get("headers", ()) if one[0].lower() != b"allow"]
                allow = (b"allow", self._allowed(scope).encode())
                message = {**message, "headers": [*kept, allow]}
            await send(message)

        return with_allowed

    def _check_host(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        hosts = _values(headers, b"host")
        host = hosts[0] if len(hosts) == 1 else ""
        name = _without_port(host)
        if name not in self._hosts and not any(name.endswith(suffix) for suffix in self._suffixes):
            raise _Refused(
                421,
                f"the host {host[:200]!r} is not answered here: "
                "use localhost, or add it to allowed_hosts",
            )

    def _check_origin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for origin in _values(headers, b"origin"):
            # Host was checked before. The scheme is left out of the comparison: behind
            # a proxy it is not known here.
            scheme, _, host = origin.partition("://")
            own = scheme in ("http", "https") and host in _values(headers, b"host")
            if not own and origin not in self._origins:
                raise _Refused(
                    403,
                    f"pages of {origin[:200]!r} may not call this server: "
                    "add it to allowed_origins",
                )

    def _check_token(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._token is None:
            raise _Refused(
                403, "this server was started without a token, so nothing can be changed over HTTP"
            )
        challenge = (b"www-authenticate", b"Bearer")
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            raise _Refused(
                401, "send the token, in one header: Authorization: Bearer <token>", challenge
            )
        scheme, _, token = given[0].partition(b" ")
        # The digests of both are compared, in constant time: how long it takes tells
        # neither length nor content.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(
            _digest(token.strip()), self._token
        ):
            raise _Refused(401, "the token is wrong", challenge)

    def _check_control_body(self, scope: Scope) -> None:
        headers = scope["headers"]
        length = (_values(headers, b"content-length") or ["0"])[0]
        if not length.isdecimal() or int(length) > self._config.max_control_bytes:
            raise _Refused(413, self._body_too_large())
        if length != "0" or _values(headers, b"transfer-encoding"):
            content_type = (_values(headers, b"content-type") or [""])[0]
            if content_type.partition(";")[0].strip() != "application/json" and any(
                route.matches(scope)[0] is Match.FULL for route in self._routes
            ):
                raise _Refused(
                    415,
                    "the body must be JSON: send it with Content-Type: application/json "
                    "(lines of events go to POST /events)",
                )

    def _count_body(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> Receive:
        """`receive`, counting: a length may not be announced, or not be true."""
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._config.max_control_bytes:
                raise HTTPException(413, self._body_too_large())
            is_end = message["type"] == "http.request" and not message.get("more_body", False)
            if is_end and (problem := missing_body(headers, seen)):
                raise HTTPException(400, problem, {"Connection": "close"})
            return message

        return limited

    def _body_too_large(self) -> str:
        return f"the body may have at most {self._config.max_control_bytes:,} bytes"

    def _log_refusal(self, scope: Scope, refused: _Refused) -> None:
        if times := self._few_lines.add(refused.status, 1, time.monotonic()):
            _audit.warning(
                "refused %s %r, by %s: %s (%d such since the last line)",
                scope["method"], scope["path"][:200], client_of(scope), refused, times,
            )  # fmt: skip


def client_of(scope: Scope) -> str:
    """The sender of a request, for the logs and `Tuned.by`."""
    client = scope.get("client")
    return f"http {client[0]}:{client[1]}" if client else "http"


def _route_path(scope: Scope) -> str:
    """The path below where the app is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if path.startswith(root + "/") else path


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for name, value in headers if name == wanted]


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and (port.isdecimal() or not port) and not name.endswith(":") else host


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            headers += [one for one in (*_HEADERS, _NO_STORE) if one[0] not in names]
            message = {**message, "headers": headers}
        await send(message)

    return with_headers


def _without_body(send: Send) -> Send:
    """`send` of a GET for a HEAD: the response ends with its headers."""
    ended = False

    async def without_body(message: Message) -> None:
        nonlocal ended
        if ended:
            return  # a stream goes on until it sees that nobody listens
        await send(message)
        if message["type"] == "http.response.start":
            ended = True
            await send({"type": "http.response.body", "body": b""})

    return without_body


async def _send_allowed(send: Send, allowed: str) -> None:
    send = _with_headers(send)
    headers = [(b"allow", allowed.encode())]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _send_refusal(send: Send, refused: _Refused) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *refused.headers,
    ]
    send = _with_headers(send)
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
